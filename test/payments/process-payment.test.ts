import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { OrderPaymentState, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
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

interface SandboxCharge {
  readonly reference: string;
  readonly token: string;
  readonly state: string;
  readonly captured_minor: number;
}

const chargesOf = async ({ sandbox }: TestServer): Promise<SandboxCharge[]> =>
  ((await (await fetch(`${sandbox.url}/charges`)).json()) as { charges: SandboxCharge[] }).charges;

describe("ProcessPayment with the sandbox gateway", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  const anOrder = async (extra = {}) =>
    newOrder(customer, [[await newProduct(admin, { price: "47.48" }), 1]], { awaitPayment: true, ...extra });
  const orderNow = async (orderId: string) => present((await customer.orders.getOrder({ orderId })).order);
  const pay = async (...request: Parameters<typeof paymentOf>) =>
    present((await customer.payments.processPayment(paymentOf(...request))).payment);

  it("completes the payment and confirms the order that waited for it", async () => {
    const order = await anOrder();
    const payment = await pay(order);
    expect(payment).to.include({
      orderId: order.id,
      customerId: customer.id,
      status: PaymentStatus.COMPLETED,
      gateway: "sandbox-primary",
      failureReason: "",
    });
    expect(text(payment.amount)).to.equal("47.48 USD");
    expect(payment.gatewayTransactionId).not.to.equal("");
    expect(payment.processTime).not.to.equal(undefined);

    const paid = await orderNow(order.id);
    expect([paid.status, paid.paymentState]).to.deep.equal([OrderStatus.CONFIRMED, OrderPaymentState.PAID]);
    expect(paid.expireTime).to.equal(undefined);
    expect((await customer.payments.getPayment({ paymentId: payment.id })).payment).to.deep.equal(payment);
  });

  it("takes a payment without an order", async () => {
    const request = { requestId: randomUUID(), amount: money("5"), paymentMethod: card("tok_visa") };
    expect((await customer.payments.processPayment(request)).payment).to.include({
      status: PaymentStatus.COMPLETED,
      orderId: "",
    });
  });

  it("records a decline as an outcome, not an error, and frees the order for another payment", async () => {
    const order = await anOrder();
    const declined = await pay(order, {}, "tok_declined");
    expect(declined.status).to.equal(PaymentStatus.FAILED);
    expect(declined.failureReason).to.match(/^Payment declined: /);
    expect((await orderNow(order.id)).paymentState).to.equal(OrderPaymentState.UNPAID);
    expect((await pay(order)).status).to.equal(PaymentStatus.COMPLETED);
  });

  it("charges one request once, however often it comes at once", async () => {
    const request = paymentOf(await anOrder());
    const calls = Array.from({ length: 20 }, () => customer.payments.processPayment(request));
    const outcomes = await tally(calls);
    expect(Object.keys(outcomes)).to.satisfy((keys: string[]) =>
      keys.every((key) => key === "ok" || key === "REQUEST_IN_PROGRESS"),
    );
    const again = present((await customer.payments.processPayment(request)).payment);
    expect(again.status).to.equal(PaymentStatus.COMPLETED);
    const attempts = await sql<{ id: string }>(
      server.database,
      "SELECT id FROM payment_attempts WHERE payment_id = $1",
      [again.id],
    );
    expect(attempts).to.have.length(1);
    expect((await chargesOf(server)).filter(({ reference }) => reference === attempts[0]?.id)).to.have.length(1);
  });

  it("completes one of twenty payments that want the same order at once", async () => {
    const order = await anOrder();
    const calls = Array.from({ length: 20 }, () => customer.payments.processPayment(paymentOf(order)));
    expect(await tally(calls)).to.deep.equal({ ok: 1, ORDER_NOT_PAYABLE: 19 });
  });

  it("refuses another request under the same id", async () => {
    const request = { requestId: randomUUID(), amount: money("5"), paymentMethod: card("tok_visa") };
    await customer.payments.processPayment(request);
    const refusal = await refusalOf(customer.payments.processPayment({ ...request, amount: money("6") }));
    expect(refusal).to.include({ code: "InvalidArgument", reason: "REQUEST_ID_REUSED" });
  });

  it("finds a capture whose answer was lost, instead of guessing", async () => {
    const order = await anOrder();
    const payment = await pay(order, {}, "tok_error_captured");
    expect(payment.status).to.equal(PaymentStatus.COMPLETED);
    expect((await orderNow(order.id)).paymentState).to.equal(OrderPaymentState.PAID);
  });

  it("finds a capture behind an answer that is garbage", async () => {
    expect((await pay(await anOrder(), {}, "tok_garbage")).status).to.equal(PaymentStatus.COMPLETED);
  });

  it("fails a charge that never reached the gateway, and frees the order", async () => {
    const order = await anOrder();
    const payment = await pay(order, {}, "tok_unreachable");
    expect(payment.status).to.equal(PaymentStatus.FAILED);
    expect(payment.failureReason).to.equal("Payment processing failed on all gateways");
    expect((await orderNow(order.id)).paymentState).to.equal(OrderPaymentState.UNPAID);
  });

  it("refuses what may not be paid: an order of another, one that is paid, one whose time has passed, another amount", async () => {
    const order = await anOrder();
    const other = await newCustomer(server);
    expect((await refusalOf(other.payments.processPayment(paymentOf(order)))).reason).to.equal("ORDER_NOT_FOUND");
    const wrong = await refusalOf(customer.payments.processPayment(paymentOf(order, { amount: money("47.47") })));
    expect(wrong).to.include({
      code: "FailedPrecondition",
      reason: "AMOUNT_MISMATCH",
      message: "The order's total is 47.48 USD, not 47.47 USD",
    });
    await pay(order);
    const paid = await refusalOf(customer.payments.processPayment(paymentOf(order)));
    expect(paid).to.include({ reason: "ORDER_NOT_PAYABLE", message: "Cannot pay order with payment state: PAID" });

    const slow = await anOrder();
    await sql(server.database, "UPDATE orders SET expire_time = now() - interval '1 second' WHERE id = $1", [slow.id]);
    expect((await refusalOf(customer.payments.processPayment(paymentOf(slow)))).reason).to.equal("ORDER_NOT_PAYABLE");

    const cancelled = await anOrder();
    await sql(server.database, "UPDATE orders SET status = 'CANCELLED' WHERE id = $1", [cancelled.id]);
    expect((await refusalOf(customer.payments.processPayment(paymentOf(cancelled)))).message).to.equal(
      "Cannot pay order with status: CANCELLED",
    );
  });

  it("checks amount, currency and method, all at once", async () => {
    const reasons = async (amount: ReturnType<typeof money>, token?: string) => {
      const paymentMethod = token === undefined ? {} : { paymentMethod: card(token) };
      return (await refusalOf(customer.payments.processPayment({ requestId: randomUUID(), amount, ...paymentMethod })))
        .reasons;
    };
    expect(await reasons(money("0"))).to.deep.equal({
      amount: "AMOUNT_NOT_POSITIVE",
      payment_method: "PAYMENT_METHOD_REQUIRED",
    });
    expect(await reasons(money("-1"), "tok_visa")).to.deep.equal({ amount: "AMOUNT_NOT_POSITIVE" });
    expect(await reasons(money("10000.01"), "tok_visa")).to.deep.equal({ amount: "AMOUNT_TOO_LARGE" });
    expect(await reasons(money("5", "GBP"), "tok_visa")).to.deep.equal({ amount: "CURRENCY_UNSUPPORTED" });
    expect(await reasons(money("5.001"), "tok_visa")).to.deep.equal({ amount: "AMOUNT_TOO_FINE" });
    expect(await reasons(money("5"), "4242 4242 4242 4242")).to.deep.equal({
      "payment_method.card.token": "CARD_NUMBER_REFUSED",
    });
  });

  it("lets an admin, and nobody else, pay for another customer", async () => {
    const order = await anOrder();
    const other = await newCustomer(server);
    const request = paymentOf(order, { customerId: customer.id });
    expect((await refusalOf(other.payments.processPayment(request))).reason).to.equal("ADMIN_REQUIRED");
    expect((await admin.payments.processPayment(request)).payment?.customerId).to.equal(customer.id);
  });

  it("shows a payment to its customer and to admins, and to others not even that it is there", async () => {
    const { id: paymentId } = await pay(await anOrder());
    const other = await newCustomer(server);
    expect((await admin.payments.getPayment({ paymentId })).payment?.id).to.equal(paymentId);
    expect(await refusalOf(other.payments.getPayment({ paymentId }))).to.include({
      code: "NotFound",
      reason: "PAYMENT_NOT_FOUND",
    });
  });
});

