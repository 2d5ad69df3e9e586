import type { Logger } from "pino";
import type { Clock } from "../deps.ts";
import { fromMinor, toMinor } from "../money.ts";
import type { Metrics } from "../telemetry/metrics.ts";
import { type JudgeDeps, judge } from "./fraud.ts";
import type { Captured, ChargeAnswer, Declined, Gateway, GatewayMoney } from "./gateways/gateway.ts";
import { type Gateways, gatewayNamed } from "./gateways/gateways.ts";
import { type Attempt, isOpen, type Payment, type Settlement } from "./payment.ts";
import type { PaymentStore, Undertaking } from "./store.ts";

/**
 * How long a payment belongs to the process that carries it out. It is renewed with each step that is written down, and
 * outlasts what lies between two of them: one check for fraud, or one charge and the questions after it. Nothing hangs
 * on it but time: who was away for longer finds that another has gone on, and does not charge.
 */
export const LEASE_MS = 30_000;
/** When the sweep looks first after a payment whose outcome is not known. */
export const FIRST_CHECK_MS = 5_000;
/** After the proof that the primary did nothing, the backup may be charged for so long after the request. */
const FAILOVER_WINDOW_MS = 10 * 60_000;
/** Gateways forget keys after 24 hours; one that is older could charge anew. */
const MAX_KEY_AGE_MS = 23 * 60 * 60_000;
const MAX_CHARGE_TIMEOUT_MS = 8_000;
const MAX_QUESTION_TIMEOUT_MS = 3_000;
const MIN_TIMEOUT_MS = 250;
/** Time kept back from the deadline to record what came out. */
const SETTLE_RESERVE_MS = 1_000;

