/** The parts of Stripe's objects that the adapter reads, and what they say in the port's terms. */
import { z } from "zod";
import { identifier } from "./answers.ts";
import type { Captured, Declined, GatewayMoney, RefundCompleted, RefundFailed } from "./gateway.ts";
import { type DeviatingDigits, fromVendorMinor, toVendorMinor } from "./minor-units.ts";

/** The key of our reference in the metadata of intents and refunds. */
export const referenceKey = "tradepost_reference";
/** The key of the refund's key in the metadata of refunds. */
export const refundKeyKey = "tradepost_refund";

export const intentIdPattern = /^pi_[A-Za-z0-9_]{1,100}$/;

const amountSchema = z.int().nonnegative();
const currencySchema = z.string().regex(/^[a-z]{3}$/);
const metadataSchema = z.record(z.string(), z.string());

/** The last error of an intent, which stays there when the intent is cancelled. */
const paymentErrorSchema = z.object({
  type: z.string(),
  code: z.string().optional(),
  decline_code: z.string().optional(),
  network_decline_code: z.string().nullish(),
});

export const intentSchema = z.object({
  id: z.string().regex(intentIdPattern),
  object: z.literal("payment_intent"),
  status: z.string(),
  amount: amountSchema,
  amount_received: amountSchema,
  currency: currencySchema,
  metadata: metadataSchema,
  last_payment_error: paymentErrorSchema.nullish(),
  latest_charge: z
    .union([z.string(), z.object({ amount_refunded: amountSchema, disputed: z.boolean() })])
    .nullish()
    .transform((charge) => (typeof charge === "object" && charge !== null ? charge : undefined)),
});

export const refundSchema = z.object({
  id: z.string().regex(/^[a-z]{2,4}_[A-Za-z0-9_]{1,100}$/),
  object: z.literal("refund"),
  amount: amountSchema,
  currency: currencySchema,
  status: z.string().nullable(),
  failure_reason: z.string().optional(),
  metadata: metadataSchema.nullish().transform((metadata) => metadata ?? {}),
});

export const disputeSchema = z.object({
  id: z.string().regex(/^[a-z]{2,4}_[A-Za-z0-9_]{1,100}$/),
  object: z.literal("dispute"),
  amount: amountSchema,
  currency: currencySchema,
  status: z.string(),
  reason: z.string(),
  payment_intent: z.string().nullish(),
});

export type Intent = z.infer<typeof intentSchema>;
export type StripeRefund = z.infer<typeof refundSchema>;
export type StripeDispute = z.infer<typeof disputeSchema>;

/** Kept with two decimals for compatibility (ISK, UGX), and counted whole (MGA). */
const deviatingDigits: DeviatingDigits = new Map([
  ["ISK", 2],
  ["UGX", 2],
  ["MGA", 0],
]);
/** Stripe takes these with three decimals, of which the last must be 0. */
const threeDecimals: ReadonlySet<string> = new Set(["BHD", "JOD", "KWD", "OMR", "TND"]);

/** Undefined where Stripe cannot charge exactly this amount. */
export function toStripeAmount(money: GatewayMoney): number | undefined {
  const amount = toVendorMinor(money, deviatingDigits);
  return amount !== undefined && threeDecimals.has(money.currency) && amount % 10 !== 0 ? undefined : amount;
}

/** Undefined where Stripe's amount is not a whole number of the currency's minor units. */
export function fromStripeAmount(currency: string, amount: number): GatewayMoney | undefined {
  return fromVendorMinor(currency, amount, deviatingDigits);
}

/** What was decided about an intent; undefined where nothing is, or where the object contradicts itself. */
export function resultOf(intent: Intent): Captured | Declined | undefined {
  if (intent.status === "succeeded") return capturedOf(intent);
  const isOver = intent.status === "requires_payment_method" || intent.status === "canceled";
  return isOver && intent.last_payment_error ? declinedBy(intent.last_payment_error) : undefined;
}

function capturedOf(intent: Intent): Captured | undefined {
  const captured = fromStripeAmount(intent.currency, intent.amount_received);
  if (captured === undefined || captured.minor === 0n) return undefined;
  return { outcome: "captured", transactionId: intent.id, captured, responseCode: intent.status };
}

/** A decline in Stripe's words: the issuer's reason where there is one, such as `insufficient_funds`. */
export function declinedBy(error: z.infer<typeof paymentErrorSchema>): Declined {
  const code = identifier(error.code);
  return {
    outcome: "declined",
    reason: identifier(error.decline_code) || code || "declined",
    responseCode: identifier(error.network_decline_code) || code,
  };
}

/** What became of a refund; undefined where its amount cannot be read. */
export function refundResultOf(
  refund: StripeRefund,
): RefundCompleted | RefundFailed | { readonly outcome: "pending" } | undefined {
  switch (refund.status) {
    case "succeeded": {
      const refunded = fromStripeAmount(refund.currency, refund.amount);
      return refunded && { outcome: "completed", transactionId: refund.id, refunded, responseCode: refund.status };
    }
    case "failed":
    case "canceled":
      return {
        outcome: "failed",
        reason: identifier(refund.failure_reason) || refund.status,
        responseCode: refund.status,
      };
    case "pending":
    case "requires_action":
      return { outcome: "pending" };
    default:
      return undefined;
  }
}

/** Whether a dispute holds money back: an inquiry (`warning_…`) does not yet, a won or prevented one no longer. */
export function isMoneyDisputed({ status }: StripeDispute): boolean {
  return !status.startsWith("warning_") && status !== "won" && status !== "prevented";
}
