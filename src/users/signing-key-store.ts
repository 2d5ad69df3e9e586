import { DataTypes } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, instant, type Table } from "../db/model.ts";
import { inTransaction } from "../db/transaction.ts";

export interface SigningKey {
  /** The `kid`. */
  readonly id: string;
  /** A JWK. */
  readonly publicKey: object;
  /** Encrypted. */
  readonly privateKey: Buffer;
  readonly createTime: Date;
  /** From then on it may sign. */
  readonly activateTime: Date;
}

/** All SQL about the keys of access tokens. */
export class SigningKeyStore {
  readonly #db: Database;
  readonly #keys: Table<SigningKey>;

  constructor(db: Database) {
    this.#db = db;
    this.#keys = db.sequelize.define(
      "signing_keys",
      {
        id: { type: DataTypes.TEXT, primaryKey: true },
        publicKey: { type: DataTypes.JSONB, allowNull: false },
        privateKey: { type: DataTypes.BLOB, allowNull: false },
        createTime: instant(),
        activateTime: instant(),
      },
      columns,
    );
  }

  /** Newest first. */
  async list(): Promise<SigningKey[]> {
    const order: [string, string][] = [
      ["activateTime", "DESC"],
      ["id", "DESC"],
    ];
    return (await this.#keys.findAll({ order })).map((key) => key.get());
  }

  /** Keeps `key` if there is none at all yet: of replicas that start together on a new database, one makes the key. */
  async createFirst(key: SigningKey): Promise<void> {
    await inTransaction(this.#db, async (transaction) => {
      await this.#db.sequelize.query("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE", { transaction });
      if ((await this.#keys.findOne({ transaction })) === null) await this.#keys.create(key, { transaction });
    });
  }
}
