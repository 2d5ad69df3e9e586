import { Database } from "../src/db/database.ts";
import { examine } from "../src/db/invariants.ts";
import { orderInvariants } from "../src/orders/check-store.ts";
import { type Figures, latencyOf, rateOf, rowOf } from "./harness/figures.ts";
import type { Samples } from "./harness/load.ts";
import { findPgbench, runPgbench } from "./harness/pgbench.ts";
import { print, publish, type Row } from "./harness/report.ts";
import { describeRun, loadBefore, type Stage } from "./harness/stage.ts";
import { interleaved } from "./harness/stats.ts";
import { ORDERS, ordersOfBuyers, PRODUCTS, type ProductRange, pgbenchVariables } from "./orders-data.ts";
import type { OrderTasks } from "./orders-load.ts";
import { openStage } from "./orders-stage.ts";

const CLIENTS = [1, 32, 64, 256] as const;
const READ_CLIENTS = 32;
/** `BENCH_ROUNDS=1` is for a quick look. */
const ROUNDS = Number(process.env["BENCH_ROUNDS"] ?? 5);
const ROUND_MS = 3_000;
const WARM_UP_MS = 15_000;
const KNOWN_ORDERS = 100;
const DAY_S = 86_400;

/** Of which products the second one of each order is. */
const PICKS = {
  "random products": { from: 333, to: 666 },
  "one hot product": { from: 500, to: 500 },
} as const satisfies Record<string, ProductRange>;
type Pick = keyof typeof PICKS;

const CLASSIC = "pgbench, ten statements";
const SINGLE = "pgbench, one statement";
const SERVICE = "CreateOrder";

/** One comparison: the rounds of each way to place an order. */
interface Cell {
  readonly pick: Pick;
  readonly clients: number;
  readonly figures: ReadonlyMap<string, readonly Figures[]>;
}

/** The figures of orders: the service against pgbench on the same PostgreSQL, and what reading takes. */
export async function orders(): Promise<void> {
  const pgbench = await findPgbench();
  const before = loadBefore();
  say("a database to be filled");
  await using stage = await openStage();
  const run = print({
    title: "The run",
    rows: [await describeRun(stage, pgbench, { before, rounds: ROUNDS, roundMs: ROUND_MS })],
  });
  await warmUp(stage);
  const cells: Cell[] = [];
  for (const clients of CLIENTS) {
    for (const pick of Object.keys(PICKS) as Pick[]) cells.push(await compare(stage, pgbench, pick, clients));
  }
  const history = `${ORDERS.toLocaleString("en")} orders and ${PRODUCTS.toLocaleString("en")} products`;
  const placing = print({ title: `Orders of 3 lines, at ${history}`, rows: cells.flatMap(rowsOf) });
  const goals = print({ title: "CreateOrder against pgbench: goals", rows: goalsOf(cells) });
  const reading = print({ title: `Reading, ${READ_CLIENTS} clients`, rows: await read(stage) });
  await check(stage);
  const names = [SERVICE, SINGLE, CLASSIC];
  publish({
    bench: "orders",
    tables: [run, placing, goals, reading],
    chart: {
      title: "Orders placed",
      unit: "orders/s",
      groups: cells.map(({ pick, clients, figures }) => ({
        label: `${clients} × ${pick}`,
        bars: Object.fromEntries(names.map((name) => [name, rateOf(figures.get(name))])),
      })),
    },
  });
}

/** So that code is compiled and tables are in memory before the first round. */
async function warmUp({ load, logIn }: Stage): Promise<void> {
  await logIn();
  const options = { second: PICKS["random products"], clients: READ_CLIENTS, durationMs: WARM_UP_MS };
  await load.run<OrderTasks, "createOrder">("createOrder", options);
}

