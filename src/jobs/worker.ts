import { Logger as QueueLogger, runOnce, runTaskList, type TaskList, type WorkerPool } from "graphile-worker";
import { Pool } from "pg";
import type { Logger } from "pino";
import { within } from "../time-limit.ts";

/** Jobs carried out at once. They wait for others (mail servers, object stores) most of the time. */
const CONCURRENCY = 2;
/** One for each job, to take it and to note its end, and one that listens for new ones. */
const MAX_CONNECTIONS = CONCURRENCY + 1;
/** New jobs announce themselves; this is for those whose time has come and for announcements that were lost. */
const POLL_INTERVAL_MS = 2_000;
const CONNECT_TIMEOUT_MS = 5_000;
const QUERY_TIMEOUT_MS = 30_000;

const JOB_TIMEOUT_MS = 60_000;
/** When the service stops, jobs under way may end by themselves for so long, then they are told to. */
const STOP_GRACE_MS = 4_000;
const STOP_TIMEOUT_MS = 7_000;
const CLOSE_TIMEOUT_MS = 1_000;

const FIRST_RESTART_PAUSE_MS = 500;
const MAX_RESTART_PAUSE_MS = 30_000;

/** Jobs that were given up are kept for so long, for somebody to look at them. */
const KEEP_FAILED_DAYS = 30;
const FORGET_INTERVAL_MS = 60 * 60_000;
const MAX_FORGOTTEN_AT_ONCE = 1_000;

/** What a handler may want to know of the job besides its payload. */
export interface JobContext {
  readonly jobId: string;
  /** 1 for the first one. */
  readonly attempt: number;
  readonly isLastAttempt: boolean;
  /** Aborted when the job takes too long or the service stops: its outcome counts no more. */
  readonly signal: AbortSignal;
}

/**
 * Does one job. It may be called again for a job that is already done (a crash comes between the work and the note that
 * it is done), so it has to be idempotent, or to bear being done twice. When it throws, the job is tried again later.
 * The message of what it throws is kept in the queue and logged: never a secret.
 */
export type JobHandler = (payload: unknown, context: JobContext) => Promise<void>;
/** Handlers by the names of their tasks. */
export type JobHandlers = Readonly<Record<string, JobHandler>>;

export interface WorkerOptions {
  readonly databaseUrl: string;
  /** False where a pooler between us and PostgreSQL loses prepared statements. */
  readonly prepared: boolean;
  readonly handlers: JobHandlers;
  readonly log: Logger;
}

/** Carries out jobs until it is stopped. */
export interface Worker {
  /** Lets jobs under way end, for a few seconds; what is cut off then is tried again by the next worker. */
  stop(): Promise<void>;
}

/**
 * Carries out jobs as they are enqueued, each at most a minute long. It has connections of its own, and outlives the
 * database's absence. A job whose worker is killed is tried again after four hours, not before: what must happen in time
 * is not left to a job alone.
 */
export function startWorker(options: WorkerOptions): Worker {
  return new RunningWorker(options);
}

/**
 * Carries out the jobs that are due now, one after the other, and returns when none is left. Those that fail are due
 * again later.
 */
export async function runDueJobs(options: WorkerOptions): Promise<void> {
  const connections = connect(options, MAX_CONNECTIONS);
  try {
    await runOnce({ ...queueOptions(options), concurrency: 1, pgPool: connections }, bounded(options).tasks);
  } finally {
    await connections.end();
  }
}

class RunningWorker implements Worker {
  readonly #options: WorkerOptions;
  readonly #connections: Pool;
  readonly #jobs: BoundedJobs;
  readonly #stopping = new AbortController();
  readonly #forgetting: NodeJS.Timeout;
  readonly #running: Promise<void>;
  #queue: WorkerPool | undefined;
  #stopped: Promise<void> | undefined;

  constructor(options: WorkerOptions) {
    this.#options = options;
    this.#connections = connect(options, MAX_CONNECTIONS);
    this.#jobs = bounded(options);
    this.#running = this.#run();
    void this.#forgetFailed();
    this.#forgetting = setInterval(() => void this.#forgetFailed(), FORGET_INTERVAL_MS);
    this.#forgetting.unref();
  }

  stop(): Promise<void> {
    this.#stopped ??= this.#stop();
    return this.#stopped;
  }

