import type { Payment } from "./payment.ts";

/** How risky a payment is. HIGH is not charged. */
export interface Verdict {
  readonly riskLevel: "LOW" | "MEDIUM" | "HIGH";
  readonly riskFactors: readonly string[];
}

/** The port to whoever judges payments before they are charged. It is repeatable: it may be asked again after a crash. */
export interface FraudCheck {
  check(payment: Payment): Promise<Verdict>;
}

/** No rules: every payment is of low risk. */
export const noFraudRules: FraudCheck = { check: async () => ({ riskLevel: "LOW", riskFactors: [] }) };
