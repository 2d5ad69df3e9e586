/** What the adapters of the vendors' SDKs share: their answers to what went wrong, and the bounds of their calls. */
import type { GatewayCallOptions, NotExecuted, Unknown } from "./gateway.ts";
import type { HttpExchangeResult } from "./http-exchange.ts";

/** More than any answer that the adapters read. */
export const maxResponseBytes = 256 * 1024;
/** Connections of one gateway at once; further calls wait within their own time. */
export const maxSockets = 256;
export const maxIdleSockets = 64;
/** An idle connection is closed before the vendor closes it, since a request on a dead one ends as `unknown`. */
export const idleSocketMs = 30_000;

const maxRetryAfterMs = 60_000;
const maxDetailLength = 300;

/** Proof that this one send moved nothing. */
export function notExecuted(cause: NotExecuted["cause"], detail: string, retryAfterMs?: number): NotExecuted {
  const answer: NotExecuted = { kind: "not_executed", cause, proves: "this_send", detail: bounded(detail) };
  return retryAfterMs === undefined ? answer : { ...answer, retryAfterMs };
}

/** Proof that the reference never has executed and never can. */
export function voidedReference(detail: string): NotExecuted {
  return { kind: "not_executed", cause: "voided", proves: "reference", detail: bounded(detail) };
}

export function unknown(cause: Unknown["cause"], detail: string): Unknown {
  return { kind: "unknown", cause, detail: bounded(detail) };
}

/** The answer to a question (a lookup or void) that did not reach the gateway. */
export function notAsked({ detail }: { readonly detail: string }): Unknown {
  return unknown("not_sent", detail);
}

/** What an exchange without an answer proves. */
export function withoutAnswer(result: Exclude<HttpExchangeResult, { kind: "answered" }>): NotExecuted | Unknown {
  if (result.kind === "not_sent") return notExecuted(result.cause, result.detail);
  return unknown(result.cause === "oversized_answer" ? "malformed_answer" : result.cause, result.detail);
}

/** Seconds of a `Retry-After` header, at most a minute; undefined for any other form. */
export function retryAfterMsOf(header: string | undefined): number | undefined {
  if (header === undefined || !/^\d{1,6}$/.test(header)) return undefined;
  return Math.min(Number(header) * 1_000, maxRetryAfterMs);
}

/** A vendor's word if it is a plain identifier, so that no free text (with a token or key in it) gets into logs. */
export function identifier(value: unknown): string {
  return typeof value === "string" && /^[A-Za-z0-9_.-]{1,60}$/.test(value) ? value : "";
}

/** The bounds of a call that is made of several requests: they share its time. */
export class CallBounds {
  readonly signal: AbortSignal | undefined;
  readonly #endMs: number;

  constructor(options: GatewayCallOptions) {
    this.signal = options.signal;
    this.#endMs = performance.now() + options.timeoutMs;
  }

  /** Not positive when the time is over. */
  get remainingMs(): number {
    return this.#endMs - performance.now();
  }
}

function bounded(detail: string): string {
  return detail.slice(0, maxDetailLength);
}
