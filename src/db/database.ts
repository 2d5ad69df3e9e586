import pg, { Client, type ClientConfig } from "pg";
import { Sequelize, type Transaction } from "sequelize";
import { DomainError } from "../errors.ts";

const CONNECT_TIMEOUT_MS = 5_000;
const ACQUIRE_TIMEOUT_MS = 10_000;
const IDLE_MS = 30_000;
/** Longer than any call may take: a statement that runs on after its caller has gone must not hold its locks for long. */
const STATEMENT_TIMEOUT_MS = 65_000;
const IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000;

export interface DatabaseOptions {
  /** postgres://user:password@host:port/database */
  readonly url: string;
  readonly poolMax: number;
  /** False where a pooler between us and PostgreSQL loses prepared statements. */
  readonly prepared: boolean;
}

/** A statement with bound parameters. `name` is unique for its text: it is parsed once per connection. */
export interface Statement {
  readonly name: string;
  readonly text: string;
}

/**
 * A connection whose end is heard from its first moment on. Sequelize listens only once the connection has been made and
 * handed on; an end in that breath (PostgreSQL restarts, an administrator terminates) would be an error that nobody
 * hears, which ends the process.
 */
class HeardClient extends Client {
  /** Read by Sequelize's pool, which then lends it to nobody. */
  _invalid = false;

  constructor(config?: string | ClientConfig) {
    super(config);
    this.on("error", () => {
      this._invalid = true;
    });
  }
}

/** PostgreSQL through Sequelize, with a way to run hot statements by name on the same connections. */
export class Database {
  readonly sequelize: Sequelize;
  /** With its password: never to be logged. */
  readonly url: string;
  readonly #prepared: boolean;

  constructor({ url, poolMax, prepared }: DatabaseOptions) {
    this.#prepared = prepared;
    this.url = url;
    this.sequelize = new Sequelize(url, {
      dialect: "postgres",
      dialectModule: { types: pg.types, Client: HeardClient },
      logging: false,
      pool: { max: poolMax, min: 0, idle: IDLE_MS, acquire: ACQUIRE_TIMEOUT_MS },
      dialectOptions: {
        application_name: "tradepost",
        connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
        keepAlive: true,
        statement_timeout: STATEMENT_TIMEOUT_MS,
        idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_TIMEOUT_MS,
      },
      // Our own bounded retry (transaction.ts) knows what may be repeated; Sequelize's does not.
      retry: { max: 1 },
    });
  }

  /** One read-only round trip that fails when the database is away. */
  async ping(): Promise<void> {
    await this.query({ name: "ping", text: "SELECT 1" }, []);
  }

  /**
   * Runs one statement by name, in `transaction` or by itself.
   * Rows come as PostgreSQL types: timestamptz as Date, numeric and bigint as string, bytea as Buffer, jsonb as object.
   */
  async query<Row extends object>(
    { name, text }: Statement,
    values: readonly unknown[],
    transaction?: Transaction,
  ): Promise<Row[]> {
    const query = this.#prepared ? { name, text, values: [...values] } : { text, values: [...values] };
    if (transaction !== undefined) return (await connectionOf(transaction).query<Row>(query)).rows;
    return this.withConnection(async (connection) => (await connection.query<Row>(query)).rows);
  }

  /** Lends one connection of the pool to `use`. */
  async withConnection<T>(use: (connection: Client) => Promise<T>): Promise<T> {
    const manager = this.sequelize.connectionManager;
    const connection = (await manager.getConnection({ type: "write" })) as Client;
    try {
      return await use(connection);
    } finally {
      manager.releaseConnection(connection);
    }
  }

  async close(): Promise<void> {
    await this.sequelize.close();
  }
}

function connectionOf(transaction: Transaction): Client {
  // Sequelize keeps the connection here and exposes no accessor for it.
  const { connection } = transaction as unknown as { connection?: Client };
  if (connection === undefined) throw new Error("the transaction has no connection: it is not begun or already ended");
  return connection;
}

/** Codes by which PostgreSQL, its poolers and the network say that nothing can be asked at the moment. */
const AWAY = new Set([
  ...["08000", "08001", "08003", "08004", "08006", "57P01", "57P02", "57P03", "57014", "53300", "25006"],
  ...["ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "EPIPE", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH"],
]);
const AWAY_NAMES = /^Sequelize(Connection|HostNot|InvalidConnection|AccessDenied|ConnectionAcquireTimeout)/;
const AWAY_MESSAGES =
  /^(Connection terminated|timeout expired|Client has encountered a connection error|Query read timeout)/;
const RETRY_AFTER_MS = 1_000;

/** The SQLSTATE (or the network's code) of a fault, through Sequelize's wrapping. */
export function faultCode(error: unknown): string | undefined {
  const { code, original, parent } = (error ?? {}) as { code?: unknown; original?: unknown; parent?: unknown };
  if (typeof code === "string") return code;
  return original !== undefined || parent !== undefined ? faultCode(original ?? parent) : undefined;
}

/** The constraint that a statement violated, through Sequelize's wrapping. */
export function violatedConstraint(error: unknown): string | undefined {
  const { constraint, original } = (error ?? {}) as { constraint?: unknown; original?: unknown };
  if (typeof constraint === "string") return constraint;
  return original !== undefined ? violatedConstraint(original) : undefined;
}

/** Whether a fault means that the database cannot be reached, rather than that a statement is wrong. */
export function isAway(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return AWAY.has(faultCode(error) ?? "") || AWAY_NAMES.test(error.name) || AWAY_MESSAGES.test(error.message);
}

/** What a caller is told while the database is away. */
export function databaseUnavailable(cause: unknown): DomainError {
  const message = "The database cannot be reached at the moment; try again shortly";
  return new DomainError("unavailable", "DATABASE_UNAVAILABLE", message, { retryAfterMs: RETRY_AFTER_MS, cause });
}
