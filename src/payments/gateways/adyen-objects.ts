/** The parts of Adyen's objects that the adapter reads and writes, in the port's terms. */
import { z } from "zod";
import type { GatewayMoney } from "./gateway.ts";
import { type DeviatingDigits, fromVendorMinor, toVendorMinor } from "./minor-units.ts";

const pspReferenceSchema = z.string().regex(/^[A-Za-z0-9]{1,40}$/);

export const adyenAmountSchema = z.object({ currency: z.string().regex(/^[A-Z]{3}$/), value: z.int().nonnegative() });

export const paymentSchema = z.object({
  resultCode: z.string().max(60),
  pspReference: pspReferenceSchema.nullish(),
  merchantReference: z.string().nullish(),
  amount: adyenAmountSchema.nullish(),
  refusalReason: z.string().nullish(),
  refusalReasonCode: z.string().nullish(),
});

export const cancelSchema = z.object({
  status: z.literal("received"),
  pspReference: pspReferenceSchema,
  paymentReference: z.string(),
});

export const refundSchema = z.object({
  status: z.literal("received"),
  pspReference: pspReferenceSchema,
  paymentPspReference: z.string(),
  reference: z.string().nullish(),
});

export type AdyenPayment = z.infer<typeof paymentSchema>;

/** The currencies that Adyen counts otherwise than ISO 4217. */
const deviatingDigits: DeviatingDigits = new Map([
  ["CLP", 2],
  ["CVE", 0],
  ["IDR", 0],
  ["ISK", 2],
]);

/** Undefined where Adyen cannot charge exactly this amount. */
export function toAdyenAmount(money: GatewayMoney): { currency: string; value: number } | undefined {
  const value = toVendorMinor(money, deviatingDigits);
  return value === undefined ? undefined : { currency: money.currency, value };
}

/** Undefined where Adyen's amount is not a whole number of the currency's minor units. */
export function fromAdyenAmount({ currency, value }: z.infer<typeof adyenAmountSchema>): GatewayMoney | undefined {
  return fromVendorMinor(currency, value, deviatingDigits);
}

/** Between our two keys in a refund's one reference; no reference of the port contains it. */
const refundSeparator = "/";
const maxReferenceLength = 80;

/** Adyen's webhooks repeat one reference only, so a refund's names its charge too. Undefined where it would be too long. */
export function refundReferenceOf(reference: string, key: string): string | undefined {
  const joined = `${reference}${refundSeparator}${key}`;
  return joined.length > maxReferenceLength ? undefined : joined;
}

/** Undefined for a refund that was not made by us. */
export function splitRefundReference(joined: string): { reference: string; key: string } | undefined {
  const [reference, key, ...rest] = joined.split(refundSeparator);
  return reference && key && rest.length === 0 ? { reference, key } : undefined;
}

/** Adyen's free text as a reason of bounded length, in printable characters. */
export function reasonOf(text: string | null | undefined, fallback: string): string {
  const reason = (text ?? "")
    .replace(/[^ -~]/g, " ")
    .trim()
    .slice(0, 100);
  return reason === "" ? fallback : reason;
}
