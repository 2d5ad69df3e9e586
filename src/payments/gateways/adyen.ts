/** The adapter to Adyen, by its Checkout API. docs/gateways.md tells how its answers are proved. */
import { ModificationsApi } from "@adyen/api-library/lib/src/services/checkout/modificationsApi.js";
import { PaymentsApi } from "@adyen/api-library/lib/src/services/checkout/paymentsApi.js";
import { AuthenticationData } from "@adyen/api-library/lib/src/typings/checkout/authenticationData.js";
import { CardDetails } from "@adyen/api-library/lib/src/typings/checkout/cardDetails.js";
import { PaymentRequest } from "@adyen/api-library/lib/src/typings/checkout/paymentRequest.js";
import { AdyenHttp, type AdyenReply } from "./adyen-http.ts";
import {
  type AdyenPayment,
  cancelSchema,
  fromAdyenAmount,
  paymentSchema,
  reasonOf,
  refundReferenceOf,
  refundSchema,
  toAdyenAmount,
} from "./adyen-objects.ts";
import { hmacKeyPattern, parseAdyenWebhook } from "./adyen-webhook.ts";
import { CallBounds, identifier, notAsked, notExecuted, unknown } from "./answers.ts";
import type {
  AttemptReference,
  ChargeAnswer,
  ChargeRequest,
  Gateway,
  GatewayCallOptions,
  GatewayMoney,
  LookupAnswer,
  NotExecuted,
  RefundAnswer,
  RefundLookupAnswer,
  RefundRequest,
  Unknown,
  VoidAnswer,
  WebhookRequest,
  WebhookVerdict,
} from "./gateway.ts";

/** Which Adyen account to charge by, and where Adyen is. */
export interface AdyenGatewayOptions {
  readonly apiKey: string;
  readonly merchantAccount: string;
  /**
   * Where the Checkout API's versions are: `https://checkout-test.adyen.com` by default, in production
   * `https://{prefix}-checkout-live.adyenpayments.com/checkout` with the account's own prefix.
   */
  readonly baseUrl?: string;
  /** Our own address. Adyen demands one with each payment, and never sends anybody there for ours. */
  readonly returnUrl: string;
  /** The webhook's HMAC key, 64 hexadecimal digits; without it, every webhook is refused as `unconfigured`. */
  readonly hmacKey?: string;
}

/** Adyen takes idempotency keys of up to 64 characters. */
const keyPattern = /^[A-Za-z0-9._:-]{1,64}$/;
/** The shopper's reference and the id of the stored card, both as Adyen has them. */
const tokenPattern = /^([A-Za-z0-9._@-]{3,128})\/([A-Za-z0-9]{1,100})$/;
const pspReferencePattern = /^[A-Za-z0-9]{1,40}$/;
/** The code of "request already processed or in progress": an earlier send of the key may be about to execute. */
const inProgressCode = "704";
/** Results that ask for the shopper. Without a further request of ours such a payment goes no further. */
const shopperResults: ReadonlySet<string> = new Set(["RedirectShopper", "IdentifyShopper", "ChallengeShopper"]);

/**
 * Speaks to Adyen over kept connections, at most 256 at once.
 *
 * @throws TypeError when a key or account is missing, the address is not a plain `http:` or `https:` one, or the HMAC
 * key is not of 64 hexadecimal digits.
 */
export function createAdyenGateway(options: AdyenGatewayOptions): Gateway {
  return new AdyenGateway(options);
}

class AdyenGateway implements Gateway {
  readonly name = "adyen";
  readonly #http: AdyenHttp;
  readonly #merchantAccount: string;
  readonly #returnUrl: string;
  readonly #hmacKey: string | undefined;

