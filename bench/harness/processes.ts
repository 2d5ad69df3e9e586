import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ROOT = join(import.meta.dirname, "../..");
const START_TIMEOUT_MS = 90_000;
const STOP_TIMEOUT_MS = 30_000;
const TASK_TIMEOUT_MS = 10 * 60_000;
const OUTPUT_MAX_CHARS = 20_000;
const END_SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** The service as `npm start` runs it, on a database of its own. */
export interface BenchServer extends AsyncDisposable {
  readonly url: string;
  readonly pid: number;
  /** Lets nothing of it run until the work is done, so that what goes on beside its calls takes no part. */
  pausedWhile<Result>(work: () => Promise<Result>): Promise<Result>;
}

/**
 * Starts the real program without rate limits, its files in a temporary folder: the embedded PostgreSQL as well, unless
 * the settings have a DATABASE_URL.
 */
export async function startServer(settings: Readonly<Record<string, string>> = {}): Promise<BenchServer> {
  const dataDir = await mkdtemp(join(tmpdir(), "tradepost-bench-"));
  const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", join(ROOT, "src/main.ts")], {
    cwd: ROOT,
    env: {
      PATH: process.env["PATH"],
      DATA_DIR: dataDir,
      PORT: "0",
      SANDBOX_PORT: "0",
      LOG_LEVEL: "warn",
      RATE_LIMITS: "off",
      ...settings,
    },
    stdio: ["ignore", "pipe", "pipe", "ipc"],
  });
  const stop = async () => {
    await end(child);
    await rm(dataDir, { recursive: true, force: true });
  };
  try {
    const url = await greetingOf(child);
    const pausedWhile: BenchServer["pausedWhile"] = (work) => whilePaused(child, work);
    return { url, pid: child.pid ?? 0, pausedWhile, [Symbol.asyncDispose]: stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

async function whilePaused<Result>(child: ChildProcess, work: () => Promise<Result>): Promise<Result> {
  // A paused process cannot end, so it must not be left behind by a bench that somebody stops.
  const resumeAndEnd = (signal: NodeJS.Signals) => {
    child.kill("SIGCONT");
    process.kill(process.pid, signal);
  };
  for (const signal of END_SIGNALS) process.once(signal, resumeAndEnd);
  child.kill("SIGSTOP");
  try {
    return await work();
  } finally {
    child.kill("SIGCONT");
    for (const signal of END_SIGNALS) process.off(signal, resumeAndEnd);
  }
}

/** Waits for the line that says where the service can be reached. */
function greetingOf(child: ChildProcess): Promise<string> {
  let output = "";
  return new Promise((resolve, reject) => {
    const fail = (why: string) => reject(new Error(`the service ${why}:\n${output}`));
    const timer = setTimeout(fail, START_TIMEOUT_MS, "did not start in time");
    child.once("exit", () => fail("ended while starting"));
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding("utf8").on("data", (text: string) => {
        output = (output + text).slice(-OUTPUT_MAX_CHARS);
        const url = /Tradepost serves [^\n]* at (\S+)\n/.exec(output)?.[1];
        if (url === undefined) return;
        clearTimeout(timer);
        resolve(url);
      });
    }
  });
}

/** Work that a load process does when it is asked to; options and result travel as JSON. */
// biome-ignore lint/suspicious/noExplicitAny: each task has options and a result of its own; LoadProcess.run types them.
export type LoadTasks = Readonly<Record<string, (options: any) => Promise<unknown>>>;

/** A process that makes calls, so that making them takes no time from the process that answers or from another's calls. */
export class LoadProcess implements AsyncDisposable {
  readonly #child: ChildProcess;
  #task: PromiseWithResolvers<unknown> | undefined;

  /** @param file a program in bench/ that calls {@link serveTasks} */
  constructor(file: string) {
    this.#child = fork(join(ROOT, "bench", file), { execArgv: ["--disable-warning=ExperimentalWarning"] });
    this.#child.on("message", (answer: Answer) => {
      if (answer.error === undefined) this.#task?.resolve(answer.result);
      else this.#task?.reject(new Error(answer.error));
    });
    this.#child.on("exit", (code) => this.#task?.reject(new Error(`the load process ended (${code})`)));
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Has one task done, and gives its result. One at a time. */
  async run<Tasks extends LoadTasks, Name extends keyof Tasks & string>(
    task: Name,
    options: Parameters<Tasks[Name]>[0],
  ): Promise<Awaited<ReturnType<Tasks[Name]>>> {
    const running = Promise.withResolvers<unknown>();
    this.#task = running;
    const late = () => running.reject(new Error(`"${task}" took longer than ${TASK_TIMEOUT_MS / 1000} s`));
    const timer = setTimeout(late, TASK_TIMEOUT_MS);
    this.#child.send({ task, options });
    try {
      return (await running.promise) as Awaited<ReturnType<Tasks[Name]>>;
    } finally {
      clearTimeout(timer);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await end(this.#child);
  }
}

interface Answer {
  readonly result?: unknown;
  /** With its stack. */
  readonly error?: string;
}

/** The other side of {@link LoadProcess}: does the tasks that it is sent. */
export function serveTasks(tasks: LoadTasks): void {
  process.on("message", async ({ task, options }: { task: string; options: unknown }) => {
    try {
      process.send?.({ result: await tasks[task]?.(options) });
    } catch (error) {
      process.send?.({ error: (error as Error).stack });
    }
  });
  process.on("disconnect", () => process.exit());
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
  await ended;
  clearTimeout(timer);
}
