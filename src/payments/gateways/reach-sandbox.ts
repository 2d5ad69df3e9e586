import { existsSync } from "node:fs";
import { Agent } from "node:http";
import type { Logger } from "pino";
import { exchange } from "./http-exchange.ts";
import { type Sandbox, type SandboxOptions, startSandbox } from "./sandbox-server.ts";

const PROBE_TIMEOUT_MS = 2_000;
const PROBE_MAX_BYTES = 4 * 1024;
/** What only a sandbox answers like this: it knows its gateways, and that none of them has such a charge. */
const PROBE_PATH = "/sandbox-primary/charges/tradepost-probe";

/**
 * Starts the sandbox gateway, unless one is running at its port already (`npm run sandbox`, or that of another
 * instance): then that one is used, and left running at the end.
 * @throws Error naming SANDBOX_PORT when something else has the port.
 */
export async function reachSandbox(
  options: SandboxOptions & { readonly log: Logger },
): Promise<Pick<Sandbox, "url" | "close">> {
  try {
    return await startSandbox(options);
  } catch (error) {
    const url = `http://${options.host ?? "127.0.0.1"}:${options.port}`;
    if (!(await isSandbox(url))) throw error;
    options.log.info({ url }, "using the sandbox gateway that is running already");
    return { url, close: async () => {} };
  }
}

/**
 * Reaches a sandbox only to ask it: the one that runs at its port or, where none does, one on a port of its own that has
 * the memory of the one that ran. A sandbox without any memory would deny whatever it is asked about, so none is made.
 * @throws Error with a sentence when there is none to ask.
 */
export async function consultSandbox(
  options: Pick<SandboxOptions, "port" | "dataDir"> & { readonly log: Logger },
): Promise<Pick<Sandbox, "url" | "close">> {
  const { port, dataDir, log } = options;
  const url = `http://127.0.0.1:${port}`;
  if (port !== 0 && (await isSandbox(url))) return { url, close: async () => {} };
  if (existsSync(dataDir)) return startSandbox({ port: 0, dataDir, log });
  throw new Error(`No sandbox runs at port ${port} (SANDBOX_PORT), and none has ever run in ${dataDir}.`);
}

async function isSandbox(baseUrl: string): Promise<boolean> {
  const agent = new Agent();
  const bounds = { timeoutMs: PROBE_TIMEOUT_MS, maxResponseBytes: PROBE_MAX_BYTES };
  try {
    const answer = await exchange({ method: "GET", url: new URL(PROBE_PATH, baseUrl), agent, ...bounds });
    if (answer.kind !== "answered" || answer.status !== 404) return false;
    const body = JSON.parse(answer.body.toString("utf8")) as { error?: { code?: unknown } } | null;
    return body?.error?.code === "charge_not_found";
  } catch {
    return false;
  } finally {
    agent.destroy();
  }
}
