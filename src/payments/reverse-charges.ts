import type { Logger } from "pino";
import { v7 as uuidv7 } from "uuid";
import type { Clock } from "../deps.ts";
import { toMinor } from "../money.ts";
import type { Metrics } from "../telemetry/metrics.ts";
import type { Gateway, RefundAnswer } from "./gateways/gateway.ts";
import { type Gateways, gatewayNamed } from "./gateways/gateways.ts";
import type { PaymentStore, Reversal, ReversalRefusal } from "./store.ts";
import { storable } from "./webhook-event.ts";

const BATCH = 16;
const TIMEOUT_MS = 8_000;
/** Together with a refund's it fits into the time that a sweep has to end in when the service stops. */
const QUESTION_TIMEOUT_MS = 1_500;
const FIRST_PAUSE_MS = 5_000;
const MAX_PAUSE_MS = 60 * 60_000;
/** After so many tries without an end, which take more than an hour, a person is told, once. */
const ALERT_CHECKS = 10;
const MAX_REASON_CHARS = 200;

interface ReverseDeps {
  readonly payments: PaymentStore;
  readonly gateways: Gateways;
  readonly metrics: Metrics;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Gives back money that was taken and is not kept: by an attempt that had been given up, or of another amount. Each
 * charge is given back under a key of its own, so however often it is tried, it goes back once.
 * @returns whether more may wait.
 */
export async function reverseCharges(deps: ReverseDeps): Promise<boolean> {
  const { payments, clock, log } = deps;
  const due = await payments.takeReversals(clock.now(), FIRST_PAUSE_MS, MAX_PAUSE_MS, BATCH);
  await Promise.all(
    due.map(async (reversal) => {
      try {
        await reverse(deps, reversal);
      } catch (error) {
        log.error({ err: error, attemptId: reversal.attemptId }, "charge cannot be given back at the moment");
      }
    }),
  );
  return due.length === BATCH;
}

async function reverse(deps: ReverseDeps, reversal: Reversal): Promise<void> {
  const { gateways, log } = deps;
  const { attemptId, paymentId, gateway: name, transactionId, captured, key, checks } = reversal;
  const gateway = gatewayNamed(gateways, name);
  const amount = { currency: captured.currency, minor: toMinor(captured) };
  const about = { paymentId, attemptId, gateway: name };
  const answer = await gateway?.refund({ key, reference: attemptId, transactionId, amount }, { timeoutMs: TIMEOUT_MS });
  if (answer?.kind === "executed" && answer.result.outcome === "completed") return finish(deps, reversal);
  const refusal = refusalIn(answer, key);
  if (gateway !== undefined && refusal !== undefined) {
    if (await isGivenBack(gateway, reversal)) return finish(deps, reversal);
    await keepRefusal(deps, { attemptId, gateway: name, key, ...refusal });
    return;
  }
  if (checks === ALERT_CHECKS) log.error({ ...about, answer }, "charge could not be given back: a person has to look");
}

async function finish({ payments, metrics, clock, log }: ReverseDeps, reversal: Reversal): Promise<void> {
  const { attemptId, paymentId, gateway } = reversal;
  // The gateway's webhook may have told first.
  if (!(await payments.finishReversal(attemptId, clock.now()))) return;
  metrics.count("payment.duplicate_reversed", { gateway });
  log.warn({ paymentId, attemptId, gateway }, "charge given back");
}

/** Why the gateway will not carry the request out, and the key to ask with next. */
function refusalIn(answer: RefundAnswer | undefined, key: string): { reason: string; nextKey: string } | undefined {
  // A key that was refused is used up. Another takes no risk: no gateway gives back more than it has captured.
  if (answer?.kind === "executed" && answer.result.outcome === "failed")
    return { reason: answer.result.reason, nextKey: uuidv7() };
  // It is of this send alone; an earlier one of the same key may yet be carried out, and told of by that key.
  if (answer?.kind === "not_executed" && answer.cause === "rejected")
    return { reason: "rejected by the gateway", nextKey: key };
  return undefined;
}

/** Whether somebody has given the money back by hand, which is why the gateway refuses to do it again. */
async function isGivenBack(
  gateway: Gateway,
  { attemptId: reference, gatewayReference, captured }: Reversal,
): Promise<boolean> {
  const named = { reference, ...(gatewayReference !== "" && { gatewayReference }) };
  const held = await gateway.lookup(named, { timeoutMs: QUESTION_TIMEOUT_MS });
  if (held.kind !== "found" || held.charge.outcome !== "captured") return false;
  const { refunded } = held.charge;
  return refunded.currency === captured.currency && refunded.minor >= toMinor(captured);
}

/**
 * Keeps a gateway's refusal to give a charge back: a person is told of the first, `npm run check` shows it for as long as
 * it lasts, and the gateway is asked again in an hour, when that person may have removed the cause.
 * @returns false when it is of no use any more: another key is the one by now, or the money has gone back.
 */
export async function keepRefusal(
  { payments, clock, log }: Pick<ReverseDeps, "payments" | "clock" | "log">,
  { gateway, ...refusal }: ReversalRefusal & { readonly gateway: string },
): Promise<boolean> {
  const { attemptId } = refusal;
  const reason = storable(refusal.reason).slice(0, MAX_REASON_CHARS).toWellFormed() || "no reason told";
  const checkTime = new Date(clock.now().getTime() + MAX_PAUSE_MS);
  const first = await payments.refuseReversal({ ...refusal, reason }, checkTime);
  const about = { attemptId, gateway, reason };
  if (first === true) log.error(about, "gateway refuses to give a charge back: a person has to look");
  else log.info(about, "gateway still refuses to give a charge back");
  return first !== undefined;
}
