import { DataTypes, Op, type Transaction } from "sequelize";
import type { Database, Statement } from "../db/database.ts";
import { columns, count, id, instant, instantOrNull, reference, type Table, text } from "../db/model.ts";

/** One login and what followed from it. */
export interface Session {
  readonly id: string;
  readonly userId: string;
  readonly createTime: Date;
  readonly lastUseTime: Date;
  readonly expireTime: Date;
  readonly clientAddress: string;
  readonly userAgent: string;
  /** Of the access tokens that are given out now; those of a lower one are refused. */
  readonly generation: number;
}

export interface RefreshToken {
  /** SHA-256 of the token. */
  readonly tokenHash: Buffer;
  readonly sessionId: string;
  readonly createTime: Date;
  readonly expireTime: Date;
  /** Null: it has not been used. */
  readonly rotateTime: Date | null;
}

/** Access tokens of a session that are refused before they expire. */
export interface Revocation {
  readonly sessionId: string;
  /** Tokens below this generation are refused; null: all. */
  readonly minGeneration: number | null;
}

/** Revocations as they were at one moment, and where the next reading has to begin so that none is missed. */
export interface RevocationsRead {
  readonly revocations: readonly Revocation[];
  /** Every transaction below this number had ended. */
  readonly horizon: bigint;
  /**
   * The number of the newest transaction below the horizon that wrote a revocation; 0: none did. The next reading begins
   * there, and not at the horizon: what a transaction has written is on disk before it is seen, while a database that
   * crashes gives the numbers after it out again where they were of transactions that were rolled back.
   */
  readonly newest: bigint;
}

/** The connections of the pool, or one of its own. */
interface Connection {
  query<Row extends object>(statement: Statement, values: readonly unknown[]): Promise<Row[]>;
}

/** Wakes every replica that listens: rows of session_revocations are to be read. */
export const REVOCATION_CHANNEL = "session_revocations";

/** All SQL about sessions, their refresh tokens, and the access tokens that are refused before they expire. */
export class SessionStore {
  readonly #db: Database;
  readonly #sessions: Table<Session>;
  readonly #refreshTokens: Table<RefreshToken>;

