import type { Clock } from "../../../src/deps.ts";
import type { Random } from "./random.ts";

/** More steps than any world should need; one that takes more goes round in circles. */
const MAX_STEPS = 5_000;
/** What a step takes by the world's clock. */
const MAX_STEP_MS = 20;
/** Crashes of one world: more would leave nothing to be seen but crashes. */
const MAX_CRASHES = 4;
const CRASH_RATE = 0.03;

/** What a process that died under a call leaves its caller with. */
export class Crashed extends Error {
  override readonly name = "Crashed";
}

/** One life of the service: what it holds in memory ends with it. */
export interface Process {
  readonly name: string;
  alive: boolean;
}

interface Step {
  readonly process: Process | undefined;
  readonly label: string;
  readonly effect: () => unknown;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
}

/**
 * Decides by the seed who goes on. Everything that touches the world outside a process's memory (a statement, a request to
 * a gateway, its answer, the passing of time) is a step. Steps wait here; one at a time is picked, done to its end, and
 * what follows from it in memory runs until it waits here again. So one seed is one interleaving.
 */
export class Scheduler {
  readonly #random: Random;
  #waiting: Step[] = [];
  #nowMs: number;
  #steps = 0;
  #crashes = 0;
  #names = new Map<string, string>();
  readonly trace: string[] = [];
  /** From then on nothing crashes and no gateway misbehaves. */
  calm = false;

  constructor(random: Random, startTime: Date) {
    this.#random = random;
    this.#nowMs = startTime.getTime();
  }

  readonly clock: Clock = { now: () => new Date(this.#nowMs) };

  advance(ms: number): void {
    this.#nowMs += ms;
  }

  /** Lets `id` stand in the trace under a name that is the same whenever the seed is run. */
  nameOf(id: string, kind: string): string {
    const name = this.#names.get(id) ?? `${kind}${this.#names.size + 1}`;
    this.#names.set(id, name);
    return name;
  }

  note(line: string): void {
    this.trace.push(`${String(this.#steps).padStart(4)} ${line}`);
  }

  /**
   * Waits until the scheduler picks this step, then does `effect`. A process may die just before it, so that it never
   * happened, or just after it, so that it did and nobody knows.
   */
  step<T>(process: Process | undefined, label: string, effect: () => T | Promise<T>): Promise<T> {
    if (process?.alive === false) return Promise.reject(new Crashed());
    return new Promise<T>((resolve, reject) => {
      this.#waiting.push({ process, label, effect, resolve: resolve as (value: unknown) => void, reject });
    });
  }

  /** Something that will happen at some time, whoever is alive then. */
  later(label: string, effect: () => void): void {
    void this.step(undefined, label, effect);
  }

  /** Lets everything happen that waits, and what follows from it. */
  async run(): Promise<void> {
    for (;;) {
      // All that follows in memory from the last step has happened when the event loop turns.
      await new Promise(setImmediate);
      const { length } = this.#waiting;
      if (length === 0) return;
      if (++this.#steps > MAX_STEPS) throw new Error(`the world has not come to rest after ${MAX_STEPS} steps`);
      const [step] = this.#waiting.splice(this.#random.below(length), 1);
      if (step !== undefined) await this.#do(step);
    }
  }

  async #do({ process, label, effect, resolve, reject }: Step): Promise<void> {
    const line = `${process?.name ?? "world"}: ${label}`;
    this.#nowMs += this.#random.below(MAX_STEP_MS);
    const crash = this.#crash(process);
    if (crash === "before") {
      this.note(`${line} (${process?.name} dies before it)`);
      this.#bury(process, reject);
      return;
    }
    this.note(line);
    try {
      const value = await effect();
      if (crash === "after") {
        this.note(`${process?.name} dies before it knows`);
        this.#bury(process, reject);
      } else resolve(value);
    } catch (error) {
      reject(error);
    }
  }

  #crash(process: Process | undefined): "before" | "after" | undefined {
    if (process === undefined || this.calm || this.#crashes >= MAX_CRASHES) return undefined;
    if (!this.#random.chance(CRASH_RATE)) return undefined;
    this.#crashes++;
    return this.#random.chance(0.5) ? "before" : "after";
  }

  #bury(process: Process | undefined, reject: (error: unknown) => void): void {
    if (process !== undefined) process.alive = false;
    reject(new Crashed());
    const dead = this.#waiting.filter((step) => step.process === process);
    this.#waiting = this.#waiting.filter((step) => step.process !== process);
    for (const step of dead) step.reject(new Crashed());
  }
}
