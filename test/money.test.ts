import { expect } from "chai";
import fc from "fast-check";
import {
  add,
  equals,
  formatMoney,
  fromDecimal,
  fromMinor,
  fromMoneyMessage,
  isCanonicalMoney,
  isWholeMinor,
  minorDigits,
  multiply,
  toDecimal,
  toMinor,
  toMoneyMessage,
} from "../src/money.ts";

const usd = (amount: string) => fromDecimal("USD", amount);
const anyMoney = fc.record({
  currency: fc.constantFrom("USD", "EUR", "JPY", "KWD"),
  nanos: fc.bigInt({ min: -(10n ** 20n), max: 10n ** 20n }),
});

describe("money", () => {
  it("adds and multiplies exactly: 10.99 × 2 + 25.50 is 47.48", () => {
    const total = add(multiply(usd("10.99"), 2), usd("25.50"));
    expect(toDecimal(total)).to.equal("47.48");
  });

  it("comes back unchanged from a decimal and from google.type.Money, whatever the amount", () => {
    fc.assert(
      fc.property(anyMoney, (money) => {
        expect(fromDecimal(money.currency, toDecimal(money))).to.deep.equal(money);
        expect(fromMoneyMessage(toMoneyMessage(money))).to.deep.equal(money);
        expect(isCanonicalMoney(toMoneyMessage(money))).to.equal(true);
      }),
    );
  });

  it("knows each currency's own decimals", () => {
    expect(["USD", "JPY", "KWD", "XYZ"].map(minorDigits)).to.deep.equal([2, 0, 3, undefined]);
  });

  it("turns whole minor units into an amount and back", () => {
    expect(toMinor(usd("10.99"))).to.equal(1099n);
    expect(toMinor(fromDecimal("JPY", "500"))).to.equal(500n);
    expect(fromMinor("KWD", 1234n)).to.deep.equal(fromDecimal("KWD", "1.234"));
  });

  it("refuses to round: a finer amount is no whole number of minor units", () => {
    expect(isWholeMinor(usd("0.001"))).to.equal(false);
    expect(isWholeMinor(fromDecimal("JPY", "0.5"))).to.equal(false);
    expect(() => toMinor(usd("0.001"))).to.throw(RangeError, "0.001 USD is not a whole number of minor units");
  });

  it("refuses texts that are no plain decimals", () => {
    for (const wrong of ["", ".5", "1.", "1e3", "0x10", "1,000", " 1", "1.0000000001", "--1"]) {
      expect(() => usd(wrong), JSON.stringify(wrong)).to.throw(RangeError);
    }
  });

  it("refuses units and nanos of different signs, and nanos of a whole unit or more", () => {
    expect(isCanonicalMoney({ currencyCode: "USD", units: 1n, nanos: -1 })).to.equal(false);
    expect(isCanonicalMoney({ currencyCode: "USD", units: 0n, nanos: 1_000_000_000 })).to.equal(false);
    expect(isCanonicalMoney({ currencyCode: "USD", units: 0n, nanos: -5 })).to.equal(true);
  });

  it("never adds two currencies", () => {
    expect(() => add(usd("1"), fromDecimal("EUR", "1"))).to.throw(RangeError, "cannot add EUR to USD");
    expect(equals(usd("1"), fromDecimal("EUR", "1"))).to.equal(false);
  });

  it("is written with the currency's decimals", () => {
    expect([usd("10.9"), fromDecimal("JPY", "500"), usd("-0.5")].map(formatMoney)).to.deep.equal([
      "10.90 USD",
      "500 JPY",
      "-0.50 USD",
    ]);
  });
});
