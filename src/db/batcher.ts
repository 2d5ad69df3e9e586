import { DomainError } from "../errors.ts";

export interface BatcherOptions<Command, Outcome> {
  /** Carries out all commands in one round trip; gives one outcome for each, in their order. */
  readonly run: (commands: readonly Command[]) => Promise<readonly Outcome[]>;
  /** Most commands of one batch. */
  readonly maxBatch: number;
  /** Most batches in flight. */
  readonly maxLanes: number;
  /** Most commands that may wait; more are refused. */
  readonly maxWaiting: number;
  /** Two commands with the same key never go in one batch: the later one waits. Absent: all may. */
  readonly keyOf?: (command: Command) => string;
  /** Faults that hit every command alike, so that halving the batch would only repeat them. */
  readonly isShared?: (error: unknown) => boolean;
}

interface Waiting<Command, Outcome> {
  readonly command: Command;
  readonly deadline: number;
  readonly resolve: (outcome: Outcome) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Sends commands in batches that grow by themselves: what arrives while every lane is busy goes together as soon as one
 * is free. There is no timer, so an idle service adds no wait. A batch that fails unexpectedly is halved until the
 * culprit stands alone, so one command's fault is never its neighbours'.
 */
export class Batcher<Command, Outcome> {
  readonly #options: BatcherOptions<Command, Outcome>;
  #waiting: Waiting<Command, Outcome>[] = [];
  #lanes = 0;

  constructor(options: BatcherOptions<Command, Outcome>) {
    this.#options = options;
  }

  /**
   * @param deadline Epoch milliseconds after which the command is not sent any more. Once sent it runs to its end: a
   *   client that goes away does not undo what its batch-mates wait for.
   * @throws DomainError OVERLOADED when too many wait, DEADLINE_EXCEEDED when the deadline passed before it was sent.
   */
  submit(command: Command, deadline: number): Promise<Outcome> {
    if (this.#waiting.length >= this.#options.maxWaiting) {
      return Promise.reject(
        new DomainError("exhausted", "OVERLOADED", "Too many requests at once; try again shortly", {
          retryAfterMs: 500,
        }),
      );
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push({ command, deadline, resolve, reject });
      this.#dispatch();
    });
  }

  #dispatch(): void {
    while (this.#lanes < this.#options.maxLanes && this.#waiting.length > 0) {
      const batch = this.#takeBatch();
      if (batch.length === 0) return;
      this.#lanes++;
      void this.#send(batch);
    }
  }

  async #send(batch: readonly Waiting<Command, Outcome>[]): Promise<void> {
    const tell = await this.#carryOut(batch);
    this.#lanes--;
    this.#dispatch();
    // After what waited is on its way: the database then works while these are answered, and not after it.
    process.nextTick(tell);
  }

  #takeBatch(): Waiting<Command, Outcome>[] {
    const { maxBatch, keyOf } = this.#options;
    const now = Date.now();
    const batch: Waiting<Command, Outcome>[] = [];
    const later: Waiting<Command, Outcome>[] = [];
    const keys = new Set<string>();
    for (const waiting of this.#waiting) {
      const key = keyOf?.(waiting.command);
      if (waiting.deadline <= now) {
        waiting.reject(
          new DomainError("deadline", "DEADLINE_EXCEEDED", "The deadline passed before the request was carried out"),
        );
      } else if (batch.length >= maxBatch || (key !== undefined && keys.has(key))) {
        later.push(waiting);
      } else {
        batch.push(waiting);
        if (key !== undefined) keys.add(key);
      }
    }
    this.#waiting = later;
    return batch;
  }

  /** Never rejects. @returns what tells all of the batch what became of them. */
  async #carryOut(batch: readonly Waiting<Command, Outcome>[]): Promise<() => void> {
    try {
      const outcomes = await this.#options.run(batch.map(({ command }) => command));
      if (outcomes.length !== batch.length) throw new Error(`${batch.length} commands had ${outcomes.length} outcomes`);
      return () => {
        for (const [i, outcome] of outcomes.entries()) batch[i]?.resolve(outcome);
      };
    } catch (error) {
      if (batch.length === 1 || this.#options.isShared?.(error) === true) {
        return () => {
          for (const waiting of batch) waiting.reject(error);
        };
      }
      const middle = Math.ceil(batch.length / 2);
      const tellFirst = await this.#carryOut(batch.slice(0, middle));
      const tellSecond = await this.#carryOut(batch.slice(middle));
      return () => {
        tellFirst();
        tellSecond();
      };
    }
  }
}
