/**
 * The parent process of the embedded PostgreSQL: `node embedded-supervisor.ts`, with an IPC channel to the server that
 * started it. It outlives that server by as long as PostgreSQL needs to shut down, so that not even `kill -9` leaves a
 * database running that nobody watches.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { boundLog } from "./embedded/log.ts";

/** From the server: the first message starts PostgreSQL, the second asks for a fast shutdown. */
export type SupervisorRequest = SupervisorStart | { readonly kind: "stop" };

export interface SupervisorStart {
  readonly kind: "start";
  readonly command: string;
  readonly args: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
  readonly env: Readonly<Record<string, string>>;
  /** The file behind our standard error, which PostgreSQL inherits. */
  readonly logFile: string;
}

/** To the server. `how` is the second half of a sentence: "exit code 1". */
export type SupervisorReport =
  | { readonly kind: "started"; readonly pid: number }
  | { readonly kind: "exited"; readonly how: string };

const FAST_SHUTDOWN_MS = 15_000;
const IMMEDIATE_SHUTDOWN_MS = 5_000;
const LOG_CHECK_INTERVAL_MS = 30_000;

let postgres: ChildProcess | undefined;
let stopping = false;
let finished = false;
const timers: NodeJS.Timeout[] = [];

process.on("message", (request: SupervisorRequest) => {
  if (request.kind === "start") start(request);
  else stop();
});
process.on("disconnect", stop);
// A service manager signals every process of a service at once. The server still needs its database to finish what it is
// doing, and tells us when it is done, if only by ending.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => {});

function start({ command, args, uid, gid, env, logFile }: SupervisorStart): void {
  if (stopping || postgres !== undefined) return;
  const identity = uid === undefined || gid === undefined ? {} : { uid, gid };
  postgres = spawn(command, args, { cwd: "/", env: { ...env }, stdio: ["ignore", "inherit", "inherit"], ...identity });
  postgres.once("error", (error) => finish(`could not be run: ${error.message}`));
  postgres.once("spawn", () => report({ kind: "started", pid: postgres?.pid ?? 0 }));
  postgres.once("exit", (code, signal) => finish(signal === null ? `exit code ${code}` : `signal ${signal}`));
  // A log that cannot be kept short, or that somebody removed, is no reason to stop the database.
  timers.push(setInterval(() => void boundLog(logFile).catch(() => {}), LOG_CHECK_INTERVAL_MS));
}

function stop(): void {
  if (stopping || finished) return;
  stopping = true;
  if (postgres === undefined) {
    finish("was never started");
    return;
  }
  postgres.kill("SIGINT");
  timers.push(
    setTimeout(() => postgres?.kill("SIGQUIT"), FAST_SHUTDOWN_MS),
    setTimeout(() => postgres?.kill("SIGKILL"), FAST_SHUTDOWN_MS + IMMEDIATE_SHUTDOWN_MS),
  );
}

function finish(how: string): void {
  if (finished) return;
  finished = true;
  for (const timer of timers) clearTimeout(timer);
  report({ kind: "exited", how }, () => {
    if (process.connected) process.disconnect();
  });
}

function report(message: SupervisorReport, sent: () => void = () => {}): void {
  // The server may end at any moment, and then the report has no reader and needs none.
  if (process.connected) process.send?.(message, undefined, undefined, sent);
}
