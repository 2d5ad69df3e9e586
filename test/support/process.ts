import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { keepOutput, rememberPasswordOf, rememberSecret } from "./secrets.ts";

const ROOT = join(import.meta.dirname, "../..");
const WAIT_TIMEOUT_MS = 90_000;
const POLL_INTERVAL_MS = 50;
const OUTPUT_MAX_CHARS = 1_000_000;

export interface ProgramOptions {
  readonly args?: readonly string[];
  /** Settings by their names; nothing else of this process's environment gets through but PATH. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Options of Node.js itself. */
  readonly nodeOptions?: readonly string[];
  /** What the program reads, to its end. Not given: nothing. */
  readonly input?: string;
}

export interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program of the project that runs as a child process, as `npm start` runs it. */
export interface Program {
  readonly pid: number;
  readonly child: ChildProcess;
  readonly stdout: string;
  readonly stderr: string;
  readonly ended: Promise<Ended>;
  /** Waits until standard output matches; fails with all output when the program ends before that. */
  printed(pattern: RegExp): Promise<RegExpExecArray>;
  /** Sends a signal and waits for the end. */
  stop(signal?: NodeJS.Signals): Promise<Ended>;
}

/** Starts `file`, a path in the project, with a channel whose closing tells it that its parent is gone. */
function startProgram(file: string, options: ProgramOptions = {}): Program {
  const { args = [], settings = {}, nodeOptions = [], input } = options;
  const command = ["--disable-warning=ExperimentalWarning", ...nodeOptions, join(ROOT, file), ...args];
  if (input !== undefined) rememberSecret(input.trim());
  rememberSecret(settings["SECRET_KEY"] ?? "");
  for (const name of ["DATABASE_URL", "SMTP_URL"]) rememberPasswordOf(settings[name] ?? "");
  const child = spawn(process.execPath, command, {
    cwd: ROOT,
    env: { PATH: process.env["PATH"], ...settings },
    stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe", "ipc"],
  });
  child.stdin?.on("error", () => {});
  child.stdin?.end(input);
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name]?.setEncoding("utf8").on("data", (text: string) => {
      output[name] = (output[name] + text).slice(-OUTPUT_MAX_CHARS);
      keepOutput(child.pid ?? 0, name, text);
    });
  }
  let end: Ended | undefined;
  // The child's own "close" never comes once we have disconnected its channel.
  const closed = [child.stdout, child.stderr].map((stream) => stream && once(stream, "close"));
  const ended = Promise.all([once(child, "exit"), ...closed]).then(([[code, signal]]) => {
    end = { code, signal, ...output };
    return end;
  });
  return {
    pid: child.pid ?? 0,
    child,
    get stdout() {
      return output.stdout;
    },
    get stderr() {
      return output.stderr;
    },
    ended,
    printed: (pattern) =>
      until(`${file} prints ${pattern}`, () => {
        const match = pattern.exec(output.stdout);
        if (match === null && end !== undefined) throw new Error(`${file} ended (${end.code ?? end.signal})`);
        return match ?? undefined;
      }).catch((error: Error) => {
        throw new Error(`${error.message}; it printed:\n${output.stdout}${output.stderr}`);
      }),
    stop(signal = "SIGTERM") {
      child.kill(signal);
      return ended;
    },
  };
}

/** The service as a process of its own. */
export interface ServiceProcess extends Program {
  readonly url: string;
}

/** Gives the suite it is called in programs and folders, which are gone after each test, or after the suite. */
export function usePrograms({ per = "test" }: { readonly per?: "test" | "suite" } = {}) {
  const programs: Program[] = [];
  const folders: string[] = [];
  const start = (file: string, options?: ProgramOptions): Program => {
    const program = startProgram(file, options);
    programs.push(program);
    return program;
  };
  /** Starts the service on free ports without waiting for it. */
  const startService = (settings: Readonly<Record<string, string>>, options: ProgramOptions = {}): Program =>
    start("src/main.ts", { ...options, settings: { PORT: "0", SANDBOX_PORT: "0", ...settings } });

  const finish = per === "test" ? afterEach : after;
  finish(async () => {
    for (const { child, ended } of programs.splice(0)) {
      if (child.exitCode === null && child.signalCode === null) child.kill("SIGKILL");
      await ended;
    }
    for (const folder of folders.splice(0)) {
      await until(`no process uses ${folder}`, async () =>
        (await processesNaming(folder)).length === 0 ? true : undefined,
      );
      await rm(folder, { recursive: true, force: true });
    }
  });

  return {
    start,
    startService,
    /** Starts the service and waits for its greeting. */
    async runService(settings: Readonly<Record<string, string>>, options?: ProgramOptions): Promise<ServiceProcess> {
      const program = startService(settings, options);
      const [, url = ""] = await program.printed(/Tradepost serves [^\n]* at (\S+)\n.*Ctrl-C stops it/s);
      return Object.create(program, { url: { value: url } }) as ServiceProcess;
    },
    async newFolder(): Promise<string> {
      const folder = await mkdtemp(join(tmpdir(), "tradepost-process-"));
      folders.push(folder);
      return folder;
    },
  };
}

/** Calls `look` until it gives something, and gives that. */
export async function until<T>(what: string, look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  const deadline = Date.now() + WAIT_TIMEOUT_MS;
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    if (Date.now() > deadline) throw new Error(`waited ${WAIT_TIMEOUT_MS / 1000} s in vain until ${what}`);
    await sleep(POLL_INTERVAL_MS);
  }
}

/** One process of this machine. */
export interface RunningProcess {
  readonly pid: number;
  readonly parentPid: number;
  readonly command: string;
}

/** Every process of this machine that has not ended. */
export async function listProcesses(): Promise<RunningProcess[]> {
  const { stdout } = await promisify(execFile)("ps", ["-A", "-ww", "-o", "pid=,ppid=,stat=,command="], {
    maxBuffer: 64 * 1024 * 1024,
  });
  return stdout.split("\n").flatMap((line) => {
    const [, pid, parentPid, state = "", command = ""] = /^\s*(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/.exec(line) ?? [];
    // A process that has ended and whose parent has not taken note yet is none.
    return pid === undefined || state.startsWith("Z")
      ? []
      : [{ pid: Number(pid), parentPid: Number(parentPid), command }];
  });
}

/** The processes whose command line has `text` in it, such as a PostgreSQL on a folder. */
export async function processesNaming(text: string): Promise<RunningProcess[]> {
  return (await listProcesses()).filter(({ command }) => command.includes(text));
}

/** The process `pid` and all that it started, directly or not. */
export async function processTree(pid: number): Promise<RunningProcess[]> {
  const all = await listProcesses();
  const tree = all.filter((found) => found.pid === pid);
  for (const parent of tree) tree.push(...all.filter((found) => found.parentPid === parent.pid));
  return tree;
}
