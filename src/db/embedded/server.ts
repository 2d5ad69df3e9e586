import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { open } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { EmbeddedOptions } from "../embedded.ts";
import type { SupervisorReport, SupervisorRequest } from "../embedded-supervisor.ts";
import { EmbeddedPostgresError } from "./error.ts";
import { readIfPresent } from "./files.ts";
import type { Home } from "./home.ts";
import { commandAs } from "./identity.ts";
import { clearLeftovers } from "./leftovers.ts";
import { boundLog, readLogSince } from "./log.ts";
import { lastLines, PROGRAM_ENV } from "./program.ts";

export const HOST = "127.0.0.1";

const START_TIMEOUT_MS = 60_000;
const START_ATTEMPTS = 5;
const RETRY_DELAY_MS = 200;
const POLL_INTERVAL_MS = 25;
/** Longer than the supervisor takes until it kills PostgreSQL. */
const STOP_TIMEOUT_MS = 25_000;
const KILL_TIMEOUT_MS = 200;

const SUPERVISOR = fileURLToPath(new URL("../embedded-supervisor.ts", import.meta.url));

const DEFAULT_SETTINGS: Readonly<Record<string, string>> = {
  max_connections: "100",
  shared_buffers: "128MB",
  timezone: "UTC",
  log_timezone: "UTC",
  log_checkpoints: "off",
  cluster_name: "tradepost",
};
const UNSAFE_SETTINGS: Readonly<Record<string, string>> = {
  fsync: "off",
  full_page_writes: "off",
  synchronous_commit: "off",
};

/** What passes by itself: a port taken between choosing and using it, or a PostgreSQL that is still leaving. */
const PASSING = /Address already in use|lock file .* already exists|shared memory block .* still in use/;

/** One PostgreSQL below a supervisor. */
export interface Server {
  /** The postmaster's, or undefined if PostgreSQL could not even be run. */
  readonly pid: Promise<number | undefined>;
  /** How it ended, or how its supervisor did. Never rejects. */
  readonly ended: Promise<string>;
  /** The sentence, and the last lines of the log since the start. */
  describe(sentence: string): Promise<string>;
  /** Shuts it down. Never rejects, and never takes longer than its bound. */
  stop(): Promise<void>;
}

/** A supervisor, and what it reports. */
interface Supervised extends Pick<Server, "pid" | "ended"> {
  readonly child: ChildProcess;
  /** How long the log was when it started. */
  readonly logStart: number;
}

/**
 * Starts PostgreSQL on the home's data, which nothing uses, and waits until it accepts connections. Tries again where the
 * cause passes.
 *
 * @throws EmbeddedPostgresError with PostgreSQL's own words if it does not start
 */
export async function startServer(
  home: Home,
  logFile: string,
  options: EmbeddedOptions,
): Promise<{ server: Server; port: number }> {
  for (let attempt = 1; ; attempt++) {
    const port = await freePort();
    const server = await launch(home, logFile, serverSettings(port, options));
    const failure = await waitUntilReady(server, home.data, options.startTimeoutMs ?? START_TIMEOUT_MS);
    if (failure === undefined) return { server, port };
    const reason = await server.describe(failure);
    await server.stop();
    if (!PASSING.test(reason) || attempt === START_ATTEMPTS) {
      throw new EmbeddedPostgresError(`${reason} (full log: ${logFile})`);
    }
    options.log.warn({ attempt, reason }, "PostgreSQL did not start; trying again");
    await clearLeftovers(home.data, options.log);
    await sleep(RETRY_DELAY_MS * attempt);
  }
}

function serverSettings(port: number, options: EmbeddedOptions): Record<string, string> {
  return {
    ...DEFAULT_SETTINGS,
    ...(options.durable === false ? UNSAFE_SETTINGS : {}),
    ...options.settings,
    listen_addresses: HOST,
    port: String(port),
    unix_socket_directories: "",
  };
}

