import { Code, ConnectError } from "@connectrpc/connect";
import type { Exchange } from "./exchange.ts";

/**
 * The bytes of a request, pulled one chunk at a time. Differs from iterating over the request in three ways: a request
 * that was cut off fails instead of ending as if it were complete; leaving early does not destroy the connection that
 * the answer must travel on; and a deadline can end the wait.
 */
export class RequestBody implements AsyncIterableIterator<Uint8Array> {
  readonly #exchange: Exchange;
  readonly #source: Exchange["body"];
  readonly #readMaxBytes: number;
  #started = false;
  #done = false;
  #ended = false;
  #failure: unknown;
  #wake: (() => void) | undefined;

  constructor(exchange: Exchange, readMaxBytes: number) {
    this.#exchange = exchange;
    this.#source = exchange.body;
    this.#readMaxBytes = readMaxBytes;
    exchange.onBodyTimeout = () => {
      if (exchange.stream === undefined && !exchange.res.headersSent) {
        exchange.res.setHeader("connection", "close");
      }
      this.#fail(new ConnectError("The request's body did not arrive in time.", Code.DeadlineExceeded));
    };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<Uint8Array, undefined>> {
    this.#start();
    while (!this.#done) {
      if (this.#failure !== undefined) {
        this.#stop();
        throw this.#failure;
      }
      const chunk: Uint8Array | null = this.#source.read();
      if (chunk !== null) {
        this.#exchange.charge(chunk.byteLength, this.#readMaxBytes);
        return { done: false, value: chunk };
      }
      if (this.#ended) {
        this.#stop();
        this.#requireIntact();
        break;
      }
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return { done: true, value: undefined };
  }

  async return(): Promise<IteratorResult<Uint8Array, undefined>> {
    this.#stop();
    return { done: true, value: undefined };
  }

  #start(): void {
    if (this.#started) {
      return;
    }
    this.#started = true;
    const source = this.#source;
    if (this.#exchange.headers.expect !== undefined && !this.#exchange.closed) {
      this.#exchange.writeContinue();
    }
    source.on("readable", this.#onReadable);
    source.once("end", this.#onEnd);
    source.once("close", this.#onEnd);
    source.once("error", this.#onError);
    this.#ended = source.readableEnded || source.destroyed;
  }

  readonly #onReadable = (): void => {
    this.#wake?.();
  };

  readonly #onEnd = (): void => {
    this.#ended = true;
    this.#wake?.();
  };

  readonly #onError = (): void => {
    this.#fail(cutOff());
  };

  #fail(reason: unknown): void {
    this.#failure ??= reason;
    this.#wake?.();
  }

  #requireIntact(): void {
    if (!this.#exchange.bodyIntact) {
      throw cutOff();
    }
  }

  /** Lets the rest of the body go to waste, so that the client gets to read the answer. */
  #stop(): void {
    this.#done = true;
    this.#wake?.();
    if (this.#started) {
      this.#source.off("readable", this.#onReadable);
      this.#source.off("end", this.#onEnd);
      this.#source.off("close", this.#onEnd);
      this.#source.off("error", this.#onError);
    }
    this.#source.resume();
  }
}

function cutOff(): ConnectError {
  return new ConnectError("The request was cut off.", Code.Canceled);
}
