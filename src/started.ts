import type { Logger } from "pino";
import { within } from "./time-limit.ts";

interface Part {
  readonly what: string;
  readonly stop: () => Promise<void>;
  readonly timeoutMs: number;
}

/** What has been started and has to be stopped, the last one first. */
export class Started {
  readonly #parts: Part[] = [];

  add(what: string, stop: () => Promise<void>, timeoutMs: number): void {
    this.#parts.push({ what, stop, timeoutMs });
  }

  /** Stops everything, also what comes after something that fails to stop or takes too long. */
  async stop(log: Logger): Promise<void> {
    for (let part = this.#parts.pop(); part !== undefined; part = this.#parts.pop()) {
      const { what, stop, timeoutMs } = part;
      try {
        await within(stop(), timeoutMs);
      } catch (error) {
        log.error({ err: error, what }, "failed to stop");
      }
    }
  }
}
