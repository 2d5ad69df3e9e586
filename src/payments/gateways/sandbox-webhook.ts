/** How the sandbox signs its webhooks, and how they are verified and read. */
import { createHmac, timingSafeEqual } from "node:crypto";
import type { GatewayEvent, GatewayEventFact, GatewayMoney, WebhookRequest, WebhookVerdict } from "./gateway.ts";
import {
  type ChargeBody,
  type DisputeBody,
  type RefundBody,
  type WebhookEventBody,
  webhookEventSchema,
} from "./sandbox-protocol.ts";

/** The header that carries `t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">`. */
export const signatureHeader = "sandbox-signature";

/** How far a signature's time may be from the receiver's clock, either way. */
const replayWindowMs = 5 * 60 * 1000;

/** A secret shorter than this could be guessed from a few signed events. */
export const minWebhookSecretLength = 16;

const maxWebhookBytes = 64 * 1024;
const maxSignatureHeaderLength = 200;
const signaturePattern = /^t=(\d{1,12}),v1=([0-9a-f]{64})$/;

/** The signature header's value for a body sent at a time. */
export function signWebhook(secret: string, body: string | Uint8Array, sentAt: Date): string {
  const seconds = Math.floor(sentAt.getTime() / 1000);
  return `t=${seconds},v1=${digest(secret, seconds, body).toString("hex")}`;
}

/** Verifies and reads a webhook of either sandbox gateway; the event's `gateway` says which one it is of. */
export function parseSandboxWebhook(secret: string, request: WebhookRequest): WebhookVerdict {
  if (request.body.byteLength > maxWebhookBytes) {
    return { kind: "refused", cause: "malformed", detail: `The body is larger than ${maxWebhookBytes} bytes.` };
  }
  const header = request.headers[signatureHeader];
  const signature =
    typeof header === "string" && header.length <= maxSignatureHeaderLength ? signaturePattern.exec(header) : null;
  if (signature === null) {
    return { kind: "refused", cause: "forged", detail: `The header ${signatureHeader} is missing or malformed.` };
  }
  const seconds = Number(signature[1]);
  const expected = digest(secret, seconds, request.body);
  // The signature comes before the time: only the sandbox itself learns from us that its clock is off.
  if (!timingSafeEqual(expected, Buffer.from(signature[2] ?? "", "hex"))) {
    return { kind: "refused", cause: "forged", detail: "The signature does not match the body." };
  }
  const ageMs = request.now.getTime() - seconds * 1000;
  if (Math.abs(ageMs) > replayWindowMs) {
    return { kind: "refused", cause: "stale", detail: `The signature is ${ageMs} ms old.` };
  }
  return readEvent(request.body);
}

function digest(secret: string, seconds: number, body: string | Uint8Array): Buffer {
  return createHmac("sha256", secret).update(`${seconds}.`).update(body).digest();
}

function readEvent(body: Uint8Array): WebhookVerdict {
  let value: unknown;
  try {
    value = JSON.parse(Buffer.from(body).toString("utf8"));
  } catch {
    return { kind: "refused", cause: "malformed", detail: "The body is not JSON." };
  }
  const parsed = webhookEventSchema.safeParse(value);
  if (!parsed.success) {
    return {
      kind: "refused",
      cause: "malformed",
      detail: parsed.error.issues[0]?.message ?? "The event is malformed.",
    };
  }
  const fact = factOf(parsed.data);
  if (fact === undefined) {
    return { kind: "refused", cause: "malformed", detail: `The event ${parsed.data.type} has no subject.` };
  }
  const event: GatewayEvent = {
    ...fact,
    id: parsed.data.id,
    gateway: parsed.data.gateway,
    occurTime: new Date(parsed.data.create_time),
  };
  return { kind: "accepted", events: [event] };
}

/** What the event says in the port's terms; undefined when its subject is missing. */
function factOf(event: WebhookEventBody): GatewayEventFact | undefined {
  switch (event.type) {
    case "charge.captured":
      return (
        event.charge && { type: "charge_captured", reference: event.charge.reference, result: capturedOf(event.charge) }
      );
    case "charge.declined":
      return (
        event.charge && { type: "charge_declined", reference: event.charge.reference, result: declinedOf(event.charge) }
      );
    case "charge.voided":
      return event.charge && { type: "charge_voided", reference: event.charge.reference };
    case "refund.completed":
      return (
        event.refund && { type: "refund_completed", ...refundKeys(event.refund), result: completedOf(event.refund) }
      );
    case "refund.failed":
      return event.refund && { type: "refund_failed", ...refundKeys(event.refund), result: failedOf(event.refund) };
    case "dispute.opened":
      return event.dispute && { type: "dispute_opened", ...disputeFacts(event.dispute) };
    case "dispute.won":
      return event.dispute && { type: "dispute_won", ...disputeFacts(event.dispute) };
    case "dispute.lost":
      return event.dispute && { type: "dispute_lost", ...disputeFacts(event.dispute) };
    default:
      return { type: "ignored", vendorType: event.type };
  }
}

/** A captured charge in the port's terms. */
export function capturedOf(charge: ChargeBody) {
  return {
    outcome: "captured",
    transactionId: charge.transaction_id,
    captured: money(charge.captured_minor, charge.currency),
    responseCode: charge.response_code,
  } as const;
}

/** A declined charge in the port's terms. */
export function declinedOf(charge: ChargeBody) {
  return { outcome: "declined", reason: charge.decline_reason, responseCode: charge.response_code } as const;
}

/** A completed refund in the port's terms. */
export function completedOf(refund: RefundBody) {
  return {
    outcome: "completed",
    transactionId: refund.transaction_id,
    refunded: money(refund.amount_minor, refund.currency),
    responseCode: refund.response_code,
  } as const;
}

/** A failed refund in the port's terms. */
export function failedOf(refund: RefundBody) {
  return { outcome: "failed", reason: refund.failure_reason, responseCode: refund.response_code } as const;
}

/** The wire's safe integer as money. */
export function money(minor: number, currency: string): GatewayMoney {
  return { currency, minor: BigInt(minor) };
}

function refundKeys(refund: RefundBody) {
  return { reference: refund.reference, key: refund.key };
}

function disputeFacts(dispute: DisputeBody) {
  return {
    reference: dispute.reference,
    disputeId: dispute.id,
    amount: money(dispute.amount_minor, dispute.currency),
    reason: dispute.reason,
  };
}
