import type { Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { inTransaction } from "../db/transaction.ts";
import { newId } from "../ids.ts";
import { fromDecimal } from "../money.ts";
import type { DueReward, RewardStanding } from "./rewards.ts";

/** Points earned, or (negative) taken back. */
export interface RewardEntry {
  readonly id: string;
  readonly paymentId: string;
  /** Null: they were earned. */
  readonly refundId: string | null;
  readonly points: bigint;
  readonly createTime: Date;
}

interface EntryRow {
  readonly id: string;
  readonly payment_id: string;
  readonly refund_id: string | null;
  readonly points: string;
  readonly create_time: Date;
}

interface StandingRow {
  readonly currency: string;
  readonly amount: string;
  readonly refunded: string;
  readonly earned: string | null;
  readonly taken_back: string;
}

/** No entry has it, and every entry's id is before it. */
const LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff";

/** All SQL about reward points. */
export class RewardStore {
  readonly #db: Database;

  constructor(db: Database) {
    this.#db = db;
  }

  /**
   * Books what `decide` finds due of a completed payment. The payment is locked meanwhile: each decision sees all that
   * was booked before. Nothing is booked for a payment that is not completed.
   */
  async book(paymentId: string, decide: (standing: RewardStanding) => DueReward[], now: Date): Promise<void> {
    await inTransaction(this.#db, async (transaction) => {
      const standing = await this.#lock(paymentId, transaction);
      if (standing === undefined) return;
      for (const due of decide(standing)) await this.#add(paymentId, due, now, transaction);
    });
  }

  /** A customer's entries, newest first, at most `limit`, after the entry `after` where it is given. */
  async list(customerId: string, limit: number, after: string = LAST_ID): Promise<RewardEntry[]> {
    const rows = await this.#db.query<EntryRow>(
      {
        name: "list-reward-entries",
        text: `SELECT id, payment_id, refund_id, points, create_time FROM reward_entries
                WHERE customer_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3`,
      },
      [customerId, after, limit],
    );
    return rows.map((row) => ({
      id: row.id,
      paymentId: row.payment_id,
      refundId: row.refund_id,
      points: BigInt(row.points),
      createTime: row.create_time,
    }));
  }

  /** The sum of all entries of a customer. */
  async balance(customerId: string): Promise<bigint> {
    const [row] = await this.#db.query<{ points: string }>(
      {
        name: "sum-reward-entries",
        text: "SELECT coalesce(sum(points), 0)::text AS points FROM reward_entries WHERE customer_id = $1",
      },
      [customerId],
    );
    return BigInt(row?.points ?? 0);
  }

  async #lock(paymentId: string, transaction: Transaction): Promise<RewardStanding | undefined> {
    const locked = await this.#db.query(
      {
        name: "lock-payment-for-rewards",
        text: "SELECT 1 FROM payments WHERE id = $1 AND status = 'COMPLETED' FOR NO KEY UPDATE",
      },
      [paymentId],
      transaction,
    );
    if (locked.length === 0) return undefined;
    // A statement of its own: its snapshot is taken when the lock is there.
    const [row] = await this.#db.query<StandingRow>(
      {
        name: "read-reward-standing",
        text: `SELECT p.currency, p.amount,
                      (SELECT coalesce(sum(r.amount), 0) FROM refunds r
                        WHERE r.payment_id = p.id AND r.status = 'COMPLETED') AS refunded,
                      (SELECT e.points FROM reward_entries e WHERE e.payment_id = p.id AND e.refund_id IS NULL) AS earned,
                      (SELECT coalesce(sum(e.points), 0) FROM reward_entries e
                        WHERE e.payment_id = p.id AND e.refund_id IS NOT NULL) AS taken_back
                 FROM payments p WHERE p.id = $1`,
      },
      [paymentId],
      transaction,
    );
    return row && toStanding(row);
  }

  async #add(paymentId: string, { refundId, points }: DueReward, now: Date, transaction: Transaction): Promise<void> {
    await this.#db.query(
      {
        name: "add-reward-entry",
        text: `INSERT INTO reward_entries (id, customer_id, payment_id, refund_id, points, create_time)
               SELECT $1, customer_id, id, $3, $4, $5 FROM payments WHERE id = $2`,
      },
      [newId(), paymentId, refundId, String(points), now],
      transaction,
    );
  }
}

function toStanding({ currency, amount, refunded, earned, taken_back }: StandingRow): RewardStanding {
  return {
    amount: fromDecimal(currency, amount),
    refunded: fromDecimal(currency, refunded),
    earned: earned === null ? undefined : BigInt(earned),
    takenBack: BigInt(taken_back),
  };
}
