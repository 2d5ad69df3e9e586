import type { Transaction } from "sequelize";
import { Batcher } from "../db/batcher.ts";
import { type Database, isAway, violatedConstraint } from "../db/database.ts";
import { inTransaction, retrying } from "../db/transaction.ts";
import { DomainError } from "../errors.ts";
import { enqueue } from "../jobs/enqueue.ts";
import { fromDecimal, type Money } from "../money.ts";
import { actorMustExist } from "./actor.ts";
import {
  type MoveOutcome,
  type NewOrder,
  type Order,
  type OrderMove,
  type OrderPaymentState,
  type OrderStatus,
  type ShippingAddress,
  transitions,
} from "./order.ts";
import type { OrderSums } from "./order-stats.ts";

/** Why an order was not placed, with the facts of the refusal. */
export type Refusal =
  | {
      readonly outcome:
        | "REQUEST_ID_REUSED"
        | "CUSTOMER_INACTIVE"
        | "ADDRESS_INVALID"
        | "CURRENCY_MIXED"
        | "CALLER_GONE";
    }
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

interface MovedRow {
  readonly outcome: MoveOutcome["outcome"];
  readonly from_status: OrderStatus;
  readonly was_paid: boolean;
}

interface SumsRow {
  readonly status_counts: Readonly<Partial<Record<OrderStatus, number>>>;
  readonly currencies: readonly {
    readonly currency: string;
    readonly orders: string;
    readonly total: string;
    readonly top: readonly { id: string; name: string; email: string; orders: string; total: string }[];
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

/** Orders with their items, from a source of rows of orders. */
const selectOrders = (source: string) => `
  SELECT o.id, o.customer_id, o.status, o.payment_state, o.currency, o.total_amount, o.shipping_address_id,
         o.shipping_address, o.expire_time, o.notes, o.tracking_number, o.order_time, o.update_time, o.version, i.items
    FROM ${source} o
   CROSS JOIN LATERAL (
         SELECT json_agg(json_build_object('id', id, 'product_id', product_id, 'product_name', product_name,
                  'quantity', quantity, 'unit_price', unit_price::text) ORDER BY position) AS items
           FROM order_items WHERE order_id = o.id) i`;

const FIND_ORDERS = { name: "find-orders", text: `${selectOrders("orders")} WHERE o.id = ANY ($1)` };

const listOrders = (name: string, page: string) => ({
  name: `list-orders-${name}`,
  text: `${selectOrders(`(${page})`)} ORDER BY o.order_time DESC, o.id DESC`,
});
/** $1 to $4: the keyset's time and id, the first time, the limit. */
const pageWhere = (condition: string) => `SELECT * FROM orders
    WHERE ${condition} AND (order_time, id) < ($1, $2) AND order_time >= $3 ORDER BY order_time DESC, id DESC LIMIT $4`;

// A statement for each kind of filter, so that its one plan is good for every value: a condition that may be absent
// would be no condition of an index, and a late page would read all pages before it.
const LIST_ALL = listOrders("all", pageWhere("true"));
const LIST_OF_CUSTOMER = listOrders("of-customer", pageWhere("customer_id = $5"));
const LIST_OF_CUSTOMER_BY_STATUS = listOrders(
  "of-customer-by-status",
  pageWhere("customer_id = $5 AND status = ANY ($6::text[])"),
);
// Of each status the newest ones, then the newest of those: what is read is in proportion to what is shown, also where a
// status is rare.
const LIST_BY_STATUS = listOrders(
  "by-status",
  `SELECT p.* FROM unnest($5::text[]) s (status) CROSS JOIN LATERAL (${pageWhere("status = s.status")}) p
    ORDER BY p.order_time DESC, p.id DESC LIMIT $4`,
);
/** No order has it, and every order's id is before it. */
const LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff";

const MOVE_ORDERS = {
  name: "move-orders",
  text: "SELECT outcome, from_status, was_paid FROM move_orders($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
};

/** Events of transactions older than every running one, so that none can appear later before what was read. */
const IS_SETTLED = "e.xact_id < pg_snapshot_xmin(pg_current_snapshot())";

const SUM_ORDERS = {
  name: "sum-orders",
  text: `WITH chosen AS MATERIALIZED (
           SELECT customer_id, status, currency, total_amount FROM orders WHERE order_time >= $1 AND order_time <= $2),
         spent AS (
           SELECT currency, customer_id, count(*) AS orders, sum(total_amount) AS total,
                  row_number() OVER (PARTITION BY currency ORDER BY sum(total_amount) DESC, customer_id) AS rank
             FROM chosen WHERE status <> 'CANCELLED' GROUP BY currency, customer_id),
         sums AS (
           SELECT currency, sum(orders) AS orders, sum(total) AS total FROM spent GROUP BY currency)
         SELECT (SELECT coalesce(json_object_agg(status, orders), '{}')
                   FROM (SELECT status, count(*) AS orders FROM chosen GROUP BY status) c) AS status_counts,
                (SELECT coalesce(json_agg(json_build_object('currency', s.currency, 'orders', s.orders::text,
                          'total', s.total::text, 'top', (
                            SELECT json_agg(json_build_object('id', u.id, 'name', u.first_name || ' ' || u.last_name,
                                     'email', u.email, 'orders', t.orders::text, 'total', t.total::text) ORDER BY t.rank)
                              FROM spent t JOIN users u ON u.id = t.customer_id
                             WHERE t.currency = s.currency AND t.rank <= 5)) ORDER BY s.currency), '[]')
                   FROM sums s) AS currencies`,
};

/** The table of {@link transitions} as the database takes it: FROM>TO. */
export const ALLOWED_MOVES = Object.entries(transitions).flatMap(([from, tos]) => tos.map((to) => `${from}>${to}`));
/** How much longer a payment that is under way holds an order whose time has passed. */
const PAYMENT_HOLD_MS = 30 * 60_000;
/** The job that gives back what was paid for an order that was cancelled; the payments feature has its handler. */
const REFUND_ORDER = "refund-order";

/**
 * One lane: two made batches half as large, and what a batch costs by itself outweighed what they did at the same time. An
 * order costs the least from batches of 64 on.
 */
const PLACE_BATCH = { maxBatch: 64, maxLanes: 1, maxWaiting: 5_000 };
const FIND_BATCH = { maxBatch: 64, maxLanes: 2, maxWaiting: 10_000 };

/** All SQL about orders. */
export class OrderStore {
  readonly #db: Database;
  readonly #placing: Batcher<NewOrder, PlaceOutcome>;
  readonly #finding: Batcher<string, Order | undefined>;
  /** Orders under way, so that the same request sent twice at once is carried out once. */
  readonly #underWay = new Map<string, { readonly hash: Buffer; readonly outcome: Promise<PlaceOutcome> }>();

  /** Called after a commit that changed orders; the feed wants to know. */
  onChange: () => void = () => {};

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
    if (twin?.hash.equals(order.requestHash)) return this.#share(twin.outcome, order, deadline);

    const outcome = this.#placing.submit(order, deadline).catch(refusalOfViolation);
    if (twin === undefined) {
      this.#underWay.set(key, { hash: order.requestHash, outcome });
      const forget = () => this.#underWay.delete(key);
      outcome.then(forget, forget);
    }
    return outcome;
  }

  /** The outcome of the same request that came before; where that one's time was too short, this one goes by itself. */
  #share(outcome: Promise<PlaceOutcome>, order: NewOrder, deadline: number): Promise<PlaceOutcome> {
    return outcome.catch((error: unknown) => {
      const tooLate = error instanceof DomainError && error.kind === "deadline";
      if (tooLate && Date.now() < deadline) return this.place(order, deadline);
      throw error;
    });
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
    if (rows.some(({ outcome }) => outcome === "PLACED")) this.onChange();
    return rows.map((row, i) => toOutcome(row, orders[i] as NewOrder));
  }

