import { join } from "node:path";
import type { Logger } from "pino";
import type { Config } from "../../config.ts";
import { derivedKey, keptSecretKey } from "../../secret-key.ts";
import type { Gateway, GatewayName } from "./gateway.ts";
import type { Gateways } from "./gateways.ts";
import { consultSandbox, reachSandbox } from "./reach-sandbox.ts";
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

/** Gateways that are only asked; one that cannot be reached has the reason in its place. */
export interface ConsultedGateways {
  readonly gateways: ReadonlyMap<GatewayName, Gateway | Error>;
  close(): Promise<void>;
}

/** Connects to the gateways that the settings name, to ask them and nothing else. */
export async function consultGateways({ config, log }: Omit<OpenOptions, "webhookUrl">): Promise<ConsultedGateways> {
  const { dataDir, payments } = config;
  const { primary, backup, sandboxPort: port } = payments;
  const names = backup === undefined ? [primary] : [primary, backup];
  const sandbox = names.some((name) => name.startsWith("sandbox"))
    ? await consultSandbox({ port, dataDir: join(dataDir, "sandbox"), log }).catch(toError)
    : undefined;
  const gateways = new Map<GatewayName, Gateway | Error>();
  for (const name of names) {
    const isLost = name.startsWith("sandbox") && sandbox instanceof Error;
    gateways.set(name, isLost ? sandbox : await connect(name, config, sandbox instanceof Error ? undefined : sandbox));
  }
  return {
    gateways,
    async close() {
      for (const gateway of gateways.values()) if (!(gateway instanceof Error)) gateway.close();
      if (!(sandbox instanceof Error)) await sandbox?.close();
    },
  };
}

function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

interface ReachedSandbox {
  readonly url: string;
  /** Undefined where no webhooks are taken. */
  readonly webhookSecret?: string;
  close(): Promise<void>;
}

async function startSandbox({ config, log, webhookUrl }: OpenOptions): Promise<ReachedSandbox> {
  const { dataDir, payments, tls } = config;
  const webhookSecret = sandboxWebhookSecret(config);
  const options = { port: payments.sandboxPort, dataDir: join(dataDir, "sandbox"), log };
  const webhook = { url: webhookUrl, secret: webhookSecret, ...(tls !== undefined && { certificate: tls.cert }) };
  const { url, close } = await reachSandbox({ ...options, webhook });
  return { url, webhookSecret, close };
}

/** What the sandbox's webhooks are signed with: its programs and the service come to the same by the same settings. */
export function sandboxWebhookSecret({ dataDir, payments, secretKey }: Config): string {
  const { secret } = payments.sandboxWebhook;
  return secret ?? derivedKey(secretKey ?? keptSecretKey(dataDir), "sandbox webhooks").toString("base64url");
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
  const { url = "", webhookSecret } = sandbox ?? {};
  return createSandboxGateway({ name, baseUrl: url, ...(webhookSecret !== undefined && { webhookSecret }) });
}
