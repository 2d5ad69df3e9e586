import { faultsOfBooks } from "../../orders/books.ts";
import { createDatabase } from "../../support/database.ts";
import { runWorld, type Sabotage, type WorldResult } from "./world.ts";

/** Worlds at a time, each in a database of its own: while one waits for PostgreSQL another goes on. */
const LANES = 4;
const MAX_TRACE_LINES = 400;

export interface RunOptions {
  /** The first seed. */
  readonly firstSeed: number;
  readonly seeds: number;
  /** No world is begun after that. */
  readonly timeLimitMs?: number;
  readonly sabotage?: Sabotage;
  /** Which faults end the run; not given: any. */
  readonly looksFor?: RegExp;
  readonly onProgress?: (worlds: number) => void;
}

export interface RunResult {
  /** How many worlds were lived through. */
  readonly worlds: number;
  /** The first one in which something was wrong. */
  readonly failed: WorldResult | undefined;
}

/** Lives through the worlds of seeds one after another, until something is wrong in one of them. */
export async function runSeeds(options: RunOptions): Promise<RunResult> {
  const { firstSeed, seeds, timeLimitMs = Number.POSITIVE_INFINITY, sabotage, looksFor = /^/, onProgress } = options;
  const endMs = Date.now() + timeLimitMs;
  let next = firstSeed;
  let worlds = 0;
  const failures: WorldResult[] = [];

  const lane = async (): Promise<void> => {
    const database = await createDatabase();
    try {
      while (failures.length === 0 && next < firstSeed + seeds && Date.now() < endMs) {
        const result = await runWorld(database, next++, sabotage);
        worlds++;
        if (result.faults.some((fault) => looksFor.test(fault))) failures.push(result);
        onProgress?.(worlds);
      }
      if (failures.length === 0) {
        const faults = await faultsOfBooks(database);
        if (faults.length > 0) failures.push({ seed: Number.NaN, faults, trace: [] });
      }
    } finally {
      await database.drop();
    }
  };
  await Promise.all(Array.from({ length: Math.min(LANES, seeds) }, lane));
  failures.sort((a, b) => a.seed - b.seed);
  return { worlds, failed: failures[0] };
}

/** What was wrong in a world, and how it came to it. */
export function reportOf({ seed, faults, trace }: WorldResult): string {
  const left = trace.length - MAX_TRACE_LINES;
  return [
    `Seed ${seed} failed; replay it with: npm run simulate -- --seeds 1 --seed ${seed}`,
    ...faults.map((fault) => `  ✘ ${fault}`),
    ...(left > 0 ? [`  … ${left} steps before these`] : []),
    ...trace.slice(-MAX_TRACE_LINES),
  ].join("\n");
}
