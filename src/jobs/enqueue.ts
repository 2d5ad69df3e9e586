import type { Transaction } from "sequelize";
import type { Database } from "../db/database.ts";

/** With graphile-worker's growing pauses (e^n seconds, at most six hours) the last try comes about 16 hours later. */
const MAX_ATTEMPTS = 12;

/**
 * A query for the jobs that have not succeeded, those that were given up among them: `task`, `payload`, `create_time`.
 * The library's own view does not show payloads.
 */
export const UNFINISHED_JOBS = `SELECT t.identifier AS task, j.payload, j.created_at AS create_time
  FROM graphile_worker._private_jobs j JOIN graphile_worker._private_tasks t ON t.id = j.task_id`;

/** Work to be done after the transaction that asks for it has committed; never if it rolls back. */
export interface Job {
  /** Which handler does it: see the handlers that main.ts gives to the worker. */
  readonly task: string;
  readonly payload: object;
  /** A job with the same key that waits is replaced instead of doubled. */
  readonly key?: string;
}

/** Enqueues jobs in `transaction`, all in one statement: each statement is one NOTIFY, and those serialise commits. */
export async function enqueue(db: Database, jobs: readonly Job[], transaction: Transaction): Promise<void> {
  if (jobs.length === 0) return;
  await db.query(
    {
      name: "enqueue-jobs",
      text: `SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(
               SELECT json_populate_record(NULL::graphile_worker.job_spec, spec) FROM json_array_elements($1::json) spec))`,
    },
    [JSON.stringify(jobs.map(toSpec))],
    transaction,
  );
}

function toSpec({ task, payload, key }: Job) {
  return { identifier: task, payload, job_key: key ?? null, max_attempts: MAX_ATTEMPTS };
}
