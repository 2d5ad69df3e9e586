import type { Config } from "../config.ts";
import type { Money } from "../money.ts";
import type { FraudCheck, FraudFacts, Verdict } from "./fraud.ts";
import type { Payment } from "./payment.ts";

export type FraudRules = Config["fraud"]["rules"];

/** So many risk factors together are a high risk; fewer are a medium one. */
const HIGH_RISK_FACTORS = 2;

/** Our own rules as a fraud check, for shops that have no other. */
export function fraudRules(rules: FraudRules): FraudCheck {
  return { check: async (payment, facts) => judgeByRules(payment, facts, rules) };
}

/** Judges a payment by its facts alone: the same facts give the same verdict. */
export function judgeByRules(payment: Payment, facts: FraudFacts, rules: FraudRules): Verdict {
  if (rules.blocklist.includes(payment.card.token)) return { riskLevel: "HIGH", riskFactors: ["blocklisted_token"] };

  const found: Readonly<Record<string, boolean>> = {
    velocity: facts.customerPayments > rules.maxCustomerPayments || facts.tokenCustomers > rules.maxTokenCustomers,
    unusual_amount: isUnusual(payment.amount, facts, rules),
    country_mismatch: countriesDiffer(payment.card.billingCountry, facts.shippingCountry),
    new_account_large_amount: isLargeForNewAccount(payment, facts, rules),
  };
  const riskFactors = Object.keys(found).filter((factor) => found[factor]);
  if (riskFactors.length === 0) return { riskLevel: "LOW", riskFactors };
  return { riskLevel: riskFactors.length < HIGH_RISK_FACTORS ? "MEDIUM" : "HIGH", riskFactors };
}

function isUnusual(
  amount: Money,
  { completedPayments, completedAmount }: FraudFacts,
  { unusualFactor, unusualMinPayments }: FraudRules,
): boolean {
  if (completedPayments < unusualMinPayments) return false;
  // Multiplied out, so that no average has to be rounded.
  return amount.nanos * BigInt(completedPayments) >= completedAmount.nanos * BigInt(unusualFactor);
}

function countriesDiffer(billing: string, shipping: string): boolean {
  return billing !== "" && shipping !== "" && billing !== shipping;
}

function isLargeForNewAccount(
  { amount, createTime }: Payment,
  { customerCreateTime }: FraudFacts,
  { newAccountMs, newAccountAmounts }: FraudRules,
): boolean {
  const limit = newAccountAmounts.find(({ currency }) => currency === amount.currency);
  if (limit === undefined || amount.nanos <= limit.nanos) return false;
  return createTime.getTime() - customerCreateTime.getTime() < newAccountMs;
}
