/** The payment sandbox as a program of its own. */
import type { Readable, Writable } from "node:stream";
import { type SandboxOptions, startSandbox } from "../payments/gateways/sandbox-server.ts";

/** How the program runs, beside the sandbox's own options. */
export interface RunSandboxOptions extends SandboxOptions {
  /** Takes the one line with the address. Default: standard output. */
  readonly output?: Writable;
  /**
   * A stream whose end stops the sandbox, standard input for one: when a parent is killed its pipe closes, and so its
   * sandbox does not stay behind and hold the port.
   */
  readonly stopAtEndOf?: Readable;
  /** Stops the sandbox, beside SIGTERM and SIGINT. */
  readonly signal?: AbortSignal;
}

/**
 * Runs a sandbox until SIGTERM, SIGINT, the signal or the end of the stream, then closes it and resolves. Rejects, as
 * `startSandbox` does, with an error whose message is a sentence for the person who started it.
 */
export async function runSandbox(options: RunSandboxOptions): Promise<void> {
  const sandbox = await startSandbox(options);
  const stopped = untilStopped(options);
  const output = options.output ?? process.stdout;
  output.write(
    `Payment sandbox at ${sandbox.url} (gateways sandbox-primary and sandbox-backup; every charge at ${sandbox.url}/charges)\n`,
  );
  await stopped;
  await sandbox.close();
}

function untilStopped(options: RunSandboxOptions): Promise<void> {
  return new Promise((resolve) => {
    const stop = (): void => {
      process.off("SIGTERM", stop);
      process.off("SIGINT", stop);
      // A pipe that is still being read would keep the process alive.
      options.stopAtEndOf?.off("close", stop).off("end", stop).pause();
      options.signal?.removeEventListener("abort", stop);
      resolve();
    };
    process.on("SIGTERM", stop);
    process.on("SIGINT", stop);
    // A stream ends only for one who reads it.
    options.stopAtEndOf?.once("end", stop).once("close", stop).resume();
    options.signal?.addEventListener("abort", stop);
    if (options.signal?.aborted === true) stop();
  });
}