describe("ProcessPayment when the gateway does not answer", () => {
  const gateway = fakeGateway();
  const server = useServer({ gateways: { primary: gateway, backup: undefined } });
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });
  afterEach(() => {
    Object.assign(gateway, fakeGateway());
  });

  const anOrder = async () => newOrder(customer, [[await newProduct(admin), 1]], { awaitPayment: true });
  const TIMEOUT = { kind: "unknown", cause: "timeout", detail: "" } as const;
  const captured = {
    outcome: "captured",
    transactionId: "txn_1",
    captured: { currency: "USD", minor: 1099n },
    responseCode: "00",
  } as const;
  const nothing = { currency: "USD", minor: 0n };

  it("fails the payment on the gateway's proof that it can never execute", async () => {
    gateway.charge.resolves(TIMEOUT);
    gateway.lookup.resolves({ kind: "not_found" });
    gateway.void.resolves({ kind: "voided" });
    const { payment } = await customer.payments.processPayment(paymentOf(await anOrder()));
    expect(payment).to.include({ status: PaymentStatus.FAILED, failureReason: "Gateway timeout" });
    expect(gateway.charge.callCount).to.equal(1);
  });

  it("completes it when the look-up finds the money taken", async () => {
    gateway.charge.resolves(TIMEOUT);
    gateway.lookup.resolves({ kind: "found", charge: { ...captured, refunded: nothing, disputed: nothing } });
    const { payment } = await customer.payments.processPayment(paymentOf(await anOrder()));
    expect(payment?.status).to.equal(PaymentStatus.COMPLETED);
  });

  it("completes it when the void comes too late", async () => {
    gateway.charge.resolves(TIMEOUT);
    gateway.lookup.resolves({ kind: "not_found" });
    gateway.void.resolves({ kind: "executed", result: captured });
    const { payment } = await customer.payments.processPayment(paymentOf(await anOrder()));
    expect(payment?.status).to.equal(PaymentStatus.COMPLETED);
  });

  it("leaves it PENDING without proof, the order neither cancelled nor payable again, and goes on when asked again", async () => {
    gateway.charge.resolves(TIMEOUT);
    gateway.lookup.resolves({ kind: "unknown", cause: "not_sent", detail: "" });
    gateway.void.resolves({ kind: "unknown", cause: "not_sent", detail: "" });
    const order = await anOrder();
    const request = paymentOf(order);
    const pending = present((await customer.payments.processPayment(request)).payment);
    expect([pending.status, pending.processTime]).to.deep.equal([PaymentStatus.PENDING, undefined]);
    expect((await customer.orders.getOrder({ orderId: order.id })).order?.paymentState).to.equal(
      OrderPaymentState.PENDING,
    );
    expect((await refusalOf(customer.payments.processPayment(paymentOf(order)))).reason).to.equal("ORDER_NOT_PAYABLE");

    gateway.lookup.resolves({ kind: "found", charge: { ...captured, refunded: nothing, disputed: nothing } });
    const settled = present((await customer.payments.processPayment(request)).payment);
    expect([settled.id, settled.status]).to.deep.equal([pending.id, PaymentStatus.COMPLETED]);
    expect(gateway.charge.callCount, "what may have been executed is asked about, not sent again").to.equal(1);
  });

  it("does not complete a payment of which another amount was taken, and gives that back once", async () => {
    gateway.charge.resolves({ kind: "executed", result: { ...captured, captured: { currency: "USD", minor: 1n } } });
    const order = await anOrder();
    const { payment } = await customer.payments.processPayment(paymentOf(order));
    expect(payment).to.include({
      status: PaymentStatus.FAILED,
      failureReason: "Gateway error: another amount was taken, and is given back",
    });
    const refunded = {
      outcome: "completed",
      transactionId: "ref_1",
      refunded: { currency: "USD", minor: 1n },
      responseCode: "",
    } as const;
    gateway.refund.onFirstCall().resolves({ kind: "unknown", cause: "timeout", detail: "" });
    gateway.refund.resolves({ kind: "executed", result: refunded });
    await reverseCharges(server.deps);
    server.clock.advance(60_000);
    await reverseCharges(server.deps);
    server.clock.advance(60_000);
    await reverseCharges(server.deps);
    server.clock.advance(-120_000);
    const keys = gateway.refund.getCalls().map(({ args }) => [args[0].key, args[0].amount.minor]);
    expect(keys).to.deep.equal([keys[0], keys[0]]);
    expect(keys[0]?.[1]).to.equal(1n);
    const ledger = await sql(
      server.database,
      `SELECT kind, account, side, amount::float8 AS amount FROM ledger_entries WHERE payment_id = $1
        ORDER BY kind, account, side`,
      [present(payment).id],
    );
    expect(ledger).to.deep.equal(
      [
        ["CHARGE", "CUSTOMER", "CREDIT"],
        ["CHARGE", "CUSTOMER", "DEBIT"],
        ["CHARGE", "GATEWAY:sandbox-primary", "DEBIT"],
        ["CHARGE", "REVENUE", "CREDIT"],
        ["REVERSAL", "CUSTOMER", "CREDIT"],
        ["REVERSAL", "CUSTOMER", "DEBIT"],
        ["REVERSAL", "GATEWAY:sandbox-primary", "CREDIT"],
        ["REVERSAL", "REVENUE", "DEBIT"],
      ].map(([kind, account, side]) => ({ kind, account, side, amount: 0.01 })),
    );
    expect((await customer.orders.getOrder({ orderId: order.id })).order?.paymentState).to.equal(
      OrderPaymentState.UNPAID,
    );
  });

  it("carries a recorded payment out although its client has gone", async () => {
    let answer: (() => void) | undefined;
    gateway.charge.callsFake(
      () =>
        new Promise((resolve) => {
          answer = () => resolve({ kind: "executed", result: captured });
        }),
    );
    const order = await anOrder();
    const leave = new AbortController();
    const call = customer.payments
      .processPayment(paymentOf(order), { signal: leave.signal })
      .catch((error: Error) => error);
    while (answer === undefined) await new Promise((resolve) => setTimeout(resolve, 5));
    leave.abort();
    await call;
    answer();
    let state: OrderPaymentState | undefined;
    while (state !== OrderPaymentState.PAID)
      state = (await customer.orders.getOrder({ orderId: order.id })).order?.paymentState;
  });

  it("tells a twin that comes meanwhile that the request is being carried out", async () => {
    let answer: (() => void) | undefined;
    gateway.charge.callsFake(
      () =>
        new Promise((resolve) => {
          answer = () => resolve({ kind: "executed", result: captured });
        }),
    );
    const request = paymentOf(await anOrder());
    const first = customer.payments.processPayment(request);
    while (answer === undefined) await new Promise((resolve) => setTimeout(resolve, 5));
    const twin = await refusalOf(customer.payments.processPayment(request));
    expect(twin).to.include({ code: "Aborted", reason: "REQUEST_IN_PROGRESS", retryAfterMs: 1_000 });
    answer();
    expect((await first).payment?.status).to.equal(PaymentStatus.COMPLETED);
  });
});