  constructor(options: AdyenGatewayOptions) {
    const { apiKey, merchantAccount, returnUrl, hmacKey, baseUrl = "https://checkout-test.adyen.com" } = options;
    const url = URL.parse(baseUrl);
    const isWeb = url?.protocol === "https:" || url?.protocol === "http:";
    if (url === null || !isWeb || url.search !== "" || url.username !== "") {
      throw new TypeError(`Adyen's address must be like https://checkout-test.adyen.com, not ${baseUrl}.`);
    }
    if (apiKey === "" || merchantAccount === "") throw new TypeError("Adyen's API key or merchant account is empty.");
    // The SDK would take the valid beginning of such a key, or an empty one.
    if (hmacKey !== undefined && !hmacKeyPattern.test(hmacKey)) {
      throw new TypeError("Adyen's HMAC key must be 64 hexadecimal digits.");
    }
    this.#http = new AdyenHttp(url, apiKey);
    this.#merchantAccount = merchantAccount;
    this.#returnUrl = returnUrl;
    this.#hmacKey = hmacKey;
  }

  async charge(request: ChargeRequest, options: GatewayCallOptions): Promise<ChargeAnswer> {
    const { reference, paymentMethodToken } = request;
    const amount = toAdyenAmount(request.amount);
    if (amount === undefined) return notExecuted("rejected", inexact(request.amount));
    if (!keyPattern.test(reference)) return notExecuted("rejected", "The reference is not one that Adyen takes.");
    const [, shopperReference, storedPaymentMethodId] = tokenPattern.exec(paymentMethodToken) ?? [];
    if (shopperReference === undefined || storedPaymentMethodId === undefined) {
      return notExecuted("rejected", "The token is not of the form shopperReference/storedPaymentMethodId.");
    }
    const payment: PaymentRequest = {
      merchantAccount: this.#merchantAccount,
      reference,
      amount,
      paymentMethod: { type: CardDetails.TypeEnum.Scheme, storedPaymentMethodId },
      shopperReference,
      shopperInteraction: PaymentRequest.ShopperInteractionEnum.ContAuth,
      recurringProcessingModel: PaymentRequest.RecurringProcessingModelEnum.CardOnFile,
      authenticationData: { attemptAuthentication: AuthenticationData.AttemptAuthenticationEnum.Never },
      captureDelayHours: 0,
      returnUrl: this.#returnUrl,
    };
    const reply = await this.#http.run(new CallBounds(options), (client) =>
      new PaymentsApi(client).payments(payment, { idempotencyKey: reference }),
    );
    if (reply.kind === "refusal") return refusedUnprocessed(reply);
    if (reply.kind !== "success") return reply;
    const answer = paymentSchema.safeParse(reply.value).data;
    return (answer && chargeAnswerOf(answer, request)) ?? malformed("payment");
  }

  /** Adyen has no way to ask for a payment by our reference; its webhooks tell. */
  async lookup(): Promise<LookupAnswer> {
    return unknown("not_sent", "Adyen cannot be asked about a payment; its webhook tells.");
  }

  /** Accepted at once, decided later: the proof is the webhook TECHNICAL_CANCEL with success. */
  async void({ reference }: AttemptReference, options: GatewayCallOptions): Promise<VoidAnswer> {
    if (!keyPattern.test(reference)) return unknown("not_sent", "The reference is not one that Adyen takes.");
    const merchantAccount = this.#merchantAccount;
    // Without an idempotency key: a cancel that came before the payment did nothing, and the next must not be its echo.
    const reply = await this.#http.run(new CallBounds(options), (client) =>
      new ModificationsApi(client).cancelAuthorisedPayment({ merchantAccount, paymentReference: reference, reference }),
    );
    if (reply.kind === "not_executed") return notAsked(reply);
    if (reply.kind === "refusal") return gatewayError(reply);
    if (reply.kind === "unknown") return reply;
    const answer = cancelSchema.safeParse(reply.value).data;
    return answer?.paymentReference === reference ? { kind: "pending" } : malformed("cancel");
  }

  async refund(request: RefundRequest, options: GatewayCallOptions): Promise<RefundAnswer> {
    const { key, transactionId } = request;
    const amount = toAdyenAmount(request.amount);
    if (amount === undefined) return notExecuted("rejected", inexact(request.amount));
    if (!keyPattern.test(key)) return notExecuted("rejected", "The refund's key is not one that Adyen takes.");
    if (!pspReferencePattern.test(transactionId)) return notExecuted("rejected", "The transaction is not Adyen's.");
    const reference = refundReferenceOf(request.reference, key);
    if (reference === undefined) return notExecuted("rejected", "The reference and the refund's key are too long.");
    const reply = await this.#http.run(new CallBounds(options), (client) =>
      new ModificationsApi(client).refundCapturedPayment(
        transactionId,
        { merchantAccount: this.#merchantAccount, amount, reference },
        { idempotencyKey: key },
      ),
    );
    if (reply.kind === "refusal") return refusedUnprocessed(reply);
    if (reply.kind !== "success") return reply;
    const answer = refundSchema.safeParse(reply.value).data;
    if (answer?.paymentPspReference !== transactionId) return malformed("refund");
    return { kind: "pending", transactionId: answer.pspReference };
  }

  /** Adyen has no way to ask for a refund either. */
  async lookupRefund(): Promise<RefundLookupAnswer> {
    return unknown("not_sent", "Adyen cannot be asked about a refund; its webhook tells.");
  }

  parseWebhook(request: WebhookRequest): WebhookVerdict {
    if (this.#hmacKey === undefined) {
      return { kind: "refused", cause: "unconfigured", detail: "The Adyen gateway has no HMAC key." };
    }
    return parseAdyenWebhook({ merchantAccount: this.#merchantAccount, hmacKey: this.#hmacKey }, request);
  }

  close(): void {
    this.#http.close();
  }
}

type Refusal = Extract<AdyenReply<never>, { kind: "refusal" }>;

/** What a payment's result says; undefined for a result that a stored card cannot have. */
function chargeAnswerOf(answer: AdyenPayment, request: ChargeRequest): ChargeAnswer | undefined {
  if (answer.merchantReference && answer.merchantReference !== request.reference) return undefined;
  const { resultCode } = answer;
  switch (resultCode) {
    case "Authorised": {
      // A part is never authorised under this code, so an answer without an amount is about the amount asked for.
      const captured = answer.amount ? fromAdyenAmount(answer.amount) : request.amount;
      if (captured === undefined || !answer.pspReference) return undefined;
      const transactionId = answer.pspReference;
      const result = {
        outcome: "captured",
        transactionId,
        captured,
        responseCode: resultCode,
        untilVoided: true,
      } as const;
      return { kind: "executed", result };
    }
    // All three are final by Adyen's contract.
    case "Refused":
    case "Error":
    case "Cancelled":
      return declinedAs(reasonOf(answer.refusalReason, resultCode.toLowerCase()), answer);
    case "Received":
    case "Pending":
      return answer.pspReference ? { kind: "pending", transactionId: answer.pspReference } : { kind: "pending" };
    default:
      return shopperResults.has(resultCode) ? declinedAs("authentication_required", answer) : undefined;
  }
}

function declinedAs(reason: string, { refusalReasonCode, resultCode }: AdyenPayment): ChargeAnswer {
  const responseCode = identifier(refusalReasonCode) || resultCode;
  return { kind: "executed", result: { outcome: "declined", reason, responseCode } };
}

/** What a refused request proves. Adyen checks requests (400, 422) and callers (401, 403) before it processes them. */
function refusedUnprocessed(refusal: Refusal): NotExecuted | Unknown {
  const { status, errorCode, isTransient, detail, retryAfterMs } = refusal;
  if (status === 429) return notExecuted("rate_limited", detail, retryAfterMs);
  if (errorCode === inProgressCode || isTransient) return gatewayError(refusal);
  return [400, 401, 403, 422].includes(status) ? notExecuted("rejected", detail) : gatewayError(refusal);
}

function gatewayError({ detail }: Refusal): Unknown {
  return unknown("gateway_error", detail);
}

function malformed(what: string): Unknown {
  return unknown("malformed_answer", `The answer to the ${what} is not one of Adyen's form.`);
}

function inexact({ currency, minor }: GatewayMoney): string {
  return `Adyen cannot charge or refund exactly ${minor} minor units of ${currency}.`;
}