async function launch(home: Home, logFile: string, settings: Readonly<Record<string, string>>): Promise<Server> {
  const args = ["-D", home.data, ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])];
  const { child, logStart, pid, ended } = await runSupervisor(logFile);
  const command = commandAs(home.identity, home.binaries.postgres, args);
  send(child, { kind: "start", ...command, env: PROGRAM_ENV, logFile });
  // Whoever forgets to stop a server is not kept alive by it, and it goes down with them.
  child.unref();
  child.channel?.unref();
  return {
    pid,
    ended,
    // A log that somebody removed says no more than the sentence.
    describe: async (sentence) =>
      `${sentence} ${lastLines(await readLogSince(logFile, logStart).catch(() => ""))}`.trim(),
    stop: () => stopSupervised(child, ended),
  };
}

async function runSupervisor(logFile: string): Promise<Supervised> {
  const log = await open(logFile, "a", 0o600);
  try {
    await boundLog(logFile);
    const logStart = (await log.stat()).size;
    const child = spawn(process.execPath, [SUPERVISOR], {
      cwd: "/",
      env: { ...PROGRAM_ENV },
      stdio: ["ignore", log.fd, log.fd, "ipc"],
      detached: true,
    });
    return { child, logStart, ...listen(child) };
  } finally {
    await log.close();
  }
}

function listen(child: ChildProcess): Pick<Server, "pid" | "ended"> {
  let how: string | undefined;
  const pid = Promise.withResolvers<number | undefined>();
  child.on("error", () => {});
  child.on("message", (report: SupervisorReport) => {
    if (report.kind === "started") pid.resolve(report.pid);
    else how = report.how;
  });
  // Its last report may still be in the channel when the supervisor has ended, but not when the channel has.
  const gone = Promise.all([once(child, "exit"), once(child, "disconnect")]);
  const ended = gone.then(
    ([[code, signal]]) => how ?? `its supervisor ended with ${signal ? `signal ${signal}` : `exit code ${code}`}`,
    (error: Error) => `its supervisor could not be run: ${error.message}`,
  );
  void ended.then(() => pid.resolve(undefined));
  return { pid: pid.promise, ended };
}

function send(child: ChildProcess, request: SupervisorRequest): void {
  // A supervisor that has gone cannot be told anything, and `ended` says so.
  if (child.connected) child.send(request, () => {});
}

async function stopSupervised(child: ChildProcess, ended: Promise<string>): Promise<void> {
  child.ref();
  child.channel?.ref();
  send(child, { kind: "stop" });
  if ((await within(ended, STOP_TIMEOUT_MS)) !== undefined) return;
  child.kill("SIGKILL");
  await within(ended, KILL_TIMEOUT_MS);
}

/** Undefined when PostgreSQL accepts connections; otherwise a sentence that says why it does not. */
async function waitUntilReady({ pid, ended }: Server, data: string, timeoutMs: number): Promise<string | undefined> {
  let how: string | undefined;
  void ended.then((reason) => {
    how = reason;
  });
  const deadline = Date.now() + timeoutMs;
  const expected = String(await within(pid, timeoutMs));
  while (how === undefined) {
    // Line 1 is the postmaster's pid, line 8 its state: what pg_ctl waits for as well.
    const lines = (await readIfPresent(join(data, "postmaster.pid")))?.split("\n") ?? [];
    if (lines[0] === expected && lines[7]?.trim() === "ready") return undefined;
    if (Date.now() > deadline) return `PostgreSQL was not ready within ${timeoutMs / 1000} s.`;
    await sleep(POLL_INTERVAL_MS);
  }
  return `PostgreSQL did not start: ${how}.`;
}

async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, HOST);
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error(`No free port on ${HOST}`);
  return address.port;
}

/** The value, or undefined if it takes too long. */
async function within<T>(promise: Promise<T>, timeoutMs: number): Promise<T | undefined> {
  const timer = new AbortController();
  try {
    return await Promise.race([promise, sleep(timeoutMs, undefined, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}
