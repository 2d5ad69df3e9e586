import type { Logger } from "pino";
import type { Clock } from "../deps.ts";
import { cancellation } from "./order.ts";
import type { OrderStore } from "./store.ts";

/** Orders of one transaction: few enough that no lock is held for long. */
const BATCH = 100;

/**
 * Cancels the orders whose time to be paid has passed, and gives their stock back. What was found due is judged again
 * under the row's lock, so a payment that comes at the same time wins or loses as a whole.
 * @returns how many were cancelled; a full batch means that more may wait.
 */
export async function expireOrders({
  orders,
  clock,
  log,
}: {
  orders: OrderStore;
  clock: Clock;
  log: Logger;
}): Promise<number> {
  const now = clock.now();
  const due = await orders.findExpired(now, BATCH);
  if (due.length === 0) return 0;
  const outcomes = await orders.expireOrders(
    due.map((orderId) => cancellation(orderId, "Not paid in time")),
    now,
  );
  const cancelled = due.filter((_, i) => outcomes[i]?.outcome === "MOVED");
  if (cancelled.length > 0) log.info({ orderIds: cancelled }, "unpaid orders expired");
  return cancelled.length;
}
