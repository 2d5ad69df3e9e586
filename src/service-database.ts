/** How the service and the project's other programs come to the database of the settings. */
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { openDatabase } from "./assemble.ts";
import { type Config, ConfigError } from "./config.ts";
import { claimDataDir, prepareDataDir } from "./data-dir.ts";
import { type Database, faultCode, isAway } from "./db/database.ts";
import { startEmbedded } from "./db/embedded.ts";
import { migrate } from "./db/migrate.ts";
import { whyUnusable } from "./db/unusable.ts";
import { InstanceRunningError } from "./instance.ts";
import { within } from "./time-limit.ts";

const OLDEST_POSTGRES = 15;
const ANSWER_TIMEOUT_MS = 15_000;
const MIGRATE_TIMEOUT_MS = 10 * 60_000;
const CLOSE_TIMEOUT_MS = 1_000;
/** How long a program waits for the embedded database of one that is starting. */
const STARTING_TIMEOUT_MS = 60_000;
const POLL_INTERVAL_MS = 250;

/** Tells the project's other programs where the embedded database listens, password included. */
const DATABASE_FILE = "database.json";

/** Of a schema that is of another version or nobody's, or of a user without the right to read it. */
const UNUSABLE = new Set(["42P01", "42703", "42883", "42501"]);

interface WithDatabaseOptions {
  readonly config: Config;
  readonly log: Logger;
  /** What it is needed for, such as `npm run check`: whoever finds the data folder taken is told so. */
  readonly program: string;
  /** Whether the schema is brought to the version of this code first. False: nothing is written. */
  readonly migrate: boolean;
}

/** The database that a program was lent. */
export interface ServiceDatabase {
  readonly db: Database;
  /** Which one it is, for a person and without its password. */
  readonly name: string;
}

interface Reached {
  readonly url: string;
  readonly name: string;
  leave(): Promise<void>;
}

/**
 * Lends `work` the database of the settings: that of DATABASE_URL; without it the embedded one of the service that runs
 * on DATA_DIR; where none runs, the embedded one, started for the work and stopped after it.
 * @throws ConfigError with a sentence and without the password when it cannot be used, and what `work` throws.
 */
export async function withDatabase<T>(
  options: WithDatabaseOptions,
  work: (database: ServiceDatabase) => Promise<T>,
): Promise<T> {
  const { config } = options;
  const { url, name, leave } = await reachDatabase(options);
  try {
    if (options.migrate) await prepareDatabase(config, url);
    else await onDatabase(config, url, refuseOldPostgres);
    const db = openDatabase(config, url);
    try {
      return await work({ db, name });
    } catch (error) {
      if (isAway(error) || UNUSABLE.has(faultCode(error) ?? "")) throw unusable(config, url, error);
      throw error;
    } finally {
      await within(db.close(), CLOSE_TIMEOUT_MS).catch(() => {});
    }
  } finally {
    await leave();
  }
}

async function reachDatabase({ config, log, program }: WithDatabaseOptions): Promise<Reached> {
  const { dataDir, database } = config;
  if (database.url !== undefined) {
    const { host, pathname } = new URL(database.url);
    return { url: database.url, name: `the database ${pathname.slice(1)} at ${host}`, leave: async () => {} };
  }
  prepareDataDir(dataDir);
  const name = `the embedded database of ${dataDir}`;
  const deadline = Date.now() + STARTING_TIMEOUT_MS;
  for (;;) {
    try {
      return { ...(await startForProgram(dataDir, program, log)), name };
    } catch (error) {
      if (!(error instanceof InstanceRunningError)) throw error;
      const url = readDatabaseFile(dataDir, error.pid);
      if (url !== undefined) return { url, name, leave: async () => {} };
      if (Date.now() > deadline) {
        throw new ConfigError(`${error.message}. Its database cannot be used yet; try again later.`);
      }
    }
    await sleep(POLL_INTERVAL_MS);
  }
}

/** Others are not told where it listens, since it goes when this program has done its work. */
async function startForProgram(dataDir: string, program: string, log: Logger): Promise<Pick<Reached, "url" | "leave">> {
  const claim = await claimDataDir(dataDir, program);
  try {
    const postgres = await startEmbedded({ dataDir: join(dataDir, "postgres"), log });
    const leave = async () => {
      await postgres.stop();
      await claim.release();
    };
    return { url: postgres.url, leave };
  } catch (error) {
    await claim.release();
    throw error;
  }
}

/** The embedded PostgreSQL of a service. */
export interface ServicePostgres {
  /** With its password: never to be logged. */
  readonly url: string;
  /** Resolves with a sentence when PostgreSQL ends without `stop`. */
  readonly exited: Promise<string>;
  /** Takes it from the project's other programs, and shuts it down. */
  stop(): Promise<void>;
}

/** Starts the embedded PostgreSQL of a service that has claimed `dataDir`, where other programs find it as well. */
export async function startPostgres(dataDir: string, log: Logger): Promise<ServicePostgres> {
  const postgres = await startEmbedded({ dataDir: join(dataDir, "postgres"), log });
  const stop = async () => {
    rmSync(join(dataDir, DATABASE_FILE), { force: true });
    await postgres.stop();
  };
  try {
    writeDatabaseFile(dataDir, postgres.url);
  } catch (error) {
    await postgres.stop();
    throw error;
  }
  return { url: postgres.url, exited: postgres.exited, stop };
}

function writeDatabaseFile(dataDir: string, url: string): void {
  const file = join(dataDir, DATABASE_FILE);
  const draft = `${file}.${process.pid}`;
  writeFileSync(draft, `${JSON.stringify({ pid: process.pid, url })}\n`, { mode: 0o600 });
  renameSync(draft, file);
}

/**
 * Where the database of the service is that holds the claim under this pid. Undefined: it is still starting.
 * @throws Error when the file may not be read, which is its owner's right alone.
 */
function readDatabaseFile(dataDir: string, pid: number): string | undefined {
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
  return onDatabase(config, url, async (db) => {
    await refuseOldPostgres(db);
    return within(migrate(db), MIGRATE_TIMEOUT_MS);
  });
}

/** Every fault of `work` is taken for one of the database. */
async function onDatabase<T>(config: Config, url: string, work: (db: Database) => Promise<T>): Promise<T> {
  try {
    const db = openDatabase(config, url);
    try {
      return await work(db);
    } finally {
      await within(db.close(), CLOSE_TIMEOUT_MS).catch(() => {});
    }
  } catch (error) {
    throw unusable(config, url, error);
  }
}

async function refuseOldPostgres(db: Database): Promise<void> {
  const text = "SELECT current_setting('server_version') AS name, current_setting('server_version_num')::int AS number";
  const ask = db.query<{ name: string; number: number }>({ name: "server-version", text }, []);
  const [version] = await within(ask, ANSWER_TIMEOUT_MS);
  if (version !== undefined && version.number >= OLDEST_POSTGRES * 10_000) return;
  throw new ConfigError(
    `this is PostgreSQL ${version?.name ?? "unknown"}, and Tradepost needs ${OLDEST_POSTGRES} or newer`,
  );
}

function unusable({ database }: Config, url: string, cause: unknown): ConfigError {
  const setting = database.url === undefined ? "The embedded database" : "DATABASE_URL";
  return new ConfigError(`${setting}: ${whyUnusable(url, cause)}`, { cause });
}