describe("ProcessPayment with a fraud check", () => {
  const gateway = fakeGateway();
  const fraud = { check: async () => ({ riskLevel: "HIGH" as const, riskFactors: ["blocklisted_token"] }) };
  const server = useServer({ gateways: { primary: gateway, backup: undefined }, fraud });

  it("stops a payment of high risk before any gateway is asked, and frees the order", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    const order = await newOrder(customer, [[await newProduct(admin), 1]], { awaitPayment: true });
    const { payment } = await customer.payments.processPayment(paymentOf(order));
    expect(payment).to.include({
      status: PaymentStatus.FRAUD_DETECTED,
      failureReason: "Payment declined for security reasons",
      gateway: "",
    });
    expect(gateway.charge.called).to.equal(false);
    expect((await customer.orders.getOrder({ orderId: order.id })).order?.paymentState).to.equal(
      OrderPaymentState.UNPAID,
    );
  });
});

describe("While the fraud check or a gateway is asked", () => {
  const gateway = fakeGateway();
  const open: { asked: string; transactions: number }[] = [];
  /** Transactions that are open in this database, besides the one that looks. */
  const look = async (asked: string) => {
    const [row] = await sql<{ transactions: number }>(
      server.database,
      `SELECT count(*)::int AS transactions FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND state <> 'active'`,
    );
    open.push({ asked, transactions: row?.transactions ?? -1 });
  };
  const server = useServer({
    gateways: { primary: gateway, backup: undefined },
    fraud: {
      check: async () => {
        await look("fraud check");
        return { riskLevel: "LOW" as const, riskFactors: [] };
      },
    },
  });

  it("no transaction is open, neither for a payment nor for a refund", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    const order = await newOrder(customer, [[await newProduct(admin), 1]], { awaitPayment: true });
    const { charge } = fakeGateway();
    gateway.charge.callsFake(async (request, bounds) => {
      await look("charge");
      return charge(request, bounds);
    });
    gateway.refund.callsFake(async () => {
      await look("refund");
      return { kind: "pending" };
    });
    const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
    expect(payment.status).to.equal(PaymentStatus.COMPLETED);
    await customer.payments.refundPayment({ requestId: randomUUID(), paymentId: payment.id, amount: money("1") });
    expect(open).to.deep.equal(["fraud check", "charge", "refund"].map((asked) => ({ asked, transactions: 0 })));
  });
});
