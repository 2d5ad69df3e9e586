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

  /**
   * @param deadline epoch milliseconds after which nobody waits for it: in the queue till then, it is not begun.
   * @throws DomainError OVERLOADED when too many passwords wait, DEADLINE_EXCEEDED
   */
  hash(password: string, deadline = Number.POSITIVE_INFINITY): Promise<string> {
    return this.#inLane(deadline, () => argon2.hash(password, this.#options));
  }

  /**
   * Whether `password` is the one of `hash`. Without a hash (there is no such account) the answer is no, after the same
   * work, so that time tells nothing.
   * @param deadline as in `hash`.
   * @throws DomainError OVERLOADED when too many passwords wait, DEADLINE_EXCEEDED
   */
  async matches(hash: string | undefined, password: string, deadline = Number.POSITIVE_INFINITY): Promise<boolean> {
    const against = hash ?? (await this.#dummyHash);
    const same = await this.#inLane(deadline, () => argon2.verify(against, password));
    return same && hash !== undefined;
  }

  /** Whether a hash was made with less memory or fewer passes than the settings ask for now. */
  isWeak(hash: string): boolean {
    const { memoryCost, timeCost } = this.#options;
    return parameterOf(hash, "m") < memoryCost || parameterOf(hash, "t") < timeCost;
  }

  async #inLane<T>(deadline: number, work: () => Promise<T>): Promise<T> {
    try {
      return await this.#lanes.execute(() => {
        if (Date.now() >= deadline) {
          throw new DomainError("deadline", "DEADLINE_EXCEEDED", "The call's deadline passed before its turn came");
        }
        return work();
      });
    } catch (error) {
      if (!(error instanceof BulkheadRejectedError)) throw error;
      const message = "Too many sign-ins at once; try again shortly";
      throw new DomainError("exhausted", "OVERLOADED", message, { retryAfterMs: RETRY_AFTER_MS });
    }
  }
}

/** A parameter of a hash in PHC string format, `$argon2id$v=19$m=19456,p=1,t=2$…`; 0 when it is not there. */
function parameterOf(hash: string, name: "m" | "t"): number {
  const [, , , parameters = ""] = hash.split("$");
  const found = parameters.split(",").find((parameter) => parameter.startsWith(`${name}=`));
  return Number(found?.slice(name.length + 1) ?? 0);
}
