import { askAfterOthers, type CarryOutDeps, carryOut, FIRST_CHECK_MS, LEASE_MS } from "./carry-out.ts";
import type { PaymentStatus } from "./payment.ts";
import type { Undertaking } from "./store.ts";

/** Payments looked after at once: few enough for a gateway that is just coming back. */
const BATCH = 16;
/** As long as a client's call may take, although nobody waits. */
const CARRY_OUT_MS = 30_000;
const MAX_PAUSE_MS = 60 * 60_000;
/** Pauses double from five seconds until they are an hour. */
const DOUBLINGS = Math.ceil(Math.log2(MAX_PAUSE_MS / FIRST_CHECK_MS));
/** A payment that no gateway would tell of for so long is for a person. */
const ALERT_AGE_MS = 24 * 60 * 60_000;

/**
 * Goes on with payments whose outcome is not known and that nobody carries out: those of a process that died, those whose
 * gateway did not answer, and those that ended while what became of one of their charges was not known. Each is taken
 * under a lease, so a live request and a sweep never act on one at once.
 * @returns whether more may be due.
 */
export async function reconcilePayments(deps: CarryOutDeps): Promise<boolean> {
  const { payments, clock, log } = deps;
  const now = clock.now();
  const nextCheck = (checks: number) =>
    new Date(now.getTime() + Math.min(FIRST_CHECK_MS * 2 ** (checks + 1), MAX_PAUSE_MS));
  const due = await payments.takeDue(now, new Date(now.getTime() + LEASE_MS), nextCheck, DOUBLINGS, BATCH);
  await Promise.all(
    due.map(async (undertaking) => {
      const { id, createTime } = undertaking.payment;
      try {
        const status = await goOn(deps, undertaking);
        const ageMs = now.getTime() - createTime.getTime();
        if (status !== undefined) log.info({ paymentId: id, status }, "payment reconciled");
        else if (ageMs >= ALERT_AGE_MS)
          log.error({ paymentId: id, ageMs }, "payment unknown for a day: a person has to look");
      } catch (error) {
        log.error({ err: error, paymentId: id }, "payment cannot be reconciled at the moment");
      }
    }),
  );
  return due.length === BATCH;
}

/** @returns how the payment stands; undefined while the end of one of its charges is not known. */
async function goOn(deps: CarryOutDeps, undertaking: Undertaking): Promise<PaymentStatus | undefined> {
  const deadline = Date.now() + CARRY_OUT_MS;
  const { status: before } = undertaking.payment;
  if (before !== "PENDING") return (await askAfterOthers(deps, undertaking, deadline)) ? before : undefined;
  const { status } = await carryOut(deps, undertaking, deadline);
  return status === "PENDING" ? undefined : status;
}
