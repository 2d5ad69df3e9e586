import { setTimeout as sleep } from "node:timers/promises";
import { isAway } from "../../db/database.ts";
import { DomainError } from "../../errors.ts";

/** How often a stream's token is looked at, so that its receiver is gone within a second of what ends the token. */
const STREAM_CHECK_MS = 250;

/**
 * Passes a stream on for as long as its receiver's token is good, and ends it with what the token is refused with. While
 * that cannot be known no message is passed on, and none is lost. That the stream has ended is told at once.
 * @param verify rejects with a DomainError where the token is refused, and with what says so where it cannot be known.
 */
export async function* whileGood<T>(
  stream: AsyncIterable<T>,
  verify: () => Promise<unknown>,
  signal: AbortSignal,
): AsyncGenerator<T> {
  const messages = stream[Symbol.asyncIterator]();
  try {
    let next = new Arrival(messages.next());
    for (;;) {
      await next.within(STREAM_CHECK_MS);
      if (next.kind === "end") {
        await next.result;
        return;
      }
      const good = await isGood(verify);
      if (good && next.kind === "message") {
        yield (await next.result).value;
        next = new Arrival(messages.next());
      } else if (signal.aborted) {
        return;
      } else if (!good) {
        await sleep(STREAM_CHECK_MS);
      }
    }
  } finally {
    // Not awaited: who still waits for a message returns after that, and the end of the call ends the waiting.
    messages.return?.().catch(() => {});
  }
}

/** The next message of a stream, and what came instead of waiting for it. */
class Arrival<T> {
  readonly result: Promise<IteratorResult<T>>;
  /** Undefined: nothing yet. An end may be a fault. */
  kind: "message" | "end" | undefined;
  #wake = () => {};

  constructor(result: Promise<IteratorResult<T>>) {
    this.result = result;
    const end = () => this.#settle("end");
    result.then(({ done }) => (done === true ? end() : this.#settle("message")), end);
  }

  /** Waits until it is there, but no longer than so many milliseconds. */
  async within(ms: number): Promise<void> {
    if (this.kind !== undefined) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #settle(kind: "message" | "end"): void {
    this.kind = kind;
    this.#wake();
  }
}

/** @throws DomainError when the token is refused. */
async function isGood(verify: () => Promise<unknown>): Promise<boolean> {
  try {
    await verify();
    return true;
  } catch (error) {
    if (isAway(error) || (error instanceof DomainError && error.kind === "unavailable")) return false;
    throw error;
  }
}
