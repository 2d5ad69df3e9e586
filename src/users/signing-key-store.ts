import { DataTypes, Op, type Transaction } from "sequelize";
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
  /** From then on it signs, until that of the next one. */
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

  /** Those that sign last come first. */
  async list(transaction?: Transaction): Promise<SigningKey[]> {
    const order: [string, string][] = [
      ["activateTime", "DESC"],
      ["id", "DESC"],
    ];
    return (await this.#keys.findAll({ order, transaction: transaction ?? null })).map((key) => key.get());
  }

  /**
   * Keeps `key` unless another one already waits for its time to sign: rotations at once, and one too many, make one.
   * @returns the key that waits: the other one, or `key`.
   */
  async createNext(key: SigningKey): Promise<SigningKey> {
    return this.#alone(async (transaction) => {
      const [last] = await this.list(transaction);
      if (last !== undefined && last.activateTime > key.createTime) return last;
      await this.#keys.create(key, { transaction });
      return key;
    });
  }

  /** Keeps `key` if there is none at all yet. */
  async createFirst(key: SigningKey): Promise<void> {
    await this.#alone(async (transaction) => {
      if ((await this.#keys.findOne({ transaction })) === null) await this.#keys.create(key, { transaction });
    });
  }

  /** Deletes keys whose successor has signed since before `supersededBefore`. @returns their ids. */
  async deleteSuperseded(supersededBefore: Date): Promise<string[]> {
    return this.#alone(async (transaction) => {
      const keys = await this.list(transaction);
      const current = keys.findIndex(({ activateTime }) => activateTime < supersededBefore);
      const ids = current < 0 ? [] : keys.slice(current + 1).map(({ id }) => id);
      if (ids.length > 0) await this.#keys.destroy({ where: { id: { [Op.in]: ids } }, transaction });
      return ids;
    });
  }

  /** Readers go on; of writers there is one at a time. */
  #alone<T>(work: (transaction: Transaction) => Promise<T>): Promise<T> {
    return inTransaction(this.#db, async (transaction) => {
      await this.#db.sequelize.query("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE", { transaction });
      return work(transaction);
    });
  }
}
