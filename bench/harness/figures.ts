import type { Samples } from "./load.ts";
import type { Row } from "./report.ts";
import { median, quantile } from "./stats.ts";

/** One measurement: how the calls went, and what they took. */
export interface Figures {
  readonly samples: Samples;
  readonly serviceCpuMs: number;
  readonly databaseCpuMs: number;
  /** Of whoever made the calls: the load process, or pgbench. */
  readonly callersCpuMs: number;
  /** Transactions that wrote. */
  readonly commits: number;
}

/** The rounds of one thing as a row of a table. */
export function rowOf(rounds: readonly Figures[]): Row {
  return {
    "median/s": rateOf(rounds),
    "least/s": Math.min(...rounds.map(({ samples }) => perSecond(samples))),
    "most/s": Math.max(...rounds.map(({ samples }) => perSecond(samples))),
    "p50 ms": latencyOf(rounds, 0.5),
    "p99 ms": latencyOf(rounds, 0.99),
    "node CPU ms": perCall(rounds, ({ serviceCpuMs }) => serviceCpuMs),
    "PostgreSQL CPU ms": perCall(rounds, ({ databaseCpuMs }) => databaseCpuMs),
    "callers' CPU ms": perCall(rounds, ({ callersCpuMs }) => callersCpuMs),
    "commits per call": perCall(rounds, ({ commits }) => commits),
    failed: rounds.reduce((sum, { samples }) => sum + failuresOf(samples), 0),
  };
}

/** How much of something each call took: the median of the rounds. */
export function perCall<Round extends Figures>(rounds: readonly Round[], of: (round: Round) => number): number {
  return median(rounds.map((round) => of(round) / round.samples.latenciesMs.length));
}

/** Calls a second: the median of the rounds. */
export function rateOf(rounds: readonly Figures[] = []): number {
  return median(rounds.map(({ samples }) => perSecond(samples)));
}

/** The time below which the share `q` of the calls was answered, milliseconds: the median of the rounds. */
export function latencyOf(rounds: readonly Figures[] = [], q: number): number {
  return median(rounds.map(({ samples }) => quantile(samples.latenciesMs, q)));
}

/** Calls that were not answered as they should be. */
function failuresOf({ outcomes }: Samples): number {
  return Object.entries(outcomes).reduce((sum, [outcome, count]) => sum + (outcome === "ok" ? 0 : count), 0);
}

function perSecond({ latenciesMs, elapsedMs }: Samples): number {
  return (latenciesMs.length / elapsedMs) * 1000;
}
