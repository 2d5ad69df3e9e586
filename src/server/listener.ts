import net, { type AddressInfo, type Server, type Socket } from "node:net";
import tls, { type TLSSocket } from "node:tls";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type ConnectRouterOptions,
  type ContextValues,
  type Interceptor,
} from "@connectrpc/connect";
import type { Logger } from "pino";
import { bind, checkTls, type TlsOptions } from "./listener/bind.ts";
import { createGzip } from "./listener/compression.ts";
import { Connection } from "./listener/connection.ts";
import type { CorsOptions } from "./listener/cors.ts";
import { Dispatcher, drainSignalKey, type HttpHandler, type RequestHead } from "./listener/dispatcher.ts";
import type { NodeReq, NodeRes } from "./listener/exchange.ts";
import { defaultLimits, type Limits } from "./listener/limits.ts";
import { detectProtocol, Protocols } from "./listener/protocols.ts";

export {
  type CorsOptions,
  drainSignalKey,
  type HttpHandler,
  type Limits,
  type NodeReq,
  type NodeRes,
  type RequestHead,
};

/** What a listener serves, and where. */
export interface ListenerOptions {
  /** The address to listen on. */
  readonly host: string;
  /** The port to listen on; 0 lets the system choose one. */
  readonly port: number;
  /** Makes the port speak TLS, and nothing else. PEM text. */
  readonly tls?: TlsOptions | undefined;
  readonly log: Logger;
  /** Registers the RPCs. */
  readonly routes: (router: ConnectRouter) => void;
  readonly interceptors?: readonly Interceptor[] | undefined;
  /**
   * Plain HTTP routes for GET, HEAD and POST, by exact path or, where the key ends in "/", by prefix (the longest one
   * wins). They go before RPCs, serve HTTP/1.1 and HTTP/2 alike, and must bound what they read.
   */
  readonly http?: Readonly<Record<string, HttpHandler>> | undefined;
  /** Makes the context of each RPC. */
  readonly contextValues?: ((head: RequestHead) => ContextValues) | undefined;
  readonly limits?: Partial<Limits> | undefined;
  /** Which web pages may call the server. None, if not set. */
  readonly cors?: CorsOptions | undefined;
  /** Further options of Connect's router, such as `jsonOptions`. Its sizes win over those of `limits`. */
  readonly connect?: ConnectRouterOptions | undefined;
}

/** How busy a listener is. */
export interface Load {
  readonly connections: number;
  /** Requests in flight, streaming ones included. */
  readonly requests: number;
  /** Bytes of request bodies in memory. */
  readonly requestBytes: number;
}

/** A port that is being served. */
export interface Listener {
  readonly port: number;
  /** The address to call, such as `http://127.0.0.1:8080`. */
  readonly url: string;
  readonly draining: boolean;
  /** Aborted when draining starts. RPCs find the same signal in their context under `drainSignalKey`. */
  readonly drainSignal: AbortSignal;
  readonly load: Load;
  /**
   * Stops accepting, sends GOAWAY (HTTP/2) or `connection: close` (HTTP/1.1), closes idle connections, and lets calls
   * in flight end for at most `graceMs`. Shortly before that the signals of all RPCs are aborted, so that what is left
   * can still tell its client UNAVAILABLE; then it is destroyed. Always resolves; a second call awaits the first.
   */
  drain(graceMs: number): Promise<void>;
}

/** TCP probes a silent peer after this time, so that one that vanished does not count as connected (milliseconds). */
const keepAliveProbeMs = 60_000;
/** What calls get at the end of draining to send a last answer (milliseconds). */
const lastWordsMs = 250;
/** How long destroyed sockets may take to report that they are closed (milliseconds). */
const destroyTimeoutMs = 1_000;

/**
 * Serves gRPC, gRPC-Web and Connect on one port: HTTP/2 with prior knowledge and HTTP/1.1 in cleartext, told apart by
 * a connection's first bytes, or both in TLS, told apart by ALPN.
 *
 * @throws Error with a sentence for the operator, naming PORT, HOST, TLS_CERT or TLS_KEY, if the port cannot be served
 */
export async function listen(options: ListenerOptions): Promise<Listener> {
  if (options.tls !== undefined) {
    checkTls(options.tls);
  }
  const front = new Front(options);
  await front.start();
  return front;
}

