import type { IncomingHttpHeaders } from "node:http";
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
import { type Arrival, Exchange, MemoryBudget, type NodeReq, type NodeRes } from "./exchange.ts";
import { requestHeader } from "./headers.ts";
import type { Limits } from "./limits.ts";
import { type Refusal, refuse } from "./refusal.ts";
import { RequestBody } from "./request-body.ts";
import { type RpcHandler, type RpcRequest, serveRpc } from "./rpc.ts";
import { parseTarget, type Target } from "./target.ts";
import { isPlain, registerUnary, serveUnary, type UnaryMethod } from "./unary.ts";

/** What is known of a request before anything of its body. */
export interface RequestHead {
  readonly headers: IncomingHttpHeaders;
  /** The other end of the connection; undefined once it has gone. */
  readonly remoteAddress: string | undefined;
}

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
  readonly contextValues: ((head: RequestHead) => ContextValues) | undefined;
  readonly drainSignal: AbortSignal;
  /** Aborted shortly before the end of draining. */
  readonly shutdownSignal: AbortSignal;
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

/** Takes every request of every protocol, and finds who answers it. */
export class Dispatcher {
  readonly #options: DispatcherOptions;
  readonly #rpcs: ReadonlyMap<string, RpcHandler>;
  readonly #unaries: ReadonlyMap<string, UnaryMethod>;
  readonly #exactRoutes: ReadonlyMap<string, HttpHandler>;
  readonly #prefixRoutes: ReadonlyArray<readonly [string, HttpHandler]>;
  readonly #budget: MemoryBudget;
  readonly #exchanges = new Set<Exchange>();

  constructor(options: DispatcherOptions) {
    this.#options = options;
    this.#budget = new MemoryBudget(options.limits.requestMemoryBytes);
    const router = createConnectRouter(options.router);
    this.#unaries = registerUnary(router, options.routes, options.router.interceptors ?? []);
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
  dispatch(arrival: Arrival, connection: Connection): void {
    const exchange = new Exchange(arrival, connection, this.#budget, (closed) => {
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
    const { drainSignal, scheme, cors } = this.#options;
    if (drainSignal.aborted && exchange.stream === undefined) {
      exchange.res.setHeader("connection", "close");
    }
    const overload = this.#findOverload(exchange);
    if (overload !== undefined) {
      return overload;
    }
    const target = parseTarget(exchange.target, exchange.authority, scheme);
    if (typeof target === "string") {
      return { status: 400, code: Code.InvalidArgument, message: target };
    }
    if (!knownMethods.has(exchange.method)) {
      return methodNotAllowed(["GET", "POST"]);
    }
    if (cors !== undefined && exchange.headers.origin !== undefined && applyCors(cors, exchange.req, exchange.res)) {
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
    if (exchange.headerFields > limits.headerCount) {
      const message = `A request must not have more than ${limits.headerCount} header fields.`;
      return { status: 431, code: Code.ResourceExhausted, message };
    }
    // One HTTP/1.1 connection can pipeline any number of requests; HTTP/2 keeps to what its settings allow.
    if (
      this.#exchanges.size > limits.requests ||
      exchange.connection.exchanges.size > 2 * limits.requestsPerConnection ||
      (exchange.stream === undefined && exchange.connection.exchanges.size > limits.requestsPerConnection)
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
    const { headers, connection } = exchange;
    const { limits, contextValues, drainSignal } = this.#options;
    const refusal = findRpcRefusal(exchange, rpc, target);
    if (refusal !== undefined) {
      return refusal;
    }
    let header: Headers;
    try {
      header = requestHeader(headers, limits.readMaxBytes);
    } catch {
      const message = "The request has a header field that is not valid.";
      return { status: 400, code: Code.InvalidArgument, message };
    }
    if (rpc.method.methodKind === "unary" || rpc.method.methodKind === "server_streaming") {
      this.#limitBodyTime(exchange);
    }
    const { remoteAddress } = connection.socket;
    const values = contextValues?.({ headers, remoteAddress }) ?? createContextValues();
    values.set(drainSignalKey, drainSignal);
    const body = new RequestBody(exchange, limits.readMaxBytes);
    const request = { exchange, target, header, contextValues: values, body };
    this.#answerRpc(rpc, request).catch((error: unknown) => this.#fail(exchange, error));
    return undefined;
  }

  async #answerRpc(rpc: RpcHandler, request: RpcRequest): Promise<void> {
    const { limits, shutdownSignal } = this.#options;
    const unary = isPlain(request.exchange) ? this.#unaries.get(request.target.path) : undefined;
    if (unary === undefined) return serveRpc(rpc, request);
    const unusual = await serveUnary(unary, request, limits, shutdownSignal);
    if (unusual !== undefined) await serveRpc(rpc, request, unusual);
  }

  #limitBodyTime(exchange: Exchange): void {
    exchange.bodyDeadlineAt = performance.now() + this.#options.limits.bodyTimeoutMs;
  }

  #refuse(exchange: Exchange, refusal: Refusal): void {
    this.#options.log.debug(
      { method: exchange.method, status: refusal.status, reason: refusal.message },
      "request refused",
    );
    // What is left of the body is thrown away, so that the client gets to read the answer.
    exchange.body.resume();
    refuse(exchange.req, exchange.res, refusal);
  }

  /** The last resort for a fault of ours: the client gets an answer if it can still have one, and the log the cause. */
  #fail(exchange: Exchange, error: unknown): void {
    if (exchange.closed) {
      this.#options.log.debug({ err: error }, "a request failed after its client was gone");
      return;
    }
    this.#options.log.error({ err: error, path: exchange.target?.split("?", 1)[0] }, "a request could not be answered");
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

function findRpcRefusal(exchange: Exchange, rpc: RpcHandler, target: Target): Refusal | undefined {
  const { method, headers } = exchange;
  if (!rpc.allowedMethods.includes(method)) {
    return methodNotAllowed([...new Set(rpc.allowedMethods)]);
  }
  if (rpc.method.methodKind === "bidi_streaming" && exchange.stream === undefined) {
    const message = "This method streams in both directions, which needs HTTP/2.";
    return { status: 505, code: Code.Unimplemented, message, headers: { connection: "close" } };
  }
  if (method === "POST" && !rpc.supportedContentType(headers["content-type"] ?? "")) {
    return {
      status: 415,
      code: Code.InvalidArgument,
      message: "The content type is none of gRPC, gRPC-Web or Connect.",
    };
  }
  if (method === "GET" && !hasDecodableMessage(target.query)) {
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
