import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError, notFound, requestIdReused } from "../errors.ts";
import { newId } from "../ids.ts";
import { formatMoney } from "../money.ts";
import { callerGone } from "./actor.ts";
import { mergeLines, type Order, type OrderLine, requestHash } from "./order.ts";
import type { OrderStore, Refusal } from "./store.ts";

export interface CreateOrder {
  readonly requestId: string;
  /** Empty: the caller. */
  readonly customerId: string;
  readonly lines: readonly OrderLine[];
  /** Empty: nothing is shipped. */
  readonly shippingAddressId: string;
  readonly notes: string;
  readonly awaitPayment: boolean;
}

/**
 * Places an order: all of its stock is taken and the order recorded, or nothing happens. The same request again gives
 * the order as it is now.
 * @throws DomainError ADMIN_REQUIRED, INSUFFICIENT_STOCK, PRODUCT_UNAVAILABLE, CURRENCY_MIXED, ADDRESS_INVALID,
 *   CUSTOMER_INACTIVE, ORDER_TOTAL_TOO_LARGE, REQUEST_ID_REUSED, TOKEN_INVALID
 */
export async function createOrder(
  { orders, clock, reservationMinutes }: { orders: OrderStore; clock: Clock; reservationMinutes: number },
  { requestId, customerId: given, lines, shippingAddressId, notes, awaitPayment }: CreateOrder,
  { userId, role }: Caller,
  deadline: number,
): Promise<Order> {
  const customerId = given || userId;
  if (customerId !== userId && role !== "ADMIN") {
    throw new DomainError("forbidden", "ADMIN_REQUIRED", "Only an admin may order for another customer");
  }
  const merged = mergeLines(lines);
  const orderTime = clock.now();
  const placed = await orders.place(
    {
      id: newId(),
      customerId,
      createdBy: userId,
      requestId,
      requestHash: requestHash({ customerId, lines: merged, shippingAddressId, notes, awaitPayment }),
      lines: merged.map((line) => ({ ...line, id: newId() })),
      shippingAddressId: shippingAddressId || null,
      notes,
      status: awaitPayment ? "PENDING" : "CONFIRMED",
      expireTime: awaitPayment ? new Date(orderTime.getTime() + reservationMinutes * 60_000) : null,
      orderTime,
    },
    deadline,
  );
  if (placed.outcome === "PLACED") return placed.order;
  if (placed.outcome !== "REPEATED") throw refusal(placed, { requestId, customerId, shippingAddressId });

  const order = await orders.find(placed.orderId, deadline);
  if (order === undefined) throw notFound("Order", placed.orderId);
  return order;
}

function refusal(
  refused: Refusal,
  { requestId, customerId, shippingAddressId }: Pick<CreateOrder, "requestId" | "customerId" | "shippingAddressId">,
): DomainError {
  const { outcome } = refused;
  const because = (message: string, metadata: Record<string, string> = {}) =>
    new DomainError("precondition", outcome, message, { metadata });
  switch (outcome) {
    case "REQUEST_ID_REUSED":
      return requestIdReused(requestId);
    case "CUSTOMER_INACTIVE":
      return because(`There is no active customer ${customerId}`);
    case "ADDRESS_INVALID":
      return because(`Address ${shippingAddressId} is not one of the customer's`);
    case "CALLER_GONE":
      return callerGone();
    case "CURRENCY_MIXED":
      return because("All products of an order must have one currency");
    case "PRODUCT_UNAVAILABLE":
      return because(`Product ${refused.productId} is not available`, { product_id: refused.productId });
    case "ORDER_TOTAL_TOO_LARGE":
      return because(`The order's total ${formatMoney(refused.total)} is above 99,999,999.99`);
    case "INSUFFICIENT_STOCK": {
      const { productId, product, available, requested } = refused;
      return because(`Insufficient stock for product ${product}. Available: ${available}, Requested: ${requested}`, {
        product_id: productId,
        product,
        available: String(available),
        requested: String(requested),
      });
    }
  }
}
