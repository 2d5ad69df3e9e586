import { type CarryOutRefundDeps, carryOutRefund, FIRST_REFUND_CHECK_MS, REFUND_LEASE_MS } from "./carry-out-refund.ts";

/** Refunds looked after at once: few enough for a gateway that is just coming back. */
const BATCH = 16;
/** As long as a client's call may take, although nobody waits. */
const CARRY_OUT_MS = 30_000;
const MAX_PAUSE_MS = 60 * 60_000;
/** A refund that its gateway would not tell of for so long is for a person. */
const ALERT_AGE_MS = 24 * 60 * 60_000;

/**
 * Goes on with refunds whose outcome is not known and that nobody carries out: those of a process that died, those whose
 * gateway did not answer, and those that it has not finished. Each is taken under a lease.
 * @returns whether more may be due.
 */
export async function reconcileRefunds(deps: CarryOutRefundDeps): Promise<boolean> {
  const { refunds, clock, log } = deps;
  const now = clock.now();
  const lease = new Date(now.getTime() + REFUND_LEASE_MS);
  const due = await refunds.takeDue(now, lease, FIRST_REFUND_CHECK_MS, MAX_PAUSE_MS, BATCH);
  await Promise.all(
    due.map(async (undertaking) => {
      const { id, createTime } = undertaking.refund;
      try {
        await carryOutRefund(deps, undertaking, false, Date.now() + CARRY_OUT_MS);
        const { status } = (await refunds.find(id)) ?? undertaking.refund;
        const ageMs = now.getTime() - createTime.getTime();
        if (status !== "PENDING") log.info({ refundId: id, status }, "refund reconciled");
        // Told once; it is asked about every hour.
        else if (ageMs >= ALERT_AGE_MS && (await refunds.claimAlert(id, now)))
          log.error({ refundId: id, ageMs }, "refund not finished for a day: a person has to look");
      } catch (error) {
        log.error({ err: error, refundId: id }, "refund cannot be reconciled at the moment");
      }
    }),
  );
  return due.length === BATCH;
}
