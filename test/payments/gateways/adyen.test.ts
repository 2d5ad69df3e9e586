import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { createAdyenGateway } from "../../../src/payments/gateways/adyen.ts";
import type { ChargeRequest, Gateway, GatewayEvent, WebhookVerdict } from "../../../src/payments/gateways/gateway.ts";
import { type AdyenItem, AdyenServer, adyenWebhook } from "../../support/adyen-server.ts";
import { timeOutWhen } from "../../support/vendor-server.ts";

const apiKey = "AQE_test_key";
const hmacKey = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
const settings = { apiKey, merchantAccount: "TestMerchant", returnUrl: "https://shop.example" };
const patient = { timeoutMs: 5_000 };
/** Nothing listens here. */
const nowhere = "http://127.0.0.1:1";
const internalError = { status: 500, body: { status: 500, errorCode: "905", errorType: "internal" } };

describe("The Adyen gateway", () => {
  let adyen: AdyenServer;
  let gateway: Gateway;

  beforeEach(async () => {
    adyen = new AdyenServer(apiKey);
    await adyen.start();
    gateway = createAdyenGateway({ ...settings, baseUrl: adyen.url, hmacKey });
  });

  afterEach(async () => {
    gateway.close();
    await adyen.close();
  });

  function chargeOf(card: string, minor = 1_099n, currency = "EUR", reference = "a1"): ChargeRequest {
    return { reference, amount: { currency, minor }, paymentMethodToken: `shopper-1/${card}` };
  }

  function eur(minor: bigint) {
    return { currency: "EUR", minor };
  }

  /** The id of the only payment that Adyen has. */
  function onlyPayment(): string {
    expect([...adyen.payments.keys()], "payments at Adyen").to.have.length(1);
    return [...adyen.payments.keys()][0] as string;
  }

  describe("charging", () => {
    it("captures, and tells the PSP reference as the transaction", async () => {
      const answer = await gateway.charge(chargeOf("visa"), patient);
      const transactionId = onlyPayment();
      const result = {
        outcome: "captured",
        transactionId,
        captured: eur(1_099n),
        responseCode: "Authorised",
        untilVoided: true,
      };
      expect(answer).to.deep.equal({ kind: "executed", result });
    });

    it("asks for the stored card, an immediate capture and no authentication", async () => {
      await gateway.charge(chargeOf("visa"), patient);
      expect(adyen.payments.get(onlyPayment())?.body).to.deep.equal({
        merchantAccount: "TestMerchant",
        reference: "a1",
        amount: { currency: "EUR", value: 1_099 },
        paymentMethod: { type: "scheme", storedPaymentMethodId: "visa" },
        shopperReference: "shopper-1",
        shopperInteraction: "ContAuth",
        recurringProcessingModel: "CardOnFile",
        authenticationData: { attemptAuthentication: "never" },
        captureDelayHours: 0,
        returnUrl: "https://shop.example",
      });
    });

    it("charges once, however often and however many at once", async () => {
      const first = await gateway.charge(chargeOf("visa"), patient);
      const others = await Promise.all(Array.from({ length: 5 }, () => gateway.charge(chargeOf("visa"), patient)));
      for (const other of others) expect(other).to.deep.equal(first);
      expect(adyen.payments.size).to.equal(1);
    });

    it("does not guess about a charge that is still under way", async () => {
      const release = adyen.hold("payment");
      const first = gateway.charge(chargeOf("visa"), patient);
      await until(() => adyen.count("payment") === 1);
      const second = await gateway.charge(chargeOf("visa"), patient);
      expect(second).to.include({ kind: "unknown", cause: "gateway_error" });
      release();
      expect(await first).to.include({ kind: "executed" });
    });

    for (const [money, value] of [
      [{ currency: "JPY", minor: 500n }, 500],
      [{ currency: "ISK", minor: 40n }, 4_000],
      [{ currency: "CLP", minor: 500n }, 50_000],
      [{ currency: "IDR", minor: 1_000_000n }, 10_000],
      [{ currency: "KWD", minor: 5_124n }, 5_124],
    ] as const) {
      it(`charges ${money.minor} minor units of ${money.currency} as ${value}, and reads them back`, async () => {
        const answer = await gateway.charge(chargeOf("visa", money.minor, money.currency), patient);
        expect(adyen.payments.get(onlyPayment())?.amount.value).to.equal(value);
        expect(answer).to.have.nested.property("result.captured").that.deep.equals(money);
      });
    }

    for (const [what, request] of [
      ["an amount that Adyen cannot charge exactly", chargeOf("visa", 150n, "IDR")],
      ["nothing", chargeOf("visa", 0n)],
      ["a token without a shopper", { ...chargeOf("visa"), paymentMethodToken: "visa" }],
      ["a reference that is too long for a key", chargeOf("visa", 1n, "EUR", "x".repeat(65))],
    ] as const) {
      it(`refuses ${what} without asking`, async () => {
        const answer = await gateway.charge(request, patient);
        expect(answer).to.include({ kind: "not_executed", cause: "rejected", proves: "this_send" });
        expect(adyen.requests).to.have.length(0);
      });
    }

    for (const [card, reason, responseCode] of [
      ["refused", "Not enough balance", "12"],
      ["error", "Acquirer Error", "4"],
      ["cancelled", "cancelled", "Cancelled"],
      ["redirect", "authentication_required", "RedirectShopper"],
    ] as const) {
      it(`tells a card that is ${card} as declined for good: ${reason}`, async () => {
        const answer = await gateway.charge(chargeOf(card), patient);
        expect(answer).to.deep.equal({ kind: "executed", result: { outcome: "declined", reason, responseCode } });
      });
    }

    for (const card of ["received", "pending"]) {
      it(`tells a charge that is ${card} as pending`, async () => {
        const answer = await gateway.charge(chargeOf(card), patient);
        expect(answer).to.deep.equal({ kind: "pending", transactionId: onlyPayment() });
      });
    }

    it("knows nothing of a result that a stored card cannot have", async () => {
      expect(await gateway.charge(chargeOf("partial"), patient)).to.include({
        kind: "unknown",
        cause: "malformed_answer",
      });
    });

    it("takes an answer about another payment for none", async () => {
      const body = { pspReference: "PSP1", merchantReference: "b2", resultCode: "Authorised" };
      adyen.fail({ on: "payment", executes: false, answer: { status: 200, body } });
      const answer = await gateway.charge(chargeOf("visa"), patient);
      expect(answer).to.include({ kind: "unknown", cause: "malformed_answer" });
    });

    it("names no token and no key in the detail of a refusal", async () => {
      const answer = await gateway.charge(chargeOf("secretive"), patient);
      expect(answer).to.include({ kind: "not_executed", cause: "rejected", proves: "this_send" });
      expect(JSON.stringify(answer)).not.to.match(/secretive|shopper-1|AQE|S1/);
    });

    it("tells a wrong API key as rejected", async () => {
      const stranger = createAdyenGateway({ ...settings, apiKey: "wrong", baseUrl: adyen.url });
      const answer = await stranger.charge(chargeOf("visa"), patient);
      stranger.close();
      expect(answer).to.include({ kind: "not_executed", cause: "rejected" });
    });

    it("speaks to a live address with a path", async () => {
      const live = createAdyenGateway({ ...settings, baseUrl: `${adyen.url}/checkout` });
      await live.charge(chargeOf("visa"), patient);
      live.close();
      expect(adyen.requests[0]?.url.pathname).to.equal("/checkout/v72/payments");
    });
  });

  describe("when a charge goes wrong", () => {
    const html = { status: 502, body: "<html>" };
    const faults = [
      ["the connection is cut before the charge", { executes: false, answer: "cut" }, "connection_lost", 0],
      ["the connection is cut after the charge", { executes: true, answer: "cut" }, "connection_lost", 1],
      ["the connection is cut within the answer", { executes: true, answer: "cut_half" }, "connection_lost", 1],
      ["no answer comes, and nothing was charged", { executes: false, answer: "hang" }, "timeout", 0],
      ["no answer comes after the charge", { executes: true, answer: "hang" }, "timeout", 1],
      ["Adyen fails after the charge", { executes: true, answer: internalError }, "gateway_error", 1],
      ["something in between answers 502", { executes: false, answer: html }, "gateway_error", 0],
      ["the answer is garbage", { executes: true, answer: "garbage" }, "malformed_answer", 1],
      ["the answer is an array", { executes: true, answer: "array" }, "malformed_answer", 1],
      ["the answer is endless", { executes: true, answer: "huge" }, "malformed_answer", 1],
      ["the answer redirects", { executes: false, answer: { status: 308, body: {} } }, "malformed_answer", 0],
    ] as const;
    for (const [what, fault, cause, charges] of faults) {
      it(`knows nothing when ${what}, and sends nothing again by itself`, async () => {
        adyen.fail({ on: "payment", ...fault });
        const charge = () => gateway.charge(chargeOf("visa"), patient);
        const answer = fault.answer === "hang" ? await timeOutWhen(adyen.hung, charge) : await charge();
        expect(answer).to.include({ kind: "unknown", cause });
        expect({ sent: adyen.requests.length, charges: adyen.payments.size }).to.deep.equal({ sent: 1, charges });
      });
    }

    it("learns of a charge with a lost answer by asking again with the same reference", async () => {
      adyen.fail({ on: "payment", executes: true, answer: "cut" });
      await gateway.charge(chargeOf("visa"), patient);
      expect(await gateway.charge(chargeOf("visa"), patient)).to.include({ kind: "executed" });
      expect(adyen.payments.size).to.equal(1);
    });

    it("has proof for this send when Adyen limits the rate, and tells how long to wait", async () => {
      adyen.fail({
        on: "payment",
        executes: false,
        answer: { status: 429, body: "", headers: { "retry-after": "7" } },
      });
      const answer = await gateway.charge(chargeOf("visa"), patient);
      expect(answer).to.include({ cause: "rate_limited", proves: "this_send", retryAfterMs: 7_000 });
    });

    it("knows nothing of a refusal that Adyen calls transient", async () => {
      const body = { status: 422, errorCode: "905", errorType: "internal" };
      adyen.fail({
        on: "payment",
        executes: false,
        answer: { status: 422, body, headers: { "transient-error": "true" } },
      });
      const answer = await gateway.charge(chargeOf("visa"), patient);
      expect(answer).to.include({ kind: "unknown", cause: "gateway_error" });
    });

    it("has proof when nothing was sent: no connection, no time, or aborted before", async () => {
      const away = createAdyenGateway({ ...settings, baseUrl: nowhere });
      const refused = await away.charge(chargeOf("visa"), patient);
      away.close();
      const late = await gateway.charge(chargeOf("visa"), { timeoutMs: 0 });
      const aborted = await gateway.charge(chargeOf("visa"), { ...patient, signal: AbortSignal.abort() });
      expect(refused).to.include({ kind: "not_executed", cause: "connection_failed", proves: "this_send" });
      expect(late).to.include({ kind: "not_executed", cause: "timeout" });
      expect(aborted).to.include({ kind: "not_executed", cause: "aborted" });
      expect(adyen.requests).to.have.length(0);
    });
  });

  describe("voiding and asking", () => {
    it("accepts a void by our reference as pending, since only the webhook proves it", async () => {
      const answer = await gateway.void({ reference: "a1" }, patient);
      expect(answer).to.deep.equal({ kind: "pending" });
      expect(adyen.cancels).to.deep.equal([
        { merchantAccount: "TestMerchant", paymentReference: "a1", reference: "a1" },
      ]);
    });

    it("asks anew each time, as the payment may have arrived since", async () => {
      await gateway.void({ reference: "a1" }, patient);
      await gateway.void({ reference: "a1" }, patient);
      expect(adyen.cancels).to.have.length(2);
    });

    for (const answer of ["cut", "garbage", internalError] as const) {
      it(`has no proof when the answer to a void is ${typeof answer === "string" ? answer : "a 500"}`, async () => {
        adyen.fail({ on: "cancel", executes: true, answer });
        expect(await gateway.void({ reference: "a1" }, patient)).to.include({ kind: "unknown" });
      });
    }

    it("does not take a void that was not sent for one that was", async () => {
      const away = createAdyenGateway({ ...settings, baseUrl: nowhere });
      const answer = await away.void({ reference: "a1" }, patient);
      away.close();
      expect(answer).to.include({ kind: "unknown", cause: "not_sent" });
    });

    it("says that Adyen cannot be asked about charges and refunds", async () => {
      const charge = await gateway.lookup({ reference: "a1" }, patient);
      const refund = await gateway.lookupRefund({ key: "r1", reference: "a1", transactionId: "PSP1" }, patient);
      expect(charge).to.include({ kind: "unknown", cause: "not_sent" });
      expect(refund).to.include({ kind: "unknown", cause: "not_sent" });
      expect(adyen.requests).to.have.length(0);
    });
  });

  describe("refunding", () => {
    function refund(key: string, minor = 500n, transactionId = onlyPayment()) {
      return gateway.refund({ key, reference: "a1", transactionId, amount: eur(minor) }, patient);
    }

    it("is pending until the webhook tells, once per key", async () => {
      await gateway.charge(chargeOf("visa"), patient);
      const [first, second] = [await refund("r1"), await refund("r1")];
      expect(first).to.deep.equal({ kind: "pending", transactionId: "PSP0000000000002" });
      expect(second).to.deep.equal(first);
      expect(adyen.refunds).to.deep.equal([
        { merchantAccount: "TestMerchant", amount: { currency: "EUR", value: 500 }, reference: "a1/r1" },
      ]);
    });

    it("knows nothing of a lost answer, and learns it with the same key", async () => {
      await gateway.charge(chargeOf("visa"), patient);
      adyen.fail({ on: "refund", executes: true, answer: "cut" });
      expect(await refund("r1")).to.include({ kind: "unknown", cause: "connection_lost" });
      expect(await refund("r1")).to.include({ kind: "pending" });
      expect(adyen.refunds).to.have.length(1);
    });

    it("is rejected for a transaction that Adyen does not have", async () => {
      expect(await refund("r1", 500n, "PSP9")).to.include({ kind: "not_executed", cause: "rejected" });
    });

    it("names its charge and itself with UUIDs within Adyen's 80 characters", async () => {
      await gateway.charge(chargeOf("visa"), patient);
      const [reference, key] = [randomUUID(), randomUUID()];
      const request = { key, reference, transactionId: onlyPayment(), amount: eur(1n) };
      expect(await gateway.refund(request, patient)).to.include({ kind: "pending" });
      const long = { ...request, reference: "x".repeat(64) };
      expect(await gateway.refund(long, patient)).to.include({ kind: "not_executed", cause: "rejected" });
    });
  });

  describe("webhooks", () => {
    const now = new Date("2026-03-01T12:00:00Z");
    const occurTime = new Date("2026-03-01T11:59:58Z");

    function receive(body: string, at = now): WebhookVerdict {
      return gateway.parseWebhook({ headers: {}, body: Buffer.from(body), now: at });
    }

    function eventsOf(...items: AdyenItem[]): readonly GatewayEvent[] {
      const verdict = receive(adyenWebhook(hmacKey, ...items));
      if (verdict.kind !== "accepted") expect.fail(`refused: ${verdict.cause} ${verdict.detail}`);
      return verdict.events;
    }

    function expectEvent(item: AdyenItem, fact: Record<string, unknown>): void {
      const id = `${item.pspReference ?? "PSP0000000000001"}:${item.eventCode}:${item.success ?? "true"}`;
      expect(eventsOf(item)).to.deep.equal([{ id, gateway: "adyen", occurTime, ...fact }]);
    }

    it("tells a capture by the authorisation", () => {
      const transactionId = "PSP0000000000001";
      const result = {
        outcome: "captured",
        transactionId,
        captured: eur(1_099n),
        responseCode: "Authorised",
        untilVoided: true,
      };
      expectEvent({ eventCode: "AUTHORISATION" }, { type: "charge_captured", reference: "a1", result });
    });

    it("tells a decline", () => {
      const result = { outcome: "declined", reason: "Expired Card", responseCode: "AUTHORISATION" };
      const item = { eventCode: "AUTHORISATION", success: "false", reason: "Expired Card" };
      expectEvent(item, { type: "charge_declined", reference: "a1", result });
    });

    for (const [eventCode, success, beats] of [
      ["CAPTURE_FAILED", "true", { beatsCapture: true }],
      ["CAPTURE", "false", {}],
    ] as const) {
      it(`tells that the capture failed by ${eventCode} with success ${success}`, () => {
        const result = { outcome: "declined", reason: "capture_failed", responseCode: eventCode };
        expectEvent({ eventCode, success }, { type: "charge_declined", reference: "a1", result, ...beats });
      });
    }

    for (const eventCode of ["TECHNICAL_CANCEL", "CANCELLATION", "CANCEL_OR_REFUND"]) {
      it(`takes ${eventCode} with success for proof that the charge is void, and without it for none`, () => {
        expectEvent({ eventCode }, { type: "charge_voided", reference: "a1", beatsCapture: true });
        expectEvent({ eventCode, success: "false" }, { type: "ignored", vendorType: eventCode });
      });
    }

    it("tells a completed refund with its key", () => {
      const transactionId = "PSP0000000000001";
      const result = { outcome: "completed", transactionId, refunded: eur(1_099n), responseCode: "REFUND" };
      const item = { eventCode: "REFUND", merchantReference: "a1/r1" };
      expectEvent(item, { type: "refund_completed", reference: "a1", key: "r1", result });
    });

    it("tells a refund that was made by hand by its charge's reference for a key", () => {
      const transactionId = "PSP0000000000001";
      const result = { outcome: "completed", transactionId, refunded: eur(1_099n), responseCode: "REFUND" };
      expectEvent({ eventCode: "REFUND" }, { type: "refund_completed", reference: "a1", key: "a1", result });
    });

    for (const [eventCode, success] of [
      ["REFUND", "false"],
      ["REFUND_FAILED", "true"],
      ["REFUNDED_REVERSED", "true"],
    ] as const) {
      it(`tells a failed refund by ${eventCode} with success ${success}`, () => {
        const result = { outcome: "failed", reason: "Insufficient balance", responseCode: eventCode };
        const item = { eventCode, success, merchantReference: "a1/r1", reason: "Insufficient balance" };
        expectEvent(item, { type: "refund_failed", reference: "a1", key: "r1", result });
      });
    }

    for (const [eventCode, type] of [
      ["NOTIFICATION_OF_CHARGEBACK", "dispute_opened"],
      ["CHARGEBACK", "dispute_opened"],
      ["CHARGEBACK_REVERSED", "dispute_won"],
      ["PREARBITRATION_WON", "dispute_won"],
      ["SECOND_CHARGEBACK", "dispute_lost"],
      ["PREARBITRATION_LOST", "dispute_lost"],
    ] as const) {
      it(`tells ${eventCode} as ${type}, by the one id of the dispute`, () => {
        const item = { eventCode, pspReference: "DSP1", originalReference: "PSP1", reason: "Fraud" };
        const about = {
          reference: "a1",
          transactionId: "PSP1",
          disputeId: "DSP1",
          amount: eur(1_099n),
          reason: "Fraud",
        };
        expectEvent(item, { type, ...about });
      });
    }

    for (const item of [
      { eventCode: "CAPTURE" },
      { eventCode: "CAPTURE_FAILED", success: "false" },
      { eventCode: "REFUND", merchantReference: "made by hand" },
      { eventCode: "REQUEST_FOR_INFORMATION" },
      { eventCode: "REPORT_AVAILABLE", pspReference: "report_2026_03_01.csv", merchantReference: "" },
      { eventCode: "AUTHORISATION", merchantAccountCode: "OtherMerchant" },
    ]) {
      it(`accepts and ignores ${Object.values(item).join(" ")}`, () => {
        expectEvent(item, { type: "ignored", vendorType: item.eventCode });
      });
    }

    it("reads every item of a webhook", () => {
      const events = eventsOf({ eventCode: "AUTHORISATION" }, { eventCode: "CHARGEBACK", pspReference: "DSP1" });
      expect(events.map(({ type }) => type)).to.deep.equal(["charge_captured", "dispute_opened"]);
    });

    it("gives a replay the same id, whatever was done to the fields that are not signed", () => {
      const [first] = eventsOf({ eventCode: "AUTHORISATION" });
      const [replay] = eventsOf({ eventCode: "AUTHORISATION", eventDate: "2026-02-28T00:00:00Z", reason: "other" });
      expect(replay?.id).to.equal(first?.id);
    });

    it("refuses the whole webhook when one item is forged", () => {
      const good = JSON.parse(adyenWebhook(hmacKey, { eventCode: "AUTHORISATION" }));
      const bad = JSON.parse(adyenWebhook("00".repeat(32), { eventCode: "AUTHORISATION" }));
      const both = JSON.stringify({ notificationItems: [...good.notificationItems, ...bad.notificationItems] });
      expect(receive(both)).to.include({ kind: "refused", cause: "forged" });
    });

    for (const [field, value] of [
      ["success", "false"],
      ["pspReference", "PSP2"],
      ["merchantReference", "b2"],
      ["eventCode", "REFUND"],
      ["amount", { currency: "EUR", value: 1 }],
      ["additionalData", {}],
      ["additionalData", { hmacSignature: "" }],
      ["additionalData", { hmacSignature: 7 }],
    ] as const) {
      it(`refuses an item as forged whose ${field} became ${JSON.stringify(value)}`, () => {
        const webhook = JSON.parse(adyenWebhook(hmacKey, { eventCode: "AUTHORISATION" }));
        webhook.notificationItems[0].NotificationRequestItem[field] = value;
        expect(receive(JSON.stringify(webhook))).to.include({ kind: "refused", cause: "forged" });
      });
    }

    it("refuses a signed item that was cut into other fields", () => {
      const webhook = JSON.parse(adyenWebhook(hmacKey, { eventCode: "AUTHORISATION", merchantReference: "x:a1" }));
      const item = webhook.notificationItems[0].NotificationRequestItem;
      item.merchantAccountCode = `${item.merchantAccountCode}:x`;
      item.merchantReference = "a1";
      expect(receive(JSON.stringify(webhook))).to.include({ kind: "refused", cause: "forged" });
    });

    it("refuses what is no webhook as forged, however large or odd", () => {
      for (const body of ["", "{", "null", "[]", "{}", '{"notificationItems":[]}', '{"notificationItems":[7]}']) {
        expect(receive(body), body).to.include({ kind: "refused", cause: "forged" });
      }
      const items = Array.from({ length: 51 }, () => ({ eventCode: "AUTHORISATION" }));
      expect(receive(adyenWebhook(hmacKey, ...items))).to.include({ kind: "refused", cause: "forged" });
      expect(receive(" ".repeat(300_000))).to.include({ kind: "refused", cause: "malformed" });
    });

    it("refuses an amount that is no whole number of minor units as malformed", () => {
      const amount = { currency: "ISK", value: 150 };
      const verdict = receive(adyenWebhook(hmacKey, { eventCode: "AUTHORISATION", amount }));
      expect(verdict).to.include({ kind: "refused", cause: "malformed" });
    });

    it("accepts what Adyen sends again for weeks, and refuses what is older or of the future as stale", () => {
      const body = adyenWebhook(hmacKey, { eventCode: "AUTHORISATION" });
      const dayMs = 24 * 60 * 60 * 1000;
      const verdicts = [30, 32, -1].map((days) => receive(body, new Date(occurTime.getTime() + days * dayMs)));
      const told = verdicts.map((verdict) => (verdict.kind === "refused" ? verdict.cause : verdict.kind));
      expect(told).to.deep.equal(["accepted", "stale", "stale"]);
    });

    it("refuses every webhook while no key is set", () => {
      const without = createAdyenGateway(settings);
      const body = Buffer.from(adyenWebhook(hmacKey, { eventCode: "AUTHORISATION" }));
      expect(without.parseWebhook({ headers: {}, body, now })).to.include({ kind: "refused", cause: "unconfigured" });
    });
  });

  describe("settings", () => {
    for (const [what, over] of [
      ["an address that is no URL", { baseUrl: "adyen" }],
      ["an address of another scheme", { baseUrl: "ftp://adyen" }],
      ["an empty API key", { apiKey: "" }],
      ["an empty merchant account", { merchantAccount: "" }],
      ["an HMAC key that is not hexadecimal", { hmacKey: "zz".repeat(32) }],
      ["a short HMAC key", { hmacKey: "44782DEF" }],
    ] as const) {
      it(`refuse ${what}`, () => {
        expect(() => createAdyenGateway({ ...settings, ...over })).to.throw(TypeError);
      });
    }
  });
});

/** Waits, within a bound, until something holds. */
async function until(holds: () => boolean, withinMs = 5_000): Promise<void> {
  const end = performance.now() + withinMs;
  while (!holds()) {
    if (performance.now() > end) expect.fail(`It did not hold within ${withinMs} ms.`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
