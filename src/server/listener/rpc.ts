import type { IncomingHttpHeaders } from "node:http";
import type { ConnectRouter, ContextValues } from "@connectrpc/connect";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Exchange, isHttp2, type NodeReq } from "./exchange.ts";
import type { Target } from "./target.ts";

/** What the router makes of one RPC. */
export type RpcHandler = ConnectRouter["handlers"][number];
type UniversalRequest = Parameters<RpcHandler>[0];
type UniversalResponse = Awaited<ReturnType<RpcHandler>>;

/** The longest timer that Node.js can set (milliseconds). One that is longer fires at once. */
const maxTimerMs = 2 ** 31 - 1;

const msPerGrpcUnit: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1_000 };

/**
 * Hands one request to its RPC and writes the answer. Rejects only with a fault of ours: what clients do wrong, and
 * their going away, ends in an answer or in silence.
 */
export async function serveRpc(
  exchange: Exchange,
  handler: RpcHandler,
  target: Target,
  header: Headers,
  contextValues: ContextValues,
  readMaxBytes: number,
): Promise<void> {
  const body = new RequestBody(exchange, readMaxBytes);
  const request: UniversalRequest = {
    httpVersion: exchange.req.httpVersion,
    method: exchange.req.method ?? "",
    url: target.url,
    header,
    body,
    signal: exchange.signal,
    contextValues,
  };
  await writeResponse(exchange, await handler(request));
}

/**
 * The request's header fields for the RPC. Two are changed: a deadline beyond what a timer can wait is cut to that,
 * and the declared length is left out unless it is too large, because memory would be reserved for it in advance.
 *
 * @throws TypeError if a field cannot be represented, which is the client's fault
 */
export function requestHeader(headers: IncomingHttpHeaders, readMaxBytes: number): Headers {
  const header = new Headers();
  for (const [name, value] of Object.entries(headers)) {
    if (value === undefined || name.startsWith(":")) {
      continue;
    }
    for (const item of Array.isArray(value) ? value : [value]) {
      header.append(name, item);
    }
  }
  if (Number(headers["content-length"]) <= readMaxBytes) {
    header.delete("content-length");
  }
  cutTimeouts(header);
  return header;
}

function cutTimeouts(header: Headers): void {
  const connectTimeout = header.get("connect-timeout-ms");
  if (connectTimeout !== null && /^\d{1,10}$/.test(connectTimeout) && Number(connectTimeout) > maxTimerMs) {
    header.set("connect-timeout-ms", String(maxTimerMs));
  }
  const grpcTimeout = /^(\d{1,8})([HMS])$/.exec(header.get("grpc-timeout") ?? "");
  const unitMs = msPerGrpcUnit[grpcTimeout?.[2] ?? ""];
  if (grpcTimeout !== null && unitMs !== undefined && Number(grpcTimeout[1]) * unitMs > maxTimerMs) {
    header.set("grpc-timeout", `${Math.floor(maxTimerMs / 1_000)}S`);
  }
}

/**
 * The bytes of a request, pulled one chunk at a time. Differs from iterating over the request in three ways: a request
 * that was cut off fails instead of ending as if it were complete; leaving early does not destroy the connection that
 * the answer must travel on; and a deadline can end the wait.
 */
class RequestBody implements AsyncIterableIterator<Uint8Array> {
  readonly #exchange: Exchange;
  readonly #req: NodeReq;
  readonly #readMaxBytes: number;
  #started = false;
  #done = false;
  #ended = false;
  #failure: unknown;
  #wake: (() => void) | undefined;

  constructor(exchange: Exchange, readMaxBytes: number) {
    this.#exchange = exchange;
    this.#req = exchange.req;
    this.#readMaxBytes = readMaxBytes;
    exchange.onBodyTimeout = () => {
      if (!isHttp2(exchange.res) && !exchange.res.headersSent) {
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
      const chunk: Uint8Array | null = this.#req.read();
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
    const { req, res } = this.#exchange;
    if (req.headers.expect !== undefined && !this.#exchange.closed) {
      res.writeContinue();
    }
    req.on("readable", this.#onReadable);
    req.once("end", this.#onEnd);
    req.once("close", this.#onEnd);
    req.once("error", this.#onError);
    this.#ended = req.readableEnded || req.destroyed;
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
      this.#req.off("readable", this.#onReadable);
      this.#req.off("end", this.#onEnd);
      this.#req.off("close", this.#onEnd);
      this.#req.off("error", this.#onError);
    }
    this.#req.resume();
  }
}

function cutOff(): ConnectError {
  return new ConnectError("The request was cut off.", Code.Canceled);
}

async function writeResponse(exchange: Exchange, response: UniversalResponse): Promise<void> {
  const body = response.body?.[Symbol.asyncIterator]();
  const { res } = exchange;
  try {
    // The header waits for the first chunk, because until then the RPC may still change it.
    let chunk = await body?.next();
    if (exchange.closed) {
      return;
    }
    writeHead(exchange, response.status, responseHeader(response.header));
    for (; chunk !== undefined && chunk.done !== true && !exchange.closed; chunk = await body?.next()) {
      if (!write(exchange, chunk.value)) {
        await exchange.drained();
      }
    }
    if (exchange.closed) {
      return;
    }
    if (response.trailer !== undefined) {
      res.addTrailers(responseHeader(response.trailer));
    }
    res.end();
  } finally {
    // Runs the `finally` blocks of an RPC whose client went away. It must not be awaited: an RPC that waits for
    // something else may take its time.
    body?.return?.().catch(() => {});
  }
}

// The two kinds of response declare their methods in ways that no single call satisfies.
function writeHead({ res }: Exchange, status: number, header: OutgoingFields): void {
  if (isHttp2(res)) {
    res.writeHead(status, header);
  } else {
    res.writeHead(status, header);
  }
}

function write({ res }: Exchange, chunk: Uint8Array): boolean {
  return isHttp2(res) ? res.write(chunk) : res.write(chunk);
}

type OutgoingFields = Record<string, string | string[]>;

function responseHeader(header: Headers | undefined): OutgoingFields {
  const fields: OutgoingFields = {};
  header?.forEach((value, name) => {
    const earlier = fields[name];
    const text = name === "grpc-message" ? readableMessage(value) : value;
    fields[name] = earlier === undefined ? text : [earlier, text].flat();
  });
  return fields;
}

/**
 * Connect percent-encodes every character of a gRPC error's message that is special in a URI. The protocol asks for
 * that only where a character is no printable ASCII, or "%", and @grpc/grpc-js leaves the others encoded when it reads.
 */
function readableMessage(encoded: string): string {
  return encoded.replace(/%(2[0-46-9A-F]|3[A-F]|40|5[B-E]|60|7[B-E])/gi, (escaped) => decodeURIComponent(escaped));
}
