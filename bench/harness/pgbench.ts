import { execFile } from "node:child_process";
import { access, constants, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import type { Samples } from "./load.ts";

const SCRIPTS_DIR = join(import.meta.dirname, "../pgbench");
/** Where Debian has it, which does not put it on the path. */
const DEBIAN_VERSIONS = [18, 17, 16, 15];
/** Beyond the time of the run: starting and ending. */
const GRACE_MS = 60_000;
/** What connecting may take at first, and how often twice as much is tried where a busy machine took longer. */
const CONNECT_MS_PER_CLIENT = 15;
const ATTEMPTS = 4;

interface PgbenchRun {
  /** A file of bench/pgbench/. */
  readonly script: string;
  readonly clients: number;
  readonly durationMs: number;
  readonly variables: Readonly<Record<string, number>>;
}

/**
 * Where pgbench is: what PGBENCH says, or the path has, or Debian's packages bring.
 * @throws Error with a sentence about what to install where there is none.
 */
export async function findPgbench(): Promise<string> {
  const given = process.env["PGBENCH"];
  const onPath = (process.env["PATH"] ?? "").split(delimiter).map((dir) => join(dir, "pgbench"));
  const debian = DEBIAN_VERSIONS.map((version) => `/usr/lib/postgresql/${version}/bin/pgbench`);
  for (const candidate of given === undefined ? [...onPath, ...debian] : [given]) {
    if (await isProgram(candidate)) return candidate;
  }
  const where = given === undefined ? "pgbench was not found" : `PGBENCH names ${given}, which cannot be run`;
  throw new Error(
    `${where}. Install Debian's postgresql-15 (apt-get install postgresql-15), or set PGBENCH to its path.`,
  );
}

/** What the program says of itself. */
export async function versionOf(program: string): Promise<string> {
  return (await promisify(execFile)(program, ["--version"])).stdout.trim();
}

async function isProgram(path: string): Promise<boolean> {
  return access(path, constants.X_OK).then(
    () => true,
    () => false,
  );
}

/**
 * Runs a script with prepared statements for a time. Connecting is not part of what is measured, but pgbench's time begins
 * before it: so it is given more, and again more where too little was left to measure anything.
 */
export async function runPgbench(program: string, databaseUrl: string, run: PgbenchRun): Promise<Samples> {
  let connectMs = run.clients * CONNECT_MS_PER_CLIENT;
  for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
    const samples = await runFor(program, databaseUrl, run, run.durationMs + connectMs);
    if (samples !== undefined && samples.elapsedMs >= run.durationMs / 2) return samples;
    connectMs *= 2;
  }
  throw new Error(
    `pgbench could not connect ${run.clients} clients in ${connectMs / 2000} s: the machine is too busy.`,
  );
}

/** Undefined: not one transaction was made. */
async function runFor(
  program: string,
  databaseUrl: string,
  run: PgbenchRun,
  durationMs: number,
): Promise<Samples | undefined> {
  const dir = await mkdtemp(join(tmpdir(), "tradepost-pgbench-"));
  try {
    const args = argumentsOf({ ...run, durationMs }, databaseUrl, join(dir, "log"));
    const { stdout, stderr } = await promisify(execFile)(program, args, { timeout: durationMs + GRACE_MS });
    const rate = Number(/^tps = ([\d.]+)/m.exec(stdout)?.[1]);
    const done = Number(/transactions actually processed: (\d+)/.exec(stdout)?.[1]);
    const failed = Number(/number of failed transactions: (\d+)/.exec(stdout)?.[1]);
    if (failed > 0 || /ERROR/.test(stderr)) throw new Error(`pgbench failed:\n${stdout}${stderr}`);
    if (!(rate > 0)) return undefined;
    return { latenciesMs: await readLatencies(dir), outcomes: { ok: done }, elapsedMs: (done / rate) * 1000 };
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

function argumentsOf({ script, clients, durationMs, variables }: PgbenchRun, url: string, log: string): string[] {
  return [
    "--no-vacuum",
    "--protocol=prepared",
    `--client=${clients}`,
    `--time=${Math.round(durationMs / 1000)}`,
    "--log",
    `--log-prefix=${log}`,
    ...Object.entries(variables).flatMap(([name, value]) => ["--define", `${name}=${value}`]),
    `--file=${join(SCRIPTS_DIR, script)}`,
    url,
  ];
}

/** From its log: a line a transaction, the third field is its time in microseconds. */
async function readLatencies(dir: string): Promise<number[]> {
  const files = await readdir(dir);
  const logs = await Promise.all(files.map((file) => readFile(join(dir, file), "utf8")));
  return logs.flatMap((log) => log.trimEnd().split("\n")).map((line) => Number(line.split(" ")[2]) / 1000);
}
