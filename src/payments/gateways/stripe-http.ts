/** How the Stripe SDK's requests travel: once each, within the call's bounds, with knowledge of what was sent. */
import { AsyncLocalStorage } from "node:async_hooks";
import { type ClientRequest, Agent as HttpAgent, type IncomingMessage, request as requestHttp } from "node:http";
import { Agent as HttpsAgent, request as requestHttps } from "node:https";
import type { Stripe } from "stripe";
import { z } from "zod";
import {
  type CallBounds,
  identifier,
  idleSocketMs,
  maxIdleSockets,
  maxResponseBytes,
  maxSockets,
  notExecuted,
  retryAfterMsOf,
  unknown,
  withoutAnswer,
} from "./answers.ts";
import type { NotExecuted, Unknown } from "./gateway.ts";
import type { HttpExchangeResult } from "./http-exchange.ts";

const stripeErrorSchema = z.object({
  error: z.object({
    type: z.string(),
    code: z.string().optional(),
    decline_code: z.string().optional(),
    network_decline_code: z.string().nullish(),
    payment_intent: z.unknown().optional(),
  }),
});

/** An error as Stripe words it. Its free text is left out: it can name tokens. */
export type StripeError = z.infer<typeof stripeErrorSchema>["error"];

/** How one call of the SDK ended. `refusal` is an answer of Stripe's own form with a status of 400 or more. */
export type StripeReply<T> =
  | { readonly kind: "success"; readonly value: T }
  | {
      readonly kind: "refusal";
      readonly status: number;
      readonly error: StripeError;
      readonly retryAfterMs: number | undefined;
      readonly detail: string;
    }
  | NotExecuted
  | Unknown;

type SdkHttpClient = NonNullable<Stripe.StripeConfig["httpClient"]>;
type SdkHttpResponse = Awaited<ReturnType<SdkHttpClient["makeRequest"]>>;

interface Call {
  readonly bounds: CallBounds;
  result?: HttpExchangeResult;
}

type Answered = Extract<HttpExchangeResult, { kind: "answered" }>;
type Lost = Extract<HttpExchangeResult, { kind: "lost" }>["cause"];

const maxTimerMs = 2_147_483_647;

/**
 * The SDK's HTTP client. The SDK's own one sends a request again when its connection was reset, also with retries
 * off, has no bound on an answer's size, and does not tell a refused connection from a lost one.
 */
export class StripeHttp implements SdkHttpClient {
  readonly #baseUrl: URL;
  readonly #agent: HttpAgent | HttpsAgent;
  readonly #calls = new AsyncLocalStorage<Call>();

  /** `baseUrl` is `http:` or `https:`, without a path. */
  constructor(baseUrl: URL) {
    this.#baseUrl = baseUrl;
    const options = { keepAlive: true, maxSockets, maxFreeSockets: maxIdleSockets, timeout: idleSocketMs } as const;
    this.#agent = baseUrl.protocol === "https:" ? new HttpsAgent(options) : new HttpAgent(options);
  }

