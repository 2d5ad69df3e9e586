import type { ServerHttp2Session } from "node:http2";
import type { Socket } from "node:net";
import type { Exchange } from "./exchange.ts";
import type { Limits } from "./limits.ts";

/** How long a connection that was told to close may take to do so (milliseconds). */
const closeTimeoutMs = 1_000;

/** The times that a connection must keep (milliseconds). */
type ConnectionTimeouts = Pick<Limits, "firstBytesTimeoutMs" | "idleTimeoutMs" | "wasteTimeoutMs">;

/** One client's connection, from its acceptance until its socket is closed. */
export class Connection {
  /** The socket that carries it: the TLS socket, once a handshake is over. */
  socket: Socket;
  /** Undefined until the first bytes, or ALPN, have told. */
  protocol: "http1" | "http2" | undefined;
  session: ServerHttp2Session | undefined;
  readonly exchanges = new Set<Exchange>();
  #quietSince: number;
  #closingSince: number | undefined;
  #wasting = false;

  constructor(socket: Socket, now: number) {
    this.socket = socket;
    this.#quietSince = now;
  }

  add(exchange: Exchange): void {
    this.exchanges.add(exchange);
    this.#wasting = false;
  }

  /** Forgets an exchange that is over. `now` is `performance.now()`. */
  delete(exchange: Exchange, now: number): void {
    this.exchanges.delete(exchange);
    this.#quietSince = now;
    this.#wasting = this.protocol === "http1" && !exchange.req.complete;
  }

  /**
   * Asks the client to go: GOAWAY on HTTP/2, whose streams in flight go on; at once where nothing is in flight.
   * HTTP/1.1 requests in flight get `connection: close` with their response.
   */
  startClosing(now: number): void {
    if (this.#closingSince !== undefined) {
      return;
    }
    this.#closingSince = now;
    if (this.protocol === "http2") {
      this.session?.close();
    } else if (this.protocol === undefined) {
      this.socket.destroy();
    } else {
      this.#closeHttp1();
    }
  }

  #closeHttp1(): void {
    for (const { res } of this.exchanges) {
      if (!res.headersSent) {
        res.setHeader("connection", "close");
      }
    }
  }

  /** Enforces the timeouts; called at intervals. `now` is `performance.now()`. */
  sweep(now: number, { firstBytesTimeoutMs, idleTimeoutMs, wasteTimeoutMs }: ConnectionTimeouts): void {
    if (this.exchanges.size > 0) {
      return;
    }
    const quietForMs = now - this.#quietSince;
    if (this.protocol === undefined) {
      if (quietForMs > firstBytesTimeoutMs) {
        this.socket.destroy();
      }
    } else if (this.#closingSince !== undefined) {
      if (now - this.#closingSince > closeTimeoutMs && quietForMs > closeTimeoutMs) {
        this.socket.destroy();
      }
    } else if (this.protocol === "http1") {
      if (quietForMs > (this.#wasting ? wasteTimeoutMs : idleTimeoutMs)) {
        this.socket.destroy();
      }
    } else if (quietForMs > idleTimeoutMs) {
      this.startClosing(now);
    }
  }
}
