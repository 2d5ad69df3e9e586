import fc from "fast-check";
import { type OrderPaymentState, type OrderStatus, transitions } from "../../src/orders/order.ts";

// What clients ask of a shop, as data, and what a shop of a few lines in memory would answer. Orders, products and
// customers are named by small numbers; an order's number is taken modulo how many there are.

const PRODUCTS = 4;
export const CUSTOMERS = 2;
/** How long an order with `await_payment` holds its stock at the shops of these tests. */
export const RESERVATION_MINUTES = 1;
/** Long enough for everything that awaits its payment to be due. */
export const LONGER_THAN_RESERVED_MS = RESERVATION_MINUTES * 60_000 + 1_000;

interface Line {
  readonly product: number;
  readonly quantity: number;
}

export type Command =
  | {
      readonly kind: "create";
      readonly customer: number;
      readonly lines: readonly Line[];
      readonly awaitPayment: boolean;
      /** A new request id, the whole request of an earlier order again, or only its id. */
      readonly request: "new" | "repeated" | "id reused";
      readonly earlier: number;
    }
  | { readonly kind: "cancel"; readonly order: number; readonly by: "owner" | "another" | "admin" }
  | { readonly kind: "ship"; readonly order: number }
  | { readonly kind: "batch"; readonly moves: readonly { readonly order: number; readonly to: OrderStatus }[] }
  | { readonly kind: "adjust"; readonly product: number; readonly delta: number; readonly twice: boolean }
  | { readonly kind: "price"; readonly product: number; readonly cents: number }
  | { readonly kind: "activate"; readonly product: number; readonly active: boolean }
  | { readonly kind: "pay"; readonly order: number; readonly declined: boolean }
  | { readonly kind: "wait" }
  | { readonly kind: "expire" };

const order = fc.nat({ max: 30 });
const product = fc.nat({ max: PRODUCTS - 1 });
const create = fc.record({
  kind: fc.constant("create" as const),
  customer: fc.nat({ max: CUSTOMERS - 1 }),
  lines: fc.array(fc.record({ product, quantity: fc.integer({ min: 1, max: 4 }) }), { minLength: 1, maxLength: 3 }),
  awaitPayment: fc.boolean(),
  request: fc.oneof(
    { weight: 6, arbitrary: fc.constant("new" as const) },
    { weight: 2, arbitrary: fc.constant("repeated" as const) },
    { weight: 1, arbitrary: fc.constant("id reused" as const) },
  ),
  earlier: order,
});
const by = fc.constantFrom("owner" as const, "owner" as const, "admin" as const, "another" as const);
const statuses = Object.keys(transitions) as OrderStatus[];
const moves = fc.array(fc.record({ order, to: fc.constantFrom(...statuses) }), { minLength: 1, maxLength: 4 });

export const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 10, arbitrary: create },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("cancel" as const), order, by }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("ship" as const), order }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("batch" as const), moves }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("pay" as const), order, declined: fc.boolean() }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant("adjust" as const),
      product,
      delta: fc.integer({ min: -6, max: 6 }).filter((delta) => delta !== 0),
      twice: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ kind: fc.constant("price" as const), product, cents: fc.integer({ min: 1, max: 2_000 }) }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("activate" as const), product, active: fc.boolean() }) },
  { weight: 1, arbitrary: fc.constant({ kind: "wait" as const }) },
  { weight: 1, arbitrary: fc.constant({ kind: "expire" as const }) },
);

/** What a client is told: "ok" or the reason of a refusal, and what else there is to compare. */
export interface Answer {
  readonly outcome: string;
  /** Of a batch: the orders that were moved, and those that were not with the reason. An order that is not there is -1. */
  readonly moved?: readonly number[];
  readonly failed?: readonly (readonly [order: number, reason: string])[];
  /** Of an order that was placed or moved. */
  readonly order?: { readonly number: number; readonly status: OrderStatus; readonly cents: number };
  readonly stock?: number;
}

interface ModelProduct {
  stock: number;
  cents: number;
  active: boolean;
  readonly currency: string;
}

interface ModelOrder {
  readonly customer: number;
  readonly lines: readonly Line[];
  readonly cents: number;
  readonly expireAtMs: number | undefined;
  status: OrderStatus;
  paymentState: OrderPaymentState;
}

/** The products of every run: little stock, and one of another currency. */
export const newProducts = (): ModelProduct[] => [
  { stock: 12, cents: 1099, active: true, currency: "USD" },
  { stock: 5, cents: 2550, active: true, currency: "USD" },
  { stock: 0, cents: 1, active: true, currency: "USD" },
  { stock: 9, cents: 700, active: true, currency: "EUR" },
];

/** A shop in memory that carries out one command after another. */
export class ShopModel {
  readonly products = newProducts();
  readonly orders: ModelOrder[] = [];
  #nowMs = 0;

