import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { OrderPaymentState } from "../../gen/tradepost/order/v1/order_pb.js";
import { PaymentStatus, RefundStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { examine } from "../../src/db/invariants.ts";
import { paymentInvariants } from "../../src/payments/check-store.ts";
import type { GatewayEvent } from "../../src/payments/gateways/gateway.ts";
import { reconcileRefunds } from "../../src/payments/reconcile-refunds.ts";
import { reverseCharges } from "../../src/payments/reverse-charges.ts";
import { sql } from "../support/database.ts";
import {
  card,
  money,
  newAdmin,
  newCustomer,
  newOrder,
  newProduct,
  type Person,
  paymentOf,
  present,
} from "../support/factories.ts";
import { fakeGateway } from "../support/fakes.ts";
import { useServer } from "../support/server.ts";

const SECOND_MS = 1_000;
const HOUR_MS = 3_600 * SECOND_MS;

describe("money that a gateway does not give back", () => {
  const gateway = fakeGateway();
  const alerts: Record<string, unknown>[] = [];
  const server = useServer({
    gateways: { primary: gateway, backup: undefined },
    logTo: {
      write(line: string) {
        const entry = JSON.parse(line) as Record<string, unknown>;
        if (String(entry["msg"]).includes("a person has to look") || Number(entry["level"]) >= 50) alerts.push(entry);
      },
    },
  });
  let admin: Person;
  let customer: Person;
  before(async () => {
    server.clock.stop();
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });
  let aheadMs = 0;
  beforeEach(() => {
    Object.assign(gateway, fakeGateway());
  });
  afterEach(async () => {
    server.clock.advance(-aheadMs);
    aheadMs = 0;
    await sql(server.database, "UPDATE payment_attempts SET check_time = 'infinity' WHERE check_time IS NOT NULL");
  });
  const wait = (ms: number) => {
    aheadMs += ms;
    server.clock.advance(ms);
  };

  const usd = (minor: bigint) => ({ currency: "USD", minor });
  const REFUSED = {
    kind: "executed",
    result: { outcome: "failed", reason: "insufficient_balance", responseCode: "51" },
  } as const;
  const DONE = {
    kind: "executed",
    result: { outcome: "completed", transactionId: "rfd_1", refunded: usd(1n), responseCode: "00" },
  } as const;
  const captured = { outcome: "captured", transactionId: "txn_1", captured: usd(1n), responseCode: "00" } as const;

  /** A payment of which another amount was taken, so that all of it has to go back. */
  const owed = async () => {
    gateway.charge.resolves({ kind: "executed", result: captured });
    const asked = { requestId: randomUUID(), amount: money("10.99"), paymentMethod: card("tok_visa") };
    const payment = present((await customer.payments.processPayment(asked)).payment);
    expect(payment.status).to.equal(PaymentStatus.FAILED);
    const [attempt] = await sql<{ id: string }>(
      server.database,
      "SELECT id FROM payment_attempts WHERE payment_id = $1",
      [payment.id],
    );
    alerts.length = 0;
    return { payment, attemptId: present(attempt).id };
  };
  const attemptNow = async (attemptId: string) => {
    const [row] = await sql<{ state: string; reversal_id: string; check_time: Date | null }>(
      server.database,
      "SELECT state, reversal_id, check_time FROM payment_attempts WHERE id = $1",
      [attemptId],
    );
    return present(row);
  };
  const pauseOf = async (attemptId: string) => {
    const { check_time } = await attemptNow(attemptId);
    return ((check_time?.getTime() ?? Number.NaN) - server.clock.now().getTime()) / SECOND_MS;
  };
  const faultsOf = async (subject: string) => {
    const { verdicts } = await examine(server.database.db, paymentInvariants);
    return verdicts.flatMap(({ examples }) =>
      examples.filter((breach) => breach.subject === subject).map(({ fault }) => fault),
    );
  };
  const keysSent = () => gateway.refund.args.map(([{ key }]) => key);

  it("is asked for again an hour after each refusal, by another key, and one person is told once", async () => {
    const { payment, attemptId } = await owed();
    gateway.refund.resolves(REFUSED);
    gateway.lookup.resolves({ kind: "found", charge: { ...captured, refunded: usd(0n), disputed: usd(0n) } });
    for (let tries = 1; tries <= 12; tries++) {
      await reverseCharges(server.deps);
      expect(gateway.refund.callCount).to.equal(tries);
      expect(await pauseOf(attemptId)).to.equal(3_600);
      wait(HOUR_MS / 2);
      await reverseCharges(server.deps);
      expect(gateway.refund.callCount, "it is not due before the hour is over").to.equal(tries);
      wait(HOUR_MS / 2);
    }
    expect(new Set(keysSent())).to.have.property("size", 12);
    expect(alerts.map(({ attemptId: of, reason }) => [of, reason])).to.deep.equal([
      [attemptId, "insufficient_balance"],
    ]);
    expect(await faultsOf(`payment ${payment.id}`)).to.deep.equal([
      `charge ${attemptId} by sandbox-primary of 0.010: insufficient_balance`,
    ]);

    gateway.refund.resolves(DONE);
    await reverseCharges(server.deps);
    expect((await attemptNow(attemptId)).state).to.equal("REVERSED");
    expect(await faultsOf(`payment ${payment.id}`)).to.deep.equal([]);
  });

  it("is known to have gone back once somebody has given it back by hand", async () => {
    const { payment, attemptId } = await owed();
    gateway.refund.resolves(REFUSED);
    gateway.lookup.resolves({ kind: "found", charge: { ...captured, refunded: usd(1n), disputed: usd(0n) } });
    await reverseCharges(server.deps);
    expect((await attemptNow(attemptId)).state).to.equal("REVERSED");
    expect(alerts).to.deep.equal([]);
    const kinds = "SELECT DISTINCT kind FROM ledger_entries WHERE payment_id = $1 ORDER BY kind";
    expect(await sql(server.database, kinds, [payment.id])).to.deep.equal([{ kind: "CHARGE" }, { kind: "REVERSAL" }]);
  });

  it("is asked for by the same key where the gateway only rejects the request, every hour, and one person is told once", async () => {
    const { attemptId } = await owed();
    gateway.refund.resolves({ kind: "not_executed", cause: "rejected", proves: "this_send", detail: "" });
    gateway.lookup.resolves({ kind: "unknown", cause: "not_sent", detail: "" });
    for (const _ of [1, 2, 3]) {
      await reverseCharges(server.deps);
      expect(await pauseOf(attemptId)).to.equal(3_600);
      wait(HOUR_MS);
    }
    expect(new Set(keysSent())).to.have.property("size", 1);
    expect(alerts.map(({ attemptId: of }) => of)).to.deep.equal([attemptId]);
  });

  it("is asked for by one key, later and later up to an hour, while its outcome is unknown; one person is told once", async () => {
    const { attemptId } = await owed();
    gateway.refund.resolves({ kind: "unknown", cause: "timeout", detail: "" });
    const pauses: number[] = [];
    for (let tries = 1; tries <= 14; tries++) {
      await reverseCharges(server.deps);
      const pause = await pauseOf(attemptId);
      pauses.push(pause);
      wait(pause * SECOND_MS);
    }
    expect(pauses.slice(0, 4)).to.deep.equal([5, 10, 20, 40]);
    for (const pause of pauses.slice(10)) expect(pause).to.equal(3_600);
    expect(new Set(keysSent())).to.have.property("size", 1);
    expect(alerts.map(({ attemptId: of }) => of)).to.deep.equal([attemptId]);
  });

  it("is told by webhooks, too, and one person hears of it once", async () => {
    const { attemptId } = await owed();
    gateway.refund.resolves({ kind: "pending", transactionId: "rfd_1" });
    const events: GatewayEvent[] = [];
    gateway.parseWebhook.callsFake(() => ({ kind: "accepted", events }));
    for (const _ of [1, 2, 3]) {
      await reverseCharges(server.deps);
      const { reversal_id: key } = await attemptNow(attemptId);
      const event = { id: randomUUID(), gateway: "sandbox-primary" as const, occurTime: new Date() };
      events.splice(0, 1, { ...event, type: "refund_failed", reference: attemptId, key, result: REFUSED.result });
      await fetch(`${server.url}/webhooks/sandbox`, { method: "POST", body: "{}" });
      await server.runJobs();
      expect(await pauseOf(attemptId)).to.equal(3_600);
      wait(HOUR_MS);
    }
    expect(new Set(keysSent())).to.have.property("size", 3);
    expect(alerts.map(({ attemptId: of }) => of)).to.deep.equal([attemptId]);
  });

  it("is for a person where a bank sends back what had gone back", async () => {
    const { attemptId } = await owed();
    gateway.refund.resolves(DONE);
    await reverseCharges(server.deps);
    const { state, reversal_id: key } = await attemptNow(attemptId);
    expect(state).to.equal("REVERSED");
    const event = { id: randomUUID(), gateway: "sandbox-primary" as const, occurTime: new Date() };
    const fact = { type: "refund_failed", reference: attemptId, key, result: REFUSED.result } as const;
    gateway.parseWebhook.callsFake(() => ({ kind: "accepted", events: [{ ...event, ...fact }] }));
    await fetch(`${server.url}/webhooks/sandbox`, { method: "POST", body: "{}" });
    await server.runJobs();
    expect(alerts.map(({ attemptId: of }) => of)).to.deep.equal([attemptId]);
  });

  it("has gone back when a webhook tells of a refund of all of it that was made by hand, and of no other", async () => {
    const { attemptId } = await owed();
    const events: GatewayEvent[] = [];
    gateway.parseWebhook.callsFake(() => ({ kind: "accepted", events }));
    const tell = async (minor: bigint) => {
      const event = { id: randomUUID(), gateway: "sandbox-primary" as const, occurTime: new Date() };
      const result = { ...DONE.result, refunded: usd(minor) };
      events.splice(0, 1, { ...event, type: "refund_completed", reference: attemptId, key: attemptId, result });
      await fetch(`${server.url}/webhooks/sandbox`, { method: "POST", body: "{}" });
      await server.runJobs();
      return (await attemptNow(attemptId)).state;
    };
    expect(await tell(2n)).to.equal("REVERSING");
    expect(alerts).to.have.length(1);
    expect(await tell(1n)).to.equal("REVERSED");
  });

  it("is not asked for again where it is a refund for a cancelled order: one person is told once, and can see it", async () => {
    const order = await newOrder(customer, [[await newProduct(admin), 1]], { awaitPayment: true });
    const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
    expect(payment.status).to.equal(PaymentStatus.COMPLETED);
    gateway.refund.resolves(REFUSED);
    alerts.length = 0;
    await customer.orders.cancelOrder({ orderId: order.id });
    await server.runJobs();
    for (const _ of [1, 2, 3]) {
      await reconcileRefunds(server.deps);
      await server.runJobs();
      wait(HOUR_MS);
    }
    expect(gateway.refund.callCount).to.equal(1);
    expect(alerts.map(({ paymentId }) => paymentId)).to.deep.equal([payment.id]);
    expect(await faultsOf(`order ${order.id}`)).to.deep.equal([
      `payment ${payment.id}: Refund failed: insufficient_balance`,
    ]);

    // What that person does: RefundPayment, once the cause is gone.
    wait(-aheadMs);
    gateway.refund.resolves({ ...DONE, result: { ...DONE.result, refunded: usd(1_099n) } });
    const asked = { requestId: randomUUID(), paymentId: payment.id, amount: money("10.99") };
    expect((await admin.payments.refundPayment(asked)).refund?.status).to.equal(RefundStatus.COMPLETED);
    expect((await customer.orders.getOrder({ orderId: order.id })).order?.paymentState).to.equal(
      OrderPaymentState.REFUNDED,
    );
    expect(await faultsOf(`order ${order.id}`)).to.deep.equal([]);
  });

  it("is told of once where a refund is not finished after a day, however often it is asked about", async () => {
    const asked = { requestId: randomUUID(), amount: money("10.99"), paymentMethod: card("tok_visa") };
    const payment = present((await customer.payments.processPayment(asked)).payment);
    gateway.refund.resolves({ kind: "unknown", cause: "timeout", detail: "" });
    gateway.lookupRefund.resolves({ kind: "unknown", cause: "timeout", detail: "" });
    const request = { requestId: randomUUID(), paymentId: payment.id, amount: money("10.99") };
    const refund = present((await customer.payments.refundPayment(request)).refund);
    expect(refund.status).to.equal(RefundStatus.PENDING);
    alerts.length = 0;
    wait(25 * HOUR_MS);
    for (const _ of [1, 2, 3]) {
      await reconcileRefunds(server.deps);
      wait(2 * HOUR_MS);
    }
    expect(gateway.lookupRefund.callCount).to.be.at.least(4);
    expect(alerts.map(({ refundId }) => refundId)).to.deep.equal([refund.id]);
  });
});
