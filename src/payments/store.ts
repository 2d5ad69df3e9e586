import { Batcher } from "../db/batcher.ts";
import { type Database, isAway, violatedConstraint } from "../db/database.ts";
import { retrying } from "../db/transaction.ts";
import { newId } from "../ids.ts";
import { fromDecimal, type Money, toDecimal } from "../money.ts";
import type { Attempt, NewPayment, Payment, Screened, Settlement } from "./payment.ts";

/** Why a payment was not recorded. */
export type RecordRefusal =
  | {
      readonly outcome:
        | "IN_PROGRESS"
        | "REQUEST_ID_REUSED"
        | "ORDER_NOT_FOUND"
        | "CUSTOMER_INACTIVE"
        | "CALLER_GONE"
        | "ORDER_EXPIRED"
        | "AMOUNT_MISMATCH";
      /** With AMOUNT_MISMATCH: the order's total, as a sentence has it. */
      readonly detail: string;
    }
  | { readonly outcome: "ORDER_STATUS" | "ORDER_PAYMENT_STATE"; readonly detail: string };

export type RecordOutcome =
  | { readonly outcome: "RECORDED" }
  | { readonly outcome: "REPEATED" | "TAKEN_OVER"; readonly paymentId: string }
  | RecordRefusal;

/** A verdict of the fraud check, to be kept before anything is charged. */
export interface Screening {
  readonly paymentId: string;
  readonly riskLevel: Screened;
  readonly riskFactors: readonly string[];
  /** Until then the payment stays whose it is. */
  readonly leaseExpireTime: Date;
}

/** What became of a payment by a settlement. */
export interface Settled {
  readonly payment: Payment;
  /** The attempt took money that is not kept: it goes back. */
  readonly reversing: boolean;
  /** The payment ended by this settlement, and not by one before it. */
  readonly ended: boolean;
}

/** A payment with its attempts, the first one first. */
export interface Undertaking {
  readonly payment: Payment;
  readonly attempts: readonly Attempt[];
}

/** A charge that has to go back. */
export interface Reversal {
  readonly attemptId: string;
  readonly paymentId: string;
  readonly gateway: Attempt["gateway"];
  readonly transactionId: string;
  readonly captured: Money;
  /** The gateway's idempotency key of giving it back. */
  readonly key: string;
  /** The gateway's own id of the attempt; empty: none is known. */
  readonly gatewayReference: string;
  /** How often it was tried, this time included. */
  readonly checks: number;
}

/** A gateway's refusal to give a charge back. */
export interface ReversalRefusal {
  readonly attemptId: string;
  /** The key that was refused. */
  readonly key: string;
  /** The key to ask with next: the same where an earlier request of it may still be carried out. */
  readonly nextKey: string;
  /** At most 200 characters. */
  readonly reason: string;
}

interface ReversalRow {
  readonly id: string;
  readonly payment_id: string;
  readonly gateway: Attempt["gateway"];
  readonly transaction_id: string;
  readonly captured_amount: string;
  readonly reversal_id: string;
  readonly gateway_reference: string;
  readonly checks: number;
  readonly currency: string;
}

/** A row of {@link PAYMENT}. */
export interface PaymentRow {
  readonly id: string;
  readonly customer_id: string;
  readonly order_id: string | null;
  readonly currency: string;
  readonly amount: string;
  readonly status: Payment["status"];
  readonly card_token: string;
  readonly billing_country: string;
  readonly risk_level: Screened | null;
  readonly risk_factors: string[];
  readonly gateway: Payment["gateway"];
  readonly gateway_transaction_id: string;
  readonly gateway_response_code: string;
  readonly failure_reason: string;
  readonly refunded_amount: string;
  readonly create_time: Date;
  readonly process_time: Date | null;
}

interface AttemptRow {
  readonly id: string;
  readonly payment_id: string;
  readonly number: 1 | 2;
  readonly gateway: Attempt["gateway"];
  readonly gateway_reference: string;
  readonly state: Attempt["state"];
  readonly create_time: Date;
}

/** The columns of a payment, from a source named `p`. */
export const PAYMENT = `p.id, p.customer_id, p.order_id, p.currency, p.amount, p.status, p.card_token, p.billing_country,
       p.risk_level, p.risk_factors, p.gateway, p.gateway_transaction_id, p.gateway_response_code, p.failure_reason,
       p.refunded_amount, p.create_time, p.process_time`;
const ATTEMPT = "a.id, a.payment_id, a.number, a.gateway, a.gateway_reference, a.state, a.create_time";

