import type { FieldViolation } from "../errors.ts";
import { formatMoney, fromMoneyMessage, isCanonicalMoney, isWholeMinor, type Money, minorDigits } from "../money.ts";
import type { GatewayName } from "./gateways/gateway.ts";

export type RefundStatus = "PENDING" | "COMPLETED" | "FAILED";

/** Money given back. */
export interface Refund {
  readonly id: string;
  readonly paymentId: string;
  /** Whose payment it is. */
  readonly customerId: string;
  readonly orderId: string | null;
  /** Who asked for it; null: the service itself. */
  readonly createdBy: string | null;
  readonly amount: Money;
  readonly status: RefundStatus;
  readonly reason: string;
  /** Empty while it is PENDING: the gateway has not said yet that it took it on. */
  readonly gatewayTransactionId: string;
  readonly failureReason: string;
  readonly createTime: Date;
  readonly processTime: Date | null;
}

/** A refund with the charge that it takes the money from. */
export interface RefundUndertaking {
  readonly refund: Refund;
  readonly attemptId: string;
  readonly gateway: GatewayName;
  /** The gateway's id of that charge. */
  readonly transactionId: string;
}

/** A refund as somebody asks for it, or as the service itself wants it: then of all that is left. */
export interface NewRefund {
  readonly id: string;
  readonly paymentId: string;
  readonly reason: string;
  readonly createTime: Date;
  /** Until then it belongs to whoever recorded it. */
  readonly leaseExpireTime: Date;
  /** When the sweep looks after it, if it is still PENDING then. */
  readonly checkTime: Date;
  /** Undefined: the service itself. */
  readonly asked:
    | {
        /** Whose payments may be refunded; undefined: everybody's. */
        readonly ownerId: string | undefined;
        /** Who calls: `requestId` is unique for each caller. */
        readonly createdBy: string;
        readonly requestId: string;
        readonly requestHash: Buffer;
        readonly amount: Money;
        /** Payments that were completed before then cannot be refunded any more. */
        readonly processedSince: Date;
      }
    | undefined;
}

/** What of a payment is left to be refunded, and where the rest is. */
export interface RefundFigures {
  readonly paid: Money;
  readonly refunded: Money;
  readonly refunding: Money;
  /** Of open and lost disputes. */
  readonly disputed: Money;
}

export type DisputeStatus = "OPEN" | "WON" | "LOST";

/** A customer's claim at their bank. */
export interface Dispute {
  readonly id: string;
  readonly paymentId: string;
  readonly amount: Money;
  readonly status: DisputeStatus;
  readonly reason: string;
  readonly createTime: Date;
  readonly resolveTime: Date | null;
}

/** Never negative: what a dispute claims may have been refunded already. */
export function remainingOf({ paid, refunded, refunding, disputed }: RefundFigures): Money {
  const nanos = paid.nanos - refunded.nanos - refunding.nanos - disputed.nanos;
  return { currency: paid.currency, nanos: nanos > 0n ? nanos : 0n };
}

type MoneyMessage = Parameters<typeof fromMoneyMessage>[0];

/** Faults of an amount to refund that show without its payment: positive, in whole minor units of a currency. */
export function refundAmountFaults(amount: MoneyMessage | undefined): FieldViolation[] {
  const fault = (reason: string, description: string) => [{ field: "amount", reason, description }];
  // An absent amount is the schema's fault to find.
  if (amount === undefined) return [];
  if (!isCanonicalMoney(amount))
    return fault("AMOUNT_MALFORMED", "Amount must have units and nanos of one sign, nanos below 1e9");
  const money = fromMoneyMessage(amount);
  if (money.nanos <= 0n) return fault("AMOUNT_NOT_POSITIVE", "Amount must be positive");
  const digits = minorDigits(money.currency);
  if (digits === undefined)
    return fault("CURRENCY_UNSUPPORTED", `${JSON.stringify(money.currency.slice(0, 10))} is not a currency`);
  if (!isWholeMinor(money))
    return fault("AMOUNT_TOO_FINE", `Amount ${formatMoney(money)} must have at most ${digits} decimals`);
  return [];
}
