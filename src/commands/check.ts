/** The program behind `npm run check`: whether what the database holds agrees with itself and with the gateways. */
import { parseArgs } from "node:util";
import { type Logger, pino } from "pino";
import { type Config, readConfig } from "../config.ts";
import type { Database } from "../db/database.ts";
import { type Examination, examine, type Verdict } from "../db/invariants.ts";
import { sentenceOf } from "../faults.ts";
import { orderInvariants } from "../orders/check-store.ts";
import { onStopRequest } from "../parent.ts";
import { paymentInvariants } from "../payments/check-store.ts";
import { checkGateways, type Difference, type GatewayTally } from "../payments/gateway-check.ts";
import { GatewayCheckStore } from "../payments/gateway-check-store.ts";
import { consultGateways } from "../payments/gateways/open-gateways.ts";
import { withDatabase } from "../service-database.ts";
import { accountInvariants } from "../users/check-store.ts";

const PROGRAM = "npm run check";
const DEFAULT_DAYS = 30;
const DAY_MS = 24 * 60 * 60_000;
const PROGRESS_INTERVAL_MS = 5_000;

const AGREES = 0;
const DISAGREES = 1;
const UNANSWERED = 2;

const USAGE = `Usage: ${PROGRAM} [-- options]

Checks that what the database holds agrees with itself: stock with its journal, orders with their items, their history
and their payments, payments with their charges, refunds, points and the ledger, accounts with their addresses. It
looks at the database of DATABASE_URL or, without it, at the embedded one in DATA_DIR, whether or not the service runs.
It sees one moment, locks nothing and writes nothing.

Then it asks the gateways of the settings about every charge and refund that moved since a day, and about all whose end
is not known, and compares. It only asks; no money moves. What differs is printed a line each.

  --since <date>    the first day of what the gateways are asked about, YYYY-MM-DD in UTC; default ${DEFAULT_DAYS} days ago
  --no-gateways     the database only
  --help            this text

The exit code is 0 where everything agrees; 1 where something does not, or could not be checked; 2 where nothing is
known to be wrong, but a gateway did not answer every question or is not in the settings any more.
`;

const invariants = [...accountInvariants, ...orderInvariants, ...paymentInvariants];

interface Options {
  readonly since: Date;
  readonly gateways: boolean;
}

