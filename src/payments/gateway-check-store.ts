import type { Database } from "../db/database.ts";
import { fromDecimal, type Money } from "../money.ts";
import type { GatewayName } from "./gateways/gateway.ts";
import type { AttemptState } from "./payment.ts";
import type { RefundStatus } from "./refund.ts";

/** A charge as our books have it. */
export interface BookedCharge {
  /** Our reference of it. */
  readonly id: string;
  readonly paymentId: string;
  readonly gateway: GatewayName;
  /** The gateway's own id of it. Empty: not known. */
  readonly gatewayReference: string;
  readonly state: AttemptState;
  /** Undefined: it took nothing, as far as we know. */
  readonly captured: Money | undefined;
  readonly transactionId: string;
  /** The sum of its payment's completed refunds. */
  readonly refunded: Money;
  /** The sum of those under way. */
  readonly refunding: Money;
  /** The sum of its payment's open and lost disputes. */
  readonly disputed: Money;
  /** The gateway has said that it holds none of it, and our books give it back for that. */
  readonly cancelled: boolean;
  readonly createTime: Date;
  /** When it came to its state. */
  readonly updateTime: Date;
}

/** A refund as our books have it. */
export interface BookedRefund {
  /** The key of it at the gateway. */
  readonly id: string;
  readonly paymentId: string;
  /** The charge that it takes the money from. */
  readonly attemptId: string;
  readonly gateway: GatewayName;
  readonly chargeTransactionId: string;
  /** Empty: not known. */
  readonly transactionId: string;
  readonly status: RefundStatus;
  readonly amount: Money;
  readonly createTime: Date;
}

/** Which rows to read: those that moved since, and those whose end is open, however old; made before `until`. */
export interface BookedRange {
  readonly since: Date;
  readonly until: Date;
}

interface ChargeRow {
  readonly id: string;
  readonly payment_id: string;
  readonly gateway: GatewayName;
  readonly gateway_reference: string;
  readonly state: AttemptState;
  readonly currency: string;
  readonly captured_amount: string | null;
  readonly transaction_id: string;
  readonly refunded: string;
  readonly refunding: string;
  readonly disputed: string;
  readonly cancelled: boolean;
  readonly create_time: Date;
  readonly update_time: Date;
}

interface RefundRow {
  readonly id: string;
  readonly payment_id: string;
  readonly attempt_id: string;
  readonly gateway: GatewayName;
  readonly charge_transaction_id: string;
  readonly transaction_id: string;
  readonly status: RefundStatus;
  readonly currency: string;
  readonly amount: string;
  readonly create_time: Date;
}

/** Every id is after it. */
const FIRST_ID = "00000000-0000-0000-0000-000000000000";

const CHARGE = `SELECT a.id, a.payment_id, a.gateway, a.gateway_reference, a.state, p.currency,
       a.captured_amount, a.transaction_id, a.create_time, a.update_time,
       EXISTS (SELECT FROM refunds r WHERE r.id = a.id AND r.by_gateway AND r.status = 'COMPLETED') AS cancelled,
       (SELECT coalesce(sum(r.amount), 0) FROM refunds r WHERE r.payment_id = p.id AND r.status = 'COMPLETED') AS refunded,
       (SELECT coalesce(sum(r.amount), 0) FROM refunds r WHERE r.payment_id = p.id AND r.status = 'PENDING') AS refunding,
       (SELECT coalesce(sum(d.amount), 0) FROM disputes d
         WHERE d.payment_id = p.id AND d.gateway = a.gateway AND d.currency = p.currency
           AND d.status IN ('OPEN', 'LOST')) AS disputed
  FROM payment_attempts a JOIN payments p ON p.id = a.payment_id`;
const CHARGE_IN_RANGE = `a.create_time < $2 AND (a.update_time >= $1 OR a.state IN ('CREATED', 'UNKNOWN', 'REVERSING'))`;
const REFUND = `SELECT r.id, r.payment_id, a.id AS attempt_id, a.gateway, a.transaction_id AS charge_transaction_id,
       r.gateway_transaction_id AS transaction_id, r.status, r.currency, r.amount, r.create_time`;
