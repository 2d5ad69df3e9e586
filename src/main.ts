/** The program behind `npm start`: config → telemetry → database → sandbox → jobs → server, and all of it down again. */
import { mkdirSync, readFileSync, realpathSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import type { Logger } from "pino";
import { assemble, disconnect, jobHandlers, openDatabase } from "./assemble.ts";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { type Database, faultCode } from "./db/database.ts";
import { startEmbedded } from "./db/embedded.ts";
import { migrate } from "./db/migrate.ts";
import { demoAccounts, ensureDemoData } from "./demo.ts";
import type { Deps } from "./deps.ts";
import { claimInstance, type InstanceClaim, InstanceRunningError } from "./instance.ts";
import { startWorker } from "./jobs/worker.ts";
import { onStopRequest, type StopReason } from "./parent.ts";
import type { Gateways } from "./payments/gateways/gateways.ts";
import { reachSandbox } from "./payments/gateways/reach-sandbox.ts";
import { createSandboxGateway } from "./payments/gateways/sandbox.ts";
import { startServer } from "./server/server.ts";
import { type Greeting, greeting } from "./telemetry/greeting.ts";
import { createLog } from "./telemetry/log.ts";
import { startSessionCleanup } from "./users/session-cleanup.ts";

/** Longer than each part's own bound, so that only a part that breaks its word is left behind. */
const STOP_TIMEOUT_MS = 10_000;
const STOP_POSTGRES_TIMEOUT_MS = 70_000;
/** A stop that comes in the middle of starting lets the step under way end, and undoes it. */
const STARTING_TIMEOUT_MS = 60_000;
/** After a fault there is no point in waiting for calls as long as a planned stop does. */
const FAILURE_DRAIN_MS = 1_000;

const OLDEST_POSTGRES = 15;
const DATABASE_ANSWER_TIMEOUT_MS = 15_000;
const MIGRATE_TIMEOUT_MS = 10 * 60_000;
const CLOSE_TIMEOUT_MS = 1_000;

/** Tells the project's other programs where the embedded database listens, password included. */
const DATABASE_FILE = "database.json";

/** What has been started and has to be stopped, the last one first. */
class Started {
  readonly #parts: { readonly what: string; readonly stop: () => Promise<void>; readonly timeoutMs: number }[] = [];

  add(what: string, stop: () => Promise<void>, timeoutMs: number): void {
    this.#parts.push({ what, stop, timeoutMs });
  }

  /** Stops everything, also what comes after something that fails to stop or takes too long. */
  async stop(log: Logger): Promise<void> {
    for (let part = this.#parts.pop(); part !== undefined; part = this.#parts.pop()) {
      const { what, stop, timeoutMs } = part;
      try {
        await within(stop(), timeoutMs);
      } catch (error) {
        log.error({ err: error, what }, "failed to stop");
      }
    }
  }
}

/** One life of the process: it starts everything once, and ends once. */
class Service {
  readonly #config: Config;
  readonly #log: Logger;
  readonly #started = new Started();
  readonly #stopping = new AbortController();
  #starting: Promise<void> = Promise.resolve();
  #drainMs: number;

  constructor(config: Config, log: Logger) {
    this.#config = config;
    this.#log = log;
    this.#drainMs = config.drainMs;
  }

  async run(): Promise<void> {
    this.#starting = this.#start();
    try {
      await this.#starting;
    } catch (error) {
      this.fail(error);
    }
  }

  stop(reason: StopReason, times: number): void {
    if (times > 1) {
      // Whoever asks again does not want to wait any more; PostgreSQL's supervisor ends it when we are gone.
      this.#log.warn({ reason }, "stopping at once");
      process.exit(reason === "parent gone" ? 1 : 128 + constants.signals[reason]);
    }
    if (this.#stopping.signal.aborted) return;
    this.#log.info({ reason }, "stopping");
    void this.#end(0);
  }

  /** Ends the process because it cannot go on: one sentence for the person who started it, the rest for the log. */
  fail(error: unknown, level: "debug" | "fatal" = process.stdout.isTTY ? "debug" : "fatal"): void {
    if (this.#stopping.signal.aborted) {
      this.#log.debug({ err: error }, "a fault while stopping");
      return;
    }
    this.#log[level]({ err: error }, "cannot go on");
    process.stderr.write(`${sentenceOf(error)}\n`);
    this.#drainMs = Math.min(this.#drainMs, FAILURE_DRAIN_MS);
    void this.#end(1);
  }

  /** Ends the process because of a fault that nobody foresaw and that may have left anything half done. */
  crash(cause: unknown): void {
    this.fail(new Error(`Tradepost stops because of an unforeseen fault: ${sentenceOf(cause)}`, { cause }), "fatal");
  }

  async #end(exitCode: number): Promise<void> {
    this.#stopping.abort();
    // Why the start ended early needs no report: it was told to, or it failed and that has been reported.
    await within(this.#starting, STARTING_TIMEOUT_MS).catch(() => {});
    await this.#started.stop(this.#log);
    this.#log.info("stopped");
    process.exit(exitCode);
  }

  /** Starts everything, in the order in which each needs the one before. */
  async #start(): Promise<void> {
    const config = this.#config;
    const log = this.#log;
    prepareDataDir(config);
    const claim = config.database.url === undefined ? await this.#claim() : undefined;
    const databaseUrl = config.database.url ?? (await this.#startPostgres());
    const applied = await this.#step(() => prepareDatabase(config, databaseUrl));
    if (applied.length > 0) log.info({ applied }, "database migrated");

    const gateways = await this.#startGateways();
    const deps = await this.#step(() => assemble({ config, log, databaseUrl, gateways }));
    this.#started.add("database connections", () => disconnect(deps), STOP_TIMEOUT_MS);
    this.#started.add("session cleanup", startSessionCleanup(deps), STOP_TIMEOUT_MS);
    this.#started.add("mail", async () => deps.mail.close(), STOP_TIMEOUT_MS);
    const embedded = claim !== undefined;
    if (embedded) await this.#step(() => ensureDemoData(deps, config.dataDir));

    const { prepared } = config.database;
    const worker = startWorker({ databaseUrl, prepared, handlers: jobHandlers(deps), log });
    this.#started.add("jobs", () => worker.stop(), STOP_TIMEOUT_MS);
    const server = await this.#step(() => startServer(deps, config));
    this.#started.add("server", () => server.stop(this.#drainMs), config.drainMs + STOP_TIMEOUT_MS);
    await claim?.update({ url: server.url });
    log.info({ url: server.url }, "serving");
    const accounts = await accountsOf(deps, embedded);
    process.stdout.write(greeting({ url: server.url, reflection: config.reflection, accounts }));
  }

  /** One step of starting, which is not begun any more when the service is to stop. */
  async #step<T>(work: () => Promise<T>): Promise<T> {
    this.#stopping.signal.throwIfAborted();
    return work();
  }

  async #claim(): Promise<InstanceClaim> {
    const { dataDir, port } = this.#config;
    const claim = await this.#step(() => claimDataDir(dataDir, `starting on port ${port}`));
    this.#started.add("claim", () => claim.release(), STOP_TIMEOUT_MS);
    return claim;
  }

  /** Starts the embedded PostgreSQL, and gives its URL. */
  async #startPostgres(): Promise<string> {
    const { dataDir } = this.#config;
    const postgres = await this.#step(() => startEmbedded({ dataDir: join(dataDir, "postgres"), log: this.#log }));
    this.#started.add("PostgreSQL", () => postgres.stop(), STOP_POSTGRES_TIMEOUT_MS);
    void postgres.exited.then((sentence) => this.fail(new Error(sentence)));
    writeDatabaseUrl(dataDir, postgres.url);
    this.#started.add(
      "database file",
      async () => rmSync(join(dataDir, DATABASE_FILE), { force: true }),
      STOP_TIMEOUT_MS,
    );
    return postgres.url;
  }

  async #startGateways(): Promise<Gateways> {
    const { dataDir, payments } = this.#config;
    const options = { port: payments.sandboxPort, dataDir: join(dataDir, "sandbox"), log: this.#log };
    const sandbox = await this.#step(() => reachSandbox(options));
    this.#started.add("sandbox", () => sandbox.close(), STOP_TIMEOUT_MS);
    const connect = (name: "sandbox-primary" | "sandbox-backup") => {
      const gateway = createSandboxGateway({ name, baseUrl: sandbox.url });
      this.#started.add(name, async () => gateway.close(), STOP_TIMEOUT_MS);
      return gateway;
    };
    const backup = payments.backup === undefined ? undefined : connect(payments.backup);
    return { primary: connect(payments.primary), backup };
  }
}