class Front implements Listener {
  readonly #options: ListenerOptions;
  readonly #limits: Limits;
  readonly #log: Logger;
  readonly #server: Server;
  readonly #protocols: Protocols;
  readonly #dispatcher: Dispatcher;
  readonly #connections = new Map<Socket, Connection>();
  readonly #handshakes = new Map<string, Socket>();
  readonly #drain = new AbortController();
  readonly #shutdown = new AbortController();
  #sweeper: NodeJS.Timeout | undefined;
  #dropped = 0;
  #drained: Promise<void> | undefined;
  #onEmpty: (() => void) | undefined;

  constructor(options: ListenerOptions) {
    this.#options = options;
    this.#limits = effectiveLimits(options);
    this.#log = options.log;
    this.#dispatcher = new Dispatcher({
      log: options.log,
      limits: this.#limits,
      scheme: options.tls === undefined ? "http" : "https",
      routes: options.routes,
      router: this.#routerOptions(),
      http: options.http ?? {},
      cors: options.cors,
      contextValues: options.contextValues,
      drainSignal: this.#drain.signal,
      shutdownSignal: this.#shutdown.signal,
    });
    this.#protocols = new Protocols(
      (arrival, connection) => this.#dispatcher.dispatch(arrival, connection),
      this.#limits,
      options.log,
    );
    this.#server = this.#createServer();
  }

  get port(): number {
    return (this.#server.address() as AddressInfo | null)?.port ?? this.#options.port;
  }

  get url(): string {
    const { host, tls: secure } = this.#options;
    const name = host === "0.0.0.0" || host === "::" ? "localhost" : host;
    return `${secure === undefined ? "http" : "https"}://${net.isIPv6(name) ? `[${name}]` : name}:${this.port}`;
  }

  get draining(): boolean {
    return this.#drain.signal.aborted;
  }

  get drainSignal(): AbortSignal {
    return this.#drain.signal;
  }

  get load(): Load {
    return {
      connections: this.#connections.size,
      requests: this.#dispatcher.requests,
      requestBytes: this.#dispatcher.requestBytes,
    };
  }

  async start(): Promise<void> {
    try {
      await bind(this.#server, this.#options.host, this.#options.port);
    } catch (error) {
      this.#protocols.close();
      throw error;
    }
    // Accepting can fail later, when the process is out of file descriptors; that ends by itself.
    this.#server.on("error", (error) => this.#log.error({ err: error }, "a connection could not be accepted"));
    this.#sweeper = setInterval(() => this.#sweep(), this.#limits.sweepIntervalMs).unref();
  }

  drain(graceMs: number): Promise<void> {
    this.#drained ??= this.#drainOnce(graceMs);
    return this.#drained;
  }

  #routerOptions(): ConnectRouterOptions {
    const { connect, interceptors } = this.#options;
    return {
      acceptCompression: [createGzip()],
      shutdownSignal: this.#shutdown.signal,
      ...connect,
      readMaxBytes: this.#limits.readMaxBytes,
      writeMaxBytes: this.#limits.sendMaxBytes,
      compressMinBytes: this.#limits.compressMinBytes,
      interceptors: [...(interceptors ?? []), ...(connect?.interceptors ?? [])],
    };
  }

  #createServer(): Server {
    const socketOptions = {
      allowHalfOpen: true,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: keepAliveProbeMs,
    };
    const server =
      this.#options.tls === undefined
        ? net.createServer(socketOptions, (socket) => this.#onConnection(socket))
        : this.#createTlsServer({ ...socketOptions, ...this.#options.tls });
    server.maxConnections = this.#limits.connections;
    server.on("drop", () => {
      this.#dropped++;
    });
    return server;
  }

  #createTlsServer(options: tls.TlsOptions): tls.Server {
    const server = tls.createServer({
      ...options,
      ALPNProtocols: ["h2", "http/1.1"],
      handshakeTimeout: this.#limits.firstBytesTimeoutMs,
      minVersion: "TLSv1.2",
    });
    server.on("connection", (socket: Socket) => this.#onRawConnection(socket));
    server.on("secureConnection", (socket) => this.#onSecureConnection(socket));
    server.on("tlsClientError", (error, socket) => {
      this.#log.debug({ err: error }, "a TLS handshake failed");
      socket.destroy();
    });
    return server;
  }

  #onConnection(socket: Socket): void {
    const connection = this.#track(socket);
    detectProtocol(socket, (protocol) => this.#serve(connection, protocol));
  }

  /** Remembers a socket for the time of its handshake, which the TLS server limits, so that draining can end it. */
  #onRawConnection(socket: Socket): void {
    const peer = peerOf(socket);
    this.#handshakes.set(peer, socket);
    socket.on("error", (error) => this.#log.debug({ err: error }, "a connection failed"));
    socket.once("close", () => this.#handshakes.delete(peer));
  }

  #onSecureConnection(socket: TLSSocket): void {
    this.#handshakes.delete(peerOf(socket));
    if (this.draining) {
      socket.destroy();
      return;
    }
    this.#serve(this.#track(socket), socket.alpnProtocol === "h2" ? "http2" : "http1");
  }

  #track(socket: Socket): Connection {
    const connection = new Connection(socket, performance.now());
    this.#connections.set(socket, connection);
    // An error is always followed by "close"; without a listener it would end the process.
    socket.on("error", (error) => this.#log.debug({ err: error }, "a connection failed"));
    socket.once("close", () => {
      this.#connections.delete(socket);
      for (const exchange of connection.exchanges) {
        exchange.close();
      }
      if (this.#connections.size === 0) {
        this.#onEmpty?.();
      }
    });
    return connection;
  }

  #serve(connection: Connection, protocol: "http1" | "http2"): void {
    if (protocol === "http2") {
      this.#protocols.serveHttp2(connection);
    } else {
      this.#protocols.serveHttp1(connection);
    }
  }

  #sweep(): void {
    const now = performance.now();
    this.#dispatcher.sweep(now);
    for (const connection of this.#connections.values()) {
      connection.sweep(now, this.#limits);
    }
    if (this.#dropped > 0) {
      const limit = this.#limits.connections;
      this.#log.warn({ dropped: this.#dropped, limit }, "connections were dropped, because too many are open");
      this.#dropped = 0;
    }
  }

  async #drainOnce(graceMs: number): Promise<void> {
    const emptied = new Promise<void>((resolve) => {
      this.#onEmpty = resolve;
    });
    this.#drain.abort(unavailable());
    this.#server.close();
    const now = performance.now();
    for (const connection of this.#connections.values()) {
      connection.startClosing(now);
    }
    for (const socket of this.#handshakes.values()) {
      socket.destroy();
    }
    this.#protocols.close();
    if (this.#connections.size > 0) {
      await this.#awaitEmpty(emptied, graceMs);
    }
    clearInterval(this.#sweeper);
  }

  async #awaitEmpty(emptied: Promise<void>, graceMs: number): Promise<void> {
    const lastMs = Math.min(lastWordsMs, graceMs / 2);
    if (await within(emptied, graceMs - lastMs)) {
      return;
    }
    this.#shutdown.abort(unavailable());
    if (await within(emptied, lastMs)) {
      return;
    }
    const { connections, requests } = this.load;
    this.#log.warn({ connections, requests }, "the time to drain is over; destroying what is left");
    for (const socket of this.#connections.keys()) {
      socket.destroy();
    }
    await within(emptied, destroyTimeoutMs);
  }
}

function effectiveLimits({ limits, connect }: ListenerOptions): Limits {
  const chosen = { ...defaultLimits, ...limits };
  return {
    ...chosen,
    readMaxBytes: connect?.readMaxBytes ?? chosen.readMaxBytes,
    sendMaxBytes: connect?.writeMaxBytes ?? chosen.sendMaxBytes,
    compressMinBytes: connect?.compressMinBytes ?? chosen.compressMinBytes,
  };
}

function peerOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort}`;
}

function unavailable(): ConnectError {
  return new ConnectError("The server is shutting down; try again.", Code.Unavailable);
}

/** Whether `event` happened within the time given (milliseconds). */
async function within(event: Promise<void>, timeoutMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), timeoutMs);
  });
  try {
    return await Promise.race([event.then(() => true as const), timeout]);
  } finally {
    clearTimeout(timer);
  }
}
