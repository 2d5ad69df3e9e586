import { Batcher } from "../db/batcher.ts";
import { type Database, isAway } from "../db/database.ts";
import { fromDecimal } from "../money.ts";
import type { FraudFacts } from "./fraud.ts";
import type { Payment } from "./payment.ts";

interface FactRow {
  readonly shipping_country: string;
  readonly customer_create_time: Date;
  readonly customer_payments: number;
  readonly token_customers: number;
  readonly completed_payments: string;
  readonly completed_amount: string;
}

/** How far is counted: what is above a limit is not told apart any more. */
export interface FraudWindow {
  readonly windowMs: number;
  readonly maxCustomerPayments: number;
  readonly maxTokenCustomers: number;
}

/** Of a token that very many accounts have used the newest accounts are looked at: no real card has so many. */
const MAX_TOKEN_ACCOUNTS = 200;

const BATCH = { maxBatch: 32, maxLanes: 2, maxWaiting: 5_000, isShared: isAway };

// Both counts read index entries in proportion to what they count and stop just above their limits. The customers of a
// token are found by going from one to the next, since a token may have any number of payments.
const FIND_FACTS = {
  name: "find-fraud-facts",
  text: `SELECT coalesce(o.shipping_address ->> 'country', '') AS shipping_country,
                u.create_time AS customer_create_time, c.payments::integer AS customer_payments,
                t.customers::integer AS token_customers, coalesce(h.payment_count, 0) AS completed_payments,
                coalesce(h.total_amount, 0) AS completed_amount
           FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[])
                  WITH ORDINALITY q (customer_id, order_id, currency, token, window_time, now, at)
           JOIN users u ON u.id = q.customer_id
           LEFT JOIN orders o ON o.id = q.order_id
           LEFT JOIN customer_payment_history h ON h.customer_id = q.customer_id AND h.currency = q.currency
          CROSS JOIN LATERAL (
                SELECT count(*) AS payments FROM (
                  SELECT FROM payments p
                   WHERE p.customer_id = q.customer_id AND p.create_time > q.window_time AND p.create_time <= q.now
                   LIMIT $7) counted) c
          CROSS JOIN LATERAL (
                WITH RECURSIVE accounts AS (
                  (SELECT p.customer_id, p.create_time, 1 AS step FROM payments p WHERE p.card_token = q.token
                    ORDER BY p.customer_id DESC, p.create_time DESC LIMIT 1)
                  UNION ALL
                  SELECT next.customer_id, next.create_time, a.step + 1
                    FROM accounts a
                   CROSS JOIN LATERAL (
                         SELECT p.customer_id, p.create_time FROM payments p
                          WHERE p.card_token = q.token AND p.customer_id < a.customer_id
                          ORDER BY p.customer_id DESC, p.create_time DESC LIMIT 1) next
                   WHERE a.step < $9)
                SELECT count(*) AS customers FROM (
                  SELECT FROM accounts WHERE create_time > q.window_time LIMIT $8) counted) t
          ORDER BY q.at`,
};

/** Reads what fraud checks want to know beside the payment. */
export class FraudFactStore {
  readonly #db: Database;
  readonly #window: FraudWindow;
  readonly #finding: Batcher<Payment, FraudFacts>;

  constructor(db: Database, window: FraudWindow) {
    this.#db = db;
    this.#window = window;
    this.#finding = new Batcher({ ...BATCH, run: (payments) => this.#findAll(payments) });
  }

  /** The facts of a recorded payment, read together with those of others. They have no deadline: it is recorded. */
  find(payment: Payment): Promise<FraudFacts> {
    return this.#finding.submit(payment, Number.POSITIVE_INFINITY);
  }

  async #findAll(payments: readonly Payment[]): Promise<FraudFacts[]> {
    const { windowMs, maxCustomerPayments, maxTokenCustomers } = this.#window;
    const rows = await this.#db.query<FactRow>(FIND_FACTS, [
      payments.map(({ customerId }) => customerId),
      payments.map(({ orderId }) => orderId),
      payments.map(({ amount }) => amount.currency),
      payments.map(({ card }) => card.token),
      payments.map(({ createTime }) => new Date(createTime.getTime() - windowMs)),
      payments.map(({ createTime }) => createTime),
      maxCustomerPayments + 1,
      maxTokenCustomers + 1,
      MAX_TOKEN_ACCOUNTS,
    ]);
    return rows.map((row, i) => ({
      shippingCountry: row.shipping_country,
      customerCreateTime: row.customer_create_time,
      customerPayments: row.customer_payments,
      tokenCustomers: row.token_customers,
      completedPayments: Number(row.completed_payments),
      completedAmount: fromDecimal(payments[i]?.amount.currency ?? "", row.completed_amount),
    }));
  }
}
