import { join } from "node:path";
import type { Logger } from "pino";
import type { Config } from "../../config.ts";
import { derivedKey, keptSecretKey } from "../../secret-key.ts";
import type { Gateway, GatewayName } from "./gateway.ts";
import type { Gateways } from "./gateways.ts";
import { reachSandbox } from "./reach-sandbox.ts";
import { resilient } from "./resilient.ts";

export interface OpenGateways extends Gateways {
  close(): Promise<void>;
}

interface OpenOptions {
  readonly config: Config;
  readonly log: Logger;
  /** Where a sandbox of ours sends its events; undefined until the server listens. */
  readonly webhookUrl: () => string | undefined;
}

/**
 * Connects to the gateways that the settings name, and starts the sandbox where it is one of them. A vendor's SDK is
 * loaded only when it is used: each costs half a second of starting.
 * @throws Error with a sentence that names SANDBOX_PORT when the sandbox cannot have it.
 */
export async function openGateways(options: OpenOptions): Promise<OpenGateways> {
  const { primary, backup } = options.config.payments;
  const names = backup === undefined ? [primary] : [primary, backup];
  const usesSandbox = names.some((name) => name.startsWith("sandbox"));
  const sandbox = usesSandbox ? await startSandbox(options) : undefined;
  const opened: Gateway[] = [];
  for (const name of names) opened.push(resilient(await connect(name, options.config, sandbox), options.log));
  const [first, second] = opened;
  if (first === undefined) throw new Error("no gateway was opened");
  return {
    primary: first,
    backup: second,
    async close() {
      for (const gateway of opened) gateway.close();
      await sandbox?.close();
    },
  };
}

interface ReachedSandbox {
  readonly url: string;
  readonly webhookSecret: string;
  close(): Promise<void>;
}

async function startSandbox({ config, log, webhookUrl }: OpenOptions): Promise<ReachedSandbox> {
  const { dataDir, payments, tls, secretKey = keptSecretKey(dataDir) } = config;
  const webhookSecret = derivedKey(secretKey, "sandbox webhooks").toString("base64url");
  const options = { port: payments.sandboxPort, dataDir: join(dataDir, "sandbox"), log };
  // A certificate is for the name that clients use, not for this way.
  const webhook = { url: webhookUrl, secret: webhookSecret };
  const { url, close } = await reachSandbox(tls === undefined ? { ...options, webhook } : options);
  return { url, webhookSecret, close };
}

async function connect(name: GatewayName, { payments }: Config, sandbox: ReachedSandbox | undefined): Promise<Gateway> {
  if (name === "stripe") {
    const { createStripeGateway } = await import("./stripe.ts");
    return createStripeGateway(payments.stripe);
  }
  if (name === "adyen") {
    const { createAdyenGateway } = await import("./adyen.ts");
    return createAdyenGateway(payments.adyen);
  }
  const { createSandboxGateway } = await import("./sandbox.ts");
  const { url = "", webhookSecret = "" } = sandbox ?? {};
  return createSandboxGateway({ name, baseUrl: url, webhookSecret });
}
