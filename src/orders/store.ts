import type { Transaction } from "sequelize";
import { Batcher } from "../db/batcher.ts";
import { type Database, isAway } from "../db/database.ts";
import { retrying } from "../db/transaction.ts";
import { fromDecimal, type Money } from "../money.ts";
import type { NewOrder, Order, OrderPaymentState, OrderStatus, ShippingAddress } from "./order.ts";

/** Why an order was not placed, with the facts of the refusal. */
export type Refusal =
  | { readonly outcome: "REQUEST_ID_REUSED" | "CUSTOMER_INACTIVE" | "ADDRESS_INVALID" | "CURRENCY_MIXED" }
  | { readonly outcome: "PRODUCT_UNAVAILABLE"; readonly productId: string }
  | { readonly outcome: "ORDER_TOTAL_TOO_LARGE"; readonly total: Money }
  | {
      readonly outcome: "INSUFFICIENT_STOCK";
      readonly productId: string;
      readonly product: string;
      readonly available: number;
      readonly requested: number;
    };

export type PlaceOutcome =
  | { readonly outcome: "PLACED"; readonly order: Order }
  | { readonly outcome: "REPEATED"; readonly orderId: string }
  | Refusal;

interface PlacedRow {
  readonly outcome: PlaceOutcome["outcome"];
  readonly order_id: string;
  // The shape depends on the outcome: see the migration of place_orders.
  // biome-ignore lint/suspicious/noExplicitAny: it is what our own function builds, read field by field below.
  readonly detail: any;
}

interface OrderRow {
  readonly id: string;
  readonly customer_id: string;
  readonly status: OrderStatus;
  readonly payment_state: OrderPaymentState;
  readonly currency: string;
  readonly total_amount: string;
  readonly shipping_address_id: string | null;
  readonly shipping_address: AddressJson | null;
  readonly expire_time: Date | null;
  readonly notes: string;
  readonly tracking_number: string;
  readonly order_time: Date;
  readonly update_time: Date;
  readonly version: number;
  readonly items: readonly {
    id: string;
    product_id: string;
    product_name: string;
    quantity: number;
    unit_price: string;
  }[];
}

interface AddressJson {
  readonly street: string;
  readonly city: string;
  readonly state: string;
  readonly postal_code: string;
  readonly country: string;
}

