/** How Stripe's webhooks are verified and read. */
import Stripe from "stripe";
import { z } from "zod";
import { identifier } from "./answers.ts";
import type { GatewayEvent, GatewayEventFact, WebhookRequest, WebhookVerdict } from "./gateway.ts";
import {
  disputeSchema,
  fromStripeAmount,
  type Intent,
  intentSchema,
  isMoneyDisputed,
  referenceKey,
  refundKeyKey,
  refundResultOf,
  refundSchema,
  resultOf,
  type StripeDispute,
  type StripeRefund,
} from "./stripe-objects.ts";

/** How far a signature's time may be from the receiver's clock, either way. */
const replayWindowMs = 5 * 60 * 1000;
const maxWebhookBytes = 256 * 1024;
const maxSignatureHeaderLength = 1_000;
/** One time and its signatures: several while a secret is being rolled. Two times would be read differently by two readers. */
const signaturePattern = /^t=(\d{1,12})(?:,v\d=[0-9a-f]{64}){1,10}$/;

const eventSchema = z.object({
  id: z.string().regex(/^evt_[A-Za-z0-9_]{1,100}$/),
  object: z.literal("event"),
  type: z.string().max(100),
  created: z.int().positive(),
  data: z.object({ object: z.unknown() }),
});

/** Verifies and reads a webhook. `secret` is the endpoint's signing secret. */
export function parseStripeWebhook(secret: string, request: WebhookRequest): WebhookVerdict {
  if (request.body.byteLength > maxWebhookBytes) {
    return refused("malformed", `The body is larger than ${maxWebhookBytes} bytes.`);
  }
  const header = request.headers["stripe-signature"];
  const isReadable = typeof header === "string" && header.length <= maxSignatureHeaderLength;
  const signature = isReadable ? signaturePattern.exec(header) : null;
  if (signature === null) return refused("forged", "The header stripe-signature is missing or malformed.");

  let value: unknown;
  try {
    // The time is checked below by our own clock, in both directions; 0 turns the SDK's check off.
    value = Stripe.webhooks.constructEvent(Buffer.from(request.body), signature[0], secret, 0);
  } catch (error) {
    const isForged = error instanceof Stripe.errors.StripeSignatureVerificationError;
    return isForged
      ? refused("forged", "The signature does not match the body.")
      : refused("malformed", "The body is not an event in JSON.");
  }
  const ageMs = request.now.getTime() - Number(signature[1]) * 1000;
  if (Math.abs(ageMs) > replayWindowMs) return refused("stale", `The signature is ${ageMs} ms old.`);
  return readEvent(value);
}

function readEvent(value: unknown): WebhookVerdict {
  const parsed = eventSchema.safeParse(value);
  if (!parsed.success) return refused("malformed", "The event is not of Stripe's form.");
  const { id, type, created, data } = parsed.data;
  const fact = factOf(type, data.object);
  if (fact === undefined) return refused("malformed", `The object of the event ${identifier(type)} cannot be read.`);
  const event: GatewayEvent = { ...fact, id, gateway: "stripe", occurTime: new Date(created * 1000) };
  return { kind: "accepted", events: [event] };
}

/** What the event says in the port's terms; undefined when its object is not what the type promises. */
function factOf(type: string, object: unknown): GatewayEventFact | undefined {
  switch (type) {
    case "payment_intent.succeeded":
    case "payment_intent.payment_failed":
    case "payment_intent.canceled": {
      const intent = intentSchema.safeParse(object).data;
      return intent && intentFact(type, intent);
    }
    // `charge.refunded` repeats these with a running total and without the refund's key.
    case "refund.created":
    case "refund.updated":
    case "refund.failed":
    case "charge.refund.updated": {
      const refund = refundSchema.safeParse(object).data;
      return refund && refundFact(type, refund);
    }
    // An inquiry that becomes a dispute was created before; the withdrawal of its money tells.
    case "charge.dispute.created":
    case "charge.dispute.funds_withdrawn":
    case "charge.dispute.closed": {
      const dispute = disputeSchema.safeParse(object).data;
      return dispute && disputeFact(type, dispute);
    }
    default:
      return ignored(type);
  }
}

/** Intents that are not ours have no reference of ours: other systems may share the account. */
function intentFact(type: string, intent: Intent): GatewayEventFact | undefined {
  const reference = intent.metadata[referenceKey];
  if (reference === undefined) return ignored(type);
  const result = resultOf(intent);
  if (result?.outcome === "captured") return { type: "charge_captured", reference, result };
  if (result?.outcome === "declined") return { type: "charge_declined", reference, result };
  return type === "payment_intent.canceled" ? { type: "charge_voided", reference } : undefined;
}

function refundFact(type: string, refund: StripeRefund): GatewayEventFact | undefined {
  const { [referenceKey]: reference, [refundKeyKey]: key } = refund.metadata;
  if (reference === undefined || key === undefined) return ignored(type);
  const result = refundResultOf(refund);
  if (result === undefined) return undefined;
  if (result.outcome === "completed") return { type: "refund_completed", reference, key, result };
  return result.outcome === "failed" ? { type: "refund_failed", reference, key, result } : ignored(type);
}

function disputeFact(type: string, dispute: StripeDispute): GatewayEventFact | undefined {
  const amount = fromStripeAmount(dispute.currency, dispute.amount);
  if (amount === undefined) return undefined;
  if (!dispute.payment_intent) return ignored(type);
  const about = {
    transactionId: dispute.payment_intent,
    disputeId: dispute.id,
    amount,
    reason: identifier(dispute.reason),
  };
  if (type !== "charge.dispute.closed") {
    return isMoneyDisputed(dispute) ? { type: "dispute_opened", ...about } : ignored(type);
  }
  if (dispute.status === "lost") return { type: "dispute_lost", ...about };
  return dispute.status === "won" || dispute.status === "prevented" ? { type: "dispute_won", ...about } : ignored(type);
}

function ignored(vendorType: string): GatewayEventFact {
  return { type: "ignored", vendorType };
}

function refused(cause: "forged" | "stale" | "malformed", detail: string): WebhookVerdict {
  return { kind: "refused", cause, detail };
}
