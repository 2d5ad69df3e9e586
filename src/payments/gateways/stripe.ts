/** The adapter to Stripe, by PaymentIntents. docs/gateways.md tells how its answers are proved. */
import Stripe from "stripe";
import type { z } from "zod";
import { CallBounds, notAsked, notExecuted, unknown, voidedReference } from "./answers.ts";
import type {
  AttemptReference,
  ChargeAnswer,
  ChargeRequest,
  ChargeState,
  Gateway,
  GatewayCallOptions,
  GatewayMoney,
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
import { StripeHttp, type StripeReply } from "./stripe-http.ts";
import {
  declinedBy,
  disputeSchema,
  fromStripeAmount,
  type Intent,
  intentIdPattern,
  intentSchema,
  isMoneyDisputed,
  referenceKey,
  refundKeyKey,
  refundResultOf,
  refundSchema,
  resultOf,
  type StripeRefund,
  toStripeAmount,
} from "./stripe-objects.ts";
import { parseStripeWebhook } from "./stripe-webhook.ts";

/** Which Stripe account to charge by, and where Stripe is. */
export interface StripeGatewayOptions {
  /** A secret or restricted key: `sk_…` or `rk_…`. */
  readonly apiKey: string;
  /** Without a path; `https://api.stripe.com` by default. */
  readonly baseUrl?: string;
  /** The webhook endpoint's signing secret, `whsec_…`; without it, every webhook is refused as `unconfigured`. */
  readonly webhookSecret?: string;
}

/** The version of Stripe's API that the adapter is written for; a newer SDK does not change what is sent and read. */
const apiVersion = "2026-10-28.endive";
const minWebhookSecretLength = 16;
const pageSize = 100;
/** A charge with more refunds or disputes than this is not read to its end. */
const maxPages = 10;
/** More than one intent of a reference is a fault that a person has to look into. */
const maxSearchResults = 10;

const referencePattern = /^[A-Za-z0-9._:-]{1,128}$/;
const tokenPattern = /^[A-Za-z0-9_]{1,255}$/;

/** Refusals of a refund that are Stripe's decision about the charge, not a fault of the request. */
const refundRefusals: ReadonlySet<string> = new Set(["charge_already_refunded", "charge_disputed"]);

/**
 * Speaks to Stripe over kept connections, at most 256 at once.
 *
 * @throws TypeError when the key is empty, the address is not a plain `http:` or `https:` one, or the secret is too short.
 */
export function createStripeGateway(options: StripeGatewayOptions): Gateway {
  return new StripeGateway(options);
}

class StripeGateway implements Gateway {
  readonly name = "stripe";
  readonly #http: StripeHttp;
  readonly #stripe: Stripe;
  readonly #webhookSecret: string | undefined;

  constructor({ apiKey, baseUrl = "https://api.stripe.com", webhookSecret }: StripeGatewayOptions) {
    const url = URL.parse(baseUrl);
    const isPlain = url?.pathname === "/" && url.search === "" && url.username === "";
    if (!isPlain || (url.protocol !== "https:" && url.protocol !== "http:")) {
      throw new TypeError(`Stripe's address must be like https://api.stripe.com, not ${baseUrl}.`);
    }
    if (apiKey === "") throw new TypeError("Stripe's API key is empty.");
    if (webhookSecret !== undefined && webhookSecret.length < minWebhookSecretLength) {
      throw new TypeError(`Stripe's webhook secret must have ${minWebhookSecretLength} characters or more.`);
    }
    this.#http = new StripeHttp(url);
    this.#stripe = new Stripe(apiKey, {
      apiVersion,
      httpClient: this.#http,
      maxNetworkRetries: 0,
      telemetry: false,
    });
    this.#webhookSecret = webhookSecret;
  }

  async charge(request: ChargeRequest, options: GatewayCallOptions): Promise<ChargeAnswer> {
    if (!referencePattern.test(request.reference)) return notExecuted("rejected", "The reference is not valid.");
    if (!tokenPattern.test(request.paymentMethodToken)) {
      return notExecuted("rejected", "The token is not one of Stripe's.");
    }
    const bounds = new CallBounds(options);
    const created = await this.#createIntent(request.reference, request.amount, bounds);
    // An intent that was not confirmed cannot charge, so whatever became of this request, it moved nothing.
    if (created.kind === "unknown") return unconfirmed(created);
    if (created.kind === "not_executed") return created;
    const remembered = await remember(request, created.intent.id, bounds);
    return remembered ?? this.#confirm(request, created.intent.id, bounds);
  }

  async lookup(attempt: AttemptReference, options: GatewayCallOptions): Promise<LookupAnswer> {
    const bounds = new CallBounds(options);
    const found = await this.#findIntent(attempt, bounds);
    if (found.kind !== "intent") return found;
    const { intent } = found;
    const result = resultOf(intent);
    if (result?.outcome === "captured") {
      const sums = await this.#sumReturned(intent, bounds);
      return sums.kind === "sums"
        ? { kind: "found", charge: { ...result, refunded: sums.refunded, disputed: sums.disputed } }
        : sums;
    }
    if (intent.status === "succeeded") return malformed("lookup");
    const charge = result ?? undecidedState(intent);
    return charge === undefined ? { kind: "not_found" } : { kind: "found", charge };
  }

  async void(attempt: AttemptReference, options: GatewayCallOptions): Promise<VoidAnswer> {
    if (!referencePattern.test(attempt.reference)) return unknown("not_sent", "The reference is not valid.");
    const bounds = new CallBounds(options);
    const known = await this.#learnIntentId(attempt, bounds);
    return typeof known === "string" ? this.#cancel(attempt.reference, known, bounds) : known;
  }

  async refund(request: RefundRequest, options: GatewayCallOptions): Promise<RefundAnswer> {
    const amount = toStripeAmount(request.amount);
    if (amount === undefined) return notExecuted("rejected", inexact(request.amount));
    if (!referencePattern.test(request.key)) return notExecuted("rejected", "The refund's key is not valid.");
    if (!intentIdPattern.test(request.transactionId)) return notExecuted("rejected", "The transaction is no intent.");
    const metadata = { [referenceKey]: request.reference, [refundKeyKey]: request.key };
    const reply = await this.#http.run(new CallBounds(options), () =>
      this.#stripe.refunds.create(
        { payment_intent: request.transactionId, amount, metadata },
        { idempotencyKey: `refund:${request.key}` },
      ),
    );
    if (reply.kind === "refusal") return refusedRefund(reply);
    if (reply.kind !== "success") return reply;
    const refund = ownRefund(reply.value, request.key);
    const result = refund && refundResultOf(refund);
    if (refund === undefined || result === undefined) return malformed("refund");
    if (result.outcome === "pending") return { kind: "pending", transactionId: refund.id };
    return { kind: "executed", result };
  }

  async lookupRefund(reference: RefundReference, options: GatewayCallOptions): Promise<RefundLookupAnswer> {
    const bounds = new CallBounds(options);
    const found = await this.#findRefund(reference, bounds);
    if (found.kind !== "refund") return found;
    const result = refundResultOf(found.refund);
    return result === undefined ? malformed("refund") : { kind: "found", result };
  }

  parseWebhook(request: WebhookRequest): WebhookVerdict {
    if (this.#webhookSecret === undefined) {
      return { kind: "refused", cause: "unconfigured", detail: "The Stripe gateway has no webhook secret." };
    }
    return parseStripeWebhook(this.#webhookSecret, request);
  }

  close(): void {
    this.#http.close();
  }

  /**
   * The reference's one intent, unconfirmed when it is new. The token is not part of it, so that a void can send the same
   * request, without knowing the token, to learn the id.
   */
  async #createIntent(
    reference: string,
    money: GatewayMoney,
    bounds: CallBounds,
  ): Promise<{ kind: "intent"; intent: Intent } | NotExecuted | Unknown> {
    const amount = toStripeAmount(money);
    if (amount === undefined) return notExecuted("rejected", inexact(money));
    const reply = await this.#http.run(bounds, () =>
      this.#stripe.paymentIntents.create(
        {
          amount,
          currency: money.currency.toLowerCase(),
          allowed_payment_method_types: ["card"],
          capture_method: "automatic",
          metadata: { [referenceKey]: reference },
        },
        { idempotencyKey: `create:${reference}` },
      ),
    );
    if (reply.kind === "refusal") return refusedUnprocessed(reply) ?? gatewayError(reply);
    if (reply.kind !== "success") return reply;
    const intent = ownIntent(reply.value, reference);
    return intent === undefined ? malformed("create") : { kind: "intent", intent };
  }

  async #confirm(request: ChargeRequest, id: string, bounds: CallBounds): Promise<ChargeAnswer> {
    const reply = await this.#http.run(bounds, () =>
      this.#stripe.paymentIntents.confirm(
        id,
        { payment_method: request.paymentMethodToken, error_on_requires_action: true },
        { idempotencyKey: `confirm:${request.reference}` },
      ),
    );
    if (reply.kind === "refusal") return refusedConfirm(reply, request.reference, id);
    if (reply.kind !== "success") return reply;
    const intent = ownIntent(reply.value, request.reference, id);
    if (intent?.status !== "requires_action") {
      return (intent && confirmedState(intent)) ?? malformed("confirm");
    }
    // Nobody of ours could lead the customer through it, and what is not cancelled could still be completed.
    const voided = await this.#cancel(request.reference, id, bounds);
    if (voided.kind !== "voided") return voided;
    return { kind: "executed", result: declinedBy({ type: "card_error", code: "authentication_required" }) };
  }

  async #cancel(reference: string, id: string, bounds: CallBounds): Promise<VoidAnswer> {
    // Without a key of ours: a refusal remembered under it would hide that the intent can be cancelled by now.
    const reply = await this.#http.run(bounds, () => this.#stripe.paymentIntents.cancel(id));
    if (reply.kind === "not_executed") return notAsked(reply);
    if (reply.kind === "unknown") return reply;
    const told = reply.kind === "success" ? reply.value : reply.error.payment_intent;
    const intent = ownIntent(told, reference, id);
    if (intent === undefined) return reply.kind === "success" ? malformed("cancel") : gatewayError(reply);
    const result = resultOf(intent);
    if (result?.outcome === "captured") return { kind: "executed", result };
    // A declined intent that is not cancelled could be confirmed anew.
    if (intent.status === "canceled") return result === undefined ? { kind: "voided" } : { kind: "executed", result };
    if (intent.status === "processing") return { kind: "pending", transactionId: id };
    return reply.kind === "success" ? malformed("cancel") : gatewayError(reply);
  }

  /** The id of the attempt's intent. It is made where it may not be there yet, so that it can be cancelled. */
  async #learnIntentId(attempt: AttemptReference, bounds: CallBounds): Promise<string | Unknown> {
    const { reference, gatewayReference, amount } = attempt;
    if (gatewayReference !== undefined) {
      return intentIdPattern.test(gatewayReference) ? gatewayReference : unknown("not_sent", "The id is no intent's.");
    }
    if (amount !== undefined) {
      const created = await this.#createIntent(reference, amount, bounds);
      if (created.kind === "not_executed") return notAsked(created);
      return created.kind === "intent" ? created.intent.id : created;
    }
    const found = await this.#searchIntent(reference, bounds);
    if (found.kind === "not_found") return unknown("not_sent", "Stripe's search does not know the reference now.");
    return found.kind === "intent" ? found.intent.id : found;
  }

  async #findIntent(
    { reference, gatewayReference }: AttemptReference,
    bounds: CallBounds,
  ): Promise<{ kind: "intent"; intent: Intent } | { kind: "not_found" } | Unknown> {
    if (!referencePattern.test(reference)) return unknown("not_sent", "The reference is not valid.");
    if (gatewayReference === undefined) return this.#searchIntent(reference, bounds);
    if (!intentIdPattern.test(gatewayReference)) return unknown("not_sent", "The id is no intent's.");
    const reply = await this.#http.run(bounds, () =>
      this.#stripe.paymentIntents.retrieve(gatewayReference, { expand: ["latest_charge"] }),
    );
    const answer = questionAnswer(reply);
    if (answer.kind !== "success") return answer;
    const intent = ownIntent(answer.value, reference, gatewayReference);
    return intent === undefined ? malformed("lookup") : { kind: "intent", intent };
  }

  /** Stripe's search lags behind by a minute or more, so what it does not find may be there. */
  async #searchIntent(
    reference: string,
    bounds: CallBounds,
  ): Promise<{ kind: "intent"; intent: Intent } | { kind: "not_found" } | Unknown> {
    const query = `metadata['${referenceKey}']:'${reference}'`;
    const reply = await this.#http.run(bounds, () =>
      this.#stripe.paymentIntents.search({ query, limit: maxSearchResults, expand: ["data.latest_charge"] }),
    );
    const answer = questionAnswer(reply);
    if (answer.kind !== "success") return answer;
    const { data } = answer.value;
    const intents = Array.isArray(data) ? data.map((each) => ownIntent(each, reference)) : [undefined];
    if (intents.length === 0) return { kind: "not_found" };
    const [intent] = intents;
    if (intent === undefined || intents.length > 1) return malformed("search");
    return { kind: "intent", intent };
  }

  async #findRefund(
    { key, transactionId, refundTransactionId }: RefundReference,
    bounds: CallBounds,
  ): Promise<{ kind: "refund"; refund: StripeRefund } | { kind: "not_found" } | Unknown> {
    if (refundTransactionId === undefined) {
      const refunds = await this.#list(refundSchema, (page) => this.#stripe.refunds.list(page), transactionId, bounds);
      if (refunds.kind === "unknown") return refunds;
      const refund = refunds.items.find(({ metadata }) => metadata[refundKeyKey] === key);
      return refund === undefined ? { kind: "not_found" } : { kind: "refund", refund };
    }
    const reply = await this.#http.run(bounds, () => this.#stripe.refunds.retrieve(refundTransactionId));
    const answer = questionAnswer(reply);
    if (answer.kind !== "success") return answer;
    const refund = ownRefund(answer.value, key);
    return refund === undefined ? malformed("refund") : { kind: "refund", refund };
  }

  /** What of a captured intent was refunded, and what is held back by disputes. */
  async #sumReturned(
    intent: Intent,
    bounds: CallBounds,
  ): Promise<{ kind: "sums"; refunded: GatewayMoney; disputed: GatewayMoney } | Unknown> {
    const charge = intent.latest_charge;
    if (charge === undefined) return malformed("lookup");
    let refundedAmount = 0;
    let disputedAmount = 0;
    if (charge.amount_refunded > 0) {
      const refunds = await this.#list(refundSchema, (page) => this.#stripe.refunds.list(page), intent.id, bounds);
      if (refunds.kind === "unknown") return refunds;
      refundedAmount = sum(refunds.items.filter(({ status }) => status === "succeeded"));
    }
    if (charge.disputed) {
      const disputes = await this.#list(disputeSchema, (page) => this.#stripe.disputes.list(page), intent.id, bounds);
      if (disputes.kind === "unknown") return disputes;
      disputedAmount = sum(disputes.items.filter(isMoneyDisputed));
    }
    const refunded = fromStripeAmount(intent.currency, refundedAmount);
    const disputed = fromStripeAmount(intent.currency, disputedAmount);
    if (refunded === undefined || disputed === undefined) return malformed("lookup");
    return { kind: "sums", refunded, disputed };
  }

  async #list<T extends { readonly id: string }>(
    schema: z.ZodType<T>,
    ask: (page: { payment_intent: string; limit: number; starting_after?: string }) => Promise<Stripe.ApiList<unknown>>,
    intentId: string,
    bounds: CallBounds,
  ): Promise<{ kind: "items"; items: T[] } | Unknown> {
    if (!intentIdPattern.test(intentId)) return unknown("not_sent", "The transaction is no intent.");
    const items: T[] = [];
    for (let page = 0; page < maxPages; page++) {
      const last = items.at(-1)?.id;
      const reply = await this.#http.run(bounds, () =>
        ask({
          payment_intent: intentId,
          limit: pageSize,
          ...(last === undefined ? {} : { starting_after: last }),
        }),
      );
      const answer = questionAnswer(reply);
      if (answer.kind === "not_found") return unknown("gateway_error", "Stripe does not know the intent.");
      if (answer.kind === "unknown") return answer;
      const parsed = schema.array().safeParse(answer.value.data);
      if (!parsed.success) return malformed("list");
      items.push(...parsed.data);
      if (!answer.value.has_more) return { kind: "items", items };
    }
    return unknown("malformed_answer", `The list has more than ${maxPages * pageSize} entries.`);
  }
}

