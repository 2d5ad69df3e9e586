/** Amounts in the minor units that a vendor counts a currency in, where those differ from ISO 4217. */
import { minorDigits } from "../../money.ts";
import type { GatewayMoney } from "./gateway.ts";

/** The decimals of a vendor's minor unit, by currency, for the currencies where it is not ISO 4217's. */
export type DeviatingDigits = ReadonlyMap<string, number>;

/** The amount in the vendor's units. Undefined where it is not a positive whole number of them: nothing is ever rounded. */
export function toVendorMinor({ currency, minor }: GatewayMoney, deviating: DeviatingDigits): number | undefined {
  const iso = minorDigits(currency);
  if (iso === undefined) return undefined;
  const scaled = rescale(minor, iso, deviating.get(currency) ?? iso);
  if (scaled === undefined || scaled <= 0n || scaled > BigInt(Number.MAX_SAFE_INTEGER)) return undefined;
  return Number(scaled);
}

/** A vendor's amount as money. Undefined where it is not a whole number of ISO 4217's units. */
export function fromVendorMinor(
  currency: string,
  vendorMinor: number,
  deviating: DeviatingDigits,
): GatewayMoney | undefined {
  const code = currency.toUpperCase();
  const iso = minorDigits(code);
  if (iso === undefined || !Number.isSafeInteger(vendorMinor)) return undefined;
  const minor = rescale(BigInt(vendorMinor), deviating.get(code) ?? iso, iso);
  return minor === undefined ? undefined : { currency: code, minor };
}

function rescale(minor: bigint, fromDigits: number, toDigits: number): bigint | undefined {
  if (toDigits >= fromDigits) return minor * 10n ** BigInt(toDigits - fromDigits);
  const divisor = 10n ** BigInt(fromDigits - toDigits);
  return minor % divisor === 0n ? minor / divisor : undefined;
}
