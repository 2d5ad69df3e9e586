/** The payment sandbox as a program of its own. */
import { existsSync, mkdirSync, realpathSync } from "node:fs";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { type Config, ConfigError, readConfig } from "../config.ts";
import { onStopRequest } from "../parent.ts";
import { sandboxWebhookSecret } from "../payments/gateways/open-gateways.ts";
import { type SandboxOptions, startSandbox } from "../payments/gateways/sandbox-server.ts";
import { createLog } from "../telemetry/log.ts";

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

/** Runs the sandbox of the settings, until somebody asks it to stop or whoever started it is gone. */
async function main(): Promise<void> {
  const config = readConfig();
  const { payments, dataDir, log } = config;
  prepareFolder(dataDir);
  const stop = new AbortController();
  onStopRequest((_reason, times) => {
    if (times > 1) process.exit(1);
    stop.abort();
  });
  await runSandbox({
    port: payments.sandboxPort,
    dataDir: join(dataDir, "sandbox"),
    log: createLog(log),
    signal: stop.signal,
    ...webhooksOf(config),
  });
}

function webhooksOf(config: Config): Pick<SandboxOptions, "webhook"> {
  const { url } = config.payments.sandboxWebhook;
  if (url === undefined) return {};
  const webhook = { url, secret: sandboxWebhookSecret(config) };
  return { webhook: config.tls === undefined ? webhook : { ...webhook, certificate: config.tls.cert } };
}

/** Other faults of the folder are the sandbox's own to tell; that it is the one of DATA_DIR only this program knows. */
function prepareFolder(dataDir: string): void {
  try {
    mkdirSync(join(dataDir, "sandbox"), { recursive: true, mode: 0o711 });
  } catch (error) {
    throw new ConfigError(`DATA_DIR: ${dataDir} cannot be used: ${(error as Error).message}`, { cause: error });
  }
}

// The function that runs a sandbox is used without the program, too.
const program = process.argv[1];
if (program !== undefined && existsSync(program) && realpathSync(program) === import.meta.filename) {
  try {
    await main();
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(1);
  }
}