type Refusal = Extract<StripeReply<never>, { kind: "refusal" }>;

/** Stores the intent's id. Anything but an answer means that nothing is confirmed. */
async function remember(
  request: ChargeRequest,
  intentId: string,
  bounds: CallBounds,
): Promise<NotExecuted | undefined> {
  const { promise: over, resolve } = Promise.withResolvers<"over">();
  const timer = setTimeout(resolve, Math.max(0, bounds.remainingMs), "over");
  try {
    // What is stored too late changes nothing, and rejects into nobody's hands.
    const stored = Promise.resolve(request.remember?.(intentId));
    stored.catch(() => undefined);
    if ((await Promise.race([stored, over])) === "over") {
      return notExecuted("timeout", "The intent's id was not stored in time, so it was not confirmed.");
    }
  } catch {
    return notExecuted("aborted", "The intent's id could not be stored, so it was not confirmed.");
  } finally {
    clearTimeout(timer);
  }
  return undefined;
}

/** The proof that remains when the outcome of creating an intent is unknown: it was not confirmed. */
function unconfirmed({ cause, detail }: Unknown): NotExecuted {
  return notExecuted(cause === "timeout" || cause === "aborted" ? cause : "unavailable", detail);
}

/** A refusal by which Stripe says that it did not begin to execute the request. */
function refusedUnprocessed(refusal: Refusal): NotExecuted | undefined {
  const { status, error, detail, retryAfterMs } = refusal;
  if (status === 429) return notExecuted("rate_limited", detail, retryAfterMs);
  if (error.type === "idempotency_error" && status === 400) return notExecuted("key_conflict", detail);
  if (status === 401 || status === 403) return notExecuted("rejected", detail);
  const isInvalid = (status === 400 || status === 404) && error.type === "invalid_request_error";
  return isInvalid ? notExecuted("rejected", detail) : undefined;
}

