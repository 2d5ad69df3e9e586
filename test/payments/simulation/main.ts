/** `npm run simulate`: payments in many small worlds full of faults, each of which its seed replays. */
import { parseArgs } from "node:util";
import { mochaGlobalSetup, mochaGlobalTeardown } from "../../support/global.ts";
import { reportOf, runSeeds } from "./run.ts";

const usage = `npm run simulate -- [--seeds N] [--seed S] [--trace]

Runs payments through N worlds (default 2000), of the seeds S (default 1), S + 1, … Each seed decides the interleaving of
clients, sweeps and webhooks, what the gateways lose, delay and repeat, and where processes die. The first world in which
a rule was broken is printed step by step, and the exit code is 1.

`;
const PROGRESS_WORLDS = 500;

function whole(text: string, name: string): number {
  const number = Number(text);
  if (!/^\d{1,9}$/.test(text)) throw new Error(`--${name} takes a whole number, not "${text}".`);
  return number;
}

async function main(): Promise<boolean> {
  const { values } = parseArgs({
    options: {
      seeds: { type: "string", default: "2000" },
      seed: { type: "string", default: "1" },
      help: { type: "boolean", default: false },
    },
  });
  const print = (line: string) => process.stdout.write(`${line}\n`);
  if (values.help) {
    print(usage.trimEnd());
    return true;
  }
  const seeds = whole(values.seeds, "seeds");
  const firstSeed = whole(values.seed, "seed");
  await mochaGlobalSetup();
  try {
    const startMs = Date.now();
    const onProgress = (worlds: number) => void (worlds % PROGRESS_WORLDS === 0 && print(`${worlds} worlds`));
    const { worlds, failed } = await runSeeds({ firstSeed, seeds, onProgress });
    if (failed !== undefined) print(reportOf(failed));
    const seconds = ((Date.now() - startMs) / 1_000).toFixed(1);
    print(
      `${worlds} worlds in ${seconds} s: ${failed === undefined ? "every rule held" : `seed ${failed.seed} failed`}`,
    );
    return failed === undefined;
  } finally {
    await mochaGlobalTeardown();
  }
}

try {
  process.exitCode = (await main()) ? 0 : 1;
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 2;
}
