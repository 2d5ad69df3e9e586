import { readdir, readlink, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { readLinuxProcess } from "../../processes.ts";
import { EmbeddedPostgresError } from "./error.ts";
import { readIfPresent } from "./files.ts";
import { run, signalProcess } from "./program.ts";

/** What is done to processes that an earlier run left in the data folder, and how long each step may take. */
const STEPS = [
  { signal: "SIGINT", timeoutMs: 15_000 },
  { signal: "SIGQUIT", timeoutMs: 5_000 },
  { signal: "SIGKILL", timeoutMs: 5_000 },
] as const;
/** Backends whose postmaster has gone notice that and leave by themselves. */
const ORPHANED_BACKENDS_MS = 1_000;
const POLL_INTERVAL_MS = 25;
const LIST_TIMEOUT_MS = 15_000;
const LIST_MAX_CHARS = 16 * 1024 * 1024;

interface ServerProcesses {
  /** Undefined if only its children are left. */
  readonly postmaster?: number;
  readonly all: readonly number[];
}

/**
 * Stops whatever PostgreSQL processes still use the data folder, which may be missing, and removes their pid file. Whoever
 * calls it holds the claim on the folder, so they are nobody's.
 *
 * @throws EmbeddedPostgresError if they do not go: a second server on live backends would destroy the data
 */
export async function clearLeftovers(data: string, log: Logger): Promise<void> {
  const found = await findServerProcesses(data);
  if (found.all.length > 0) {
    log.warn({ data, pids: found.all }, "Stopping a PostgreSQL that an earlier run left behind");
    await stopProcesses(found, data);
  }
  // PostgreSQL ignores the pid of a process that has gone, but not one that was given to somebody else since.
  await rm(join(data, "postmaster.pid"), { force: true });
}

async function stopProcesses(found: ServerProcesses, data: string): Promise<void> {
  let left = found;
  for (const { signal, timeoutMs } of STEPS) {
    const orphaned = left.postmaster === undefined;
    const targets = signal === "SIGINT" ? [left.postmaster].filter((pid) => pid !== undefined) : left.all;
    for (const pid of targets) {
      if (signalProcess(pid, signal) === "forbidden") throw unstoppable(data, [pid]);
    }
    const deadline = Date.now() + (orphaned && signal === "SIGINT" ? ORPHANED_BACKENDS_MS : timeoutMs);
    do {
      await sleep(POLL_INTERVAL_MS);
      left = await findServerProcesses(data);
      if (left.all.length === 0) return;
    } while (Date.now() < deadline);
  }
  throw unstoppable(data, left.all);
}

function unstoppable(data: string, pids: readonly number[]): EmbeddedPostgresError {
  return new EmbeddedPostgresError(
    `An earlier PostgreSQL still uses ${data} and could not be stopped. End its processes: ${pids.join(", ")}`,
  );
}

async function findServerProcesses(data: string): Promise<ServerProcesses> {
  const recorded = Number((await readIfPresent(join(data, "postmaster.pid")))?.split("\n")[0]);
  const all = process.platform === "linux" ? await scanProc(data) : parseProcessList(await listProcesses(), data);
  return all.includes(recorded) ? { postmaster: recorded, all } : { all };
}

/** Every process of a PostgreSQL server has the data folder as its working directory. */
async function scanProc(data: string): Promise<number[]> {
  const pids = (await readdir("/proc")).filter((name) => /^\d+$/.test(name)).map(Number);
  const found = pids.map(readLinuxProcess).filter((one) => one !== undefined);
  const servers = found.filter(({ command }) => command === "postgres");
  const ours = new Set<number>();
  for (const { pid } of servers) if (await worksIn(pid, data)) ours.add(pid);
  for (const { pid, parentPid } of servers) if (ours.has(parentPid)) ours.add(pid);
  return [...ours];
}

async function worksIn(pid: number, data: string): Promise<boolean> {
  try {
    return (await readlink(`/proc/${pid}/cwd`)) === data;
  } catch {
    // Root without CAP_SYS_PTRACE, as in a container, may not look, but may read with which arguments it was started.
    const args = (await readIfPresent(`/proc/${pid}/cmdline`).catch(() => undefined))?.split("\0") ?? [];
    return args[args.indexOf("-D") + 1] === data;
  }
}

async function listProcesses(): Promise<string> {
  const command = { command: "ps", args: ["-A", "-ww", "-o", "pid=,ppid=,command="] };
  return (await run(command, { timeoutMs: LIST_TIMEOUT_MS, outputMaxChars: LIST_MAX_CHARS })).output;
}

/** The pids of the server that was started with `-D data`, and of its children, in the output of `ps`. */
export function parseProcessList(output: string, data: string): number[] {
  const ours = new Set<number>();
  const lines = output.split("\n").map((line) => /^\s*(\d+)\s+(\d+)\s+(.*)$/.exec(line));
  for (const [, pid, , command] of lines.filter((line) => line !== null)) {
    if (/(^|\/)postgres /.test(command ?? "") && `${command} `.includes(` -D ${data} `)) ours.add(Number(pid));
  }
  for (const [, pid, parent] of lines.filter((line) => line !== null)) {
    if (ours.has(Number(parent))) ours.add(Number(pid));
  }
  return [...ours];
}
