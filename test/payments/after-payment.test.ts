import { randomUUID } from "node:crypto";
import { expect } from "chai";
import sinon from "sinon";
import { PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { jobHandlers } from "../../src/assemble.ts";
import { type Mail, type MailMessage, MailRefusedError } from "../../src/mail/mail.ts";
import type { FraudCheck } from "../../src/payments/fraud.ts";
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
import { readableMetrics } from "../support/metrics.ts";
import { type TestServer, useServer } from "../support/server.ts";

const pay = async (customer: Person, amount = "5.00", currency = "USD") => {
  const request = { requestId: randomUUID(), amount: money(amount, currency), paymentMethod: card("tok_visa") };
  return present((await customer.payments.processPayment(request)).payment);
};

/** Everything outside of a payment is played; what is called and counted is looked at. */
function playedOutside() {
  const primary = fakeGateway();
  const backup = { ...fakeGateway(), name: "sandbox-backup" as const };
  const check = sinon.stub<Parameters<FraudCheck["check"]>, ReturnType<FraudCheck["check"]>>();
  const send = sinon.stub<Parameters<Mail["send"]>, ReturnType<Mail["send"]>>();
  const counted = readableMetrics();
  const server = useServer({
    gateways: { primary, backup },
    fraud: { check },
    mail: { send, close: () => {} },
    metrics: counted.metrics,
    settings: { SECURITY_EMAIL: "security@tradepost.example" },
  });
  beforeEach(() => {
    Object.assign(primary, fakeGateway());
    Object.assign(backup, fakeGateway(), { name: "sandbox-backup" });
    check.reset();
    check.resolves({ riskLevel: "LOW", riskFactors: [] });
    send.reset();
    send.resolves();
  });
  const mailsTo = (email: string): MailMessage[] =>
    send.args.map(([message]) => message).filter(({ to, subject }) => to === email && !subject.startsWith("Confirm"));
  return { primary, backup, check, send, counted, server, mailsTo };
}

describe("a payment and what it sets going", () => {
  const { primary, backup, check, counted, server, mailsTo } = playedOutside();
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });

  it("succeeds with one fraud check and one charge, is confirmed by mail, and counted", async () => {
    const customer = await newCustomer(server);
    const order = await newOrder(customer, [[await newProduct(admin, { price: "47.48" }), 1]], { awaitPayment: true });
    const before = await counted.counters();
    const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
    await server.runJobs();

    expect(payment.status).to.equal(PaymentStatus.COMPLETED);
    expect([check.callCount, primary.charge.callCount, backup.charge.callCount]).to.deep.equal([1, 1, 0]);
    expect(check.firstCall.args[0].id).to.equal(payment.id);
    const [receipt, ...more] = mailsTo(customer.email);
    expect(more).to.deep.equal([]);
    expect(receipt?.subject).to.equal("Your payment was received");
    expect(receipt?.text).to.include("47.48 USD").and.to.include(payment.id).and.to.include(order.id);
    expect(await counted.grownSince(before)).to.deep.equal({ "payment.successful": 1 });
    expect(await counted.byAttributes("payment.processing_time")).to.deep.equal({
      '{"gateway":"sandbox-primary","status":"COMPLETED"}': 1,
    });
  });

  it("is stopped as fraud with an alert, and without any gateway", async () => {
    check.resolves({ riskLevel: "HIGH", riskFactors: ["stolen_card"] });
    const customer = await newCustomer(server);
    const before = await counted.counters();
    const payment = await pay(customer);
    await server.runJobs();

    expect(payment.status).to.equal(PaymentStatus.FRAUD_DETECTED);
    expect([primary.charge.callCount, backup.charge.callCount]).to.deep.equal([0, 0]);
    expect(mailsTo("security@tradepost.example").filter(({ text }) => text.includes(payment.id))).to.have.length(1);
    expect(mailsTo(customer.email)).to.deep.equal([]);
    expect(await counted.grownSince(before)).to.deep.equal({ "payment.fraud_detected": 1 });
  });

  it("goes to the backup after the primary's timeout: each is called once, and the failover is counted", async () => {
    primary.charge.resolves({ kind: "unknown", cause: "timeout", detail: "" });
    primary.lookup.resolves({ kind: "not_found" });
    primary.void.resolves({ kind: "voided" });
    const before = await counted.counters();
    const payment = await pay(await newCustomer(server));

    expect(payment).to.include({ status: PaymentStatus.COMPLETED, gateway: "sandbox-backup" });
    expect([check.callCount, primary.charge.callCount, backup.charge.callCount]).to.deep.equal([1, 1, 1]);
    expect(await counted.grownSince(before)).to.deep.equal({
      "payment.gateway_error": 1,
      "payment.gateway_failover": 1,
      "payment.backup_gateway_successful": 1,
      "payment.successful": 1,
    });
  });

  it("that fails at both gateways is counted as failed, and as failed at the backup", async () => {
    const unreached = { kind: "not_executed", cause: "connection_failed", proves: "this_send", detail: "" } as const;
    primary.charge.resolves(unreached);
    backup.charge.resolves(unreached);
    const before = await counted.counters();
    expect((await pay(await newCustomer(server))).status).to.equal(PaymentStatus.FAILED);
    expect(await counted.grownSince(before)).to.deep.equal({
      "payment.gateway_error": 2,
      "payment.gateway_failover": 1,
      "payment.backup_gateway_failed": 1,
      "payment.failed": 1,
    });
  });

  it("of ten customers at once are ten checks, ten charges and a counter of ten", async () => {
    const customers = await Promise.all(Array.from({ length: 10 }, () => newCustomer(server)));
    const before = await counted.counters();
    const payments = await Promise.all(customers.map((customer) => pay(customer)));
    await server.runJobs();

    expect(new Set(payments.map(({ status }) => status))).to.deep.equal(new Set([PaymentStatus.COMPLETED]));
    expect([check.callCount, primary.charge.callCount]).to.deep.equal([10, 10]);
    expect(await counted.grownSince(before)).to.deep.equal({ "payment.successful": 10 });
    for (const [i, { email }] of customers.entries()) {
      expect(mailsTo(email).map(({ text }) => text.includes(payments[i]?.id ?? "none"))).to.deep.equal([true]);
    }
  });
});

