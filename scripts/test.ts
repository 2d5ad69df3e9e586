// `npm test`: everything that must hold before a commit, in one command.

import { globSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { onStopRequest } from "../src/parent.ts";
import { shuffled } from "./shuffle.ts";
import { runStep, type Step, type StepResult, stopSteps } from "./step.ts";
import { isTally, type Tally } from "./tally.ts";
import { type Options, parseOptions, UsageError, usage } from "./test-options.ts";

const root = path.dirname(import.meta.dirname);
const staticTimeoutMs = 5 * 60_000;
const mochaTimeoutMs = 45 * 60_000;
const staticLanes = 2;

const check = (title: string, ...command: [string, ...string[]]): Step => ({
  title,
  command,
  timeoutMs: staticTimeoutMs,
});
const staticSteps: readonly Step[] = [
  check("gen/ is what buf generate makes", "node", "scripts/generated.ts"),
  check("buf lint", "buf", "lint"),
  check("buf format", "buf", "format", "--diff", "--exit-code"),
  check("Biome", "biome", "check", "--error-on-warnings", "."),
  check("TypeScript", "tsc", "--noEmit", "-p", "."),
  check("knip", "knip"),
  check("imports keep to the walls", "node", "scripts/imports.ts"),
];

const print = (text: string): void => void process.stdout.write(`${text}\n`);
const seconds = (durationMs: number): string => `${(durationMs / 1_000).toFixed(1)} s`;

function printResult(step: Step, result: StepResult): void {
  print(`${result.passed ? "✔" : "✘"} ${step.title} (${seconds(result.durationMs)})`);
  if (!result.passed) print(result.output.trimEnd().replace(/^/gm, "    "));
}

/** Runs the static steps in their order, two at a time, and gives the titles of those that failed. */
async function runStaticSteps(isStopping: () => boolean): Promise<string[]> {
  const failed: string[] = [];
  const waiting = [...staticSteps];
  const lane = async (): Promise<void> => {
    for (let step = waiting.shift(); step !== undefined && !isStopping(); step = waiting.shift()) {
      const result = await runStep(step);
      if (!isStopping()) printResult(step, result);
      if (!result.passed) failed.push(step.title);
    }
  };
  await Promise.all(Array.from({ length: staticLanes }, lane));
  return failed;
}

/** The test files to hand to Mocha by name; none where its own order and pattern (.mocharc.json) will do. */
function orderedFiles({ files, seed }: Options): readonly string[] {
  if (seed === undefined) return files;
  print(`Test files in the order of --shuffle=${seed}`);
  const patterns =
    files.length > 0
      ? files.map((file) => (file.endsWith(".ts") ? file : `${file}/**/*.test.ts`))
      : ["test/**/*.test.ts"];
  return shuffled(globSync(patterns, { cwd: root }).sort(), seed);
}

/** Runs Mocha; undefined where it ended without counting, which a crash or an unknown option does. */
async function runMocha(options: Options): Promise<{ tally: Tally | undefined; passed: boolean }> {
  const isCi = process.env["CI"] !== undefined && process.env["CI"] !== "false";
  // Mocha colours its output wherever CI is set, also in a file.
  const colour = process.stdout.isTTY ? [] : ["--no-color"];
  const args = [...(isCi ? ["--forbid-only"] : []), ...colour, ...options.mochaArgs, ...orderedFiles(options)];
  print(`Mocha ${args.join(" ")}`.trimEnd());
  const step: Step = { title: "Mocha", command: ["mocha", ...args], timeoutMs: mochaTimeoutMs };
  const { passed, durationMs, messages } = await runStep(step, { live: true });
  print(`${passed ? "✔" : "✘"} Mocha (${seconds(durationMs)})`);
  return { tally: messages.findLast(isTally), passed };
}

/**
 * The last line of a run. A failed static step, or a Mocha that fails for another reason than a failed test, counts
 * as one failure each, so that the line never looks better than the run was.
 */
function summarize(tally: Tally, otherFailures: number): string {
  const counts = [`${tally.passed} passed`, `${tally.failed + otherFailures} failed`];
  if (tally.skipped > 0) counts.push(`${tally.skipped} skipped`);
  return counts.join(", ");
}

async function testAll(options: Options, isStopping: () => boolean): Promise<boolean> {
  const faults = options.runStatic ? await runStaticSteps(isStopping) : [];
  if (isStopping()) return false;
  if (!options.runTests) {
    print(summarize({ passed: staticSteps.length - faults.length, failed: 0, skipped: 0 }, faults.length));
    return faults.length === 0;
  }
  const { tally = { passed: 0, failed: 0, skipped: 0 }, passed } = await runMocha(options);
  if (tally.passed + tally.failed === 0) faults.push("no test ran");
  else if (!passed && tally.failed === 0) faults.push("Mocha itself");
  if (faults.length > 0) print(`Failed besides the tests: ${faults.join("; ")}`);
  print(summarize(tally, faults.length));
  return faults.length === 0 && tally.failed === 0;
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  if (options.help) return print(usage.trimEnd());
  let stopping = false;
  onStopRequest((reason) => {
    stopping = true;
    print(`Stopping (${reason}).`);
    stopSteps();
  });
  const passed = await testAll(options, () => stopping);
  process.exitCode = passed ? 0 : 1;
}

try {
  await main();
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 2;
}
