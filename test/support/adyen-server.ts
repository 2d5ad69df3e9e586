/** A local stand-in for Adyen, as far as its documentation defines the Checkout API, its idempotency and webhooks. */
import { createHmac } from "node:crypto";
import { type Operation, type VendorReply, type VendorRequest, VendorServer } from "./vendor-server.ts";

interface Amount {
  readonly currency: string;
  readonly value: number;
}

interface Payment {
  readonly pspReference: string;
  readonly reference: string;
  readonly amount: Amount;
  readonly resultCode: string;
  readonly body: Record<string, unknown>;
}

/** The fields of a notification item that a test sets; the others have sound values. */
export interface AdyenItem {
  readonly eventCode: string;
  readonly success?: string;
  readonly pspReference?: string;
  readonly originalReference?: string;
  readonly merchantReference?: string;
  readonly merchantAccountCode?: string;
  readonly amount?: Amount;
  readonly eventDate?: string;
  readonly reason?: string;
}

const results: Record<string, Record<string, unknown>> = {
  visa: { resultCode: "Authorised" },
  refused: { resultCode: "Refused", refusalReason: "Not enough balance", refusalReasonCode: "12" },
  error: { resultCode: "Error", refusalReason: "Acquirer Error", refusalReasonCode: "4" },
  cancelled: { resultCode: "Cancelled" },
  received: { resultCode: "Received" },
  pending: { resultCode: "Pending" },
  redirect: { resultCode: "RedirectShopper", action: { type: "redirect" } },
  partial: { resultCode: "PartiallyAuthorised" },
};

/** A stored card's id says what its payments become: `visa` is authorised; see `results`. */
export class AdyenServer extends VendorServer {
  readonly payments = new Map<string, Payment>();
  /** What was asked to be cancelled and refunded, in order. */
  readonly cancels: Record<string, unknown>[] = [];
  readonly refunds: Record<string, unknown>[] = [];
  readonly #remembered = new Map<string, { reply?: VendorReply }>();
  #sequence = 0;

  constructor(apiKey: string) {
    super((request) => this.#operationOf(request, apiKey));
  }

  #operationOf(request: VendorRequest, apiKey: string): Operation {
    const operation = (name: string, run: (body: Record<string, unknown>) => VendorReply): Operation => ({
      name,
      execute: async (reply) => {
        if (request.headers["x-api-key"] !== apiKey) return error(401, "000", "security");
        return this.#once(name, request, () => run(JSON.parse(request.body)), reply);
      },
    });
    const path = request.url.pathname.replace(/^\/v72\//, "");
    if (path === "payments") return operation("payment", (body) => this.#pay(body));
    if (path === "cancels") return operation("cancel", (body) => this.#cancel(body));
    const [, psp = "", action] = path.split("/");
    if (action === "refunds") return operation("refund", (body) => this.#refund(psp, body));
    return operation("unknown", () => error(404, "", "internal"));
  }

  /** Adyen's idempotency: the first answer is kept; a request beside the first that is still under way is refused. */
  async #once(
    name: string,
    request: VendorRequest,
    run: () => VendorReply,
    instead: VendorReply | undefined,
  ): Promise<VendorReply> {
    const key = request.headers["idempotency-key"];
    if (typeof key !== "string") return instead ?? run();
    const known = this.#remembered.get(key);
    if (known !== undefined) return known.reply ?? error(422, "704", "validation");
    const entry: { reply?: VendorReply } = {};
    this.#remembered.set(key, entry);
    await this.held(name);
    const reply = run();
    entry.reply = reply;
    if (reply.status >= 400) this.#remembered.delete(key);
    return instead ?? reply;
  }

  #pay(body: Record<string, unknown>): VendorReply {
    const { reference, amount, paymentMethod } = body as {
      reference: string;
      amount: Amount;
      paymentMethod: { storedPaymentMethodId: string };
    };
    const result = results[paymentMethod.storedPaymentMethodId];
    if (result === undefined) return error(422, "14_0393", "validation");
    const pspReference = this.#nextReference();
    this.payments.set(pspReference, {
      pspReference,
      reference,
      amount,
      resultCode: String(result["resultCode"]),
      body,
    });
    return { status: 200, body: { pspReference, merchantReference: reference, amount, ...result } };
  }

  #cancel(body: Record<string, unknown>): VendorReply {
    this.cancels.push(body);
    const { paymentReference, reference, merchantAccount } = body;
    const pspReference = this.#nextReference();
    return { status: 201, body: { merchantAccount, paymentReference, reference, pspReference, status: "received" } };
  }

  #refund(paymentPspReference: string, body: Record<string, unknown>): VendorReply {
    if (!this.payments.has(paymentPspReference)) return error(422, "167", "validation");
    this.refunds.push(body);
    const pspReference = this.#nextReference();
    return { status: 201, body: { ...body, paymentPspReference, pspReference, status: "received" } };
  }

  #nextReference(): string {
    this.#sequence++;
    return `PSP${String(this.#sequence).padStart(13, "0")}`;
  }
}

/** The body of a webhook with signed items, as Adyen sends it. */
export function adyenWebhook(hmacKey: string, ...items: AdyenItem[]): string {
  const notificationItems = items.map((item) => ({ NotificationRequestItem: signedItem(hmacKey, item) }));
  return JSON.stringify({ live: "false", notificationItems });
}

function signedItem(hmacKey: string, given: AdyenItem): Record<string, unknown> {
  const item = {
    success: "true",
    pspReference: "PSP0000000000001",
    merchantAccountCode: "TestMerchant",
    merchantReference: "a1",
    amount: { currency: "EUR", value: 1_099 },
    eventDate: "2026-03-01T12:59:58+01:00",
    paymentMethod: "visa",
    reason: "",
    ...given,
  };
  const signed = [
    item.pspReference,
    item.originalReference ?? "",
    item.merchantAccountCode,
    item.merchantReference,
    item.amount.value,
    item.amount.currency,
    item.eventCode,
    item.success,
  ].join(":");
  const hmacSignature = createHmac("sha256", Buffer.from(hmacKey, "hex")).update(signed).digest("base64");
  return { ...item, additionalData: { hmacSignature } };
}

function error(status: number, errorCode: string, errorType: string): VendorReply {
  return { status, body: { status, errorCode, errorType, message: "A sentence with the token S1/visa in it." } };
}
