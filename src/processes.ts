import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";

const PS_TIMEOUT_MS = 5_000;
const PS_ENV = { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" } as const;

/** One process as Linux describes it. */
export interface LinuxProcess {
  readonly pid: number;
  readonly parentPid: number;
  /** The program's name, at most 15 characters. */
  readonly command: string;
  /** In clock ticks since the machine started. */
  readonly startTicks: string;
}

/**
 * Reads `/proc`. Undefined if there is no such process, or if it has ended and nobody has taken note of that yet.
 * Synchronous, since what is read is in memory: for a look at all processes that is ten times as fast.
 */
export function readLinuxProcess(pid: number): LinuxProcess | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The name stands in parentheses and may itself contain spaces and parentheses, so the last one ends it.
  const nameEnd = stat.lastIndexOf(")");
  const fields = stat.slice(nameEnd + 2).split(" ");
  const state = fields[0];
  if (state === "Z" || state === "X") return undefined;
  return {
    pid,
    parentPid: Number(fields[1]),
    command: stat.slice(stat.indexOf("(") + 1, nameEnd),
    startTicks: fields[19] ?? "",
  };
}

/**
 * When a process started, in a form that is only good for comparing: no two processes that ever had this pid share it.
 * Undefined if there is no such process.
 */
export async function processStartTime(pid: number): Promise<string | undefined> {
  if (process.platform === "linux") {
    const found = readLinuxProcess(pid);
    return found === undefined ? undefined : `${linuxBootId()}/${found.startTicks}`;
  }
  return new Promise((resolve) => {
    const options = { timeout: PS_TIMEOUT_MS, env: PS_ENV };
    execFile("ps", ["-o", "lstart=", "-p", String(pid)], options, (_error, stdout) => {
      resolve(stdout.trim() === "" ? undefined : stdout.trim());
    });
  });
}

/** Ticks begin at zero with every start of the machine, and the first processes get much the same pids each time. */
function linuxBootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "";
  }
}
