/** The program behind `npm run check`: whether what the database holds agrees with itself. */
import { parseArgs } from "node:util";
import { pino } from "pino";
import { readConfig } from "../config.ts";
import { type Examination, examine, type Verdict } from "../db/invariants.ts";
import { sentenceOf } from "../faults.ts";
import { orderInvariants } from "../orders/check-store.ts";
import { onStopRequest } from "../parent.ts";
import { paymentInvariants } from "../payments/check-store.ts";
import { withDatabase } from "../service-database.ts";
import { accountInvariants } from "../users/check-store.ts";

const PROGRAM = "npm run check";

const USAGE = `Usage: ${PROGRAM}

Checks that what the database holds agrees with itself: stock with its journal, orders with their items, their history
and their payments, accounts with their addresses. It looks at the database of DATABASE_URL or, without it, at the
embedded one in DATA_DIR, whether or not the service runs. It sees one moment, locks nothing and writes nothing.

The exit code is 0 where everything agrees, and 1 where something does not or could not be checked.

  --help    this text
`;

const invariants = [...accountInvariants, ...orderInvariants, ...paymentInvariants];

/** @throws Error for arguments that are wrong. @returns whether help was asked for. */
function wantsHelp(args: readonly string[]): boolean {
  try {
    return parseArgs({ args: [...args], options: { help: { type: "boolean", default: false } } }).values.help;
  } catch (error) {
    throw new Error(`${(error as Error).message}\n\n${USAGE.trimEnd()}`);
  }
}

function report(name: string, { time, rows, verdicts }: Examination): string {
  const holding = verdicts.filter(({ breaches }) => breaches === 0).length;
  const counts = [...rows].map(([table, count]) => `${count.toLocaleString("en")} ${table}`);
  const all = holding === verdicts.length;
  return [
    `Checked ${name}, as of ${time.toISOString()}: ${counts.join(", ")}.`,
    ...verdicts.flatMap(reportVerdict),
    all ? `All ${holding} rules hold.` : `${holding} of ${verdicts.length} rules hold.`,
  ].join("\n");
}

function reportVerdict({ rule, breaches, examples }: Verdict): string[] {
  if (breaches === 0) return [`✔ ${rule}.`];
  const rest = breaches - examples.length;
  return [
    `✘ ${rule}: not so for ${breaches.toLocaleString("en")}.`,
    ...examples.map(({ subject, fault }) => `    ${subject}: ${fault}`),
    ...(rest > 0 ? [`    and ${rest.toLocaleString("en")} more`] : []),
  ];
}

/** @returns the exit code. */
async function main(): Promise<number> {
  // Nothing is written, so nothing is lost by stopping at once.
  onStopRequest(() => process.exit(1));
  if (wantsHelp(process.argv.slice(2))) {
    process.stdout.write(USAGE);
    return 0;
  }
  const config = readConfig();
  // Standard output is for the report.
  const level = config.log.level === "info" ? "warn" : config.log.level;
  const log = pino({ level, base: null }, pino.destination({ fd: 2, sync: true }));
  return withDatabase({ config, log, program: PROGRAM, migrate: false }, async ({ db, name }) => {
    const examination = await examine(db, invariants);
    process.stdout.write(`${report(name, examination)}\n`);
    return examination.verdicts.every(({ breaches }) => breaches === 0) ? 0 : 1;
  });
}

try {
  process.exit(await main());
} catch (error) {
  process.stderr.write(`${sentenceOf(error)}\n`);
  process.exit(1);
}