/** @throws Error for arguments that are wrong. @returns undefined where help was asked for. */
function parseOptions(args: readonly string[]): Options | undefined {
  try {
    const { values } = parseArgs({
      args: [...args],
      options: {
        since: { type: "string" },
        "no-gateways": { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) return undefined;
    return { since: firstDay(values.since), gateways: !values["no-gateways"] };
  } catch (error) {
    throw new Error(`${(error as Error).message}\n\n${USAGE.trimEnd()}`);
  }
}

function firstDay(text: string | undefined): Date {
  if (text === undefined) return new Date(Math.floor(Date.now() / DAY_MS - DEFAULT_DAYS) * DAY_MS);
  const day = new Date(`${text}T00:00:00.000Z`);
  // A day that a month does not have becomes one of the next.
  const isDay = /^\d{4}-\d\d-\d\d$/.test(text) && !Number.isNaN(day.getTime()) && dayOf(day) === text;
  if (!isDay) throw new Error(`--since: "${text}" is not a day like 2026-01-31`);
  if (day.getTime() > Date.now()) throw new Error(`--since: ${text} has not begun yet`);
  return day;
}

function dayOf(time: Date): string {
  return time.toISOString().slice(0, 10);
}

function report(name: string, { time, rows, verdicts }: Examination): string {
  const rules = verdicts.filter(({ remark }) => !remark);
  const holding = rules.filter(({ breaches }) => breaches === 0).length;
  const counts = [...rows].map(([table, count]) => `${count.toLocaleString("en")} ${table.replaceAll("_", " ")}`);
  const all = holding === rules.length;
  return [
    `Checked ${name}, as of ${time.toISOString()}: ${counts.join(", ")}.`,
    ...verdicts.flatMap(reportVerdict),
    all ? `All ${holding} rules hold.` : `${holding} of ${rules.length} rules hold.`,
  ].join("\n");
}

function reportVerdict({ rule, remark, breaches, examples }: Verdict): string[] {
  if (breaches === 0) return remark ? [] : [`✔ ${rule}.`];
  const count = breaches.toLocaleString("en");
  const rest = breaches - examples.length;
  return [
    remark ? `• ${rule}: ${count}.` : `✘ ${rule}: not so for ${count}.`,
    ...examples.map(({ subject, fault }) => `    ${subject}: ${fault}`),
    ...(rest > 0 ? [`    and ${rest.toLocaleString("en")} more`] : []),
  ];
}

function reportDifference({ underWay, paymentId, movement, gateway, books, gatewaySays }: Difference): string {
  const still = underWay ? " (the service has yet to learn of it)" : "";
  return `${underWay ? "•" : "✘"} payment ${paymentId}: ${movement} at ${gateway}: our books say ${books}; the gateway says ${gatewaySays}${still}.`;
}

function reportTally({ gateway, agreeing, disagreeing, underWay, unanswered, why }: GatewayTally): string[] {
  const count = (number: number, what: string) => (number === 0 ? [] : [`${number.toLocaleString("en")} ${what}`]);
  const answered = [
    ...count(agreeing, "agree"),
    ...count(disagreeing, "disagree"),
    ...count(underWay, "under way"),
  ].join(", ");
  return [
    ...(answered === "" ? [] : [`${disagreeing > 0 ? "✘" : "✔"} Charges and refunds by ${gateway}: ${answered}.`]),
    ...(unanswered === 0 ? [] : [`? ${gateway} did not answer for ${unanswered.toLocaleString("en")}: ${why}`]),
  ];
}

/** @returns the exit code, of this part of the check. */
async function compareWithGateways(db: Database, config: Config, log: Logger, since: Date): Promise<number> {
  const store = new GatewayCheckStore(db);
  const range = { since, until: new Date() };
  const total = await store.count(range);
  print(
    `Charges and refunds since ${dayOf(since)} or under way, for gateways to tell of: ${total.toLocaleString("en")}.`,
  );
  if (total === 0) return AGREES;
  const { gateways, close } = await consultGateways({ config, log });
  try {
    const tallies = await checkGateways(
      { store, gateways, now: () => new Date() },
      { ...range, tell: (difference) => print(reportDifference(difference)), progress: progressOf(total) },
    );
    for (const tally of tallies) for (const line of reportTally(tally)) print(line);
    if (tallies.some(({ disagreeing }) => disagreeing > 0)) return DISAGREES;
    return tallies.some(({ unanswered }) => unanswered > 0) ? UNANSWERED : AGREES;
  } finally {
    await close();
  }
}

/** Standard error learns now and then how far it has come; standard output is for the report. */
function progressOf(total: number): (done: number) => void {
  let lastMs = performance.now();
  return (done) => {
    if (performance.now() - lastMs < PROGRESS_INTERVAL_MS) return;
    lastMs = performance.now();
    process.stderr.write(`Asked about ${done.toLocaleString("en")} of ${total.toLocaleString("en")}\n`);
  };
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** @returns the exit code. */
async function main(): Promise<number> {
  // Nothing is written, so nothing is lost by stopping at once.
  onStopRequest(() => process.exit(DISAGREES));
  const options = parseOptions(process.argv.slice(2));
  if (options === undefined) {
    process.stdout.write(USAGE);
    return AGREES;
  }
  const config = readConfig();
  // Standard output is for the report.
  const level = config.log.level === "info" ? "warn" : config.log.level;
  const log = pino({ level, base: null }, pino.destination({ fd: 2, sync: true }));
  return withDatabase({ config, log, program: PROGRAM, migrate: false }, async ({ db, name }) => {
    const examination = await examine(db, invariants);
    print(report(name, examination));
    const holds = examination.verdicts.every(({ remark, breaches }) => remark || breaches === 0);
    const answer = options.gateways ? await compareWithGateways(db, config, log, options.since) : AGREES;
    return holds ? answer : DISAGREES;
  });
}

try {
  process.exit(await main());
} catch (error) {
  process.stderr.write(`${sentenceOf(error)}\n`);
  process.exit(DISAGREES);
}
