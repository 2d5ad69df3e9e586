import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { DisputeStatus, type Payment, RefundStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { fromDecimal } from "../../src/money.ts";
import { DisputeStore } from "../../src/payments/dispute-store.ts";
import { signWebhook } from "../../src/payments/gateways/sandbox-webhook.ts";
import { sql } from "../support/database.ts";
import { card, money, newCustomer, type Person, present, text } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer, WEBHOOK_SECRET } from "../support/server.ts";

type State = "open" | "won" | "lost";

describe("disputes", () => {
  const server = useServer({ webhooks: true });
  let customer: Person;
  before(async () => {
    customer = await newCustomer(server);
  });

  const aPayment = async (amount = "100") => {
    const asked = { requestId: randomUUID(), amount: money(amount), paymentMethod: card("tok_visa") };
    const payment = present((await customer.payments.processPayment(asked)).payment);
    const [attempt] = await sql<{ id: string }>(
      server.database,
      "SELECT id FROM payment_attempts WHERE payment_id = $1",
      [payment.id],
    );
    return { payment, reference: present(attempt).id };
  };
  const refundOf = ({ id }: Payment, amount: string) => ({
    requestId: randomUUID(),
    paymentId: id,
    amount: money(amount),
  });
  const disputesOf = async ({ id }: Payment) =>
    present((await customer.payments.getPayment({ paymentId: id })).payment).disputes;

  /** Delivers an event as the sandbox would, and carries its job out. */
  const tell = async (id: string, reference: string, state: State, minor = 4_000, time = new Date(), extra = {}) => {
    const body = JSON.stringify({
      ...{
        id: `evt_${randomUUID()}`,
        type: `dispute.${state === "open" ? "opened" : state}`,
        gateway: "sandbox-primary",
      },
      create_time: time.toISOString(),
      dispute: {
        ...{ gateway: "sandbox-primary", id, reference, amount_minor: minor, currency: "USD", state },
        ...{ reason: "fraudulent", create_time: time.toISOString() },
        ...extra,
      },
    });
    const headers = { "sandbox-signature": signWebhook(WEBHOOK_SECRET, body, new Date()) };
    const answer = await fetch(`${server.url}/webhooks/sandbox`, { method: "POST", body, headers });
    expect(answer.status).to.equal(200);
    await server.runJobs();
    const waiting = await sql(server.database, "SELECT event_id FROM webhook_events WHERE process_time IS NULL");
    expect(waiting).to.deep.equal([]);
  };
  const lostMovements = ({ id }: Payment) =>
    sql<{ account: string; side: string; amount: number }>(
      server.database,
      `SELECT account, side, amount::float8 AS amount FROM ledger_entries
        WHERE payment_id = $1 AND kind = 'DISPUTE_LOST' ORDER BY account, side`,
      [id],
    );
  /** Plays the cardholder and the bank. */
  const act = async (path: string, body: object = {}) => {
    const answer = await fetch(`${server.sandbox.url}/sandbox-primary/${path}`, {
      method: "POST",
      body: JSON.stringify(body),
    });
    return ((await answer.json()) as { dispute: { id: string } }).dispute;
  };
  const until = async (payment: Payment, status: DisputeStatus) => {
    for (;;) {
      await server.runJobs();
      const [dispute] = await disputesOf(payment);
      if (dispute?.status === status) return dispute;
    }
  };

  it("are shown with their payment, from the cardholder's claim to the bank's word", async () => {
    const { payment, reference } = await aPayment();
    const { id } = await act(`charges/${reference}/disputes`, { amount_minor: 4_000, reason: "not_received" });
    const opened = await until(payment, DisputeStatus.OPEN);
    expect(opened).to.include({ paymentId: payment.id, reason: "not_received" });
    expect([text(opened.amount), opened.resolveTime]).to.deep.equal(["40 USD", undefined]);

    await act(`disputes/${id}/win`);
    const won = await until(payment, DisputeStatus.WON);
    expect(won.id).to.equal(opened.id);
    expect(won.resolveTime).not.to.equal(undefined);
    expect(await lostMovements(payment)).to.deep.equal([]);
  });

  it("find their payment by the gateway's transaction, too, which is all that some gateways name", async () => {
    const { payment } = await aPayment();
    const news = {
      gateway: "sandbox-primary" as const,
      gatewayDisputeId: "dp_by_transaction",
      charge: { transactionId: payment.gatewayTransactionId },
      amount: fromDecimal("USD", "5"),
      status: "OPEN" as const,
      reason: "fraudulent",
      occurTime: new Date(),
    };
    const change = await new DisputeStore(server.database.db).record(news);
    expect(change).to.deep.equal({ paymentId: payment.id, was: null, is: "OPEN" });
    expect(await disputesOf(payment)).to.have.length(1);
  });

  it("hold their amount against refunds while they are open and once they are lost, and free it when won", async () => {
    for (const { end, left } of [
      { end: "won", left: "100" },
      { end: "lost", left: "60" },
    ] as const) {
      const { payment, reference } = await aPayment();
      const id = `dsp_${randomUUID()}`;
      await tell(id, reference, "open");
      const refusal = await refusalOf(customer.payments.refundPayment(refundOf(payment, "60.01")));
      expect(refusal.reason).to.equal("REFUND_EXCEEDS_PAYMENT");
      expect(refusal.metadata).to.include({ disputed: "40", remaining: "60" });

      await tell(id, reference, end);
      const after = await refusalOf(customer.payments.refundPayment(refundOf(payment, "100.01")));
      expect(after.metadata).to.include({ remaining: left });
      expect((await customer.payments.refundPayment(refundOf(payment, left))).refund?.status).to.equal(
        RefundStatus.COMPLETED,
      );
    }
  });

  it("cost what was lost, once, in the ledger", async () => {
    const { payment, reference } = await aPayment();
    const id = `dsp_${randomUUID()}`;
    for (const state of ["open", "lost", "lost", "open"] as const) await tell(id, reference, state);
    expect(await lostMovements(payment)).to.deep.equal([
      { account: "CUSTOMER", side: "CREDIT", amount: 40 },
      { account: "CUSTOMER", side: "DEBIT", amount: 40 },
      { account: "GATEWAY:sandbox-primary", side: "CREDIT", amount: 40 },
      { account: "REFUNDS", side: "DEBIT", amount: 40 },
    ]);
  });

  it("come to the same end in whatever order their news arrives", async () => {
    const at = (minutes: number) => new Date(Date.UTC(2026, 0, 1, 0, minutes));
    const news: [State, Date][] = [
      ["open", at(0)],
      ["won", at(1)],
      ["lost", at(2)],
    ];
    const orders = [
      [0, 1, 2],
      [0, 2, 1],
      [1, 0, 2],
      [1, 2, 0],
      [2, 0, 1],
      [2, 1, 0],
    ];
    for (const order of orders) {
      const { payment, reference } = await aPayment();
      const id = `dsp_${randomUUID()}`;
      for (const i of order) {
        const [state, time] = present(news[i]);
        await tell(id, reference, state, 4_000, time);
      }
      const [dispute] = await disputesOf(payment);
      const facts = [dispute?.status, dispute?.createTime?.seconds, dispute?.resolveTime?.seconds];
      const seconds = (time: Date) => BigInt(time.getTime() / 1_000);
      expect(facts, order.join()).to.deep.equal([DisputeStatus.LOST, seconds(at(0)), seconds(at(2))]);
      expect(await lostMovements(payment), order.join()).to.have.length(4);
    }
  });

  it("violate nothing when everything was refunded before: there is only nothing left", async () => {
    const { payment, reference } = await aPayment();
    await customer.payments.refundPayment(refundOf(payment, "100"));
    const id = `dsp_${randomUUID()}`;
    await tell(id, reference, "open", 10_000);
    await tell(id, reference, "lost", 10_000);
    const [dispute] = await disputesOf(payment);
    expect(dispute?.status).to.equal(DisputeStatus.LOST);
    const refusal = await refusalOf(customer.payments.refundPayment(refundOf(payment, "1")));
    expect(refusal.metadata).to.include({ refunded: "100", disputed: "100", remaining: "0" });
  });

  it("hold all of a payment when they are in another currency", async () => {
    const { payment, reference } = await aPayment();
    await tell(`dsp_${randomUUID()}`, reference, "open", 100, new Date(), { currency: "EUR" });
    const refusal = await refusalOf(customer.payments.refundPayment(refundOf(payment, "1")));
    expect(refusal.metadata).to.include({ disputed: "100", remaining: "0" });
  });

  it("are acknowledged and left alone when they are about nothing that is known here", async () => {
    const before = await sql(server.database, "SELECT id FROM disputes");
    await tell("dsp_stranger", randomUUID(), "open");
    await tell("dsp_stranger", "not-one-of-ours", "open");
    const { reference } = await aPayment();
    await tell("dsp_currency", reference, "open", 100, new Date(), { currency: "QQQ" });
    await tell("dsp_huge", reference, "open", Number.MAX_SAFE_INTEGER);
    expect(await sql(server.database, "SELECT id FROM disputes")).to.deep.equal(before);
  });

  it("are decided against refunds one after the other, when both come at once", async () => {
    const { payment, reference } = await aPayment();
    const [, refund] = await Promise.allSettled([
      tell(`dsp_${randomUUID()}`, reference, "open", 10_000),
      customer.payments.refundPayment(refundOf(payment, "100")),
    ]);
    const [dispute] = await disputesOf(payment);
    expect(dispute?.status).to.equal(DisputeStatus.OPEN);
    if (refund.status === "rejected")
      expect((await refusalOf(Promise.reject(refund.reason))).reason).to.equal("REFUND_EXCEEDS_PAYMENT");
  });
});
