import { expect } from "chai";
import { Stripe } from "stripe";
import type { ChargeRequest, Gateway, GatewayEvent, WebhookVerdict } from "../../../src/payments/gateways/gateway.ts";
import { createStripeGateway } from "../../../src/payments/gateways/stripe.ts";
import { StripeServer, stripeSignature } from "../../support/stripe-server.ts";
import { timeOutWhen } from "../../support/vendor-server.ts";

const apiKey = "sk_test_0123456789";
const webhookSecret = "whsec_0123456789abcdef";
const patient = { timeoutMs: 5_000 };
/** Nothing listens here. */
const nowhere = "http://127.0.0.1:1";
const internalError = { status: 500, body: { error: { type: "api_error", message: "Oops" } } };

describe("The Stripe gateway", () => {
  let stripe: StripeServer;
  let gateway: Gateway;
  /** The ids that `remember` was given. */
  let remembered: string[];

  beforeEach(async () => {
    stripe = new StripeServer(apiKey);
    await stripe.start();
    gateway = createStripeGateway({ apiKey, baseUrl: stripe.url, webhookSecret });
    remembered = [];
  });

  afterEach(async () => {
    gateway.close();
    await stripe.close();
  });

  function chargeOf(token: string, minor = 1_099n, currency = "USD", reference = "a1"): ChargeRequest {
    return {
      reference,
      amount: { currency, minor },
      paymentMethodToken: token,
      remember: async (id) => {
        remembered.push(id);
      },
    };
  }

  function usd(minor: bigint) {
    return { currency: "USD", minor };
  }

  /** The id of the only intent that Stripe has. */
  function onlyIntent(): string {
    expect([...stripe.intents.keys()], "intents at Stripe").to.have.length(1);
    return [...stripe.intents.keys()][0] as string;
  }

  async function captured(minor = 1_099n): Promise<string> {
    const answer = await gateway.charge(chargeOf("pm_card_visa", minor), patient);
    expect(answer).to.include({ kind: "executed" });
    return onlyIntent();
  }

  describe("charging", () => {
    it("captures, and tells the intent as the transaction", async () => {
      const answer = await gateway.charge(chargeOf("pm_card_visa"), patient);
      const result = {
        outcome: "captured",
        transactionId: onlyIntent(),
        captured: usd(1_099n),
        responseCode: "succeeded",
      };
      expect(answer).to.deep.equal({ kind: "executed", result });
    });

    it("names the reference in the intent's metadata and pins the API's version", async () => {
      await captured();
      expect(stripe.intents.get(onlyIntent())?.metadata).to.deep.equal({ tradepost_reference: "a1" });
      const versions = stripe.requests.map(({ headers }) => headers["stripe-version"]);
      expect(new Set(versions)).to.deep.equal(new Set(["2026-10-28.endive"]));
    });

    it("sends no telemetry", async () => {
      await captured();
      await gateway.lookup({ reference: "a1", gatewayReference: onlyIntent() }, patient);
      const telemetry = stripe.requests.map(({ headers }) => headers["x-stripe-client-telemetry"]);
      expect(telemetry).to.deep.equal([undefined, undefined, undefined]);
    });

    it("has the intent's id stored before it confirms", async () => {
      const request = chargeOf("pm_card_visa");
      let confirmedBefore = -1;
      const remember = async (): Promise<void> => {
        confirmedBefore = stripe.count("confirm");
      };
      await gateway.charge({ ...request, remember }, patient);
      expect({ confirmedBefore, confirmed: stripe.count("confirm") }).to.deep.equal({
        confirmedBefore: 0,
        confirmed: 1,
      });
    });

    it("charges nothing when the intent's id could not be stored", async () => {
      const remember = () => Promise.reject(new Error("The database is away."));
      const answer = await gateway.charge({ ...chargeOf("pm_card_visa"), remember }, patient);
      expect(answer).to.include({ kind: "not_executed", cause: "aborted", proves: "this_send" });
      expect(stripe.count("confirm")).to.equal(0);
    });

    it("charges nothing when storing the intent's id takes all the time", async () => {
      const storing = Promise.withResolvers<void>();
      const remember = () => {
        storing.resolve();
        return Promise.withResolvers<void>().promise;
      };
      const answer = await timeOutWhen(storing.promise, () =>
        gateway.charge({ ...chargeOf("pm_card_visa"), remember }, patient),
      );
      expect(answer).to.include({ kind: "not_executed", cause: "timeout" });
      expect(stripe.count("confirm")).to.equal(0);
    });

    it("charges once, however often and however many at once", async () => {
      const first = await gateway.charge(chargeOf("pm_card_visa"), patient);
      const others = await Promise.all(
        Array.from({ length: 5 }, () => gateway.charge(chargeOf("pm_card_visa"), patient)),
      );
      for (const other of others) expect(other).to.deep.equal(first);
      expect(stripe.captured).to.equal(1_099);
    });

    it("does not guess about a charge whose confirmation is still under way", async () => {
      const release = stripe.hold("confirm");
      const first = gateway.charge(chargeOf("pm_card_visa"), patient);
      await until(() => stripe.count("confirm") === 1);
      const second = await gateway.charge(chargeOf("pm_card_visa"), patient);
      expect(second).to.include({ kind: "unknown", cause: "gateway_error" });
      release();
      expect(await first).to.include({ kind: "executed" });
    });

    for (const [money, amount] of [
      [{ currency: "JPY", minor: 500n }, 500],
      [{ currency: "ISK", minor: 40n }, 4_000],
      [{ currency: "UGX", minor: 5n }, 500],
      [{ currency: "MGA", minor: 2_000n }, 20],
      [{ currency: "KWD", minor: 5_120n }, 5_120],
      [{ currency: "HUF", minor: 1_005n }, 1_005],
    ] as const) {
      it(`charges ${money.minor} minor units of ${money.currency} as ${amount}, and reads them back`, async () => {
        const answer = await gateway.charge(chargeOf("pm_card_visa", money.minor, money.currency), patient);
        expect(stripe.intents.get(onlyIntent())?.amount).to.equal(amount);
        expect(answer).to.have.nested.property("result.captured").that.deep.equals(money);
      });
    }

    for (const [currency, minor] of [
      ["KWD", 5_124n],
      ["MGA", 2_050n],
      ["ZZZ", 1n],
      ["USD", 0n],
      ["USD", 10n ** 17n],
    ] as const) {
      it(`refuses ${minor} minor units of ${currency}, which Stripe cannot charge exactly, without asking`, async () => {
        const answer = await gateway.charge(chargeOf("pm_card_visa", minor, currency), patient);
        expect(answer).to.include({ kind: "not_executed", cause: "rejected" });
        expect(stripe.requests).to.have.length(0);
      });
    }

    for (const [token, reason, responseCode] of [
      ["pm_card_chargeDeclined", "generic_decline", "05"],
      ["pm_card_chargeDeclinedInsufficientFunds", "insufficient_funds", "card_declined"],
      ["pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"],
      ["pm_card_authenticationRequired", "authentication_required", "authentication_required"],
    ] as const) {
      it(`tells ${token} as declined for good: ${reason}`, async () => {
        const answer = await gateway.charge(chargeOf(token), patient);
        const result = { outcome: "declined", reason, responseCode };
        expect(answer).to.deep.equal({ kind: "executed", result });
      });
    }

    it("cancels an intent that asks for the customer all the same", async () => {
      const answer = await gateway.charge(chargeOf("pm_card_stubborn"), patient);
      expect(answer).to.have.nested.property("result.reason", "authentication_required");
      expect(stripe.intents.get(onlyIntent())?.status).to.equal("canceled");
    });

    it("does not call a charge declined while the intent that asks for the customer could not be cancelled", async () => {
      stripe.fail({ on: "cancel", executes: false, answer: internalError });
      const answer = await gateway.charge(chargeOf("pm_card_stubborn"), patient);
      expect(answer).to.include({ kind: "unknown", cause: "gateway_error" });
    });

    it("tells a charge that Stripe will decide later as pending", async () => {
      const answer = await gateway.charge(chargeOf("pm_card_processing"), patient);
      expect(answer).to.deep.equal({ kind: "pending", transactionId: onlyIntent() });
    });

    it("takes the same reference with another amount or token for a conflict", async () => {
      await captured();
      const otherAmount = await gateway.charge(chargeOf("pm_card_visa", 1_100n), patient);
      const otherToken = await gateway.charge(chargeOf("pm_card_processing"), patient);
      expect(otherAmount).to.include({ kind: "not_executed", cause: "key_conflict", proves: "this_send" });
      expect(otherToken).to.include({ kind: "not_executed", cause: "key_conflict", proves: "this_send" });
      expect(stripe.captured).to.equal(1_099);
    });

    it("names no token and no key in the detail of a refusal", async () => {
      const answer = await gateway.charge(chargeOf("pm_secretive"), patient);
      expect(answer).to.include({ kind: "not_executed", cause: "rejected" });
      expect(JSON.stringify(answer)).not.to.match(/secretive|sk_test/);
    });

    it("tells a wrong API key as rejected", async () => {
      const stranger = createStripeGateway({ apiKey: "sk_test_wrong", baseUrl: stripe.url });
      const answer = await stranger.charge(chargeOf("pm_card_visa"), patient);
      stranger.close();
      expect(answer).to.include({ kind: "not_executed", cause: "rejected", proves: "this_send" });
    });
  });

  describe("when creating the intent goes wrong", () => {
    const faults = [
      ["the connection is cut before the intent is made", { executes: false, answer: "cut" }, "unavailable"],
      ["the connection is cut after the intent is made", { executes: true, answer: "cut" }, "unavailable"],
      ["no answer comes", { executes: true, answer: "hang" }, "timeout"],
      ["Stripe fails", { executes: true, answer: internalError }, "unavailable"],
      ["the answer is garbage", { executes: true, answer: "garbage" }, "unavailable"],
      ["the answer is an array", { executes: true, answer: "array" }, "unavailable"],
      ["the answer is endless", { executes: true, answer: "huge" }, "unavailable"],
    ] as const;
    for (const [what, fault, cause] of faults) {
      it(`has proof that nothing was charged when ${what}, since nothing was confirmed`, async () => {
        stripe.fail({ on: "create", ...fault });
        const charge = () => gateway.charge(chargeOf("pm_card_visa"), patient);
        const answer = fault.answer === "hang" ? await timeOutWhen(stripe.hung, charge) : await charge();
        expect(answer).to.include({ kind: "not_executed", cause, proves: "this_send" });
        expect({ creates: stripe.count("create"), confirms: stripe.count("confirm") }).to.deep.equal({
          creates: 1,
          confirms: 0,
        });
      });
    }

    it("goes on with the same intent when it is asked again", async () => {
      stripe.fail({ on: "create", executes: true, answer: "cut" });
      await gateway.charge(chargeOf("pm_card_visa"), patient);
      await captured();
      expect(remembered).to.deep.equal([onlyIntent()]);
    });
  });

  describe("when confirming goes wrong", () => {
    const faults = [
      ["the connection is cut before the charge", { executes: false, answer: "cut" }, "connection_lost", 0],
      ["the connection is cut after the charge", { executes: true, answer: "cut" }, "connection_lost", 1_099],
      ["the connection is cut within the answer", { executes: true, answer: "cut_half" }, "connection_lost", 1_099],
      ["no answer comes, and nothing was charged", { executes: false, answer: "hang" }, "timeout", 0],
      ["no answer comes after the charge", { executes: true, answer: "hang" }, "timeout", 1_099],
      ["Stripe fails after the charge", { executes: true, answer: internalError }, "gateway_error", 1_099],
      [
        "something in between answers 502",
        { executes: false, answer: { status: 502, body: "<html>" } },
        "gateway_error",
        0,
      ],
      ["the answer is garbage", { executes: true, answer: "garbage" }, "malformed_answer", 1_099],
      ["the answer is an array", { executes: true, answer: "array" }, "malformed_answer", 1_099],
      ["the answer is endless", { executes: true, answer: "huge" }, "malformed_answer", 1_099],
      ["the answer redirects", { executes: false, answer: { status: 302, body: {} } }, "malformed_answer", 0],
    ] as const;
    for (const [what, fault, cause, charged] of faults) {
      it(`knows nothing when ${what}, and sends nothing again by itself`, async () => {
        stripe.fail({ on: "confirm", ...fault });
        const charge = () => gateway.charge(chargeOf("pm_card_visa"), patient);
        const answer = fault.answer === "hang" ? await timeOutWhen(stripe.hung, charge) : await charge();
        expect(answer).to.include({ kind: "unknown", cause });
        expect({ confirms: stripe.count("confirm"), captured: stripe.captured }).to.deep.equal({
          confirms: 1,
          captured: charged,
        });
      });
    }

    it("has proof for this send when Stripe limits the rate, and tells how long to wait", async () => {
      const answer = { status: 429, body: { error: { type: "rate_limit_error" } }, headers: { "retry-after": "7" } };
      stripe.fail({ on: "confirm", executes: false, answer });
      const charged = await gateway.charge(chargeOf("pm_card_visa"), patient);
      expect(charged).to.include({
        kind: "not_executed",
        cause: "rate_limited",
        proves: "this_send",
        retryAfterMs: 7_000,
      });
    });

    it("learns of a charge with a lost answer by asking again with the same reference", async () => {
      stripe.fail({ on: "confirm", executes: true, answer: "cut" });
      await gateway.charge(chargeOf("pm_card_visa"), patient);
      const again = await gateway.charge(chargeOf("pm_card_visa"), patient);
      expect(again).to.include({ kind: "executed" });
      expect(stripe.captured).to.equal(1_099);
    });

    it("keeps knowing nothing when Stripe repeats the failure that it remembers, until it is looked up", async () => {
      stripe.fail({ on: "confirm", executes: true, answer: internalError });
      await gateway.charge(chargeOf("pm_card_visa"), patient);
      const again = await gateway.charge(chargeOf("pm_card_visa"), patient);
      const found = await gateway.lookup({ reference: "a1", gatewayReference: onlyIntent() }, patient);
      expect(again).to.include({ kind: "unknown", cause: "gateway_error" });
      expect(found).to.have.nested.property("charge.outcome", "captured");
    });

    it("ends at once when it is aborted, without knowing", async () => {
      stripe.hold("confirm");
      const abort = new AbortController();
      const charging = gateway.charge(chargeOf("pm_card_visa"), { ...patient, signal: abort.signal });
      await until(() => stripe.count("confirm") === 1);
      abort.abort();
      expect(await charging).to.include({ kind: "unknown", cause: "aborted" });
    });

    it("takes an answer about another intent for none", async () => {
      const other = { id: "pi_other", object: "payment_intent", status: "succeeded", amount: 1, amount_received: 1 };
      const body = { ...other, currency: "usd", metadata: { tradepost_reference: "b2" }, last_payment_error: null };
      stripe.fail({ on: "confirm", executes: false, answer: { status: 200, body } });
      const answer = await gateway.charge(chargeOf("pm_card_visa"), patient);
      expect(answer).to.include({ kind: "unknown", cause: "malformed_answer" });
    });
  });

  describe("when nothing can be sent", () => {
    it("has proof when the connection is refused", async () => {
      const away = createStripeGateway({ apiKey, baseUrl: nowhere });
      const answer = await away.charge(chargeOf("pm_card_visa"), patient);
      away.close();
      expect(answer).to.include({ kind: "not_executed", cause: "connection_failed", proves: "this_send" });
    });

    it("has proof when the caller's time is over or the call is aborted before it began", async () => {
      const late = await gateway.charge(chargeOf("pm_card_visa"), { timeoutMs: 0 });
      const aborted = await gateway.charge(chargeOf("pm_card_visa"), { ...patient, signal: AbortSignal.abort() });
      expect(late).to.include({ kind: "not_executed", cause: "timeout" });
      expect(aborted).to.include({ kind: "not_executed", cause: "aborted" });
      expect(stripe.requests).to.have.length(0);
    });

    it("never takes a question that was not sent for an answer", async () => {
      const away = createStripeGateway({ apiKey, baseUrl: nowhere });
      const attempt = { reference: "a1", gatewayReference: "pi_1", amount: usd(1n) };
      const refund = { key: "r1", reference: "a1", transactionId: "pi_1" };
      const answers = [
        await away.lookup(attempt, patient),
        await away.void(attempt, patient),
        await away.void({ reference: "a1", amount: usd(1n) }, patient),
        await away.lookupRefund(refund, patient),
      ];
      away.close();
      for (const answer of answers) expect(answer).to.include({ kind: "unknown", cause: "not_sent" });
    });
  });

  describe("looking up", () => {
    it("tells a capture with what was refunded and what is disputed", async () => {
      const id = await captured(5_000n);
      stripe.refundStatus = "pending";
      await refund("r1", 100n);
      stripe.refundStatus = "succeeded";
      await refund("r2", 700n);
      await refund("r3", 300n);
      dispute(id, { id: "dp_1", amount: 900, status: "needs_response" });
      dispute(id, { id: "dp_2", amount: 400, status: "won" });
      dispute(id, { id: "dp_3", amount: 200, status: "warning_needs_response" });
      dispute(id, { id: "dp_4", amount: 50, status: "lost" });
      const found = await gateway.lookup({ reference: "a1", gatewayReference: id }, patient);
      const charge = { outcome: "captured", transactionId: id, captured: usd(5_000n), responseCode: "succeeded" };
      expect(found).to.deep.equal({
        kind: "found",
        charge: { ...charge, refunded: usd(1_000n), disputed: usd(950n) },
      });
    });

    it("reads more refunds than fit on a page", async () => {
      const id = await captured(5_000n);
      for (let n = 0; n < 101; n++) await refund(`r${n}`, 1n);
      const found = await gateway.lookup({ reference: "a1", gatewayReference: id }, patient);
      expect(found).to.have.nested.property("charge.refunded.minor", 101n);
      expect(stripe.count("list_refunds")).to.equal(2);
    });

    it("tells a decline, a void and a charge under way", async () => {
      await gateway.charge(chargeOf("pm_card_chargeDeclined", 1n, "USD", "d1"), patient);
      await gateway.charge(chargeOf("pm_card_processing", 1n, "USD", "p1"), patient);
      await gateway.void({ reference: "v1", amount: usd(1n) }, patient);
      const states = await Promise.all(
        [...stripe.intents.values()].map(({ id, metadata }) =>
          gateway.lookup({ reference: metadata["tradepost_reference"] as string, gatewayReference: id }, patient),
        ),
      );
      const declined = { outcome: "declined", reason: "generic_decline", responseCode: "05" };
      expect(states).to.deep.equal([
        { kind: "found", charge: declined },
        { kind: "found", charge: { outcome: "pending" } },
        { kind: "found", charge: { outcome: "voided" } },
      ]);
    });

    it("does not find an intent that waits to be confirmed, nor one that is not there", async () => {
      stripe.fail({ on: "confirm", executes: false, answer: "cut" });
      await gateway.charge(chargeOf("pm_card_visa"), patient);
      const waiting = await gateway.lookup({ reference: "a1", gatewayReference: onlyIntent() }, patient);
      const absent = await gateway.lookup({ reference: "a1", gatewayReference: "pi_absent" }, patient);
      expect([waiting, absent]).to.deep.equal([{ kind: "not_found" }, { kind: "not_found" }]);
    });

    it("searches where the intent's id is not known, and not finding it proves nothing", async () => {
      const id = await captured();
      const before = await gateway.lookup({ reference: "a1" }, patient);
      stripe.indexed.add(id);
      const after = await gateway.lookup({ reference: "a1" }, patient);
      expect(before).to.deep.equal({ kind: "not_found" });
      expect(after).to.have.nested.property("charge.transactionId", id);
    });

    it("knows nothing when Stripe fails, or answers about another reference", async () => {
      const id = await captured();
      stripe.fail({ on: "retrieve", executes: false, answer: internalError });
      const failed = await gateway.lookup({ reference: "a1", gatewayReference: id }, patient);
      const mixed = await gateway.lookup({ reference: "b2", gatewayReference: id }, patient);
      expect(failed).to.include({ kind: "unknown", cause: "gateway_error" });
      expect(mixed).to.include({ kind: "unknown", cause: "malformed_answer" });
    });

    it("does not let a reference change the search", async () => {
      const answer = await gateway.lookup({ reference: "a' OR status:'succeeded" }, patient);
      expect(answer).to.include({ kind: "unknown", cause: "not_sent" });
      expect(stripe.requests).to.have.length(0);
    });
  });

  describe("voiding", () => {
    it("proves that an intent which was not confirmed can never be", async () => {
      stripe.fail({ on: "confirm", executes: false, answer: "cut" });
      await gateway.charge(chargeOf("pm_card_visa"), patient);
      const voided = await gateway.void({ reference: "a1", gatewayReference: onlyIntent() }, patient);
      const late = await gateway.charge(chargeOf("pm_card_visa"), patient);
      expect(voided).to.deep.equal({ kind: "voided" });
      expect(late).to.include({ kind: "not_executed", cause: "voided", proves: "reference" });
      expect(stripe.captured).to.equal(0);
    });

    it("comes too late for a charge that was captured, and tells it", async () => {
      const id = await captured();
      const answer = await gateway.void({ reference: "a1", gatewayReference: id }, patient);
      expect(answer).to.have.nested.property("result.captured").that.deep.equals(usd(1_099n));
    });

    it("comes too late for a charge that was declined, and makes sure that it stays so", async () => {
      await gateway.charge(chargeOf("pm_card_chargeDeclined"), patient);
      const attempt = { reference: "a1", gatewayReference: onlyIntent() };
      const answers = [await gateway.void(attempt, patient), await gateway.void(attempt, patient)];
      for (const answer of answers) expect(answer).to.have.nested.property("result.reason", "generic_decline");
      expect(stripe.intents.get(onlyIntent())?.status).to.equal("canceled");
    });

    it("has no proof while Stripe decides", async () => {
      await gateway.charge(chargeOf("pm_card_processing"), patient);
      const answer = await gateway.void({ reference: "a1", gatewayReference: onlyIntent() }, patient);
      expect(answer).to.deep.equal({ kind: "pending", transactionId: onlyIntent() });
    });

    it("can be repeated", async () => {
      const attempt = { reference: "a1", amount: usd(1_099n) };
      const answers = [await gateway.void(attempt, patient), await gateway.void(attempt, patient)];
      expect(answers).to.deep.equal([{ kind: "voided" }, { kind: "voided" }]);
    });

    it("finds the intent of a crash between creating and storing by the same request", async () => {
      const crash = { ...chargeOf("pm_card_visa"), remember: () => Promise.reject(new Error("killed")) };
      await gateway.charge(crash, patient);
      const voided = await gateway.void({ reference: "a1", amount: usd(1_099n) }, patient);
      expect(voided).to.deep.equal({ kind: "voided" });
      expect(stripe.intents.get(onlyIntent())?.status).to.equal("canceled");
    });

    it("beats a later charge of a reference that Stripe had never heard of", async () => {
      await gateway.void({ reference: "a1", amount: usd(1_099n) }, patient);
      const late = await gateway.charge(chargeOf("pm_card_visa"), patient);
      expect(late).to.include({ kind: "not_executed", cause: "voided", proves: "reference" });
      expect(stripe.captured).to.equal(0);
    });

    it("either stops a charge that runs at the same time, or tells it", async () => {
      const release = stripe.hold("confirm");
      const charging = gateway.charge(chargeOf("pm_card_visa"), patient);
      await until(() => stripe.count("confirm") === 1);
      const voided = await gateway.void({ reference: "a1", gatewayReference: onlyIntent() }, patient);
      release();
      expect(voided).to.deep.equal({ kind: "voided" });
      expect(await charging).to.include({ kind: "not_executed", cause: "voided" });
      expect(stripe.captured).to.equal(0);
    });

    it("never sends an old key again: without the amount it searches, and knows nothing where that finds nothing", async () => {
      await gateway.charge(
        { ...chargeOf("pm_card_visa"), remember: () => Promise.reject(new Error("killed")) },
        patient,
      );
      stripe.forgetKeys();
      const unfound = await gateway.void({ reference: "a1" }, patient);
      stripe.indexed.add(onlyIntent());
      const found = await gateway.void({ reference: "a1" }, patient);
      expect(unfound).to.include({ kind: "unknown", cause: "not_sent" });
      expect(found).to.deep.equal({ kind: "voided" });
      expect(stripe.count("create")).to.equal(1);
    });

    for (const answer of ["cut", "garbage", internalError] as const) {
      it(`has no proof when the answer is ${typeof answer === "string" ? answer : "a 500"}, and gets it by repeating`, async () => {
        stripe.fail({ on: "confirm", executes: false, answer: "cut" });
        await gateway.charge(chargeOf("pm_card_visa"), patient);
        const attempt = { reference: "a1", gatewayReference: onlyIntent() };
        stripe.fail({ on: "cancel", executes: true, answer });
        expect(await gateway.void(attempt, patient)).to.include({ kind: "unknown" });
        expect(await gateway.void(attempt, patient)).to.deep.equal({ kind: "voided" });
      });
    }
  });

  describe("refunding", () => {
    it("completes, once per key", async () => {
      await captured();
      const answers = [await refund("r1", 500n), await refund("r1", 500n)];
      const result = { outcome: "completed", transactionId: "re_1", refunded: usd(500n), responseCode: "succeeded" };
      expect(answers).to.deep.equal([
        { kind: "executed", result },
        { kind: "executed", result },
      ]);
      expect(stripe.refunds.size).to.equal(1);
    });

    for (const [status, expected] of [
      ["pending", { kind: "pending", transactionId: "re_1" }],
      ["requires_action", { kind: "pending", transactionId: "re_1" }],
      ["failed", { kind: "executed", result: { outcome: "failed", reason: "failed", responseCode: "failed" } }],
      ["canceled", { kind: "executed", result: { outcome: "failed", reason: "canceled", responseCode: "canceled" } }],
    ] as const) {
      it(`tells a refund that is ${status}`, async () => {
        await captured();
        stripe.refundStatus = status;
        expect(await refund("r1", 500n)).to.deep.equal(expected);
      });
    }

    it("has failed when all was refunded before", async () => {
      await captured();
      await refund("r1", 1_099n);
      const answer = await refund("r2", 1n);
      expect(answer).to.have.nested.property("result.reason", "charge_already_refunded");
    });

    it("is rejected when it is more than is left", async () => {
      await captured();
      expect(await refund("r1", 2_000n)).to.include({ kind: "not_executed", cause: "rejected" });
    });

    it("knows nothing of a lost answer, and learns it with the same key", async () => {
      await captured();
      stripe.fail({ on: "refund", executes: true, answer: "cut" });
      expect(await refund("r1", 500n)).to.include({ kind: "unknown", cause: "connection_lost" });
      expect(await refund("r1", 500n)).to.include({ kind: "executed" });
      expect(stripe.refunds.size).to.equal(1);
    });

    it("takes the same key with another amount for a conflict", async () => {
      await captured();
      await refund("r1", 500n);
      expect(await refund("r1", 400n)).to.include({ kind: "not_executed", cause: "key_conflict" });
    });

    it("is looked up by its id, or by its key among the refunds of the charge", async () => {
      const id = await captured();
      await refund("r1", 100n);
      await refund("r2", 200n);
      const asked = { key: "r2", reference: "a1", transactionId: id };
      const byId = await gateway.lookupRefund({ ...asked, refundTransactionId: "re_2" }, patient);
      const byKey = await gateway.lookupRefund(asked, patient);
      const absent = await gateway.lookupRefund({ ...asked, key: "r3" }, patient);
      expect(byId).to.have.nested.property("result.refunded").that.deep.equals(usd(200n));
      expect(byKey).to.deep.equal(byId);
      expect(absent).to.deep.equal({ kind: "not_found" });
    });

    it("does not take another refund's state for its own", async () => {
      const id = await captured();
      await refund("r1", 100n);
      const asked = { key: "r2", reference: "a1", transactionId: id, refundTransactionId: "re_1" };
      expect(await gateway.lookupRefund(asked, patient)).to.include({ kind: "unknown", cause: "malformed_answer" });
    });
  });

  describe("webhooks", () => {
    const now = new Date("2026-03-01T12:00:00Z");
    const occurTime = new Date("2026-03-01T11:59:58Z");
    const header = { id: "evt_1", gateway: "stripe", occurTime } as const;

    function bodyOf(type: string, object: unknown, over: Record<string, unknown> = {}): string {
      const created = occurTime.getTime() / 1000;
      return JSON.stringify({
        id: "evt_1",
        object: "event",
        api_version: "x",
        created,
        type,
        data: { object },
        ...over,
      });
    }

    function receive(body: string, signature = stripeSignature(webhookSecret, body, now), at = now): WebhookVerdict {
      return gateway.parseWebhook({ headers: { "stripe-signature": signature }, body: Buffer.from(body), now: at });
    }

    function eventOf(type: string, object: unknown): GatewayEvent {
      const verdict = receive(bodyOf(type, object));
      if (verdict.kind !== "accepted") expect.fail(`refused: ${verdict.cause} ${verdict.detail}`);
      expect(verdict.events).to.have.length(1);
      return verdict.events[0] as GatewayEvent;
    }

    function refundObject(
      status: string,
      metadata: Record<string, string> = { tradepost_reference: "a1", tradepost_refund: "r1" },
    ) {
      return { id: "re_1", object: "refund", amount: 500, currency: "usd", status, metadata };
    }

    function disputeObject(status: string) {
      const about = { payment_intent: "pi_1", charge: "ch_1", reason: "fraudulent" };
      return { id: "dp_1", object: "dispute", amount: 500, currency: "usd", status, ...about };
    }

    it("tells a capture", async () => {
      const id = await captured();
      const result = { outcome: "captured", transactionId: id, captured: usd(1_099n), responseCode: "succeeded" };
      const event = eventOf("payment_intent.succeeded", stripe.show(id));
      expect(event).to.deep.equal({ ...header, type: "charge_captured", reference: "a1", result });
    });

    it("tells a decline, also of an intent that was cancelled afterwards", async () => {
      await gateway.charge(chargeOf("pm_card_chargeDeclined"), patient);
      const result = { outcome: "declined", reason: "generic_decline", responseCode: "05" };
      const declined = { ...header, type: "charge_declined", reference: "a1", result };
      expect(eventOf("payment_intent.payment_failed", stripe.show(onlyIntent()))).to.deep.equal(declined);
      await gateway.void({ reference: "a1", gatewayReference: onlyIntent() }, patient);
      expect(eventOf("payment_intent.canceled", stripe.show(onlyIntent()))).to.deep.equal(declined);
    });

    it("tells a void", async () => {
      await gateway.void({ reference: "a1", amount: usd(1n) }, patient);
      const event = eventOf("payment_intent.canceled", stripe.show(onlyIntent()));
      expect(event).to.deep.equal({ ...header, type: "charge_voided", reference: "a1" });
    });

    for (const type of ["refund.created", "refund.updated", "charge.refund.updated"]) {
      it(`tells a completed refund by ${type}`, () => {
        const result = { outcome: "completed", transactionId: "re_1", refunded: usd(500n), responseCode: "succeeded" };
        const event = eventOf(type, refundObject("succeeded"));
        expect(event).to.deep.equal({ ...header, type: "refund_completed", reference: "a1", key: "r1", result });
      });
    }

    it("tells a refund that the bank sent back", () => {
      const result = { outcome: "failed", reason: "lost_or_stolen_card", responseCode: "failed" };
      const event = eventOf("refund.failed", { ...refundObject("failed"), failure_reason: "lost_or_stolen_card" });
      expect(event).to.deep.equal({ ...header, type: "refund_failed", reference: "a1", key: "r1", result });
    });

    for (const [type, status, expected] of [
      ["charge.dispute.created", "needs_response", "dispute_opened"],
      ["charge.dispute.funds_withdrawn", "needs_response", "dispute_opened"],
      ["charge.dispute.closed", "won", "dispute_won"],
      ["charge.dispute.closed", "lost", "dispute_lost"],
    ] as const) {
      it(`tells ${type} that is ${status} as ${expected} of the transaction`, () => {
        const about = { transactionId: "pi_1", disputeId: "dp_1", amount: usd(500n), reason: "fraudulent" };
        expect(eventOf(type, disputeObject(status))).to.deep.equal({ ...header, type: expected, ...about });
      });
    }

    for (const [type, object] of [
      ["charge.dispute.created", disputeObject("warning_needs_response")],
      ["charge.dispute.closed", disputeObject("warning_closed")],
      ["refund.updated", refundObject("pending")],
      ["refund.created", refundObject("succeeded", {})],
      ["charge.refunded", {}],
      ["customer.created", {}],
    ] as const) {
      it(`accepts and ignores ${type}${"status" in object ? ` that is ${object.status}` : ""}`, () => {
        expect(eventOf(type, object)).to.deep.equal({ ...header, type: "ignored", vendorType: type });
      });
    }

    it("ignores intents that other systems made in the same account", async () => {
      const intent = { ...stripe.show(await captured()), metadata: {} };
      const event = eventOf("payment_intent.succeeded", intent);
      expect(event).to.include({ type: "ignored", vendorType: "payment_intent.succeeded" });
    });

    it("gives an event that is sent twice the same id", () => {
      const [first, second] = [eventOf("a.b", {}), eventOf("a.b", {})];
      expect(second.id).to.equal(first.id);
    });

    it("takes one good signature among several, as while a secret is being rolled", () => {
      const body = bodyOf("a.b", {});
      const [time, good] = stripeSignature(webhookSecret, body, now).split(",");
      expect(receive(body, `${time},v1=${"0".repeat(64)},${good}`)).to.include({ kind: "accepted" });
    });

    const body = bodyOf("payment_intent.succeeded", {});
    const good = stripeSignature(webhookSecret, body, now);
    for (const [what, signature] of [
      ["of another secret", stripeSignature("whsec_other0123456789", body, now)],
      ["of another body", stripeSignature(webhookSecret, `${body} `, now)],
      ["with another time", good.replace(/t=\d+/, `t=${now.getTime() / 1000 + 1}`)],
      ["with two times", `t=1,${good}`],
      ["of an old scheme alone", good.replace("v1=", "v0=")],
      ["that is empty", ""],
      ["that is huge", `${good},v1=${"0".repeat(64)}`.repeat(100)],
    ] as const) {
      it(`refuses a signature ${what} as forged`, () => {
        expect(receive(body, signature)).to.include({ kind: "refused", cause: "forged" });
      });
    }

    it("refuses a webhook without a signature, or with two, as forged", () => {
      for (const headers of [{}, { "stripe-signature": [good, good] }]) {
        const verdict = gateway.parseWebhook({ headers, body: Buffer.from(body), now });
        expect(verdict).to.include({ kind: "refused", cause: "forged" });
      }
    });

    it("refuses a replay after five minutes, and a time as far ahead, as stale", () => {
      const late = receive(body, good, new Date(now.getTime() + 301_000));
      const early = receive(body, good, new Date(now.getTime() - 301_000));
      expect([late, early].map((verdict) => verdict.kind === "refused" && verdict.cause)).to.deep.equal([
        "stale",
        "stale",
      ]);
    });

    it("refuses what is signed but not of Stripe's form as malformed", () => {
      const bodies = ["", "{", "null", "[]", "{}", bodyOf("payment_intent.succeeded", { id: 1 }), "x".repeat(300_000)];
      const causes = bodies.map((each) => {
        const verdict = receive(each);
        return verdict.kind === "refused" ? verdict.cause : verdict.kind;
      });
      expect(causes).to.deep.equal(bodies.map(() => "malformed"));
    });

    it("refuses every webhook while no secret is set", () => {
      const without = createStripeGateway({ apiKey });
      const verdict = without.parseWebhook({ headers: { "stripe-signature": good }, body: Buffer.from(body), now });
      expect(verdict).to.include({ kind: "refused", cause: "unconfigured" });
    });

    it("reads what the SDK itself signs", () => {
      const timestamp = now.getTime() / 1000;
      const signature = Stripe.webhooks.generateTestHeaderString({ payload: body, secret: webhookSecret, timestamp });
      expect(receive(body, signature)).to.include({ kind: "refused", cause: "malformed" });
    });
  });

  describe("settings", () => {
    for (const [what, options] of [
      ["an address that is no URL", { apiKey, baseUrl: "stripe" }],
      ["an address of another scheme", { apiKey, baseUrl: "ftp://stripe" }],
      ["an address with a path", { apiKey, baseUrl: "https://stripe/v1" }],
      ["an empty key", { apiKey: "" }],
      ["a short webhook secret", { apiKey, webhookSecret: "short" }],
    ] as const) {
      it(`refuse ${what}`, () => {
        expect(() => createStripeGateway(options)).to.throw(TypeError);
      });
    }
  });

  function refund(key: string, minor: bigint) {
    return gateway.refund({ key, reference: "a1", transactionId: onlyIntent(), amount: usd(minor) }, patient);
  }

  function dispute(id: string, fields: { id: string; amount: number; status: string }): void {
    const intent = stripe.intents.get(id);
    if (intent !== undefined) intent.disputed = true;
    stripe.disputes.push({ object: "dispute", currency: "usd", reason: "fraudulent", payment_intent: id, ...fields });
  }
});

/** Waits, within a bound, until something holds. */
async function until(holds: () => boolean, withinMs = 5_000): Promise<void> {
  const end = performance.now() + withinMs;
  while (!holds()) {
    if (performance.now() > end) expect.fail(`It did not hold within ${withinMs} ms.`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
