import { DataTypes, literal, Op, type Transaction, type WhereOptions } from "sequelize";
import type { Role } from "../call.ts";
import { naming } from "../db/constraints.ts";
import type { Database } from "../db/database.ts";
import { columns, count, flag, id, instant, instantOrNull, reference, type Table, text } from "../db/model.ts";
import { inTransaction } from "../db/transaction.ts";
import { notFound } from "../errors.ts";
import { newId } from "../ids.ts";
import { enqueue, type Job } from "../jobs/enqueue.ts";
import { emailTaken, type User } from "./user.ts";

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

/** Which accounts to list. */
export interface UserFilter {
  readonly role?: Role | undefined;
  /** Judged at `now`. */
  readonly locked?: boolean | undefined;
  /** Normalised. Empty: all. */
  readonly emailPrefix: string;
  readonly showDeleted: boolean;
}

/** Whether a lock of the account's email is in force at `:now`. */
const LOCKED = "EXISTS (SELECT FROM login_failures f WHERE f.email = users.email AND f.lock_expire_time > :now)";

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
    const { id: userId, createTime, role } = user;
    await naming({ users_email_key: emailTaken }, () =>
      this.transaction(async (transaction) => {
        await this.#users.create(user, { transaction });
        await this.addEvent({ userId, actorId: null, type: "REGISTERED", details: { role }, createTime }, transaction);
        await enqueue(this.#db, jobs, transaction);
      }),
    );
  }

  /** Enqueues what is to follow when `transaction` has committed. */
  async enqueue(jobs: readonly Job[], transaction: Transaction): Promise<void> {
    await enqueue(this.#db, jobs, transaction);
  }

  /** Notes what happened to an account, in the transaction that makes it happen. */
  async addEvent(event: Omit<AccountEvent, "id">, transaction: Transaction): Promise<void> {
    await this.#events.create({ ...event, id: newId() }, { transaction });
  }

  /** Deleted accounts too. */
  async findByEmail(email: string): Promise<User | undefined> {
    return (await this.#users.findOne({ where: { email } }))?.get();
  }

  /** Deleted accounts too. */
  async find(userId: string, transaction?: Transaction): Promise<User | undefined> {
    return (await this.#users.findByPk(userId, { transaction: transaction ?? null }))?.get();
  }

  /** The account, deleted or not, locked against other changes until `transaction` ends. */
  async findForUpdate(userId: string, transaction: Transaction): Promise<User | undefined> {
    return (await this.#users.findByPk(userId, { transaction, lock: transaction.LOCK.NO_KEY_UPDATE }))?.get();
  }

  /**
   * The account, locked against other changes until `transaction` ends.
   * @throws DomainError USER_NOT_FOUND when there is none, or it was deleted.
   */
  async getForUpdate(userId: string, transaction: Transaction): Promise<User> {
    const user = await this.findForUpdate(userId, transaction);
    if (user === undefined || user.deleteTime !== null) throw notFound("User", userId);
    return user;
  }

  /**
   * Ids of the admins there are, locked in their order until `transaction` ends: of two transactions that each take
   * away one of the last two admins, the second sees what the first has left. Locks rather than a trigger, since every
   * login updates `users`, and admins are few. To be called before any single account is locked.
   */
  async lockAdmins(transaction: Transaction): Promise<string[]> {
    const admins = await this.#db.query<{ id: string }>(
      {
        name: "lock-admins",
        text: `SELECT id FROM users WHERE role = 'ADMIN' AND delete_time IS NULL ORDER BY id FOR NO KEY UPDATE`,
      },
      [],
      transaction,
    );
    return admins.map((admin) => admin.id);
  }

  /**
   * Changes the account that was read as `user`, and its version.
   * @returns the account as it is then, or undefined when that version is not there any more.
   * @throws DomainError EMAIL_TAKEN
   */
  async update(
    { id: userId, version }: Pick<User, "id" | "version">,
    changes: Partial<Omit<User, "id" | "createTime" | "updateTime" | "version">>,
    now: Date,
    transaction: Transaction,
  ): Promise<User | undefined> {
    const values = { ...changes, updateTime: now, version: version + 1 };
    const where = { id: userId, version };
    const [, [updated]] = await naming({ users_email_key: emailTaken }, () =>
      this.#users.update(values, { where, returning: true, transaction }),
    );
    return updated?.get();
  }

  /**
   * Oldest first, at most `limit`, after the account `afterId` where it is given. Its values stand in the text, so that
   * each query is planned for its own filter: a walk in the order of ids, or an index by what is rare.
   */
  async list(filter: UserFilter, now: Date, limit: number, afterId?: string): Promise<User[]> {
    const { role, locked, emailPrefix, showDeleted } = filter;
    const conditions: WhereOptions[] = [];
    if (afterId !== undefined) conditions.push({ id: { [Op.gt]: afterId } });
    if (role !== undefined) conditions.push({ role });
    if (!showDeleted) conditions.push({ deleteTime: null });
    if (emailPrefix !== "") conditions.push({ email: { [Op.like]: `${escapeLike(emailPrefix)}%` } });
    if (locked !== undefined) conditions.push(literal(`${locked ? "" : "NOT "}${LOCKED}`));
    const where = { [Op.and]: conditions };
    const rows = await this.#users.findAll({ where, replacements: { now }, order: [["id", "ASC"]], limit });
    return rows.map((row) => row.get());
  }

  /** What happened to an account, newest first, at most `limit`, before the event `beforeId` where it is given. */
  async listEvents(userId: string, limit: number, beforeId?: string): Promise<AccountEvent[]> {
    const where = { userId, ...(beforeId !== undefined && { id: { [Op.lt]: beforeId } }) };
    const rows = await this.#events.findAll({ where, order: [["id", "DESC"]], limit });
    return rows.map((row) => row.get());
  }

  async hasAny(): Promise<boolean> {
    return (await this.#users.findOne({ attributes: ["id"] })) !== null;
  }

  /**
   * Notes a login by the password of `passwordHash`.
   * @returns the account as it is then, or undefined when it was deleted or has another hash by now.
   */
  async noteLogin(
    { id: userId, passwordHash }: Pick<User, "id" | "passwordHash">,
    now: Date,
    transaction: Transaction,
  ): Promise<User | undefined> {
    const where = { id: userId, passwordHash, deleteTime: null };
    const [, [user]] = await this.#users.update({ lastLoginTime: now }, { where, returning: true, transaction });
    return user?.get();
  }

  /** Puts a stronger hash of the same password in the place of `oldHash`, unless that has gone: a new password stays. */
  async upgradeHash(userId: string, oldHash: string, newHash: string): Promise<void> {
    await this.#users.update({ passwordHash: newHash }, { where: { id: userId, passwordHash: oldHash } });
  }
}

function escapeLike(text: string): string {
  return text.replace(/[\\%_]/g, "\\$&");
}
