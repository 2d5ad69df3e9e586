import { randomUUID } from "node:crypto";
import { expect } from "chai";
import sinon from "sinon";
import { type Order, OrderPaymentState, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { type Payment, PaymentStatus, RefundStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { examine } from "../../src/db/invariants.ts";
import { paymentInvariants } from "../../src/payments/check-store.ts";
import { createAdyenGateway } from "../../src/payments/gateways/adyen.ts";
import type { Gateway } from "../../src/payments/gateways/gateway.ts";
import { reverseCharges } from "../../src/payments/reverse-charges.ts";
import { type AdyenItem, AdyenServer, adyenWebhook } from "../support/adyen-server.ts";
import { sql } from "../support/database.ts";
import {
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
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const apiKey = "AQE_test_key";
const hmacKey = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056";
/** What Adyen calls captured is authorised; that it was cancelled before the capture it tells by its webhooks alone. */
const CANCELLATIONS = ["TECHNICAL_CANCEL", "CANCELLATION", "CANCEL_OR_REFUND", "CAPTURE_FAILED"] as const;

describe("charges that Adyen cancels after it has authorised them", () => {
  const adyen = new AdyenServer(apiKey);
  const backup = { ...fakeGateway(), name: "sandbox-backup" as const };
  let primary: Gateway;
  before(async () => {
    await adyen.start();
    const account = { apiKey, hmacKey, merchantAccount: "TestMerchant", returnUrl: "https://shop.example" };
    primary = createAdyenGateway({ ...account, baseUrl: adyen.url });
  });
  const alerts: Record<string, unknown>[] = [];
  const server = useServer({
    gateways: {
      get primary() {
        return primary;
      },
      backup,
    },
    logTo: {
      write(line: string) {
        const entry = JSON.parse(line) as Record<string, unknown>;
        if (Number(entry["level"]) >= 50) alerts.push(entry);
      },
    },
  });
  let admin: Person;
  let customer: Person;
  beforeEach(async () => {
    admin ??= await newAdmin(server);
    customer ??= await newCustomer(server);
    Object.assign(backup, fakeGateway(), { name: "sandbox-backup" });
    alerts.length = 0;
  });
  afterEach(async () => {
    const { verdicts } = await examine(server.database.db, paymentInvariants);
    expect(verdicts.filter(({ remark }) => !remark).flatMap(({ examples }) => examples)).to.deep.equal([]);
  });
  after(() => adyen.close());

  let sequence = 0;
  const deliver = async (item: AdyenItem) => {
    const pspReference = `EVENT${String(++sequence).padStart(11, "0")}`;
    const eventDate = new Date().toISOString();
    const body = adyenWebhook(hmacKey, { pspReference, eventDate, amount: { currency: "USD", value: 1_099 }, ...item });
    const answer = await fetch(`${server.url}/webhooks/adyen`, { method: "POST", body });
    expect([answer.status, await answer.text()]).to.deep.equal([200, "[accepted]"]);
  };
  const tell = async (merchantReference: string, ...items: readonly Omit<AdyenItem, "merchantReference">[]) => {
    for (const item of items) await deliver({ merchantReference, ...item });
    await server.runJobs();
    const waiting = "SELECT event_id FROM webhook_events WHERE process_time IS NULL";
    expect(await sql(server.database, waiting)).to.deep.equal([]);
  };
  const attemptsOf = ({ id }: Payment) =>
    sql<{ id: string; state: string }>(
      server.database,
      "SELECT id, state FROM payment_attempts WHERE payment_id = $1 ORDER BY number",
      [id],
    );
  const referenceOf = async (payment: Payment) => present((await attemptsOf(payment))[0]).id;
  const pay = async (order: Order) =>
    present((await customer.payments.processPayment(paymentOf(order, {}, "shopper-1/visa"))).payment);
  const anOrder = async () => newOrder(customer, [[await newProduct(admin, { stock: 5 }), 1]], { awaitPayment: true });
  const paidOrder = async () => {
    const order = await anOrder();
    const payment = await pay(order);
    expect(payment.status).to.equal(PaymentStatus.COMPLETED);
    return { order, payment, reference: await referenceOf(payment) };
  };
  /** Adyen carries the charge out, and its answer does not arrive. */
  const unknownPayment = async () => {
    const order = await anOrder();
    adyen.fail({ on: "payment", executes: true, answer: "cut" });
    const payment = await pay(order);
    expect(payment.status).to.equal(PaymentStatus.PENDING);
    return { order, payment, reference: await referenceOf(payment) };
  };
  const orderNow = async ({ id }: Order) => present((await customer.orders.getOrder({ orderId: id })).order);
  const paymentNow = async ({ id }: Payment) =>
    present((await customer.payments.getPayment({ paymentId: id })).payment);
  /** What the ledger says that Adyen owes us for a payment; each of its movements has to balance. */
  const heldFor = async ({ id }: Payment) => {
    const rows = await sql<{ kind: string; balance: number; held: number }>(
      server.database,
      `SELECT kind, sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END)::float8 AS balance,
              coalesce(sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END)
                         FILTER (WHERE account LIKE 'GATEWAY:%'), 0)::float8 AS held
         FROM ledger_entries WHERE payment_id = $1 GROUP BY movement_id, kind`,
      [id],
    );
    for (const { kind, balance } of rows) expect(balance, kind).to.equal(0);
    return Math.round(rows.reduce((sum, { held }) => sum + held, 0) * 100);
  };
  const refundOf = ({ id }: Payment, amount: string) => ({
    requestId: randomUUID(),
    paymentId: id,
    amount: money(amount),
  });

  for (const eventCode of CANCELLATIONS) {
    it(`are given back in our books by ${eventCode}: the order is not PAID any more, and somebody is told`, async () => {
      const { order, payment, reference } = await paidOrder();
      expect(await heldFor(payment)).to.equal(1_099);
      await tell(reference, { eventCode });

      const now = await paymentNow(payment);
      expect([now.status, text(now.refundedAmount)]).to.deep.equal([PaymentStatus.COMPLETED, "10.99 USD"]);
      expect(now.refunds.map(({ status, amount }) => [status, text(amount)])).to.deep.equal([
        [RefundStatus.COMPLETED, "10.99 USD"],
      ]);
      expect(await heldFor(payment)).to.equal(0);
      const { status, paymentState } = await orderNow(order);
      expect([status, paymentState]).to.deep.equal([OrderStatus.CANCELLED, OrderPaymentState.REFUNDED]);
      const { product } = await admin.catalog.getProduct({ productId: present(order.items[0]).productId });
      expect(product?.stockQuantity, "its stock is for sale again").to.equal(5);
      expect(alerts.map(({ paymentId }) => paymentId)).to.deep.equal([payment.id]);
      expect((await refusalOf(customer.payments.refundPayment(refundOf(payment, "1")))).reason).to.equal(
        "REFUND_EXCEEDS_PAYMENT",
      );
      expect(adyen.refunds.filter(({ reference: key }) => String(key).startsWith(reference))).to.deep.equal([]);
    });
  }

  it("are given back once, however many webhooks say so, at once or one after another", async () => {
    const { payment, reference } = await paidOrder();
    await tell(reference, ...CANCELLATIONS.map((eventCode) => ({ eventCode })));
    await tell(reference, { eventCode: "AUTHORISATION" }, { eventCode: "TECHNICAL_CANCEL" });
    expect(text((await paymentNow(payment)).refundedAmount)).to.equal("10.99 USD");
    expect(await heldFor(payment)).to.equal(0);
    expect(alerts).to.have.length(1);
  });

  it("are given back but for what was refunded before, and a refund under way has nothing to take any more", async () => {
    const { payment, reference } = await paidOrder();
    const { refund: done } = await customer.payments.refundPayment(refundOf(payment, "2"));
    await tell(`${reference}/${present(done).id}`, { eventCode: "REFUND", amount: { currency: "USD", value: 200 } });
    const { refund: waiting } = await customer.payments.refundPayment(refundOf(payment, "3"));
    await tell(reference, { eventCode: "CANCELLATION" });
    await tell(`${reference}/${present(waiting).id}`, { eventCode: "REFUND", success: "false" });
    const { refunds, refundedAmount } = await paymentNow(payment);
    expect(refunds.map(({ status, amount }) => `${RefundStatus[status]} ${text(amount)}`).sort()).to.deep.equal([
      "COMPLETED 2 USD",
      "COMPLETED 8.99 USD",
      "FAILED 3 USD",
    ]);
    expect(text(refundedAmount)).to.equal("10.99 USD");
    expect(await heldFor(payment)).to.equal(0);
  });

  it("end the refund of an order that was cancelled meanwhile", async () => {
    const { order, payment, reference } = await paidOrder();
    await customer.orders.cancelOrder({ orderId: order.id });
    await server.runJobs();
    expect((await paymentNow(payment)).refunds.map(({ status }) => status)).to.deep.equal([RefundStatus.PENDING]);
    await tell(reference, { eventCode: "TECHNICAL_CANCEL" });
    expect((await orderNow(order)).paymentState).to.equal(OrderPaymentState.REFUNDED);
    expect(await heldFor(payment)).to.equal(0);
  });

  it("leave an order that was shipped as it is, REFUNDED", async () => {
    const { order, payment, reference } = await paidOrder();
    await admin.orders.shipOrder({ orderId: order.id, trackingNumber: "1Z" });
    await tell(reference, { eventCode: "CANCELLATION" });
    const { status, paymentState } = await orderNow(order);
    expect([status, paymentState]).to.deep.equal([OrderStatus.SHIPPED, OrderPaymentState.REFUNDED]);
    expect(await heldFor(payment)).to.equal(0);
  });

  it("are held again when a bank sends the money of CANCEL_OR_REFUND back", async () => {
    const { order, payment, reference } = await paidOrder();
    await admin.orders.shipOrder({ orderId: order.id, trackingNumber: "1Z" });
    await tell(reference, { eventCode: "CANCEL_OR_REFUND" });
    expect(await heldFor(payment)).to.equal(0);
    await tell(reference, { eventCode: "REFUNDED_REVERSED" });
    expect(text((await paymentNow(payment)).refundedAmount)).to.equal("0 USD");
    expect(await heldFor(payment)).to.equal(1_099);
    expect((await orderNow(order)).paymentState).to.equal(OrderPaymentState.PAID);
    expect(alerts).to.have.length(2);
  });

  for (const [order_, items] of [
    ["first", ["AUTHORISATION", "TECHNICAL_CANCEL"]],
    ["last", ["TECHNICAL_CANCEL", "AUTHORISATION"]],
  ] as const) {
    it(`hold no money where the answer was lost and its authorisation is told ${order_}`, async () => {
      const { order, payment, reference } = await unknownPayment();
      await tell(reference, ...items.map((eventCode) => ({ eventCode })));
      expect(await heldFor(payment)).to.equal(0);
      expect((await orderNow(order)).paymentState).not.to.equal(OrderPaymentState.PAID);
      await reverseCharges(server.deps);
      expect(adyen.refunds.filter(({ reference: key }) => String(key).startsWith(reference))).to.deep.equal([]);
    });
  }

  it("end giving back what an order that was given up had taken", async () => {
    const { order, payment, reference } = await unknownPayment();
    await sql(server.database, "UPDATE orders SET status = 'CANCELLED', payment_state = 'UNPAID' WHERE id = $1", [
      order.id,
    ]);
    await tell(reference, { eventCode: "AUTHORISATION" });
    expect((await attemptsOf(payment)).map(({ state }) => state)).to.deep.equal(["REVERSING"]);
    await tell(reference, { eventCode: "TECHNICAL_CANCEL" });
    expect((await attemptsOf(payment)).map(({ state }) => state)).to.deep.equal(["REVERSED"]);
    expect(await heldFor(payment)).to.equal(0);
    await reverseCharges(server.deps);
    expect(adyen.refunds.filter(({ reference: key }) => String(key).startsWith(reference))).to.deep.equal([]);
  });

  it("change nothing by a cancellation that failed, or by one of a reference that is nobody's", async () => {
    const { order, payment, reference } = await paidOrder();
    await tell(reference, ...CANCELLATIONS.map((eventCode) => ({ eventCode, success: "false" })));
    await tell(randomUUID(), { eventCode: "CANCELLATION" });
    await tell("made by hand", { eventCode: "CANCEL_OR_REFUND" });
    expect(await heldFor(payment)).to.equal(1_099);
    expect((await orderNow(order)).paymentState).to.equal(OrderPaymentState.PAID);
    expect(alerts).to.deep.equal([]);
  });

  it("alert somebody to a refund that was made by hand, which is in no book of ours", async () => {
    const { payment, reference } = await paidOrder();
    await tell(reference, { eventCode: "REFUND", amount: { currency: "USD", value: 100 } });
    expect(alerts.map(({ reference: of }) => of)).to.deep.equal([reference]);
    expect(await heldFor(payment)).to.equal(1_099);
  });

  it("are counted as a refund, and each refund that had to fail as one that failed", async () => {
    const { payment, reference } = await paidOrder();
    await customer.payments.refundPayment(refundOf(payment, "3"));
    const counted = sinon.spy(server.deps.metrics, "count");
    await tell(reference, { eventCode: "CANCELLATION" });
    const names = counted.args.map(([name]) => name).sort();
    counted.restore();
    expect(names).to.deep.equal(["refund.failed", "refund.successful"]);
  });
});
