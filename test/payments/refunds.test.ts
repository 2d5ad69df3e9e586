import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { OrderPaymentState, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { type Payment, PaymentStatus, type Refund, RefundStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import type { Unknown } from "../../src/payments/gateways/gateway.ts";
import { reconcilePayments } from "../../src/payments/reconcile-payments.ts";
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
  text,
} from "../support/factories.ts";
import { fakeGateway } from "../support/fakes.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

const SECOND_MS = 1_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

const refundOf = ({ id }: Payment, amount: string, extra = {}) => ({
  requestId: randomUUID(),
  paymentId: id,
  amount: money(amount),
  reason: "Broken",
  ...extra,
});

const refund = async (person: Person, ...request: Parameters<typeof refundOf>): Promise<Refund> =>
  present((await person.payments.refundPayment(refundOf(...request))).refund);

const paymentNow = async (person: Person, { id }: Payment): Promise<Payment> =>
  present((await person.payments.getPayment({ paymentId: id })).payment);

/** A payment without an order. */
const aPayment = async (customer: Person, amount = "100", token = "tok_visa"): Promise<Payment> => {
  const request = { requestId: randomUUID(), amount: money(amount), paymentMethod: card(token) };
  const payment = present((await customer.payments.processPayment(request)).payment);
  expect(payment.status).to.equal(PaymentStatus.COMPLETED);
  return payment;
};

/** Sums of the ledger for one payment, by kind: each has to balance. */
const movementsOf = async ({ database }: TestServer, { id }: Payment) =>
  sql<{ kind: string; balance: number; gateway: number }>(
    database,
    `SELECT kind, sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END)::float8 AS balance,
            sum(CASE WHEN account LIKE 'GATEWAY:%' THEN CASE side WHEN 'DEBIT' THEN amount ELSE -amount END
                     ELSE 0 END)::float8 AS gateway
       FROM ledger_entries WHERE payment_id = $1 GROUP BY movement_id, kind ORDER BY min(create_time), kind`,
    [id],
  );

describe("RefundPayment with the sandbox gateway", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  const anOrder = async (quantity = 2) => {
    const product = await newProduct(admin, { price: "10", stock: 5 });
    return { product, order: await newOrder(customer, [[product, quantity]], { awaitPayment: true }) };
  };
  const pay = async (...request: Parameters<typeof paymentOf>) =>
    present((await customer.payments.processPayment(paymentOf(...request))).payment);
  const orderNow = async (orderId: string) => present((await customer.orders.getOrder({ orderId })).order);
  const stockOf = async (productId: string) =>
    present((await customer.catalog.getProduct({ productId })).product).stockQuantity;

  it("gives money back by the gateway that took it, and writes it to the ledger", async () => {
    const payment = await aPayment(customer);
    const made = await refund(customer, payment, "30.50");
    expect(made).to.include({ paymentId: payment.id, status: RefundStatus.COMPLETED, reason: "Broken" });
    expect(text(made.amount)).to.equal("30.5 USD");
    expect(made.gatewayTransactionId).to.match(/^rfd_/);
    expect(made.processTime).not.to.equal(undefined);

    const now = await paymentNow(customer, payment);
    expect(text(now.refundedAmount)).to.equal("30.5 USD");
    expect(now.refunds).to.deep.equal([made]);
    expect((await customer.payments.getRefund({ refundId: made.id })).refund).to.deep.equal(made);
    expect(await movementsOf(server, payment)).to.deep.equal([
      { kind: "CHARGE", balance: 0, gateway: 100 },
      { kind: "REFUND", balance: 0, gateway: -30.5 },
    ]);
  });

  it("asks in the settling transaction for the confirmation and for the points to be taken back", async () => {
    const made = await refund(customer, await aPayment(customer), "1");
    const jobs = await sql<{ task: string }>(
      server.database,
      `SELECT t.identifier AS task FROM graphile_worker._private_jobs j
         JOIN graphile_worker._private_tasks t ON t.id = j.task_id
        WHERE j.payload ->> 'refundId' = $1 ORDER BY 1`,
      [made.id],
    );
    expect(jobs.map(({ task }) => task)).to.deep.equal(["send-refund-confirmation", "take-back-rewards"]);
  });

  it("may be asked for by the payment's owner and by admins; to others neither payment nor refund is there", async () => {
    const payment = await aPayment(customer);
    const stranger = await newCustomer(server);
    const made = await refund(admin, payment, "1");
    const refusals = [
      await refusalOf(stranger.payments.refundPayment(refundOf(payment, "1"))),
      await refusalOf(stranger.payments.getRefund({ refundId: made.id })),
      await refusalOf(customer.payments.refundPayment(refundOf(payment, "1", { paymentId: randomUUID() }))),
      await refusalOf(customer.payments.getRefund({ refundId: randomUUID() })),
    ];
    expect(refusals.map(({ code, reason }) => `${code} ${reason}`)).to.deep.equal([
      "NotFound PAYMENT_NOT_FOUND",
      "NotFound REFUND_NOT_FOUND",
      "NotFound PAYMENT_NOT_FOUND",
      "NotFound REFUND_NOT_FOUND",
    ]);
    expect((await customer.payments.getRefund({ refundId: made.id })).refund?.id).to.equal(made.id);
  });

  for (const { what, amount, reason } of [
    { what: "nothing", amount: money("0"), reason: "AMOUNT_NOT_POSITIVE" },
    { what: "less than nothing", amount: money("-5"), reason: "AMOUNT_NOT_POSITIVE" },
    { what: "half a cent", amount: money("1.005"), reason: "AMOUNT_TOO_FINE" },
    { what: "two signs", amount: { currencyCode: "USD", units: 1n, nanos: -1 }, reason: "AMOUNT_MALFORMED" },
    { what: "a currency that there is not", amount: money("1", "XYZ"), reason: "CURRENCY_UNSUPPORTED" },
    { what: "another currency than the payment's", amount: money("1", "EUR"), reason: "CURRENCY_MISMATCH" },
  ]) {
    it(`refuses an amount of ${what}: ${reason}`, async () => {
      const refusal = await refusalOf(
        customer.payments.refundPayment(refundOf(await aPayment(customer), "1", { amount })),
      );
      expect(refusal).to.deep.include({ code: "InvalidArgument", reasons: { amount: reason } });
    });
  }

  it("refuses a payment that took no money, with where it stands", async () => {
    const request = { requestId: randomUUID(), amount: money("5"), paymentMethod: card("tok_declined") };
    const payment = present((await customer.payments.processPayment(request)).payment);
    expect(await refusalOf(customer.payments.refundPayment(refundOf(payment, "1")))).to.include({
      code: "FailedPrecondition",
      reason: "PAYMENT_NOT_REFUNDABLE",
      message: "Cannot refund payment with status: FAILED",
    });
  });

  it("refuses more than is left, with the figures", async () => {
    const payment = await aPayment(customer);
    await refund(customer, payment, "60");
    const refusal = await refusalOf(customer.payments.refundPayment(refundOf(payment, "40.01")));
    expect(refusal).to.include({
      code: "FailedPrecondition",
      reason: "REFUND_EXCEEDS_PAYMENT",
      message:
        "Cannot refund 40.01 USD: of 100.00 USD, 60.00 USD were refunded, 0.00 USD are being refunded and " +
        "0.00 USD are disputed; 40.00 USD are left",
    });
    expect(refusal.metadata).to.deep.equal({
      currency: "USD",
      requested: "40.01",
      paid: "100",
      refunded: "60",
      refunding: "0",
      disputed: "0",
      remaining: "40",
    });
    expect((await refund(customer, payment, "40")).status).to.equal(RefundStatus.COMPLETED);
  });

  it("never gives back more than the payment, however many partial refunds come at once", async () => {
    const payment = await aPayment(customer);
    const calls = Array.from({ length: 50 }, () => customer.payments.refundPayment(refundOf(payment, "7")));
    expect(await tally(calls)).to.deep.equal({ ok: 14, REFUND_EXCEEDS_PAYMENT: 36 });
    const now = await paymentNow(customer, payment);
    expect(text(now.refundedAmount)).to.equal("98 USD");
    const charges = (await (await fetch(`${server.sandbox.url}/charges`)).json()) as {
      charges: { reference: string; refunded_minor: number }[];
    };
    const [attempt] = await sql<{ id: string }>(
      server.database,
      "SELECT id FROM payment_attempts WHERE payment_id = $1",
      [payment.id],
    );
    expect(charges.charges.find(({ reference }) => reference === attempt?.id)?.refunded_minor).to.equal(9_800);
  });

  it("makes one refund of one request, however often it comes at once", async () => {
    const payment = await aPayment(customer);
    const request = refundOf(payment, "10");
    const outcomes = await tally(Array.from({ length: 20 }, () => customer.payments.refundPayment(request)));
    expect(Object.keys(outcomes)).to.satisfy((keys: string[]) =>
      keys.every((key) => key === "ok" || key === "REQUEST_IN_PROGRESS"),
    );
    const again = present((await customer.payments.refundPayment(request)).refund);
    const now = await paymentNow(customer, payment);
    expect(now.refunds).to.deep.equal([again]);
    expect(text(now.refundedAmount)).to.equal("10 USD");
  });

  it("refuses another request under the same id, also one about another payment at the same time", async () => {
    const [one, other] = await Promise.all([aPayment(customer), aPayment(customer)]);
    const requestId = randomUUID();
    const calls = [one, other].map((payment) => customer.payments.refundPayment(refundOf(payment, "1", { requestId })));
    expect(await tally(calls)).to.deep.equal({ ok: 1, REQUEST_ID_REUSED: 1 });
    const refusal = await refusalOf(customer.payments.refundPayment(refundOf(one, "2", { requestId })));
    expect(refusal).to.include({ code: "InvalidArgument", reason: "REQUEST_ID_REUSED" });
  });

  it("lets another caller use the same request id", async () => {
    const payment = await aPayment(customer);
    const requestId = randomUUID();
    const ours = await refund(customer, payment, "1", { requestId });
    const theirs = await refund(admin, payment, "1", { requestId });
    expect(theirs.id).not.to.equal(ours.id);
  });

  it("records a refund that the gateway refuses as an outcome, and releases its amount", async () => {
    const payment = await aPayment(customer, "100", "tok_refund_failed");
    const failed = await refund(customer, payment, "100");
    expect(failed).to.include({ status: RefundStatus.FAILED, failureReason: "Refund failed: refund_declined" });
    expect(text((await paymentNow(customer, payment)).refundedAmount)).to.equal("0 USD");
    expect((await refund(customer, payment, "100")).id).not.to.equal(failed.id);
  });

  it("finds a refund whose answer was lost, instead of guessing", async () => {
    const payment = await aPayment(customer, "100", "tok_refund_timeout");
    const made = await customer.payments.refundPayment(refundOf(payment, "25"), { timeoutMs: 4_000 });
    expect(made.refund?.status).to.equal(RefundStatus.COMPLETED);
    expect(text((await paymentNow(customer, payment)).refundedAmount)).to.equal("25 USD");
  });

  it("leaves a refund PENDING that the gateway has not finished, and the sweep learns its end", async () => {
    const payment = await aPayment(customer, "100", "tok_refund_pending");
    const pending = await refund(customer, payment, "25");
    expect([pending.status, pending.processTime]).to.deep.equal([RefundStatus.PENDING, undefined]);
    expect(pending.gatewayTransactionId).to.match(/^rfd_/);
    const waiting = await refusalOf(customer.payments.refundPayment(refundOf(payment, "80")));
    expect(waiting.metadata).to.include({ refunding: "25", remaining: "75" });

    let aheadMs = 0;
    let status = pending.status;
    while (status === RefundStatus.PENDING) {
      server.clock.advance(10 * SECOND_MS);
      aheadMs += 10 * SECOND_MS;
      await reconcileRefunds(server.deps);
      status = present((await customer.payments.getRefund({ refundId: pending.id })).refund).status;
    }
    server.clock.advance(-aheadMs);
    expect(status).to.equal(RefundStatus.COMPLETED);
    expect(text((await paymentNow(customer, payment)).refundedAmount)).to.equal("25 USD");
  });

  it("makes the order of a payment that goes back whole REFUNDED, cancels it and restores its stock", async () => {
    const { product, order } = await anOrder();
    const payment = await pay(order);
    await refund(customer, payment, "5");
    const between = await orderNow(order.id);
    expect([between.status, between.paymentState]).to.deep.equal([OrderStatus.CONFIRMED, OrderPaymentState.PAID]);

    await refund(customer, payment, "15");
    const after = await orderNow(order.id);
    expect([after.status, after.paymentState]).to.deep.equal([OrderStatus.CANCELLED, OrderPaymentState.REFUNDED]);
    expect(after.notes).to.include("Cancelled: Refunded");
    expect(await stockOf(product.id)).to.equal(5);
  });

  it("does not cancel an order that was shipped", async () => {
    const { product, order } = await anOrder();
    const payment = await pay(order);
    await admin.orders.shipOrder({ orderId: order.id, trackingNumber: "1Z" });
    await refund(customer, payment, "20");
    const after = await orderNow(order.id);
    expect([after.status, after.paymentState]).to.deep.equal([OrderStatus.SHIPPED, OrderPaymentState.REFUNDED]);
    expect(await stockOf(product.id)).to.equal(3);
  });

  it("gives back all that is left when a paid order is cancelled, once, however often its job runs", async () => {
    const { order } = await anOrder();
    const payment = await pay(order);
    await refund(customer, payment, "5");
    // Long after people can ask for refunds.
    await sql(server.database, "UPDATE payments SET process_time = now() - interval '90 days' WHERE id = $1", [
      payment.id,
    ]);
    await customer.orders.cancelOrder({ orderId: order.id, reason: "" });
    await server.runJobs();
    await sql(
      server.database,
      "SELECT graphile_worker.add_job('refund-order', json_build_object('orderId', $1::text))",
      [order.id],
    );
    await server.runJobs();

    const now = await paymentNow(customer, payment);
    expect(now.refunds.map(({ amount, status, reason }) => [text(amount), status, reason])).to.deep.equal([
      ["5 USD", RefundStatus.COMPLETED, "Broken"],
      ["15 USD", RefundStatus.COMPLETED, "Order cancelled"],
    ]);
    expect((await orderNow(order.id)).paymentState).to.equal(OrderPaymentState.REFUNDED);
  });

  it("lets one of cancelling and paying win, or gives the money back", async () => {
    const product = await newProduct(admin, { price: "10", stock: 100 });
    const orders = await Promise.all(
      Array.from({ length: 12 }, () => newOrder(customer, [[product, 1]], { awaitPayment: true })),
    );
    await Promise.all(
      orders.map((order) =>
        Promise.allSettled([
          customer.payments.processPayment(paymentOf(order)),
          customer.orders.cancelOrder({ orderId: order.id, reason: "" }),
        ]),
      ),
    );
    await server.runJobs();
    await reverseCharges(server.deps);
    const ends = await sql<{ status: string; payment_state: string; kept: string }>(
      server.database,
      `SELECT o.status, o.payment_state,
              coalesce((SELECT sum(CASE e.side WHEN 'DEBIT' THEN e.amount ELSE -e.amount END)
                          FROM ledger_entries e JOIN payments p ON p.id = e.payment_id
                         WHERE p.order_id = o.id AND e.account LIKE 'GATEWAY:%'), 0)::float8 AS kept
         FROM orders o WHERE o.id = ANY ($1)`,
      [orders.map(({ id }) => id)],
    );
    expect(ends).to.have.length(12);
    for (const { status, payment_state, kept } of ends) {
      expect(`${status} ${payment_state} ${kept}`).to.be.oneOf([
        "CONFIRMED PAID 10",
        "CANCELLED UNPAID 0",
        "CANCELLED REFUNDED 0",
      ]);
    }
    const confirmed = ends.filter(({ status }) => status === "CONFIRMED").length;
    expect(await stockOf(product.id)).to.equal(100 - confirmed);
  });
});

