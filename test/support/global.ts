import { startTestPostgres, type TestPostgres } from "./postgres.ts";

let postgres: TestPostgres | undefined;

/** Runs once for the whole run, before any worker starts: workers get what they need by the environment. */
export async function mochaGlobalSetup(): Promise<void> {
  postgres = await startTestPostgres(process.env);
  process.env["TEST_POSTGRES_URL"] = postgres.url;
  process.env["TEST_TEMPLATE"] = postgres.template;
}

export async function mochaGlobalTeardown(): Promise<void> {
  await postgres?.stop();
}