describe("the jobs after a payment", () => {
  const { send, counted, server, mailsTo } = playedOutside();
  const historyOf = ({ id }: Person) =>
    sql(
      server.database,
      `SELECT currency, payment_count::integer AS count, total_amount::float8 AS total, last_payment_time AS last
         FROM customer_payment_history WHERE customer_id = $1 ORDER BY currency`,
      [id],
    );
  const again = async (task: string, payload: object) => {
    const handler = jobHandlers(server.deps)[task];
    await handler?.(payload, { jobId: "0", attempt: 2, isLastAttempt: false, signal: new AbortController().signal });
  };
  const waiting = (testServer: TestServer, id: string) =>
    sql<{ task: string }>(
      testServer.database,
      `SELECT t.identifier AS task FROM graphile_worker._private_jobs j
         JOIN graphile_worker._private_tasks t ON t.id = j.task_id
        WHERE j.payload ->> 'paymentId' = $1 ORDER BY 1`,
      [id],
    );

  it("are enqueued with the success, and with nothing else", async () => {
    const customer = await newCustomer(server);
    expect(await waiting(server, (await pay(customer)).id)).to.deep.equal([
      { task: "grant-rewards" },
      { task: "send-payment-confirmation" },
      { task: "update-payment-history" },
    ]);
    await server.runJobs();
  });

  it("count, sum and date a customer's completed payments of each currency, once however often they run", async () => {
    const customer = await newCustomer(server);
    const payments = [await pay(customer, "10.00"), await pay(customer, "2.50"), await pay(customer, "3.00", "EUR")];
    await server.runJobs();
    const at = (i: number) => {
      const { seconds, nanos } = present(payments[i]?.processTime);
      return new Date(Number(seconds) * 1_000 + nanos / 1e6);
    };
    const expected = [
      { currency: "EUR", count: 1, total: 3, last: at(2) },
      { currency: "USD", count: 2, total: 12.5, last: at(1) },
    ];
    expect(await historyOf(customer)).to.deep.equal(expected);
    for (const { id } of payments) {
      await Promise.all([
        again("update-payment-history", { paymentId: id }),
        again("update-payment-history", { paymentId: id }),
      ]);
    }
    expect(await historyOf(customer)).to.deep.equal(expected);
  });

  it("count nothing of a payment that failed", async () => {
    const customer = await newCustomer(server);
    const { id } = await pay(customer);
    await sql(server.database, "UPDATE payments SET status = 'FAILED' WHERE id = $1", [id]);
    await again("update-payment-history", { paymentId: id });
    expect(await historyOf(customer)).to.deep.equal([]);
  });

  it("fail by themselves: a mail server that is away is counted, changes nothing else, and is tried again", async () => {
    const customer = await newCustomer(server);
    await server.runJobs();
    send.rejects(new Error("away"));
    const before = await counted.counters();
    const { id } = await pay(customer, "120.00");
    await server.runJobs();
    expect(await counted.grownSince(before)).to.deep.equal({
      "payment.successful": 1,
      "notification.payment_confirmation_failed": 1,
    });
    expect((await customer.payments.getPayment({ paymentId: id })).payment?.status).to.equal(PaymentStatus.COMPLETED);
    expect(await historyOf(customer)).to.have.length(1);
    expect((await customer.payments.getRewards({})).points).to.equal(120n);

    send.resolves();
    expect(await waiting(server, id)).to.deep.equal([{ task: "send-payment-confirmation" }]);
    await sql(
      server.database,
      "UPDATE graphile_worker._private_jobs SET run_at = now() WHERE payload ->> 'paymentId' = $1",
      [id],
    );
    await server.runJobs();
    expect(mailsTo(customer.email).filter(({ text }) => text.includes(id))).to.have.length(2);
    expect(await waiting(server, id)).to.deep.equal([]);
  });

  it("give a receipt up that the mail server refuses for good", async () => {
    const customer = await newCustomer(server);
    await server.runJobs();
    send.rejects(new MailRefusedError("no such mailbox"));
    const before = await counted.counters();
    const { id } = await pay(customer);
    await server.runJobs();
    expect(await counted.grownSince(before)).to.include({ "notification.payment_confirmation_failed": 1 });
    expect(await waiting(server, id)).to.deep.equal([]);
  });

  it("send a receipt whatever the customer's preferences are, and none to an account that is deleted", async () => {
    const [quiet, gone] = await Promise.all([newCustomer(server), newCustomer(server)]);
    await sql(server.database, "UPDATE users SET notifications = false, newsletter = false WHERE id = $1", [quiet.id]);
    await Promise.all([pay(quiet), pay(gone)]);
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [gone.id]);
    await server.runJobs();
    expect([mailsTo(quiet.email).length, mailsTo(gone.email).length]).to.deep.equal([1, 0]);
  });

  it("are counted when they break: history and points", async () => {
    const before = await counted.counters();
    for (const task of ["update-payment-history", "grant-rewards", "take-back-rewards"]) {
      await again(task, {}).then(
        () => expect.fail("it should have thrown"),
        () => {},
      );
    }
    expect(await counted.grownSince(before)).to.deep.equal({
      "customer_history.update_failed": 1,
      "rewards.processing_failed": 2,
    });
  });
});
