/** How Adyen's standard webhooks are verified and read. */
import hmacModule from "@adyen/api-library/lib/src/utils/hmacValidator.js";
import { z } from "zod";
import { adyenAmountSchema, fromAdyenAmount, reasonOf, splitRefundReference } from "./adyen-objects.ts";
import type { Captured, Declined, GatewayEvent, GatewayEventFact, WebhookRequest, WebhookVerdict } from "./gateway.ts";

/** Adyen sends an event again for 30 days; what claims to be older is no event that it still sends. */
const maxAgeMs = 31 * 24 * 60 * 60 * 1000;
/** Clocks may differ by this much. */
const maxAheadMs = 60 * 60 * 1000;
const maxWebhookBytes = 256 * 1024;
/** Adyen puts one item into a webhook of JSON; older configurations batch a few. */
const maxItems = 50;

/** The references of charges, as the port has them. */
const referencePattern = /^[A-Za-z0-9._:-]{1,128}$/;

export const hmacKeyPattern = /^[0-9A-Fa-f]{64}$/;

const validator = new hmacModule.default();

/**
 * What is read of an item. The signature covers its fields joined by colons without an escape, so that none but the
 * merchant's reference may contain one: otherwise a signed item could be cut into other fields.
 */
const itemSchema = z.object({
  pspReference: z.string().regex(/^[^:]{1,100}$/),
  originalReference: z
    .string()
    .regex(/^[^:]{0,100}$/)
    .optional(),
  merchantAccountCode: z.string().regex(/^[^:]{1,100}$/),
  merchantReference: z.string().max(1_000),
  amount: adyenAmountSchema,
  eventCode: z.string().regex(/^[A-Z0-9_]{1,60}$/),
  success: z.enum(["true", "false"]),
  eventDate: z.iso.datetime({ offset: true }),
  reason: z.string().nullish(),
  additionalData: z.looseObject({ hmacSignature: z.string().regex(/^[A-Za-z0-9+/]{43}=$/) }),
});

const webhookSchema = z.object({
  notificationItems: z
    .array(z.object({ NotificationRequestItem: z.looseObject({}) }))
    .min(1)
    .max(maxItems),
});

type Item = z.infer<typeof itemSchema>;

/** The keys by which webhooks of one merchant account are known. */
export interface AdyenWebhookKeys {
  readonly merchantAccount: string;
  /** 64 hexadecimal digits. */
  readonly hmacKey: string;
}

/**
 * Verifies and reads a webhook. Every item is verified by itself, and one bad item refuses the whole.
 *
 * The signature covers neither the time nor the reason: a replay is stopped by the events' ids, which are made of signed
 * fields alone, and the age only keeps out what Adyen itself would no longer send. No signed fact hangs on the unsigned
 * fields. The answer that Adyen wants for an accepted webhook, a 2xx with the body `[accepted]`, is the HTTP layer's.
 */
export function parseAdyenWebhook(keys: AdyenWebhookKeys, request: WebhookRequest): WebhookVerdict {
  if (request.body.byteLength > maxWebhookBytes) {
    return refused("malformed", `The body is larger than ${maxWebhookBytes} bytes.`);
  }
  // The signature is inside the body, so the body is read before anything is known of its sender.
  const webhook = webhookSchema.safeParse(parseJson(request.body));
  if (!webhook.success) return refused("forged", "The body is not a webhook with signed items.");
  const events: GatewayEvent[] = [];
  for (const { NotificationRequestItem: raw } of webhook.data.notificationItems) {
    const parsed = itemSchema.safeParse(raw);
    if (!parsed.success)
      return refused("forged", `The item's ${String(parsed.error.issues[0]?.path[0])} is malformed.`);
    const item = parsed.data;
    if (!isSigned(item, keys.hmacKey)) return refused("forged", "The signature does not match the item.");
    const occurTime = new Date(item.eventDate);
    const ageMs = request.now.getTime() - occurTime.getTime();
    if (ageMs > maxAgeMs || ageMs < -maxAheadMs) return refused("stale", `The event is ${ageMs} ms old.`);
    // A webhook of the whole company tells of other accounts too, and waits for an answer like any other.
    const fact = item.merchantAccountCode === keys.merchantAccount ? factOf(item) : ignored(item);
    if (fact === undefined) return refused("malformed", `The amount of the event ${item.eventCode} cannot be read.`);
    events.push({ ...fact, id: eventIdOf(item), gateway: "adyen", occurTime });
  }
  return { kind: "accepted", events };
}

function parseJson(body: Uint8Array): unknown {
  try {
    return JSON.parse(Buffer.from(body).toString("utf8"));
  } catch {
    return undefined;
  }
}

