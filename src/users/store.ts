import { DataTypes, type Model, type ModelStatic, type Transaction } from "sequelize";
import { naming } from "../db/constraints.ts";
import type { Database } from "../db/database.ts";
import { inTransaction } from "../db/transaction.ts";
import { DomainError } from "../errors.ts";
import { type Address, MAX_ADDRESSES, type User } from "./user.ts";

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
}

export interface SigningKey {
  readonly id: string;
  readonly publicKey: object;
  readonly privateKey: Buffer;
  readonly createTime: Date;
}

type Table<Row extends object> = ModelStatic<Model<Row, Row>>;
type AddressRow = Address & { readonly deleteTime: Date | null };

const { UUID, TEXT, DATE, DATEONLY, BOOLEAN, INTEGER, BLOB, JSONB } = DataTypes;
const columns = { timestamps: false, underscored: true } as const;
// Sequelize writes into each definition, so every column gets an object of its own.
const instant = () => ({ type: DATE(3), allowNull: false });
const text = () => ({ type: TEXT, allowNull: false });

/** All SQL about accounts, sessions, keys and addresses. */
export class UserStore {
  readonly #db: Database;
  readonly #users: Table<User>;
  readonly #sessions: Table<Session>;
  readonly #refreshTokens: Table<RefreshToken>;
  readonly #signingKeys: Table<SigningKey>;
  readonly #addresses: Table<AddressRow>;

  constructor(db: Database) {
    this.#db = db;
    const { sequelize } = db;
    this.#users = sequelize.define(
      "users",
      {
        id: { type: UUID, primaryKey: true },
        email: text(),
        passwordHash: text(),
        firstName: text(),
        lastName: text(),
        phone: text(),
        dateOfBirth: { type: DATEONLY, allowNull: false },
        role: text(),
        bio: text(),
        newsletter: { type: BOOLEAN, allowNull: false },
        notifications: { type: BOOLEAN, allowNull: false },
        avatarFile: text(),
        emailVerified: { type: BOOLEAN, allowNull: false },
        createTime: instant(),
        updateTime: instant(),
        lastLoginTime: { type: DATE(3) },
        deleteTime: { type: DATE(3) },
        version: { type: INTEGER, allowNull: false },
      },
      columns,
    );
    this.#sessions = sequelize.define(
      "sessions",
      {
        id: { type: UUID, primaryKey: true },
        userId: { type: UUID, allowNull: false },
        createTime: instant(),
        lastUseTime: instant(),
        expireTime: instant(),
        clientAddress: text(),
        userAgent: text(),
      },
      columns,
    );
    this.#refreshTokens = sequelize.define(
      "refresh_tokens",
      {
        tokenHash: { type: BLOB, primaryKey: true },
        sessionId: { type: UUID, allowNull: false },
        createTime: instant(),
        expireTime: instant(),
      },
      columns,
    );
    this.#signingKeys = sequelize.define(
      "signing_keys",
      {
        id: { type: TEXT, primaryKey: true },
        publicKey: { type: JSONB, allowNull: false },
        privateKey: { type: BLOB, allowNull: false },
        createTime: instant(),
      },
      columns,
    );
    this.#addresses = sequelize.define(
      "addresses",
      {
        id: { type: UUID, primaryKey: true },
        userId: { type: UUID, allowNull: false },
        street: text(),
        city: text(),
        state: text(),
        postalCode: text(),
        country: text(),
        isPrimary: { type: BOOLEAN, allowNull: false },
        createTime: instant(),
        deleteTime: { type: DATE(3) },
      },
      columns,
    );
  }

  /** @throws DomainError EMAIL_TAKEN */
  async createUser(user: User): Promise<void> {
    const taken = () => new DomainError("already-exists", "EMAIL_TAKEN", "An account with this email already exists");
    await naming({ users_email_key: taken }, () => this.#users.create(user));
  }

  /** Deleted accounts too. */
  async findUserByEmail(email: string): Promise<User | undefined> {
    return (await this.#users.findOne({ where: { email } }))?.get();
  }

  /** Deleted accounts too. */
  async findUser(id: string): Promise<User | undefined> {
    return (await this.#users.findByPk(id))?.get();
  }

  async hasUsers(): Promise<boolean> {
    return (await this.#users.findOne({ attributes: ["id"] })) !== null;
  }

  /**
   * Opens a session of an account that is not deleted, and notes the login.
   * @returns the account as it is then, or undefined when it was deleted meanwhile.
   */
  async openSession(session: Session, refreshToken: RefreshToken): Promise<User | undefined> {
    return inTransaction(this.#db, async (transaction) => {
      const [, [user]] = await this.#users.update(
        { lastLoginTime: session.createTime },
        { where: { id: session.userId, deleteTime: null }, returning: true, transaction },
      );
      if (user === undefined) return undefined;
      await this.#sessions.create(session, { transaction });
      await this.#refreshTokens.create(refreshToken, { transaction });
      return user.get();
    });
  }

  /** Newest first. */
  async signingKeys(): Promise<SigningKey[]> {
    const keys = await this.#signingKeys.findAll({
      order: [
        ["createTime", "DESC"],
        ["id", "DESC"],
      ],
    });
    return keys.map((key) => key.get());
  }

  /** Keeps `key` if there is none at all yet: of replicas that start together on a new database, one makes the key. */
  async createFirstSigningKey(key: SigningKey): Promise<void> {
    await inTransaction(this.#db, async (transaction) => {
      await this.#db.sequelize.query("LOCK TABLE signing_keys IN SHARE ROW EXCLUSIVE MODE", { transaction });
      if ((await this.#signingKeys.findOne({ transaction })) === null)
        await this.#signingKeys.create(key, { transaction });
    });
  }

  /**
   * Adds an address. The first one is primary; a new primary one takes that from the old one. The account's row is
   * locked, so that addresses of one account are added one after another.
   * @throws DomainError TOO_MANY_ADDRESSES
   */
  async createAddress(address: Address): Promise<Address> {
    return inTransaction(this.#db, async (transaction) => {
      const { userId } = address;
      await this.#lockUser(userId, transaction);
      const live = { userId, deleteTime: null };
      const count = await this.#addresses.count({ where: live, transaction });
      if (count >= MAX_ADDRESSES) {
        throw new DomainError(
          "precondition",
          "TOO_MANY_ADDRESSES",
          `An account may have at most ${MAX_ADDRESSES} addresses`,
        );
      }
      const isPrimary = address.isPrimary || count === 0;
      if (isPrimary)
        await this.#addresses.update({ isPrimary: false }, { where: { ...live, isPrimary: true }, transaction });
      const created = await this.#addresses.create({ ...address, isPrimary, deleteTime: null }, { transaction });
      return created.get();
    });
  }

  /** Oldest first, at most `limit`, after the address `afterId` where it is given. */
  async listAddresses(userId: string, limit: number, afterId?: string): Promise<Address[]> {
    const rows = await this.#db.query<AddressRow>(
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
    return rows;
  }

  async #lockUser(id: string, transaction: Transaction): Promise<void> {
    await this.#users.findByPk(id, { attributes: ["id"], lock: transaction.LOCK.NO_KEY_UPDATE, transaction });
  }
}