  /** One order or undefined for each id, in order. */
  async findOrders(ids: readonly string[]): Promise<(Order | undefined)[]> {
    const rows = await this.#db.query<OrderRow>(FIND_ORDERS, [[...new Set(ids)]]);
    const orders = new Map(rows.map((row) => [row.id, toOrder(row)]));
    return ids.map((id) => orders.get(id));
  }

  /**
   * Moves orders as {@link transitions} allows, in one transaction and a fixed number of statements, each move seeing
   * those before it. The money of a paid order that is cancelled goes back by a job of the same transaction.
   * @param ownerId Only this customer's orders are there; undefined: everybody's.
   */
  async moveOrders(moves: readonly OrderMove[], now: Date, actorId: string, ownerId?: string): Promise<MoveOutcome[]> {
    return this.#move(moves, { now, actorId, ownerId, expiring: false });
  }

  /** Cancels those of the orders that are still unpaid, and gives their stock back. */
  async expireOrders(moves: readonly OrderMove[], now: Date): Promise<MoveOutcome[]> {
    return this.#move(moves, { now, actorId: undefined, ownerId: undefined, expiring: true });
  }

  async #move(
    moves: readonly OrderMove[],
    by: { now: Date; actorId: string | undefined; ownerId: string | undefined; expiring: boolean },
  ): Promise<MoveOutcome[]> {
    const values = [
      moves.map(({ orderId }) => orderId),
      moves.map(({ to }) => to),
      moves.map(({ note }) => note),
      moves.map(({ reason }) => reason),
      moves.map(({ trackingNumber }) => trackingNumber),
      ALLOWED_MOVES,
      by.ownerId ?? null,
      by.actorId ?? null,
      by.expiring,
      new Date(by.now.getTime() - PAYMENT_HOLD_MS),
      by.now,
    ];
    const move = async (transaction: Transaction) => {
      const rows = await this.#db.query<MovedRow>(MOVE_ORDERS, values, transaction);
      const refunds = moves.filter((_, i) => rows[i]?.was_paid).map(({ orderId }) => orderId);
      const jobs = refunds.map((orderId) => ({
        task: REFUND_ORDER,
        payload: { orderId },
        key: `refund-order ${orderId}`,
      }));
      await enqueue(this.#db, jobs, transaction);
      return rows.map(toMoveOutcome);
    };
    const outcomes = await actorMustExist(() => inTransaction(this.#db, move));
    this.onChange();
    return outcomes;
  }

  /** Ids of unpaid orders whose time has passed, at most `limit`, the longest due first. */
  async findExpired(now: Date, limit: number): Promise<string[]> {
    const rows = await this.#db.query<{ id: string }>(
      {
        name: "find-expired-orders",
        text: `SELECT id FROM orders
                WHERE status = 'PENDING' AND expire_time <= $1
                  AND (payment_state = 'UNPAID' OR (payment_state = 'PENDING' AND expire_time <= $2))
                ORDER BY expire_time LIMIT $3`,
      },
      [now, new Date(now.getTime() - PAYMENT_HOLD_MS), limit],
    );
    return rows.map(({ id }) => id);
  }

  /** Newest first, at most `limit`, after the keyset (order time, id) where it is given; items come along. */
  async list(filter: OrderFilter, limit: number, after?: readonly [orderTime: Date, id: string]): Promise<Order[]> {
    const { customerId, statuses, from, to } = filter;
    const [time, id] = after ?? [to ?? "infinity", LAST_ID];
    const values: unknown[] = [time, id, from ?? "-infinity", limit];
    const filtered = statuses.length > 0;
    const all = filtered ? LIST_BY_STATUS : LIST_ALL;
    const own = filtered ? LIST_OF_CUSTOMER_BY_STATUS : LIST_OF_CUSTOMER;
    if (customerId !== undefined) values.push(customerId);
    if (filtered) values.push(statuses);
    const rows = await this.#db.query<OrderRow>(customerId === undefined ? all : own, values);
    return rows.map(toOrder);
  }

  /** Counts and sums the orders of a time range, both bounds inclusive, in one round trip. */
  async sum(from: Date | undefined, to: Date | undefined): Promise<OrderSums> {
    const [row] = await this.#db.query<SumsRow>(SUM_ORDERS, [from ?? "-infinity", to ?? "infinity"]);
    return toOrderSums(row);
  }

  /**
   * Where the feed of changes stands now: at the last one that can be read, and everything after it is still to come. A
   * position without a change would not do: a database that crashes gives the numbers of transactions out again that were
   * rolled back last, and a change by one of them would be before it. What a change has is on disk before it is seen.
   */
  async feedPosition(): Promise<Position> {
    const [row] = await this.#db.query<{ xact: string; id: string }>(
      {
        name: "order-feed-position",
        text: `SELECT e.xact_id::text AS xact, e.id FROM order_events e
                WHERE ${IS_SETTLED} ORDER BY e.xact_id DESC, e.id DESC LIMIT 1`,
      },
      [],
    );
    return { xact: BigInt(row?.xact ?? 0), id: BigInt(row?.id ?? 0) };
  }

  /**
   * Changes after a position, oldest first, at most `limit`; of one customer's orders, or of all. Transactions that are
   * not older than every running one are left for later: one of those may still commit between what it would be read
   * among.
   */
  async readChanges(after: Position, limit: number, customerId: string | undefined): Promise<OrderChange[]> {
    const rows = await this.#db.query<{ xact: string; id: string; order_id: string }>(
      {
        name: customerId === undefined ? "read-order-changes" : "read-order-changes-of-customer",
        text: `SELECT e.xact_id::text AS xact, e.id, e.order_id FROM order_events e
                ${customerId === undefined ? "" : "JOIN orders o ON o.id = e.order_id AND o.customer_id = $4"}
                WHERE (e.xact_id, e.id) > ($1::xid8, $2::bigint) AND ${IS_SETTLED}
                ORDER BY e.xact_id, e.id LIMIT $3`,
      },
      [after.xact, after.id, limit, ...(customerId === undefined ? [] : [customerId])],
    );
    return rows.map(({ xact, id, order_id: orderId }) => ({
      orderId,
      position: { xact: BigInt(xact), id: BigInt(id) },
    }));
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
        text: `WITH before AS (SELECT id, status, payment_state FROM orders WHERE id = $1), moved AS (
                 UPDATE orders o
                    SET payment_state = $2,
                        status = CASE WHEN $2 = 'PAID' AND o.status = 'PENDING' THEN 'CONFIRMED' ELSE o.status END,
                        expire_time = CASE WHEN $2 = 'PAID' THEN NULL ELSE o.expire_time END,
                        update_time = $3, version = o.version + 1
                   FROM before b WHERE o.id = b.id
                 RETURNING o.id, b.status AS from_status, o.status AS to_status,
                           b.payment_state AS from_payment_state, o.payment_state AS to_payment_state)
               INSERT INTO order_events (order_id, from_status, to_status, from_payment_state, to_payment_state, reason,
                                         create_time)
               SELECT id, from_status, to_status, from_payment_state, to_payment_state, 'Payment', $3 FROM moved`,
      },
      [id, to, now],
      transaction,
    );
    transaction.afterCommit(() => this.onChange());
  }
}