async function accountsOf({ users }: Deps, embedded: boolean): Promise<Greeting["accounts"]> {
  if (embedded && (await users.findByEmail(demoAccounts[0].email)) !== undefined) return "demo";
  return (await users.hasAny()) ? "own" : "none";
}

/** @throws ConfigError naming DATA_DIR when nothing can be written there. */
export function prepareDataDir({ dataDir }: Config): void {
  try {
    // The account that root hands the embedded PostgreSQL to has to pass through, but nobody needs to look around.
    mkdirSync(dataDir, { recursive: true, mode: 0o711 });
    const trial = join(dataDir, `trial-${process.pid}`);
    writeFileSync(trial, "");
    rmSync(trial);
  } catch (error) {
    throw unusableDataDir(dataDir, error);
  }
}

function unusableDataDir(dataDir: string, cause: unknown): ConfigError {
  const advice = "Make it a folder that this user can write to, or set DATA_DIR to another one.";
  return new ConfigError(`DATA_DIR: ${dataDir} cannot be used: ${sentenceOf(cause)}. ${advice}`, { cause });
}

/**
 * Claims the data folder and its database for this process.
 * @throws InstanceRunningError when a live process has it, ConfigError naming DATA_DIR when it cannot be claimed.
 */
export async function claimDataDir(dataDir: string, url: string): Promise<InstanceClaim> {
  try {
    return await claimInstance(dataDir, { url });
  } catch (error) {
    throw error instanceof InstanceRunningError ? error : unusableDataDir(dataDir, error);
  }
}

