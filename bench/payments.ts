import { Database } from "../src/db/database.ts";
import { examine } from "../src/db/invariants.ts";
import { orderInvariants } from "../src/orders/check-store.ts";
import { paymentInvariants } from "../src/payments/check-store.ts";
import { type Figures, perCall, rateOf, rowOf } from "./harness/figures.ts";
import type { Samples } from "./harness/load.ts";
import { findPgbench, runPgbench } from "./harness/pgbench.ts";
import { print, publish, type Row } from "./harness/report.ts";
import { describeRun, loadBefore, type Stage } from "./harness/stage.ts";
import { interleaved, median, type Variant } from "./harness/stats.ts";
import { BUYERS } from "./orders-data.ts";
import { openStage } from "./orders-stage.ts";
import {
  COUNTING,
  chargesInOurBooks,
  countPgbenchTrips,
  countServiceTrips,
  findUnpaidOrders,
  finishPgbenchPayments,
  prepareCounting,
  runInvariants,
  type Trips,
  untilJobsAreDone,
} from "./payments-data.ts";
import { BenchGateway, type GatewayCharge } from "./payments-gateway.ts";
import type { PaymentTasks } from "./payments-load.ts";

const CLIENTS = [1, 32, 256] as const;
const ORDER_CLIENTS = 32;
/** Waits of the gateway before it answers. */
const LATENCIES_MS = [0, 50] as const;
/** `BENCH_ROUNDS=1` is for a quick look. */
const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 5);
const ROUND_MS = 3_000;
const WARM_UP_MS = 3_000;
/** More than a round can pay. */
const ORDERS_PER_ROUND = 15_000;

const PGBENCH_WAYS = {
  "pgbench, classic": { script: "payment-classic.sql", inBlocks: true },
  "pgbench, functions": { script: "payment-functions.sql", inBlocks: false },
} as const;
type PgbenchWay = keyof typeof PGBENCH_WAYS;
const PGBENCH_NAMES = Object.keys(PGBENCH_WAYS) as PgbenchWay[];
const serviceAt = (latencyMs: number) => `ProcessPayment, ${latencyMs} ms`;

interface PaymentFigures extends Figures {
  readonly trips: Trips;
  /** How long after the last payment the last of their jobs was done; NaN where nobody does them. */
  readonly jobsMs: number;
}

/** One comparison: the rounds of each way to take a payment. */
interface Cell {
  readonly clients: number;
  readonly figures: ReadonlyMap<string, readonly PaymentFigures[]>;
}

/** A stage with a gateway. */
interface Scene {
  readonly stage: Stage;
  readonly gateway: BenchGateway;
  readonly pgbench: string;
  /** For pgbench. */
  readonly databaseUrl: string;
}

/** The figures of payments: the service, with a gateway that answers at once or later, against pgbench without one. */
export async function payments(): Promise<void> {
  const pgbench = await findPgbench();
  const before = loadBefore();
  say("a database to be filled");
  await using gateway = await BenchGateway.open();
  await using stage = await openStage({
    load: "payments-load.ts",
    postgres: COUNTING,
    // Without a backup nobody else takes what the gateway could not.
    service: { SANDBOX_PORT: String(gateway.port), PAYMENT_GATEWAY_BACKUP: "none" },
  });
  const scene = { stage, gateway, pgbench, databaseUrl: await prepareCounting(stage.sql, stage.databaseUrl) };
  const run = print({
    title: "The run",
    rows: [await describeRun(scene.stage, scene.pgbench, { before, rounds: ROUNDS, roundMs: ROUND_MS })],
  });
  await warmUp(scene);
  const cells: Cell[] = [];
  for (const clients of CLIENTS) cells.push(await compare(scene, clients));
  const taking = print({ title: "Payments without an order", rows: cells.flatMap(rowsOf) });
  const paying = print({ title: "Payments of orders", rows: rowsOf(await payOrders(scene)) });
  const goals = print({ title: "ProcessPayment: goals", rows: cells.flatMap(goalsOf) });
  await check(scene);
  publish({
    bench: "payments",
    tables: [run, taking, paying, goals],
    chart: {
      title: "Payments taken",
      unit: "payments/s",
      groups: cells.map(({ clients, figures }) => ({
        label: `${clients} client${clients === 1 ? "" : "s"}`,
        bars: Object.fromEntries([...figures].map(([way, rounds]) => [way, rateOf(rounds)])),
      })),
    },
  });
}

/** So that code is compiled and tables are in memory before the first round. */
async function warmUp({ stage, gateway }: Scene): Promise<void> {
  await stage.logIn();
  await gateway.answerAfter(0);
  const options = { clients: ORDER_CLIENTS, durationMs: WARM_UP_MS };
  await stage.load.run<PaymentTasks, "processPayment">("processPayment", options);
  await untilJobsAreDone(stage.sql);
}

async function compare(scene: Scene, clients: number): Promise<Cell> {
  say(`${clients} clients`);
  const load = { clients, durationMs: ROUND_MS };
  const pay = () => scene.stage.load.run<PaymentTasks, "processPayment">("processPayment", load);
  const variants: Variant<PaymentFigures>[] = [
    ...PGBENCH_NAMES.map((way) => ({ name: way, run: () => measurePgbench(scene, way, clients) })),
    ...LATENCIES_MS.map((latencyMs) => ({
      name: serviceAt(latencyMs),
      run: () => measureService(scene, latencyMs, pay),
    })),
  ];
  return { clients, figures: await interleaved(variants, ROUNDS) };
}

