import type { Logger } from "pino";
import type { Clock } from "../deps.ts";
import { cancellation } from "./order.ts";
import type { OrderStore } from "./store.ts";

/** Orders of one transaction: few enough that no lock is held for long. */
const BATCH = 100;

/**
 * Cancels the orders whose time to be paid has passed, and gives their stock back. What was found due is judged again
 * under the row's lock, so a payment that comes at the same time wins or loses as a whole.
 * @returns whether more may be due.
 */
export async function expireOrders({
  orders,
  clock,
  log,
}: {
  orders: OrderStore;
  clock: Clock;
  log: Logger;
}): Promise<boolean> {
  const now = clock.now();
  const due = await orders.findExpired(now, BATCH);
  if (due.length === 0) return false;
  const outcomes = await orders.expireOrders(
    due.map((orderId) => cancellation(orderId, "Not paid in time")),
    now,
  );
  const cancelled = due.filter((_, i) => outcomes[i]?.outcome === "MOVED");
  if (cancelled.length > 0) log.info({ orderIds: cancelled }, "unpaid orders expired");
  // Of a full batch that others have dealt with meanwhile there is nothing to go on with at once.
  return due.length === BATCH && cancelled.length > 0;
}
