/** The adapter to the payment sandbox. */
import { Agent } from "node:http";
import { z } from "zod";
import type {
  AttemptReference,
  Captured,
  ChargeAnswer,
  ChargeRequest,
  ChargeState,
  Declined,
  Gateway,
  GatewayCallOptions,
  LookupAnswer,
  NotExecuted,
  RefundAnswer,
  RefundLookupAnswer,
  RefundReference,
  RefundRequest,
  Unknown,
  VoidAnswer,
  WebhookRequest,
  WebhookVerdict,
} from "./gateway.ts";
import { exchange, type HttpExchangeResult } from "./http-exchange.ts";
import {
  type ChargeBody,
  type ChargeRequestBody,
  chargeRequestSchema,
  chargeSchema,
  errorSchema,
  type RefundBody,
  type RefundRequestBody,
  referenceSchema,
  refundRequestSchema,
  refundSchema,
  type SandboxGatewayName,
} from "./sandbox-protocol.ts";
import {
  capturedOf,
  completedOf,
  declinedOf,
  failedOf,
  minWebhookSecretLength,
  money,
  parseSandboxWebhook,
} from "./sandbox-webhook.ts";

/** Which sandbox gateway to speak to, and where it is. */
export interface SandboxGatewayOptions {
  readonly name: SandboxGatewayName;
  /** The sandbox's `http:` address without a path, such as `http://127.0.0.1:8081`. */
  readonly baseUrl: string;
  /** What the sandbox signs its webhooks with; without it, every webhook is refused as `unconfigured`. */
  readonly webhookSecret?: string;
}

const maxResponseBytes = 64 * 1024;
const maxSockets = 256;
const maxIdleSockets = 64;
const maxRetryAfterMs = 60_000;
const maxDetailLength = 300;

const chargeAnswerSchema = z.object({ charge: chargeSchema });
const refundAnswerSchema = z.object({ refund: refundSchema });

/**
 * The refusals that the sandbox's contract defines as "this request was not processed". Anything else that is no
 * success, a bare 503 or 404 of something in between for one, is unknown.
 */
const provenRefusals: ReadonlyMap<string, NotExecuted["cause"]> = new Map<string, NotExecuted["cause"]>([
  ["429 rate_limited", "rate_limited"],
  ["503 unavailable", "unavailable"],
  ["503 ledger_full", "unavailable"],
  ["409 key_conflict", "key_conflict"],
  ["400 invalid_request", "rejected"],
  ["400 malformed_json", "rejected"],
  ["413 body_too_large", "rejected"],
]);

/**
 * Speaks to one gateway of a sandbox over kept connections, at most 256 at once.
 *
 * @throws TypeError when the address is not a plain `http:` one or the secret is shorter than 16 characters.
 */
export function createSandboxGateway(options: SandboxGatewayOptions): Gateway {
  return new SandboxGateway(options);
}

/** An answer of the sandbox as it was read, or why there is none. */
type Reply =
  | { readonly kind: "success"; readonly json: unknown }
  | {
      readonly kind: "refusal";
      readonly status: number;
      readonly code: string;
      readonly message: string;
      readonly retryAfterMs: number | undefined;
      readonly json: unknown;
    }
  | Unknown
  | NotExecuted;

class SandboxGateway implements Gateway {
  readonly name: SandboxGatewayName;
  readonly #baseUrl: URL;
  readonly #webhookSecret: string | undefined;
  readonly #agent = new Agent({ keepAlive: true, maxSockets, maxFreeSockets: maxIdleSockets, scheduling: "lifo" });

  constructor(options: SandboxGatewayOptions) {
    const url = URL.parse(options.baseUrl);
    if (url?.protocol !== "http:" || url.pathname !== "/" || url.search !== "" || url.username !== "") {
      throw new TypeError(`The sandbox's address must be like http://127.0.0.1:8081, not ${options.baseUrl}.`);
    }
    if (options.webhookSecret !== undefined && options.webhookSecret.length < minWebhookSecretLength) {
      throw new TypeError(`The sandbox's webhook secret must have ${minWebhookSecretLength} characters or more.`);
    }
    this.name = options.name;
    this.#baseUrl = url;
    this.#webhookSecret = options.webhookSecret;
  }

  async charge(request: ChargeRequest, options: GatewayCallOptions): Promise<ChargeAnswer> {
    // Voids need only our own reference here, so there is nothing to remember before money can move.
    const body: ChargeRequestBody = {
      reference: request.reference,
      token: request.paymentMethodToken,
      amount_minor: Number(request.amount.minor),
      currency: request.amount.currency,
    };
    const fault = faultOf(chargeRequestSchema, body);
    if (fault !== undefined) return rejected(fault);
    const reply = await this.#call("POST", "charges", body, options);
    if (reply.kind === "refusal") return this.#refusedCharge(reply);
    if (reply.kind !== "success") return reply;
    const charge = this.#readCharge(reply.json, request.reference);
    if (charge === undefined) return malformed("The answer to the charge is not one of the sandbox's form.");
    if (charge.state === "pending") return pendingAt(charge.transaction_id);
    if (charge.state === "voided") return voidedReference("The sandbox answers that the reference is voided.");
    return { kind: "executed", result: resultOf(charge, charge.state) };
  }

