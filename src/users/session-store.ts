import { DataTypes, Op, type Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, id, instant, instantOrNull, reference, type Table, text } from "../db/model.ts";

/** One login and what followed from it. */
export interface Session {
  readonly id: string;
  readonly userId: string;
  readonly createTime: Date;
  readonly lastUseTime: Date;
  readonly expireTime: Date;
  readonly clientAddress: string;
  readonly userAgent: string;
}

export interface RefreshToken {
  /** SHA-256 of the token. */
  readonly tokenHash: Buffer;
  readonly sessionId: string;
  readonly createTime: Date;
  readonly expireTime: Date;
  readonly rotateTime: Date | null;
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

  /**
   * Ends every session of an account, but `except`, in the transaction of the change that causes it. Their access tokens
   * are refused from the commit on; whoever calls lets this replica know at once by `Revocations.catchUp`.
   */
  async endAll(userId: string, now: Date, transaction: Transaction, except?: string): Promise<void> {
    const where = { userId, ...(except !== undefined && { id: { [Op.ne]: except } }) };
    const ending = await this.#sessions.findAll({ attributes: ["id"], where, transaction, lock: true });
    const ids = ending.map((session) => session.get().id);
    await this.#revoke(ids, now, transaction);
    await this.#sessions.destroy({ where: { id: ids }, transaction });
  }

  /** Refuses the access tokens that an account has so far, and keeps its sessions: they refresh into new ones. */
  async refuseAccessTokens(userId: string, now: Date, transaction: Transaction): Promise<void> {
    const open = await this.#sessions.findAll({ attributes: ["id"], where: { userId }, transaction, lock: true });
    await this.#revoke(
      open.map((session) => session.get().id),
      now,
      transaction,
    );
  }

  async #revoke(sessionIds: readonly string[], now: Date, transaction: Transaction): Promise<void> {
    if (sessionIds.length === 0) return;
    await this.#db.query(
      {
        name: "revoke-sessions",
        text: `WITH revoked AS (
                 INSERT INTO session_revocations (session_id, create_time) SELECT unnest($1::uuid[]), $2 RETURNING id)
               SELECT pg_notify('${REVOCATION_CHANNEL}', '') FROM revoked LIMIT 1`,
      },
      [sessionIds, now],
      transaction,
    );
  }
}
