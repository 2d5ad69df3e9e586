import { type Database, violatedConstraint } from "../db/database.ts";
import { retrying } from "../db/transaction.ts";
import { fromDecimal, toDecimal } from "../money.ts";
import { cancellation } from "../orders/order.ts";
import { ALLOWED_MOVES } from "../orders/store.ts";
import type { GatewayName } from "./gateways/gateway.ts";
import type { PaymentStatus } from "./payment.ts";
import type { NewRefund, Refund, RefundFigures, RefundStatus, RefundUndertaking } from "./refund.ts";

/** Refunds that people may ask for of one payment, failed ones included: a page of them is shown with the payment. */
const MAX_REFUNDS_OF_PAYMENT = 500;

/** Why a refund was not recorded. */
export type RefundRefusal =
  | { readonly outcome: "IN_PROGRESS" | "REQUEST_ID_REUSED" | "CALLER_GONE" | "PAYMENT_NOT_FOUND" | "TOO_MANY_REFUNDS" }
  | { readonly outcome: "PAYMENT_STATUS"; readonly status: PaymentStatus }
  | { readonly outcome: "WINDOW_EXPIRED"; readonly paidTime: Date }
  | { readonly outcome: "CURRENCY" | "EXCEEDS" | "NOTHING_LEFT"; readonly figures: RefundFigures };

type RecordRefundOutcome =
  | { readonly outcome: "RECORDED" }
  | { readonly outcome: "REPEATED"; readonly refundId: string }
  | RefundRefusal;

/** How a refund ends by its gateway's word. */
export interface RefundSettlement {
  readonly refundId: string;
  readonly verdict: "COMPLETED" | "FAILED";
  /** Empty: not told. */
  readonly transactionId: string;
  readonly failureReason: string;
}

/** What became of a payment whose charge its gateway has cancelled; see the migration of void_captured. */
interface ChargeVoided {
  readonly outcome: "RETURNED" | "NOTHING_LEFT" | "UNCHANGED";
  /** Refunds that had been under way, and failed by it. */
  readonly failedRefunds: number;
}

/** What a settlement did: nothing, where the refund had ended so before or may not end so any more. */
interface RefundSettled {
  readonly changed: boolean;
  readonly was: RefundStatus;
  /** It failed, and its order was cancelled: money stays with us that somebody else must have. */
  readonly owed: boolean;
}

interface RecordedRow {
  readonly outcome: "RECORDED" | "REPEATED" | RefundRefusal["outcome"];
  readonly known_id: string;
  readonly status: PaymentStatus;
  readonly paid_currency: string;
  readonly paid: string;
  readonly refunded: string;
  readonly refunding: string;
  readonly disputed: string;
  readonly paid_time: Date;
}

interface RefundRow {
  readonly id: string;
  readonly payment_id: string;
  readonly customer_id: string;
  readonly order_id: string | null;
  readonly created_by: string | null;
  readonly currency: string;
  readonly amount: string;
  readonly status: RefundStatus;
  readonly reason: string;
  readonly gateway_transaction_id: string;
  readonly failure_reason: string;
  readonly create_time: Date;
  readonly process_time: Date | null;
}

interface UndertakingRow extends RefundRow {
  readonly attempt_id: string;
  readonly attempt_gateway: GatewayName;
  readonly attempt_transaction_id: string;
}

const REFUND = `r.id, r.payment_id, p.customer_id, p.order_id, r.created_by, r.currency, r.amount, r.status, r.reason,
       r.gateway_transaction_id, r.failure_reason, r.create_time, r.process_time`;
const UNDERTAKING = `${REFUND}, a.id AS attempt_id, a.gateway AS attempt_gateway,
       a.transaction_id AS attempt_transaction_id`;
/** Only a completed payment is refunded, and it has one attempt that keeps its money. */
const WITH_CHARGE = "JOIN payment_attempts a ON a.payment_id = p.id AND a.state = 'CAPTURED'";

