import { v7 as uuidv7 } from "uuid";
import { z } from "zod";
import type { JobHandlers } from "../jobs/worker.ts";
import { moneyOf, type SettleDeps, settleExecuted, settleVoided } from "./carry-out.ts";
import { settleRefund } from "./carry-out-refund.ts";
import { type DisputeEvent, recordDispute } from "./dispute.ts";
import type { DisputeStore } from "./dispute-store.ts";
import type { AttemptState } from "./payment.ts";
import type { RefundStore } from "./refund-store.ts";
import { returnCharge } from "./return-charge.ts";
import { keepRefusal } from "./reverse-charges.ts";
import { readEvent, type StoredEvent } from "./webhook-event.ts";
import { PROCESS_WEBHOOK, type WebhookStore } from "./webhook-store.ts";

interface ProcessWebhookDeps extends SettleDeps {
  readonly refunds: RefundStore;
  readonly disputes: DisputeStore;
  readonly webhooks: WebhookStore;
}

type ChargeEvent = Extract<StoredEvent, { type: `charge_${string}` }>;
type RefundEvent = Extract<StoredEvent, { type: `refund_${string}` }>;

/** How an attempt ends that took no money. */
const WITHOUT_MONEY: ReadonlySet<AttemptState> = new Set(["DECLINED", "NOT_EXECUTED", "VOIDED"]);
const payload = z.object({ gateway: z.string(), eventId: z.string() });
const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/** The handler of the jobs that deal with gateways' events. */
export function webhookJobs(deps: ProcessWebhookDeps): JobHandlers {
  return {
    async [PROCESS_WEBHOOK](given) {
      const { gateway, eventId } = payload.parse(given);
      const event = await deps.webhooks.findWaiting(gateway, eventId);
      if (event === undefined) return;
      await processEvent(deps, readEvent(event));
      await deps.webhooks.finish(gateway, eventId, deps.clock.now());
    },
  };
}

/**
 * Does what an event calls for, by the same settlements as a gateway's answers: they bear being told again, at the same
 * time and in any order. What is told of something that is not known here is noted and nothing else, since other systems
 * may share the gateway's account.
 */
async function processEvent(deps: ProcessWebhookDeps, event: StoredEvent): Promise<void> {
  switch (event.type) {
    case "charge_captured":
    case "charge_declined":
    case "charge_voided":
      return processCharge(deps, event);
    case "refund_completed":
    case "refund_failed":
      return processRefund(deps, event);
    default:
      return recordDispute(deps, event satisfies DisputeEvent);
  }
}

async function processCharge(deps: ProcessWebhookDeps, event: ChargeEvent): Promise<void> {
  const { payments, log } = deps;
  const { id: eventId, gateway, reference, type } = event;
  const about = { eventId, gateway, reference, type };
  const undertaking = UUID.test(reference) ? await payments.findUndertakingOf(reference) : undefined;
  const attempt = undertaking?.attempts.find(({ id }) => id === reference.toLowerCase());
  if (undertaking === undefined || attempt?.gateway !== gateway) {
    return log.warn(about, "webhook about a charge that is not known here");
  }
  // Most news come after the answer to the charge. Money that was taken nevertheless is never old news.
  const open = attempt.state === "CREATED" || attempt.state === "UNKNOWN";
  const overlooked = type === "charge_captured" && WITHOUT_MONEY.has(attempt.state);
  if (!open && !overlooked) log.debug(about, "nothing new of a charge");
  else if (type === "charge_voided") await settleVoided(deps, attempt);
  else await settleExecuted(deps, undertaking.payment, attempt, event.result);
  if (type === "charge_captured") return;

  // The capture may be told at the same time, so this does not hang on what was read above.
  if (event.beatsCapture === true) return returnCharge(deps, attempt, "The gateway has cancelled the charge");
  if (attempt.state === "CAPTURED") {
    log.error(
      { ...about, paymentId: attempt.paymentId },
      "captured charge is said to hold no money: a person has to look",
    );
  }
}

async function processRefund(deps: ProcessWebhookDeps, event: RefundEvent): Promise<void> {
  const { refunds, log } = deps;
  const { id: eventId, gateway, reference, key, type } = event;
  const about = { eventId, gateway, reference, key, type };
  const known = UUID.test(key) ? await refunds.findUndertaking(key) : undefined;
  if (known !== undefined && known.gateway === gateway) return settleRefund(deps, known.refund, event.result);
  if (UUID.test(key) && UUID.test(reference)) {
    const refunded = type === "refund_completed" ? moneyOf(event.result.refunded) : undefined;
    if (await deps.payments.isReversal(reference, key, refunded)) return processReversal(deps, event);
    if (key === reference && (await deps.payments.findUndertakingOf(reference)) !== undefined) {
      return log.error(about, "refund was made by hand at the gateway, in no book of ours: a person has to look");
    }
  }
  log.warn(about, "webhook about a refund that is not known here");
}

/** Money that was taken and not kept went back, or did not. */
async function processReversal(deps: SettleDeps, event: RefundEvent): Promise<void> {
  const { payments, metrics, clock, log } = deps;
  const { gateway, reference: attemptId, key, type } = event;
  if (type === "refund_failed") {
    const { reason } = event.result;
    if (await keepRefusal(deps, { attemptId, gateway, key, nextKey: uuidv7(), reason })) return;
    return log.error({ gateway, attemptId, reason }, "charge that had gone back was sent back: a person has to look");
  }
  if (await payments.finishReversal(attemptId, clock.now())) {
    metrics.count("payment.duplicate_reversed", { gateway });
    log.warn({ gateway, attemptId }, "charge given back");
  }
}