async function payOrders(scene: Scene): Promise<Cell> {
  say("payments of orders");
  const { sql, load } = scene.stage;
  const run = async () => {
    const orders = await findUnpaidOrders(sql, ORDERS_PER_ROUND);
    const options = { orders, clients: ORDER_CLIENTS, durationMs: ROUND_MS };
    return measureService(scene, 0, () => load.run<PaymentTasks, "payOrders">("payOrders", options));
  };
  return { clients: ORDER_CLIENTS, figures: await interleaved([{ name: serviceAt(0), run }], ROUNDS) };
}

/**
 * What the service takes until the last job of the payments is done; only the payments themselves have a time and a rate.
 * @throws Error when a payment was not completed: figures of refusals say nothing.
 */
async function measureService(
  { stage, gateway }: Scene,
  latencyMs: number,
  run: () => Promise<Samples>,
): Promise<PaymentFigures> {
  await stage.logIn();
  await gateway.answerAfter(latencyMs);
  const tripsSince = await countServiceTrips(stage.sql);
  let jobsMs = Number.NaN;
  const figures = await stage.measure(async () => {
    const samples = await run();
    const paidAt = performance.now();
    await untilJobsAreDone(stage.sql);
    jobsMs = performance.now() - paidAt;
    return samples;
  });
  const { ok: _completed, ...others } = figures.samples.outcomes;
  if (Object.keys(others).length > 0) throw new Error(`Not every payment was completed: ${JSON.stringify(others)}`);
  return { ...figures, trips: await tripsSince(), jobsMs };
}

/** What pgbench takes alone: it enqueues the same jobs, and no worker does them. */
async function measurePgbench({ stage, pgbench, databaseUrl }: Scene, way: PgbenchWay, clients: number) {
  return stage.service.pausedWhile(async (): Promise<PaymentFigures> => {
    const { script, inBlocks } = PGBENCH_WAYS[way];
    const options = { script, clients, durationMs: ROUND_MS, variables: { buyers: BUYERS } };
    const tripsSince = await countPgbenchTrips(stage.sql, inBlocks);
    const figures = await stage.measure(() => runPgbench(pgbench, databaseUrl, options));
    const trips = await tripsSince(figures.commits);
    await finishPgbenchPayments(stage.sql);
    return { ...figures, trips, jobsMs: Number.NaN };
  });
}

function rowsOf({ clients, figures }: Cell): Row[] {
  return [...figures].map(([way, rounds]) => {
    const { "commits per call": withJobs = Number.NaN, failed = 0, ...row } = rowOf(rounds);
    return {
      clients,
      "taken by": way,
      ...row,
      "round trips": perCall(rounds, ({ trips }) => trips.statements),
      commits: perCall(rounds, ({ trips }) => trips.commits),
      "commits with jobs": way in PGBENCH_WAYS ? "-" : withJobs,
      "jobs done after s": way in PGBENCH_WAYS ? "-" : median(rounds.map(({ jobsMs }) => jobsMs)) / 1000,
      failed,
    };
  });
}

function goalsOf({ clients, figures }: Cell): Row[] {
  if (clients === 1) return [];
  return LATENCIES_MS.map((latencyMs) => {
    const commits = perCall(figures.get(serviceAt(latencyMs)) ?? [], ({ trips }) => trips.commits);
    const met = commits < 1 ? "yes" : "no";
    return { clients, gateway: `${latencyMs} ms`, what: "commits per payment", found: commits, goal: "below 1", met };
  });
}

/**
 * Whether all that was taken agrees with itself and with the gateway.
 * @throws Error with what does not: no figure is worth anything then.
 */
async function check({ stage, gateway }: Scene): Promise<void> {
  say("whether the books agree");
  const db = new Database({ url: stage.databaseUrl, poolMax: 1, prepared: true });
  try {
    const { verdicts } = await examine(db, [...orderInvariants, ...paymentInvariants, ...runInvariants]);
    const broken = verdicts.filter(({ remark, breaches }) => !remark && breaches > 0);
    if (broken.length > 0) throw new Error(`After the run: ${JSON.stringify(broken, undefined, 2)}`);
    const charges = compareBooks(await chargesInOurBooks(stage.sql), await gateway.charges());
    process.stdout.write(
      `\nAfter the run ${verdicts.length} rules of orders, payments and the ledger were checked, and hold; the gateway has the same ${charges} charges.\n`,
    );
  } finally {
    await db.close();
  }
}

/** How many charges there are. @throws Error where the gateway's are not exactly ours. */
function compareBooks(ours: ReadonlyMap<string, number>, theirs: readonly GatewayCharge[]): number {
  const other = theirs.find(({ reference, captured_minor: minor }) => ours.get(reference) !== minor);
  if (other !== undefined) throw new Error(`The gateway has a charge that we have not: ${JSON.stringify(other)}`);
  if (theirs.length !== ours.size) throw new Error(`We have ${ours.size} charges, the gateway has ${theirs.length}.`);
  return ours.size;
}

function say(what: string): void {
  process.stderr.write(`measuring ${what} …\n`);
}
