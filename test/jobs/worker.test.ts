import { Writable } from "node:stream";
import { expect } from "chai";
import { pino } from "pino";
import { inTransaction } from "../../src/db/transaction.ts";
import { enqueue, type Job } from "../../src/jobs/enqueue.ts";
import { type JobContext, type JobHandlers, runDueJobs, startWorker, type Worker } from "../../src/jobs/worker.ts";
import { sql, useDatabase } from "../support/database.ts";
import { administer } from "../support/postgres.ts";
import { until } from "../support/process.ts";

const silent = pino({ level: "silent" });

interface LogLine {
  readonly level: number;
  readonly msg: string;
  readonly task?: string;
  readonly attempt?: number;
}

/** A log from `warn` on, and what it has been told. */
function logLines() {
  const lines: LogLine[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(JSON.parse(chunk.toString()));
      done();
    },
  });
  return { log: pino({ level: "warn" }, sink), lines };
}

describe("jobs", () => {
  const database = useDatabase();
  const workers: Worker[] = [];

  const options = (handlers: JobHandlers, log = silent) => ({
    databaseUrl: database.url,
    prepared: true,
    handlers,
    log,
  });
  const start = (handlers: JobHandlers): Worker => {
    const worker = startWorker(options(handlers));
    workers.push(worker);
    return worker;
  };
  const add = (...jobs: Job[]) => inTransaction(database.db, (transaction) => enqueue(database.db, jobs, transaction));
  const left = async () => {
    const text = "SELECT task_identifier AS task, attempts, locked_at IS NOT NULL AS locked FROM graphile_worker.jobs";
    return sql<{ task: string; attempts: number; locked: boolean }>(database, text);
  };
  const makeDue = () => sql(database, "UPDATE graphile_worker._private_jobs SET run_at = now() - interval '1 s'");

  afterEach(async () => {
    await Promise.all(workers.splice(0).map((worker) => worker.stop()));
    await sql(database, "DELETE FROM graphile_worker._private_jobs");
  });

  it("are done after the transaction that asks for them has committed", async () => {
    const payloads: unknown[] = [];
    await add({ task: "note", payload: { n: 1 } }, { task: "note", payload: { n: 2 } });
    await runDueJobs(options({ note: async (payload) => void payloads.push(payload) }));
    expect(payloads).to.deep.equal([{ n: 1 }, { n: 2 }]);
    expect(await left()).to.deep.equal([]);
  });

  it("are never done when it rolls back", async () => {
    const failing = inTransaction(database.db, async (transaction) => {
      await enqueue(database.db, [{ task: "note", payload: {} }], transaction);
      throw new Error("changed my mind");
    });
    await failing.catch(() => {});
    expect(await left()).to.deep.equal([]);
  });

  it("are one while one of the same key waits", async () => {
    let done = 0;
    await add({ task: "note", payload: {}, key: "k" }, { task: "other", payload: {}, key: "k2" });
    await add({ task: "note", payload: {}, key: "k" });
    await runDueJobs(options({ note: async () => void done++, other: async () => {} }));
    expect(done).to.equal(1);
  });

  it("are tried again later when they fail, and given up in the end with an error in the log", async () => {
    const contexts: JobContext[] = [];
    const { log, lines } = logLines();
    const failing: JobHandlers = {
      async fail(_payload, context) {
        contexts.push(context);
        throw new Error("not today");
      },
    };
    await add({ task: "fail", payload: {} });
    await runDueJobs(options(failing, log));
    const postpone = "UPDATE graphile_worker._private_jobs SET max_attempts = 2, run_at = run_at + interval '1 h'";
    const [job] = await sql(database, `${postpone} RETURNING run_at > updated_at + interval '1 h' AS later`);
    expect(job).to.deep.equal({ later: true });
    await runDueJobs(options(failing, log));
    expect(contexts, "before its time has come").to.have.length(1);
    await makeDue();
    await runDueJobs(options(failing, log));
    await makeDue();
    await runDueJobs(options(failing, log));

    expect(contexts.map(({ attempt, isLastAttempt }) => [attempt, isLastAttempt])).to.deep.equal([
      [1, false],
      [2, true],
    ]);
    expect(lines.map(({ level, msg, task, attempt }) => ({ level, msg, task, attempt }))).to.deep.equal([
      { level: 40, msg: "job failed and will be tried again", task: "fail", attempt: 1 },
      { level: 50, msg: "job given up", task: "fail", attempt: 2 },
    ]);
    expect(await left()).to.deep.equal([{ task: "fail", attempts: 2, locked: false }]);
  });

  it("that were given up are kept for a month", async () => {
    await add({ task: "old", payload: {} }, { task: "recent", payload: {} }, { task: "waiting", payload: {} });
    await sql(
      database,
      `UPDATE graphile_worker._private_jobs job
          SET run_at = now() + interval '1 h', updated_at = now() - make_interval(days => task.days),
              attempts = CASE task.identifier WHEN 'waiting' THEN 0 ELSE max_attempts END
         FROM (SELECT id, identifier, CASE identifier WHEN 'recent' THEN 29 ELSE 31 END AS days
                 FROM graphile_worker._private_tasks) task
        WHERE task.id = job.task_id`,
    );
    start({ old: async () => {} });
    await until("the old one is gone", async () => ((await left()).length < 3 ? true : undefined));
    expect((await left()).map(({ task }) => task).sort()).to.deep.equal(["recent", "waiting"]);
  });

  it("are taken up by a running worker as soon as they are there", async () => {
    const taken: number[] = [];
    start({ note: async () => void taken.push(Date.now()) });
    await add({ task: "note", payload: {} });
    await until("the first job is done", () => taken[0]);
    await add({ task: "note", payload: {} });
    await until("the second job is done", () => taken[1]);
  });

  it("are each done by one of several workers", async () => {
    const seen: number[] = [];
    const handlers: JobHandlers = { note: async (payload) => void seen.push((payload as { n: number }).n) };
    const wanted = Array.from({ length: 40 }, (_, n) => n);
    start(handlers);
    start(handlers);
    await add(...wanted.map((n) => ({ task: "note", payload: { n } })));
    await until("all jobs are done", async () => ((await left()).length === 0 ? true : undefined));
    expect(seen.sort((a, b) => a - b)).to.deep.equal(wanted);
  });

  it("that are under way end before the worker has stopped", async () => {
    let ended = false;
    const begun = Promise.withResolvers<void>();
    const finish = Promise.withResolvers<void>();
    const worker = start({
      async slow() {
        begun.resolve();
        await finish.promise;
        ended = true;
      },
    });
    await add({ task: "slow", payload: {} });
    await begun.promise;
    const stopped = worker.stop();
    finish.resolve();
    await stopped;
    expect(ended).to.equal(true);
    expect(await left()).to.deep.equal([]);
  });

  it("that do not end when the worker stops are cut off and left to the next one", async () => {
    const begun = Promise.withResolvers<AbortSignal>();
    const worker = start({
      async endless(_payload, { signal }) {
        begun.resolve(signal);
        await new Promise(() => {});
      },
    });
    await add({ task: "endless", payload: {} });
    const signal = await begun.promise;
    const startedAt = Date.now();
    await worker.stop();
    expect(Date.now() - startedAt).to.be.below(9_000);
    expect(signal.aborted).to.equal(true);
    expect(await left()).to.deep.equal([{ task: "endless", attempts: 1, locked: false }]);
  });

  it("go on when the database was away, also those whose end could not be noted", async () => {
    const begun = Promise.withResolvers<void>();
    const finish = Promise.withResolvers<void>();
    const attempts: number[] = [];
    let later = 0;
    const { log, lines } = logLines();
    const handlers: JobHandlers = {
      async interrupted(_payload, { attempt }) {
        attempts.push(attempt);
        begun.resolve();
        await finish.promise;
      },
      later: async () => void later++,
    };
    workers.push(startWorker(options(handlers, log)));
    await add({ task: "interrupted", payload: {} });
    await begun.promise;
    const name = new URL(database.url).pathname.slice(1);
    const server = process.env["TEST_POSTGRES_URL"] ?? "";
    await administer(server, `ALTER DATABASE ${name} ALLOW_CONNECTIONS false`);
    await administer(
      server,
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = '${name}' AND application_name = 'tradepost jobs'`,
    );
    finish.resolve();
    await until("the queue has noticed", () => lines.find(({ msg }) => msg === "the job queue ended"));
    await administer(server, `ALTER DATABASE ${name} ALLOW_CONNECTIONS true`);

    await add({ task: "later", payload: {} });
    await until("both jobs are done", async () => ((await left()).length === 0 ? true : undefined));
    expect(later).to.equal(1);
    expect(attempts).to.deep.equal([1, 2]);
  });
});
