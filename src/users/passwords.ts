import { randomBytes } from "node:crypto";
import argon2 from "argon2";
import { BulkheadRejectedError, bulkhead } from "cockatiel";
import { DomainError } from "../errors.ts";

/** More wait for a lane than could be served in a few seconds: the rest is told to come back. */
const MAX_WAITING = 100;
const RETRY_AFTER_MS = 2_000;

export interface PasswordOptions {
  readonly memoryKib: number;
  readonly passes: number;
  /** Hashes computed at once. Each takes a thread of libuv's four, so fewer than four. */
  readonly lanes: number;
}

/** Hashes and checks passwords with Argon2id, a few at a time, so that a burst of logins does not stall other calls. */
export class Passwords {
  readonly #options: { type: 2; memoryCost: number; timeCost: number; parallelism: number };
  readonly #lanes: ReturnType<typeof bulkhead>;
  readonly #dummyHash: Promise<string>;

  constructor({ memoryKib, passes, lanes }: PasswordOptions) {
    this.#options = { type: argon2.argon2id, memoryCost: memoryKib, timeCost: passes, parallelism: 1 };
    this.#lanes = bulkhead(lanes, MAX_WAITING);
    this.#dummyHash = this.hash(randomBytes(16).toString("hex"));
    this.#dummyHash.catch(() => {});
  }

  /** @throws DomainError OVERLOADED when too many passwords wait. */
  hash(password: string): Promise<string> {
    return this.#inLane(() => argon2.hash(password, this.#options));
  }

  /**
   * Whether `password` is the one of `hash`. Without a hash (there is no such account) the answer is no, after the same
   * work, so that time tells nothing.
   * @throws DomainError OVERLOADED when too many passwords wait.
   */
  async matches(hash: string | undefined, password: string): Promise<boolean> {
    const against = hash ?? (await this.#dummyHash);
    const same = await this.#inLane(() => argon2.verify(against, password));
    return same && hash !== undefined;
  }

  async #inLane<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await this.#lanes.execute(work);
    } catch (error) {
      if (!(error instanceof BulkheadRejectedError)) throw error;
      const message = "Too many sign-ins at once; try again shortly";
      throw new DomainError("exhausted", "OVERLOADED", message, { retryAfterMs: RETRY_AFTER_MS });
    }
  }
}
