import { z } from "zod";
import type { GatewayEvent } from "./gateways/gateway.ts";

const money = z.object({ currency: z.string(), minor: z.string().transform(BigInt) });
const gateway = z.enum(["stripe", "adyen", "sandbox-primary", "sandbox-backup"]);

const captured = z.object({
  outcome: z.literal("captured"),
  transactionId: z.string(),
  captured: money,
  responseCode: z.string(),
  untilVoided: z.literal(true).optional(),
});
const declined = z.object({ outcome: z.literal("declined"), reason: z.string(), responseCode: z.string() });
const completed = z.object({
  outcome: z.literal("completed"),
  transactionId: z.string(),
  refunded: money,
  responseCode: z.string(),
});
const failed = z.object({ outcome: z.literal("failed"), reason: z.string(), responseCode: z.string() });

const dispute = {
  reference: z.string().optional(),
  transactionId: z.string().optional(),
  disputeId: z.string(),
  amount: money,
  reason: z.string(),
};

const beatsCapture = z.literal(true).optional();

const fact = z.discriminatedUnion("type", [
  z.object({ type: z.literal("charge_captured"), reference: z.string(), result: captured }),
  z.object({ type: z.literal("charge_declined"), reference: z.string(), result: declined, beatsCapture }),
  z.object({ type: z.literal("charge_voided"), reference: z.string(), beatsCapture }),
  z.object({ type: z.literal("refund_completed"), reference: z.string(), key: z.string(), result: completed }),
  z.object({ type: z.literal("refund_failed"), reference: z.string(), key: z.string(), result: failed }),
  z.object({ type: z.literal("dispute_opened"), ...dispute }),
  z.object({ type: z.literal("dispute_won"), ...dispute }),
  z.object({ type: z.literal("dispute_lost"), ...dispute }),
]);

const stored = fact.and(
  z.object({ id: z.string(), gateway, occurTime: z.iso.datetime().transform((time) => new Date(time)) }),
);

/** An event as it is kept between its coming and its job. */
export type StoredEvent = z.output<typeof stored>;

/** An event as JSON, which knows no bigint, in characters that the database can keep. */
export function writeEvent(event: GatewayEvent): string {
  return JSON.stringify(event, (_, value) => {
    if (typeof value === "bigint") return String(value);
    return typeof value === "string" ? storable(value) : value;
  });
}

/** A vendor's text without what PostgreSQL takes in no text. */
export function storable(text: string): string {
  return text.replaceAll("\0", "").toWellFormed();
}

/** @throws ZodError when it was written by code that knew other events. */
export function readEvent(json: unknown): StoredEvent {
  return stored.parse(json);
}
