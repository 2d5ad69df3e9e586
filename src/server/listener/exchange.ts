import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from "node:http";
import { constants, Http2ServerRequest, Http2ServerResponse, type ServerHttp2Stream } from "node:http2";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Connection } from "./connection.ts";
import type { Limits } from "./limits.ts";

/** A request as `node:http` or `node:http2` gives it. */
export type NodeReq = IncomingMessage | Http2ServerRequest;
/** The response that belongs to a `NodeReq`. */
export type NodeRes = ServerResponse | Http2ServerResponse;

/** A request as its protocol gives it. */
export type Arrival =
  | { readonly req: IncomingMessage; readonly res: ServerResponse; readonly stream?: undefined }
  | { readonly stream: ServerHttp2Stream; readonly headers: IncomingHttpHeaders; readonly rawHeaders: string[] };

/** How long a client may go on sending a body after it has got its answer, before its stream is ended (milliseconds). */
const lingerMs = 2_000;

/** The times that an exchange must keep (milliseconds). */
type ExchangeTimeouts = Pick<Limits, "writeStallTimeoutMs" | "flushTimeoutMs">;

/** Memory that the bodies of all requests share. */
export class MemoryBudget {
  readonly #limitBytes: number;
  #usedBytes = 0;

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** Takes `bytes` unless that would exceed the limit; returns whether it did. */
  take(bytes: number): boolean {
    if (this.#usedBytes + bytes > this.#limitBytes) {
      return false;
    }
    this.#usedBytes += bytes;
    return true;
  }

  give(bytes: number): void {
    this.#usedBytes -= bytes;
  }
}

/**
 * One request and its response, whatever happens to the connection below. It knows when it is over, and tells by
 * `signal` when that was too early; it never throws, and no event of the request or the response goes unheard.
 */
export class Exchange {
  readonly connection: Connection;
  /** HTTP/2 only. Whoever answers by it must not use `req` and `res`, which are made of it when they are asked for. */
  readonly stream: ServerHttp2Stream | undefined;
  readonly headers: IncomingHttpHeaders;
  /** When the request's body must have arrived (milliseconds of `performance.now()`). */
  bodyDeadlineAt = Number.POSITIVE_INFINITY;
  /** What to do when it has not. */
  onBodyTimeout: () => void = () => this.destroy();
  readonly #arrival: Arrival;
  #req: NodeReq | undefined;
  #res: NodeRes | undefined;
  #closed = false;
  #wakeWriter: (() => void) | undefined;
  #stalled = false;
  #progressBytes = -1;
  #progressAt = 0;
  #endedAt = 0;
  #chargedBytes = 0;
  #abort: AbortController | undefined;
  #cancelled: ConnectError | undefined;
  readonly #budget: MemoryBudget;
  readonly #onClose: (exchange: Exchange) => void;

  constructor(arrival: Arrival, connection: Connection, budget: MemoryBudget, onClose: (exchange: Exchange) => void) {
    this.#arrival = arrival;
    this.stream = arrival.stream;
    this.connection = connection;
    this.#budget = budget;
    this.#onClose = onClose;
    const close = () => this.close();
    // An error event without a listener ends the process. All of them mean that the client or its connection is gone,
    // which `close` tells as well.
    if (arrival.stream !== undefined) {
      this.headers = arrival.headers;
      // The compatibility response of HTTP/2 says nothing when a HEAD request is reset, so its stream is asked.
      arrival.stream.once("close", close);
    } else {
      const { req, res } = arrival;
      this.headers = req.headers;
      this.#req = req;
      this.#res = res;
      req.on("error", ignore);
      res.on("error", ignore);
      res.once("close", close);
    }
  }

