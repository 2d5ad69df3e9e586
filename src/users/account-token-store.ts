import { DataTypes, type Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, instant, reference, type Table, text } from "../db/model.ts";

/** What the holder of a mailed token may do, once. */
export type TokenPurpose = "VERIFY_EMAIL" | "RESET_PASSWORD";

export interface AccountToken {
  /** SHA-256 of the token. */
  readonly tokenHash: Buffer;
  readonly userId: string;
  readonly purpose: TokenPurpose;
  /** Where it was mailed. */
  readonly email: string;
  readonly createTime: Date;
  readonly expireTime: Date;
}

/** Mails that cross on their way each have a token that works; more than these are somebody's game. */
const MAX_TOKENS = 5;
/** With each token that is added at most so many expired ones go, anybody's: more than are added. */
const MAX_SWEPT = 20;

/**
 * All SQL about the tokens that are mailed. Whoever changes the tokens of an account holds the lock of the account's
 * row, so that two changes never wait for each other.
 */
export class AccountTokenStore {
  readonly #db: Database;
  readonly #tokens: Table<AccountToken>;

  constructor(db: Database) {
    this.#db = db;
    this.#tokens = db.sequelize.define(
      "account_tokens",
      {
        tokenHash: { type: DataTypes.BLOB, primaryKey: true },
        userId: reference(),
        purpose: text(),
        email: text(),
        createTime: instant(),
        expireTime: instant(),
      },
      columns,
    );
  }

  /** Adds a token, and removes the account's oldest ones beyond the newest five. */
  async add(token: AccountToken, transaction: Transaction): Promise<void> {
    await this.#tokens.create(token, { transaction });
    await this.#db.query(
      {
        name: "remove-surplus-tokens",
        text: `DELETE FROM account_tokens WHERE token_hash IN (
                 SELECT token_hash FROM account_tokens WHERE user_id = $1 AND purpose = $2
                  ORDER BY create_time DESC, token_hash OFFSET $3)`,
      },
      [token.userId, token.purpose, MAX_TOKENS],
      transaction,
    );
  }

  /** The token, if it can be used at `now` for that. */
  async find(tokenHash: Buffer, purpose: TokenPurpose, now: Date): Promise<AccountToken | undefined> {
    const found = (await this.#tokens.findByPk(tokenHash))?.get();
    return found !== undefined && found.purpose === purpose && found.expireTime > now ? found : undefined;
  }

  /** Uses the token up. @returns false when somebody else did before. */
  async use(tokenHash: Buffer, transaction: Transaction): Promise<boolean> {
    return (await this.#tokens.destroy({ where: { tokenHash }, transaction })) === 1;
  }

  /** Makes the tokens of an account useless, those for one purpose or for all. */
  async removeAll(userId: string, transaction: Transaction, purpose?: TokenPurpose): Promise<void> {
    await this.#tokens.destroy({ where: { userId, ...(purpose !== undefined && { purpose }) }, transaction });
  }

  /** Deletes a bounded number of expired tokens, outside of any transaction that changes an account's. */
  async sweep(now: Date): Promise<void> {
    await this.#db.query(
      {
        name: "sweep-account-tokens",
        text: `DELETE FROM account_tokens WHERE token_hash = ANY(ARRAY(
                 SELECT token_hash FROM account_tokens WHERE expire_time <= $1
                  ORDER BY expire_time LIMIT $2 FOR UPDATE SKIP LOCKED))`,
      },
      [now, MAX_SWEPT],
    );
  }
}