const FIND = { name: "find-payments", text: `SELECT ${PAYMENT} FROM payments p WHERE p.id = ANY ($1)` };
const RECORD = {
  name: "record-payments",
  text: `SELECT outcome, payment_id, detail
           FROM record_payments($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
};
const SETTLE = {
  name: "settle-payments",
  text: `SELECT s.reversing, s.ended, ${PAYMENT}
           FROM settle_payments($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) s
          CROSS JOIN LATERAL (SELECT (s.settled).*) p`,
};
const SCREEN = {
  name: "screen-payments",
  text: `UPDATE payments SET risk_level = s.level, risk_factors = ARRAY(SELECT json_array_elements_text(s.factors)),
                lease_expire_time = s.lease, check_time = greatest(check_time, s.lease)
           FROM unnest($1::uuid[], $2::text[], $3::json[], $4::timestamptz[]) s (id, level, factors, lease)
          WHERE payments.id = s.id AND payments.status = 'PENDING' AND payments.risk_level IS NULL
         RETURNING payments.id`,
};

const BATCH = { maxBatch: 64, maxLanes: 1, maxWaiting: 5_000, isShared: isAway };

/** All SQL about payments and the attempts to charge them. Rows are locked in one order everywhere: orders, payments. */
export class PaymentStore {
  readonly #db: Database;
  readonly #recording: Batcher<NewPayment, RecordOutcome>;
  readonly #screening: Batcher<Screening, boolean>;
  readonly #settling: Batcher<Settlement & { readonly settleTime: Date }, Settled>;
  readonly #finding: Batcher<string, Payment | undefined>;

  constructor(db: Database) {
    this.#db = db;
    this.#recording = new Batcher({
      ...BATCH,
      run: (payments) => this.recordAll(payments),
      keyOf: ({ createdBy, requestId }) => `${createdBy}/${requestId}`,
    });
    this.#screening = new Batcher({
      ...BATCH,
      run: (screenings) => this.#screenAll(screenings),
      keyOf: ({ paymentId }) => paymentId,
    });
    this.#settling = new Batcher({ ...BATCH, run: (settlements) => this.#settleAll(settlements) });
    this.#finding = new Batcher({ ...BATCH, maxBatch: 64, run: (ids) => this.#findAll(ids) });
  }

  /** Reads one payment, together with those that are read at the same time. `deadline` is in epoch milliseconds. */
  find(id: string, deadline: number): Promise<Payment | undefined> {
    return this.#finding.submit(id, deadline);
  }

  /** Records one payment, together with those that wait at the same time. `deadline` is in epoch milliseconds. */
  record(payment: NewPayment, deadline: number): Promise<RecordOutcome> {
    return this.#recording.submit(payment, deadline).catch(refusalOfViolation);
  }

  /**
   * Keeps a verdict, together with others. What was recorded is carried out: it has no deadline.
   * @returns whether it is the one that is kept: a payment has only one, and whoever gave it goes on.
   */
  screen(screening: Screening): Promise<boolean> {
    return this.#screening.submit(screening, Number.POSITIVE_INFINITY);
  }

  /** Ends an attempt, and its payment where it says so, together with others. */
  settle(settlement: Settlement, settleTime: Date): Promise<Settled> {
    return this.#settling.submit({ ...settlement, settleTime }, Number.POSITIVE_INFINITY);
  }

  /** Records a batch in one round trip and one commit; see the migration of record_payments. */
  async recordAll(payments: readonly NewPayment[]): Promise<RecordOutcome[]> {
    const values = [
      payments.map(({ id }) => id),
      payments.map(({ customerId }) => customerId),
      payments.map(({ orderId }) => orderId),
      payments.map(({ createdBy }) => createdBy),
      payments.map(({ requestId }) => requestId),
      payments.map((payment) => payment.requestHash),
      payments.map(({ amount }) => amount.currency),
      payments.map(({ amount }) => toDecimal(amount)),
      payments.map(({ card }) => card.token),
      payments.map(({ card }) => card.billingCountry),
      payments.map(({ attemptId }) => attemptId),
      payments.map(({ gateway }) => gateway),
      payments.map(({ createTime }) => createTime),
      payments.map(({ leaseExpireTime }) => leaseExpireTime),
      payments.map(({ checkTime }) => checkTime),
    ];
    const rerunOn = ["payments_request_key", "payments_one_per_order"];
    const rows = await retrying(
      () =>
        this.#db.query<{ outcome: RecordOutcome["outcome"]; payment_id: string; detail: string | null }>(
          RECORD,
          values,
        ),
      { rerunOn },
    );
    return rows.map(({ outcome, payment_id: paymentId, detail }) =>
      outcome === "RECORDED"
        ? { outcome }
        : outcome === "REPEATED" || outcome === "TAKEN_OVER"
          ? { outcome, paymentId }
          : { outcome, detail: detail ?? "" },
    );
  }

  /** A payment with its attempts. */
  async findUndertaking(id: string): Promise<Undertaking | undefined> {
    const [payment] = await this.#findAll([id]);
    if (payment === undefined) return undefined;
    return { payment, attempts: (await this.#attemptsOf([id])).map(toAttempt) };
  }

  /**
   * Takes payments that are due and carried out by nobody, at most `limit`, until `leaseExpireTime`. Each is looked after
   * again later and later, as `nextCheckTime` says for the number of times it was looked after.
   */
  async takeDue(
    now: Date,
    leaseExpireTime: Date,
    nextCheckTime: (checks: number) => Date,
    maxChecks: number,
    limit: number,
  ): Promise<(Undertaking & { readonly checks: number })[]> {
    const times = Array.from({ length: maxChecks + 1 }, (_, checks) => nextCheckTime(checks));
    const taken = await this.#db.query<PaymentRow & { checks: number }>(
      {
        name: "take-due-payments",
        text: `UPDATE payments p
                  SET lease_expire_time = $2, checks = p.checks + 1,
                      check_time = ($3::timestamptz[])[least(p.checks, $4) + 1]
                WHERE p.id IN (
                      SELECT id FROM payments
                       WHERE check_time <= $1 AND (lease_expire_time IS NULL OR lease_expire_time <= $1)
                       ORDER BY check_time LIMIT $5 FOR UPDATE SKIP LOCKED)
               RETURNING ${PAYMENT}, p.checks`,
      },
      [now, leaseExpireTime, times, maxChecks, limit],
    );
    const attempts = await this.#attemptsOf(taken.map(({ id }) => id));
    return taken.map((row) => ({
      payment: toPayment(row),
      attempts: attempts.filter(({ payment_id }) => payment_id === row.id).map(toAttempt),
      checks: row.checks,
    }));
  }

  /** The payment that an attempt belongs to, with all of its attempts. */
  async findUndertakingOf(attemptId: string): Promise<Undertaking | undefined> {
    const [row] = await this.#db.query<{ payment_id: string }>(
      { name: "find-payment-of-attempt", text: "SELECT payment_id FROM payment_attempts WHERE id = $1" },
      [attemptId],
    );
    return row && this.findUndertaking(row.payment_id);
  }

  /** Lets the sweep look after a payment at once, if it is PENDING and as soon as nobody carries it out. */
  async hasten(id: string, now: Date): Promise<void> {
    await this.#db.query(
      {
        name: "hasten-payment",
        text: "UPDATE payments SET check_time = least(check_time, $2) WHERE id = $1 AND status = 'PENDING'",
      },
      [id, now],
    );
  }

  /** Keeps the gateway's own id of an attempt, before any money can move. */
  async rememberReference(attemptId: string, gatewayReference: string): Promise<void> {
    await this.#db.query(
      {
        name: "remember-attempt-reference",
        text: "UPDATE payment_attempts SET gateway_reference = $2 WHERE id = $1",
      },
      [attemptId, gatewayReference],
    );
  }

  /**
   * Begins the backup's attempt of a payment that is still wanted, after the proof that the first one did nothing. The
   * payment's row is locked meanwhile, so it cannot end in between, and stays whose it is until `leaseExpireTime`.
   * @returns undefined when it is not wanted any more, or was begun already.
   */
  async beginBackup(
    payment: Payment,
    gateway: Attempt["gateway"],
    now: Date,
    leaseExpireTime: Date,
  ): Promise<Attempt | undefined> {
    const [row] = await this.#db.query<AttemptRow>(
      {
        name: "begin-backup-attempt",
        text: `WITH pending AS (
                 UPDATE payments SET lease_expire_time = $5, check_time = greatest(check_time, $5)
                  WHERE id = $1 AND status = 'PENDING' RETURNING id, order_id)
               INSERT INTO payment_attempts AS a (id, payment_id, number, gateway, create_time, update_time)
               SELECT $2, p.id, 2, $3, $4, $4
                 FROM pending p
                 JOIN payment_attempts first ON first.payment_id = p.id AND first.number = 1
                 LEFT JOIN orders o ON o.id = p.order_id
                WHERE first.state IN ('NOT_EXECUTED', 'VOIDED')
                  AND (o.id IS NULL OR (o.payment_state = 'PENDING' AND o.status <> 'CANCELLED'))
               ON CONFLICT (payment_id, number) DO NOTHING
               RETURNING ${ATTEMPT}`,
      },
      [payment.id, newId(), gateway, now, leaseExpireTime],
    );
    return row && toAttempt(row);
  }

  /** Notes that nobody knows what became of an attempt, and lets the next one who asks look after it at `checkTime`. */
  async leaveUnknown(payment: Payment, attempt: Attempt, now: Date, checkTime: Date): Promise<Payment> {
    const [row] = await this.#db.query<PaymentRow>(
      {
        name: "leave-payment-unknown",
        text: `WITH attempt AS (
                 UPDATE payment_attempts SET state = 'UNKNOWN', update_time = $3
                  WHERE id = $2 AND state = 'CREATED')
               UPDATE payments p SET gateway = $4, lease_expire_time = NULL,
                      check_time = CASE WHEN p.checks = 0 THEN least(p.check_time, $5) ELSE p.check_time END
                WHERE p.id = $1 AND p.status = 'PENDING' RETURNING ${PAYMENT}`,
      },
      [payment.id, attempt.id, now, attempt.gateway, checkTime],
    );
    if (row !== undefined) return toPayment(row);
    const [now_] = await this.#findAll([payment.id]);
    return now_ ?? payment;
  }

  /** Takes charges that have to go back and are due, at most `limit`; each is due again later and later. */
  async takeReversals(now: Date, firstPauseMs: number, maxPauseMs: number, limit: number): Promise<Reversal[]> {
    const rows = await this.#db.query<ReversalRow>(
      {
        name: "take-reversals",
        text: `UPDATE payment_attempts a
                  SET checks = a.checks + 1,
                      check_time = $1::timestamptz
                        + least($2::float8 * 2 ^ least(a.checks, 30), $3::float8) * interval '1 millisecond'
                 FROM payments p
                WHERE p.id = a.payment_id AND a.id IN (
                      SELECT id FROM payment_attempts WHERE check_time <= $1 ORDER BY check_time LIMIT $4
                         FOR UPDATE SKIP LOCKED)
               RETURNING a.id, a.payment_id, a.gateway, a.transaction_id, a.captured_amount, a.reversal_id,
                         a.gateway_reference, a.checks, p.currency`,
      },
      [now, firstPauseMs, maxPauseMs, limit],
    );
    return rows.map(toReversal);
  }

  /**
   * Whether a refund gives an attempt's money back that must go back: by its key or, where somebody has made it by hand,
   * by the attempt's own id, when all that was taken is `refunded`.
   */
  async isReversal(attemptId: string, key: string, refunded: Money | undefined): Promise<boolean> {
    const rows = await this.#db.query(
      {
        name: "is-reversal",
        text: `SELECT 1 FROM payment_attempts a JOIN payments p ON p.id = a.payment_id
                WHERE a.id = $1 AND (a.reversal_id = $2
                      OR (a.state = 'REVERSING' AND a.id = $2 AND a.captured_amount = $3 AND p.currency = $4))`,
      },
      [attemptId, key, refunded === undefined ? null : toDecimal(refunded), refunded?.currency ?? null],
    );
    return rows.length > 0;
  }

  /**
   * Notes that a gateway will not give a charge back by the key that it was asked with. It is asked again at `checkTime`,
   * then by `nextKey`.
   * @returns whether it is the first refusal; undefined when that key is not the one any more, or the money has gone back.
   */
  async refuseReversal(
    { attemptId, key, nextKey, reason }: ReversalRefusal,
    checkTime: Date,
  ): Promise<boolean | undefined> {
    const [row] = await this.#db.query<{ first: boolean }>(
      {
        name: "refuse-reversal",
        text: `UPDATE payment_attempts a
                  SET reversal_failure = $3, reversal_id = $4, check_time = $5
                 FROM (SELECT id, reversal_failure FROM payment_attempts WHERE id = $1 FOR NO KEY UPDATE) was
                WHERE a.id = was.id AND a.reversal_id = $2 AND a.state = 'REVERSING'
               RETURNING was.reversal_failure = '' AS first`,
      },
      [attemptId, key, reason, nextKey, checkTime],
    );
    return row?.first;
  }

  /**
   * Notes that a charge was given back, and writes the movement to the ledger, once.
   * @returns whether this was news.
   */
  async finishReversal(attemptId: string, now: Date): Promise<boolean> {
    const written = await this.#db.query(
      {
        name: "finish-reversal",
        text: `WITH reversed AS (
                 UPDATE payment_attempts SET state = 'REVERSED', check_time = NULL, update_time = $2
                  WHERE id = $1 AND state = 'REVERSING'
                 RETURNING id, payment_id, gateway, captured_amount)
               INSERT INTO ledger_entries (movement_id, kind, account, side, payment_id, currency, amount, create_time)
               SELECT r.id, 'REVERSAL', e.account, e.side, p.id, p.currency, r.captured_amount, $2
                 FROM reversed r JOIN payments p ON p.id = r.payment_id
                CROSS JOIN LATERAL (VALUES ('REVENUE', 'DEBIT'), ('CUSTOMER', 'CREDIT'), ('CUSTOMER', 'DEBIT'),
                                           ('GATEWAY:' || r.gateway, 'CREDIT')) e (account, side)
               RETURNING movement_id`,
      },
      [attemptId, now],
    );
    return written.length > 0;
  }

  async #screenAll(screenings: readonly Screening[]): Promise<boolean[]> {
    const rows = await this.#db.query<{ id: string }>(SCREEN, [
      screenings.map(({ paymentId }) => paymentId),
      screenings.map(({ riskLevel }) => riskLevel),
      screenings.map(({ riskFactors }) => JSON.stringify(riskFactors)),
      screenings.map(({ leaseExpireTime }) => leaseExpireTime),
    ]);
    const kept = new Set(rows.map(({ id }) => id));
    return screenings.map(({ paymentId }) => kept.has(paymentId));
  }

  async #settleAll(settlements: readonly (Settlement & { readonly settleTime: Date })[]): Promise<Settled[]> {
    const values = [
      settlements.map(({ paymentId }) => paymentId),
      settlements.map(({ attemptId }) => attemptId),
      settlements.map(({ verdict }) => verdict ?? null),
      settlements.map(({ attemptState }) => attemptState),
      settlements.map(({ captured }) => captured && toDecimal(captured)),
      settlements.map(({ transactionId }) => transactionId),
      settlements.map(({ responseCode }) => responseCode),
      settlements.map(({ failureReason }) => failureReason),
      settlements.map(() => newId()),
      settlements.map(({ settleTime }) => settleTime),
    ];
    const rows = await retrying(() => this.#db.query<PaymentRow & Omit<Settled, "payment">>(SETTLE, values));
    return rows.map((row) => ({ payment: toPayment(row), reversing: row.reversing, ended: row.ended }));
  }

  async #findAll(ids: readonly string[]): Promise<(Payment | undefined)[]> {
    const rows = await this.#db.query<PaymentRow>(FIND, [[...new Set(ids)]]);
    const payments = new Map(rows.map((row) => [row.id, toPayment(row)]));
    return ids.map((id) => payments.get(id));
  }

  async #attemptsOf(paymentIds: readonly string[]): Promise<AttemptRow[]> {
    return this.#db.query<AttemptRow>(
      {
        name: "find-attempts",
        text: `SELECT ${ATTEMPT} FROM payment_attempts a WHERE a.payment_id = ANY ($1) ORDER BY a.number`,
      },
      [paymentIds],
    );
  }
}

/** Accounts that vanished between the look and the write: the database's word for it becomes the refusal that it means. */
function refusalOfViolation(error: unknown): RecordRefusal {
  switch (violatedConstraint(error)) {
    case "payments_customer_id_fkey":
      return { outcome: "CUSTOMER_INACTIVE", detail: "" };
    case "payments_created_by_fkey":
      return { outcome: "CALLER_GONE", detail: "" };
    default:
      throw error;
  }
}

export function toPayment(row: PaymentRow): Payment {
  const money = (amount: string): Money => fromDecimal(row.currency, amount);
  return {
    id: row.id,
    customerId: row.customer_id,
    orderId: row.order_id,
    amount: money(row.amount),
    status: row.status,
    card: { token: row.card_token, billingCountry: row.billing_country },
    riskLevel: row.risk_level,
    riskFactors: row.risk_factors,
    gateway: row.gateway,
    gatewayTransactionId: row.gateway_transaction_id,
    gatewayResponseCode: row.gateway_response_code,
    failureReason: row.failure_reason,
    refundedAmount: money(row.refunded_amount),
    createTime: row.create_time,
    processTime: row.process_time,
  };
}

function toReversal(row: ReversalRow): Reversal {
  return {
    attemptId: row.id,
    paymentId: row.payment_id,
    gateway: row.gateway,
    transactionId: row.transaction_id,
    captured: fromDecimal(row.currency, row.captured_amount),
    key: row.reversal_id,
    gatewayReference: row.gateway_reference,
    checks: row.checks,
  };
}

function toAttempt(row: AttemptRow): Attempt {
  return {
    id: row.id,
    paymentId: row.payment_id,
    number: row.number,
    gateway: row.gateway,
    gatewayReference: row.gateway_reference,
    state: row.state,
    createTime: row.create_time,
  };
}
