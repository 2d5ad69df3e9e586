/** A local stand-in for Stripe, as far as its documentation defines PaymentIntents, refunds and idempotency. */
import { createHmac } from "node:crypto";
import { type Operation, type VendorReply, type VendorRequest, VendorServer } from "./vendor-server.ts";

interface Intent {
  readonly id: string;
  readonly amount: number;
  readonly currency: string;
  readonly metadata: Record<string, string>;
  readonly errorOnAction: boolean;
  status: string;
  amount_received: number;
  last_payment_error: Record<string, unknown> | null;
  disputed: boolean;
}

interface Refund {
  readonly id: string;
  readonly object: "refund";
  readonly amount: number;
  readonly currency: string;
  readonly payment_intent: string;
  readonly metadata: Record<string, string>;
  status: string;
  failure_reason?: string;
}

type Remembered = { readonly fingerprint: string; reply?: VendorReply };

const declines: Record<string, Record<string, unknown>> = {
  pm_card_chargeDeclined: { code: "card_declined", decline_code: "generic_decline", network_decline_code: "05" },
  pm_card_chargeDeclinedInsufficientFunds: { code: "card_declined", decline_code: "insufficient_funds" },
  pm_card_chargeDeclinedExpiredCard: { code: "expired_card" },
};

/**
 * `pm_card_visa` succeeds, `pm_card_processing` stays in processing, `pm_card_authenticationRequired` asks for the
 * customer (as an error where the request says so), `pm_card_stubborn` asks also then, `pm_card_chargeDeclined…` decline.
 */
export class StripeServer extends VendorServer {
  readonly intents = new Map<string, Intent>();
  readonly refunds = new Map<string, Refund>();
  readonly disputes: Record<string, unknown>[] = [];
  /** What new refunds are. */
  refundStatus = "succeeded";
  /** Search lags behind: only what a test has indexed is found. */
  readonly indexed = new Set<string>();
  readonly #remembered = new Map<string, Remembered>();

  constructor(apiKey: string) {
    super((request) => this.#operationOf(request, apiKey));
  }

  /** The captured total of all intents. */
  get captured(): number {
    return [...this.intents.values()].reduce((total, { amount_received }) => total + amount_received, 0);
  }

  /** Forgets idempotency keys, as Stripe does after a day. */
  forgetKeys(): void {
    this.#remembered.clear();
  }

  /** The object of an intent as webhooks and answers carry it. */
  show(id: string, expand = false): Record<string, unknown> {
    const { errorOnAction: _, disputed, ...intent } = this.intents.get(id) as Intent;
    const refunded = [...this.refunds.values()].filter(({ payment_intent }) => payment_intent === id);
    const charge = { id: "ch_1", amount_refunded: refunded.reduce((sum, { amount }) => sum + amount, 0), disputed };
    const latest = intent.amount_received === 0 ? null : expand ? charge : charge.id;
    return { ...intent, object: "payment_intent", latest_charge: latest };
  }

  #operationOf(request: VendorRequest, apiKey: string): Operation {
    const { method, url } = request;
    const [, , resource, id = "", action] = url.pathname.split("/");
    const form = new URLSearchParams(request.body);
    const operation = (name: string, run: () => VendorReply): Operation => ({
      name,
      execute: async (reply) => {
        if (request.headers.authorization !== `Bearer ${apiKey}`) return error(401, { message: "Invalid API Key" });
        return method === "POST" ? this.#once(name, request, run, reply) : (reply ?? run());
      },
    });
    if (method === "POST" && resource === "payment_intents") {
      if (id === "") return operation("create", () => this.#create(form));
      if (action === "confirm") return operation("confirm", () => this.#confirm(id, form));
      if (action === "cancel") return operation("cancel", () => this.#cancel(id));
    }
    if (method === "GET" && resource === "payment_intents") {
      if (id === "search") return operation("search", () => this.#search(url));
      return operation("retrieve", () => this.#found(id, () => ok(this.show(id, url.searchParams.has("expand[0]")))));
    }
    if (resource === "refunds" && method === "POST") return operation("refund", () => this.#refund(form));
    if (resource === "refunds" && id !== "") {
      const refund = this.refunds.get(id);
      return operation("retrieve_refund", () => (refund === undefined ? missing() : ok(refund)));
    }
    if (resource === "refunds") return operation("list_refunds", () => page(url, [...this.refunds.values()]));
    if (resource === "disputes") return operation("list_disputes", () => page(url, this.disputes));
    return operation("unknown", () => missing());
  }

  /** Stripe's idempotency: the first answer is kept, also a 500, but not that of a request that was never begun. */
  async #once(
    name: string,
    request: VendorRequest,
    run: () => VendorReply,
    instead: VendorReply | undefined,
  ): Promise<VendorReply> {
    const key = String(request.headers["idempotency-key"]);
    const fingerprint = `${request.url.pathname} ${request.body}`;
    const known = this.#remembered.get(key);
    if (known !== undefined && known.fingerprint !== fingerprint) return error(400, { type: "idempotency_error" });
    if (known !== undefined) {
      return known.reply ?? error(409, { type: "idempotency_error", code: "idempotency_key_in_use" });
    }
    const entry: Remembered = { fingerprint };
    this.#remembered.set(key, entry);
    await this.held(name);
    const reply = run();
    entry.reply = instead ?? reply;
    if (reply.status === 400 || reply.status === 404) this.#remembered.delete(key);
    return entry.reply;
  }

  #create(form: URLSearchParams): VendorReply {
    const amount = Number(form.get("amount"));
    if (!Number.isSafeInteger(amount) || amount <= 0 || form.get("confirm") === "true") {
      return error(400, { param: "amount" });
    }
    const id = `pi_${this.intents.size + 1}x${Date.now()}`;
    this.intents.set(id, {
      id,
      amount,
      currency: form.get("currency") ?? "",
      metadata: metadataOf(form),
      errorOnAction: false,
      status: "requires_payment_method",
      amount_received: 0,
      last_payment_error: null,
      disputed: false,
    });
    return ok(this.show(id));
  }

  #confirm(id: string, form: URLSearchParams): VendorReply {
    const intent = this.intents.get(id);
    if (intent === undefined) return missing();
    if (intent.status !== "requires_payment_method") return this.#unexpected(id);
    const token = form.get("payment_method") ?? "";
    const declined = declines[token];
    if (declined !== undefined) return this.#decline(intent, declined);
    switch (token) {
      case "pm_card_visa":
        intent.status = "succeeded";
        intent.amount_received = intent.amount;
        return ok(this.show(id));
      case "pm_card_processing":
        intent.status = "processing";
        return ok(this.show(id));
      case "pm_card_authenticationRequired":
        if (form.get("error_on_requires_action") === "true") {
          return this.#decline(intent, { code: "authentication_required", decline_code: "authentication_required" });
        }
        intent.status = "requires_action";
        return ok(this.show(id));
      case "pm_card_stubborn":
        intent.status = "requires_action";
        return ok(this.show(id));
      default:
        return error(400, { code: "resource_missing", message: `No such PaymentMethod: '${token}'` });
    }
  }

  #decline(intent: Intent, words: Record<string, unknown>): VendorReply {
    intent.last_payment_error = { type: "card_error", message: "Your card was declined.", ...words };
    return error(402, { ...intent.last_payment_error, payment_intent: this.show(intent.id) });
  }

  #cancel(id: string): VendorReply {
    const intent = this.intents.get(id);
    if (intent === undefined) return missing();
    if (!intent.status.startsWith("requires_")) return this.#unexpected(id);
    intent.status = "canceled";
    return ok(this.show(id));
  }

  #unexpected(id: string): VendorReply {
    return error(400, { code: "payment_intent_unexpected_state", payment_intent: this.show(id) });
  }

