import type { SettleDeps } from "./carry-out.ts";
import type { Attempt } from "./payment.ts";
import type { RefundStore } from "./refund-store.ts";

interface ReturnChargeDeps extends SettleDeps {
  readonly refunds: RefundStore;
}

/**
 * Takes in a gateway's word that a charge which it had told to be captured holds no money. What is kept of it is given back
 * in our books, and nothing is asked of the gateway; what was on its way back has arrived. Both are conditional writes:
 * told again, or at the same time as the capture, they do nothing or all of it.
 * @param reason A sentence for whoever reads the refund.
 */
export async function returnCharge(
  { payments, refunds, metrics, clock, log }: ReturnChargeDeps,
  { id: attemptId, paymentId, gateway }: Pick<Attempt, "id" | "paymentId" | "gateway">,
  reason: string,
): Promise<void> {
  const about = { paymentId, attemptId, gateway, reason };
  const { outcome, failedRefunds } = await refunds.voidCaptured(attemptId, reason, clock.now());
  for (let i = 0; i < failedRefunds; i++) metrics.count("refund.failed");
  if (outcome === "RETURNED") {
    metrics.count("refund.successful");
    log.error(about, "captured charge was cancelled by its gateway: its payment is given back in the books");
  } else if (outcome === "NOTHING_LEFT") {
    log.error(about, "charge of which nothing is left is said to be cancelled: a person has to look");
  }
  if (await payments.finishReversal(attemptId, clock.now())) {
    metrics.count("payment.duplicate_reversed", { gateway });
    log.warn(about, "charge that was to be given back was cancelled by its gateway");
  }
}
