import type { Logger } from "pino";
import type { Clock } from "../deps.ts";
import { toMinor } from "../money.ts";
import type { Metrics } from "../telemetry/metrics.ts";
import { timeoutOf } from "./carry-out.ts";
import type { Gateway, RefundCompleted, RefundFailed } from "./gateways/gateway.ts";
import { type Gateways, gatewayNamed } from "./gateways/gateways.ts";
import type { Refund, RefundUndertaking } from "./refund.ts";
import type { RefundStore } from "./refund-store.ts";

/** When the sweep looks first after a refund whose outcome is not known. */
export const FIRST_REFUND_CHECK_MS = 5_000;
/**
 * For so long a refund belongs to the process that carries it out: longer than the calls of its gateway together. Were it
 * overrun, the same key would be sent twice, and the money would still go back once.
 */
export const REFUND_LEASE_MS = 30_000;
/** Gateways forget keys after 24 hours; one that is older could refund anew. */
const MAX_KEY_AGE_MS = 23 * 60 * 60_000;
const MAX_REFUND_TIMEOUT_MS = 8_000;
const MAX_QUESTION_TIMEOUT_MS = 3_000;

export interface SettleRefundDeps {
  readonly refunds: RefundStore;
  readonly metrics: Metrics;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface CarryOutRefundDeps extends SettleRefundDeps {
  readonly gateways: Gateways;
}

/** What the gateway says of a refund. */
type Word =
  | { readonly kind: "executed"; readonly result: RefundCompleted | RefundFailed }
  /** It is the gateway's to finish (`transactionId`, where it gave one), or nobody knows. */
  | { readonly kind: "pending"; readonly transactionId: string }
  | { readonly kind: "unknown" };

const UNKNOWN: Word = { kind: "unknown" };

/**
 * Sends a refund that has just been recorded, or finds out what became of one that may have been sent. Whatever is sent
 * has the refund's id as its key, so that however often it is sent, the money goes back once. Without the gateway's final
 * word the refund stays PENDING, for the sweep or a webhook.
 * @param fresh It was never sent.
 * @param deadline Epoch milliseconds until which somebody waits for the answer.
 */
export async function carryOutRefund(
  deps: CarryOutRefundDeps,
  undertaking: RefundUndertaking,
  fresh: boolean,
  deadline: number,
): Promise<void> {
  const { refund, gateway: name } = undertaking;
  const { refunds, gateways, clock, log, metrics } = deps;
  try {
    const gateway = gatewayNamed(gateways, name);
    const word = gateway === undefined ? UNKNOWN : await wordOf(deps, gateway, undertaking, fresh, deadline);
    if (word.kind === "executed") return await settleRefund(deps, refund, word.result);
    if (word.kind === "unknown") log.warn({ refundId: refund.id, gateway: name }, "refund outcome unknown");
    const transactionId = word.kind === "pending" ? word.transactionId : "";
    // The sweep has said already when it looks again.
    const checkTime = fresh ? new Date(clock.now().getTime() + FIRST_REFUND_CHECK_MS) : undefined;
    await refunds.leavePending(refund.id, transactionId, checkTime);
  } catch (error) {
    metrics.count("refund.processing_error", { gateway: name });
    throw error;
  }
}

/** Ends a refund by its gateway's final word, whether that was an answer or a webhook. Told again it does nothing. */
export async function settleRefund(
  { refunds, metrics, clock, log }: SettleRefundDeps,
  { id: refundId, paymentId, createdBy, amount }: Pick<Refund, "id" | "paymentId" | "createdBy" | "amount">,
  result: RefundCompleted | RefundFailed,
): Promise<void> {
  const about = { refundId, paymentId };
  const completed = result.outcome === "completed";
  const settled = await refunds.settle(
    completed
      ? { refundId, verdict: "COMPLETED", transactionId: result.transactionId, failureReason: "" }
      : { refundId, verdict: "FAILED", transactionId: "", failureReason: `Refund failed: ${result.reason}` },
    clock.now(),
  );
  if (settled?.changed !== true) {
    // News may overtake each other, so this is most often a bank that sent the money back after all.
    if (completed && settled?.was === "FAILED") log.warn(about, "refund that failed is said to have completed");
    return;
  }
  metrics.count(completed ? "refund.successful" : "refund.failed");
  if (!completed) {
    // What the service wanted to give back, or a bank has sent back, is nobody else's to notice.
    const unnoticed = createdBy === null || settled.was === "COMPLETED" || settled.owed;
    log[unnoticed ? "error" : "warn"]({ ...about, was: settled.was, reason: result.reason }, "refund failed");
  } else if (result.refunded.currency !== amount.currency || result.refunded.minor !== toMinor(amount)) {
    log.error(
      { ...about, refunded: String(result.refunded.minor) },
      "another amount was refunded: a person has to look",
    );
  }
}

async function wordOf(
  deps: CarryOutRefundDeps,
  gateway: Gateway,
  undertaking: RefundUndertaking,
  fresh: boolean,
  deadline: number,
): Promise<Word> {
  if (fresh) {
    const word = await send(deps, gateway, undertaking, fresh, deadline);
    return word.kind === "unknown" ? ask(gateway, undertaking, deadline) : word;
  }
  const word = await ask(gateway, undertaking, deadline);
  const { createTime, gatewayTransactionId } = undertaking.refund;
  const ageMs = deps.clock.now().getTime() - createTime.getTime();
  // What the gateway has taken on it will finish, and nothing is gained by sending it again.
  if (word.kind !== "unknown" || gatewayTransactionId !== "" || ageMs > MAX_KEY_AGE_MS) return word;
  return send(deps, gateway, undertaking, fresh, deadline);
}

async function send(
  { log }: CarryOutRefundDeps,
  gateway: Gateway,
  { refund, attemptId: reference, transactionId }: RefundUndertaking,
  fresh: boolean,
  deadline: number,
): Promise<Word> {
  const { id: key, amount } = refund;
  const answer = await gateway.refund(
    { key, reference, transactionId, amount: { currency: amount.currency, minor: toMinor(amount) } },
    { timeoutMs: timeoutOf(deadline, MAX_REFUND_TIMEOUT_MS, 0.5) },
  );
  if (answer.kind === "executed") return answer;
  log.warn({ refundId: key, gateway: gateway.name, answer }, "gateway did not refund yet");
  if (answer.kind === "pending") return { kind: "pending", transactionId: answer.transactionId ?? "" };
  // It was the only send there ever was, and the same request would be refused again.
  if (answer.kind === "not_executed" && answer.cause === "rejected" && fresh) {
    const result = { outcome: "failed", reason: "rejected by the gateway", responseCode: "" } as const;
    return { kind: "executed", result };
  }
  return UNKNOWN;
}

async function ask(
  gateway: Gateway,
  { refund, attemptId: reference, transactionId }: RefundUndertaking,
  deadline: number,
): Promise<Word> {
  const { id: key, gatewayTransactionId } = refund;
  const answer = await gateway.lookupRefund(
    {
      ...{ key, reference, transactionId },
      ...(gatewayTransactionId !== "" && { refundTransactionId: gatewayTransactionId }),
    },
    { timeoutMs: timeoutOf(deadline, MAX_QUESTION_TIMEOUT_MS, 0.4) },
  );
  if (answer.kind !== "found") return UNKNOWN;
  const { result } = answer;
  return result.outcome === "pending" ? { kind: "pending", transactionId: "" } : { kind: "executed", result };
}
