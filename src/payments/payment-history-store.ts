import type { Database } from "../db/database.ts";
import type { Payment, PaymentStatus } from "./payment.ts";
import { PAYMENT, type PaymentRow, toPayment } from "./store.ts";

/** Which payments to list: all that are given must hold. */
export interface PaymentFilter {
  /** Undefined: everybody's. */
  readonly customerId: string | undefined;
  /** Empty: all. */
  readonly statuses: readonly PaymentStatus[];
  /** Both inclusive. */
  readonly from: Date | undefined;
  readonly to: Date | undefined;
}

/** No payment has it, and every payment's id is before it. */
const LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff";

const listPayments = (name: string, page: string) => ({
  name: `list-payments-${name}`,
  text: `SELECT ${PAYMENT} FROM (${page}) p ORDER BY p.create_time DESC, p.id DESC`,
});
/** $1 to $4: the keyset's time and id, the first time, the limit. */
const pageWhere = (condition: string) => `SELECT * FROM payments
    WHERE ${condition} AND (create_time, id) < ($1, $2) AND create_time >= $3
    ORDER BY create_time DESC, id DESC LIMIT $4`;
/** Of each status the newest ones, then the newest of those: what is read is in proportion to what is shown. */
const pageByStatus = (
  statuses: string,
  condition: string,
) => `SELECT found.* FROM unnest(${statuses}::text[]) s (status)
   CROSS JOIN LATERAL (${pageWhere(`${condition} AND status = s.status`)}) found
   ORDER BY found.create_time DESC, found.id DESC LIMIT $4`;

// A statement for each kind of filter, so that its one plan is good for every value.
const LIST_ALL = listPayments("all", pageWhere("true"));
const LIST_BY_STATUS = listPayments("by-status", pageByStatus("$5", "true"));
const LIST_OF_CUSTOMER = listPayments("of-customer", pageWhere("customer_id = $5"));
const LIST_OF_CUSTOMER_BY_STATUS = listPayments("of-customer-by-status", pageByStatus("$6", "customer_id = $5"));

/** What is read and kept of payments after they were made. */
export class PaymentHistoryStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** Newest first, at most `limit`, after the keyset (create time, id) where it is given. */
  async list(
    { customerId, statuses, from, to }: PaymentFilter,
    limit: number,
    after?: readonly [createTime: Date, id: string],
  ): Promise<Payment[]> {
    const [time, id] = after ?? [to ?? "infinity", LAST_ID];
    const values: unknown[] = [time, id, from ?? "-infinity", limit];
    if (customerId !== undefined) values.push(customerId);
    if (statuses.length > 0) values.push(statuses);
    const all = statuses.length > 0 ? LIST_BY_STATUS : LIST_ALL;
    const own = statuses.length > 0 ? LIST_OF_CUSTOMER_BY_STATUS : LIST_OF_CUSTOMER;
    const rows = await this.#db.query<PaymentRow>(customerId === undefined ? all : own, values);
    return rows.map(toPayment);
  }

  /** Adds a completed payment to its customer's count, sum and last time, once however often it is called. */
  async count(paymentId: string): Promise<void> {
    await this.#db.query(
      {
        name: "count-completed-payment",
        text: `WITH counted AS (
                 INSERT INTO counted_payments (payment_id)
                 SELECT id FROM payments WHERE id = $1 AND status = 'COMPLETED'
                 ON CONFLICT DO NOTHING RETURNING payment_id)
               INSERT INTO customer_payment_history AS h
                      (customer_id, currency, payment_count, total_amount, last_payment_time)
               SELECT p.customer_id, p.currency, 1, p.amount, p.process_time
                 FROM counted c JOIN payments p ON p.id = c.payment_id
               ON CONFLICT (customer_id, currency) DO UPDATE
                  SET payment_count = h.payment_count + 1, total_amount = h.total_amount + excluded.total_amount,
                      last_payment_time = greatest(h.last_payment_time, excluded.last_payment_time)`,
      },
      [paymentId],
    );
  }
}