async function compare(stage: Stage, pgbench: string, pick: Pick, clients: number): Promise<Cell> {
  say(`${clients} clients, ${pick}`);
  const second = PICKS[pick];
  const variables = pgbenchVariables(second);
  const byPgbench = (script: string) => () =>
    stage.measure(() => runPgbench(pgbench, stage.databaseUrl, { script, clients, durationMs: ROUND_MS, variables }));
  const byService = async () => {
    await stage.logIn();
    return stage.measure(() =>
      stage.load.run<OrderTasks, "createOrder">("createOrder", { second, clients, durationMs: ROUND_MS }),
    );
  };
  const figures = await interleaved<Figures>(
    [
      { name: CLASSIC, run: byPgbench("classic.sql") },
      { name: SINGLE, run: byPgbench("single.sql") },
      { name: SERVICE, run: byService },
    ],
    ROUNDS,
  );
  return { pick, clients, figures };
}

function rowsOf({ pick, clients, figures }: Cell): Row[] {
  return [...figures].map(([way, rounds]) => ({ clients, products: pick, "placed by": way, ...rowOf(rounds) }));
}

function goalsOf(cells: readonly Cell[]): Row[] {
  return cells.flatMap(({ pick, clients, figures }) => {
    const latency = (name: string) => latencyOf(figures.get(name), 0.5);
    const times = (name: string) => rateOf(figures.get(SERVICE)) / rateOf(figures.get(name));
    const row = (what: string, found: number, goal: string, met: boolean): Row => ({
      clients,
      products: pick,
      what,
      found,
      goal,
      met: met ? "yes" : "no",
    });
    if (clients === 1) {
      const slower = latency(SERVICE) - latency(CLASSIC);
      return [row(`p50, ms above ${CLASSIC}`, slower, "at most 2", slower <= 2)];
    }
    const [classic, single] = [times(CLASSIC), times(SINGLE)];
    return pick === "one hot product"
      ? [row(`times ${CLASSIC}`, classic, "at least 4", classic >= 4)]
      : [
          row(`times ${CLASSIC}`, classic, "at least 2", classic >= 2),
          row(`times ${SINGLE}`, single, "at least 1.2", single >= 1.2),
        ];
  });
}

async function read(stage: Stage): Promise<Row[]> {
  say("reads");
  const orderIds = await ordersOfBuyers(stage.sql, KNOWN_ORDERS);
  const load = { clients: READ_CLIENTS, durationMs: ROUND_MS };
  const toS = Math.floor(Date.now() / 1000) - 30 * DAY_S;
  const day = { fromS: toS - DAY_S, toS };
  const { load: calls, measure } = stage;
  const variant = (name: string, run: () => Promise<Samples>) => ({
    name,
    run: async () => {
      await stage.logIn();
      return measure(run);
    },
  });
  const figures = await interleaved<Figures>(
    [
      variant("GetOrder", () => calls.run<OrderTasks, "getOrder">("getOrder", { ...load, orderIds })),
      variant("ListOrders, own, 20 a page", () => calls.run<OrderTasks, "listOrders">("listOrders", load)),
      variant("GetOrderStats, one day", () =>
        calls.run<OrderTasks, "getOrderStats">("getOrderStats", { ...load, ...day }),
      ),
    ],
    ROUNDS,
  );
  return [...figures].map(([call, rounds]) => {
    const { "commits per call": _none, ...row } = rowOf(rounds);
    return { call, ...row };
  });
}

/**
 * Whether all that was placed agrees with itself: stock with its journal, orders with their items.
 * @throws Error with what does not: no figure is worth anything then.
 */
async function check({ databaseUrl }: Stage): Promise<void> {
  say("whether stock agrees with its journal");
  const db = new Database({ url: databaseUrl, poolMax: 1, prepared: true });
  try {
    const { verdicts } = await examine(db, orderInvariants);
    const broken = verdicts.filter(({ breaches }) => breaches > 0);
    if (broken.length > 0) throw new Error(`After the run: ${JSON.stringify(broken, undefined, 2)}`);
    process.stdout.write(`\nAfter the run ${verdicts.length} rules of orders and stock were checked, and hold.\n`);
  } finally {
    await db.close();
  }
}

function say(what: string): void {
  process.stderr.write(`measuring ${what} …\n`);
}
