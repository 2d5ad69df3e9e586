import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError, notFound } from "../errors.ts";
import { cancellation, type MoveOutcome, type Order, type OrderMove } from "./order.ts";
import type { OrderStore } from "./store.ts";

interface MoveDeps {
  readonly orders: OrderStore;
  readonly clock: Clock;
}

/**
 * Cancels an order that was not shipped yet: its stock goes back, what was paid is refunded by a job.
 * @throws DomainError ORDER_NOT_FOUND, ORDER_STATUS_INVALID, ORDER_PAYMENT_IN_FLIGHT
 */
export async function cancelOrder(deps: MoveDeps, orderId: string, reason: string, caller: Caller): Promise<Order> {
  return move(deps, cancellation(orderId, reason), caller, (from) => `Cannot cancel order with status: ${from}`);
}

/**
 * Marks a confirmed order as shipped.
 * @throws DomainError ORDER_NOT_FOUND, ORDER_STATUS_INVALID
 */
export async function shipOrder(
  deps: MoveDeps,
  orderId: string,
  trackingNumber: string,
  caller: Caller,
): Promise<Order> {
  const note = `Shipped with tracking: ${trackingNumber}`;
  const shipment: OrderMove = { orderId, to: "SHIPPED", note, reason: "", trackingNumber };
  return move(deps, shipment, caller, (from) => `Can only ship confirmed orders. Current status: ${from}`);
}

async function move(
  { orders, clock }: MoveDeps,
  asked: OrderMove,
  { userId, role }: Caller,
  sentence: (from: string) => string,
): Promise<Order> {
  const { orderId } = asked;
  const ownerId = role === "ADMIN" ? undefined : userId;
  const [outcome] = await orders.moveOrders([asked], clock.now(), userId, ownerId);
  if (outcome === undefined || outcome.outcome === "NOT_FOUND") throw notFound("Order", orderId);
  const refused = refusalOf(outcome, sentence);
  if (refused !== undefined) throw new DomainError("precondition", refused.reason, refused.message);

  const [order] = await orders.findOrders([orderId]);
  if (order === undefined) throw notFound("Order", orderId);
  return order;
}

/** Why a move was refused; undefined when it was made. */
export function refusalOf(
  outcome: MoveOutcome,
  sentence: (from: string) => string,
): { reason: string; message: string } | undefined {
  switch (outcome.outcome) {
    case "MOVED":
      return undefined;
    case "NOT_FOUND":
      return { reason: "ORDER_NOT_FOUND", message: "Order not found" };
    case "PAYMENT_PENDING":
      return {
        reason: "ORDER_PAYMENT_IN_FLIGHT",
        message: "Cannot cancel the order while a payment of it is under way",
      };
    default:
      return { reason: "ORDER_STATUS_INVALID", message: sentence(outcome.from) };
  }
}
