import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Logger, runMigrations } from "graphile-worker";
import type { Client } from "pg";
import type { Database } from "./database.ts";

const MIGRATIONS = join(import.meta.dirname, "migrations");
/** Names our advisory lock among others of the same database; any constant does. */
const LOCK_KEY = 7_263_401;
const LOCK_TIMEOUT_MS = 60_000;

interface Applied {
  readonly name: string;
  readonly checksum: string;
}

/** The schema cannot be brought to the version of this code. `message` says why and what to do. */
export class MigrationError extends Error {
  override readonly name = "MigrationError";
}

/**
 * Applies the numbered SQL files that the database has not seen, each in a transaction of its own, and those of the job
 * queue, under an advisory lock so that replicas which start together wait for each other.
 * @returns the names of the files that were applied.
 * @throws MigrationError when an applied file was changed or is unknown to this code, or a file fails.
 */
export async function migrate(db: Database): Promise<string[]> {
  return db.withConnection(async (connection) => {
    await connection.query(`SET lock_timeout = ${LOCK_TIMEOUT_MS}`);
    await connection.query("SELECT pg_advisory_lock($1)", [LOCK_KEY]);
    try {
      // The job queue keeps its tables in a schema of its own, and brings their migrations along.
      await runMigrations({ connectionString: db.url, logger: new Logger(() => () => {}) });
      return await applyPending(connection);
    } finally {
      await connection.query("SELECT pg_advisory_unlock($1)", [LOCK_KEY]);
      await connection.query("RESET lock_timeout");
    }
  });
}

async function applyPending(connection: Client): Promise<string[]> {
  await connection.query(
    `CREATE TABLE IF NOT EXISTS schema_migrations (
       name text PRIMARY KEY, checksum text NOT NULL, apply_time timestamptz(3) NOT NULL DEFAULT now())`,
  );
  const files = readdirSync(MIGRATIONS)
    .filter((name) => name.endsWith(".sql"))
    .sort();
  const sources = new Map(files.map((name) => [name, readFileSync(join(MIGRATIONS, name), "utf8")]));
  const { rows: applied } = await connection.query<Applied>(
    "SELECT name, checksum FROM schema_migrations ORDER BY name",
  );
  for (const row of applied) verify(row, sources.get(row.name));

  if (applied.length === sources.size) return [];
  // Loaded only where there is something to apply: it takes a quarter of a second of every start otherwise.
  const { Umzug } = await import("umzug");
  const umzug = new Umzug({
    logger: undefined,
    storage: {
      executed: async () => applied.map(({ name }) => name),
      // Each file is recorded in the transaction that applies it, so that neither can be there without the other.
      logMigration: async () => {},
      unlogMigration: async () => {},
    },
    migrations: [...sources].map(([name, sql]) => ({ name, up: () => applyFile(connection, name, sql) })),
  });
  return (await umzug.up()).map(({ name }) => name);
}

function verify({ name, checksum }: Applied, source: string | undefined): void {
  if (source === undefined) {
    throw new MigrationError(`the database was migrated by a newer version (it has ${name}): update this one`);
  }
  if (checksumOf(source) !== checksum) {
    throw new MigrationError(
      `${name} was changed after it had been applied: restore the file, or use a new database (remove the data folder)`,
    );
  }
}

async function applyFile(connection: Client, name: string, sql: string): Promise<void> {
  await connection.query("BEGIN");
  try {
    await connection.query(sql);
    await connection.query("INSERT INTO schema_migrations (name, checksum) VALUES ($1, $2)", [name, checksumOf(sql)]);
    await connection.query("COMMIT");
  } catch (error) {
    await connection.query("ROLLBACK");
    throw new MigrationError(`${name} failed: ${(error as Error).message}`, { cause: error });
  }
}

function checksumOf(source: string): string {
  return createHash("sha256").update(source).digest("hex");
}