const PLACE_ORDERS = {
  name: "place-orders",
  text: `SELECT outcome, order_id, detail FROM place_orders($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
};

const FIND_ORDERS = {
  name: "find-orders",
  text: `SELECT o.id, o.customer_id, o.status, o.payment_state, o.currency, o.total_amount, o.shipping_address_id,
                o.shipping_address, o.expire_time, o.notes, o.tracking_number, o.order_time, o.update_time, o.version,
                i.items
           FROM orders o
          CROSS JOIN LATERAL (
                SELECT json_agg(json_build_object('id', id, 'product_id', product_id, 'product_name', product_name,
                         'quantity', quantity, 'unit_price', unit_price::text) ORDER BY position) AS items
                  FROM order_items WHERE order_id = o.id) i
          WHERE o.id = ANY ($1)`,
};

/** A batch of 32 is where more orders at once gained nothing; two lanes keep the database busy while rows travel. */
const PLACE_BATCH = { maxBatch: 32, maxLanes: 2, maxWaiting: 5_000 };
const FIND_BATCH = { maxBatch: 64, maxLanes: 2, maxWaiting: 10_000 };

/** All SQL about orders. */
export class OrderStore {
  readonly #db: Database;
  readonly #placing: Batcher<NewOrder, PlaceOutcome>;
  readonly #finding: Batcher<string, Order | undefined>;
  /** Orders under way, so that the same request sent twice at once is carried out once. */
  readonly #underWay = new Map<string, { readonly hash: Buffer; readonly outcome: Promise<PlaceOutcome> }>();

  constructor(db: Database) {
    this.#db = db;
    this.#placing = new Batcher({
      ...PLACE_BATCH,
      run: (orders) => this.placeOrders(orders),
      keyOf: requestKey,
      isShared: isAway,
    });
    this.#finding = new Batcher({ ...FIND_BATCH, run: (ids) => this.findOrders(ids), isShared: isAway });
  }

  /** Places one order, together with those that wait at the same time. `deadline` is in epoch milliseconds. */
  place(order: NewOrder, deadline: number): Promise<PlaceOutcome> {
    const key = requestKey(order);
    const twin = this.#underWay.get(key);
    if (twin?.hash.equals(order.requestHash)) return twin.outcome;

    const outcome = this.#placing.submit(order, deadline);
    if (twin === undefined) {
      this.#underWay.set(key, { hash: order.requestHash, outcome });
      const forget = () => this.#underWay.delete(key);
      outcome.then(forget, forget);
    }
    return outcome;
  }

  /** Reads one order, together with those that are read at the same time. `deadline` is in epoch milliseconds. */
  find(id: string, deadline: number): Promise<Order | undefined> {
    return this.#finding.submit(id, deadline);
  }

  /**
   * Places a batch in one round trip and one commit; one outcome for each order, in order, exactly as if they had been
   * placed one after another. No two of them have the same `createdBy` and `requestId`.
   */
  async placeOrders(orders: readonly NewOrder[]): Promise<PlaceOutcome[]> {
    const lines = orders.flatMap((order, i) =>
      order.lines.map((line, at) => ({ ...line, order: i + 1, position: at + 1 })),
    );
    const values = [
      orders.map(({ id }) => id),
      orders.map(({ customerId }) => customerId),
      orders.map(({ createdBy }) => createdBy),
      orders.map(({ requestId }) => requestId),
      orders.map((order) => order.requestHash),
      orders.map(({ shippingAddressId }) => shippingAddressId),
      orders.map(({ notes }) => notes),
      orders.map(({ status }) => status),
      orders.map(({ expireTime }) => expireTime),
      orders.map(({ orderTime }) => orderTime),
      lines.map(({ order }) => order),
      lines.map(({ position }) => position),
      lines.map(({ id }) => id),
      lines.map(({ productId }) => productId),
      lines.map(({ quantity }) => quantity),
    ];
    const rerunOn = ["orders_request_key"];
    const rows = await retrying(() => this.#db.query<PlacedRow>(PLACE_ORDERS, values), { rerunOn });
    return rows.map((row, i) => toOutcome(row, orders[i] as NewOrder));
  }

  /** One order or undefined for each id, in order. */
  async findOrders(ids: readonly string[]): Promise<(Order | undefined)[]> {
    const rows = await this.#db.query<OrderRow>(FIND_ORDERS, [[...new Set(ids)]]);
    const orders = new Map(rows.map((row) => [row.id, toOrder(row)]));
    return ids.map((id) => orders.get(id));
  }

  /**
   * Locks an order's row for a payment and reads what a payment has to know of it. Orders are locked before payments,
   * everywhere.
   */
  async lockForPayment(id: string, transaction: Transaction): Promise<PayableOrder | undefined> {
    const [row] = await this.#db.query<Omit<OrderRow, "items">>(
      {
        name: "lock-order-for-payment",
        text: `SELECT id, customer_id, status, payment_state, currency, total_amount, expire_time
                 FROM orders WHERE id = $1 FOR NO KEY UPDATE`,
      },
      [id],
      transaction,
    );
    if (row === undefined) return undefined;
    const { customer_id: customerId, status, payment_state: paymentState, currency, total_amount, expire_time } = row;
    return {
      id,
      customerId,
      status,
      paymentState,
      totalAmount: fromDecimal(currency, total_amount),
      expireTime: expire_time,
    };
  }

  /**
   * Moves the payment state of a locked order, and with PAID a PENDING order to CONFIRMED, since what it waited for has
   * come.
   */
  async setPaymentState(id: string, to: OrderPaymentState, now: Date, transaction: Transaction): Promise<void> {
    await this.#db.query(
      {
        name: "set-order-payment-state",
        text: `WITH before AS (SELECT id, status FROM orders WHERE id = $1), moved AS (
                 UPDATE orders o
                    SET payment_state = $2,
                        status = CASE WHEN $2 = 'PAID' AND o.status = 'PENDING' THEN 'CONFIRMED' ELSE o.status END,
                        expire_time = CASE WHEN $2 = 'PAID' THEN NULL ELSE o.expire_time END,
                        update_time = $3, version = o.version + 1
                   FROM before WHERE o.id = before.id
                 RETURNING o.id, before.status AS from_status, o.status AS to_status)
               INSERT INTO order_events (order_id, from_status, to_status, reason, create_time)
               SELECT id, from_status, to_status, 'Paid', $3 FROM moved WHERE from_status <> to_status`,
      },
      [id, to, now],
      transaction,
    );
  }
}

/** What a payment has to know of its order. */
export type PayableOrder = Pick<Order, "id" | "customerId" | "status" | "paymentState" | "totalAmount" | "expireTime">;

function requestKey({ createdBy, requestId }: NewOrder): string {
  return `${createdBy}/${requestId}`;
}

function toOutcome({ outcome, order_id: orderId, detail }: PlacedRow, asked: NewOrder): PlaceOutcome {
  switch (outcome) {
    case "PLACED":
      return { outcome, order: toPlacedOrder(asked, detail) };
    case "REPEATED":
      return { outcome, orderId };
    case "PRODUCT_UNAVAILABLE":
      return { outcome, productId: detail.product_id };
    case "ORDER_TOTAL_TOO_LARGE":
      return { outcome, total: fromDecimal(detail.currency, detail.total) };
    case "INSUFFICIENT_STOCK": {
      const { product_id: productId, product, available, requested } = detail;
      return { outcome, productId, product, available, requested };
    }
    default:
      return { outcome };
  }
}

function toPlacedOrder(
  asked: NewOrder,
  placed: { currency: string; total: string; address: AddressJson | null; items: { name: string; price: string }[] },
): Order {
  const { id, customerId, status, lines, shippingAddressId, expireTime, notes, orderTime } = asked;
  return {
    id,
    customerId,
    status,
    paymentState: "UNPAID",
    items: lines.map((line, i) => {
      const { name = "", price = "0" } = placed.items[i] ?? {};
      return { ...line, productName: name, unitPrice: fromDecimal(placed.currency, price) };
    }),
    totalAmount: fromDecimal(placed.currency, placed.total),
    shippingAddressId,
    shippingAddress: toShippingAddress(placed.address),
    expireTime,
    notes,
    trackingNumber: "",
    orderTime,
    updateTime: orderTime,
    version: 1,
  };
}

function toOrder(row: OrderRow): Order {
  return {
    id: row.id,
    customerId: row.customer_id,
    status: row.status,
    paymentState: row.payment_state,
    items: row.items.map(({ id, product_id, product_name, quantity, unit_price }) => ({
      id,
      productId: product_id,
      productName: product_name,
      quantity,
      unitPrice: fromDecimal(row.currency, unit_price),
    })),
    totalAmount: fromDecimal(row.currency, row.total_amount),
    shippingAddressId: row.shipping_address_id,
    shippingAddress: toShippingAddress(row.shipping_address),
    expireTime: row.expire_time,
    notes: row.notes,
    trackingNumber: row.tracking_number,
    orderTime: row.order_time,
    updateTime: row.update_time,
    version: row.version,
  };
}

function toShippingAddress(json: AddressJson | null): ShippingAddress | null {
  if (json === null) return null;
  const { postal_code: postalCode, ...rest } = json;
  return { ...rest, postalCode };
}
