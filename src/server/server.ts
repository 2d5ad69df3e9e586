import { randomUUID } from "node:crypto";
import net from "node:net";
import { type ContextValues, createContextValues } from "@connectrpc/connect";
import { setCall } from "../call.ts";
import type { Deps } from "../deps.ts";
import { JWKS_MAX_AGE_MS } from "../users/signing-keys.ts";
import { AVATARS_PATH, serveAvatars } from "./avatars.ts";
import { clientAddress, clientNetwork } from "./client-address.ts";
import { createHealth } from "./health.ts";
import { bind, checkTls, type TlsOptions } from "./listener/bind.ts";
import { listen, type NodeRes, type RequestHead } from "./listener.ts";
import { interceptors, routes, services } from "./routes.ts";
import { serveWebhooks, WEBHOOKS_PATH } from "./webhooks.ts";

const REQUEST_ID = /^[\w.:/+=-]{1,128}$/;

export interface Server {
  readonly url: string;
  readonly port: number;
  /** Lets calls in flight end for at most `graceMs`, then ends what is left. */
  stop(graceMs: number): Promise<void>;
}

interface Address {
  readonly host: string;
  readonly port: number;
  readonly tls: TlsOptions | undefined;
}

/**
 * Tries whether an address could be served now, and leaves it again: what is wrong with it can be told before the rest
 * of the service is started.
 * @throws Error with a sentence that names the setting, as {@link startServer} does.
 */
export async function tryAddress({ host, port, tls }: Address): Promise<void> {
  if (tls !== undefined) checkTls(tls);
  const server = net.createServer((socket) => socket.destroy());
  await bind(server, host, port);
  await new Promise((resolve) => server.close(resolve));
}

/**
 * Serves every RPC and plain HTTP route on one port.
 * @throws Error with a sentence that names the setting when the port cannot be had.
 */
export async function startServer(deps: Deps, { host, port }: { host: string; port: number }): Promise<Server> {
  const { db, orderFeed, log, config, files } = deps;
  const health = createHealth({ services: services.map(({ typeName }) => typeName), probe: () => db.ping(), log });
  const listener = await listen({
    host,
    port,
    tls: config.tls,
    log,
    routes: routes(deps, health),
    interceptors: interceptors(deps),
    http: {
      "/.well-known/jwks.json": (_req, res) => sendJwks(deps, res),
      [AVATARS_PATH]: serveAvatars(files, log),
      [WEBHOOKS_PATH]: serveWebhooks(deps),
    },
    contextValues: (head) => describeCall(head, config.trustProxy),
    ...(config.corsOrigins.length > 0 && { cors: { origins: config.corsOrigins } }),
  });
  const stop = async (graceMs: number) => {
    health.setDraining();
    orderFeed.close();
    await listener.drain(graceMs);
    health.close();
  };
  return { url: listener.url, port: listener.port, stop };
}

function describeCall({ headers, remoteAddress }: RequestHead, trustProxy: number): ContextValues {
  const values = createContextValues();
  const given = headers["x-request-id"];
  const address = clientAddress(remoteAddress, headers["x-forwarded-for"], trustProxy);
  setCall(values, {
    requestId: typeof given === "string" && REQUEST_ID.test(given) ? given : randomUUID(),
    clientAddress: address,
    clientNetwork: clientNetwork(address),
    userAgent: headers["user-agent"] ?? "",
    deadline: Number.POSITIVE_INFINITY,
  });
  return values;
}

async function sendJwks({ signingKeys }: Deps, res: NodeRes): Promise<void> {
  const jwks = await signingKeys.jwks();
  res.setHeader("content-type", "application/json");
  res.setHeader("cache-control", `public, max-age=${JWKS_MAX_AGE_MS / 1000}`);
  res.end(JSON.stringify(jwks));
}
