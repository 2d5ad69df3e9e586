import type { Caller } from "../call.ts";
import { DomainError, notFound, requestIdReused } from "../errors.ts";
import { newId } from "../ids.ts";
import { formatMoney, fromDecimal, type Money } from "../money.ts";
import { callerGone } from "../orders/actor.ts";
import { requestHash } from "../orders/order.ts";
import { type CarryOutDeps, carryOut, FIRST_CHECK_MS, LEASE_MS } from "./carry-out.ts";
import type { Card, NewPayment, Payment } from "./payment.ts";
import type { RecordRefusal } from "./store.ts";

export interface ProcessPayment {
  readonly requestId: string;
  /** Empty: a payment without an order. */
  readonly orderId: string;
  /** Empty: the caller. */
  readonly customerId: string;
  readonly amount: Money;
  readonly card: Card;
}

/**
 * Takes a payment in four steps: record, screen, charge, settle. Each leaves rows from which the next can go on, and no
 * transaction is open while the outside world is asked. The same request again gives the payment as it is now, and goes
 * on with one that was left behind.
 * @throws DomainError ADMIN_REQUIRED, ORDER_NOT_FOUND, ORDER_NOT_PAYABLE, AMOUNT_MISMATCH, CUSTOMER_INACTIVE,
 *   REQUEST_ID_REUSED, REQUEST_IN_PROGRESS, TOKEN_INVALID
 */
export async function processPayment(
  deps: CarryOutDeps,
  { requestId, orderId, customerId: given, amount, card }: ProcessPayment,
  { userId, role }: Caller,
  deadline: number,
): Promise<Payment> {
  const customerId = given || userId;
  if (customerId !== userId && role !== "ADMIN") {
    throw new DomainError("forbidden", "ADMIN_REQUIRED", "Only an admin may pay for another customer");
  }
  const createTime = deps.clock.now();
  const asked: NewPayment = {
    id: newId(),
    customerId,
    orderId: orderId || null,
    createdBy: userId,
    requestId,
    requestHash: requestHash({ customerId, orderId, currency: amount.currency, nanos: String(amount.nanos), card }),
    amount,
    card,
    createTime,
    leaseExpireTime: new Date(createTime.getTime() + LEASE_MS),
    // Not before the lease ends: until then the sweep would find it taken.
    checkTime: new Date(createTime.getTime() + LEASE_MS + FIRST_CHECK_MS),
    attemptId: newId(),
    gateway: deps.gateways.primary.name,
  };
  const recorded = await deps.payments.record(asked, deadline);
  if (recorded.outcome === "RECORDED") return carryOut(deps, firstOf(asked), deadline);
  if (!("paymentId" in recorded)) throw refusal(recorded, asked);

  const found = await deps.payments.findUndertaking(recorded.paymentId);
  if (found === undefined) throw notFound("Payment", recorded.paymentId);
  return recorded.outcome === "TAKEN_OVER" ? carryOut(deps, found, deadline) : found.payment;
}

/** What has just been recorded, as the database has it. */
function firstOf(asked: NewPayment) {
  const { id, customerId, orderId, amount, card, createTime } = asked;
  const payment: Payment = {
    ...{ id, customerId, orderId, amount, card, createTime },
    status: "PENDING",
    riskLevel: null,
    riskFactors: [],
    gateway: "",
    gatewayTransactionId: "",
    gatewayResponseCode: "",
    failureReason: "",
    refundedAmount: { currency: amount.currency, nanos: 0n },
    processTime: null,
  };
  const attempt = {
    id: asked.attemptId,
    paymentId: id,
    number: 1 as const,
    gateway: asked.gateway,
    gatewayReference: "",
    state: "CREATED" as const,
    createTime,
  };
  return { payment, attempts: [attempt] };
}

function refusal(
  { outcome, detail }: RecordRefusal,
  { requestId, orderId, customerId, amount }: NewPayment,
): DomainError {
  const because = (reason: string, message: string) => new DomainError("precondition", reason, message);
  switch (outcome) {
    case "IN_PROGRESS": {
      const message = `The request ${requestId} is still being carried out; ask again shortly`;
      return new DomainError("conflict", "REQUEST_IN_PROGRESS", message, { retryAfterMs: 1_000 });
    }
    case "REQUEST_ID_REUSED":
      return requestIdReused(requestId);
    case "ORDER_NOT_FOUND":
      return notFound("Order", orderId ?? "");
    case "CUSTOMER_INACTIVE":
      return because(outcome, `There is no active customer ${customerId}`);
    case "CALLER_GONE":
      return callerGone();
    case "ORDER_STATUS":
      return because("ORDER_NOT_PAYABLE", `Cannot pay order with status: ${detail}`);
    case "ORDER_PAYMENT_STATE":
      return because("ORDER_NOT_PAYABLE", `Cannot pay order with payment state: ${detail}`);
    case "ORDER_EXPIRED":
      return because("ORDER_NOT_PAYABLE", "Cannot pay order: the time to pay it has passed");
    case "AMOUNT_MISMATCH":
      return because(outcome, `The order's total is ${totalOf(detail)}, not ${formatMoney(amount)}`);
  }
}

/** "47.480 USD", as the database writes it, with the currency's own decimals. */
function totalOf(detail: string): string {
  const [amount = "0", currency = ""] = detail.split(" ");
  return formatMoney(fromDecimal(currency, amount));
}
