import { DataTypes, type Transaction } from "sequelize";
import { v7 as uuidv7 } from "uuid";
import { naming } from "../db/constraints.ts";
import type { Database } from "../db/database.ts";
import { columns, count, flag, id, instant, instantOrNull, reference, type Table, text } from "../db/model.ts";
import { inTransaction } from "../db/transaction.ts";
import { DomainError } from "../errors.ts";
import { enqueue, type Job } from "../jobs/enqueue.ts";
import type { User } from "./user.ts";

/** Something that happened to an account. */
export interface AccountEvent {
  readonly id: string;
  readonly userId: string;
  /** Null: nobody signed in, or the service itself. */
  readonly actorId: string | null;
  /** UPPER_SNAKE, such as REGISTERED. */
  readonly type: string;
  /** What changed; never a secret. */
  readonly details: Readonly<Record<string, string>>;
  readonly createTime: Date;
}

/** All SQL about accounts and what happened to them. */
export class UserStore {
  readonly #db: Database;
  readonly #users: Table<User>;
  readonly #events: Table<AccountEvent>;

  constructor(db: Database) {
    this.#db = db;
    this.#users = db.sequelize.define(
      "users",
      {
        id: id(),
        email: text(),
        passwordHash: text(),
        firstName: text(),
        lastName: text(),
        phone: text(),
        dateOfBirth: { type: DataTypes.DATEONLY, allowNull: false },
        role: text(),
        bio: text(),
        newsletter: flag(),
        notifications: flag(),
        avatarFile: text(),
        emailVerified: flag(),
        createTime: instant(),
        updateTime: instant(),
        lastLoginTime: instantOrNull(),
        deleteTime: instantOrNull(),
        version: count(),
      },
      columns,
    );
    this.#events = db.sequelize.define(
      "account_events",
      {
        id: id(),
        userId: reference(),
        actorId: { type: DataTypes.UUID },
        type: text(),
        details: { type: DataTypes.JSONB, allowNull: false },
        createTime: instant(),
      },
      columns,
    );
  }

  /** Runs `work` in one transaction, for changes that concern accounts and their sessions, tokens or addresses together. */
  transaction<T>(work: (transaction: Transaction) => Promise<T>): Promise<T> {
    return inTransaction(this.#db, work);
  }

  /**
   * Adds an account, notes it in its events, and enqueues what follows from it.
   * @throws DomainError EMAIL_TAKEN
   */
  async create(user: User, jobs: readonly Job[] = []): Promise<void> {
    const taken = () => new DomainError("already-exists", "EMAIL_TAKEN", "An account with this email already exists");
    const { id: userId, createTime, role } = user;
    await naming({ users_email_key: taken }, () =>
      this.transaction(async (transaction) => {
        await this.#users.create(user, { transaction });
        await this.addEvent({ userId, actorId: null, type: "REGISTERED", details: { role }, createTime }, transaction);
        await enqueue(this.#db, jobs, transaction);
      }),
    );
  }

  /** Notes what happened to an account, in the transaction that makes it happen. */
  async addEvent(event: Omit<AccountEvent, "id">, transaction: Transaction): Promise<void> {
    await this.#events.create({ ...event, id: uuidv7() }, { transaction });
  }

  /** Deleted accounts too. */
  async findByEmail(email: string): Promise<User | undefined> {
    return (await this.#users.findOne({ where: { email } }))?.get();
  }

  /** Deleted accounts too. */
  async find(userId: string): Promise<User | undefined> {
    return (await this.#users.findByPk(userId))?.get();
  }

  async hasAny(): Promise<boolean> {
    return (await this.#users.findOne({ attributes: ["id"] })) !== null;
  }

  /** Notes a login. @returns the account as it is then, or undefined when it was deleted meanwhile. */
  async noteLogin(userId: string, now: Date, transaction: Transaction): Promise<User | undefined> {
    const where = { id: userId, deleteTime: null };
    const [, [user]] = await this.#users.update({ lastLoginTime: now }, { where, returning: true, transaction });
    return user?.get();
  }
}
