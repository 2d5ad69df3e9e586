import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { Logger } from "pino";
import { assemble, openDatabase } from "./assemble.ts";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { type EmbeddedPostgres, startEmbedded } from "./db/embedded.ts";
import { migrate } from "./db/migrate.ts";
import { fillWithDemoData } from "./demo.ts";
import { claimInstance } from "./instance.ts";
import { onStopRequest } from "./parent.ts";
import { reachSandbox } from "./payments/gateways/reach-sandbox.ts";
import { createSandboxGateway } from "./payments/gateways/sandbox.ts";
import { startServer } from "./server/server.ts";
import { createLog } from "./telemetry/log.ts";
import { greeting } from "./telemetry/greeting.ts";

/** What has been started and has to be stopped, the last one first. */
class Started {
  readonly #stops: (() => Promise<void>)[] = [];

  add(stop: () => Promise<void>): void {
    this.#stops.push(stop);
  }

  /** Stops everything, also what comes after something that fails to stop. */
  async stop(log: Logger): Promise<void> {
    for (let stop = this.#stops.pop(); stop !== undefined; stop = this.#stops.pop()) {
      try {
        await stop();
      } catch (error) {
        log.error({ err: error }, "failed to stop");
      }
    }
  }
}

async function main(): Promise<void> {
  const config = readConfig();
  const log = createLog(config.log);
  const started = new Started();
  let stopping = false;
  const end = async (exitCode: number) => {
    stopping = true;
    await started.stop(log);
    process.exit(exitCode);
  };

  onStopRequest((reason, times) => {
    // Whoever asks again does not want to wait any more; PostgreSQL's supervisor ends it when we are gone.
    if (times > 1) process.exit(130);
    log.info({ reason }, "stopping");
    void end(0);
  });

  try {
    await start(config, log, started, (reason) => {
      if (stopping) return;
      log.fatal(reason);
      void end(1);
    });
  } catch (error) {
    if (stopping) return;
    process.stderr.write(`${sentenceOf(error, log)}\n`);
    await end(1);
  }
}

/** Starts everything, in the order in which each needs the one before. */
async function start(config: Config, log: Logger, started: Started, fail: (reason: string) => void): Promise<void> {
  const embedded = config.database.url === undefined ? await startDatabase(config, log, started, fail) : undefined;
  const databaseUrl = config.database.url ?? embedded?.url ?? "";
  await migrateDatabase(config, databaseUrl, log);

  const sandbox = await reachSandbox({ port: config.payments.sandboxPort, dataDir: join(config.dataDir, "sandbox"), log });
  started.add(() => sandbox.close());
  const gateway = createSandboxGateway({ name: config.payments.primary, baseUrl: sandbox.url });
  started.add(async () => gateway.close());

  const deps = await assemble({ config, log, databaseUrl, gateway });
  started.add(() => deps.db.close());
  const demo = embedded !== undefined && !(await deps.users.hasUsers());
  if (demo) await fillWithDemoData(deps);

  const server = await startServer(deps, config);
  started.add(() => server.stop(config.drainMs));
  await embedded?.announce(server.url);
  process.stdout.write(greeting({ config, url: server.url, port: server.port, embedded: embedded !== undefined }));
}

/** The embedded PostgreSQL, for this instance alone. */
async function startDatabase(
  config: Config,
  log: Logger,
  started: Started,
  fail: (reason: string) => void,
): Promise<EmbeddedPostgres & { announce(url: string): Promise<void> }> {
  mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
  const claim = await claimInstance(config.dataDir, { url: `port ${config.port}` });
  started.add(() => claim.release());
  const embedded = await startEmbedded({ dataDir: join(config.dataDir, "postgres"), log });
  started.add(() => embedded.stop());
  void embedded.exited.then(fail);
  return { ...embedded, announce: (url) => claim.update({ url }) };
}

async function migrateDatabase(config: Config, url: string, log: Logger): Promise<void> {
  const db = openDatabase(config, url);
  try {
    await db.ping().catch((error: Error) => {
      const { host } = new URL(url);
      throw new ConfigError(`DATABASE_URL: cannot reach PostgreSQL at ${host}: ${error.message}`, { cause: error });
    });
    const applied = await migrate(db);
    if (applied.length > 0) log.info({ applied }, "database migrated");
  } finally {
    await db.close();
  }
}

/** What went wrong, for the person who started the server; the rest is for the log. */
function sentenceOf(error: unknown, log: Logger): string {
  log.debug({ err: error }, "failed to start");
  return error instanceof Error ? error.message : String(error);
}

await main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(1);
});
