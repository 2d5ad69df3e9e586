import { expect } from "chai";
import { OrderPaymentState, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { settleExecuted } from "../../src/payments/carry-out.ts";
import type { Unknown } from "../../src/payments/gateways/gateway.ts";
import { reconcilePayments } from "../../src/payments/reconcile-payments.ts";
import { reverseCharges } from "../../src/payments/reverse-charges.ts";
import { sql, tamperWithLedger } from "../support/database.ts";
import { newAdmin, newCustomer, newOrder, newProduct, type Person, paymentOf, present } from "../support/factories.ts";
import { fakeGateway } from "../support/fakes.ts";
import { useServer } from "../support/server.ts";

const TIMEOUT: Unknown = { kind: "unknown", cause: "timeout", detail: "" };
const SILENCE: Unknown = { kind: "unknown", cause: "not_sent", detail: "" };

describe("failover", () => {
  const primary = fakeGateway();
  const backup = { ...fakeGateway(), name: "sandbox-backup" as const };
  const server = useServer({ gateways: { primary, backup } });
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });
  afterEach(() => {
    server.clock.goOn();
    Object.assign(primary, fakeGateway());
    Object.assign(backup, fakeGateway(), { name: "sandbox-backup" });
  });

  const anOrder = async () => newOrder(customer, [[await newProduct(admin), 1]], { awaitPayment: true });
  const captured = {
    outcome: "captured",
    transactionId: "late",
    captured: { currency: "USD", minor: 1099n },
    responseCode: "00",
  } as const;
  const nothing = { currency: "USD", minor: 0n };
  const givenBack = {
    kind: "executed",
    result: { outcome: "completed", transactionId: "r", refunded: captured.captured, responseCode: "" },
  } as const;
  const attemptsOf = (paymentId: string) =>
    sql<{ gateway: string; state: string }>(
      server.database,
      "SELECT gateway, state FROM payment_attempts WHERE payment_id = $1 ORDER BY number",
      [paymentId],
    );

  /** What the sweeps do at a later time. */
  const sweep = async (aheadMs: number) => {
    server.clock.advance(aheadMs);
    await reconcilePayments(server.deps);
    await reverseCharges(server.deps);
    server.clock.advance(-aheadMs);
  };

  it("charges the backup once the primary has proved that it never will: each is called once", async () => {
    primary.charge.resolves(TIMEOUT);
    primary.lookup.resolves({ kind: "not_found" });
    primary.void.resolves({ kind: "voided" });
    const payment = present((await customer.payments.processPayment(paymentOf(await anOrder()))).payment);
    expect(payment).to.include({ status: PaymentStatus.COMPLETED, gateway: "sandbox-backup" });
    expect([primary.charge.callCount, backup.charge.callCount]).to.deep.equal([1, 1]);
    expect(await attemptsOf(payment.id)).to.deep.equal([
      { gateway: "sandbox-primary", state: "VOIDED" },
      { gateway: "sandbox-backup", state: "CAPTURED" },
    ]);
    expect(backup.charge.firstCall.args[0].reference).not.to.equal(primary.charge.firstCall.args[0].reference);
  });

  it("charges the backup at once where the primary was never reached", async () => {
    primary.charge.resolves({ kind: "not_executed", cause: "connection_failed", proves: "this_send", detail: "" });
    const { payment } = await customer.payments.processPayment(paymentOf(await anOrder()));
    expect(payment).to.include({ status: PaymentStatus.COMPLETED, gateway: "sandbox-backup" });
  });

  it("never fails over after a decline", async () => {
    primary.charge.resolves({
      kind: "executed",
      result: { outcome: "declined", reason: "card_declined", responseCode: "05" },
    });
    const { payment } = await customer.payments.processPayment(paymentOf(await anOrder()));
    expect(payment).to.include({ status: PaymentStatus.FAILED, gatewayResponseCode: "05" });
    expect(backup.charge.called).to.equal(false);
  });

  it("does not charge the backup without proof: the payment stays PENDING, and the sweep finds the truth", async () => {
    primary.charge.resolves(TIMEOUT);
    primary.lookup.resolves(SILENCE);
    primary.void.resolves(SILENCE);
    const order = await anOrder();
    const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
    expect(payment.status).to.equal(PaymentStatus.PENDING);
    expect(backup.charge.called).to.equal(false);

    primary.lookup.resolves({ kind: "found", charge: { ...captured, refunded: nothing, disputed: nothing } });
    await sweep(6_000);
    const { payment: now } = await customer.payments.getPayment({ paymentId: payment.id });
    expect(now).to.include({ status: PaymentStatus.COMPLETED, gateway: "sandbox-primary" });
    const { order: paid } = await customer.orders.getOrder({ orderId: order.id });
    expect([paid?.status, paid?.paymentState]).to.deep.equal([OrderStatus.CONFIRMED, OrderPaymentState.PAID]);
  });

  it("asks a silent gateway at longer and longer pauses", async () => {
    primary.charge.resolves(TIMEOUT);
    primary.lookup.resolves(SILENCE);
    primary.void.resolves(SILENCE);
    server.clock.stop();
    const payment = present((await customer.payments.processPayment(paymentOf(await anOrder()))).payment);
    const pauses: number[] = [];
    let aheadMs = 0;
    for (let check = 0; check < 4; check++) {
      const [row] = await sql<{ check_time: Date }>(server.database, "SELECT check_time FROM payments WHERE id = $1", [
        payment.id,
      ]);
      const pauseMs = present(row).check_time.getTime() - server.clock.now().getTime();
      pauses.push(pauseMs / 1_000);
      server.clock.advance(pauseMs);
      aheadMs += pauseMs;
      await reconcilePayments(server.deps);
    }
    primary.lookup.resolves({ kind: "found", charge: { ...captured, refunded: nothing, disputed: nothing } });
    server.clock.advance(600_000);
    await reconcilePayments(server.deps);
    server.clock.advance(-600_000 - aheadMs);
    expect(pauses).to.deep.equal([5, 10, 20, 40]);
  });

  it("is made up for by the sweep too, within its window", async () => {
    primary.charge.resolves(TIMEOUT);
    primary.lookup.resolves(SILENCE);
    primary.void.resolves(SILENCE);
    const payment = present((await customer.payments.processPayment(paymentOf(await anOrder()))).payment);
    primary.lookup.resolves({ kind: "not_found" });
    primary.void.resolves({ kind: "voided" });
    await sweep(6_000);
    expect((await customer.payments.getPayment({ paymentId: payment.id })).payment).to.include({
      status: PaymentStatus.COMPLETED,
      gateway: "sandbox-backup",
    });
  });

  it("fails the payment when no gateway executed it", async () => {
    for (const gateway of [primary, backup]) {
      gateway.charge.resolves(TIMEOUT);
      gateway.lookup.resolves({ kind: "not_found" });
      gateway.void.resolves({ kind: "voided" });
    }
    const { payment } = await customer.payments.processPayment(paymentOf(await anOrder()));
    expect(payment).to.include({
      status: PaymentStatus.FAILED,
      failureReason: "Payment processing failed on all gateways",
    });
  });

  describe("when the primary says after all that it has charged what it had voided", () => {
    /** A payment whose backup's outcome is unknown, and that is then completed by its first attempt. */
    const completedLate = async () => {
      primary.charge.resolves(TIMEOUT);
      primary.lookup.resolves({ kind: "not_found" });
      primary.void.resolves({ kind: "voided" });
      for (const method of [backup.charge, backup.lookup, backup.void]) method.resolves(TIMEOUT);
      const { id } = present((await customer.payments.processPayment(paymentOf(await anOrder()))).payment);
      const { payment, attempts } = present(await server.deps.payments.findUndertaking(id));
      const settled = await settleExecuted(server.deps, payment, present(attempts[0]), captured);
      expect(settled).to.include({ status: "COMPLETED", gateway: "sandbox-primary" });
      return { payment: settled, attempt: present(attempts[1]) };
    };
    const checkTimeOf = async (id: string) => {
      const [row] = await sql<{ check_time: Date | null }>(
        server.database,
        "SELECT check_time FROM payments WHERE id = $1",
        [id],
      );
      return present(row).check_time;
    };

    it("gives back what the backup turns out to have charged too", async () => {
      const { payment, attempt } = await completedLate();
      backup.lookup.resolves({ kind: "found", charge: { ...captured, refunded: nothing, disputed: nothing } });
      backup.refund.resolves(givenBack);
      await sweep(6_000);
      expect(await attemptsOf(payment.id)).to.deep.equal([
        { gateway: "sandbox-primary", state: "CAPTURED" },
        { gateway: "sandbox-backup", state: "REVERSED" },
      ]);
      expect(backup.refund.firstCall.args[0]).to.include({ reference: attempt.id });
      expect([backup.charge.callCount, primary.refund.callCount]).to.deep.equal([1, 0]);
      expect(await checkTimeOf(payment.id)).to.equal(null);
    });

    it("asks a backup that is silent again and again, until it proves that it never will charge", async () => {
      const { payment } = await completedLate();
      for (const aheadMs of [6_000, 60_000]) await sweep(aheadMs);
      expect((await attemptsOf(payment.id))[1]?.state).to.equal("UNKNOWN");
      expect(await checkTimeOf(payment.id)).not.to.equal(null);
      backup.lookup.resolves({ kind: "not_found" });
      backup.void.resolves({ kind: "voided" });
      await sweep(600_000);
      expect((await attemptsOf(payment.id))[1]?.state).to.equal("VOIDED");
      expect(await checkTimeOf(payment.id)).to.equal(null);
      const { payment: now } = await customer.payments.getPayment({ paymentId: payment.id });
      expect(now).to.include({ status: PaymentStatus.COMPLETED, gateway: "sandbox-primary" });
      expect(backup.charge.callCount).to.equal(1);
    });
  });

  it("gives back what the order no longer waits for: it was cancelled while the payment was unknown", async () => {
    primary.charge.resolves(TIMEOUT);
    primary.lookup.resolves(SILENCE);
    primary.void.resolves(SILENCE);
    const order = await anOrder();
    const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
    await sql(server.database, "UPDATE orders SET status = 'CANCELLED', payment_state = 'UNPAID' WHERE id = $1", [
      order.id,
    ]);

    primary.lookup.resolves({ kind: "found", charge: { ...captured, refunded: nothing, disputed: nothing } });
    primary.refund.resolves(givenBack);
    await sweep(6_000);
    expect((await customer.payments.getPayment({ paymentId: payment.id })).payment).to.include({
      status: PaymentStatus.FAILED,
      failureReason: "The order was cancelled before the payment was known",
    });
    expect(primary.refund.callCount).to.equal(1);
    expect(await attemptsOf(payment.id)).to.deep.equal([{ gateway: "sandbox-primary", state: "REVERSED" }]);
  });

  it("goes on with a payment that died before it was screened, and never charges one that may have been sent", async () => {
    const order = await anOrder();
    const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
    // As if the process had died between recording and screening, and its lease was over.
    const rewind = `UPDATE payments SET status = 'PENDING', process_time = NULL, check_time = now(), lease_expire_time = NULL,
                           risk_level = $2 WHERE id = $1`;
    await sql(
      server.database,
      "UPDATE payment_attempts SET state = 'CREATED', captured_amount = NULL WHERE payment_id = $1",
      [payment.id],
    );
    await tamperWithLedger(server.database, "DELETE FROM ledger_entries WHERE payment_id = $1", [payment.id]);
    await sql(server.database, "UPDATE orders SET payment_state = 'PENDING' WHERE id = $1", [order.id]);
    await sql(server.database, rewind, [payment.id, "LOW"]);
    primary.charge.resetHistory();
    primary.lookup.resolves({ kind: "found", charge: { ...captured, refunded: nothing, disputed: nothing } });
    await reconcilePayments(server.deps);
    expect([primary.charge.callCount, primary.lookup.callCount]).to.deep.equal([0, 1]);
    expect((await customer.payments.getPayment({ paymentId: payment.id })).payment?.status).to.equal(
      PaymentStatus.COMPLETED,
    );
  });

  it("is never raced by a sweep while a request carries the payment out", async () => {
    let answer: (() => void) | undefined;
    primary.charge.callsFake(
      () =>
        new Promise((resolve) => {
          answer = () => resolve({ kind: "executed", result: captured });
        }),
    );
    const call = customer.payments.processPayment(paymentOf(await anOrder()));
    while (answer === undefined) await new Promise((resolve) => setTimeout(resolve, 5));
    server.clock.advance(25_000);
    await reconcilePayments(server.deps);
    server.clock.advance(-25_000);
    expect(primary.lookup.called).to.equal(false);
    answer();
    expect((await call).payment?.status).to.equal(PaymentStatus.COMPLETED);
  });

  it("keeps the ledger balanced, whatever happened", async () => {
    const rows = await sql(
      server.database,
      "SELECT currency, sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END)::float8 AS sum FROM ledger_entries GROUP BY currency",
    );
    expect(rows).to.deep.equal([{ currency: "USD", sum: 0 }]);
    const unbalanced = sql(
      server.database,
      `INSERT INTO ledger_entries SELECT gen_random_uuid(), 'REFUND', 'CUSTOMER', 'DEBIT', id, currency, 1, now() FROM payments LIMIT 1`,
    );
    expect(String(await unbalanced.catch((error: Error) => error))).to.include("does not balance");
  });

  it("adds to the ledger, and never lets an entry be changed or deleted", async () => {
    for (const change of ["UPDATE ledger_entries SET amount = amount * 2", "DELETE FROM ledger_entries"]) {
      const error = await sql(server.database, change).catch((caught: Error) => caught);
      expect(String(error)).to.include("entries of the ledger are never changed or deleted");
    }
  });
});
