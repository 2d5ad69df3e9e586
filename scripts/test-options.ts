import { maxSeed } from "./shuffle.ts";

export const usage = `npm test -- [options] [test files] [Mocha's options]

Runs the static checks (generated code, buf, Biome, TypeScript, knip, import walls), then every test with Mocha.
Where test files or --grep are named, the static checks are left out: such a run vouches for a part only.

  --only-tests        leave the static checks out
  --only-static       leave the tests out
  --shuffle[=seed]    run the test files in random order; the seed is printed and replays the order
  --no-parallel       run the test files one after another in one process (default: two at a time)
  --help              this text

Everything else goes to Mocha:  npm test -- test/money.test.ts    npm test -- --grep "refund" --bail
TEST_DATABASE=embedded|container|url chooses the PostgreSQL that the tests run on.
`;

const patternFlag = /^(--grep|--fgrep|-g|-f)(=|$)/;

/** What a run of `npm test` was asked to do. */
export interface Options {
  readonly help: boolean;
  readonly runStatic: boolean;
  readonly runTests: boolean;
  readonly seed: number | undefined;
  readonly files: readonly string[];
  readonly mochaArgs: readonly string[];
}

/** Options that make no sense; the message says which. */
export class UsageError extends Error {}

function parseSeed(flag: string): number {
  const [, text] = flag.split("=", 2);
  if (text === undefined) return Math.floor(Math.random() * (maxSeed + 1));
  const seed = Number(text);
  if (!/^\d+$/.test(text) || seed > maxSeed)
    throw new UsageError(`--shuffle takes a whole number up to ${maxSeed}, not "${text}".`);
  return seed;
}

/**
 * Reads the arguments of `npm test`.
 *
 * @throws UsageError for a seed that is none
 */
export function parseOptions(args: readonly string[]): Options {
  const own = new Set(["--only-tests", "--only-static", "--help"]);
  const shuffle = args.findLast((arg) => arg === "--shuffle" || arg.startsWith("--shuffle="));
  const files = args.filter(
    (arg, index) => /^(\.\/)?test\/|\.test\.ts$/.test(arg) && !patternFlag.test(args[index - 1] ?? ""),
  );
  const mochaArgs = args.filter((arg) => !own.has(arg) && !arg.startsWith("--shuffle") && !files.includes(arg));
  const isPartial = files.length > 0 || mochaArgs.some((arg) => patternFlag.test(arg));
  return {
    help: args.includes("--help"),
    runStatic: !args.includes("--only-tests") && !isPartial,
    runTests: !args.includes("--only-static"),
    seed: shuffle === undefined ? undefined : parseSeed(shuffle),
    files,
    mochaArgs,
  };
}
