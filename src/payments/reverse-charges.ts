import type { Logger } from "pino";
import type { Clock } from "../deps.ts";
import { toMinor } from "../money.ts";
import type { Metrics } from "../telemetry/metrics.ts";
import { type Gateways, gatewayNamed } from "./gateways/gateways.ts";
import type { PaymentStore, Reversal } from "./store.ts";

const BATCH = 16;
const TIMEOUT_MS = 8_000;
const FIRST_PAUSE_MS = 5_000;
const MAX_PAUSE_MS = 60 * 60_000;
/** From then on each failure is told as one that a person has to look at. */
const ALERT_CHECKS = 10;

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

async function reverse({ payments, gateways, metrics, clock, log }: ReverseDeps, reversal: Reversal): Promise<void> {
  const { attemptId, paymentId, gateway: name, transactionId, captured, key, checks } = reversal;
  const gateway = gatewayNamed(gateways, name);
  const amount = { currency: captured.currency, minor: toMinor(captured) };
  const about = { paymentId, attemptId, gateway: name };
  const answer = await gateway?.refund({ key, reference: attemptId, transactionId, amount }, { timeoutMs: TIMEOUT_MS });
  if (answer?.kind === "executed" && answer.result.outcome === "completed") {
    // The gateway's webhook may have told first.
    if (!(await payments.finishReversal(attemptId, clock.now()))) return;
    metrics.count("payment.duplicate_reversed", { gateway: name });
    log.warn(about, "charge given back");
    return;
  }
  if (checks >= ALERT_CHECKS) log.error({ ...about, answer }, "charge could not be given back: a person has to look");
}