function refusedConfirm(refusal: Refusal, reference: string, id: string): ChargeAnswer {
  const { status, error } = refusal;
  if (status === 402 && error.type === "card_error") return { kind: "executed", result: declinedBy(error) };
  if (error.code === "payment_intent_unexpected_state") {
    const intent = ownIntent(error.payment_intent, reference, id);
    return (intent && confirmedState(intent)) ?? gatewayError(refusal);
  }
  return refusedUnprocessed(refusal) ?? gatewayError(refusal);
}

/** What an intent that was to be confirmed says; undefined where it is in no state that tells. */
function confirmedState(intent: Intent): ChargeAnswer | undefined {
  const result = resultOf(intent);
  if (result !== undefined) return { kind: "executed", result };
  if (intent.status === "canceled") return voidedReference("Stripe answers that the intent is cancelled.");
  return intent.status === "processing" ? { kind: "pending", transactionId: intent.id } : undefined;
}

/** The state of an intent that was not decided; undefined where it waits to be confirmed, as if it was not there. */
function undecidedState(intent: Intent): ChargeState | undefined {
  if (intent.status === "canceled") return { outcome: "voided" };
  const isUnderWay = ["processing", "requires_action", "requires_capture"].includes(intent.status);
  return isUnderWay ? { outcome: "pending" } : undefined;
}

