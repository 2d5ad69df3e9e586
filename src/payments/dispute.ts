import type { Logger } from "pino";
import { fromMinor, MAX_AMOUNT_NANOS, type Money, minorDigits } from "../money.ts";
import type { DisputeStore } from "./dispute-store.ts";
import type { GatewayMoney } from "./gateways/gateway.ts";
import type { DisputeStatus } from "./refund.ts";
import type { StoredEvent } from "./webhook-event.ts";

export type DisputeEvent = Extract<StoredEvent, { type: `dispute_${string}` }>;

const statusOf: Readonly<Record<DisputeEvent["type"], DisputeStatus>> = {
  dispute_opened: "OPEN",
  dispute_won: "WON",
  dispute_lost: "LOST",
};

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

/**
 * Takes in what a gateway tells of a dispute: from then on an open or lost one holds its amount against refunds. Events
 * may come again and in any order. What cannot be kept is for a person, and no reason to be told again.
 */
export async function recordDispute(
  { disputes, log }: { readonly disputes: DisputeStore; readonly log: Logger },
  event: DisputeEvent,
): Promise<void> {
  const { gateway, id: eventId, type, disputeId, reference, transactionId = "", reason, occurTime } = event;
  const status = statusOf[type];
  const about = { eventId, gateway, disputeId, status };
  const amount = readAmount(event.amount);
  if (amount === undefined)
    return log.error({ ...about, amount: event.amount.currency }, "dispute of no usable amount");

  // Without our reference the gateway's id of the charge has to do; another system may share the account.
  const charge = reference !== undefined && UUID.test(reference) ? { attemptId: reference } : { transactionId };
  const news = { gateway, gatewayDisputeId: disputeId, charge, amount, status, reason, occurTime };
  const change = await disputes.record(news);
  if (change === undefined) return log.warn(about, "dispute of a charge that is not known here");
  if (change.was === change.is) {
    const contradicts = change.is === "LOST" && status === "WON";
    return log[contradicts ? "error" : "debug"]({ ...about, is: change.is }, "nothing new of a dispute");
  }
  log.warn({ ...about, paymentId: change.paymentId, was: change.was, is: change.is }, "dispute");
}

function readAmount({ currency, minor }: GatewayMoney): Money | undefined {
  if (minorDigits(currency) === undefined || minor <= 0n) return undefined;
  const amount = fromMinor(currency, minor);
  return amount.nanos > MAX_AMOUNT_NANOS ? undefined : amount;
}
