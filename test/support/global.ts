import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startTestPostgres, type TestPostgres } from "./postgres.ts";
import { refuseLeaks, rememberPasswordOf } from "./secrets.ts";

let postgres: TestPostgres | undefined;
let logDir: string | undefined;

/** Runs once for the whole run, before any worker starts: workers get what they need by the environment. */
export async function mochaGlobalSetup(): Promise<void> {
  logDir = await mkdtemp(join(tmpdir(), "tradepost-logs-"));
  process.env["TEST_LOG_DIR"] = logDir;
  postgres = await startTestPostgres(process.env);
  rememberPasswordOf(postgres.url);
  process.env["TEST_POSTGRES_URL"] = postgres.url;
  process.env["TEST_TEMPLATE"] = postgres.template;
}

export async function mochaGlobalTeardown(): Promise<void> {
  await postgres?.stop();
  if (logDir === undefined) return;
  try {
    await refuseLeaks(logDir);
  } finally {
    await rm(logDir, { recursive: true, force: true });
  }
}
