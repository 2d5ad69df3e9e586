import { randomBytes } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { pino } from "pino";
import { Database } from "../../src/db/database.ts";
import { startEmbedded } from "../../src/db/embedded.ts";
import { migrate } from "../../src/db/migrate.ts";

const DEFAULT_IMAGE = "postgres:18-alpine";
const ENGINE_TIMEOUT_MS = 2_000;
/** Every worker has a few pools open at a time. */
const MAX_CONNECTIONS = "300";

/** A PostgreSQL server for one test run, with a migrated database to clone. */
export interface TestPostgres {
  /** A superuser's URL of the server's maintenance database. */
  readonly url: string;
  /** The name of the migrated database. */
  readonly template: string;
  stop(): Promise<void>;
}

interface RunningServer {
  readonly url: string;
  stop(): Promise<void>;
}

/** Where the tests' PostgreSQL comes from: TEST_DATABASE is embedded (default), container or url. */
const sources: Readonly<Record<string, (env: NodeJS.ProcessEnv) => Promise<RunningServer>>> = {
  embedded: startEmbeddedServer,
  container: startContainer,
  url: useServer,
};

/** Starts the server, and migrates the template once. */
export async function startTestPostgres(env: NodeJS.ProcessEnv): Promise<TestPostgres> {
  const kind = env["TEST_DATABASE"] || "embedded";
  const start = sources[kind];
  if (start === undefined) throw new Error(`TEST_DATABASE must be embedded, container or url, not "${kind}"`);
  const server = await start(env);
  const template = `tradepost_template_${randomBytes(4).toString("hex")}`;
  try {
    await administer(server.url, `CREATE DATABASE ${template}`);
    const db = new Database({ url: databaseUrl(server.url, template), poolMax: 2, prepared: true });
    await migrate(db);
    await db.close();
  } catch (error) {
    await server.stop();
    throw error;
  }
  return {
    url: server.url,
    template,
    async stop() {
      await administer(server.url, `DROP DATABASE IF EXISTS ${template} WITH (FORCE)`).catch(() => {});
      await server.stop();
    },
  };
}

/** Runs one statement outside of any transaction on the server's maintenance database. */
export async function administer(url: string, sql: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query(sql);
  } finally {
    await client.end();
  }
}

/** The URL of another database of the same server. */
export function databaseUrl(url: string, name: string): string {
  const other = new URL(url);
  other.pathname = `/${name}`;
  return other.href;
}

async function startEmbeddedServer(): Promise<RunningServer> {
  const folder = await mkdtemp(join(tmpdir(), "tradepost-test-"));
  const server = await startEmbedded({
    dataDir: join(folder, "postgres"),
    log: pino({ level: "silent" }),
    durable: false,
    settings: { max_connections: MAX_CONNECTIONS },
  });
  return {
    url: server.url,
    async stop() {
      await server.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

async function startContainer(env: NodeJS.ProcessEnv): Promise<RunningServer> {
  const image = env["TEST_POSTGRES_IMAGE"] || DEFAULT_IMAGE;
  const { PostgreSqlContainer } = await import("@testcontainers/postgresql");
  const { getContainerRuntimeClient, ImageName } = await import("testcontainers");
  const hasImage = await within(ENGINE_TIMEOUT_MS, async () => {
    const engine = await getContainerRuntimeClient();
    return engine.image.exists(ImageName.fromString(image));
  }).catch((error: Error) => {
    throw new UnavailableError(`TEST_DATABASE=container: no container engine answers (${firstLine(error)})`);
  });
  // Not pulled here: that takes minutes without a word, or for ever where there is no registry.
  if (!hasImage) throw new UnavailableError(`TEST_DATABASE=container: get the image first, with: docker pull ${image}`);

  const container = await new PostgreSqlContainer(image)
    .withCommand(["postgres", "-c", `max_connections=${MAX_CONNECTIONS}`, "-c", "fsync=off"])
    .start();
  return {
    url: container.getConnectionUri(),
    async stop() {
      await container.stop();
    },
  };
}

async function useServer(env: NodeJS.ProcessEnv): Promise<RunningServer> {
  const url = env["TEST_DATABASE_URL"];
  if (url === undefined)
    throw new UnavailableError("TEST_DATABASE=url needs TEST_DATABASE_URL, of a user who may create databases");
  return { url, stop: async () => {} };
}

/** The chosen database is not to be had on this machine. Its message says all, so it has no stack. */
class UnavailableError extends Error {
  override readonly name = "UnavailableError";
  override readonly stack = "";
}

function firstLine({ message }: Error): string {
  return message.split("\n", 1)[0] ?? "";
}

async function within<T>(timeoutMs: number, work: () => Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
  });
  try {
    return await Promise.race([work(), late]);
  } finally {
    clearTimeout(timer);
  }
}