/** What it takes to end an attempt. */
export interface SettleDeps {
  readonly payments: PaymentStore;
  readonly metrics: Metrics;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface CarryOutDeps extends SettleDeps, JudgeDeps {
  readonly gateways: Gateways;
}

/** What is kept of a payment that could not be checked, where such a payment may not be charged. */
const UNCHECKED = { riskLevel: "UNCHECKED", riskFactors: [] } as const;

/** What became of an attempt. A proof says that it did not execute and never will. */
type Ending =
  | { readonly kind: "executed"; readonly result: Captured | Declined }
  | { readonly kind: "proof"; readonly state: "NOT_EXECUTED" | "VOIDED"; readonly reason: string }
  | { readonly kind: "unknown" };

/**
 * Goes on with a recorded payment that is this process's by its lease: screens it if that was not done, charges it if
 * nothing was sent yet, and otherwise asks what became of what was sent. Only proof that the primary did nothing lets
 * the backup be charged. Without proof either way until the deadline the payment stays PENDING, for the sweep.
 * @param deadline Epoch milliseconds until which somebody waits for the answer.
 */
export async function carryOut(
  deps: CarryOutDeps,
  { payment, attempts }: Undertaking,
  deadline: number,
): Promise<Payment> {
  try {
    const last = attempts.at(-1);
    if (last === undefined) throw new Error(`payment ${payment.id} has no attempt`);
    // The verdict is kept before the first charge is sent: without one nothing was ever sent.
    const untouched = payment.riskLevel === null;
    if (untouched) {
      const stopped = await screen(deps, payment, last, deadline);
      if (stopped !== undefined) return stopped;
    } else if (isStopped(payment)) {
      // It was judged, and then the process died.
      return await stopUncharged(deps, payment, last, payment);
    }
    return await follow(deps, payment, last, untouched, deadline);
  } catch (error) {
    deps.metrics.count("payment.processing_error");
    throw error;
  }
}

/**
 * Asks after the charges that a payment has ended without: one gateway said after all that it had taken the money while
 * what became of another's charge was not known. Nothing is charged, and what such a charge has taken goes back.
 * @returns whether the end of each is known.
 */
export async function askAfterOthers(
  deps: CarryOutDeps,
  { payment, attempts }: Undertaking,
  deadline: number,
): Promise<boolean> {
  let known = true;
  for (const attempt of attempts.filter(isOpen)) {
    const ending = await endingOf(deps, payment, attempt, false, deadline);
    if (ending.kind === "executed") await settleExecuted(deps, payment, attempt, ending.result);
    else if (ending.kind === "proof")
      await deps.payments.settle(nothing(attempt, ending.state, ending.reason, undefined), deps.clock.now());
    else known = false;
  }
  return known;
}

/** Keeps the verdict. A payment of high risk ends by it, and so does one without any, before a gateway is asked. */
async function screen(
  deps: CarryOutDeps,
  payment: Payment,
  attempt: Attempt,
  deadline: number,
): Promise<Payment | undefined> {
  const verdict = (await judge(deps, payment, deadline)) ?? UNCHECKED;
  const leaseExpireTime = new Date(deps.clock.now().getTime() + LEASE_MS);
  // Whose verdict is kept sends the charge, and nobody else ever does: a twin that was faster is carrying it out.
  if (!(await deps.payments.screen({ paymentId: payment.id, ...verdict, leaseExpireTime }))) {
    return (await deps.payments.findUndertaking(payment.id))?.payment ?? payment;
  }
  return isStopped(verdict) ? stopUncharged(deps, payment, attempt, verdict) : undefined;
}

function isStopped({ riskLevel }: Pick<Payment, "riskLevel">): boolean {
  return riskLevel === "HIGH" || riskLevel === "UNCHECKED";
}

/** The reason is for those who may know it; what customers are told says less. */
function stopUncharged(
  deps: SettleDeps,
  payment: Payment,
  attempt: Attempt,
  { riskLevel, riskFactors }: Pick<Payment, "riskLevel" | "riskFactors">,
): Promise<Payment> {
  if (riskLevel === "UNCHECKED")
    return finish(deps, payment, attempt, nothing(attempt, "NOT_EXECUTED", "Fraud check unavailable", "FAILED"));
  deps.log.warn({ paymentId: payment.id, customerId: payment.customerId, riskFactors }, "payment stopped as fraud");
  const reason = `High fraud risk: ${riskFactors.join(", ") || "no factors told"}`;
  return finish(deps, payment, attempt, nothing(attempt, "NOT_EXECUTED", reason, "FRAUD_DETECTED"));
}

/** Follows one attempt to its end, and the backup's after it. */
async function follow(
  deps: CarryOutDeps,
  payment: Payment,
  attempt: Attempt,
  fresh: boolean,
  deadline: number,
): Promise<Payment> {
  const { payments, clock, log } = deps;
  const ending = await endingOf(deps, payment, attempt, fresh, deadline);
  if (ending.kind === "executed") return settleExecuted(deps, payment, attempt, ending.result);
  if (ending.kind === "unknown") {
    log.warn({ paymentId: payment.id, attemptId: attempt.id, gateway: attempt.gateway }, "payment outcome unknown");
    const checkTime = new Date(clock.now().getTime() + FIRST_CHECK_MS);
    return payments.leaveUnknown(payment, attempt, clock.now(), checkTime);
  }

  const backup = await beginBackup(deps, payment, attempt, ending);
  if (backup !== undefined) return follow(deps, payment, backup, true, deadline);
  const reason = attempt.number === 1 ? ending.reason : "Payment processing failed on all gateways";
  return finish(deps, payment, attempt, nothing(attempt, ending.state, reason, "FAILED"));
}

/** Records the proof, and begins the backup's attempt where there is a backup and the payment is still wanted. */
async function beginBackup(
  { payments, gateways, metrics, clock, log }: CarryOutDeps,
  payment: Payment,
  attempt: Attempt,
  { state, reason }: Extract<Ending, { kind: "proof" }>,
): Promise<Attempt | undefined> {
  const now = clock.now();
  const inTime = now.getTime() - payment.createTime.getTime() <= FAILOVER_WINDOW_MS;
  if (attempt.number !== 1 || gateways.backup === undefined || !inTime) return undefined;
  await payments.settle(nothing(attempt, state, reason, undefined), now);
  const leaseExpireTime = new Date(now.getTime() + LEASE_MS);
  const backup = await payments.beginBackup(payment, gateways.backup.name, now, leaseExpireTime);
  if (backup === undefined) return undefined;
  metrics.count("payment.gateway_failover");
  log.warn({ paymentId: payment.id, from: attempt.gateway, to: backup.gateway, reason }, "payment fails over");
  return backup;
}

async function endingOf(
  deps: CarryOutDeps,
  payment: Payment,
  attempt: Attempt,
  fresh: boolean,
  deadline: number,
): Promise<Ending> {
  if (attempt.state === "NOT_EXECUTED" || attempt.state === "VOIDED") {
    return { kind: "proof", state: attempt.state, reason: "Gateway error: not executed" };
  }
  const gateway = gatewayNamed(deps.gateways, attempt.gateway);
  if (gateway === undefined) return { kind: "unknown" };
  const tooOld = deps.clock.now().getTime() - attempt.createTime.getTime() > MAX_KEY_AGE_MS;
  const amount = tooOld ? undefined : gatewayMoneyOf(payment);
  if (!fresh) return ask(gateway, attempt, amount, "Gateway timeout", deadline);
  if (tooOld) return { kind: "proof", state: "NOT_EXECUTED", reason: "Gateway timeout" };
  const answer = await charge(deps, gateway, payment, attempt, deadline);
  if (answer.kind === "executed") return answer;
  if (answer.kind !== "pending")
    deps.metrics.count("payment.gateway_error", { gateway: attempt.gateway, cause: answer.cause });
  // It was the only send there ever was of this attempt, so what is proved of it is proved of the attempt.
  if (answer.kind === "not_executed") return { kind: "proof", state: "NOT_EXECUTED", reason: reasonOf(answer) };
  return ask(gateway, attempt, amount, reasonOf(answer), deadline);
}

async function charge(
  { payments, log }: CarryOutDeps,
  gateway: Gateway,
  { id: paymentId, amount, card }: Payment,
  { id: reference }: Attempt,
  deadline: number,
): Promise<ChargeAnswer> {
  const answer = await gateway.charge(
    {
      reference,
      amount: gatewayMoneyOf({ amount }),
      paymentMethodToken: card.token,
      remember: (gatewayReference) => payments.rememberReference(reference, gatewayReference),
    },
    // Half of the time that is left: the other half is for asking, and for the backup.
    { timeoutMs: timeoutOf(deadline, MAX_CHARGE_TIMEOUT_MS, 0.5) },
  );
  if (answer.kind !== "executed")
    log.warn({ paymentId, reference, gateway: gateway.name, answer }, "gateway did not charge");
  return answer;
}

/** Asks what became of an attempt that may have been sent; what the gateway does not have is made impossible. */
async function ask(
  gateway: Gateway,
  attempt: Attempt,
  amount: GatewayMoney | undefined,
  reason: string,
  deadline: number,
): Promise<Ending> {
  const { id: reference, gatewayReference } = attempt;
  // With the amount a gateway may look its own id up by sending the key again, which is safe while the key is young.
  const named = { reference, ...(gatewayReference !== "" && { gatewayReference }), ...(amount && { amount }) };
  const options = () => ({ timeoutMs: timeoutOf(deadline, MAX_QUESTION_TIMEOUT_MS, 0.4) });
  const held = await gateway.lookup(named, options());
  if (held.kind === "found") {
    const { charge: found } = held;
    if (found.outcome === "captured" || found.outcome === "declined") return { kind: "executed", result: found };
    if (found.outcome === "voided") return { kind: "proof", state: "VOIDED", reason };
  }
  const voided = await gateway.void(named, options());
  if (voided.kind === "executed") return voided;
  return voided.kind === "voided" ? { kind: "proof", state: "VOIDED", reason } : { kind: "unknown" };
}

/** Ends an attempt by its gateway's final word, whether that was an answer or a webhook. */
export async function settleExecuted(
  deps: SettleDeps,
  payment: Payment,
  attempt: Attempt,
  result: Captured | Declined,
): Promise<Payment> {
  if (result.outcome === "declined") {
    const declined = nothing(attempt, "DECLINED", `Payment declined: ${result.reason}`, "FAILED");
    return finish(deps, payment, attempt, { ...declined, responseCode: result.responseCode });
  }
  return finish(deps, payment, attempt, captureOf(attempt, result));
}

/**
 * Notes its gateway's word that an attempt never executed and never will. Whether the backup is charged or the payment
 * fails is left to whoever holds the lease, or to the sweep, which looks after it at once.
 */
export async function settleVoided(
  { payments, clock }: Pick<SettleDeps, "payments" | "clock">,
  attempt: Attempt,
): Promise<void> {
  const now = clock.now();
  await payments.settle(nothing(attempt, "VOIDED", "Gateway timeout", undefined), now);
  await payments.hasten(attempt.paymentId, now);
}

/** How a capture settles its attempt; the database decides whether the money is kept. */
function captureOf(attempt: Attempt, { captured, transactionId, responseCode, untilVoided }: Captured): Settlement {
  return {
    paymentId: attempt.paymentId,
    attemptId: attempt.id,
    verdict: "COMPLETED",
    attemptState: untilVoided === true ? "AUTHORISED" : "CAPTURED",
    captured: moneyOf(captured),
    transactionId,
    responseCode,
    failureReason: "",
  };
}

/** How an attempt that took no money settles. */
function nothing(
  { id: attemptId, paymentId }: Attempt,
  attemptState: "DECLINED" | "NOT_EXECUTED" | "VOIDED",
  failureReason: string,
  verdict: Settlement["verdict"],
): Settlement {
  return {
    ...{ paymentId, attemptId, verdict, attemptState, failureReason },
    captured: undefined,
    transactionId: "",
    responseCode: "",
  };
}

async function finish(
  { payments, metrics, clock, log }: SettleDeps,
  payment: Payment,
  attempt: Attempt,
  settlement: Settlement,
): Promise<Payment> {
  const now = clock.now();
  const { payment: settled, reversing, ended } = await payments.settle(settlement, now);
  if (reversing) log.error({ paymentId: payment.id, attemptId: attempt.id }, "money was taken that goes back");
  // Whoever ends it counts it, so it is counted once, however many say the same of it.
  if (ended) countEnd(metrics, settled, attempt, now);
  return settled;
}

function countEnd(metrics: Metrics, { status, gateway, createTime }: Payment, { number }: Attempt, now: Date): void {
  metrics.recordProcessingTime(now.getTime() - createTime.getTime(), { gateway, status });
  if (status === "FRAUD_DETECTED") metrics.count("payment.fraud_detected");
  if (status === "FAILED") metrics.count("payment.failed", { gateway });
  if (status === "FAILED" && number === 2) metrics.count("payment.backup_gateway_failed", { gateway });
  if (status === "COMPLETED") metrics.count("payment.successful", { gateway });
  if (status === "COMPLETED" && number === 2) metrics.count("payment.backup_gateway_successful", { gateway });
}

/** An amount as gateways have it, as ours. */
export function moneyOf({ currency, minor }: GatewayMoney) {
  return fromMinor(currency, minor);
}

function gatewayMoneyOf({ amount }: Pick<Payment, "amount">): GatewayMoney {
  return { currency: amount.currency, minor: toMinor(amount) };
}

/** Time for one call of a gateway, in milliseconds: a share of what is left until the deadline, within bounds. */
export function timeoutOf(deadline: number, maxMs: number, share: number): number {
  const leftMs = (deadline - Date.now() - SETTLE_RESERVE_MS) * share;
  return Math.round(Math.max(MIN_TIMEOUT_MS, Math.min(maxMs, leftMs)));
}

function reasonOf(answer: Exclude<ChargeAnswer, { kind: "executed" }>): string {
  if (answer.kind === "pending" || answer.cause === "timeout") return "Gateway timeout";
  return `Gateway error: ${answer.cause.replaceAll("_", " ")}`;
}