/** Only a completed payment is refunded, and it has one attempt that keeps its money. */
const REFUND_FROM = "FROM refunds r JOIN payment_attempts a ON a.payment_id = r.payment_id AND a.state = 'CAPTURED'";
/** What a gateway has cancelled of its own accord is no refund to it. */
const REFUND_IN_RANGE = `NOT r.by_gateway AND r.create_time < $2
   AND (coalesce(r.process_time, r.create_time) >= $1 OR r.status = 'PENDING')`;

/** All SQL that reads our books beside those of the gateways. It only reads. */
export class GatewayCheckStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /** How many charges and refunds there are in all. */
  async count({ since, until }: BookedRange): Promise<number> {
    const [row] = await this.#db.query<{ rows: string }>(
      {
        name: "count-booked-movements",
        text: `SELECT (SELECT count(*) FROM payment_attempts a WHERE ${CHARGE_IN_RANGE})
                    + (SELECT count(*) ${REFUND_FROM} WHERE ${REFUND_IN_RANGE}) AS rows`,
      },
      [since, until],
    );
    return Number(row?.rows ?? 0);
  }

  /** Charges by their ids, at most `limit`, after the one of the id `after` where it is given. */
  async charges({ since, until }: BookedRange, limit: number, after = FIRST_ID): Promise<BookedCharge[]> {
    const rows = await this.#db.query<ChargeRow>(
      {
        name: "page-of-booked-charges",
        text: `${CHARGE} WHERE a.id > $3 AND ${CHARGE_IN_RANGE} ORDER BY a.id LIMIT $4`,
      },
      [since, until, after, limit],
    );
    return rows.map(toCharge);
  }

  async charge(id: string): Promise<BookedCharge | undefined> {
    const [row] = await this.#db.query<ChargeRow>({ name: "booked-charge", text: `${CHARGE} WHERE a.id = $1` }, [id]);
    return row && toCharge(row);
  }

  /** Refunds by their ids, at most `limit`, after the one of the id `after` where it is given. */
  async refunds({ since, until }: BookedRange, limit: number, after = FIRST_ID): Promise<BookedRefund[]> {
    const rows = await this.#db.query<RefundRow>(
      {
        name: "page-of-booked-refunds",
        text: `${REFUND} ${REFUND_FROM} WHERE r.id > $3 AND ${REFUND_IN_RANGE} ORDER BY r.id LIMIT $4`,
      },
      [since, until, after, limit],
    );
    return rows.map(toRefund);
  }

  async refund(id: string): Promise<BookedRefund | undefined> {
    const [row] = await this.#db.query<RefundRow>(
      { name: "booked-refund", text: `${REFUND} ${REFUND_FROM} WHERE r.id = $1` },
      [id],
    );
    return row && toRefund(row);
  }
}

function toCharge(row: ChargeRow): BookedCharge {
  const money = (amount: string): Money => fromDecimal(row.currency, amount);
  return {
    id: row.id,
    paymentId: row.payment_id,
    gateway: row.gateway,
    gatewayReference: row.gateway_reference,
    state: row.state,
    captured: row.captured_amount === null ? undefined : money(row.captured_amount),
    transactionId: row.transaction_id,
    refunded: money(row.refunded),
    refunding: money(row.refunding),
    disputed: money(row.disputed),
    cancelled: row.cancelled,
    createTime: row.create_time,
    updateTime: row.update_time,
  };
}

function toRefund(row: RefundRow): BookedRefund {
  return {
    id: row.id,
    paymentId: row.payment_id,
    attemptId: row.attempt_id,
    gateway: row.gateway,
    chargeTransactionId: row.charge_transaction_id,
    transactionId: row.transaction_id,
    status: row.status,
    amount: fromDecimal(row.currency, row.amount),
    createTime: row.create_time,
  };
}