  constructor(db: Database) {
    this.#db = db;
    this.#sessions = db.sequelize.define(
      "sessions",
      {
        id: id(),
        userId: reference(),
        createTime: instant(),
        lastUseTime: instant(),
        expireTime: instant(),
        clientAddress: text(),
        userAgent: text(),
        generation: count(),
      },
      columns,
    );
    this.#refreshTokens = db.sequelize.define(
      "refresh_tokens",
      {
        tokenHash: { type: DataTypes.BLOB, primaryKey: true },
        sessionId: reference(),
        createTime: instant(),
        expireTime: instant(),
        rotateTime: instantOrNull(),
      },
      columns,
    );
  }

  async open(session: Session, refreshToken: RefreshToken, transaction: Transaction): Promise<void> {
    await this.#sessions.create(session, { transaction });
    await this.#refreshTokens.create(refreshToken, { transaction });
  }

  /** Sessions of an account that are open at `now`, newest first, at most `limit`, older than `beforeId` where given. */
  async list(userId: string, now: Date, limit: number, beforeId?: string): Promise<Session[]> {
    const older = beforeId === undefined ? {} : { id: { [Op.lt]: beforeId } };
    const where = { userId, expireTime: { [Op.gt]: now }, ...older };
    const rows = await this.#sessions.findAll({ where, order: [["id", "DESC"]], limit });
    return rows.map((row) => row.get());
  }

  /**
   * Finds the session that a refresh token was given out for, and locks it: whoever touches a session's tokens locks the
   * session first, so what is read of them afterwards stays true until `transaction` ends.
   */
  async lockByRefreshToken(tokenHash: Buffer, transaction: Transaction): Promise<Session | undefined> {
    const [session] = await this.#db.query<Session>(LOCK_BY_REFRESH_TOKEN, [tokenHash], transaction);
    return session;
  }

  async findRefreshToken(tokenHash: Buffer, transaction: Transaction): Promise<RefreshToken | undefined> {
    return (await this.#refreshTokens.findByPk(tokenHash, { transaction }))?.get();
  }

  /**
   * Uses a refresh token of a locked session up, and keeps its successor.
   * @returns false when it was used up before: nothing has changed then.
   */
  async rotate(tokenHash: Buffer, successor: RefreshToken, transaction: Transaction): Promise<boolean> {
    const { sessionId, createTime, expireTime, tokenHash: successorHash } = successor;
    const values = [tokenHash, sessionId, successorHash, createTime, expireTime];
    return (await this.#db.query(ROTATE_REFRESH_TOKEN, values, transaction)).length > 0;
  }

  /** Ends one session of an account. @returns whether it was there. Otherwise as {@link endAll}. */
  async end(sessionId: string, userId: string, now: Date, transaction: Transaction): Promise<boolean> {
    const [row] = await this.#db.query<{ ended: string }>(END_SESSION, [userId, sessionId, now], transaction);
    return Number(row?.ended) > 0;
  }

  /**
   * Ends every session of an account, but `except`, in the transaction of the change that causes it. The account's row
   * is changed or locked before, so that no login opens another one meanwhile. Their access tokens are refused from the
   * commit on; whoever calls lets this replica know at once by `Revocations.catchUp`.
   */
  async endAll(userId: string, now: Date, transaction: Transaction, except?: string): Promise<void> {
    await this.#db.query(END_SESSIONS, [userId, except ?? null, now], transaction);
  }

  /**
   * Refuses the access tokens that an account has so far, and keeps its sessions: they refresh into new ones. Otherwise
   * as {@link endAll}.
   */
  async refuseAccessTokens(userId: string, now: Date, transaction: Transaction): Promise<void> {
    await this.#db.query(REFUSE_ACCESS_TOKENS, [userId, now], transaction);
  }

  /**
   * Reads the revocations of transactions from `from` on (0n: of all) that were noted after `since`, at most `limit`:
   * some again, none left out. Ids or times alone would leave out what was written earlier and committed later.
   */
  async readRevocations(
    from: bigint,
    since: Date,
    limit: number,
    connection: Connection = this.#db,
  ): Promise<RevocationsRead> {
    const rows = await connection.query<RevocationRow>(READ_REVOCATIONS, [String(from), since, limit]);
    const revocations = rows.flatMap(({ session_id: sessionId, min_generation: minGeneration }) =>
      sessionId === null ? [] : [{ sessionId, minGeneration }],
    );
    return { revocations, horizon: BigInt(rows[0]?.horizon ?? 0), newest: BigInt(rows[0]?.newest ?? 0) };
  }

  /** Whether an access token of that generation is good, by the session itself. */
  async accepts(sessionId: string, generation: number): Promise<boolean> {
    const rows = await this.#db.query(
      { name: "session-accepts", text: "SELECT FROM sessions WHERE id = $1 AND generation <= $2" },
      [sessionId, generation],
    );
    return rows.length > 0;
  }

  /**
   * Deletes sessions and refresh tokens that have expired by `now`, and revocations noted before `revokedBefore`: at most
   * `limit` of each. What another replica is deleting is left to it.
   * @returns how many rows went.
   */
  async deleteExpired(now: Date, revokedBefore: Date, limit: number): Promise<number> {
    const [row] = await this.#db.query<{ deleted: string }>(DELETE_EXPIRED, [now, revokedBefore, limit]);
    return Number(row?.deleted ?? 0);
  }
}

interface RevocationRow {
  readonly horizon: string;
  readonly newest: string | null;
  /** Null: there is no revocation, and the row is there for its horizon. */
  readonly session_id: string | null;
  readonly min_generation: number | null;
}

const READ_REVOCATIONS = {
  name: "read-revocations",
  text: `SELECT now.horizon::text AS horizon, known.newest::text AS newest, r.session_id, r.min_generation
           FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS horizon) now
           LEFT JOIN LATERAL (SELECT transaction_id AS newest FROM session_revocations
                               WHERE transaction_id < now.horizon ORDER BY transaction_id DESC LIMIT 1) known ON true
           LEFT JOIN session_revocations r ON r.transaction_id >= $1::xid8 AND r.create_time > $2
          LIMIT $3`,
} as const;

