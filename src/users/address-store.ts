import type { Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, flag, id, instant, instantOrNull, reference, type Table, text } from "../db/model.ts";
import { inTransaction } from "../db/transaction.ts";
import { DomainError } from "../errors.ts";
import { type Address, MAX_ADDRESSES } from "./user.ts";

type AddressRow = Address & { readonly deleteTime: Date | null };

/** All SQL about addresses. Every change locks the account's row first, so that an account's changes do not race. */
export class AddressStore {
  readonly #db: Database;
  readonly #addresses: Table<AddressRow>;

  constructor(db: Database) {
    this.#db = db;
    this.#addresses = db.sequelize.define(
      "addresses",
      {
        id: id(),
        userId: reference(),
        street: text(),
        city: text(),
        state: text(),
        postalCode: text(),
        country: text(),
        isPrimary: flag(),
        createTime: instant(),
        deleteTime: instantOrNull(),
      },
      columns,
    );
  }

  /**
   * Adds an address. The first one is primary; a new primary one takes that from the old one.
   * @throws DomainError TOO_MANY_ADDRESSES
   */
  async create(address: Address): Promise<Address> {
    return inTransaction(this.#db, async (transaction) => {
      const { userId } = address;
      await this.#lockUser(userId, transaction);
      const live = { userId, deleteTime: null };
      const count = await this.#addresses.count({ where: live, transaction });
      if (count >= MAX_ADDRESSES) {
        const message = `An account may have at most ${MAX_ADDRESSES} addresses`;
        throw new DomainError("precondition", "TOO_MANY_ADDRESSES", message);
      }
      const isPrimary = address.isPrimary || count === 0;
      if (isPrimary) {
        await this.#addresses.update({ isPrimary: false }, { where: { ...live, isPrimary: true }, transaction });
      }
      const created = await this.#addresses.create({ ...address, isPrimary, deleteTime: null }, { transaction });
      return created.get();
    });
  }

  /** Oldest first, at most `limit`, after the address `afterId` where it is given. */
  async list(userId: string, limit: number, afterId?: string): Promise<Address[]> {
    return this.#db.query<Address>(
      {
        name: "list-addresses",
        text: `SELECT id, user_id AS "userId", street, city, state, postal_code AS "postalCode", country,
                      is_primary AS "isPrimary", create_time AS "createTime"
                 FROM addresses
                WHERE user_id = $1 AND delete_time IS NULL AND ($2::uuid IS NULL OR id > $2)
                ORDER BY id LIMIT $3`,
      },
      [userId, afterId ?? null, limit],
    );
  }

  async #lockUser(userId: string, transaction: Transaction): Promise<void> {
    const statement = { name: "lock-user", text: "SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE" };
    await this.#db.query(statement, [userId], transaction);
  }
}
