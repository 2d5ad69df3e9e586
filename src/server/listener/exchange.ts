import type { IncomingMessage, ServerResponse } from "node:http";
import { constants, Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Connection } from "./connection.ts";
import type { Limits } from "./limits.ts";

/** A request as `node:http` or `node:http2` gives it. */
export type NodeReq = IncomingMessage | Http2ServerRequest;
/** The response that belongs to a `NodeReq`. */
export type NodeRes = ServerResponse | Http2ServerResponse;

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
  readonly req: NodeReq;
  readonly res: NodeRes;
  readonly connection: Connection;
  /** When the request's body must have arrived (milliseconds of `performance.now()`). */
  bodyDeadlineAt = Number.POSITIVE_INFINITY;
  /** What to do when it has not. */
  onBodyTimeout: () => void = () => this.destroy();
  #closed = false;
  #wakeWriter: (() => void) | undefined;
  #stalled = false;
  #progressBytes = -1;
  #progressAt = 0;
  #endedAt = 0;
  #chargedBytes = 0;
  readonly #abort = new AbortController();
  readonly #budget: MemoryBudget;
  readonly #onClose: (exchange: Exchange) => void;

  constructor(
    req: NodeReq,
    res: NodeRes,
    connection: Connection,
    budget: MemoryBudget,
    onClose: (exchange: Exchange) => void,
  ) {
    this.req = req;
    this.res = res;
    this.connection = connection;
    this.#budget = budget;
    this.#onClose = onClose;
    const close = () => this.close();
    // An error event without a listener ends the process. All of them mean that the client or its connection is gone,
    // which `close` tells as well.
    req.on("error", ignore);
    res.on("error", ignore);
    // The compatibility response of HTTP/2 says nothing when a HEAD request is reset, so its stream is asked.
    if (req instanceof Http2ServerRequest) {
      req.stream.once("close", close);
    } else {
      res.once("close", close);
    }
  }

  /** Aborted when the exchange ends before its response was complete. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Whether nothing can be sent any more. */
  get closed(): boolean {
    return this.#closed;
  }

  /** Whether the request ended where its client wanted it to end, and not because its stream was reset. */
  get bodyIntact(): boolean {
    return this.req instanceof Http2ServerRequest
      ? !this.req.stream.aborted && this.req.stream.rstCode === constants.NGHTTP2_NO_ERROR
      : this.req.complete;
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
    if (!this.res.writableEnded) {
      this.#abort.abort(new ConnectError("The client cancelled the request.", Code.Canceled));
    }
  }

  /** Ends the exchange now: resets the HTTP/2 stream, or closes the HTTP/1.1 connection. */
  destroy(code: number = constants.NGHTTP2_CANCEL): void {
    if (this.req instanceof Http2ServerRequest) {
      if (!this.req.stream.destroyed) {
        this.req.stream.close(code);
      }
    } else {
      this.connection.socket.destroy();
    }
    this.close();
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
    await new Promise<void>((resolve) => {
      this.#wakeWriter = resolve;
      this.res.once("drain", resolve);
    });
    if (this.#wakeWriter !== undefined) {
      this.res.off("drain", this.#wakeWriter);
    }
    this.#wakeWriter = undefined;
    this.#stalled = false;
    this.#progressBytes = -1;
  }

  /** Enforces the timeouts; called at intervals. `now` is `performance.now()`. */
  sweep(now: number, timeouts: ExchangeTimeouts): void {
    if (!this.res.writableEnded) {
      if (now >= this.bodyDeadlineAt && !this.req.complete) {
        this.bodyDeadlineAt = Number.POSITIVE_INFINITY;
        this.onBodyTimeout();
      } else if (this.#stalled) {
        this.#sweepProgress(now, timeouts.writeStallTimeoutMs);
      }
      return;
    }
    this.#endedAt ||= now;
    const endedForMs = now - this.#endedAt;
    if (this.req instanceof Http2ServerRequest && !this.req.complete && endedForMs > lingerMs) {
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