  async lookup(attempt: AttemptReference, options: GatewayCallOptions): Promise<LookupAnswer> {
    if (!referenceSchema.safeParse(attempt.reference).success) return notAsked("The reference is not valid.");
    const reply = await this.#call("GET", `charges/${attempt.reference}`, undefined, options);
    if (reply.kind === "not_executed") return notAsked(reply.detail);
    if (reply.kind === "unknown") return reply;
    if (reply.kind === "refusal") {
      return isCode(reply, 404, "charge_not_found") ? { kind: "not_found" } : gatewayError(reply);
    }
    const charge = this.#readCharge(reply.json, attempt.reference);
    if (charge === undefined) return malformed("The answer to the lookup is not one of the sandbox's form.");
    return { kind: "found", charge: stateOf(charge) };
  }

  async void(attempt: AttemptReference, options: GatewayCallOptions): Promise<VoidAnswer> {
    if (!referenceSchema.safeParse(attempt.reference).success) return notAsked("The reference is not valid.");
    const reply = await this.#call("POST", `charges/${attempt.reference}/void`, undefined, options);
    if (reply.kind === "not_executed") return notAsked(reply.detail);
    if (reply.kind === "unknown") return reply;
    const isTooLate =
      reply.kind === "refusal" && (isCode(reply, 409, "already_captured") || isCode(reply, 409, "already_declined"));
    if (reply.kind === "refusal" && !isTooLate) return gatewayError(reply);
    const charge = this.#readCharge(reply.json, attempt.reference);
    const isTold = isTooLate
      ? charge?.state === "captured" || charge?.state === "declined"
      : charge?.state === "voided";
    if (charge === undefined || !isTold) return malformed("The answer to the void is not one of the sandbox's form.");
    if (charge.state === "captured" || charge.state === "declined") {
      return { kind: "executed", result: resultOf(charge, charge.state) };
    }
    return { kind: "voided" };
  }

  async refund(request: RefundRequest, options: GatewayCallOptions): Promise<RefundAnswer> {
    const body: RefundRequestBody = {
      key: request.key,
      reference: request.reference,
      amount_minor: Number(request.amount.minor),
      currency: request.amount.currency,
    };
    const fault = faultOf(refundRequestSchema, body);
    if (fault !== undefined) return rejected(fault);
    const reply = await this.#call("POST", "refunds", body, options);
    if (reply.kind === "refusal") {
      if (isCode(reply, 404, "charge_not_found")) return rejected(reply.message);
      return refusedUnprocessed(reply) ?? gatewayError(reply);
    }
    if (reply.kind !== "success") return reply;
    const refund = this.#readRefund(reply.json, request);
    if (refund === undefined) return malformed("The answer to the refund is not one of the sandbox's form.");
    if (refund.state === "pending") return pendingAt(refund.transaction_id);
    return { kind: "executed", result: refund.state === "completed" ? completedOf(refund) : failedOf(refund) };
  }

  async lookupRefund(reference: RefundReference, options: GatewayCallOptions): Promise<RefundLookupAnswer> {
    if (!referenceSchema.safeParse(reference.key).success) return notAsked("The refund's key is not valid.");
    const reply = await this.#call("GET", `refunds/${reference.key}`, undefined, options);
    if (reply.kind === "not_executed") return notAsked(reply.detail);
    if (reply.kind === "unknown") return reply;
    if (reply.kind === "refusal") {
      return isCode(reply, 404, "refund_not_found") ? { kind: "not_found" } : gatewayError(reply);
    }
    const refund = this.#readRefund(reply.json, reference);
    if (refund === undefined) return malformed("The answer to the lookup is not one of the sandbox's form.");
    if (refund.state === "pending") return { kind: "found", result: { outcome: "pending" } };
    return { kind: "found", result: refund.state === "completed" ? completedOf(refund) : failedOf(refund) };
  }

