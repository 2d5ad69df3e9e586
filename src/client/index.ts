import http from "node:http";
import https from "node:https";
import type { Interceptor, Transport } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { type ClientOptions, createClients, type TradepostClients } from "./core.ts";

export * from "./core.ts";

/** As long as the server gives a call by default. */
const defaultCallTimeoutMs = 15_000;
/** The largest answer taken: well above a full page of the largest resources. */
const maxResponseBytes = 32 * 1024 * 1024;
const maxSockets = 64;
/** An idle HTTP/2 connection is probed this often, so that a dead one is noticed before a call hangs on it. */
const pingIntervalMs = 30_000;

/** How to reach a Tradepost server. */
export interface TradepostOptions extends ClientOptions {
  /** Address of the server, such as `https://shop.example` or `http://localhost:8080`; it may end in a path. */
  readonly baseUrl: string;
  /** Default `connect`. gRPC needs HTTP/2 all the way to the server. */
  readonly protocol?: "connect" | "grpc" | "grpc-web" | undefined;
  /** Default `1.1`, which every proxy passes on; `2` sends all calls over one connection. gRPC is always `2`. */
  readonly httpVersion?: "1.1" | "2" | undefined;
  /** Deadline of a call that sets no `timeoutMs` itself. Default 15,000; 0 sets none. */
  readonly defaultTimeoutMs?: number | undefined;
  /** Accept compressed answers. Default false: on a fast network it costs more time than it saves. */
  readonly compression?: boolean | undefined;
  /** Trust and identity on `https:`, in PEM: `ca` for a private authority, `cert` and `key` for a client certificate. */
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string } | undefined;
}

/** Typed clients for every service, over one set of connections. */
export interface Tradepost extends TradepostClients {
  /** Closes the connections; calls that are under way fail. Clients that are not closed keep nothing alive for long. */
  close(): void;
}

interface Connections {
  readonly makeTransport: (interceptors: Interceptor[]) => Transport;
  readonly close: () => void;
}

function parseBaseUrl(baseUrl: string): URL {
  const url = URL.canParse(baseUrl) ? new URL(baseUrl) : undefined;
  if (url?.protocol !== "http:" && url?.protocol !== "https:") {
    throw new TypeError(`baseUrl is an http: or https: address, not "${baseUrl}".`);
  }
  return url;
}

function connectOverHttp2(options: TradepostOptions, shared: ReturnType<typeof sharedOptions>): Connections {
  const sessionManager = new Http2SessionManager(options.baseUrl, { pingIntervalMs }, { ...options.tls });
  const makeTransport = (interceptors: Interceptor[]): Transport => {
    const settings = { ...shared, interceptors, sessionManager, httpVersion: "2" as const };
    if (options.protocol === "grpc") return createGrpcTransport(settings);
    return options.protocol === "grpc-web" ? createGrpcWebTransport(settings) : createConnectTransport(settings);
  };
  return { makeTransport, close: () => sessionManager.abort() };
}

function connectOverHttp1(options: TradepostOptions, shared: ReturnType<typeof sharedOptions>, url: URL): Connections {
  const pool = { keepAlive: true, maxSockets };
  const agent = url.protocol === "https:" ? new https.Agent({ ...pool, ...options.tls }) : new http.Agent(pool);
  const makeTransport = (interceptors: Interceptor[]): Transport => {
    const settings = { ...shared, interceptors, nodeOptions: { agent }, httpVersion: "1.1" as const };
    return options.protocol === "grpc-web" ? createGrpcWebTransport(settings) : createConnectTransport(settings);
  };
  return { makeTransport, close: () => agent.destroy() };
}

function sharedOptions({ baseUrl, compression, defaultTimeoutMs = defaultCallTimeoutMs }: TradepostOptions) {
  return {
    baseUrl,
    readMaxBytes: maxResponseBytes,
    ...(defaultTimeoutMs > 0 ? { defaultTimeoutMs } : {}),
    ...(compression === true ? {} : { acceptCompression: [] }),
  };
}

/**
 * Makes typed clients for a Tradepost server. Nothing is sent before the first call.
 *
 * ```js
 * const tradepost = createTradepost({ baseUrl: "http://localhost:8080", login: { email, password } });
 * const { products } = await tradepost.catalog.listProducts({});
 * ```
 *
 * @throws TypeError where the options contradict each other or the address is none
 */
export function createTradepost(options: TradepostOptions): Tradepost {
  const url = parseBaseUrl(options.baseUrl);
  if (options.protocol === "grpc" && options.httpVersion === "1.1") {
    throw new TypeError('gRPC needs HTTP/2: leave httpVersion out, or choose the protocol "connect" or "grpc-web".');
  }
  const shared = sharedOptions(options);
  const overHttp2 = options.protocol === "grpc" || options.httpVersion === "2";
  const connections = overHttp2 ? connectOverHttp2(options, shared) : connectOverHttp1(options, shared, url);
  return { ...createClients(connections.makeTransport, options), close: connections.close };
}