function isSigned(item: Item, hmacKey: string): boolean {
  // The SDK's type wants its own enumerations, but it only joins the fields as they are.
  return validator.validateHMAC(item as unknown as Parameters<typeof validator.validateHMAC>[0], hmacKey);
}

/** One event, however often it is sent: what happened to which operation. All of it is signed. */
function eventIdOf({ pspReference, eventCode, success }: Item): string {
  return `${pspReference}:${eventCode}:${success}`;
}

/** What the event says in the port's terms; undefined when its amount cannot be read. */
function factOf(item: Item): GatewayEventFact | undefined {
  const succeeded = item.success === "true";
  switch (item.eventCode) {
    case "AUTHORISATION":
      return succeeded ? captured(item) : declined(item, "refused");
    // The capture comes with the authorisation, and this is the news that it did not.
    case "CAPTURE_FAILED":
      return succeeded ? { ...declined(item, "capture_failed"), beatsCapture: true } : ignored(item);
    // A capture that somebody asked for beside the one that comes by itself may fail because that one did not.
    case "CAPTURE":
      return succeeded ? ignored(item) : declined(item, "capture_failed");
    // A cancel that failed proves nothing: the payment may be captured, or not have arrived yet.
    // Which of the two CANCEL_OR_REFUND did is not signed, and all the same to us: none of the charge is held any more.
    case "CANCELLATION":
    case "TECHNICAL_CANCEL":
    case "CANCEL_OR_REFUND":
      return succeeded
        ? { type: "charge_voided", reference: item.merchantReference, beatsCapture: true }
        : ignored(item);
    case "REFUND":
      return refundFact(item, succeeded);
    case "REFUND_FAILED":
    case "REFUNDED_REVERSED":
      return succeeded ? refundFact(item, false) : ignored(item);
    case "NOTIFICATION_OF_CHARGEBACK":
    case "CHARGEBACK":
      return disputeFact(item, "dispute_opened");
    case "CHARGEBACK_REVERSED":
    case "PREARBITRATION_WON":
      return disputeFact(item, "dispute_won");
    case "SECOND_CHARGEBACK":
    case "PREARBITRATION_LOST":
      return disputeFact(item, "dispute_lost");
    default:
      return ignored(item);
  }
}

function captured(item: Item): GatewayEventFact | undefined {
  const amount = fromAdyenAmount(item.amount);
  if (amount === undefined) return undefined;
  const { pspReference: transactionId, merchantReference: reference } = item;
  const result: Captured = {
    outcome: "captured",
    transactionId,
    captured: amount,
    responseCode: "Authorised",
    untilVoided: true,
  };
  return { type: "charge_captured", reference, result };
}

function declined(item: Item, fallback: string): Extract<GatewayEventFact, { type: "charge_declined" }> {
  const reason = fallback === "refused" ? reasonOf(item.reason, fallback) : fallback;
  const result: Declined = { outcome: "declined", reason, responseCode: item.eventCode };
  return { type: "charge_declined", reference: item.merchantReference, result };
}

/** A refund that was made in Adyen's Customer Area has the reference of its charge, and no key. */
function refundFact(item: Item, completed: boolean): GatewayEventFact | undefined {
  const { merchantReference: reference } = item;
  const byHand = referencePattern.test(reference) ? { reference, key: reference } : undefined;
  const names = splitRefundReference(reference) ?? byHand;
  if (names === undefined) return ignored(item);
  const responseCode = item.eventCode;
  if (!completed) {
    const reason = reasonOf(item.reason, item.eventCode.toLowerCase());
    return { type: "refund_failed", ...names, result: { outcome: "failed", reason, responseCode } };
  }
  const refunded = fromAdyenAmount(item.amount);
  if (refunded === undefined) return undefined;
  const { pspReference: transactionId } = item;
  return {
    type: "refund_completed",
    ...names,
    result: { outcome: "completed", transactionId, refunded, responseCode },
  };
}

function disputeFact(
  item: Item,
  type: "dispute_opened" | "dispute_won" | "dispute_lost",
): GatewayEventFact | undefined {
  if (item.success !== "true") return ignored(item);
  const amount = fromAdyenAmount(item.amount);
  if (amount === undefined) return undefined;
  return {
    type,
    reference: item.merchantReference,
    ...(item.originalReference ? { transactionId: item.originalReference } : {}),
    disputeId: item.pspReference,
    amount,
    reason: reasonOf(item.reason, "unknown"),
  };
}

function ignored({ eventCode }: Item): GatewayEventFact {
  return { type: "ignored", vendorType: eventCode };
}

function refused(cause: "forged" | "stale" | "malformed", detail: string): WebhookVerdict {
  return { kind: "refused", cause, detail };
}