describe("RefundPayment at the edges of a gateway", () => {
  const gateway = fakeGateway();
  const server = useServer({
    gateways: { primary: gateway, backup: undefined },
    settings: { REFUND_WINDOW_DAYS: "30" },
  });
  let customer: Person;
  before(async () => {
    server.clock.stop();
    customer = await newCustomer(server);
  });
  afterEach(() => {
    Object.assign(gateway, fakeGateway());
  });

  const TIMEOUT: Unknown = { kind: "unknown", cause: "timeout", detail: "" };
  const completed = (minor: bigint) => ({
    outcome: "completed" as const,
    transactionId: "rfd_1",
    refunded: { currency: "USD", minor },
    responseCode: "00",
  });
  const checkTimeOf = async (refundId: string) => {
    const [row] = await sql<{ check_time: Date }>(server.database, "SELECT check_time FROM refunds WHERE id = $1", [
      refundId,
    ]);
    return present(row).check_time.getTime();
  };
  /** Lets time pass for as long as `work` takes. */
  const later = async (ms: number, work: () => Promise<unknown>) => {
    server.clock.advance(ms);
    try {
      await work();
    } finally {
      server.clock.advance(-ms);
    }
  };
  const statusOf = async (refundId: string) =>
    RefundStatus[(await customer.payments.getRefund({ refundId })).refund?.status ?? 0];

  it("asks the gateway that took the money, about that charge, under the refund's own id", async () => {
    const payment = await aPayment(customer);
    gateway.refund.resolves({ kind: "executed", result: completed(5_00n) });
    const made = await refund(customer, payment, "5");
    const [asked] = gateway.refund.firstCall.args;
    expect(asked).to.deep.equal({
      key: made.id,
      reference: gateway.charge.firstCall.args[0].reference,
      transactionId: payment.gatewayTransactionId,
      amount: { currency: "USD", minor: 500n },
    });
  });

  it("refuses what was paid longer ago than the window, without a call of the gateway", async () => {
    const payment = await aPayment(customer);
    await sql(server.database, "UPDATE payments SET process_time = $2 WHERE id = $1", [
      payment.id,
      new Date(Date.now() - 30 * DAY_MS - SECOND_MS),
    ]);
    const refusal = await refusalOf(customer.payments.refundPayment(refundOf(payment, "1")));
    expect(refusal).to.include({ code: "FailedPrecondition", reason: "REFUND_WINDOW_EXPIRED" });
    expect(refusal.message).to.include("can be refunded for 30 days");
    expect(gateway.refund.called).to.equal(false);

    await sql(server.database, "UPDATE payments SET process_time = $2 WHERE id = $1", [
      payment.id,
      new Date(Date.now() - 30 * DAY_MS + HOUR_MS),
    ]);
    gateway.refund.resolves({ kind: "executed", result: completed(100n) });
    expect((await refund(customer, payment, "1")).status).to.equal(RefundStatus.COMPLETED);
  });

  it("sends an unknown refund again under the same key, later and later, until the gateway tells of it", async () => {
    const payment = await aPayment(customer);
    gateway.refund.resolves(TIMEOUT);
    gateway.lookupRefund.resolves({ kind: "not_found" });
    const made = await refund(customer, payment, "5");
    expect(made.status).to.equal(RefundStatus.PENDING);

    let pauses: number[] = [];
    let aheadMs = 0;
    for (let i = 0; i < 4; i++) {
      const dueMs = await checkTimeOf(made.id);
      aheadMs = dueMs - server.clock.now().getTime();
      await later(aheadMs, async () => {
        await reconcileRefunds(server.deps);
        pauses = [...pauses, ((await checkTimeOf(made.id)) - dueMs) / SECOND_MS];
      });
    }
    expect(pauses).to.deep.equal([10, 20, 40, 80]);
    expect(new Set(gateway.refund.args.map(([{ key }]) => key))).to.deep.equal(new Set([made.id]));

    gateway.lookupRefund.resolves({ kind: "found", result: completed(500n) });
    const sent = gateway.refund.callCount;
    await later(aheadMs + 90 * SECOND_MS, () => reconcileRefunds(server.deps));
    expect(await statusOf(made.id)).to.equal("COMPLETED");
    expect(gateway.refund.callCount).to.equal(sent);
  });

  it("goes on with a refund whose gateway could not be reached at all", async () => {
    const payment = await aPayment(customer);
    gateway.refund.resolves({ kind: "not_executed", cause: "connection_failed", proves: "this_send", detail: "" });
    gateway.lookupRefund.resolves({ kind: "unknown", cause: "not_sent", detail: "" });
    const made = await refund(customer, payment, "5");
    expect(made.status).to.equal(RefundStatus.PENDING);
    gateway.refund.resolves({ kind: "executed", result: completed(500n) });
    await later(6 * SECOND_MS, () => reconcileRefunds(server.deps));
    expect(await statusOf(made.id)).to.equal("COMPLETED");
  });

  it("fails at once what the gateway rejects as it is", async () => {
    const payment = await aPayment(customer);
    gateway.refund.resolves({ kind: "not_executed", cause: "rejected", proves: "this_send", detail: "" });
    const made = await refund(customer, payment, "5");
    expect(made).to.include({ status: RefundStatus.FAILED, failureReason: "Refund failed: rejected by the gateway" });
  });

  it("never sends a key that is older than 23 hours", async () => {
    const payment = await aPayment(customer);
    gateway.refund.resolves(TIMEOUT);
    gateway.lookupRefund.resolves({ kind: "not_found" });
    const made = await refund(customer, payment, "5");
    const sent = gateway.refund.callCount;
    await later(23 * HOUR_MS + 60 * SECOND_MS, () => reconcileRefunds(server.deps));
    expect(gateway.refund.callCount).to.equal(sent);
    expect(await statusOf(made.id)).to.equal("PENDING");
    // Such a refund waits for a person, who has to find its amount still held.
    expect((await refusalOf(customer.payments.refundPayment(refundOf(payment, "96")))).metadata).to.include({
      refunding: "5",
    });
  });

  it("carries on with a refund whose process died before it was sent", async () => {
    const payment = await aPayment(customer);
    gateway.refund.rejects(new Error("as if the process had died"));
    const request = refundOf(payment, "5");
    expect((await refusalOf(customer.payments.refundPayment(request))).code).to.equal("Internal");
    expect(await refusalOf(customer.payments.refundPayment(request))).to.include({
      code: "Aborted",
      reason: "REQUEST_IN_PROGRESS",
      retryAfterMs: 1_000,
    });
    Object.assign(gateway, fakeGateway());
    gateway.lookupRefund.resolves({ kind: "not_found" });
    gateway.refund.resolves({ kind: "executed", result: completed(500n) });
    await later(6 * SECOND_MS, () => reconcileRefunds(server.deps));
    expect(gateway.refund.called, "its lease holds still").to.equal(false);
    await later(36 * SECOND_MS, () => reconcileRefunds(server.deps));
    const { refund: made } = await customer.payments.refundPayment(request);
    expect(made?.status).to.equal(RefundStatus.COMPLETED);
    expect(gateway.refund.firstCall.args[0].key).to.equal(made?.id);
  });

  it("holds the amount of a refund under way, and the database holds the sum", async () => {
    const payment = await aPayment(customer);
    const answers: (() => void)[] = [];
    gateway.refund.callsFake(
      ({ amount }) =>
        new Promise((resolve) => {
          answers.push(() => resolve({ kind: "executed", result: completed(amount.minor) }));
        }),
    );
    const first = refund(customer, payment, "70");
    while (answers.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    expect(await refusalOf(customer.payments.refundPayment(refundOf(payment, "40")))).to.deep.include({
      reason: "REFUND_EXCEEDS_PAYMENT",
    });
    const more = sql(server.database, "UPDATE payments SET refunding_amount = 101 WHERE id = $1", [payment.id]);
    expect(String(await more.catch((error: Error) => error))).to.include("payments_refunds_within");
    for (const answer of answers) answer();
    expect((await first).status).to.equal(RefundStatus.COMPLETED);
  });

  it("has at most 500 refunds of one payment", async () => {
    const payment = await aPayment(customer);
    await sql(
      server.database,
      `INSERT INTO refunds (id, payment_id, created_by, request_id, currency, amount, status, create_time, process_time)
       SELECT gen_random_uuid(), $1, $2, gen_random_uuid(), 'USD', 1, 'FAILED', now(), now() FROM generate_series(1, 500)`,
      [payment.id, customer.id],
    );
    expect(await refusalOf(customer.payments.refundPayment(refundOf(payment, "1")))).to.include({
      code: "FailedPrecondition",
      reason: "TOO_MANY_REFUNDS",
    });
  });

  it("leaves no refund and no payment whose sums differ", async () => {
    await reconcilePayments(server.deps);
    const wrong = await sql(
      server.database,
      `SELECT p.id FROM payments p
         LEFT JOIN LATERAL (SELECT coalesce(sum(amount) FILTER (WHERE status = 'COMPLETED'), 0) AS done,
                                   coalesce(sum(amount) FILTER (WHERE status = 'PENDING'), 0) AS pending
                              FROM refunds WHERE payment_id = p.id) r ON true
        WHERE p.refunded_amount <> r.done OR p.refunding_amount <> r.pending`,
    );
    expect(wrong).to.deep.equal([]);
    const sums = await sql<{ sum: number }>(
      server.database,
      "SELECT sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END)::float8 AS sum FROM ledger_entries GROUP BY currency",
    );
    expect(sums).to.deep.equal([{ sum: 0 }]);
  });
});