function refusedRefund(refusal: Refusal): RefundAnswer {
  const code = refusal.error.code ?? "";
  if (refusal.status === 400 && refundRefusals.has(code)) {
    return { kind: "executed", result: { outcome: "failed", reason: code, responseCode: code } };
  }
  return refusedUnprocessed(refusal) ?? gatewayError(refusal);
}

/** The answer to a question, which changes nothing: whatever went wrong, it is only not known. */
function questionAnswer<T>(reply: StripeReply<T>): { kind: "success"; value: T } | { kind: "not_found" } | Unknown {
  if (reply.kind === "not_executed") return notAsked(reply);
  if (reply.kind !== "refusal") return reply;
  return reply.status === 404 && reply.error.code === "resource_missing" ? { kind: "not_found" } : gatewayError(reply);
}

/** The intent in an answer, if it is the one that was asked about: a mix-up must not become our truth. */
function ownIntent(value: unknown, reference: string, id?: string): Intent | undefined {
  const intent = intentSchema.safeParse(value).data;
  const isOwn = intent?.metadata[referenceKey] === reference && (id === undefined || intent.id === id);
  return isOwn ? intent : undefined;
}

function ownRefund(value: unknown, key: string): StripeRefund | undefined {
  const refund = refundSchema.safeParse(value).data;
  return refund?.metadata[refundKeyKey] === key ? refund : undefined;
}

function sum(items: readonly { readonly amount: number }[]): number {
  return items.reduce((total, { amount }) => total + amount, 0);
}

function gatewayError({ detail }: Refusal): Unknown {
  return unknown("gateway_error", detail);
}

function malformed(what: string): Unknown {
  return unknown("malformed_answer", `The answer to the ${what} is not one of Stripe's form.`);
}

function inexact({ currency, minor }: GatewayMoney): string {
  return `Stripe cannot charge or refund exactly ${minor} minor units of ${currency}.`;
}
