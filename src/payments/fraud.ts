import type { Logger } from "pino";
import type { Config } from "../config.ts";
import type { Money } from "../money.ts";
import type { Metrics } from "../telemetry/metrics.ts";
import { within } from "../time-limit.ts";
import type { FraudFactStore } from "./fraud-fact-store.ts";
import type { Payment, RiskLevel } from "./payment.ts";

/** A check that is begun late still gets so long. */
const MIN_TIMEOUT_MS = 100;
/** Of the time that a caller still has; the rest is for charging. */
const SHARE = 0.5;

/** The factor of a payment that is charged although the check failed. No verdict of a check has it. */
export const CHECK_UNAVAILABLE = "check_unavailable";

/** How risky a payment is. HIGH is not charged. */
export interface Verdict {
  readonly riskLevel: RiskLevel;
  /** Short codes, such as "velocity". */
  readonly riskFactors: readonly string[];
}

/** What is known beside a payment itself. */
export interface FraudFacts {
  /** ISO 3166-1 alpha-2. Empty: nothing is shipped, or no address is known. */
  readonly shippingCountry: string;
  readonly customerCreateTime: Date;
  /** Payments of the customer within the window, this one included; counted no further than just above the limit. */
  readonly customerPayments: number;
  /** Customers of the card token within the window, counted likewise. */
  readonly tokenCustomers: number;
  /** The customer's completed payments in this currency: how many, and their sum. */
  readonly completedPayments: number;
  readonly completedAmount: Money;
}

/**
 * The port to whoever judges payments before they are charged. It is repeatable: it may be asked again after a crash.
 * It rejects when it cannot tell; `signal` is aborted when nobody waits for it any more.
 */
export interface FraudCheck {
  check(payment: Payment, facts: FraudFacts, signal: AbortSignal): Promise<Verdict>;
}

export interface JudgeDeps {
  readonly fraud: FraudCheck;
  readonly fraudFacts: FraudFactStore;
  readonly metrics: Metrics;
  readonly log: Logger;
  readonly config: { readonly fraud: Pick<Config["fraud"], "timeoutMs" | "unavailable"> };
}

/**
 * Has a payment judged within a bounded time. A check that fails or is slow follows FRAUD_UNAVAILABLE: low risk, or no
 * verdict at all, without which the payment may not be charged.
 * @param deadline Epoch milliseconds until which somebody waits for the payment.
 */
export async function judge(deps: JudgeDeps, payment: Payment, deadline: number): Promise<Verdict | undefined> {
  const { fraud, fraudFacts, metrics, log, config } = deps;
  // A database that is away is no failed check: the payment stays PENDING, and is judged when it is back.
  const facts = await fraudFacts.find(payment);
  const timeoutMs = Math.max(MIN_TIMEOUT_MS, Math.min(config.fraud.timeoutMs, (deadline - Date.now()) * SHARE));
  const waiting = new AbortController();
  try {
    return await within(fraud.check(payment, facts, waiting.signal), timeoutMs);
  } catch (error) {
    metrics.count("payment.fraud_check_failed");
    const { unavailable } = config.fraud;
    log.error({ err: error, paymentId: payment.id, unavailable }, "fraud check failed");
    return unavailable === "allow" ? { riskLevel: "LOW", riskFactors: [CHECK_UNAVAILABLE] } : undefined;
  } finally {
    waiting.abort();
  }
}
