import { setTimeout as sleep } from "node:timers/promises";
import type { Client } from "pg";
import type { Invariant } from "../src/db/invariants.ts";

/** What preloads pg_stat_statements, which belongs to PostgreSQL. */
export const COUNTING = { shared_preload_libraries: "pg_stat_statements" } as const;
const PGBENCH_ROLE = "pgbench";

const JOBS_TIMEOUT_MS = 5 * 60_000;
const JOBS_POLL_MS = 100;

/** An order that can be paid. */
export interface UnpaidOrder {
  readonly id: string;
  readonly customerId: string;
  /** US dollars, as a decimal. */
  readonly total: string;
}

/** Statements of ProcessPayment, as conditions on pg_stat_statements. Jobs use none of them. */
const SERVICE_STATEMENTS = [
  { condition: "s.query LIKE '%FROM record_payments(%'", writes: true },
  { condition: "s.query LIKE '%WITH RECURSIVE accounts%'", writes: false },
  { condition: "s.query LIKE 'UPDATE payments SET risk_level%'", writes: true },
  { condition: "s.query LIKE '%FROM settle_payments(%'", writes: true },
] as const;
/** Of repeated BEGIN and COMMIT of one connection pg_stat_statements counts only the first. */
const PGBENCH_STATEMENTS = `s.userid = '${PGBENCH_ROLE}'::regrole AND s.query NOT IN ('BEGIN', 'COMMIT')`;

/** What taking payments took; what their jobs took is not in it. */
export interface Trips {
  /** Statements, each of which is a round trip. */
  readonly statements: number;
  /** Transactions that wrote. */
  readonly commits: number;
}

/**
 * Prepares a filled database for counting.
 * @returns the URL by which pgbench connects, under a name of its own so that its statements can be told apart.
 */
export async function prepareCounting(sql: Client, databaseUrl: string): Promise<string> {
  const url = new URL(databaseUrl);
  // Nothing that a paused service may hold is waited for without end.
  await sql.query("SET lock_timeout = '10s'");
  await sql.query("CREATE EXTENSION pg_stat_statements");
  await sql.query(`CREATE ROLE ${PGBENCH_ROLE} SUPERUSER LOGIN PASSWORD ${sql.escapeLiteral(url.password)}`);
  url.username = PGBENCH_ROLE;
  return url.href;
}

/**
 * Counts what the service's payments take from now on, until the function that it gives is called: each writing statement
 * is a transaction by itself. That function throws where there was none of some kind: then the statement is another one by
 * now, and would be missing from the count.
 */
export async function countServiceTrips(sql: Client): Promise<() => Promise<Trips>> {
  const conditions = SERVICE_STATEMENTS.map(({ condition }) => condition);
  const before = await callsOf(sql, conditions);
  return async () => {
    const after = await callsOf(sql, conditions);
    const calls = SERVICE_STATEMENTS.map((kind, i) => ({ ...kind, count: (after[i] ?? 0) - (before[i] ?? 0) }));
    const missing = calls.find(({ count }) => count === 0);
    if (missing !== undefined) throw new Error(`Not one statement was counted where ${missing.condition}`);
    return { statements: sum(calls), commits: sum(calls.filter(({ writes }) => writes)) };
  };
}

/**
 * The same for pgbench, while the service is paused: then each transaction that wrote is pgbench's own.
 * @param inBlocks Whether each transaction begins with BEGIN and ends with COMMIT, which are round trips, too.
 */
export async function countPgbenchTrips(sql: Client, inBlocks: boolean): Promise<(commits: number) => Promise<Trips>> {
  const [before = 0] = await callsOf(sql, [PGBENCH_STATEMENTS]);
  return async (commits) => {
    const [after = 0] = await callsOf(sql, [PGBENCH_STATEMENTS]);
    return { statements: after - before + (inBlocks ? 2 * commits : 0), commits };
  };
}

function sum(calls: readonly { readonly count: number }[]): number {
  return calls.reduce((total, { count }) => total + count, 0);
}

/** How often PostgreSQL has carried out the statements of each condition. */
async function callsOf(sql: Client, conditions: readonly string[]): Promise<number[]> {
  const sums = conditions.map((condition) => `coalesce(sum(s.calls) FILTER (WHERE ${condition}), 0)::float8`);
  const { rows } = await sql.query<{ calls: number[] }>(
    `SELECT ARRAY[${sums.join(", ")}] AS calls FROM pg_stat_statements s
      WHERE s.toplevel AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())`,
  );
  return rows[0]?.calls ?? [];
}

