import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "chai";
import { pino } from "pino";
import type { ChargeAnswer, NotExecuted, RefundAnswer, Unknown } from "../../src/payments/gateways/gateway.ts";
import { type ResilienceLimits, resilient } from "../../src/payments/gateways/resilient.ts";
import { fakeGateway } from "../support/fakes.ts";

const POLL_MS = 5;
const WAIT_MS = 5_000;
/** Opens after two failures, and tries again soon. */
const TOUCHY: Partial<ResilienceLimits> = { breakWindowMs: 1_000, minCallsPerSecond: 2, breakMs: 50, firstPauseMs: 1 };

const log = pino({ level: "silent" });
const request = { reference: "a1", amount: { currency: "USD", minor: 500n }, paymentMethodToken: "tok_visa" };
const refund = { key: "r1", reference: "a1", transactionId: "t1", amount: request.amount };
const refused = (cause: NotExecuted["cause"], extra: Partial<NotExecuted> = {}): NotExecuted => ({
  kind: "not_executed",
  cause,
  proves: "this_send",
  detail: "",
  ...extra,
});
const unknown = (cause: Unknown["cause"]): Unknown => ({ kind: "unknown", cause, detail: "" });
const inTime = { timeoutMs: 2_000 };

describe("a resilient gateway", () => {
  it("passes an answer on as it is, with the time that the caller gave", async () => {
    const gateway = fakeGateway();
    const answer = await resilient(gateway, log).charge(request, { timeoutMs: 1_000 });
    expect(answer.kind).to.equal("executed");
    expect(gateway.charge.callCount).to.equal(1);
    expect(gateway.charge.firstCall.args[0]).to.equal(request);
    expect(gateway.charge.firstCall.args[1].timeoutMs).to.be.within(900, 1_000);
  });

  for (const cause of ["rate_limited", "unavailable"] as const) {
    it(`sends what was refused as ${cause} again with its own key, twice at most`, async () => {
      const gateway = fakeGateway();
      gateway.charge.resolves(refused(cause));
      expect(await resilient(gateway, log, { firstPauseMs: 1 }).charge(request, inTime)).to.deep.equal(refused(cause));
      expect(gateway.charge.args.map(([{ reference }]) => reference)).to.deep.equal(["a1", "a1", "a1"]);
    });
  }

  it("does the same for refunds", async () => {
    const gateway = fakeGateway();
    const completed: RefundAnswer = { kind: "pending" };
    gateway.refund.onCall(0).resolves(refused("rate_limited"));
    gateway.refund.onCall(1).resolves(completed);
    expect(await resilient(gateway, log, { firstPauseMs: 1 }).refund(refund, inTime)).to.equal(completed);
    expect(gateway.refund.callCount).to.equal(2);
  });

  const final: ChargeAnswer[] = [
    unknown("timeout"),
    unknown("gateway_error"),
    unknown("connection_lost"),
    { kind: "pending" },
    { kind: "executed", result: { outcome: "declined", reason: "card_declined", responseCode: "05" } },
    refused("rejected"),
    refused("key_conflict"),
    refused("connection_failed"),
  ];
  for (const answer of final) {
    const what = "cause" in answer ? `${answer.kind} ${answer.cause}` : answer.kind;
    it(`never sends again after "${what}"`, async () => {
      const gateway = fakeGateway();
      gateway.charge.resolves(answer);
      expect(await resilient(gateway, log, { firstPauseMs: 1 }).charge(request, inTime)).to.equal(answer);
      expect(gateway.charge.callCount).to.equal(1);
    });
  }

  it("stops at an unknown outcome, also when it is a retry's", async () => {
    const gateway = fakeGateway();
    gateway.charge.onCall(0).resolves(refused("rate_limited"));
    gateway.charge.onCall(1).resolves(unknown("timeout"));
    expect(await resilient(gateway, log, { firstPauseMs: 1 }).charge(request, inTime)).to.deep.equal(
      unknown("timeout"),
    );
    expect(gateway.charge.callCount).to.equal(2);
  });

  it("waits as long as the gateway asks, and does not where there is no time for it", async () => {
    const gateway = fakeGateway();
    gateway.charge.onCall(0).resolves(refused("rate_limited", { retryAfterMs: 60 }));
    const startedAt = performance.now();
    expect((await resilient(gateway, log).charge(request, inTime)).kind).to.equal("executed");
    expect(performance.now() - startedAt).to.be.at.least(55);

    const patient = fakeGateway();
    patient.charge.resolves(refused("rate_limited", { retryAfterMs: 60_000 }));
    expect((await resilient(patient, log).charge(request, inTime)).kind).to.equal("not_executed");
    expect(patient.charge.callCount).to.equal(1);
  });

  it("sends nothing while its circuit is open, which proves this send alone, and still asks and voids", async () => {
    const gateway = fakeGateway();
    gateway.charge.resolves(unknown("gateway_error"));
    gateway.lookup.resolves({ kind: "not_found" });
    gateway.void.resolves({ kind: "voided" });
    const guarded = resilient(gateway, log, { ...TOUCHY, breakMs: 60_000 });
    for (const _ of [1, 2, 3]) await guarded.charge(request, inTime);
    const calls = gateway.charge.callCount;
    expect(await guarded.charge(request, inTime)).to.deep.include({
      kind: "not_executed",
      cause: "unavailable",
      proves: "this_send",
    });
    expect(await guarded.refund(refund, inTime)).to.include({ kind: "not_executed", cause: "unavailable" });
    expect([gateway.charge.callCount, gateway.refund.callCount]).to.deep.equal([calls, 0]);
    expect(await guarded.lookup({ reference: "a1" }, inTime)).to.deep.equal({ kind: "not_found" });
    expect(await guarded.void({ reference: "a1" }, inTime)).to.deep.equal({ kind: "voided" });
  });

  it("lets one call try after a while: others do not wait for it, and its success closes the circuit", async () => {
    const gateway = fakeGateway();
    gateway.charge.resolves(unknown("gateway_error"));
    const guarded = resilient(gateway, log, TOUCHY);
    for (const _ of [1, 2, 3]) await guarded.charge(request, inTime);
    let end: ((answer: ChargeAnswer) => void) | undefined;
    gateway.charge.callsFake(
      () =>
        new Promise((resolve) => {
          end = resolve;
        }),
    );
    const deadline = Date.now() + WAIT_MS;
    let trying = guarded.charge(request, inTime);
    while (end === undefined && Date.now() < deadline) {
      await sleep(POLL_MS);
      if (end === undefined) trying = guarded.charge(request, inTime);
    }
    expect(await guarded.charge(request, inTime)).to.include({ kind: "not_executed", cause: "unavailable" });
    end?.({ kind: "pending" });
    expect(await trying).to.deep.equal({ kind: "pending" });
    gateway.charge.resolves({ kind: "pending" });
    expect(await guarded.charge(request, inTime)).to.deep.equal({ kind: "pending" });
  });

  it("does not take declines, faulty requests and cancelled calls for trouble of the gateway", async () => {
    const gateway = fakeGateway();
    const guarded = resilient(gateway, log, { ...TOUCHY, breakMs: 60_000 });
    const answers = [...final.filter(({ kind }) => kind === "executed"), refused("rejected"), unknown("aborted")];
    for (const answer of [...answers, ...answers]) {
      gateway.charge.resolves(answer);
      expect(await guarded.charge(request, inTime)).to.equal(answer);
    }
  });

  describe("with room for one call and one that waits", () => {
    const narrow = { maxCalls: 1, maxWaitingCalls: 1, firstPauseMs: 1 };
    const held = () => {
      const gateway = fakeGateway();
      const ends: ((answer: ChargeAnswer) => void)[] = [];
      gateway.charge.callsFake(() => new Promise((resolve) => ends.push(resolve)));
      return { gateway, ends, guarded: resilient(gateway, log, narrow) };
    };

    it("refuses what is beyond that, unsent", async () => {
      const { gateway, ends, guarded } = held();
      const calls = [guarded.charge(request, inTime), guarded.charge(request, inTime)];
      expect(await guarded.charge(request, inTime)).to.include({
        kind: "not_executed",
        cause: "unavailable",
        detail: "too many calls are under way",
      });
      expect(gateway.charge.callCount).to.equal(1);
      ends[0]?.({ kind: "pending" });
      expect(await calls[0]).to.deep.equal({ kind: "pending" });
      const deadline = Date.now() + WAIT_MS;
      while (ends.length < 2 && Date.now() < deadline) await sleep(POLL_MS);
      ends[1]?.({ kind: "pending" });
      expect(await calls[1]).to.deep.equal({ kind: "pending" });
    });

    it("does not send what has waited for all of its time, nor what its caller gave up", async () => {
      const { gateway, ends, guarded } = held();
      const first = guarded.charge(request, inTime);
      expect(await guarded.charge(request, { timeoutMs: 20 })).to.include({ kind: "not_executed", cause: "timeout" });
      ends[0]?.({ kind: "pending" });
      await first;

      const second = guarded.charge(request, inTime);
      const leaving = new AbortController();
      const givenUp = guarded.charge(request, { ...inTime, signal: leaving.signal });
      leaving.abort();
      expect(await givenUp).to.include({ kind: "not_executed", cause: "aborted" });
      ends[1]?.({ kind: "pending" });
      await second;
      expect(gateway.charge.callCount).to.equal(2);
    });
  });
});
