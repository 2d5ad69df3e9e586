import { type ChildProcess, spawn } from "node:child_process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
/** What is kept of a step's output; the end of it says most. */
const maxOutputLength = 200_000;
const killGraceMs = 15_000;

/** One check of `npm test`: a command of node_modules/.bin, or a file that Node.js runs. */
export interface Step {
  readonly title: string;
  readonly command: readonly [string, ...string[]];
  readonly timeoutMs: number;
}

export interface StepResult {
  readonly passed: boolean;
  readonly durationMs: number;
  /** What the step printed, at most its last {@link maxOutputLength} characters; empty for an inherited terminal. */
  readonly output: string;
  /** What the step sent over its channel, in order. */
  readonly messages: readonly unknown[];
}

const running = new Set<ChildProcess>();

function end(child: ChildProcess, signal: NodeJS.Signals): void {
  child.kill(signal);
  setTimeout(() => child.kill("SIGKILL"), killGraceMs).unref();
}

/** Ends every step that runs; each gets {@link killGraceMs} to clean up. */
export function stopSteps(): void {
  for (const child of running) end(child, "SIGINT");
}

/**
 * Runs a step and waits for its end, which a deadline guarantees.
 *
 * @param live shows the output as it comes instead of keeping it
 */
export function runStep(step: Step, { live = false, env = {} as NodeJS.ProcessEnv } = {}): Promise<StepResult> {
  const startMs = performance.now();
  const [command, ...args] = step.command;
  const output = live ? "inherit" : "pipe";
  const child = spawn(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ["ignore", output, output, "ipc"],
  });
  running.add(child);
  let text = "";
  const messages: unknown[] = [];
  const keep = (chunk: string): void => {
    text = (text + chunk).slice(-maxOutputLength);
  };
  child.stdout?.setEncoding("utf8").on("data", keep);
  child.stderr?.setEncoding("utf8").on("data", keep);
  child.on("message", (message) => messages.push(message));
  const timer = setTimeout(() => {
    keep(`\nStopped: not done after ${step.timeoutMs / 1_000} s.\n`);
    end(child, "SIGTERM");
  }, step.timeoutMs);
  return new Promise((resolve) => {
    const finish = (passed: boolean): void => {
      clearTimeout(timer);
      running.delete(child);
      resolve({ passed, durationMs: performance.now() - startMs, output: text, messages });
    };
    child.once("error", (error) => {
      keep(`${command} cannot be started: ${error.message}\n`);
      if (child.pid === undefined) finish(false);
    });
    child.once("close", (code) => finish(code === 0));
  });
}