/**
 * Waits until every job is done, so that what a payment causes does not fall upon what is measured next.
 * @throws Error when a job has failed, or after five minutes.
 */
export async function untilJobsAreDone(sql: Client): Promise<void> {
  const giveUpAt = performance.now() + JOBS_TIMEOUT_MS;
  for (;;) {
    const { rows } = await sql.query<{ waiting: boolean; failure: string | null }>(
      `SELECT EXISTS (SELECT FROM graphile_worker.jobs) AS waiting,
              (SELECT last_error FROM graphile_worker.jobs WHERE last_error IS NOT NULL LIMIT 1) AS failure`,
    );
    const [{ waiting = true, failure = null } = {}] = rows;
    if (failure !== null) throw new Error(`A job has failed: ${failure}`);
    if (!waiting) return;
    if (performance.now() > giveUpAt) throw new Error(`Jobs were not done after ${JOBS_TIMEOUT_MS / 1000} s.`);
    await sleep(JOBS_POLL_MS);
  }
}

/**
 * Does at once what the jobs of pgbench's payments would do, except their mails, and empties the queue: the books then
 * agree, and the worker has nothing to search through.
 */
export async function finishPgbenchPayments(sql: Client): Promise<void> {
  await sql.query(
    `WITH paid AS MATERIALIZED (
       SELECT id, customer_id, currency, amount, process_time FROM payments p
        WHERE gateway_transaction_id = 'pgbench' AND status = 'COMPLETED'
          AND NOT EXISTS (SELECT FROM counted_payments WHERE payment_id = p.id)),
     counted AS (
       INSERT INTO counted_payments (payment_id) SELECT id FROM paid),
     rewarded AS (
       INSERT INTO reward_entries (id, customer_id, payment_id, points, create_time)
       SELECT uuidv7(), customer_id, id, trunc(amount), process_time FROM paid)
     INSERT INTO customer_payment_history AS h (customer_id, currency, payment_count, total_amount, last_payment_time)
     SELECT customer_id, currency, count(*), sum(amount), max(process_time) FROM paid GROUP BY customer_id, currency
     ON CONFLICT (customer_id, currency) DO UPDATE
        SET payment_count = h.payment_count + excluded.payment_count,
            total_amount = h.total_amount + excluded.total_amount, last_payment_time = excluded.last_payment_time`,
  );
  await sql.query("TRUNCATE graphile_worker._private_jobs");
}

/** Orders that can be paid. */
export async function findUnpaidOrders(sql: Client, limit: number): Promise<UnpaidOrder[]> {
  const { rows } = await sql.query<UnpaidOrder>(
    `SELECT id, customer_id AS "customerId", total_amount::text AS total FROM orders
      WHERE status = 'CONFIRMED' AND payment_state = 'UNPAID' LIMIT $1`,
    [limit],
  );
  return rows;
}

/** What must hold of a run's payments beside the rules for all payments: nothing was refused, and nothing tried twice. */
export const runInvariants: readonly Invariant[] = [
  {
    rule: "Every payment of the run is completed",
    table: "payments",
    text: `SELECT 'payment ' || id AS subject, format('it is %s: %s', status, failure_reason) AS fault
             FROM payments WHERE status <> 'COMPLETED'`,
  },
  {
    rule: "Every payment of the run was charged in one attempt, and has one movement in the ledger",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject, format('%s attempts, %s entries of %s movements', a.attempts, l.entries,
                                                   l.movements) AS fault
        FROM payments p
       CROSS JOIN LATERAL (SELECT count(*) AS attempts FROM payment_attempts WHERE payment_id = p.id) a
       CROSS JOIN LATERAL (SELECT count(*) AS entries, count(DISTINCT movement_id) AS movements
                             FROM ledger_entries WHERE payment_id = p.id) l
       WHERE (a.attempts, l.entries, l.movements) IS DISTINCT FROM (1, 4, 1)`,
  },
];

/** What the service believes that the gateway has captured: minor units by the attempt's id. */
export async function chargesInOurBooks(sql: Client): Promise<Map<string, number>> {
  const { rows } = await sql.query<{ id: string; minor: number }>(
    `SELECT id, (captured_amount * 100)::float8 AS minor FROM payment_attempts
      WHERE state = 'CAPTURED' AND transaction_id <> 'pgbench'`,
  );
  return new Map(rows.map(({ id, minor }) => [id, minor]));
}
