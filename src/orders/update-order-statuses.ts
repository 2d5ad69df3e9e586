import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { refusalOf } from "./move-order.ts";
import { cancellation, type OrderMove, type OrderStatus } from "./order.ts";
import type { OrderStore } from "./store.ts";

export interface StatusUpdate {
  readonly orderId: string;
  readonly status: OrderStatus;
  /** A line for the notes. Empty: none; a cancellation then gets its usual one. */
  readonly notes: string;
}

export interface StatusUpdateResult {
  /** The orders that were moved, in the order of the updates. */
  readonly orderIds: string[];
  readonly failures: { orderId: string; reason: string; message: string }[];
}

/** Makes those of the moves that are valid, in one transaction, in the order given; says of the others why not. */
export async function updateOrderStatuses(
  { orders, clock }: { orders: OrderStore; clock: Clock },
  updates: readonly StatusUpdate[],
  { userId }: Caller,
): Promise<StatusUpdateResult> {
  const outcomes = await orders.moveOrders(updates.map(toMove), clock.now(), userId);
  const result: StatusUpdateResult = { orderIds: [], failures: [] };
  for (const [i, { orderId, status }] of updates.entries()) {
    const outcome = outcomes[i] ?? { outcome: "NOT_FOUND" };
    const refused = refusalOf(outcome, (from) => `Invalid status transition from ${from} to ${status}`);
    if (refused === undefined) result.orderIds.push(orderId);
    else result.failures.push({ orderId, ...refused });
  }
  return result;
}

function toMove({ orderId, status, notes }: StatusUpdate): OrderMove {
  if (status === "CANCELLED") return cancellation(orderId, notes);
  return { orderId, to: status, note: notes, reason: notes, trackingNumber: "" };
}
