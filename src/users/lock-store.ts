import { DataTypes, Op, type Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, count, instant, instantOrNull, type Table } from "../db/model.ts";

/** Wrong passwords in a row for one email, with or without an account. */
export interface LoginFailures {
  /** Normalised. */
  readonly email: string;
  /** Since the last good login, reset or unlock. */
  readonly attempts: number;
  /** Locks since then. */
  readonly locks: number;
  /** Null: never locked since then. In the past: the lock is over, and the next one will be longer. */
  readonly lockExpireTime: Date | null;
  /** From then on the row counts as none. */
  readonly forgetTime: Date;
}

/** When a lock falls due, and for how long. */
export interface LockRule {
  /** Every so many wrong passwords in a row lock. */
  readonly maxAttempts: number;
  /** The first lock; each further one is twice as long. */
  readonly firstLockMs: number;
  readonly maxLockMs: number;
  /** Without another wrong password in this time, those before it are forgotten. */
  readonly forgetAttemptsMs: number;
  /** The same once they have led to a lock. Longer than the longest lock. */
  readonly forgetLocksMs: number;
}

/** What became of a wrong password that was to be counted. */
export type CountedFailure =
  | { readonly outcome: "counted" }
  /** It was the one too many: it locks until `unlockTime`. */
  | { readonly outcome: "locks"; readonly unlockTime: Date }
  /** A lock was in force already: nothing was counted, and whoever tried may learn nothing. */
  | { readonly outcome: "locked"; readonly unlockTime: Date };

/** Old rows are looked for with one counted failure in so many, and at most so many are deleted then. */
const SWEEP_EVERY = 50;
const SWEEP_MAX_ROWS = 500;

/** All SQL about wrong passwords and the locks they lead to. */
export class LockStore {
  readonly #db: Database;
  readonly #rule: LockRule;
  readonly #failures: Table<LoginFailures>;
  #counted = 0;

