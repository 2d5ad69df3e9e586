import { mkdir, realpath, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Logger } from "pino";
import { claimInstance, type InstanceClaim, InstanceRunningError } from "../instance.ts";
import { type Binaries, resolveBinaries } from "./embedded/binaries.ts";
import { createCluster, DATABASE, ensureDatabase, isCluster, readPassword, USER } from "./embedded/cluster.ts";
import { EmbeddedPostgresError, explain } from "./embedded/error.ts";
import { chooseHome, type Home } from "./embedded/home.ts";
import { clearLeftovers } from "./embedded/leftovers.ts";
import { HOST, type Server, startServer } from "./embedded/server.ts";

export { EmbeddedPostgresError };

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
 * does not start
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const binaries = options.binaries ?? (await resolveBinaries());
  let claim: InstanceClaim | undefined;
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

/** Parents get the usual mode: the account that root hands PostgreSQL to has to pass through them. */
async function makeFolder(path: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  try {
    await mkdir(path, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST" || !(await stat(path)).isDirectory()) throw error;
  }
}

async function claimFolder(folder: string): Promise<InstanceClaim> {
  try {
    return await claimInstance(folder, { url: "starting" });
  } catch (error) {
    if (!(error instanceof InstanceRunningError)) throw error;
    throw new EmbeddedPostgresError(
      `The PostgreSQL data folder ${folder} is in use by process ${error.pid}. Stop it, or use another folder.`,
    );
  }
}

async function startClaimed(
  folder: string,
  claim: InstanceClaim,
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
    await claim.update({ url: `postgres://${HOST}:${port}/${DATABASE}` });
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
  claim: InstanceClaim,
  about: { url: string; created: boolean; log: Logger },
): EmbeddedPostgres {
  let stopped: Promise<void> | undefined;
  const exited = server.ended.then(async (how) => {
    if (stopped !== undefined) return new Promise<never>(() => {});
    // If only the supervisor ended, PostgreSQL must not go on without one.
    await clearLeftovers(home.data, about.log).catch((error: unknown) => about.log.error(error));
    return server.describe(`PostgreSQL ended by itself: ${how}.`);
  });
  const stop = async () => {
    await server.stop();
    await clearLeftovers(home.data, about.log);
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