  answer(command: Command): Answer {
    switch (command.kind) {
      case "create":
        return this.#create(command);
      case "cancel":
        return this.#cancel(command);
      case "ship":
        return this.#ship(command.order);
      case "batch":
        return this.#batch(command.moves);
      case "adjust":
        return this.#adjust(command.product, command.delta);
      case "pay":
        return this.#pay(command.order, command.declined);
      case "price":
        this.#product(command.product).cents = command.cents;
        return { outcome: "ok" };
      case "activate":
        this.#product(command.product).active = command.active;
        return { outcome: "ok" };
      case "wait":
        this.#nowMs += LONGER_THAN_RESERVED_MS;
        return { outcome: "ok" };
      case "expire":
        for (const order of this.orders) {
          if (order.status === "PENDING" && order.paymentState === "UNPAID" && this.#isDue(order)) this.#restore(order);
        }
        return { outcome: "ok" };
    }
  }

  #create({ customer, lines, awaitPayment, request, earlier }: Command & { kind: "create" }): Answer {
    const before = this.#order(earlier);
    if (request !== "new" && before !== undefined) {
      return request === "repeated" ? { outcome: "ok", order: this.#shown(before) } : { outcome: "REQUEST_ID_REUSED" };
    }
    const merged = merge(lines);
    const products = merged.map((line) => this.#product(line.product));
    const currencies = new Set<string>();
    for (const { active, currency } of products) {
      if (!active) return { outcome: "PRODUCT_UNAVAILABLE" };
      if (currencies.add(currency).size > 1) return { outcome: "CURRENCY_MIXED" };
    }
    if (merged.some(({ product, quantity }) => this.#product(product).stock < quantity)) {
      return { outcome: "INSUFFICIENT_STOCK" };
    }
    for (const { product, quantity } of merged) this.#product(product).stock -= quantity;
    const order: ModelOrder = {
      customer,
      lines: merged,
      cents: merged.reduce((sum, { product, quantity }) => sum + quantity * this.#product(product).cents, 0),
      expireAtMs: awaitPayment ? this.#nowMs + RESERVATION_MINUTES * 60_000 : undefined,
      status: awaitPayment ? "PENDING" : "CONFIRMED",
      paymentState: "UNPAID",
    };
    this.orders.push(order);
    return { outcome: "ok", order: this.#shown(order) };
  }

  #cancel({ order: number, by }: Command & { kind: "cancel" }): Answer {
    const order = this.#order(number);
    if (order === undefined || by === "another") return { outcome: "ORDER_NOT_FOUND" };
    if (!transitions[order.status].includes("CANCELLED")) return { outcome: "ORDER_STATUS_INVALID" };
    this.#restore(order);
    return { outcome: "ok", order: this.#shown(order) };
  }

  #ship(number: number): Answer {
    const order = this.#order(number);
    if (order === undefined) return { outcome: "ORDER_NOT_FOUND" };
    if (order.status !== "CONFIRMED") return { outcome: "ORDER_STATUS_INVALID" };
    order.status = "SHIPPED";
    return { outcome: "ok", order: this.#shown(order) };
  }

  #batch(moves: (Command & { kind: "batch" })["moves"]): Answer {
    const moved: number[] = [];
    const failed: [number, string][] = [];
    for (const { order: number, to } of moves) {
      const order = this.#order(number);
      const shown = order === undefined ? -1 : this.orders.indexOf(order);
      if (order === undefined) {
        failed.push([shown, "ORDER_NOT_FOUND"]);
      } else if (!transitions[order.status].includes(to)) {
        failed.push([shown, "ORDER_STATUS_INVALID"]);
      } else {
        if (to === "CANCELLED") this.#restore(order);
        order.status = to;
        moved.push(shown);
      }
    }
    return { outcome: "ok", moved, failed };
  }

  #adjust(number: number, delta: number): Answer {
    const product = this.#product(number);
    if (product.stock + delta < 0) return { outcome: "INSUFFICIENT_STOCK" };
    product.stock += delta;
    return { outcome: "ok", stock: product.stock };
  }

  #pay(number: number, declined: boolean): Answer {
    const order = this.#order(number);
    if (order === undefined) return { outcome: "ORDER_NOT_FOUND" };
    const isOpen = order.status === "PENDING" || order.status === "CONFIRMED";
    const isLate = order.status === "PENDING" && this.#isDue(order);
    if (!isOpen || order.paymentState !== "UNPAID" || isLate) return { outcome: "ORDER_NOT_PAYABLE" };
    if (declined) return { outcome: "ok" };
    order.paymentState = "PAID";
    order.status = "CONFIRMED";
    return { outcome: "ok" };
  }

  #isDue({ expireAtMs }: ModelOrder): boolean {
    return expireAtMs !== undefined && expireAtMs <= this.#nowMs;
  }

  #restore(order: ModelOrder): void {
    order.status = "CANCELLED";
    for (const { product, quantity } of order.lines) this.#product(product).stock += quantity;
  }

  #shown(order: ModelOrder): NonNullable<Answer["order"]> {
    return { number: this.orders.indexOf(order), status: order.status, cents: order.cents };
  }

  #product(number: number): ModelProduct {
    return this.products[number] as ModelProduct;
  }

  #order(number: number): ModelOrder | undefined {
    return this.orders[number % this.orders.length];
  }
}

/** One line a product, in the order in which the products first came. */
function merge(lines: readonly Line[]): Line[] {
  const merged: { product: number; quantity: number }[] = [];
  for (const { product, quantity } of lines) {
    const before = merged.find((line) => line.product === product);
    if (before === undefined) merged.push({ product, quantity });
    else before.quantity += quantity;
  }
  return merged;
}
