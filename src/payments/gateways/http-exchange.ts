/** One HTTP request with its bounds, and exact knowledge of whether anything was sent when it fails. */
import {
  type ClientRequest,
  type Agent as HttpAgent,
  type IncomingHttpHeaders,
  type IncomingMessage,
  request as requestHttp,
} from "node:http";
import { type Agent as HttpsAgent, request as requestHttps } from "node:https";

/** What to send, and the bounds of the exchange. */
export interface HttpExchangeRequest {
  readonly method: "GET" | "POST";
  /** `http:` or `https:`. */
  readonly url: URL;
  readonly headers?: Readonly<Record<string, string>>;
  /** JSON text; sent as `application/json`. */
  readonly body?: string;
  readonly agent: HttpAgent | HttpsAgent;
  /** Covers waiting for a free connection, connecting, sending and reading the whole answer. */
  readonly timeoutMs: number;
  readonly maxResponseBytes: number;
  readonly signal?: AbortSignal;
}

/**
 * How the exchange ended. `not_sent` is proof that not one byte of the request left this process; `lost` means that
 * some may have, and that no complete answer came back.
 */
export type HttpExchangeResult =
  | {
      readonly kind: "answered";
      readonly status: number;
      readonly headers: IncomingHttpHeaders;
      readonly body: Buffer;
    }
  | {
      readonly kind: "not_sent";
      readonly cause: "connection_failed" | "timeout" | "aborted";
      readonly detail: string;
    }
  | {
      readonly kind: "lost";
      readonly cause: "timeout" | "aborted" | "connection_lost" | "oversized_answer";
      readonly detail: string;
    };

const maxTimerMs = 2_147_483_647;

type Failure = Extract<HttpExchangeResult, { kind: "lost" }>["cause"];

/** Sends one request and reads its whole answer. Never rejects for anything that the network or the server does. */
export function exchange(options: HttpExchangeRequest): Promise<HttpExchangeResult> {
  if (options.signal?.aborted === true) {
    return Promise.resolve({ kind: "not_sent", cause: "aborted", detail: "The call was aborted before it began." });
  }
  if (!(options.timeoutMs > 0)) {
    return Promise.resolve({ kind: "not_sent", cause: "timeout", detail: "No time was left to send anything." });
  }
  return new Promise((resolve) => {
    const request = openRequest(options);
    const wasSent = watchSending(request);
    let settled = false;
    const settle = (result: HttpExchangeResult): void => {
      if (settled) return;
      settled = true;
      clearTimeout(timer);
      options.signal?.removeEventListener("abort", onAbort);
      resolve(result);
    };
    const fail = (cause: Failure, detail: string): void => {
      if (settled) return;
      settle(failureOf(cause, detail, wasSent()));
      request.destroy();
    };
    const timeoutMs = Math.min(options.timeoutMs, maxTimerMs);
    const timer = setTimeout(() => fail("timeout", `No complete answer within ${timeoutMs} ms.`), timeoutMs);
    const onAbort = (): void => fail("aborted", "The caller aborted the call.");
    options.signal?.addEventListener("abort", onAbort, { once: true });

    request.on("error", (error) => fail("connection_lost", describe(error)));
    request.on("close", () => fail("connection_lost", "The connection closed without an answer."));
    request.on("response", (response) => readAnswer(response, options.maxResponseBytes, settle, fail));
    request.end(options.body);
  });
}

function openRequest(options: HttpExchangeRequest): ClientRequest {
  const headers: Record<string, string> = { accept: "application/json", ...options.headers };
  if (options.body !== undefined) {
    headers["content-type"] = "application/json";
    headers["content-length"] = String(Buffer.byteLength(options.body));
  }
  const open = options.url.protocol === "https:" ? requestHttps : requestHttp;
  return open(options.url, { method: options.method, headers, agent: options.agent });
}

/** Bytes wait in this process until the connection stands, so a request is unsent exactly until then. */
function watchSending(request: ClientRequest): () => boolean {
  let sent = false;
  const markSent = (): void => {
    sent = true;
  };
  request.on("socket", (socket) => {
    if (socket.connecting) socket.once("connect", markSent);
    else if (!socket.destroyed) markSent();
  });
  return () => sent;
}

function failureOf(cause: Failure, detail: string, sent: boolean): HttpExchangeResult {
  if (sent) return { kind: "lost", cause, detail };
  const unsentCause = cause === "timeout" || cause === "aborted" ? cause : "connection_failed";
  return { kind: "not_sent", cause: unsentCause, detail };
}

function readAnswer(
  response: IncomingMessage,
  maxBytes: number,
  settle: (result: HttpExchangeResult) => void,
  fail: (cause: Failure, detail: string) => void,
): void {
  const chunks: Buffer[] = [];
  let bytes = 0;
  response.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > maxBytes) fail("oversized_answer", `The answer is larger than ${maxBytes} bytes.`);
    else chunks.push(chunk);
  });
  response.on("error", (error) => fail("connection_lost", describe(error)));
  response.on("end", () => {
    if (!response.complete) return fail("connection_lost", "The answer ended before it was complete.");
    settle({
      kind: "answered",
      status: response.statusCode ?? 0,
      headers: response.headers,
      body: Buffer.concat(chunks),
    });
  });
}

/** A refused connection to a name with several addresses is an error of errors, whose own message is empty. */
function describe(error: Error): string {
  const parts = error instanceof AggregateError ? error.errors.map((part: unknown) => String(part)) : [error.message];
  const code = "code" in error && typeof error.code === "string" ? error.code : "";
  const text = parts.join("; ");
  return (text.includes(code) ? text : `${code} ${text}`).slice(0, 300);
}