/** All SQL about refunds. */
export class RefundStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** Records a refund if its payment allows it, in one statement; see the migration of record_refund. */
  async record({ asked, ...refund }: NewRefund): Promise<RecordRefundOutcome> {
    const { id, paymentId, reason, createTime, leaseExpireTime, checkTime } = refund;
    const values = [
      id,
      paymentId,
      asked?.ownerId ?? null,
      asked?.createdBy ?? null,
      asked?.requestId ?? null,
      asked?.requestHash ?? null,
      asked?.amount.currency ?? null,
      asked === undefined ? null : toDecimal(asked.amount),
      reason,
      asked?.processedSince ?? null,
      MAX_REFUNDS_OF_PAYMENT,
      createTime,
      leaseExpireTime,
      checkTime,
    ];
    const statement = {
      name: "record-refund",
      text: "SELECT * FROM record_refund($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    };
    // The same request about two payments at once waits for neither's lock; the key decides then.
    const rerunOn = ["refunds_request_key"];
    try {
      const [row] = await retrying(() => this.#db.query<RecordedRow>(statement, values), { rerunOn });
      if (row === undefined) throw new Error("record_refund gave no outcome");
      return toOutcome(row);
    } catch (error) {
      // The account vanished after its token was found to be good.
      if (violatedConstraint(error) === "refunds_created_by_fkey") return { outcome: "CALLER_GONE" };
      throw error;
    }
  }

  async find(id: string): Promise<Refund | undefined> {
    const [row] = await this.#db.query<RefundRow>(
      {
        name: "find-refund",
        text: `SELECT ${REFUND} FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE r.id = $1`,
      },
      [id],
    );
    return row && toRefund(row);
  }

  /** The refunds of payments, each payment's oldest first, in one statement. */
  async ofPayments(paymentIds: readonly string[]): Promise<Refund[]> {
    const rows = await this.#db.query<RefundRow>(
      {
        name: "refunds-of-payments",
        text: `SELECT ${REFUND} FROM refunds r JOIN payments p ON p.id = r.payment_id
                WHERE r.payment_id = ANY ($1) ORDER BY r.payment_id, r.create_time, r.id`,
      },
      [paymentIds],
    );
    return rows.map(toRefund);
  }

  /** A refund with the charge that it takes the money from. */
  async findUndertaking(id: string): Promise<RefundUndertaking | undefined> {
    const [row] = await this.#db.query<UndertakingRow>(
      {
        name: "find-refund-undertaking",
        text: `SELECT ${UNDERTAKING} FROM refunds r JOIN payments p ON p.id = r.payment_id ${WITH_CHARGE}
                WHERE r.id = $1`,
      },
      [id],
    );
    return row && toUndertaking(row);
  }

  /** The completed payment of an order, if there is one. */
  async findPaymentOfOrder(orderId: string): Promise<string | undefined> {
    const [row] = await this.#db.query<{ id: string }>(
      {
        name: "find-completed-payment-of-order",
        text: "SELECT id FROM payments WHERE order_id = $1 AND status = 'COMPLETED'",
      },
      [orderId],
    );
    return row?.id;
  }

  /**
   * Ends a refund, and with it what depends on it, in one statement; see the migration of settle_refund.
   * @returns undefined when there is no such refund.
   */
  async settle(
    { refundId, verdict, transactionId, failureReason }: RefundSettlement,
    settleTime: Date,
  ): Promise<RefundSettled | undefined> {
    const { note } = cancellation("", "Refunded");
    const statement = {
      name: "settle-refund",
      text: "SELECT changed, was, owed FROM settle_refund($1, $2, $3, $4, $5, $6, $7)",
    };
    const values = [refundId, verdict, transactionId, failureReason, ALLOWED_MOVES, note, settleTime];
    const [row] = await retrying(() => this.#db.query<RefundSettled>(statement, values));
    return row;
  }

  /** Gives back in the books what a gateway has not taken after all, in one statement; see the migration of void_captured. */
  async voidCaptured(attemptId: string, reason: string, settleTime: Date): Promise<ChargeVoided> {
    const { note } = cancellation("", "Refunded");
    const statement = {
      name: "void-captured",
      text: `SELECT outcome, failed_refunds AS "failedRefunds" FROM void_captured($1, $2, $3, $4, $5)`,
    };
    const values = [attemptId, reason, ALLOWED_MOVES, note, settleTime];
    const [row] = await retrying(() => this.#db.query<ChargeVoided>(statement, values));
    if (row === undefined) throw new Error("void_captured gave no outcome");
    return row;
  }

  /** @returns whether nobody was alerted to the refund yet: that is for the caller to do now. */
  async claimAlert(id: string, now: Date): Promise<boolean> {
    const claimed = await this.#db.query(
      {
        name: "claim-refund-alert",
        text: "UPDATE refunds SET alert_time = $2 WHERE id = $1 AND alert_time IS NULL RETURNING id",
      },
      [id, now],
    );
    return claimed.length > 0;
  }

  /**
   * Lets the next one who asks look after a refund whose outcome is not known, at `checkTime` or, undefined, when it is
   * due anyway. `transactionId`: the gateway has taken it on under that id; empty: it has not said so.
   */
  async leavePending(id: string, transactionId: string, checkTime: Date | undefined): Promise<void> {
    await this.#db.query(
      {
        name: "leave-refund-pending",
        text: `UPDATE refunds
                  SET lease_expire_time = NULL, check_time = coalesce($3, check_time),
                      gateway_transaction_id = coalesce(nullif($2, ''), gateway_transaction_id)
                WHERE id = $1 AND status = 'PENDING'`,
      },
      [id, transactionId, checkTime ?? null],
    );
  }

  /**
   * Takes refunds that are due and carried out by nobody, at most `limit`, until `leaseExpireTime`. The pause until each
   * is looked after again doubles from `firstPauseMs` to `maxPauseMs`.
   */
  async takeDue(
    now: Date,
    leaseExpireTime: Date,
    firstPauseMs: number,
    maxPauseMs: number,
    limit: number,
  ): Promise<RefundUndertaking[]> {
    const rows = await this.#db.query<UndertakingRow>(
      {
        name: "take-due-refunds",
        text: `UPDATE refunds r
                  SET lease_expire_time = $2, checks = r.checks + 1,
                      check_time = $1::timestamptz
                        + least($3::float8 * 2 ^ least(r.checks + 1, 30), $4::float8) * interval '1 millisecond'
                 FROM payments p ${WITH_CHARGE}
                WHERE p.id = r.payment_id AND r.id IN (
                      SELECT id FROM refunds
                       WHERE check_time <= $1 AND (lease_expire_time IS NULL OR lease_expire_time <= $1)
                       ORDER BY check_time LIMIT $5 FOR UPDATE SKIP LOCKED)
               RETURNING ${UNDERTAKING}`,
      },
      [now, leaseExpireTime, firstPauseMs, maxPauseMs, limit],
    );
    return rows.map(toUndertaking);
  }
}