function writeDatabaseUrl(dataDir: string, url: string): void {
  const file = join(dataDir, DATABASE_FILE);
  const draft = `${file}.${process.pid}`;
  writeFileSync(draft, `${JSON.stringify({ pid: process.pid, url })}\n`, { mode: 0o600 });
  renameSync(draft, file);
}

/**
 * Where the database of the running service is whose pid `claimDataDir` told. Undefined: it is still starting.
 * @throws Error when the file may not be read, which is its owner's right alone.
 */
export function readDatabaseUrl(dataDir: string, pid: number): string | undefined {
  try {
    const found = JSON.parse(readFileSync(join(dataDir, DATABASE_FILE), "utf8")) as { pid?: unknown; url?: unknown };
    // A file that an earlier run left behind when it was killed says nothing of this one.
    return found.pid === pid && typeof found.url === "string" ? found.url : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT" || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/**
 * Brings the database to the version of this code.
 * @returns the migrations that were applied.
 * @throws ConfigError with a sentence when it cannot be reached, is too old or cannot be migrated. The password is not
 * in it.
 */
export async function prepareDatabase(config: Config, url: string): Promise<readonly string[]> {
  const setting = config.database.url === undefined ? "The embedded database" : "DATABASE_URL";
  try {
    const db = openDatabase(config, url);
    try {
      await within(refuseOldPostgres(db), DATABASE_ANSWER_TIMEOUT_MS);
      return await within(migrate(db), MIGRATE_TIMEOUT_MS);
    } finally {
      await within(db.close(), CLOSE_TIMEOUT_MS).catch(() => {});
    }
  } catch (error) {
    throw new ConfigError(`${setting}: ${whyUnusable(url, error)}`, { cause: error });
  }
}

async function refuseOldPostgres(db: Database): Promise<void> {
  const text = "SELECT current_setting('server_version') AS name, current_setting('server_version_num')::int AS number";
  const [version] = await db.query<{ name: string; number: number }>({ name: "server-version", text }, []);
  if (version !== undefined && version.number >= OLDEST_POSTGRES * 10_000) return;
  throw new ConfigError(
    `this is PostgreSQL ${version?.name ?? "unknown"}, and Tradepost needs ${OLDEST_POSTGRES} or newer`,
  );
}

/** Errors whose messages need neither the place nor an explanation. */
const SAYS_IT_ALL = new Set(["MigrationError", "ConfigError"]);
const TIMEOUT_MESSAGES = /timeout|timed out|no answer within/i;

/** The second half of a sentence: why the database at `url` cannot be used, with names but without the password. */
function whyUnusable(url: string, error: unknown): string {
  const { where, user, database } = placesOf(url);
  const message = sentenceOf(error);
  if (error instanceof Error && SAYS_IT_ALL.has(error.name)) {
    // The migrator wraps what a migration throws, and repeats its name.
    return error.cause instanceof Error && error.cause.name === error.name ? error.cause.message : message;
  }
  switch (faultCode(error)) {
    case "ECONNREFUSED":
      return `nothing listens at ${where}: start PostgreSQL there, or correct the address`;
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return `the host of ${where} cannot be found: correct the name`;
    case "28P01":
      return `PostgreSQL at ${where} does not accept the password of user "${user}"`;
    case "3D000":
      return `PostgreSQL at ${where} has no database "${database}": create it, or correct the name`;
    case "42501":
      return `user "${user}" lacks a right in database "${database}" at ${where}: ${message}`;
    case "55P03":
      return `another process has been migrating the database at ${where} for too long: stop it and start again`;
  }
  if (TIMEOUT_MESSAGES.test(message)) return `PostgreSQL at ${where} does not answer (${message})`;
  return `PostgreSQL at ${where} cannot be used: ${message}`;
}

function placesOf(url: string): { where: string; user: string; database: string } {
  const { hostname, port, username, pathname, searchParams } = new URL(url);
  const host = searchParams.get("host") ?? hostname;
  return { where: `${host}:${port || "5432"}`, user: decoded(username), database: decoded(pathname.slice(1)) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What went wrong, for a person. Errors of the network may hide it in their code or in the errors they gather. */
function sentenceOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const [first] = error instanceof AggregateError ? error.errors : [];
  return error.message || (first === undefined ? (faultCode(error) ?? error.name) : sentenceOf(first));
}

async function within<T>(work: Promise<T>, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs / 1000} s`)), timeoutMs);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function main(): Promise<void> {
  // A reader that has gone (`npm start | head`) is no reason to stop serving.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
  const config = readConfig();
  const service = new Service(config, createLog(config.log));
  process.on("uncaughtException", (error) => service.crash(error));
  onStopRequest((reason, times) => service.stop(reason, times));
  await service.run();
}

/** Other programs of the project use parts of this file without starting the service. */
function isProgram(): boolean {
  return process.argv[1] !== undefined && realpathSync(process.argv[1]) === import.meta.filename;
}

if (isProgram()) {
  await main().catch((error: unknown) => {
    process.stderr.write(`${sentenceOf(error)}\n`);
    process.exit(1);
  });
}
