/** The program behind `npm start`: config → telemetry → database → sandbox → server, and all of it down again. */
import { mkdirSync, readFileSync, realpathSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { constants } from "node:os";
import { join } from "node:path";
import type { Logger } from "pino";
import { assemble, openDatabase } from "./assemble.ts";
import { type Config, ConfigError, readConfig } from "./config.ts";
import { type Database, faultCode } from "./db/database.ts";
import { type EmbeddedPostgres, startEmbedded } from "./db/embedded.ts";
import { migrate } from "./db/migrate.ts";
import { demoAccounts, fillWithDemoData } from "./demo.ts";
import type { Deps } from "./deps.ts";
import { claimInstance, type InstanceClaim, InstanceRunningError } from "./instance.ts";
import { onStopRequest, type StopReason } from "./parent.ts";
import { reachSandbox } from "./payments/gateways/reach-sandbox.ts";
import { createSandboxGateway } from "./payments/gateways/sandbox.ts";
import { startServer } from "./server/server.ts";
import { greeting } from "./telemetry/greeting.ts";
import { createLog } from "./telemetry/log.ts";

/** Later than every part's own bound, so that only a part which breaks its word is left behind. */
const STOP_TIMEOUT_MS = 10_000;
const STOP_POSTGRES_TIMEOUT_MS = 70_000;
/** A stop that comes in the middle of starting waits for the step that is under way. */
const STARTING_TIMEOUT_MS = 60_000;
/** After a fault there is no point in waiting for calls as long as a planned stop does. */
const FAILURE_DRAIN_MS = 1_000;

/** What has been started and has to be stopped, the last one first. */
class Started {
  readonly #parts: { readonly what: string; readonly stop: () => Promise<void>; readonly timeoutMs: number }[] = [];

  add(what: string, stop: () => Promise<void>, timeoutMs = STOP_TIMEOUT_MS): void {
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

  /** Ends the process because it cannot go on: one sentence for the person who started it, all of it in the log. */
  fail(error: unknown): void {
    if (this.#stopping.signal.aborted) {
      this.#log.debug({ err: error }, "a fault while stopping");
      return;
    }
    // On a terminal, log and sentence would stand below each other and say the same.
    this.#log[isForPerson(this.#config) ? "debug" : "fatal"]({ err: error }, "the service cannot go on");
    process.stderr.write(`${sentenceOf(error)}\n`);
    this.#drainMs = Math.min(this.#drainMs, FAILURE_DRAIN_MS);
    void this.#end(1);
  }

  /** Ends the process because of a fault that nobody foresaw. */
  crash(error: unknown): void {
    this.#log.fatal({ err: error }, "uncaught exception");
    this.fail(error);
  }

  async #end(exitCode: number): Promise<void> {
    this.#stopping.abort();
    try {
      await within(this.#starting, STARTING_TIMEOUT_MS);
    } catch {
      // Why the start ended early is known: it was told to, or it failed and that has been reported.
    }
    await this.#started.stop(this.#log);
    this.#log.info("stopped");
    process.exit(exitCode);
  }

  /** Starts everything, in the order in which each needs the one before. Gives up between two steps when stopping. */
  async #start(): Promise<void> {
    const config = this.#config;
    const log = this.#log;
    const claim = await this.#step("claim of DATA_DIR", () => claimDataDir(config));
    const embedded = config.database.url === undefined ? await this.#startPostgres() : undefined;
    const databaseUrl = config.database.url ?? embedded?.url ?? "";
    const applied = await this.#step(undefined, () => prepareDatabase(config, databaseUrl));
    if (applied.length > 0) log.info({ applied }, "database migrated");

    const sandboxOptions = { port: config.payments.sandboxPort, dataDir: join(config.dataDir, "sandbox"), log };
    const sandbox = await this.#step("sandbox", () => reachSandbox(sandboxOptions), (it) => it.close());
    const gateway = createSandboxGateway({ name: config.payments.primary, baseUrl: sandbox.url });
    this.#started.add("gateway", async () => gateway.close());

    const parts = { config, log, databaseUrl, gateway };
    const deps = await this.#step("database connections", () => assemble(parts), (it) => it.db.close());
    await this.#step(undefined, () => fillIfNew(deps, embedded !== undefined));
    const server = await this.#step("server", () => startServer(deps, config), (it) => it.stop(this.#drainMs), config.drainMs + STOP_TIMEOUT_MS);
    await claim?.update({ url: server.url });
    log.info({ url: server.url }, "serving");
    const accounts = await accountsOf(deps, embedded !== undefined);
    process.stdout.write(greeting({ url: server.url, reflection: config.reflection, accounts }));
  }
}