/** A place in the feed of changes: a transaction, and an event in it. */
export interface Position {
  readonly xact: bigint;
  readonly id: bigint;
}

export function isAfter(a: Position, b: Position): boolean {
  return a.xact > b.xact || (a.xact === b.xact && a.id > b.id);
}

/** One change of an order. */
export interface OrderChange {
  readonly orderId: string;
  readonly position: Position;
}

/** Which orders to list. `statuses`: empty for all; the bounds are inclusive. */
export interface OrderFilter {
  readonly customerId: string | undefined;
  readonly statuses: readonly OrderStatus[];
  readonly from: Date | undefined;
  readonly to: Date | undefined;
}

/** What a payment has to know of its order. */
export type PayableOrder = Pick<Order, "id" | "customerId" | "status" | "paymentState" | "totalAmount" | "expireTime">;

function requestKey({ createdBy, requestId }: NewOrder): string {
  return `${createdBy}/${requestId}`;
}

/** Rows that vanished between the look and the write: the database's word for it becomes the refusal that it means. */
function refusalOfViolation(error: unknown): Refusal {
  switch (violatedConstraint(error)) {
    case "orders_customer_id_fkey":
      return { outcome: "CUSTOMER_INACTIVE" };
    case "orders_shipping_address_id_fkey":
      return { outcome: "ADDRESS_INVALID" };
    case "orders_created_by_fkey":
      return { outcome: "CALLER_GONE" };
    default:
      throw error;
  }
}

function toOrderSums(row: SumsRow | undefined): OrderSums {
  const counts = Object.entries(row?.status_counts ?? {}) as [OrderStatus, number][];
  return {
    statusCounts: new Map(counts.map(([status, orders]) => [status, BigInt(orders)])),
    currencies: (row?.currencies ?? []).map(({ currency, orders, total, top }) => ({
      orderCount: BigInt(orders),
      revenue: fromDecimal(currency, total),
      topCustomers: top.map(({ id, name, email, orders: orderCount, total: spent }) => ({
        customerId: id,
        name,
        email,
        orderCount: BigInt(orderCount),
        total: fromDecimal(currency, spent),
      })),
    })),
  };
}

function toMoveOutcome({ outcome, from_status: from, was_paid: wasPaid }: MovedRow): MoveOutcome {
  if (outcome === "NOT_FOUND") return { outcome };
  return outcome === "MOVED" ? { outcome, from, wasPaid } : { outcome, from };
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
