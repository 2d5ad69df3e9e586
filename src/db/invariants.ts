import type { Client } from "pg";
import type { Database } from "./database.ts";

/** Examples of each kind of breach that are kept; all of them are counted. */
const MAX_EXAMPLES = 20;
/** For one statement: it reads whole tables, which a call's limit would not allow. */
const STATEMENT_TIMEOUT_MS = 10 * 60_000;
/** For one sort or hash: with the usual 4 MB those of 100,000 orders go to disk, which takes half as long again. */
const SORT_MEMORY_MIB = 32;

/** What must hold of every row of a table, as a query for those of which it does not. */
export interface Invariant {
  /** What holds, for a person. */
  readonly rule: string;
  /** The table whose rows it is about. */
  readonly table: string;
  /** Gives a row for each breach: `subject`, by which the row can be looked up, and `fault`, what is wrong with it. */
  readonly text: string;
  readonly values?: readonly unknown[];
  /** Its rows break nothing: they are what a person should know of. The rule then names them. */
  readonly remark?: boolean;
}

export interface Breach {
  readonly subject: string;
  readonly fault: string;
}

/** What became of one invariant. */
export interface Verdict {
  readonly rule: string;
  readonly remark: boolean;
  /** Zero: it holds. */
  readonly breaches: number;
  /** The first of them, MAX_EXAMPLES at most. */
  readonly examples: readonly Breach[];
}

export interface Examination {
  /** When the snapshot was taken, by the database's clock. */
  readonly time: Date;
  /** How many rows there were, by table. */
  readonly rows: ReadonlyMap<string, number>;
  /** One for each invariant, in order. */
  readonly verdicts: readonly Verdict[];
}

/**
 * Looks for breaches, all in one snapshot: on a database that is in use, too, they are of one moment. Nothing is written
 * and nothing is locked.
 */
export async function examine(db: Database, invariants: readonly Invariant[]): Promise<Examination> {
  return db.withConnection(async (connection) => {
    await connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    try {
      await connection.query(`SET LOCAL statement_timeout = ${STATEMENT_TIMEOUT_MS}`);
      await connection.query(`SET LOCAL work_mem = '${SORT_MEMORY_MIB}MB'`);
      const { rows: started } = await connection.query<{ time: Date }>("SELECT now() AS time");
      const rows = new Map<string, number>();
      for (const { table } of invariants) {
        if (!rows.has(table)) rows.set(table, await countRows(connection, table));
      }
      const verdicts: Verdict[] = [];
      for (const invariant of invariants) verdicts.push(await judge(connection, invariant));
      return { time: started[0]?.time ?? new Date(), rows, verdicts };
    } finally {
      // There is nothing to commit. A connection that broke must not hide why it did.
      await connection.query("ROLLBACK").catch(() => {});
    }
  });
}

async function countRows(connection: Client, table: string): Promise<number> {
  const { rows } = await connection.query<{ rows: string }>(`SELECT count(*) AS rows FROM ${table}`);
  return Number(rows[0]?.rows ?? 0);
}

async function judge(connection: Client, { rule, text, values = [], remark = false }: Invariant): Promise<Verdict> {
  const { rows } = await connection.query<Breach & { breaches: string }>(
    `WITH breach AS MATERIALIZED (${text})
     SELECT subject, fault, (SELECT count(*) FROM breach) AS breaches
       FROM breach ORDER BY subject, fault LIMIT ${MAX_EXAMPLES}`,
    [...values],
  );
  const examples = rows.map(({ subject, fault }) => ({ subject, fault }));
  return { rule, remark, breaches: Number(rows[0]?.breaches ?? 0), examples };
}