  constructor(db: Database, rule: LockRule) {
    this.#db = db;
    this.#rule = rule;
    this.#failures = db.sequelize.define(
      "login_failures",
      {
        email: { type: DataTypes.TEXT, primaryKey: true },
        attempts: count(),
        locks: count(),
        lockExpireTime: instantOrNull(),
        forgetTime: instant(),
      },
      columns,
    );
  }

  /** What is remembered of those emails, by email: for lists of accounts. Most emails have nothing. */
  async of(emails: readonly string[], now: Date): Promise<ReadonlyMap<string, LoginFailures>> {
    const rows = await this.#failures.findAll({ where: { email: [...emails], forgetTime: { [Op.gt]: now } } });
    return new Map(rows.map((row) => [row.get().email, row.get()]));
  }

  /** When the lock that is in force ends; undefined when there is none. */
  async lockedUntil(email: string, now: Date): Promise<Date | undefined> {
    const rows = await this.#db.query<{ unlockTime: Date }>(
      {
        name: "find-login-lock",
        text: `SELECT lock_expire_time AS "unlockTime" FROM login_failures WHERE email = $1 AND lock_expire_time > $2`,
      },
      [email, now],
    );
    return rows[0]?.unlockTime;
  }

  /**
   * Forgets the wrong passwords of an email, unless a lock is in force. Waits for failures that are being counted, so
   * that none which locks can be overtaken.
   * @returns when the lock in force ends, or undefined: there is none, and none can come before `transaction` has ended.
   */
  async clearUnlessLocked(email: string, now: Date, transaction: Transaction): Promise<Date | undefined> {
    const [row] = await this.#db.query<{ unlockTime: Date | null }>(
      {
        name: "lock-login-failures",
        text: `SELECT lock_expire_time AS "unlockTime" FROM login_failures WHERE email = $1 FOR UPDATE`,
      },
      [email],
      transaction,
    );
    if (row === undefined) return undefined;
    if (row.unlockTime !== null && row.unlockTime > now) return row.unlockTime;
    await this.clear(email, transaction);
    return undefined;
  }

  /**
   * Ends the lock of an email and forgets its wrong passwords. Logins lock this row before that of the account: call
   * this before the account's row is changed, or the two may wait for each other.
   */
  async clear(email: string, transaction: Transaction): Promise<void> {
    await this.#failures.destroy({ where: { email }, transaction });
  }

  /** Counts one wrong password in one statement, so that however many come at once none is lost and none is too many. */
  async countFailure(email: string, now: Date, transaction: Transaction): Promise<CountedFailure> {
    const { maxAttempts, firstLockMs, maxLockMs, forgetAttemptsMs, forgetLocksMs } = this.#rule;
    const [row] = await this.#db.query<{ unlockTime: Date | null }>(
      COUNT_FAILURE,
      [email, now, maxAttempts, firstLockMs, maxLockMs, forgetAttemptsMs, forgetLocksMs],
      transaction,
    );
    if (row === undefined) return { outcome: "locked", unlockTime: await this.#unlockTime(email, now, transaction) };
    const { unlockTime } = row;
    return unlockTime !== null && unlockTime > now ? { outcome: "locks", unlockTime } : { outcome: "counted" };
  }

  /** Of a row that our own statement has found and locked, so that it is still there. */
  async #unlockTime(email: string, now: Date, transaction: Transaction): Promise<Date> {
    const row = await this.#failures.findByPk(email, { transaction });
    return row?.get().lockExpireTime ?? now;
  }

  /**
   * Deletes a bounded number of rows that are forgotten, once in a while. Failures are what makes rows: called after
   * each, and outside of its transaction, this keeps the table from growing for ever by random emails.
   */
  async sweep(now: Date): Promise<void> {
    if (this.#counted++ % SWEEP_EVERY !== 0) return;
    await this.#db.query(
      {
        name: "sweep-login-failures",
        text: `DELETE FROM login_failures WHERE email = ANY(ARRAY(
                 SELECT email FROM login_failures WHERE forget_time <= $1
                  ORDER BY forget_time LIMIT $2 FOR UPDATE SKIP LOCKED))`,
      },
      [now, SWEEP_MAX_ROWS],
    );
  }
}

/**
 * $1 email, $2 now, $3 attempts of one lock; in milliseconds $4 the first and $5 the longest lock, and after what time
 * wrong passwords without ($6) and with ($7) a lock are forgotten. Gives no row when a lock is in force.
 */
const COUNT_FAILURE = {
  name: "count-login-failure",
  text: `INSERT INTO login_failures AS known (email, attempts, locks, forget_time)
         VALUES ($1, 1, 0, $2::timestamptz + $6::float8 * interval '1 ms')
         ON CONFLICT (email) DO UPDATE SET (attempts, locks, lock_expire_time, forget_time) = (
           SELECT tries,
                  before + due,
                  CASE due WHEN 1 THEN $2::timestamptz + least($4::float8 * 2 ^ least(before, 30), $5::float8) * interval '1 ms'
                           ELSE until END,
                  $2::timestamptz + CASE before + due WHEN 0 THEN $6::float8 ELSE $7::float8 END * interval '1 ms'
             FROM (SELECT CASE WHEN forgotten THEN 1 ELSE known.attempts + 1 END AS tries,
                          CASE WHEN forgotten THEN 0 ELSE known.locks END AS before,
                          CASE WHEN forgotten THEN NULL ELSE known.lock_expire_time END AS until
                     FROM (SELECT known.forget_time <= $2 AS forgotten) age) so_far,
                  LATERAL (SELECT CASE tries % $3::int WHEN 0 THEN 1 ELSE 0 END AS due) rule)
          WHERE known.lock_expire_time IS NULL OR known.lock_expire_time <= $2
         RETURNING lock_expire_time AS "unlockTime"`,
} as const;
