import { expect } from "chai";
import { type Model, type ModelStatic, QueryTypes } from "sequelize";
import { migrate } from "../../src/db/migrate.ts";
import { CatalogStore } from "../../src/orders/catalog-store.ts";
import { AddressStore } from "../../src/users/address-store.ts";
import { SessionStore } from "../../src/users/session-store.ts";
import { SigningKeyStore } from "../../src/users/signing-key-store.ts";
import { UserStore } from "../../src/users/store.ts";
import { sql, useDatabase } from "../support/database.ts";

describe("migrations", () => {
  const database = useDatabase();

  it("do nothing the second time", async () => {
    expect(await migrate(database.db)).to.deep.equal([]);
  });

  it("run once when several replicas start together", async () => {
    await sql(database, "DROP SCHEMA public CASCADE");
    await sql(database, "CREATE SCHEMA public");
    const applied = await Promise.all([migrate(database.db), migrate(database.db), migrate(database.db)]);
    expect(applied.map(({ length }) => length > 0).sort()).to.deep.equal([false, false, true]);
  });

  it("refuse a database that a newer version has migrated", async () => {
    await sql(database, "INSERT INTO schema_migrations (name, checksum) VALUES ('9999_future.sql', 'x')");
    const error = await migrate(database.db).catch((reason: Error) => reason);
    expect(String(error)).to.include("9999_future.sql").and.include("newer version");
    await sql(database, "DELETE FROM schema_migrations WHERE name = '9999_future.sql'");
  });

  it("refuse a file that was changed after it had been applied", async () => {
    await sql(database, "UPDATE schema_migrations SET checksum = 'other' WHERE name = '0001_accounts.sql'");
    const error = await migrate(database.db).catch((reason: Error) => reason);
    expect(String(error)).to.include("0001_accounts.sql was changed");
  });
});

describe("Sequelize's models", () => {
  const database = useDatabase();

  it("have exactly the columns of the live schema, with their nullability", async () => {
    for (const Store of [UserStore, AddressStore, SessionStore, SigningKeyStore, CatalogStore]) new Store(database.db);
    const models = Object.values(database.db.sequelize.models) as ModelStatic<Model>[];
    expect(models.map((model) => String(model.getTableName()))).to.include.members([
      "users",
      "addresses",
      "sessions",
      "signing_keys",
      "products",
    ]);

    for (const model of models) {
      const table = String(model.getTableName());
      const live = await database.db.sequelize.query<{ name: string; nullable: boolean }>(
        `SELECT column_name AS name, is_nullable = 'YES' AS nullable FROM information_schema.columns
          WHERE table_schema = 'public' AND table_name = $1 ORDER BY 1`,
        { bind: [table], type: QueryTypes.SELECT },
      );
      const mapped = Object.values(model.getAttributes())
        .map(({ field = "", allowNull, primaryKey }) => ({
          name: field,
          nullable: allowNull !== false && primaryKey !== true,
        }))
        .sort((a, b) => a.name.localeCompare(b.name));
      expect(mapped, table).to.deep.equal([...live].sort((a, b) => a.name.localeCompare(b.name)));
    }
  });
});

describe("the schema", () => {
  const database = useDatabase();

  it("explains every table", async () => {
    const silent = await sql(
      database,
      `SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
          AND obj_description(oid) IS NULL AND relname <> 'schema_migrations'`,
    );
    expect(silent).to.deep.equal([]);
  });

  it("indexes every foreign key that is looked up or deleted by", async () => {
    const bare = await sql<{ key: string }>(
      database,
      `SELECT conrelid::regclass || '.' || a.attname AS key
         FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
        WHERE contype = 'f' AND confdeltype = 'c' AND NOT EXISTS (
              SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1])`,
    );
    expect(bare).to.deep.equal([]);
  });
});
