import { mkdtemp, rm } from "node:fs/promises";
import { loadavg, tmpdir } from "node:os";
import { join } from "node:path";
import { Client } from "pg";
import { pino } from "pino";
import { startEmbedded } from "../../src/db/embedded.ts";
import { cpuOf, cpuOfEndedChildren, cpuOfFamily } from "./cpu.ts";
import type { Figures } from "./figures.ts";
import type { Samples } from "./load.ts";
import { versionOf } from "./pgbench.ts";
import { type BenchServer, LoadProcess, startServer } from "./processes.ts";
import type { Row } from "./report.ts";

/** Enough connections for the most clients of pgbench, and no checkpoint in the middle of a round. */
const POSTGRES_SETTINGS = { max_connections: "320", max_wal_size: "4GB", checkpoint_timeout: "30min" };
/** Well before access tokens expire. */
const LOGIN_INTERVAL_MS = 5 * 60_000;
/** Above it, what others do decides more than what is measured. */
const CALM_LOAD = 0.5;

/** What a bench puts on its stage. */
export interface StageOptions {
  /** Settings of PostgreSQL, beside those that every stage has. */
  readonly postgres?: Readonly<Record<string, string>>;
  /** Settings of the service. */
  readonly service?: Readonly<Record<string, string>>;
  /** Fills the database, once the service has made its schema. The connection is a superuser's. */
  readonly fill: (sql: Client, url: string) => Promise<void>;
  /** The program in bench/ that makes the calls. */
  readonly load: string;
  /** Gives it tokens that are good for a while. */
  readonly logIn: (load: LoadProcess, url: string) => Promise<void>;
}

/** A filled PostgreSQL, the service on it, and a process that calls it. */
export interface Stage extends AsyncDisposable {
  readonly databaseUrl: string;
  /** A connection of a superuser. */
  readonly sql: Client;
  readonly service: Pick<BenchServer, "pausedWhile">;
  readonly load: LoadProcess;
  /** Sees to it that the load's tokens are good for a while. */
  logIn(): Promise<void>;
  /** Runs a load and measures what it takes meanwhile. */
  measure(run: () => Promise<Samples>): Promise<Figures>;
}

export async function openStage({ postgres: own = {}, service: settings = {}, ...play }: StageOptions): Promise<Stage> {
  await using opened = new AsyncDisposableStack();
  const dataDir = await mkdtemp(join(tmpdir(), "tradepost-bench-"));
  opened.defer(() => rm(dataDir, { recursive: true, force: true }));
  const log = pino({ level: "silent" });
  const postgres = await startEmbedded({ dataDir, log, settings: { ...POSTGRES_SETTINGS, ...own } });
  opened.defer(() => postgres.stop());
  const service = opened.use(await startServer({ DATABASE_URL: postgres.url, ...settings }));
  const sql = new Client({ connectionString: postgres.url });
  await sql.connect();
  opened.defer(() => sql.end());
  await play.fill(sql, service.url);

  const load = opened.use(new LoadProcess(play.load));
  let loggedInAt = Number.NEGATIVE_INFINITY;
  const logIn = async () => {
    if (performance.now() - loggedInAt < LOGIN_INTERVAL_MS) return;
    await play.logIn(load, service.url);
    loggedInAt = performance.now();
  };
  const measure = await meterOf(sql, service.pid, load.pid);
  const resources = opened.move();
  const end = () => resources.disposeAsync();
  return { databaseUrl: postgres.url, sql, service, load, logIn, measure, [Symbol.asyncDispose]: end };
}

async function meterOf(sql: Client, servicePid: number, loadPid: number): Promise<Stage["measure"]> {
  const postmaster = await postmasterPid(sql);
  const meters = async () => ({
    service: cpuOf(servicePid),
    database: cpuOfFamily(postmaster),
    // One of the two has nothing to do. pgbench is a child of this process, and has ended when it is looked at.
    callers: cpuOf(loadPid) + cpuOfEndedChildren(process.pid),
    commits: await writingTransactions(sql),
  });
  return async (run) => {
    const before = await meters();
    const samples = await run();
    const after = await meters();
    return {
      samples,
      serviceCpuMs: after.service - before.service,
      databaseCpuMs: after.database - before.database,
      callersCpuMs: after.callers - before.callers,
      commits: after.commits - before.commits,
    };
  };
}

/** The load average before a run, with a warning where other work falsifies what will be measured. */
export function loadBefore(): number {
  const [load = Number.NaN] = loadavg();
  if (load > CALM_LOAD) process.stderr.write(`The load average is ${load}: other work falsifies the figures.\n`);
  return load;
}

/** What a run was, as a row of its own: how much, on what, and how busy the machine was before. */
export async function describeRun(
  { sql }: Stage,
  pgbench: string,
  { before, rounds, roundMs }: { readonly before: number; readonly rounds: number; readonly roundMs: number },
): Promise<Row> {
  const { rows } = await sql.query<{ version: string; fsync: string; commit: string }>(
    `SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
            current_setting('synchronous_commit') AS commit`,
  );
  const [{ version = "", fsync = "", commit = "" } = {}] = rows;
  return {
    "load average before": before,
    rounds,
    "seconds a round": roundMs / 1000,
    PostgreSQL: version,
    fsync,
    synchronous_commit: commit,
    pgbench: await versionOf(pgbench),
  };
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
