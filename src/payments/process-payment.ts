import type { Logger } from "pino";
import { v7 as uuidv7 } from "uuid";
import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError } from "../errors.ts";
import { type Money, toMinor } from "../money.ts";
import { requestHash } from "../orders/order.ts";
import type { Captured, ChargeAnswer, Declined, Gateway, GatewayMoney } from "./gateways/gateway.ts";
import type { Card, Payment, Settlement } from "./payment.ts";
import type { FraudCheck } from "./screen.ts";
import type { Attempt, PaymentStore } from "./store.ts";

/** Time kept back from the deadline to ask the gateway what became of a charge, and to record it. */
const RESERVE_MS = 6_000;
const CHARGE_TIMEOUT_MS = 8_000;
const QUESTION_TIMEOUT_MS = 2_000;
const MIN_CHARGE_TIMEOUT_MS = 500;
/** Longer than any call: within it, a payment that is under way belongs to the process that recorded it. */
const LEASE_MS = 75_000;

export interface ProcessPayment {
  readonly requestId: string;
  /** Empty: a payment without an order. */
  readonly orderId: string;
  /** Empty: the caller. */
  readonly customerId: string;
  readonly amount: Money;
  readonly card: Card;
}

interface ProcessPaymentDeps {
  readonly payments: PaymentStore;
  readonly gateway: Gateway;
  readonly fraud: FraudCheck;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Takes a payment in four steps: record, screen, charge, settle. Each leaves rows from which the next can go on, and no
 * transaction is open while the outside world is asked. What a gateway did not say for certain is looked up, then
 * voided; without proof either way the payment stays PENDING, never guessed. The same request again gives the payment as
 * it is now, and goes on with one that was left behind.
 * @throws DomainError ADMIN_REQUIRED, ORDER_NOT_FOUND, ORDER_NOT_PAYABLE, AMOUNT_MISMATCH, CUSTOMER_INACTIVE,
 *   REQUEST_ID_REUSED, REQUEST_IN_PROGRESS
 */
export async function processPayment(
  deps: ProcessPaymentDeps,
  { requestId, orderId, customerId: given, amount, card }: ProcessPayment,
  { userId, role }: Caller,
  deadline: number,
): Promise<Payment> {
  const customerId = given || userId;
  if (customerId !== userId && role !== "ADMIN") {
    throw new DomainError("forbidden", "ADMIN_REQUIRED", "Only an admin may pay for another customer");
  }
  const { payments, gateway, clock } = deps;
  const createTime = clock.now();
  const { payment, attempt } = await payments.record(
    {
      id: uuidv7(),
      customerId,
      orderId: orderId || null,
      createdBy: userId,
      requestId,
      requestHash: requestHash({ customerId, orderId, currency: amount.currency, nanos: String(amount.nanos), card }),
      amount,
      card,
      createTime,
    },
    { id: uuidv7(), gateway: gateway.name, fresh: true },
    new Date(createTime.getTime() + LEASE_MS),
  );
  return attempt === undefined ? payment : carryOut(deps, payment, attempt, deadline);
}

async function carryOut(
  deps: ProcessPaymentDeps,
  payment: Payment,
  attempt: Attempt,
  deadline: number,
): Promise<Payment> {
  const { payments, fraud, clock, log } = deps;
  const { riskLevel, riskFactors } = await fraud.check(payment);
  if (riskLevel === "HIGH") {
    log.warn({ paymentId: payment.id, riskFactors }, "payment stopped as fraud");
    return payments.settle(payment, attempt, STOPPED, clock.now());
  }

  const settlement = await charge(deps, payment, attempt, deadline);
  if (settlement === undefined) {
    log.warn({ paymentId: payment.id, attemptId: attempt.id, gateway: attempt.gateway }, "payment outcome unknown");
    return payments.leaveUnknown(payment, attempt, clock.now());
  }
  return payments.settle(payment, attempt, settlement, clock.now());
}

/** Charges the attempt once, and asks until its outcome is proved; undefined when it could not be proved in time. */
async function charge(
  { gateway, log }: ProcessPaymentDeps,
  { id: paymentId, amount, card }: Payment,
  { id: reference, fresh }: Attempt,
  deadline: number,
): Promise<Settlement | undefined> {
  const asked = { currency: amount.currency, minor: toMinor(amount) };
  const timeoutMs = Math.max(MIN_CHARGE_TIMEOUT_MS, Math.min(CHARGE_TIMEOUT_MS, deadline - Date.now() - RESERVE_MS));
  const answer = await gateway.charge({ reference, amount: asked, paymentMethodToken: card.token }, { timeoutMs });
  const decided = answer.kind === "executed" ? fromResult(answer.result, asked) : fromProof(answer, fresh);
  if (decided !== undefined) return decided;

  log.warn({ paymentId, reference, answer }, "gateway did not say what became of a charge");
  const options = { timeoutMs: QUESTION_TIMEOUT_MS };
  const held = await gateway.lookup({ reference }, options);
  if (held.kind === "found" && (held.charge.outcome === "captured" || held.charge.outcome === "declined")) {
    return fromResult(held.charge, asked);
  }
  const voided = await gateway.void({ reference }, options);
  if (voided.kind === "voided") return { ...NOTHING, attemptState: "VOIDED", failureReason: failureOf(answer) };
  return voided.kind === "executed" ? fromResult(voided.result, asked) : undefined;
}

const NOTHING = { status: "FAILED", gatewayTransactionId: "", gatewayResponseCode: "" } as const;
const STOPPED: Settlement = {
  ...NOTHING,
  status: "FRAUD_DETECTED",
  attemptState: "NOT_EXECUTED",
  failureReason: "Payment declined for security reasons",
};

/** What the gateway decided. Undefined where it took another amount than asked: that needs a person, not a guess. */
function fromResult(result: Captured | Declined, asked: GatewayMoney): Settlement | undefined {
  if (result.outcome === "declined") {
    const { reason, responseCode } = result;
    return {
      ...NOTHING,
      attemptState: "DECLINED",
      gatewayResponseCode: responseCode,
      failureReason: `Payment declined: ${reason}`,
    };
  }
  const { captured, transactionId, responseCode } = result;
  if (captured.currency !== asked.currency || captured.minor !== asked.minor) return undefined;
  return {
    status: "COMPLETED",
    attemptState: "CAPTURED",
    gatewayTransactionId: transactionId,
    gatewayResponseCode: responseCode,
    failureReason: "",
  };
}

/** A failure that is proved for every send of the reference: one send that did nothing proves nothing of an earlier one. */
function fromProof(answer: Exclude<ChargeAnswer, { kind: "executed" }>, fresh: boolean): Settlement | undefined {
  if (answer.kind !== "not_executed" || !(fresh || answer.proves === "reference")) return undefined;
  return { ...NOTHING, attemptState: "NOT_EXECUTED", failureReason: failureOf(answer) };
}

function failureOf(answer: ChargeAnswer): string {
  if (answer.kind === "unknown" && answer.cause === "timeout") return "Gateway timeout";
  return answer.kind === "not_executed" || answer.kind === "unknown"
    ? `Gateway error: ${answer.cause}`
    : "Gateway error";
}
