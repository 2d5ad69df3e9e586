import type { FieldViolation } from "../errors.ts";
import {
  formatMoney,
  fromMoneyMessage,
  isCanonicalMoney,
  isWholeMinor,
  MAX_AMOUNT_NANOS,
  type Money,
  minorDigits,
} from "../money.ts";

/** Something that can be ordered. */
export interface Product {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly price: Money;
  readonly stockQuantity: number;
  readonly active: boolean;
  readonly createTime: Date;
  readonly updateTime: Date;
  readonly version: number;
}

/** An etag is the version of a row; one that is no version matches none. */
export function versionOf(etag: string): number | undefined {
  if (etag === "") return undefined;
  return /^\d{1,9}$/.test(etag) ? Number(etag) : -1;
}

/** Faults of a price: 0.00 to 99,999,999.99, in whole minor units of a currency that exists. */
export function priceFaults(
  field: string,
  price: Parameters<typeof fromMoneyMessage>[0] | undefined,
): FieldViolation[] {
  const fault = (reason: string, description: string) => [{ field, reason, description }];
  if (price === undefined) return fault("REQUIRED", "Price is required");
  if (minorDigits(price.currencyCode) === undefined) {
    return fault(
      "CURRENCY_UNKNOWN",
      `Price must have an ISO 4217 currency code, not "${price.currencyCode.slice(0, 10)}"`,
    );
  }
  if (!isCanonicalMoney(price))
    return fault("AMOUNT_MALFORMED", "Price must have units and nanos of one sign, nanos below 1e9");
  const money = fromMoneyMessage(price);
  if (money.nanos < 0n) return fault("AMOUNT_NEGATIVE", "Price must not be negative");
  if (money.nanos > MAX_AMOUNT_NANOS) return fault("AMOUNT_TOO_LARGE", "Price must be at most 99,999,999.99");
  if (!isWholeMinor(money)) {
    const digits = minorDigits(money.currency);
    return fault("AMOUNT_TOO_FINE", `Price ${formatMoney(money)} must have at most ${digits} decimals`);
  }
  return [];
}
