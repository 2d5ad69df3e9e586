import type { Transaction } from "sequelize";
import type { Database } from "../db/database.ts";
import { columns, flag, id, instant, instantOrNull, reference, type Table, text } from "../db/model.ts";
import type { Address, AddressPatch } from "./user.ts";

type AddressRow = Address & { readonly deleteTime: Date | null };

/**
 * All SQL about addresses. Whoever changes one locks the account first (UserStore.findForUpdate), so that an account's
 * changes do not race. The database holds that one address is primary while there are any.
 */
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

  /** How many an account has. */
  async count(userId: string, transaction: Transaction): Promise<number> {
    return this.#addresses.count({ where: { userId, deleteTime: null }, transaction });
  }

  async add(address: Address, transaction: Transaction): Promise<void> {
    await this.#addresses.create({ ...address, deleteTime: null }, { transaction });
  }

  /** Undefined: there is none, it was removed, or it is another account's. */
  async find(userId: string, addressId: string, transaction: Transaction): Promise<Address | undefined> {
    const where = { id: addressId, userId, deleteTime: null };
    const row = await this.#addresses.findOne({ where, transaction });
    return row === null ? undefined : toAddress(row.get());
  }

  async update(addressId: string, patch: AddressPatch, transaction: Transaction): Promise<void> {
    await this.#addresses.update(patch, { where: { id: addressId }, transaction });
  }

  /** Takes the mark of the primary address away, for another one to get it in the same transaction. */
  async clearPrimary(userId: string, transaction: Transaction): Promise<void> {
    await this.#addresses.update({ isPrimary: false }, { where: { userId, isPrimary: true }, transaction });
  }

  /** Hides an address: orders may refer to it. */
  async hide(addressId: string, now: Date, transaction: Transaction): Promise<void> {
    const hidden = { isPrimary: false, deleteTime: now };
    await this.#addresses.update(hidden, { where: { id: addressId }, transaction });
  }

  /** Makes an account's oldest address primary; nothing happens where there is none. */
  async promoteOldest(userId: string, transaction: Transaction): Promise<void> {
    const [oldest] = await this.#addresses.findAll({
      where: { userId, deleteTime: null },
      order: [["id", "ASC"]],
      limit: 1,
      transaction,
    });
    if (oldest !== undefined) await this.update(oldest.get().id, { isPrimary: true }, transaction);
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
}

function toAddress({ deleteTime: _, ...address }: AddressRow): Address {
  return address;
}
