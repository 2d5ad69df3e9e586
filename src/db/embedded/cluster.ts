import { randomBytes } from "node:crypto";
import { mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import pg from "pg";
import { EmbeddedPostgresError } from "./error.ts";
import { readIfPresent, statIfPresent, sync, writeDurably } from "./files.ts";
import type { Home } from "./home.ts";
import { commandAs, giveTree } from "./identity.ts";
import { lastLines, run } from "./program.ts";

/** The superuser's name. */
export const USER = "tradepost";
export const DATABASE = "tradepost";

const INITDB_TIMEOUT_MS = 120_000;
const CONNECT_TIMEOUT_MS = 10_000;
const PASSWORD = /^[0-9a-f]{48}$/;
const INITDB_ARGS = [
  `--username=${USER}`,
  "--auth=scram-sha-256",
  "--encoding=UTF8",
  "--locale=C",
  "--locale-provider=builtin",
  "--builtin-locale=C.UTF-8",
  "--data-checksums",
  "--no-instructions",
] as const;

/**
 * Whether the data are there.
 *
 * @throws EmbeddedPostgresError if their folder holds something else, or another version's data
 */
export async function isCluster({ data, version }: Home): Promise<boolean> {
  if ((await statIfPresent(data)) === undefined) return false;
  const made = (await readIfPresent(join(data, "PG_VERSION")))?.trim();
  if (made === undefined || made === "") {
    throw new EmbeddedPostgresError(`${data} holds no PostgreSQL data. Move it away, or use another folder.`);
  }
  if (made !== version) {
    throw new EmbeddedPostgresError(
      `The data in ${data} were made by PostgreSQL ${made}, and this is PostgreSQL ${version}. ` +
        `Dump them with pg_dump ${made} and restore them, or move the folder away to begin anew.`,
    );
  }
  return true;
}

/**
 * Makes the data, and a password for them. They are made beside their place and move there when they are complete: a
 * crash leaves all of them or nothing.
 */
export async function createCluster(home: Home, passwordFile: string, durable: boolean): Promise<void> {
  const { base, identity, binaries } = home;
  for (const name of await readdir(base)) {
    if (name.startsWith("initdb-")) await rm(join(base, name), { recursive: true, force: true });
  }
  const password = await preparePassword(passwordFile);
  const unfinished = await mkdtemp(join(base, "initdb-"));
  try {
    const secret = join(unfinished, "password");
    await writeDurably(secret, `${password}\n`);
    if (identity.kind === "account") await giveTree(unfinished, identity.uid, identity.gid);
    const args = [`--pgdata=${join(unfinished, "data")}`, `--pwfile=${secret}`, ...INITDB_ARGS];
    if (!durable) args.push("--no-sync");
    const { ok, output } = await run(commandAs(identity, binaries.initdb, args), { timeoutMs: INITDB_TIMEOUT_MS });
    if (!ok) throw new EmbeddedPostgresError(`PostgreSQL's data could not be made in ${base}: ${lastLines(output)}`);
    await rename(join(unfinished, "data"), home.data);
    await sync(base);
  } finally {
    await rm(unfinished, { recursive: true, force: true });
  }
}

/** A password that is there may belong to data that somebody moved away and will want back. */
async function preparePassword(file: string): Promise<string> {
  const kept = (await readIfPresent(file))?.trim() ?? "";
  if (PASSWORD.test(kept)) return kept;
  const password = randomBytes(24).toString("hex");
  await writeDurably(file, `${password}\n`);
  return password;
}

/** @throws EmbeddedPostgresError if the file is missing or holds something else */
export async function readPassword(file: string): Promise<string> {
  const password = (await readIfPresent(file))?.trim() ?? "";
  if (PASSWORD.test(password)) return password;
  throw new EmbeddedPostgresError(
    `${file} does not hold the password of the PostgreSQL data beside it. ` +
      `Restore it, or remove ${dirname(file)} to begin anew.`,
  );
}

/**
 * Makes our database at the first start, and after a first start that was killed before it came to that.
 *
 * @throws EmbeddedPostgresError if PostgreSQL does not accept the password
 */
export async function ensureDatabase(url: string, passwordFile: string): Promise<void> {
  try {
    await query(url, "SELECT 1");
  } catch (error) {
    const code = (error as { code?: string }).code;
    if (code === "28P01") {
      throw new EmbeddedPostgresError(
        `PostgreSQL does not accept the password in ${passwordFile}. ` +
          `Restore it, or remove ${dirname(passwordFile)} to begin anew.`,
      );
    }
    if (code !== "3D000") throw error;
    const postgres = new URL(url);
    postgres.pathname = "/postgres";
    await query(postgres.href, `CREATE DATABASE ${DATABASE}`);
  }
}

async function query(connectionString: string, sql: string): Promise<void> {
  const client = new pg.Client({
    connectionString,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    query_timeout: CONNECT_TIMEOUT_MS,
  });
  // The answer to the query says what went wrong; an error between queries needs a listener, or it ends the process.
  client.on("error", () => {});
  try {
    await client.connect();
    await client.query(sql);
  } finally {
    await client.end().catch(() => {});
  }
}
