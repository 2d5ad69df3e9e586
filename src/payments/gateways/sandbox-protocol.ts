/** The sandbox's wire contract, shared by its server and the adapter. `docs/sandbox.md` is its description for people. */
import { z } from "zod";

/** Both gateways that one sandbox process serves. */
export const sandboxGatewayNames = ["sandbox-primary", "sandbox-backup"] as const;

/** `sandbox-primary` or `sandbox-backup`. */
export type SandboxGatewayName = (typeof sandboxGatewayNames)[number];

/** The largest amount of one charge or refund, in minor units: far below 2^53, so that sums stay exact in JSON too. */
const maxAmountMinor = 1_000_000_000_000;

/** Idempotency keys: they travel in paths, so they are held to characters that need no escaping there. */
export const referenceSchema = z.string().regex(/^[A-Za-z0-9._:-]{1,128}$/, "must be 1 to 128 of A-Z a-z 0-9 . _ : -");

const currencySchema = z.string().regex(/^[A-Z]{3}$/, "must be three upper-case letters");
const amountSchema = z.int().min(1).max(maxAmountMinor);
const tokenSchema = z.string().min(1).max(128);

/** The body of `POST /{gateway}/charges`. */
export const chargeRequestSchema = z.strictObject({
  reference: referenceSchema,
  token: tokenSchema,
  amount_minor: amountSchema,
  currency: currencySchema,
});

/** The body of `POST /{gateway}/refunds`. */
export const refundRequestSchema = z.strictObject({
  key: referenceSchema,
  reference: referenceSchema,
  amount_minor: amountSchema,
  currency: currencySchema,
});

/** The body of `POST /{gateway}/charges/{reference}/disputes`; without an amount, all that is left is disputed. */
export const disputeRequestSchema = z.strictObject({
  amount_minor: amountSchema.optional(),
  reason: z.string().min(1).max(200).optional(),
});

/** A charge as the sandbox tells it. A tombstone of a reference never seen has an empty token and currency and no amount. */
export const chargeSchema = z.object({
  gateway: z.enum(sandboxGatewayNames),
  reference: referenceSchema,
  token: z.string(),
  amount_minor: z.int().min(0),
  currency: z.string(),
  state: z.enum(["captured", "declined", "voided", "pending"]),
  captured_minor: z.int().min(0),
  refunded_minor: z.int().min(0),
  disputed_minor: z.int().min(0),
  transaction_id: z.string(),
  response_code: z.string(),
  decline_reason: z.string(),
  create_time: z.iso.datetime(),
});

/** A refund as the sandbox tells it. */
export const refundSchema = z.object({
  gateway: z.enum(sandboxGatewayNames),
  key: referenceSchema,
  reference: referenceSchema,
  amount_minor: z.int().min(1),
  currency: currencySchema,
  state: z.enum(["completed", "failed", "pending"]),
  transaction_id: z.string(),
  response_code: z.string(),
  failure_reason: z.string(),
  create_time: z.iso.datetime(),
});

/** A dispute as the sandbox tells it. */
export const disputeSchema = z.object({
  gateway: z.enum(sandboxGatewayNames),
  id: referenceSchema,
  reference: referenceSchema,
  amount_minor: z.int().min(1),
  currency: currencySchema,
  state: z.enum(["open", "won", "lost"]),
  reason: z.string(),
  create_time: z.iso.datetime(),
});

/** The kinds of webhook events that the sandbox sends. */
export const sandboxEventTypes = [
  "charge.captured",
  "charge.declined",
  "charge.voided",
  "refund.completed",
  "refund.failed",
  "dispute.opened",
  "dispute.won",
  "dispute.lost",
] as const;

/** A webhook's body. `type` is open, because a receiver must survive events that came after it was written. */
export const webhookEventSchema = z.object({
  id: z.string().min(1).max(128),
  type: z.string().min(1).max(64),
  gateway: z.enum(sandboxGatewayNames),
  create_time: z.iso.datetime(),
  charge: chargeSchema.optional(),
  refund: refundSchema.optional(),
  dispute: disputeSchema.optional(),
});

/**
 * The codes of an error answer. Only those in `provenUnprocessedCodes` say that nothing was processed; every other is
 * either about something found (`already_captured`) or tells nothing (`internal_error`).
 */
export const errorSchema = z.object({
  error: z.object({ code: z.string().max(64), message: z.string() }),
});

export type ChargeRequestBody = z.infer<typeof chargeRequestSchema>;
export type RefundRequestBody = z.infer<typeof refundRequestSchema>;
export type DisputeRequestBody = z.infer<typeof disputeRequestSchema>;
export type ChargeBody = z.infer<typeof chargeSchema>;
export type RefundBody = z.infer<typeof refundSchema>;
export type DisputeBody = z.infer<typeof disputeSchema>;
export type WebhookEventBody = z.infer<typeof webhookEventSchema>;
export type SandboxEventType = (typeof sandboxEventTypes)[number];
