import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "pg";
import { pino } from "pino";
import { startEmbedded } from "../src/db/embedded.ts";
import type { AccountTasks } from "./accounts-load.ts";
import { cpuOf, cpuOfFamily } from "./harness/cpu.ts";
import type { Samples } from "./harness/load.ts";
import { LoadProcess, startServer } from "./harness/processes.ts";
import { ADMIN_EMAIL, BUYERS, fill } from "./orders-data.ts";
import type { OrderTasks } from "./orders-load.ts";

/** Enough connections for the most clients of pgbench, and no checkpoint in the middle of a round. */
const POSTGRES_SETTINGS = { max_connections: "320", max_wal_size: "4GB", checkpoint_timeout: "30min" };
/** Well before access tokens expire. */
const LOGIN_INTERVAL_MS = 5 * 60_000;

/** One measurement: how the calls went, and what they took. */
export interface Figures {
  readonly samples: Samples;
  readonly serviceCpuMs: number;
  readonly databaseCpuMs: number;
  /** Transactions that wrote. */
  readonly commits: number;
}

/** A filled PostgreSQL, the service on it, and a process that calls it. */
export interface Stage extends AsyncDisposable {
  readonly databaseUrl: string;
  /** A connection of a superuser. */
  readonly sql: Client;
  readonly load: LoadProcess;
  /** Sees to it that the load's tokens are good for a while. */
  logIn(): Promise<void>;
  /** Runs a load and measures what it takes meanwhile. */
  measure(run: () => Promise<Samples>): Promise<Figures>;
}

export async function openStage(): Promise<Stage> {
  await using opened = new AsyncDisposableStack();
  const dataDir = await mkdtemp(join(tmpdir(), "tradepost-bench-"));
  opened.defer(() => rm(dataDir, { recursive: true, force: true }));
  const log = pino({ level: "silent" });
  const postgres = await startEmbedded({ dataDir, log, settings: POSTGRES_SETTINGS });
  opened.defer(() => postgres.stop());
  const server = opened.use(await startServer({ DATABASE_URL: postgres.url }));
  const sql = new Client({ connectionString: postgres.url });
  await sql.connect();
  opened.defer(() => sql.end());
  await registerOne(server.url);
  await fill(sql);

  const load = opened.use(new LoadProcess("orders-load.ts"));
  let loggedInAt = Number.NEGATIVE_INFINITY;
  const logIn = async () => {
    if (performance.now() - loggedInAt < LOGIN_INTERVAL_MS) return;
    await load.run<OrderTasks, "logIn">("logIn", { url: server.url, buyers: BUYERS, admin: ADMIN_EMAIL });
    loggedInAt = performance.now();
  };
  const postmaster = await postmasterPid(sql);
  const meters = async () => ({
    service: cpuOf(server.pid),
    database: cpuOfFamily(postmaster),
    commits: await writingTransactions(sql),
  });
  const measure = async (run: () => Promise<Samples>): Promise<Figures> => {
    const before = await meters();
    const samples = await run();
    const after = await meters();
    return {
      samples,
      serviceCpuMs: after.service - before.service,
      databaseCpuMs: after.database - before.database,
      commits: after.commits - before.commits,
    };
  };
  const resources = opened.move();
  return {
    databaseUrl: postgres.url,
    sql,
    load,
    logIn,
    measure,
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  };
}

/** An account with a password that the service has hashed. */
async function registerOne(url: string): Promise<void> {
  await using accounts = new LoadProcess("accounts-load.ts");
  await accounts.run<AccountTasks, "register">("register", { url, count: 1 });
}

async function postmasterPid(sql: Client): Promise<number> {
  const { rows } = await sql.query<{ pid: number }>(
    "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::integer AS pid",
  );
  return rows[0]?.pid ?? 0;
}

/** How many transactions have written so far: only those take a number, and each takes one. */
async function writingTransactions(sql: Client): Promise<number> {
  const { rows } = await sql.query<{ next: string }>("SELECT pg_snapshot_xmax(pg_current_snapshot()) AS next");
  return Number(rows[0]?.next);
}
