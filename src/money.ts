import currencyCodes from "currency-codes";

/**
 * An exact amount of money. `nanos` counts billionths of the currency's main unit (10.99 USD is 10_990_000_000n), the
 * resolution of google.type.Money, so that no conversion at any border of the service can round.
 */
export interface Money {
  /** ISO 4217, upper case. */
  readonly currency: string;
  readonly nanos: bigint;
}

const NANOS_PER_UNIT = 1_000_000_000n;
const NANO_DIGITS = 9;
/** The database keeps three decimals (numeric(11,3)); ISO 4217's few currencies with four cannot be used. */
const MAX_MINOR_DIGITS = 3;

/** 99,999,999.99, the largest price and the largest order total in any currency. */
export const MAX_AMOUNT_NANOS = 99_999_999_990_000_000n;

const minorDigitsOf = new Map<string, number>(
  currencyCodes.data.filter(({ digits }) => digits <= MAX_MINOR_DIGITS).map(({ code, digits }) => [code, digits]),
);

/** Decimals of the currency's minor unit by ISO 4217 (USD 2, JPY 0, KWD 3), or undefined for a code that is none. */
export function minorDigits(currency: string): number | undefined {
  return minorDigitsOf.get(currency);
}

/** Whether the amount is a whole number of its currency's minor units. False for an unknown currency. */
export function isWholeMinor({ currency, nanos }: Money): boolean {
  const digits = minorDigits(currency);
  return digits !== undefined && nanos % 10n ** BigInt(NANO_DIGITS - digits) === 0n;
}

/**
 * The amount in minor units (10.99 USD: 1099n).
 * @throws RangeError when it is not a whole number of them, or the currency is unknown.
 */
export function toMinor(money: Money): bigint {
  const digits = minorDigits(money.currency);
  if (digits === undefined || !isWholeMinor(money)) {
    throw new RangeError(`${toDecimal(money)} ${money.currency} is not a whole number of minor units`);
  }
  return money.nanos / 10n ** BigInt(NANO_DIGITS - digits);
}

/** @throws RangeError when the currency is unknown. */
export function fromMinor(currency: string, minor: bigint): Money {
  const digits = minorDigits(currency);
  if (digits === undefined) throw new RangeError(`${currency} is not a currency`);
  return { currency, nanos: minor * 10n ** BigInt(NANO_DIGITS - digits) };
}

/** A plain decimal with as many digits as it needs: "10.99", "-0.5", "7". The form the database takes. */
export function toDecimal({ nanos }: Money): string {
  const absolute = nanos < 0n ? -nanos : nanos;
  const fraction = (absolute % NANOS_PER_UNIT).toString().padStart(NANO_DIGITS, "0").replace(/0+$/, "");
  return `${nanos < 0n ? "-" : ""}${absolute / NANOS_PER_UNIT}${fraction === "" ? "" : `.${fraction}`}`;
}

/** @throws RangeError when `decimal` is not a plain decimal of at most nine fractional digits. */
export function fromDecimal(currency: string, decimal: string): Money {
  const match = /^(-?)(\d{1,18})(?:\.(\d{1,9}))?$/.exec(decimal);
  if (match === null) throw new RangeError(`"${decimal}" is not a decimal amount`);
  const [, sign, units = "0", fraction = ""] = match;
  const nanos = BigInt(units) * NANOS_PER_UNIT + BigInt(fraction.padEnd(NANO_DIGITS, "0"));
  return { currency, nanos: sign === "-" ? -nanos : nanos };
}

/** As a person writes it, with the currency's own decimals: "10.90 USD", "500 JPY". */
export function formatMoney(money: Money): string {
  const [units = "0", fraction = ""] = toDecimal(money).split(".");
  const padded = fraction.padEnd(minorDigits(money.currency) ?? 0, "0");
  return `${units}${padded === "" ? "" : `.${padded}`} ${money.currency}`;
}

export function multiply({ currency, nanos }: Money, factor: number): Money {
  return { currency, nanos: nanos * BigInt(factor) };
}

/** @throws RangeError when the currencies differ. */
export function add(a: Money, b: Money): Money {
  if (a.currency !== b.currency) throw new RangeError(`cannot add ${b.currency} to ${a.currency}`);
  return { currency: a.currency, nanos: a.nanos + b.nanos };
}

export function equals(a: Money, b: Money): boolean {
  return a.currency === b.currency && a.nanos === b.nanos;
}

/** The fields of google.type.Money, which is units of the currency and billionths of one, with the same sign. */
interface MoneyMessage {
  readonly currencyCode: string;
  readonly units: bigint;
  readonly nanos: number;
}

export function toMoneyMessage({ currency, nanos }: Money): MoneyMessage {
  return { currencyCode: currency, units: nanos / NANOS_PER_UNIT, nanos: Number(nanos % NANOS_PER_UNIT) };
}

export function fromMoneyMessage({ currencyCode, units, nanos }: MoneyMessage): Money {
  return { currency: currencyCode, nanos: units * NANOS_PER_UNIT + BigInt(nanos) };
}

/** Whether `nanos` is in range and both parts have one sign, as google.type.Money demands. */
export function isCanonicalMoney({ units, nanos }: MoneyMessage): boolean {
  return Math.abs(nanos) < Number(NANOS_PER_UNIT) && (units === 0n || nanos === 0 || units > 0n === nanos > 0);
}

/**
 * The amount divided by `divisor`, rounded half-even to the currency's minor unit: an average that does not drift.
 * @throws RangeError when the divisor is not positive or the currency is unknown.
 */
export function divideHalfEven({ currency, nanos }: Money, divisor: bigint): Money {
  const digits = minorDigits(currency);
  if (digits === undefined || divisor <= 0n) throw new RangeError(`cannot divide ${currency} by ${divisor}`);
  const unit = 10n ** BigInt(NANO_DIGITS - digits) * divisor;
  const floor = nanos / unit - (nanos < 0n && nanos % unit !== 0n ? 1n : 0n);
  const twice = (nanos - floor * unit) * 2n;
  const up = twice > unit || (twice === unit && floor % 2n !== 0n);
  return fromMinor(currency, up ? floor + 1n : floor);
}
