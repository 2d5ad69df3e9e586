import { randomBytes } from "node:crypto";
import { Database } from "../../src/db/database.ts";
import { administer, databaseUrl } from "./postgres.ts";

/** A database of one's own, cloned from the migrated template in milliseconds. */
export interface TestDatabase {
  readonly url: string;
  readonly db: Database;
  drop(): Promise<void>;
}

export async function createDatabase(): Promise<TestDatabase> {
  const server = required("TEST_POSTGRES_URL");
  const name = `tradepost_test_${randomBytes(6).toString("hex")}`;
  await administer(server, `CREATE DATABASE ${name} TEMPLATE ${required("TEST_TEMPLATE")}`);
  const url = databaseUrl(server, name);
  const db = new Database({ url, poolMax: 4, prepared: true });
  return {
    url,
    db,
    async drop() {
      await db.close();
      await administer(server, `DROP DATABASE ${name} WITH (FORCE)`);
    },
  };
}

/** Gives the suite it is called in a database, made before its first test and dropped after its last. */
export function useDatabase(): TestDatabase {
  let made: TestDatabase | undefined;
  before(async () => {
    made = await createDatabase();
  });
  after(() => made?.drop());
  const present = () => {
    if (made === undefined) throw new Error("the database is there from `before` on");
    return made;
  };
  return {
    get url() {
      return present().url;
    },
    get db() {
      return present().db;
    },
    drop: async () => present().drop(),
  };
}

/** Runs SQL on a test's database, for what no RPC shows. */
export async function sql<Row extends object>(
  { db }: TestDatabase,
  text: string,
  values: unknown[] = [],
): Promise<Row[]> {
  return db.withConnection(async (connection) => (await connection.query<Row>(text, values)).rows);
}

/** Runs SQL that changes the ledger, which the database itself does not let anybody do. */
export async function tamperWithLedger({ db }: TestDatabase, text: string, values: unknown[]): Promise<void> {
  await db.sequelize.transaction(async (transaction) => {
    await db.sequelize.query("ALTER TABLE ledger_entries DISABLE TRIGGER USER", { transaction });
    await db.sequelize.query(text, { bind: values, transaction });
    await db.sequelize.query("ALTER TABLE ledger_entries ENABLE TRIGGER USER", { transaction });
  });
}

function required(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set: test/support/global.ts sets it, see .mocharc.json`);
  return value;
}