const LOCK_BY_REFRESH_TOKEN = {
  name: "lock-session-by-refresh-token",
  text: `SELECT s.id, s.user_id AS "userId", s.create_time AS "createTime", s.last_use_time AS "lastUseTime",
                s.expire_time AS "expireTime", s.client_address AS "clientAddress", s.user_agent AS "userAgent",
                s.generation
           FROM refresh_tokens t JOIN sessions s ON s.id = t.session_id
          WHERE t.token_hash = $1
            FOR UPDATE OF s`,
} as const;

/** $1 the token, $2 its session, $3 the successor, $4 now, $5 when the successor and the session expire. */
const ROTATE_REFRESH_TOKEN = {
  name: "rotate-refresh-token",
  text: `WITH used AS (
           UPDATE refresh_tokens SET rotate_time = $4
            WHERE token_hash = $1 AND session_id = $2 AND rotate_time IS NULL
           RETURNING session_id),
         successor AS (
           INSERT INTO refresh_tokens (token_hash, session_id, create_time, expire_time)
           SELECT $3, session_id, $4, $5 FROM used)
         UPDATE sessions SET last_use_time = $4, expire_time = $5 FROM used WHERE id = used.session_id
         RETURNING id`,
} as const;

/** Notes at $3 that the tokens of the sessions `ended` are refused, and wakes the replicas once. */
const noteEnded = `
  noted AS (INSERT INTO session_revocations (session_id, create_time) SELECT id, $3 FROM ended)
  SELECT count(*) AS ended, CASE WHEN count(*) > 0 THEN pg_notify('${REVOCATION_CHANNEL}', '') END FROM ended`;

const END_SESSION = {
  name: "end-session",
  text: `WITH ended AS (DELETE FROM sessions WHERE user_id = $1 AND id = $2 RETURNING id), ${noteEnded}`,
} as const;

/** $2: one that goes on, or null. */
const END_SESSIONS = {
  name: "end-sessions",
  text: `WITH ended AS (
           DELETE FROM sessions WHERE user_id = $1 AND id IS DISTINCT FROM $2::uuid RETURNING id), ${noteEnded}`,
} as const;

const REFUSE_ACCESS_TOKENS = {
  name: "refuse-access-tokens",
  text: `WITH raised AS (
           UPDATE sessions SET generation = generation + 1 WHERE user_id = $1 RETURNING id, generation),
         noted AS (
           INSERT INTO session_revocations (session_id, min_generation, create_time)
           SELECT id, generation, $2 FROM raised)
         SELECT CASE WHEN count(*) > 0 THEN pg_notify('${REVOCATION_CHANNEL}', '') END FROM raised`,
} as const;

const DELETE_EXPIRED = {
  name: "delete-expired-sessions",
  text: `WITH old_sessions AS (
           DELETE FROM sessions WHERE id = ANY (ARRAY(
             SELECT id FROM sessions WHERE expire_time <= $1 ORDER BY expire_time LIMIT $3 FOR UPDATE SKIP LOCKED))
           RETURNING 1),
         old_tokens AS (
           DELETE FROM refresh_tokens WHERE token_hash = ANY (ARRAY(
             SELECT token_hash FROM refresh_tokens WHERE expire_time <= $1 ORDER BY expire_time LIMIT $3
                FOR UPDATE SKIP LOCKED))
           RETURNING 1),
         old_revocations AS (
           DELETE FROM session_revocations WHERE id = ANY (ARRAY(
             SELECT id FROM session_revocations WHERE create_time < $2 ORDER BY create_time LIMIT $3
                FOR UPDATE SKIP LOCKED))
           RETURNING 1)
         SELECT (SELECT count(*) FROM old_sessions) + (SELECT count(*) FROM old_tokens)
                + (SELECT count(*) FROM old_revocations) AS deleted`,
} as const;