  #refund(form: URLSearchParams): VendorReply {
    const intent = this.intents.get(form.get("payment_intent") ?? "");
    if (intent === undefined) return missing();
    const earlier = [...this.refunds.values()].filter(({ payment_intent }) => payment_intent === intent.id);
    const amount = Number(form.get("amount"));
    const left = intent.amount_received - earlier.reduce((sum, refund) => sum + refund.amount, 0);
    if (left === 0) return error(400, { code: "charge_already_refunded" });
    if (amount > left) return error(400, { message: "Refund amount is greater than unrefunded amount" });
    const id = `re_${this.refunds.size + 1}`;
    const { currency } = intent;
    const names = { payment_intent: intent.id, metadata: metadataOf(form) };
    this.refunds.set(id, { id, object: "refund", amount, currency, ...names, status: this.refundStatus });
    return ok(this.refunds.get(id));
  }

  #search(url: URL): VendorReply {
    const [, key = "", value = ""] = /^metadata\['([a-z_]+)'\]:'(.*)'$/.exec(url.searchParams.get("query") ?? "") ?? [];
    const found = [...this.intents.values()].filter(
      ({ id, metadata }) => metadata[key] === value && this.indexed.has(id),
    );
    return ok({ object: "search_result", has_more: false, data: found.map(({ id }) => this.show(id, true)) });
  }

  #found(id: string, answer: () => VendorReply): VendorReply {
    return this.intents.has(id) ? answer() : missing();
  }
}

/** The header by which Stripe signs a webhook. */
export function stripeSignature(secret: string, body: string, sentAt: Date): string {
  const seconds = Math.floor(sentAt.getTime() / 1000);
  return `t=${seconds},v1=${createHmac("sha256", secret).update(`${seconds}.${body}`).digest("hex")}`;
}

function metadataOf(form: URLSearchParams): Record<string, string> {
  const pairs = [...form].flatMap(([name, value]) => {
    const key = /^metadata\[(.+)\]$/.exec(name)?.[1];
    return key === undefined ? [] : [[key, value] as const];
  });
  return Object.fromEntries(pairs);
}

function page(url: URL, all: readonly Record<string, unknown>[] | readonly Refund[]): VendorReply {
  const limit = Number(url.searchParams.get("limit") ?? 10);
  const own = all.filter(
    (each) => each["payment_intent" as keyof typeof each] === url.searchParams.get("payment_intent"),
  );
  const after = url.searchParams.get("starting_after");
  const start = after === null ? 0 : own.findIndex((each) => each["id" as keyof typeof each] === after) + 1;
  return ok({ object: "list", data: own.slice(start, start + limit), has_more: own.length > start + limit });
}

function ok(body: unknown): VendorReply {
  return { status: 200, body };
}

function missing(): VendorReply {
  return error(404, { code: "resource_missing" });
}

function error(status: number, words: Record<string, unknown>): VendorReply {
  return { status, body: { error: { type: "invalid_request_error", ...words } } };
}
