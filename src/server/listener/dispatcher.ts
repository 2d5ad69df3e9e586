import { base64Decode } from "@bufbuild/protobuf/wire";
import {
  Code,
  type ConnectRouter,
  type ConnectRouterOptions,
  type ContextKey,
  type ContextValues,
  createConnectRouter,
  createContextKey,
  createContextValues,
} from "@connectrpc/connect";
import type { Logger } from "pino";
import type { Connection } from "./connection.ts";
import { applyCors, type CorsOptions } from "./cors.ts";
import { Exchange, isHttp2, MemoryBudget, type NodeReq, type NodeRes } from "./exchange.ts";
import type { Limits } from "./limits.ts";
import { type Refusal, refuse } from "./refusal.ts";
import { type RpcHandler, requestHeader, serveRpc } from "./rpc.ts";
import { parseTarget, type Target } from "./target.ts";

/** Serves a plain HTTP route. What it throws is logged and answered with 500. */
export type HttpHandler = (req: NodeReq, res: NodeRes) => void | Promise<void>;

/** What a dispatcher needs to know. */
interface DispatcherOptions {
  readonly log: Logger;
  readonly limits: Limits;
  readonly scheme: "http" | "https";
  readonly routes: (router: ConnectRouter) => void;
  readonly router: ConnectRouterOptions;
  readonly http: Readonly<Record<string, HttpHandler>>;
  readonly cors: CorsOptions | undefined;
  readonly contextValues: ((req: NodeReq) => ContextValues) | undefined;
  readonly drainSignal: AbortSignal;
}

/**
 * Under this key every RPC finds a signal that is aborted as soon as the server starts to shut down. Streams watch it
 * to end themselves; everything else has time to finish.
 */
export const drainSignalKey: ContextKey<AbortSignal> = createContextKey(new AbortController().signal, {
  description: "aborted when the server starts to drain",
});

const httpRouteMethods = ["GET", "HEAD", "POST"];
const knownMethods = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]);

/**
 * Takes every request of every protocol, and finds who answers it. This is the seam for a faster path: whatever can
 * serve an RPC from a request and a response belongs beside `serveRpc`, below the same checks.
 */
