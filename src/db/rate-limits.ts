import { createHash } from "node:crypto";
import { RateLimiterPostgres, RateLimiterRes } from "rate-limiter-flexible";
import { DomainError } from "../errors.ts";
import type { Database } from "./database.ts";

const TABLE = "rate_limits";
/** Longer keys are hashed: the column has an end, and an email has no business in this table. */
const MAX_PLAIN_KEY_CHARS = 64;
/** Expired rows are looked for with one call in so many, and at most so many are deleted then. */
const SWEEP_EVERY = 200;
const SWEEP_MAX_ROWS = 1_000;
/** Spent keys that one limiter remembers; of more, the oldest are asked of the database again. */
const MAX_SPENT_KEYS = 10_000;

export interface RateLimit {
  /** Its rows' keys begin with it: unique, in kebab case. */
  readonly name: string;
  /** False: nothing is counted and nothing refused. */
  readonly on: boolean;
  /** How many in one window of time are allowed. */
  readonly points: number;
  readonly windowS: number;
  /** What a person is told; when to come back is added to it. */
  readonly message: string;
}

/**
 * Counts something by a key in windows of time, in the database, so that all replicas share one count. A window begins
 * with the first count and is never prolonged. Uses the wall clock, not `Deps.clock`: windows of replicas must agree.
 */
export class RateLimiter {
  readonly #db: Database;
  readonly #limit: RateLimit;
  readonly #limiter: RateLimiterPostgres;
  /**
   * Until when each key is spent (epoch milliseconds), so that a flood does not reach the database. The library's own
   * memory of them has no bound.
   */
  readonly #spent = new Map<string, number>();
  #taken = 0;

  constructor(db: Database, limit: RateLimit) {
    this.#db = db;
    this.#limit = limit;
    this.#limiter = new RateLimiterPostgres({
      // Through Database.query, which knows whether statements may have names.
      storeClient: { query: (statement: LibraryStatement) => this.#query(statement) },
      storeType: "pool",
      tableName: TABLE,
      tableCreated: true,
      clearExpiredByTimeout: false,
      keyPrefix: limit.name,
      points: limit.points,
      duration: limit.windowS,
    });
  }

  /**
   * Counts one.
   * @throws DomainError RATE_LIMITED when it is beyond the limit; what the database throws when it is away.
   */
  async take(key: string): Promise<void> {
    if (!this.#limit.on) return;
    const column = columnKey(key);
    this.#refuseIfRemembered(column);
    if (this.#taken++ % SWEEP_EVERY === 0) await this.#sweep();
    try {
      const { remainingPoints, msBeforeNext } = await this.#limiter.consume(column);
      if (remainingPoints === 0) this.#remember(column, msBeforeNext);
    } catch (error) {
      if (!(error instanceof RateLimiterRes)) throw error;
      throw this.#refuse(column, error.msBeforeNext);
    }
  }

  /**
   * Counts nothing.
   * @throws DomainError RATE_LIMITED when the limit is reached, so that one more would be beyond it.
   */
  async refuseIfSpent(key: string): Promise<void> {
    if (!this.#limit.on) return;
    const column = columnKey(key);
    this.#refuseIfRemembered(column);
    const found = await this.#limiter.get(column);
    if (found !== null && found.remainingPoints === 0) throw this.#refuse(column, found.msBeforeNext);
  }

  #refuseIfRemembered(column: string): void {
    const waitMs = (this.#spent.get(column) ?? 0) - Date.now();
    if (waitMs > 0) throw this.#refusal(waitMs);
  }

  #remember(column: string, waitMs: number): void {
    // Deleted first, so that the map stays in the order of time.
    this.#spent.delete(column);
    this.#spent.set(column, Date.now() + waitMs);
    const [oldest] = this.#spent.keys();
    if (this.#spent.size > MAX_SPENT_KEYS && oldest !== undefined) this.#spent.delete(oldest);
  }

  #refuse(column: string, waitMs: number): DomainError {
    this.#remember(column, waitMs);
    return this.#refusal(waitMs);
  }

  #refusal(waitMs: number): DomainError {
    const { name, points, windowS, message } = this.#limit;
    const retryAfterMs = Math.max(Math.ceil(waitMs), 1);
    const sentence = `${message}; try again in ${inWords(retryAfterMs)}`;
    const metadata = { limit: name, max: String(points), window_seconds: String(windowS) };
    return new DomainError("exhausted", "RATE_LIMITED", sentence, { retryAfterMs, metadata });
  }

  async #query({ name, text, values }: LibraryStatement): Promise<{ rows: object[]; rowCount: number }> {
    const rows = await this.#db.query({ name, text }, values);
    return { rows, rowCount: rows.length };
  }

  /** Calls are what makes rows, so that deleting some with every so many keeps the table small. */
  async #sweep(): Promise<void> {
    await this.#db.query(
      {
        name: "sweep-rate-limits",
        text: `DELETE FROM ${TABLE} WHERE key = ANY(ARRAY(
                 SELECT key FROM ${TABLE} WHERE expire < $1 ORDER BY expire LIMIT $2 FOR UPDATE SKIP LOCKED))`,
      },
      [Date.now(), SWEEP_MAX_ROWS],
    );
  }
}

/** What the library sends. Every statement that it uses while running has a name. */
interface LibraryStatement {
  readonly name: string;
  readonly text: string;
  readonly values: readonly unknown[];
}

function columnKey(key: string): string {
  const plain = key.length <= MAX_PLAIN_KEY_CHARS && !key.includes("@");
  return plain ? key : createHash("sha256").update(key).digest("base64url");
}

function inWords(ms: number): string {
  const seconds = Math.ceil(ms / 1000);
  if (seconds < 60) return seconds === 1 ? "1 second" : `${seconds} seconds`;
  const minutes = Math.ceil(seconds / 60);
  return minutes === 1 ? "1 minute" : `${minutes} minutes`;
}
