import { randomUUID } from "node:crypto";
import { type ContextValues, createContextValues } from "@connectrpc/connect";
import { setCall } from "../call.ts";
import type { Deps } from "../deps.ts";
import { createHealth } from "./health.ts";
import { type Listener, listen, type NodeReq, type NodeRes } from "./listener.ts";
import { interceptors, routes, services } from "./routes.ts";

const REQUEST_ID = /^[\w.:/+=-]{1,128}$/;
/** Clients may keep the keys this long; a token of a newer key makes them look again. */
const JWKS_MAX_AGE_S = 300;

export interface Server {
  readonly url: string;
  readonly port: number;
  /** Lets calls in flight end for at most `graceMs`, then ends what is left. */
  stop(graceMs: number): Promise<void>;
}

/**
 * Serves every RPC and plain HTTP route on one port.
 * @throws Error with a sentence that names the setting when the port cannot be had.
 */
export async function startServer(deps: Deps, { host, port }: { host: string; port: number }): Promise<Server> {
  const { db, log, config } = deps;
  const health = createHealth({ services: services.map(({ typeName }) => typeName), probe: () => db.ping(), log });
  const listener = await listen({
    host,
    port,
    tls: config.tls,
    log,
    routes: routes(deps, health),
    interceptors: interceptors(deps),
    http: { "/.well-known/jwks.json": (_req, res) => sendJwks(deps, res) },
    contextValues: describeCall,
    ...(config.corsOrigins.length > 0 && { cors: { origins: config.corsOrigins } }),
  });
  return { url: listener.url, port: listener.port, stop: (graceMs) => stop(listener, health, graceMs) };
}

async function stop(listener: Listener, health: ReturnType<typeof createHealth>, graceMs: number): Promise<void> {
  health.setDraining();
  await listener.drain(graceMs);
  health.close();
}

function describeCall(req: NodeReq): ContextValues {
  const values = createContextValues();
  const given = req.headers["x-request-id"];
  setCall(values, {
    requestId: typeof given === "string" && REQUEST_ID.test(given) ? given : randomUUID(),
    clientAddress: req.socket?.remoteAddress ?? "",
    userAgent: req.headers["user-agent"] ?? "",
    deadline: Number.POSITIVE_INFINITY,
  });
  return values;
}

function sendJwks({ tokens }: Deps, res: NodeRes): void {
  res.setHeader("content-type", "application/json");
  res.setHeader("cache-control", `public, max-age=${JWKS_MAX_AGE_S}`);
  res.end(JSON.stringify(tokens.jwks));
}