  async #stop(): Promise<void> {
    this.#stopping.abort();
    clearInterval(this.#forgetting);
    const cutOff = setTimeout(() => this.#jobs.abortAll("the service stops"), STOP_GRACE_MS);
    try {
      const ended = Promise.all([this.#queue?.gracefulShutdown("the service stops"), this.#running]);
      await within(ended, STOP_TIMEOUT_MS);
    } catch (error) {
      this.#options.log.warn({ err: error }, "the job queue did not end in order");
    } finally {
      clearTimeout(cutOff);
      this.#jobs.abortAll("the service stops");
      await within(this.#connections.end(), CLOSE_TIMEOUT_MS).catch(() => {});
    }
  }

  /**
   * The queue ends itself when it cannot note how a job ended, which is what happens when the database goes away at the
   * wrong moment. It is started anew, and the jobs that the old one left locked are released.
   */
  async #run(): Promise<void> {
    const { log } = this.#options;
    const { signal } = this.#stopping;
    while (!signal.aborted) {
      const queue = runTaskList(queueOptions(this.#options), this.#jobs.tasks, this.#connections);
      this.#queue = queue;
      await queue.promise.catch((error: unknown) => log.warn({ err: error }, "the job queue ended"));
      this.#queue = undefined;
      await this.#release(queue.id);
    }
  }

  async #release(queueId: string): Promise<void> {
    const { signal } = this.#stopping;
    for (let pauseMs = FIRST_RESTART_PAUSE_MS; !signal.aborted; pauseMs = Math.min(pauseMs * 2, MAX_RESTART_PAUSE_MS)) {
      await pause(pauseMs, signal);
      try {
        await this.#connections.query("SELECT graphile_worker.force_unlock_workers($1::text[])", [[queueId]]);
        return;
      } catch (error) {
        this.#options.log.warn({ err: error }, "the job queue cannot be reached");
      }
    }
  }

  async #forgetFailed(): Promise<void> {
    try {
      await this.#connections.query(
        `SELECT count(*) FROM graphile_worker.complete_jobs(ARRAY(
           SELECT id FROM graphile_worker.jobs
            WHERE attempts >= max_attempts AND locked_at IS NULL AND updated_at < now() - make_interval(days => $1)
            LIMIT $2))`,
        [KEEP_FAILED_DAYS, MAX_FORGOTTEN_AT_ONCE],
      );
    } catch (error) {
      this.#options.log.warn({ err: error }, "jobs that were given up could not be removed");
    }
  }
}

interface BoundedJobs {
  readonly tasks: TaskList;
  /** Ends every job under way as failed. */
  abortAll(reason: string): void;
}

/** The handlers with what holds for all of them: a bound on their time, and a log line for their end. */
function bounded({ handlers, log }: WorkerOptions): BoundedJobs {
  const underWay = new Set<AbortController>();
  const tasks: TaskList = {};
  for (const [task, handler] of Object.entries(handlers)) {
    tasks[task] = async (payload, { job }) => {
      const isLastAttempt = job.attempts >= job.max_attempts;
      const facts = { task, jobId: job.id, attempt: job.attempts };
      const aborting = new AbortController();
      const { signal } = aborting;
      underWay.add(aborting);
      const late = new Error(`the job took longer than ${JOB_TIMEOUT_MS / 1000} s`);
      const timer = setTimeout(() => aborting.abort(late), JOB_TIMEOUT_MS);
      try {
        await untilAborted(handler(payload, { jobId: job.id, attempt: job.attempts, isLastAttempt, signal }), signal);
        log.debug(facts, "job done");
      } catch (error) {
        if (isLastAttempt) log.error({ ...facts, err: error }, "job given up");
        else log.warn({ ...facts, err: error }, "job failed and will be tried again");
        throw error;
      } finally {
        clearTimeout(timer);
        underWay.delete(aborting);
      }
    };
  }
  return {
    tasks,
    abortAll(reason) {
      for (const aborting of underWay) aborting.abort(new Error(reason));
    },
  };
}

function connect({ databaseUrl, log }: WorkerOptions, max: number): Pool {
  const connections = new Pool({
    connectionString: databaseUrl,
    max,
    application_name: "tradepost jobs",
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    statement_timeout: QUERY_TIMEOUT_MS,
    query_timeout: QUERY_TIMEOUT_MS,
    keepAlive: true,
  });
  // Without listeners a connection that breaks would end the process; whoever uses it hears of it by its query.
  const note = (error: Error) => log.debug({ err: error }, "a connection of the job queue broke");
  connections.on("error", note);
  connections.on("connect", (client) => client.on("error", note));
  return connections;
}

function queueOptions({ log, prepared }: WorkerOptions) {
  return {
    concurrency: CONCURRENCY,
    pollInterval: POLL_INTERVAL_MS,
    noPreparedStatements: !prepared,
    // main.ts decides what signals mean.
    noHandleSignals: true,
    logger: queueLogger(log),
    // Noting the end of jobs in batches, however small, is the only way in which a failure to do so is not thrown where
    // nobody can catch it.
    preset: { worker: { completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
  };
}

/** The queue's own lines are details; how jobs end is told above, with fields. */
function queueLogger(log: Logger): QueueLogger {
  return new QueueLogger(() => (level, detail, meta) => {
    if (meta?.["failure"] === true || meta?.["success"] === true) return;
    const severe = level === "error" || level === "warning";
    log[severe ? "warn" : "trace"]({ detail }, "job queue");
  });
}

async function untilAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  const aborted = new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  await Promise.race([work, aborted]);
}

/** Waits, or returns at once when `signal` is aborted. */
async function pause(pauseMs: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, pauseMs);
    signal.addEventListener("abort", end, { once: true });
  });
}
