import type { Logger } from "pino";
import { type Sandbox, type SandboxOptions, startSandbox } from "./sandbox-server.ts";

const PROBE_TIMEOUT_MS = 2_000;

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
    const url = `http://127.0.0.1:${options.port}`;
    if (!(await isSandbox(url))) throw error;
    options.log.info({ url }, "using the sandbox gateway that is running already");
    return { url, close: async () => {} };
  }
}

async function isSandbox(url: string): Promise<boolean> {
  try {
    const response = await fetch(`${url}/charges`, { signal: AbortSignal.timeout(PROBE_TIMEOUT_MS) });
    const body = (await response.json()) as { charges?: unknown };
    return Array.isArray(body.charges);
  } catch {
    return false;
  }
}
