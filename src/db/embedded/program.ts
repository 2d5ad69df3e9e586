import { spawn } from "node:child_process";
import { once } from "node:events";

const OUTPUT_MAX_CHARS = 4 * 1024;
const SENTENCE_MAX_LINES = 8;

/** PostgreSQL and its tools get this environment and nothing of ours: no PG* variable to mislead them, no secret. */
export const PROGRAM_ENV = {
  PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  LC_ALL: "C",
  TZ: "UTC",
} as const;

/** A program to run, and the account to run it as if that is not our own. */
export interface Command {
  readonly command: string;
  readonly args: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
}

export interface Limits {
  readonly timeoutMs: number;
  /** How much of the output's end is kept. Default 4 Ki. */
  readonly outputMaxChars?: number;
}

/** How a program ended. */
export interface Outcome {
  readonly ok: boolean;
  /** The end of what it printed, on standard output and standard error alike. */
  readonly output: string;
}

/** Runs a program to its end. Never rejects: a program that cannot be run fails with the reason as its output. */
export async function run({ command, args, uid, gid }: Command, limits: Limits): Promise<Outcome> {
  const { timeoutMs, outputMaxChars = OUTPUT_MAX_CHARS } = limits;
  const child = spawn(command, [...args], {
    cwd: "/",
    env: { ...PROGRAM_ENV },
    stdio: ["ignore", "pipe", "pipe"],
    // A session of its own: a terminal's Ctrl-C is for us alone, and a deadline ends the tool's own children too.
    detached: true,
    ...(uid === undefined || gid === undefined ? {} : { uid, gid }),
  });
  let output = "";
  const collect = (chunk: Buffer) => {
    output = (output + chunk.toString("utf8")).slice(-outputMaxChars);
  };
  child.stdout.on("data", collect);
  child.stderr.on("data", collect);
  const deadline = setTimeout(() => {
    output += `\nit took longer than ${timeoutMs / 1000} s`;
    if (child.pid !== undefined) signalProcess(-child.pid, "SIGKILL");
  }, timeoutMs);
  try {
    const [code] = (await once(child, "close")) as [number | null];
    return { ok: code === 0, output };
  } catch (error) {
    return { ok: false, output: (error as Error).message };
  } finally {
    clearTimeout(deadline);
  }
}

/** A negative pid is that of a process group. */
export function signalProcess(pid: number, signal: NodeJS.Signals): "sent" | "gone" | "forbidden" {
  try {
    process.kill(pid, signal);
    return "sent";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM" ? "forbidden" : "gone";
  }
}

/** The last lines of a program's output as the end of a sentence. */
export function lastLines(output: string): string {
  const lines = output
    .split("\n")
    .map((line) => line.replace(/^\d{4}-\d\d-\d\d \S+ \S+ \[\d+\] /, "").trim())
    .filter((line) => line !== "");
  return lines.slice(-SENTENCE_MAX_LINES).join(" | ");
}
