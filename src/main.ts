/** The program behind `npm start`: config → telemetry → database → sandbox → jobs → server, and all of it down again. */
import { constants } from "node:os";
import type { Logger } from "pino";
import { assemble, disconnect, jobHandlers, sweeps } from "./assemble.ts";
import { type Config, readConfig } from "./config.ts";
import { claimDataDir, prepareDataDir } from "./data-dir.ts";
import { isAway } from "./db/database.ts";
import { demoAccounts, ensureDemoData } from "./demo.ts";
import type { Deps } from "./deps.ts";
import { sentenceOf } from "./faults.ts";
import type { InstanceClaim } from "./instance.ts";
import { startSweep } from "./jobs/sweep.ts";
import { startWorker } from "./jobs/worker.ts";
import { onStopRequest, type StopReason } from "./parent.ts";
import type { Gateways } from "./payments/gateways/gateways.ts";
import { openGateways } from "./payments/gateways/open-gateways.ts";
import { startServer, tryAddress } from "./server/server.ts";
import { prepareDatabase, startPostgres } from "./service-database.ts";
import { Started } from "./started.ts";
import { type Greeting, greeting } from "./telemetry/greeting.ts";
import { createLog } from "./telemetry/log.ts";
import { startTelemetry } from "./telemetry/open-telemetry.ts";
import { within } from "./time-limit.ts";

/** Longer than each part's own bound, so that only a part that breaks its word is left behind. */
const STOP_TIMEOUT_MS = 10_000;
const STOP_POSTGRES_TIMEOUT_MS = 70_000;
/** A stop that comes in the middle of starting lets the step under way end, and undoes it. */
const STARTING_TIMEOUT_MS = 60_000;
/** After a fault there is no point in waiting for calls as long as a planned stop does. */
const FAILURE_DRAIN_MS = 1_000;

/** One life of the process: it starts everything once, and ends once. */
class Service {
  readonly #config: Config;
  readonly #log: Logger;
  readonly #started = new Started();
  readonly #stopping = new AbortController();
  #starting: Promise<void> = Promise.resolve();
  /** Where our sandbox sends its webhooks. */
  #webhookUrl: string | undefined;
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
    prepareDataDir(config.dataDir);
    const claim = config.database.url === undefined ? await this.#claim() : undefined;
    // The database takes seconds to start; an address that cannot be had is told before that.
    await this.#step(() => tryAddress(config));
    const databaseUrl = config.database.url ?? (await this.#startPostgres());
    const applied = await this.#step(() => prepareDatabase(config, databaseUrl));
    if (applied.length > 0) log.info({ applied }, "database migrated");

    const telemetry = await this.#step(() => startTelemetry(config.telemetry, log));
    this.#started.add("telemetry", () => telemetry.stop(), STOP_TIMEOUT_MS);
    if (telemetry.url !== undefined) log.info({ url: telemetry.url }, "metrics can be read");

    const gateways = await this.#startGateways();
    const { metrics } = telemetry;
    const deps = await this.#step(() => assemble({ config, log, databaseUrl, gateways, metrics }));
    this.#started.add("database connections", () => disconnect(deps), STOP_TIMEOUT_MS);
    this.#started.add("mail", async () => deps.mail.close(), STOP_TIMEOUT_MS);
    const embedded = claim !== undefined;
    if (embedded) await this.#step(() => ensureDemoData(deps, config.dataDir));

    await this.#step(async () => this.#startBackground(deps));
    const server = await this.#step(() => startServer(deps, config));
    this.#started.add("server", () => server.stop(this.#drainMs), config.drainMs + STOP_TIMEOUT_MS);
    this.#webhookUrl = `${server.url}/webhooks/sandbox`;
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
    const postgres = await this.#step(() => startPostgres(this.#config.dataDir, this.#log));
    this.#started.add("PostgreSQL", () => postgres.stop(), STOP_POSTGRES_TIMEOUT_MS);
    void postgres.exited.then((sentence) => this.fail(new Error(sentence)));
    return postgres.url;
  }

  /** What goes on beside the calls. */
  #startBackground(deps: Deps): void {
    const { log } = deps;
    for (const task of sweeps(deps)) {
      const sweep = startSweep({ ...task, log });
      this.#started.add(`sweep ${task.name}`, () => sweep.stop(), STOP_TIMEOUT_MS);
    }
    const { prepared } = deps.config.database;
    const worker = startWorker({ databaseUrl: deps.db.url, prepared, handlers: jobHandlers(deps), log });
    this.#started.add("jobs", () => worker.stop(), STOP_TIMEOUT_MS);
  }

  async #startGateways(): Promise<Gateways> {
    const webhookUrl = () => this.#webhookUrl;
    const gateways = await this.#step(() => openGateways({ config: this.#config, log: this.#log, webhookUrl }));
    this.#started.add("gateways", () => gateways.close(), STOP_TIMEOUT_MS);
    return gateways;
  }
}

async function accountsOf({ users }: Deps, embedded: boolean): Promise<Greeting["accounts"]> {
  if (embedded && (await users.findByEmail(demoAccounts[0].email)) !== undefined) return "demo";
  return (await users.hasAny()) ? "own" : "none";
}

async function main(): Promise<void> {
  // A reader that has gone (`npm start | head`) is no reason to stop serving.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});
  const config = readConfig();
  const log = createLog(config.log);
  const service = new Service(config, log);
  process.on("uncaughtException", (error) => service.crash(error));
  // What nobody waits for has no caller to whom it could lie: it is told, and ends no service.
  process.on("unhandledRejection", (reason) => {
    log.error({ err: reason, databaseAway: isAway(reason) }, "something that nobody waits for has failed");
  });
  onStopRequest((reason, times) => service.stop(reason, times));
  await service.run();
}

await main().catch((error: unknown) => {
  process.stderr.write(`${sentenceOf(error)}\n`);
  process.exit(1);
});
