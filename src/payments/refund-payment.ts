import type { Caller } from "../call.ts";
import type { Config } from "../config.ts";
import { DomainError, fieldsInvalid, notFound, requestIdReused } from "../errors.ts";
import { newId } from "../ids.ts";
import { formatMoney, type Money, toDecimal } from "../money.ts";
import { callerGone } from "../orders/actor.ts";
import { requestHash } from "../orders/order.ts";
import { type CarryOutRefundDeps, carryOutRefund, FIRST_REFUND_CHECK_MS, REFUND_LEASE_MS } from "./carry-out-refund.ts";
import { type NewRefund, type Refund, type RefundFigures, remainingOf } from "./refund.ts";
import type { RefundRefusal } from "./refund-store.ts";

/** How long the job that gives back an order's payment waits for the gateway. */
const OWN_REFUND_MS = 30_000;
const DAY_MS = 24 * 60 * 60_000;

export interface RefundPaymentDeps extends CarryOutRefundDeps {
  readonly config: { readonly payments: Pick<Config["payments"], "refundWindowDays"> };
}

export interface RefundPayment {
  readonly requestId: string;
  readonly paymentId: string;
  readonly amount: Money;
  readonly reason: string;
}

/**
 * Gives money back in three steps: record (which takes the amount from what is left to be refunded), refund, settle. Each
 * leaves rows from which the sweep goes on. The same request again gives the refund as it is now.
 * @throws DomainError PAYMENT_NOT_FOUND, PAYMENT_NOT_REFUNDABLE, REFUND_WINDOW_EXPIRED, REFUND_EXCEEDS_PAYMENT,
 *   TOO_MANY_REFUNDS, FIELD_INVALID for another currency, REQUEST_ID_REUSED, REQUEST_IN_PROGRESS, TOKEN_INVALID
 */
export async function refundPayment(
  deps: RefundPaymentDeps,
  { requestId, paymentId: given, amount, reason }: RefundPayment,
  { userId, role }: Caller,
  deadline: number,
): Promise<Refund> {
  const paymentId = given.toLowerCase();
  const { refundWindowDays } = deps.config.payments;
  const asked = {
    ...freshRefund(deps, paymentId, reason),
    asked: {
      ownerId: role === "ADMIN" ? undefined : userId,
      createdBy: userId,
      requestId,
      requestHash: requestHash({ paymentId, currency: amount.currency, nanos: String(amount.nanos), reason }),
      amount,
      processedSince: new Date(deps.clock.now().getTime() - refundWindowDays * DAY_MS),
    },
  };
  const recorded = await deps.refunds.record(asked);
  if (recorded.outcome === "RECORDED") return carriedOut(deps, asked.id, deadline);
  if (recorded.outcome !== "REPEATED") throw refusal(recorded, asked, requestId, refundWindowDays);
  return present(deps, recorded.refundId);
}

/**
 * Gives back whatever is left of an order's payment, of the service's own accord and whenever it was paid. May be
 * repeated: a payment is given back like this once.
 */
export async function refundOrder(deps: CarryOutRefundDeps, orderId: string): Promise<void> {
  const { refunds, log } = deps;
  const paymentId = await refunds.findPaymentOfOrder(orderId);
  if (paymentId === undefined) return log.warn({ orderId }, "the order to be refunded has no completed payment");
  const own = { ...freshRefund(deps, paymentId, "Order cancelled"), asked: undefined };
  const { outcome } = await refunds.record(own);
  if (outcome !== "RECORDED") return log.info({ orderId, paymentId, outcome }, "nothing to give back for the order");
  const { id: refundId, status } = await carriedOut(deps, own.id, Date.now() + OWN_REFUND_MS);
  log.info({ orderId, paymentId, refundId, status }, "payment of a cancelled order given back");
}

function freshRefund({ clock }: CarryOutRefundDeps, paymentId: string, reason: string): Omit<NewRefund, "asked"> {
  const createTime = clock.now();
  const leaseEndMs = createTime.getTime() + REFUND_LEASE_MS;
  return {
    ...{ id: newId(), paymentId, reason, createTime },
    leaseExpireTime: new Date(leaseEndMs),
    // Not before the lease ends: until then the sweep would find it taken.
    checkTime: new Date(leaseEndMs + FIRST_REFUND_CHECK_MS),
  };
}

/** Sends what has just been recorded, and gives the refund as it is then. */
async function carriedOut(deps: CarryOutRefundDeps, id: string, deadline: number): Promise<Refund> {
  const undertaking = await deps.refunds.findUndertaking(id);
  if (undertaking === undefined) throw new Error(`refund ${id} has no charge to take the money from`);
  await carryOutRefund(deps, undertaking, true, deadline);
  return present(deps, id);
}

async function present({ refunds }: CarryOutRefundDeps, id: string): Promise<Refund> {
  const refund = await refunds.find(id);
  if (refund === undefined) throw notFound("Refund", id);
  return refund;
}

function refusal(
  refused: RefundRefusal,
  { paymentId, asked: { amount } }: { readonly paymentId: string; readonly asked: { readonly amount: Money } },
  requestId: string,
  refundWindowDays: number,
): DomainError {
  const because = (reason: string, message: string, metadata: Readonly<Record<string, string>> = {}) =>
    new DomainError("precondition", reason, message, { metadata });
  switch (refused.outcome) {
    case "IN_PROGRESS": {
      const message = `The request ${requestId} is still being carried out; ask again shortly`;
      return new DomainError("conflict", "REQUEST_IN_PROGRESS", message, { retryAfterMs: 1_000 });
    }
    case "REQUEST_ID_REUSED":
      return requestIdReused(requestId);
    case "CALLER_GONE":
      return callerGone();
    case "PAYMENT_NOT_FOUND":
      return notFound("Payment", paymentId);
    case "PAYMENT_STATUS":
      return because("PAYMENT_NOT_REFUNDABLE", `Cannot refund payment with status: ${refused.status}`);
    case "CURRENCY": {
      const { currency } = refused.figures.paid;
      const description = `The payment is in ${currency}, so it cannot be refunded in ${amount.currency}`;
      return fieldsInvalid([{ field: "amount", reason: "CURRENCY_MISMATCH", description }]);
    }
    case "WINDOW_EXPIRED": {
      const paid = refused.paidTime.toISOString();
      const message = `Cannot refund the payment of ${paid}: payments can be refunded for ${refundWindowDays} days`;
      return because("REFUND_WINDOW_EXPIRED", message, { process_time: paid, window_days: String(refundWindowDays) });
    }
    case "TOO_MANY_REFUNDS":
      return because(refused.outcome, `Payment ${paymentId} has as many refunds as a payment may have`);
    case "EXCEEDS":
    case "NOTHING_LEFT":
      return exceeding(refused.figures, amount);
  }
}

function exceeding(figures: RefundFigures, requested: Money): DomainError {
  const { paid, refunded, refunding, disputed } = figures;
  const remaining = remainingOf(figures);
  const message =
    `Cannot refund ${formatMoney(requested)}: of ${formatMoney(paid)}, ${formatMoney(refunded)} were refunded, ` +
    `${formatMoney(refunding)} are being refunded and ${formatMoney(disputed)} are disputed; ` +
    `${formatMoney(remaining)} are left`;
  const amounts = { requested, paid, refunded, refunding, disputed, remaining };
  const decimals = Object.entries(amounts).map(([name, amount]) => [name, toDecimal(amount)]);
  const metadata = { currency: paid.currency, ...Object.fromEntries(decimals) };
  return new DomainError("precondition", "REFUND_EXCEEDS_PAYMENT", message, { metadata });
}
