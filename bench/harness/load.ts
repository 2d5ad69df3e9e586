import { setTimeout as sleep } from "node:timers/promises";

/** What came of a number of calls. */
export interface Samples {
  /** Of the calls that were answered as they should be, milliseconds. */
  readonly latenciesMs: number[];
  /** Calls by what came of them: "ok" or a reason. */
  readonly outcomes: Record<string, number>;
  readonly elapsedMs: number;
}

/** Makes one call and says what came of it: "ok" or a reason. */
export type LoadCall = () => Promise<string>;

class Recorder {
  readonly #latenciesMs: number[] = [];
  readonly #outcomes: Record<string, number> = {};
  readonly #startedAt = performance.now();

  /** Makes the call; its time counts from `since`, which is when it should have been made. */
  async record(call: LoadCall, since = performance.now()): Promise<void> {
    const outcome = await call();
    if (outcome === "ok") this.#latenciesMs.push(performance.now() - since);
    this.#outcomes[outcome] = (this.#outcomes[outcome] ?? 0) + 1;
  }

  end(): Samples {
    const elapsedMs = performance.now() - this.#startedAt;
    return { latenciesMs: this.#latenciesMs, outcomes: this.#outcomes, elapsedMs };
  }
}

/** So many clients, each of which makes its next call as soon as the one before is answered: measures what is possible. */
export async function closedLoop(
  { clients, durationMs }: { readonly clients: number; readonly durationMs: number },
  call: (client: number) => Promise<string>,
): Promise<Samples> {
  const recorder = new Recorder();
  const endAt = performance.now() + durationMs;
  const run = async (client: number) => {
    while (performance.now() < endAt) await recorder.record(() => call(client));
  };
  await Promise.all(Array.from({ length: clients }, (_, client) => run(client)));
  return recorder.end();
}

/**
 * Calls at a steady rate, whether or not the ones before are answered: measures what a caller waits. A call that is made
 * late because this process was busy counts from when it was due, so that a stall is not forgotten.
 */
export async function paced(
  { ratePerS, durationMs }: { readonly ratePerS: number; readonly durationMs: number },
  call: LoadCall,
): Promise<Samples> {
  const recorder = new Recorder();
  const startAt = performance.now();
  const calls: Promise<void>[] = [];
  for (let made = 0; made < (ratePerS * durationMs) / 1000; made++) {
    const dueAt = startAt + (made * 1000) / ratePerS;
    const early = dueAt - performance.now();
    if (early > 1) await sleep(early);
    calls.push(recorder.record(call, dueAt));
  }
  await Promise.all(calls);
  return recorder.end();
}

/** Two kinds of calls by turns, one at a time (a b b a a b …): measures how much they differ. */
export async function alternating(pairs: number, a: LoadCall, b: LoadCall): Promise<[Samples, Samples]> {
  const [first, second] = [new Recorder(), new Recorder()];
  for (let pair = 0; pair < pairs; pair++) {
    const turns = [() => first.record(a), () => second.record(b)];
    for (const turn of pair % 2 === 0 ? turns : turns.reverse()) await turn();
  }
  return [first.end(), second.end()];
}