  /** Makes one call of the SDK, and tells how its request ended. Never rejects. */
  async run<T>(bounds: CallBounds, send: () => Promise<T>): Promise<StripeReply<T>> {
    const call: Call = { bounds };
    try {
      return { kind: "success", value: await this.#calls.run(call, send) };
    } catch {
      return failureOf(call.result);
    }
  }

  close(): void {
    this.#agent.destroy();
  }

  getClientName(): string {
    return "node";
  }

  async makeRequest(
    _host: string,
    _port: string,
    path: string,
    method: string,
    headers: Record<string, string | number | string[]>,
    body: string,
  ): Promise<SdkHttpResponse> {
    const call = this.#calls.getStore();
    if (call === undefined) throw new Error("A request was made outside of a call.");
    const [pathname = "", search = ""] = path.split("?", 2);
    const url = new URL(this.#baseUrl);
    url.pathname = pathname;
    url.search = search;
    const open = url.protocol === "https:" ? requestHttps : requestHttp;
    call.result = await exchange(call.bounds, body, () => open(url, { method, headers, agent: this.#agent }));
    // An error with a code, such as ECONNRESET, would make the SDK send the request again.
    if (call.result.kind !== "answered") throw new Error("Stripe did not answer.");
    return new StripeHttpResponse(call.result);
  }
}

class StripeHttpResponse implements SdkHttpResponse {
  readonly #answer: Answered;

  constructor(answer: Answered) {
    this.#answer = answer;
  }

  getStatusCode(): number {
    return this.#answer.status;
  }

  /** Only what the SDK needs: a header of Stripe's can make it print warnings. */
  getHeaders(): Record<string, string> {
    const { "request-id": requestId } = this.#answer.headers;
    return typeof requestId === "string" ? { "request-id": requestId } : {};
  }

  getRawResponse(): object {
    return { headers: this.getHeaders(), statusCode: this.#answer.status };
  }

  toStream(): never {
    throw new Error("Answers are not streamed.");
  }

  /** The SDK takes any value for an object, and fails outside of its own promise when it is none. */
  async toJSON(): Promise<object> {
    const value = parseJson(this.#answer.body);
    if (typeof value !== "object" || value === null) throw new Error("The answer is not a JSON object.");
    return value;
  }
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch {
    return undefined;
  }
}

function failureOf(result: HttpExchangeResult | undefined): Exclude<StripeReply<never>, { kind: "success" }> {
  if (result === undefined) return notExecuted("rejected", "The Stripe SDK refused the call before sending it.");
  if (result.kind !== "answered") return withoutAnswer(result);
  const { status } = result;
  if (status < 400) return unknown("malformed_answer", `Stripe answered ${status} in a form that is not its own.`);
  const error = stripeErrorSchema.safeParse(parseJson(result.body)).data?.error;
  if (error === undefined) return unknown("gateway_error", `Stripe answered ${status} without an error of its own.`);
  const requestId = result.headers["request-id"];
  const words = [identifier(error.type), identifier(error.code), identifier(error.decline_code), identifier(requestId)];
  return {
    kind: "refusal",
    status,
    error,
    retryAfterMs: retryAfterMsOf(result.headers["retry-after"]),
    detail: `Stripe answered ${status} ${words.filter((word) => word !== "").join(" ")}`.trimEnd(),
  };
}

/** One request and its whole answer. Never rejects. */
function exchange(bounds: CallBounds, body: string, open: () => ClientRequest): Promise<HttpExchangeResult> {
  const { signal, remainingMs } = bounds;
  if (signal?.aborted === true) {
    return Promise.resolve({ kind: "not_sent", cause: "aborted", detail: "The call was aborted before it was sent." });
  }
  if (!(remainingMs > 0)) {
    return Promise.resolve({ kind: "not_sent", cause: "timeout", detail: "No time was left to send anything." });
  }
  return new Promise((resolve) => {
    const request = open();
    const wasSent = watchSending(request);
    let settled = false;
    const settle = (result: HttpExchangeResult): void => {
      if (settled) return;
      settled = true;
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
      resolve(result);
    };
    const fail = (cause: Lost, detail: string): void => {
      if (settled) return;
      const unsent = cause === "timeout" || cause === "aborted" ? cause : "connection_failed";
      settle(wasSent() ? { kind: "lost", cause, detail } : { kind: "not_sent", cause: unsent, detail });
      request.destroy();
    };
    const timer = setTimeout(
      () => fail("timeout", `No complete answer within ${Math.round(remainingMs)} ms.`),
      Math.min(remainingMs, maxTimerMs),
    );
    const onAbort = (): void => fail("aborted", "The caller aborted the call.");
    signal?.addEventListener("abort", onAbort, { once: true });
    request.on("error", (error) => fail("connection_lost", describe(error)));
    request.on("close", () => fail("connection_lost", "The connection closed without an answer."));
    request.on("response", (response) => readAnswer(response, settle, fail));
    request.end(body);
  });
}

/** A request waits in this process until the connection stands, so it is unsent exactly until then. */
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

function readAnswer(
  response: IncomingMessage,
  settle: (result: HttpExchangeResult) => void,
  fail: (cause: Lost, detail: string) => void,
): void {
  const chunks: Buffer[] = [];
  let bytes = 0;
  response.on("data", (chunk: Buffer) => {
    bytes += chunk.length;
    if (bytes > maxResponseBytes) fail("oversized_answer", `The answer is larger than ${maxResponseBytes} bytes.`);
    else chunks.push(chunk);
  });
  response.on("error", (error) => fail("connection_lost", describe(error)));
  response.on("end", () => {
    if (!response.complete) return fail("connection_lost", "The answer ended before it was complete.");
    const { statusCode = 0, headers } = response;
    settle({ kind: "answered", status: statusCode, headers, body: Buffer.concat(chunks) });
  });
}

/** The error's code alone: its text can be anything. A refused connection to several addresses has errors inside. */
function describe(error: Error): string {
  const errors: unknown[] = error instanceof AggregateError ? [error, ...error.errors] : [error];
  const codes = errors.map((each) => (each instanceof Error && "code" in each ? identifier(each.code) : ""));
  return `The connection failed: ${[...new Set(codes)].filter((code) => code !== "").join(" ") || error.name}.`;
}
