import type { FieldViolation } from "../errors.ts";
import { formatMoney, fromMoneyMessage, isCanonicalMoney, isWholeMinor, type Money, minorDigits } from "../money.ts";
import type { GatewayName } from "./gateways/gateway.ts";

export type PaymentStatus = "PENDING" | "COMPLETED" | "FAILED" | "FRAUD_DETECTED";

/** What to pay with: the gateway's token for a card, never the card's number. */
export interface Card {
  readonly token: string;
  /** ISO 3166-1 alpha-2. Empty: not known. */
  readonly billingCountry: string;
}

export type RiskLevel = "LOW" | "MEDIUM" | "HIGH";

/** What is kept of a payment's screening. UNCHECKED: there was no verdict, and without one it may not be charged. */
export type Screened = RiskLevel | "UNCHECKED";

export interface Payment {
  readonly id: string;
  readonly customerId: string;
  readonly orderId: string | null;
  readonly amount: Money;
  readonly status: PaymentStatus;
  readonly card: Card;
  /** Null: not screened yet, so never sent to any gateway. */
  readonly riskLevel: Screened | null;
  readonly riskFactors: readonly string[];
  /** Empty: no gateway was asked yet. */
  readonly gateway: GatewayName | "";
  readonly gatewayTransactionId: string;
  readonly gatewayResponseCode: string;
  readonly failureReason: string;
  readonly refundedAmount: Money;
  readonly createTime: Date;
  readonly processTime: Date | null;
}

/** A payment as it is asked for. */
export interface NewPayment {
  readonly id: string;
  readonly customerId: string;
  readonly orderId: string | null;
  /** Who calls: `requestId` is unique for each caller. */
  readonly createdBy: string;
  readonly requestId: string;
  readonly requestHash: Buffer;
  readonly amount: Money;
  readonly card: Card;
  readonly createTime: Date;
  /** Until then it belongs to whoever recorded it. */
  readonly leaseExpireTime: Date;
  /** When the sweep looks after it, if it is still PENDING then. */
  readonly checkTime: Date;
  readonly attemptId: string;
  readonly gateway: GatewayName;
}

export type AttemptState =
  | "CREATED"
  | "UNKNOWN"
  | "CAPTURED"
  | "DECLINED"
  | "NOT_EXECUTED"
  | "VOIDED"
  | "REVERSING"
  | "REVERSED";

/** Whether it is not known yet what became of a charge that may have been sent. */
export function isOpen({ state }: { readonly state: AttemptState }): boolean {
  return state === "CREATED" || state === "UNKNOWN";
}

/** One charge that a gateway is asked for; its id is the idempotency key. */
export interface Attempt {
  readonly id: string;
  readonly paymentId: string;
  /** 1: the primary gateway's, 2: the backup's. */
  readonly number: 1 | 2;
  readonly gateway: GatewayName;
  /** The gateway's own id of the attempt, where its void needs it. Empty: none. */
  readonly gatewayReference: string;
  readonly state: AttemptState;
  readonly createTime: Date;
}

/** What an attempt came to, and how its payment ends by it. */
export interface Settlement {
  readonly paymentId: string;
  readonly attemptId: string;
  /** Undefined: the payment does not end by this; another attempt may follow. */
  readonly verdict: Exclude<PaymentStatus, "PENDING"> | undefined;
  /** AUTHORISED: captured, unless its gateway has said that it was voided. */
  readonly attemptState: "CAPTURED" | "AUTHORISED" | "DECLINED" | "NOT_EXECUTED" | "VOIDED";
  readonly captured: Money | undefined;
  readonly transactionId: string;
  readonly responseCode: string;
  readonly failureReason: string;
}

export interface PaymentLimits {
  readonly currencies: readonly string[];
  readonly maxAmounts: readonly Money[];
}

type MoneyMessage = Parameters<typeof fromMoneyMessage>[0];

/** Faults of an amount to pay: positive, at most the limit, in whole minor units of a supported currency. */
export function amountFaults(
  amount: MoneyMessage | undefined,
  { currencies, maxAmounts }: PaymentLimits,
): FieldViolation[] {
  const fault = (reason: string, description: string) => [{ field: "amount", reason, description }];
  // An absent amount is the schema's fault to find.
  if (amount === undefined) return [];
  if (!isCanonicalMoney(amount))
    return fault("AMOUNT_MALFORMED", "Amount must have units and nanos of one sign, nanos below 1e9");
  const money = fromMoneyMessage(amount);
  if (money.nanos <= 0n) return fault("AMOUNT_NOT_POSITIVE", "Amount must be positive");
  if (!currencies.includes(money.currency)) {
    const description = `Currency ${JSON.stringify(money.currency.slice(0, 10))} is not supported; use ${currencies.join(", ")}`;
    return fault("CURRENCY_UNSUPPORTED", description);
  }
  if (!isWholeMinor(money)) {
    return fault(
      "AMOUNT_TOO_FINE",
      `Amount ${formatMoney(money)} must have at most ${minorDigits(money.currency)} decimals`,
    );
  }
  const max = maxAmounts.find(({ currency }) => currency === money.currency);
  if (max !== undefined && money.nanos > max.nanos) {
    return fault("AMOUNT_TOO_LARGE", `Amount ${formatMoney(money)} is above the limit of ${formatMoney(max)}`);
  }
  return [];
}

/** Faults of a card token. What looks like a card number is refused, so that none is ever stored or sent on. */
export function cardFaults(card: { readonly token: string } | undefined): FieldViolation[] {
  const fault = (field: string, reason: string, description: string) => [{ field, reason, description }];
  if (card === undefined || card.token === "") {
    return fault("payment_method", "PAYMENT_METHOD_REQUIRED", "A payment method with a card token is required");
  }
  if (looksLikeCardNumber(card.token)) {
    const description = "Card token looks like a card number; send the token that the gateway gave for the card";
    return fault("payment_method.card.token", "CARD_NUMBER_REFUSED", description);
  }
  return [];
}

function looksLikeCardNumber(token: string): boolean {
  return /^\d{12,19}$/.test(token.replace(/[\s.-]/g, ""));
}