export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #rpcs: ReadonlyMap<string, RpcHandler>;
  readonly #exactRoutes: ReadonlyMap<string, HttpHandler>;
  readonly #prefixRoutes: ReadonlyArray<readonly [string, HttpHandler]>;
  readonly #budget: MemoryBudget;
  readonly #exchanges = new Set<Exchange>();

  constructor(options: DispatcherOptions) {
    this.#options = options;
    this.#budget = new MemoryBudget(options.limits.requestMemoryBytes);
    const router = createConnectRouter(options.router);
    options.routes(router);
    this.#rpcs = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
    const routes = Object.entries(options.http);
    this.#exactRoutes = new Map(routes.filter(([path]) => !path.endsWith("/")));
    this.#prefixRoutes = routes.filter(([path]) => path.endsWith("/")).sort(([a], [b]) => b.length - a.length);
  }

  /** Requests that are not over yet. */
  get requests(): number {
    return this.#exchanges.size;
  }

  /** Bytes of request bodies in memory. */
  get requestBytes(): number {
    return this.#budget.usedBytes;
  }

  /** Serves one request. Never throws, and nothing that comes of it later goes uncaught. */
  dispatch(req: NodeReq, res: NodeRes, connection: Connection): void {
    const exchange = new Exchange(req, res, connection, this.#budget, (closed) => {
      this.#exchanges.delete(closed);
      connection.delete(closed, performance.now());
    });
    this.#exchanges.add(exchange);
    connection.add(exchange);
    try {
      const refusal = this.#route(exchange);
      if (refusal !== undefined) {
        this.#refuse(exchange, refusal);
      }
    } catch (error) {
      this.#fail(exchange, error);
    }
  }

  /** Enforces the timeouts of all requests; called at intervals. `now` is `performance.now()`. */
  sweep(now: number): void {
    for (const exchange of this.#exchanges) {
      try {
        exchange.sweep(now, this.#options.limits);
      } catch (error) {
        this.#fail(exchange, error);
      }
    }
  }

  /** Starts whatever serves the request, or says why nothing does. */
  #route(exchange: Exchange): Refusal | undefined {
    const { req, res } = exchange;
    const { drainSignal, scheme, cors } = this.#options;
    if (drainSignal.aborted && !isHttp2(res)) {
      res.setHeader("connection", "close");
    }
    const overload = this.#findOverload(exchange);
    if (overload !== undefined) {
      return overload;
    }
    const authority = "authority" in req ? req.authority : req.headers.host;
    const target = parseTarget(req.url, authority, scheme);
    if (typeof target === "string") {
      return { status: 400, code: Code.InvalidArgument, message: target };
    }
    if (!knownMethods.has(req.method ?? "")) {
      return methodNotAllowed(["GET", "POST"]);
    }
    if (cors !== undefined && applyCors(cors, req, res)) {
      return undefined;
    }
    const httpHandler = this.#findHttpRoute(target.path);
    if (httpHandler !== undefined) {
      return this.#serveHttp(exchange, httpHandler, target);
    }
    const rpc = this.#rpcs.get(target.path);
    if (rpc !== undefined) {
      return this.#serveRpc(exchange, rpc, target);
    }
    return { status: 404, code: Code.Unimplemented, message: "There is nothing at this path." };
  }

  #findOverload(exchange: Exchange): Refusal | undefined {
    const { limits } = this.#options;
    if (exchange.req.rawHeaders.length > 2 * limits.headerCount) {
      const message = `A request must not have more than ${limits.headerCount} header fields.`;
      return { status: 431, code: Code.ResourceExhausted, message };
    }
    // One HTTP/1.1 connection can pipeline any number of requests; HTTP/2 keeps to what its settings allow.
    if (
      this.#exchanges.size > limits.requests ||
      exchange.connection.exchanges.size > 2 * limits.requestsPerConnection ||
      (!isHttp2(exchange.res) && exchange.connection.exchanges.size > limits.requestsPerConnection)
    ) {
      const message = "The server has too many requests in flight; try again.";
      return { status: 503, code: Code.Unavailable, message, headers: { "retry-after": "1" } };
    }
    return undefined;
  }

  #findHttpRoute(path: string): HttpHandler | undefined {
    return this.#exactRoutes.get(path) ?? this.#prefixRoutes.find(([prefix]) => path.startsWith(prefix))?.[1];
  }

  #serveHttp(exchange: Exchange, handler: HttpHandler, target: Target): Refusal | undefined {
    const { req, res } = exchange;
    if (!httpRouteMethods.includes(req.method ?? "")) {
      return methodNotAllowed(httpRouteMethods);
    }
    req.url = target.origin;
    this.#limitBodyTime(exchange);
    if (req.headers.expect !== undefined) {
      res.writeContinue();
    }
    const served = handler(req, res);
    served?.catch((error: unknown) => this.#fail(exchange, error));
    return undefined;
  }

  #serveRpc(exchange: Exchange, rpc: RpcHandler, target: Target): Refusal | undefined {
    const { req, res } = exchange;
    const { limits, contextValues, drainSignal } = this.#options;
    const refusal = findRpcRefusal(req, res, rpc, target);
    if (refusal !== undefined) {
      return refusal;
    }
    let header: Headers;
    try {
      header = requestHeader(req.headers, limits.readMaxBytes);
    } catch {
      const message = "The request has a header field that is not valid.";
      return { status: 400, code: Code.InvalidArgument, message };
    }
    if (rpc.method.methodKind === "unary" || rpc.method.methodKind === "server_streaming") {
      this.#limitBodyTime(exchange);
    }
    const values = (contextValues?.(req) ?? createContextValues()).set(drainSignalKey, drainSignal);
    serveRpc(exchange, rpc, target, header, values, limits.readMaxBytes).catch((error: unknown) => {
      this.#fail(exchange, error);
    });
    return undefined;
  }

  #limitBodyTime(exchange: Exchange): void {
    exchange.bodyDeadlineAt = performance.now() + this.#options.limits.bodyTimeoutMs;
  }

  #refuse(exchange: Exchange, refusal: Refusal): void {
    this.#options.log.debug(
      { method: exchange.req.method, status: refusal.status, reason: refusal.message },
      "request refused",
    );
    // What is left of the body is thrown away, so that the client gets to read the answer.
    exchange.req.resume();
    refuse(exchange.req, exchange.res, refusal);
  }

  /** The last resort for a fault of ours: the client gets an answer if it can still have one, and the log the cause. */
  #fail(exchange: Exchange, error: unknown): void {
    if (exchange.closed) {
      this.#options.log.debug({ err: error }, "a request failed after its client was gone");
      return;
    }
    this.#options.log.error(
      { err: error, path: exchange.req.url?.split("?", 1)[0] },
      "a request could not be answered",
    );
    try {
      if (!exchange.res.headersSent) {
        this.#refuse(exchange, { status: 500, code: Code.Internal, message: "internal error" });
        return;
      }
    } catch (cause) {
      this.#options.log.error({ err: cause }, "the failure of a request could not be answered");
    }
    exchange.destroy();
  }
}

function methodNotAllowed(allowed: readonly string[]): Refusal {
  const allow = allowed.join(", ");
  return {
    status: 405,
    code: Code.Unimplemented,
    message: `The method must be one of: ${allow}.`,
    headers: { allow },
  };
}

function findRpcRefusal(req: NodeReq, res: NodeRes, rpc: RpcHandler, target: Target): Refusal | undefined {
  if (!rpc.allowedMethods.includes(req.method ?? "")) {
    return methodNotAllowed([...new Set(rpc.allowedMethods)]);
  }
  if (rpc.method.methodKind === "bidi_streaming" && !isHttp2(res)) {
    const message = "This method streams in both directions, which needs HTTP/2.";
    return { status: 505, code: Code.Unimplemented, message, headers: { connection: "close" } };
  }
  if (req.method === "POST" && !rpc.supportedContentType(req.headers["content-type"] ?? "")) {
    return {
      status: 415,
      code: Code.InvalidArgument,
      message: "The content type is none of gRPC, gRPC-Web or Connect.",
    };
  }
  if (req.method === "GET" && !hasDecodableMessage(target.query)) {
    return { status: 400, code: Code.InvalidArgument, message: "The query's message is not valid base64." };
  }
  return undefined;
}

/** Connect would call a message that is not base64 an internal error, as if it were our fault. */
function hasDecodableMessage(query: string): boolean {
  const parameters = new URLSearchParams(query);
  if (parameters.get("base64") !== "1") {
    return true;
  }
  try {
    base64Decode(parameters.get("message") ?? "");
    return true;
  } catch {
    return false;
  }
}
