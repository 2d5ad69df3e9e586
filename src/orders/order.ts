import { hash } from "node:crypto";
import type { FieldViolation } from "../errors.ts";
import type { Money } from "../money.ts";

export type OrderStatus = "PENDING" | "CONFIRMED" | "SHIPPED" | "DELIVERED" | "CANCELLED" | "RETURNED";
export type OrderPaymentState = "UNPAID" | "PENDING" | "PAID" | "REFUNDED";

/** Which moves there are: the one table of them, also for the database (move_orders). */
export const transitions: Readonly<Record<OrderStatus, readonly OrderStatus[]>> = {
  PENDING: ["CONFIRMED", "CANCELLED"],
  CONFIRMED: ["SHIPPED", "CANCELLED"],
  SHIPPED: ["DELIVERED", "RETURNED"],
  DELIVERED: ["RETURNED"],
  CANCELLED: [],
  RETURNED: [],
};

export const orderStatuses = Object.keys(transitions) as OrderStatus[];

export interface OrderItem {
  readonly id: string;
  readonly productId: string;
  /** As it was when the order was placed. */
  readonly productName: string;
  readonly quantity: number;
  /** As it was when the order was placed. */
  readonly unitPrice: Money;
}

/** Where the goods go, as the address was when the order was placed. */
export interface ShippingAddress {
  readonly street: string;
  readonly city: string;
  readonly state: string;
  readonly postalCode: string;
  readonly country: string;
}

export interface Order {
  readonly id: string;
  readonly customerId: string;
  readonly status: OrderStatus;
  readonly paymentState: OrderPaymentState;
  readonly items: readonly OrderItem[];
  readonly totalAmount: Money;
  readonly shippingAddressId: string | null;
  readonly shippingAddress: ShippingAddress | null;
  readonly expireTime: Date | null;
  readonly notes: string;
  readonly trackingNumber: string;
  readonly orderTime: Date;
  readonly updateTime: Date;
  readonly version: number;
}

export interface OrderLine {
  readonly productId: string;
  readonly quantity: number;
}

/** An order as it is asked for; prices, names and the address come from the database. */
export interface NewOrder {
  readonly id: string;
  readonly customerId: string;
  /** Who calls: `requestId` is unique for each caller. */
  readonly createdBy: string;
  readonly requestId: string;
  readonly requestHash: Buffer;
  /** Each product once. */
  readonly lines: readonly (OrderLine & { readonly id: string })[];
  readonly shippingAddressId: string | null;
  readonly notes: string;
  readonly status: "PENDING" | "CONFIRMED";
  readonly expireTime: Date | null;
  readonly orderTime: Date;
}

const MAX_LINE_QUANTITY = 10_000;

/** One line a product, in the order in which the products first came. */
export function mergeLines(lines: readonly OrderLine[]): OrderLine[] {
  const quantities = new Map<string, number>();
  for (const { productId, quantity } of lines) {
    quantities.set(productId, (quantities.get(productId) ?? 0) + quantity);
  }
  return [...quantities].map(([productId, quantity]) => ({ productId, quantity }));
}

/** Faults of the lines together; each line by itself is checked by the schema. */
export function lineFaults(lines: readonly OrderLine[]): FieldViolation[] {
  return mergeLines(lines)
    .filter(({ quantity }) => quantity > MAX_LINE_QUANTITY)
    .map(({ productId, quantity }) => ({
      field: "items",
      reason: "QUANTITY_TOO_LARGE",
      description: `The lines of product ${productId} ask for ${quantity} together; at most ${MAX_LINE_QUANTITY} can be ordered`,
    }));
}

/** One move of an order to another status. */
export interface OrderMove {
  readonly orderId: string;
  readonly to: OrderStatus;
  /** A line for the order's notes. Empty: none. */
  readonly note: string;
  /** Why, for the order's history. Empty: not said. */
  readonly reason: string;
  /** Empty: as it is. */
  readonly trackingNumber: string;
}

/** What became of a move. `from` is where the order stood. */
export type MoveOutcome =
  | { readonly outcome: "MOVED"; readonly from: OrderStatus; readonly wasPaid: boolean }
  | { readonly outcome: "INVALID" | "PAYMENT_PENDING" | "NOT_DUE"; readonly from: OrderStatus }
  | { readonly outcome: "NOT_FOUND" };

/** The move that cancels an order, with the line that its notes get. */
export function cancellation(orderId: string, reason: string): OrderMove {
  const note = `Cancelled: ${reason || "No reason provided"}`;
  return { orderId, to: "CANCELLED", note, reason, trackingNumber: "" };
}

/** Tells a repeated request from another one under the same id. */
export function requestHash(request: object): Buffer {
  return hash("sha256", JSON.stringify(request), "buffer");
}