  get req(): NodeReq {
    if (this.#req === undefined) this.#adapt();
    return this.#req as NodeReq;
  }

  get res(): NodeRes {
    if (this.#res === undefined) this.#adapt();
    return this.#res as NodeRes;
  }

  /** What Node.js makes of an HTTP/2 stream for those who are used to HTTP/1.1; it costs more than many an RPC. */
  #adapt(): void {
    if (this.#arrival.stream === undefined) return;
    const { stream, headers, rawHeaders } = this.#arrival;
    this.#req = new Http2ServerRequest(stream, headers, {}, rawHeaders);
    this.#res = new Http2ServerResponse(stream);
    this.#req.on("error", ignore);
    this.#res.on("error", ignore);
  }

  get method(): string {
    return (this.stream === undefined ? this.req.method : this.headers[":method"]?.toString()) ?? "";
  }

  /** The request's target as it was sent. */
  get target(): string | undefined {
    return this.stream === undefined ? this.req.url : this.headers[":path"]?.toString();
  }

  get authority(): string | undefined {
    return this.stream === undefined
      ? this.headers.host
      : (this.headers[":authority"]?.toString() ?? this.headers.host);
  }

  get headerFields(): number {
    return (this.#arrival.stream === undefined ? this.#arrival.req : this.#arrival).rawHeaders.length / 2;
  }

  /** Where the request's bytes come from. */
  get body(): IncomingMessage | ServerHttp2Stream {
    return this.#arrival.stream === undefined ? this.#arrival.req : this.#arrival.stream;
  }

  /** Aborted when the exchange ends before its response was complete. */
  get signal(): AbortSignal {
    if (this.#abort === undefined) {
      this.#abort = new AbortController();
      if (this.#cancelled !== undefined) this.#abort.abort(this.#cancelled);
    }
    return this.#abort.signal;
  }

  /** Whether nothing can be sent any more. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Whether the request ended where its client wanted it to end, and not because its stream was reset. */
  get bodyIntact(): boolean {
    return this.#arrival.stream === undefined
      ? this.#arrival.req.complete
      : !this.#arrival.stream.aborted && this.#arrival.stream.rstCode === constants.NGHTTP2_NO_ERROR;
  }

  /** Whether all of the request has arrived, or nothing more will. */
  get #received(): boolean {
    const { stream } = this;
    return stream === undefined ? this.req.complete : stream.readableEnded || stream.destroyed || stream.aborted;
  }

  /** Whether all of the response has been handed over. */
  get #answered(): boolean {
    if (this.stream === undefined) return this.res.writableEnded;
    // Node.js ends the writing side of a stream that was reset before that, too, and calls it aborted.
    return this.stream.writableEnded && !this.stream.aborted;
  }

  /** Ends the exchange's bookkeeping. The connection calls it too, because queued HTTP/1.1 responses never close. */
  close(): void {
    if (this.#closed) {
      return;
    }
    this.#closed = true;
    this.#budget.give(this.#chargedBytes);
    this.#onClose(this);
    this.#wakeWriter?.();
    if (!this.#answered) {
      this.#cancelled = new ConnectError("The client cancelled the request.", Code.Canceled);
      this.#abort?.abort(this.#cancelled);
    }
  }

  /** Ends the exchange now: resets the HTTP/2 stream, or closes the HTTP/1.1 connection. */
  destroy(code: number = constants.NGHTTP2_CANCEL): void {
    if (this.stream !== undefined) {
      if (!this.stream.destroyed) {
        this.stream.close(code);
      }
    } else {
      this.connection.socket.destroy();
    }
    this.close();
  }

  /** Tells a client that asked for it to send the body. */
  writeContinue(): void {
    this.res.writeContinue();
  }

  /** Charges received bytes to the shared memory, up to `capBytes` for this request; throws RESOURCE_EXHAUSTED. */
  charge(bytes: number, capBytes: number): void {
    const more = Math.min(bytes, capBytes - this.#chargedBytes);
    if (this.#closed || more <= 0) {
      return;
    }
    if (!this.#budget.take(more)) {
      throw new ConnectError("The server holds too many request bodies; try again.", Code.ResourceExhausted);
    }
    this.#chargedBytes += more;
  }

  /** Resolves once the client has taken what was written, or is gone. */
  async drained(): Promise<void> {
    if (this.#closed) {
      return;
    }
    this.#stalled = true;
    const writer = this.stream ?? this.res;
    await new Promise<void>((resolve) => {
      this.#wakeWriter = resolve;
      writer.once("drain", resolve);
    });
    if (this.#wakeWriter !== undefined) {
      writer.off("drain", this.#wakeWriter);
    }
    this.#wakeWriter = undefined;
    this.#stalled = false;
    this.#progressBytes = -1;
  }

  /** Enforces the timeouts; called at intervals. `now` is `performance.now()`. */
  sweep(now: number, timeouts: ExchangeTimeouts): void {
    if (!this.#answered) {
      if (now >= this.bodyDeadlineAt && !this.#received) {
        this.bodyDeadlineAt = Number.POSITIVE_INFINITY;
        this.onBodyTimeout();
      } else if (this.#stalled) {
        this.#sweepProgress(now, timeouts.writeStallTimeoutMs);
      }
      return;
    }
    this.#endedAt ||= now;
    const endedForMs = now - this.#endedAt;
    if (this.stream !== undefined && !this.#received && endedForMs > lingerMs) {
      this.destroy(constants.NGHTTP2_NO_ERROR);
    } else if (endedForMs > timeouts.flushTimeoutMs) {
      this.destroy();
    } else {
      this.#sweepProgress(now, timeouts.writeStallTimeoutMs);
    }
  }

  #sweepProgress(now: number, stallTimeoutMs: number): void {
    const written = this.connection.socket.bytesWritten;
    if (written !== this.#progressBytes) {
      this.#progressBytes = written;
      this.#progressAt = now;
    } else if (now - this.#progressAt > stallTimeoutMs) {
      this.destroy();
    }
  }
}

function ignore(): void {}

/** Whether `res` belongs to HTTP/2, where a connection's fate is no business of a single response. */
export function isHttp2(res: NodeRes): res is Http2ServerResponse {
  return res instanceof Http2ServerResponse;
}
