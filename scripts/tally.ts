// Mocha loads this file (.mocharc.json) and so tells `npm test` its counts, whatever reporter is chosen.

import process from "node:process";

/** How many tests a run of Mocha executed, by outcome. */
export interface Tally {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

/** Mocha gives its runner as `this` to the fixtures. */
interface FixtureContext {
  readonly stats?: { readonly passes: number; readonly failures: number; readonly pending: number };
}

export function isTally(message: unknown): message is Tally {
  return typeof message === "object" && message !== null && "passed" in message && "failed" in message;
}

/** Runs once, in Mocha's main process, after the last test. */
export async function mochaGlobalTeardown(this: FixtureContext): Promise<void> {
  const { passes = 0, failures = 0, pending = 0 } = this.stats ?? {};
  const tally: Tally = { passed: passes, failed: failures, skipped: pending };
  if (process.send === undefined) return;
  await new Promise<void>((resolve) => process.send?.(tally, () => resolve()));
}
