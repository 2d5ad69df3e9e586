import http, { type IncomingMessage, type ServerResponse } from "node:http";
import http2, {
  type Http2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from "node:http2";
import type { Socket } from "node:net";
import type { Logger } from "pino";
import type { Connection } from "./connection.ts";
import type { Arrival } from "./exchange.ts";
import type { Limits } from "./limits.ts";

/** Takes a request of either protocol; must not throw. */
type Dispatch = (arrival: Arrival, connection: Connection) => void;

/** A resetting client is told once a second that it may go on, and may reset this many streams at once before. */
const streamResetBurst = 500;
const streamResetsPerSecond = 100;
/** Frames that make no sense, and streams refused by the settings, after which a session is ended. */
const invalidFrameLimit = 100;
const rejectedStreamLimit = 100;
/** Header tables, queued frames and what waits to be sent on one session, in the unit that node:http2 takes. */
const sessionMemoryMegabytes = 32;

/** Speaks HTTP/1.1 and HTTP/2 on connections that something else accepted. */
export class Protocols {
  readonly #http1: http.Server;
  readonly #http2: Http2Server;
  readonly #dispatch: Dispatch;
  readonly #limits: Limits;
  readonly #log: Logger;
  readonly #connections = new WeakMap<object, Connection>();

  constructor(dispatch: Dispatch, limits: Limits, log: Logger) {
    this.#dispatch = dispatch;
    this.#limits = limits;
    this.#log = log;
    this.#http1 = this.#createHttp1();
    this.#http2 = this.#createHttp2();
  }

  /** Serves HTTP/1.1 on a connection. What was read from it already must have been put back by `unshift`. */
  serveHttp1(connection: Connection): void {
    connection.protocol = "http1";
    this.#connections.set(connection.socket, connection);
    this.#http1.emit("connection", connection.socket);
  }

  /** Serves HTTP/2 on a connection. What was read from it already must have been put back by `unshift`. */
  serveHttp2(connection: Connection): void {
    connection.protocol = "http2";
    // A session ends with its connection's first half; only HTTP/1.1 can do something with the second.
    connection.socket.allowHalfOpen = false;
    const adopt = (session: ServerHttp2Session) => {
      connection.session = session;
      this.#connections.set(session, connection);
      session.setLocalWindowSize(this.#limits.connectionWindowBytes);
    };
    this.#http2.once("session", adopt);
    this.#http2.emit("connection", connection.socket);
    this.#http2.off("session", adopt);
  }

  /** Closes HTTP/1.1 connections that have no request in flight, and stops the timers of both protocols. */
  close(): void {
    this.#http1.close();
    this.#http1.closeIdleConnections();
  }

  #createHttp1(): http.Server {
    const limits = this.#limits;
    const server = http.createServer({
      maxHeaderSize: limits.headerBytes,
      headersTimeout: limits.headersTimeoutMs,
      // The dispatcher knows which bodies may take their time, and can answer those that may not.
      requestTimeout: 0,
      keepAliveTimeout: limits.idleTimeoutMs,
      connectionsCheckingInterval: limits.sweepIntervalMs,
      insecureHTTPParser: false,
    });
    // Beyond this count Node.js would leave out fields silently; the dispatcher refuses such a request instead.
    server.maxHeadersCount = limits.headerCount + 1;
    const onRequest = (req: IncomingMessage, res: ServerResponse) => this.#onHttp1Request(req, res);
    server.on("request", onRequest);
    // The RPC asks for the body when it is ready for it.
    server.on("checkContinue", onRequest);
    // Node.js starts checking the timeouts when a server listens, which this one never does by itself.
    server.emit("listening");
    return server;
  }

  #onHttp1Request(req: IncomingMessage, res: ServerResponse): void {
    const connection = this.#connections.get(req.socket);
    if (connection === undefined) {
      req.socket.destroy();
      return;
    }
    this.#dispatch({ req, res }, connection);
  }

  #createHttp2(): Http2Server {
    const limits = this.#limits;
    const server = http2.createServer({
      maxSessionMemory: sessionMemoryMegabytes,
      maxHeaderListPairs: limits.headerCount,
      maxSessionInvalidFrames: invalidFrameLimit,
      maxSessionRejectedStreams: rejectedStreamLimit,
      streamResetBurst,
      streamResetRate: streamResetsPerSecond,
      settings: {
        enablePush: false,
        maxConcurrentStreams: limits.requestsPerConnection,
        maxHeaderListSize: limits.headerBytes,
        initialWindowSize: limits.streamWindowBytes,
      },
    });
    server.on("stream", (stream: ServerHttp2Stream, headers: IncomingHttpHeaders, _flags: number, raw: string[]) => {
      this.#onHttp2Stream(stream, headers, raw);
    });
    server.on("sessionError", (error: Error) => this.#log.debug({ err: error }, "an HTTP/2 session failed"));
    return server;
  }

  /** Does what a "request" listener would have done for it, but also where the stream is already gone again. */
  #onHttp2Stream(stream: ServerHttp2Stream, headers: IncomingHttpHeaders, rawHeaders: string[]): void {
    stream.on("error", (error) => this.#log.debug({ err: error }, "an HTTP/2 stream failed"));
    const connection = stream.session === undefined ? undefined : this.#connections.get(stream.session);
    if (connection === undefined || stream.destroyed || stream.closed) {
      return;
    }
    if (headers.expect !== undefined && headers.expect !== "100-continue") {
      stream.respond({ ":status": 417 }, { endStream: true });
      return;
    }
    this.#dispatch({ stream, headers, rawHeaders }, connection);
  }
}

const http2Preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

/**
 * Waits for the first bytes of a cleartext connection, which tell HTTP/2 with prior knowledge from HTTP/1.1, and puts
 * them back. The bytes may come one at a time; whoever owns the socket limits the time they may take.
 */
export function detectProtocol(socket: Socket, found: (protocol: "http1" | "http2") => void): void {
  let seen: Buffer = Buffer.alloc(0);
  const onData = (chunk: Buffer) => {
    seen = seen.length === 0 ? chunk : Buffer.concat([seen, chunk]);
    const length = Math.min(seen.length, http2Preface.length);
    const isPreface = seen.subarray(0, length).equals(http2Preface.subarray(0, length));
    if (isPreface && length < http2Preface.length) {
      return;
    }
    socket.off("data", onData);
    socket.off("end", onEnd);
    socket.pause();
    socket.unshift(seen);
    found(isPreface ? "http2" : "http1");
    // An HTTP/2 session reads what is buffered by itself, and would find nothing if it flowed.
    if (!isPreface) {
      socket.resume();
    }
  };
  const onEnd = () => socket.destroy();
  socket.on("data", onData);
  socket.on("end", onEnd);
}