function toOutcome(row: RecordedRow): RecordRefundOutcome {
  const { outcome, known_id: refundId, status, paid_time: paidTime } = row;
  switch (outcome) {
    case "RECORDED":
      return { outcome };
    case "REPEATED":
      return { outcome, refundId };
    case "PAYMENT_STATUS":
      return { outcome, status };
    case "WINDOW_EXPIRED":
      return { outcome, paidTime };
    case "CURRENCY":
    case "EXCEEDS":
    case "NOTHING_LEFT":
      return { outcome, figures: toFigures(row) };
    default:
      return { outcome };
  }
}

function toFigures({ paid_currency: currency, paid, refunded, refunding, disputed }: RecordedRow): RefundFigures {
  return {
    paid: fromDecimal(currency, paid),
    refunded: fromDecimal(currency, refunded),
    refunding: fromDecimal(currency, refunding),
    disputed: fromDecimal(currency, disputed),
  };
}

function toRefund(row: RefundRow): Refund {
  return {
    id: row.id,
    paymentId: row.payment_id,
    customerId: row.customer_id,
    orderId: row.order_id,
    createdBy: row.created_by,
    amount: fromDecimal(row.currency, row.amount),
    status: row.status,
    reason: row.reason,
    gatewayTransactionId: row.gateway_transaction_id,
    failureReason: row.failure_reason,
    createTime: row.create_time,
    processTime: row.process_time,
  };
}

function toUndertaking(row: UndertakingRow): RefundUndertaking {
  return {
    refund: toRefund(row),
    attemptId: row.attempt_id,
    gateway: row.attempt_gateway,
    transactionId: row.attempt_transaction_id,
  };
}