  parseWebhook(request: WebhookRequest): WebhookVerdict {
    if (this.#webhookSecret === undefined) {
      return { kind: "refused", cause: "unconfigured", detail: "The sandbox gateway has no webhook secret." };
    }
    return parseSandboxWebhook(this.#webhookSecret, request);
  }

  close(): void {
    this.#agent.destroy();
  }

  async #call(
    method: "GET" | "POST",
    path: string,
    body: ChargeRequestBody | RefundRequestBody | undefined,
    options: GatewayCallOptions,
  ): Promise<Reply> {
    const result = await exchange({
      method,
      url: new URL(`/${this.name}/${path}`, this.#baseUrl),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      agent: this.#agent,
      timeoutMs: options.timeoutMs,
      maxResponseBytes,
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    return replyOf(result);
  }

  #refusedCharge(refusal: Extract<Reply, { kind: "refusal" }>): ChargeAnswer {
    if (isCode(refusal, 409, "voided")) return voidedReference(refusal.message);
    return refusedUnprocessed(refusal) ?? gatewayError(refusal);
  }

  /** The charge in an answer, if it is the one that was asked about: a proxy's mix-up must not become our truth. */
  #readCharge(json: unknown, reference: string): ChargeBody | undefined {
    const charge = chargeAnswerSchema.safeParse(json).data?.charge;
    if (charge?.reference !== reference || charge.gateway !== this.name) return undefined;
    const isWhole = charge.state !== "captured" || (charge.captured_minor > 0 && charge.transaction_id !== "");
    return isWhole ? charge : undefined;
  }

  #readRefund(json: unknown, asked: { key: string; reference: string }): RefundBody | undefined {
    const refund = refundAnswerSchema.safeParse(json).data?.refund;
    const isAsked = refund?.key === asked.key && refund.reference === asked.reference && refund.gateway === this.name;
    return isAsked && refund.transaction_id !== "" ? refund : undefined;
  }
}

function replyOf(result: HttpExchangeResult): Reply {
  if (result.kind === "not_sent") {
    return { kind: "not_executed", cause: result.cause, proves: "this_send", detail: result.detail };
  }
  if (result.kind === "lost") {
    return result.cause === "oversized_answer"
      ? malformed(result.detail)
      : { kind: "unknown", cause: result.cause, detail: result.detail };
  }
  const json = parseJson(result.body);
  if (result.status === 200) return { kind: "success", json };
  const error = errorSchema.safeParse(json).data?.error;
  return {
    kind: "refusal",
    status: result.status,
    code: error?.code ?? "",
    message: (error?.message ?? "").slice(0, maxDetailLength),
    retryAfterMs: retryAfterMsOf(result.headers["retry-after"]),
    json,
  };
}

function parseJson(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString("utf8"));
  } catch {
    return undefined;
  }
}

function retryAfterMsOf(header: string | undefined): number | undefined {
  if (header === undefined || !/^\d{1,6}$/.test(header)) return undefined;
  return Math.min(Number(header) * 1_000, maxRetryAfterMs);
}

function refusedUnprocessed(refusal: Extract<Reply, { kind: "refusal" }>): NotExecuted | undefined {
  const cause = provenRefusals.get(`${refusal.status} ${refusal.code}`);
  if (cause === undefined) return undefined;
  const answer: NotExecuted = { kind: "not_executed", cause, proves: "this_send", detail: refusal.message };
  return refusal.retryAfterMs === undefined ? answer : { ...answer, retryAfterMs: refusal.retryAfterMs };
}

function isCode(refusal: Extract<Reply, { kind: "refusal" }>, status: number, code: string): boolean {
  return refusal.status === status && refusal.code === code;
}

function resultOf(charge: ChargeBody, state: "captured" | "declined"): Captured | Declined {
  return state === "captured" ? capturedOf(charge) : declinedOf(charge);
}

function stateOf(charge: ChargeBody): ChargeState {
  switch (charge.state) {
    case "captured":
      return {
        ...capturedOf(charge),
        refunded: money(charge.refunded_minor, charge.currency),
        disputed: money(charge.disputed_minor, charge.currency),
      };
    case "declined":
      return declinedOf(charge);
    default:
      return { outcome: charge.state };
  }
}

function pendingAt(transactionId: string) {
  return transactionId === "" ? ({ kind: "pending" } as const) : ({ kind: "pending", transactionId } as const);
}

function voidedReference(detail: string): NotExecuted {
  return { kind: "not_executed", cause: "voided", proves: "reference", detail };
}

function rejected(detail: string): NotExecuted {
  return { kind: "not_executed", cause: "rejected", proves: "this_send", detail };
}

function malformed(detail: string): Unknown {
  return { kind: "unknown", cause: "malformed_answer", detail };
}

function notAsked(detail: string): Unknown {
  return { kind: "unknown", cause: "not_sent", detail };
}

function gatewayError(refusal: Extract<Reply, { kind: "refusal" }>): Unknown {
  const detail = `The sandbox answered ${refusal.status} ${refusal.code} ${refusal.message}`.trim();
  return { kind: "unknown", cause: "gateway_error", detail };
}

/** What is wrong with a request that must not even be sent; undefined when nothing is. */
function faultOf(schema: z.ZodType, body: unknown): string | undefined {
  const issue = schema.safeParse(body).error?.issues[0];
  return issue === undefined ? undefined : `${issue.path.join(".")}: ${issue.message}`.slice(0, maxDetailLength);
}
