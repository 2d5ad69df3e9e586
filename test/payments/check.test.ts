import { randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "chai";
import { pino } from "pino";
import sinon from "sinon";
import { type Payment, PaymentStatus, type Refund, RefundStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { readConfig } from "../../src/config.ts";
import { examine } from "../../src/db/invariants.ts";
import { paymentInvariants } from "../../src/payments/check-store.ts";
import { checkGateways, type Difference, type ReachedGateways } from "../../src/payments/gateway-check.ts";
import { GatewayCheckStore } from "../../src/payments/gateway-check-store.ts";
import type { Gateway, GatewayName, LookupAnswer } from "../../src/payments/gateways/gateway.ts";
import { consultGateways } from "../../src/payments/gateways/open-gateways.ts";
import { createSandboxGateway } from "../../src/payments/gateways/sandbox.ts";
import { startSandbox } from "../../src/payments/gateways/sandbox-server.ts";
import { createStripeGateway } from "../../src/payments/gateways/stripe.ts";
import { reverseCharges } from "../../src/payments/reverse-charges.ts";
import { sql, tamperWithLedger } from "../support/database.ts";
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
import { until } from "../support/process.ts";
import { type TestServer, useServer } from "../support/server.ts";
import { StripeServer } from "../support/stripe-server.ts";
import { lookBeside } from "../support/timing.ts";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const EVER = new Date(0);

const query = (server: TestServer, text: string, ...values: unknown[]) =>
  sql<Record<string, string>>(server.database, text, values);

/** What is wrong by the books alone, by rule and row; and what is only worth telling. */
async function faultsOf(server: TestServer, subject?: string) {
  const { verdicts } = await examine(server.database.db, paymentInvariants);
  const of = (remarks: boolean) =>
    Object.fromEntries(
      verdicts
        .filter(({ remark }) => remark === remarks)
        .flatMap(({ rule, examples }) =>
          examples
            .filter((example) => subject === undefined || example.subject === subject)
            .map(({ fault }) => [rule, fault] as const),
        ),
    );
  return { breaches: of(false), remarks: of(true) };
}

/** Asks gateways, those of the server by default, about what moved since `since`. */
async function askedOf(
  server: TestServer,
  extra: { gateways?: ReachedGateways; since?: Date; now?: Date; limits?: object; progress?: (n: number) => void } = {},
) {
  const { primary, backup } = server.deps.gateways;
  const own = [primary, backup].flatMap((gateway) => (gateway === undefined ? [] : [[gateway.name, gateway] as const]));
  const { gateways = new Map<GatewayName, Gateway>(own), since = EVER, now = server.clock.now(), ...options } = extra;
  const differences: Difference[] = [];
  const tallies = await checkGateways(
    { store: new GatewayCheckStore(server.database.db), gateways, now: () => now },
    { since, until: new Date(now.getTime() + DAY_MS), tell: (difference) => differences.push(difference), ...options },
  );
  return { differences, tallies };
}

const attemptsOf = async (server: TestServer, { id }: Payment): Promise<string[]> =>
  (await query(server, "SELECT id FROM payment_attempts WHERE payment_id = $1 ORDER BY number", id)).map(
    (row) => row["id"] ?? "",
  );

const pay = async (customer: Person, token = "tok_visa", amount = "30"): Promise<Payment> => {
  const request = { requestId: randomUUID(), amount: money(amount), paymentMethod: card(token) };
  return present((await customer.payments.processPayment(request)).payment);
};

const refund = async (customer: Person, { id: paymentId }: Payment, amount: string): Promise<Refund> => {
  const request = { requestId: randomUUID(), paymentId, amount: money(amount), reason: "Broken" };
  return present((await customer.payments.refundPayment(request)).refund);
};

describe("the check of payments", () => {
  const server = useServer({ webhooks: true });
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  it("finds nothing wrong with what payments go through, by themselves and beside their gateways", async () => {
    const product = await newProduct(admin, { price: "150", stock: 100 });
    const order = await newOrder(customer, [[product, 1]], { awaitPayment: true });
    const ofOrder = present((await customer.payments.processPayment(paymentOf(order))).payment);
    await refund(customer, ofOrder, "150");
    const shared = await pay(customer, "tok_visa", "250.50");
    await refund(customer, shared, "20.25");
    await refund(customer, shared, "33.33");
    const [reference] = await attemptsOf(server, await pay(customer, "tok_visa", "100"));
    for (const token of [
      "tok_declined",
      "tok_unreachable",
      "tok_unreachable@primary",
      "tok_error_captured",
      "tok_fraud",
    ])
      await pay(customer, token);
    await pay(customer, "tok_wrong_amount");
    await refund(customer, await pay(customer, "tok_refund_failed"), "10");
    await reverseCharges(server.deps);

    const act = async (path: string, body: object = {}) => {
      const answer = await fetch(`${server.sandbox.url}/sandbox-primary/${path}`, {
        method: "POST",
        body: JSON.stringify(body),
      });
      return ((await answer.json()) as { dispute: { id: string } }).dispute;
    };
    const { id } = await act(`charges/${reference}/disputes`, { amount_minor: 4_000 });
    await act(`disputes/${id}/lose`);
    await until("the dispute is lost in our books", async () => {
      await server.runJobs();
      return (await query(server, "SELECT 1 FROM disputes WHERE status = 'LOST'"))[0];
    });
    await server.runJobs();

    const statuses = await query(server, "SELECT DISTINCT state FROM payment_attempts ORDER BY 1");
    expect(statuses.map(({ state }) => state)).to.deep.equal(["CAPTURED", "DECLINED", "NOT_EXECUTED", "REVERSED"]);
    expect(await faultsOf(server)).to.deep.equal({ breaches: {}, remarks: {} });
    const { differences, tallies } = await askedOf(server);
    expect(differences).to.deep.equal([]);
    expect(tallies.map(({ gateway }) => gateway).sort()).to.deep.equal(["sandbox-backup", "sandbox-primary"]);
    expect(tallies.every(({ agreeing, unanswered }) => agreeing > 0 && unanswered === 0)).to.equal(true);
  });
});

describe("what the check finds of payments", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  const breachesOf = async ({ id }: Payment) => (await faultsOf(server, `payment ${id}`)).breaches;
  const remarksOf = async ({ id }: Payment) => (await faultsOf(server, `payment ${id}`)).remarks;
  /** A payment of 150 USD of which 30 were refunded, with all that jobs make of it. */
  const aRefundedPayment = async () => {
    const payment = await pay(customer, "tok_visa", "150");
    const made = await refund(customer, payment, "30");
    await server.runJobs();
    return { payment, made };
  };

  describe("in the ledger", () => {
    const LEDGER = "Every movement in the ledger balances";
    const CHARGES = "Every charge that took money, and every one that was given back, is in the ledger once";
    const RETURNS = "Every refund that completed or was sent back, and every lost dispute, is in the ledger once";
    const entries = (side: string, account: string) =>
      `(CUSTOMER CREDIT, CUSTOMER DEBIT, GATEWAY:sandbox-primary ${side}, ${account})`;

    it("nothing that does not balance when it is written: the database refuses it", async () => {
      const { id } = await pay(customer);
      const error = await query(
        server,
        `INSERT INTO ledger_entries (movement_id, kind, account, side, payment_id, currency, amount, create_time)
         VALUES ($1, 'REFUND', 'CUSTOMER', 'DEBIT', $2, 'USD', 5, now())`,
        ...[randomUUID(), id],
      ).catch((caught: Error) => caught);
      expect(error).to.include({ message: "a movement does not balance" });
    });

    it("a movement that was altered afterwards, and what the ledger as a whole lacks by it", async () => {
      const payment = await pay(customer);
      const alter = (amount: number) =>
        tamperWithLedger(
          server.database,
          "UPDATE ledger_entries SET amount = $2 WHERE payment_id = $1 AND account = 'REVENUE'",
          [payment.id, amount],
        );
      await alter(29);
      const found = await faultsOf(server);
      await alter(30);
      const [attempt] = await attemptsOf(server, payment);
      expect(found.breaches).to.include({
        "The ledger balances in every currency": "debits and credits differ by 1.000",
        [LEDGER]: `debits and credits of the CHARGE ${attempt} differ by 1.000 USD`,
      });
      expect(found.breaches).to.have.property(CHARGES);
    });

    it("a charge that it lacks, and a refund that it lacks", async () => {
      const { payment, made } = await aRefundedPayment();
      const [attempt] = await attemptsOf(server, payment);
      await tamperWithLedger(server.database, "DELETE FROM ledger_entries WHERE payment_id = $1", [payment.id]);
      expect(await breachesOf(payment)).to.deep.equal({
        [CHARGES]: `the ledger lacks the CHARGE ${attempt} of 150.000 USD ${entries("DEBIT", "REVENUE CREDIT")}`,
        [RETURNS]: `the ledger lacks the REFUND ${made.id} of 30.000 USD ${entries("CREDIT", "REFUNDS DEBIT")}`,
      });
    });

    it("a movement that nothing calls for", async () => {
      const payment = await pay(customer);
      const movement = randomUUID();
      await query(
        server,
        "SELECT write_return($1, 'REFUND', $2, 'sandbox-primary', 'USD', 5, now())",
        ...[movement, payment.id],
      );
      expect(await breachesOf(payment)).to.deep.equal({
        [RETURNS]:
          `the ledger has a REFUND ${movement} of 5 USD ${entries("CREDIT", "REFUNDS DEBIT")} that nothing calls for`.replace(
            " 5 USD",
            " 5.000 USD",
          ),
      });
    });

    it("a refund that failed and had been booked, but not its return", async () => {
      const { payment, made } = await aRefundedPayment();
      await query(server, "UPDATE refunds SET status = 'FAILED' WHERE id = $1", made.id);
      expect((await breachesOf(payment))[RETURNS]).to.equal(
        `the ledger lacks the REFUND_RETURNED ${made.id} of 30.000 USD ${entries("DEBIT", "REFUNDS CREDIT")}`,
      );
    });
  });

  describe("in payments, their charges and refunds", () => {
    const KEPT = "Every completed payment has one charge that keeps its whole amount, and no other payment has any";
    const OVER = "Every charge whose end is not known is looked after";
    const SUMS = "What every payment counts as refunded, and as being refunded, is the sum of its refunds";
    const REFUNDS = "Only completed payments are refunded, in their currency and never more than they took";

    it("a refunded amount that its refunds do not make", async () => {
      const { payment } = await aRefundedPayment();
      await query(server, "UPDATE payments SET refunded_amount = 31, refunding_amount = 2 WHERE id = $1", payment.id);
      expect(await breachesOf(payment)).to.deep.equal({
        [SUMS]: "it counts 31.000 refunded and 2.000 being refunded, but its refunds make 30.000 and 0",
      });
    });

    it("refunds that are more than their payment took", async () => {
      const { payment, made } = await aRefundedPayment();
      await query(server, "UPDATE refunds SET amount = 151 WHERE id = $1", made.id);
      const found = await breachesOf(payment);
      expect(found[REFUNDS]).to.equal("it is COMPLETED, of 150.000 USD, and its refunds are COMPLETED 151.000 USD");
      expect(found).to.include.keys(SUMS);
    });

    it("a payment that keeps money and did not complete", async () => {
      const payment = await pay(customer);
      const txn = payment.gatewayTransactionId;
      await query(server, "UPDATE payments SET status = 'FAILED' WHERE id = $1", payment.id);
      expect((await breachesOf(payment))[KEPT]).to.equal(
        `it is FAILED, of 30.000 USD, and its charges keep 30.000 by sandbox-primary as ${txn}`,
      );
    });

    it("a completed payment whose charge took another amount, or took nothing", async () => {
      const payment = await pay(customer);
      const txn = payment.gatewayTransactionId;
      const [attempt] = await attemptsOf(server, payment);
      const completed = `it is COMPLETED, of 30.000 USD by sandbox-primary as ${txn}, and its charges keep`;
      await query(server, "UPDATE payment_attempts SET captured_amount = 29 WHERE id = $1", attempt);
      expect((await breachesOf(payment))[KEPT]).to.equal(`${completed} 29.000 by sandbox-primary as ${txn}`);
      await query(
        server,
        "UPDATE payment_attempts SET state = 'UNKNOWN', captured_amount = NULL WHERE id = $1",
        attempt,
      );
      expect(await breachesOf(payment)).to.include({
        [KEPT]: `${completed} nothing`,
        [OVER]: `it is COMPLETED, and its charge ${attempt} by sandbox-primary is UNKNOWN`,
      });
    });

    it("a finished payment that is looked after without need", async () => {
      const payment = await pay(customer);
      await query(server, "UPDATE payments SET check_time = '2100-01-01' WHERE id = $1", payment.id);
      const found = await breachesOf(payment);
      expect(found).to.have.all.keys("No finished payment is looked after whose charges have all ended");
      expect(Object.values(found)[0]).to.match(/^it is COMPLETED, and would be looked after at 2100-01-01/);
    });
  });

  describe("in orders", () => {
    const aPaidOrder = async () => {
      const product = await newProduct(admin, { price: "10", stock: 5 });
      const order = await newOrder(customer, [[product, 2]]);
      return { order, payment: present((await customer.payments.processPayment(paymentOf(order))).payment) };
    };
    const orderBreaches = async ({ id }: { readonly id: string }) => (await faultsOf(server, `order ${id}`)).breaches;

    it("one that is unpaid and has a completed payment", async () => {
      const { order, payment } = await aPaidOrder();
      await query(server, "UPDATE orders SET payment_state = 'UNPAID' WHERE id = $1", order.id);
      expect(await orderBreaches(order)).to.deep.equal({
        "No unpaid order has a payment that is under way or completed": `it is UNPAID, and its payment ${payment.id} is COMPLETED`,
      });
    });

    it("one that is refunded and of whose payment a part is kept, and one the other way round", async () => {
      const rule = "An order is refunded when its payment was given back whole, and only then";
      const [{ order: one }, { order: other, payment }] = await Promise.all([aPaidOrder(), aPaidOrder()]);
      await query(server, "UPDATE orders SET payment_state = 'REFUNDED' WHERE id = $1", one.id);
      await query(server, "UPDATE payments SET refunded_amount = amount WHERE id = $1", payment.id);
      expect(await orderBreaches(one)).to.deep.equal({
        [rule]: "it is REFUNDED, and of the 20.000 that it paid 0.000 were refunded",
      });
      expect(await orderBreaches(other)).to.deep.equal({
        [rule]: "it is PAID, and of the 20.000 that it paid 20.000 were refunded",
      });
    });
  });

  describe("in what jobs make of payments", () => {
    const COUNTED = "Every completed payment is in its customer's history, and no other is";
    const EARNED =
      "Every completed payment of 100 units and more earned its customer a point a whole unit, and no other did";
    const SHARE = "Every payment keeps the share of its points that it keeps of its money";

    it("nothing of a payment whose jobs have yet to run, and that they never came once they are gone", async () => {
      const payment = await pay(customer, "tok_visa", "150");
      await refund(customer, payment, "30");
      expect(await breachesOf(payment)).to.deep.equal({});
      await query(server, `DELETE FROM graphile_worker._private_jobs WHERE payload ->> 'paymentId' = $1`, payment.id);
      expect(await breachesOf(payment)).to.deep.equal({
        [COUNTED]: "it is COMPLETED, and was not counted",
        [EARNED]: "it is COMPLETED, of 150.000 USD, and earned 0",
      });
    });

    it("points that were not taken back with their money", async () => {
      const { payment, made } = await aRefundedPayment();
      await query(server, "UPDATE reward_entries SET points = -29 WHERE refund_id = $1", made.id);
      expect(await breachesOf(payment)).to.deep.equal({
        [SHARE]: "of 150.000 USD it gave back 30.000, and of 150 points 29",
      });
    });

    it("a customer's history that the payments do not make", async () => {
      const person = await newCustomer(server);
      await pay(person);
      await server.runJobs();
      await query(server, "UPDATE customer_payment_history SET total_amount = 29 WHERE customer_id = $1", person.id);
      expect((await faultsOf(server, `account ${person.id}`)).breaches).to.deep.equal({
        "The payment history of every customer is the sum of the payments that it counts":
          "it has 1 payments of 29 USD, and those that were counted are 1 of 30.000",
      });
    });
  });

  describe("and only tells", () => {
    it("of what has been under way for more than a day", async () => {
      const payment = await pay(customer);
      const made = await refund(customer, payment, "10");
      await query(
        server,
        `UPDATE refunds SET status = 'PENDING', process_time = NULL, check_time = now(), create_time = now() - interval '25 hours'
          WHERE id = $1`,
        made.id,
      );
      const found = await remarksOf(payment);
      expect(found["Refunds that have not been finished for more than a day"]).to.match(
        new RegExp(`^refund ${made.id} of 10.000 USD, PENDING since `),
      );
    });

    it("of a charge that is to be given back: that its gateway refuses, or has not done it for more than a day", async () => {
      const payment = await pay(customer, "tok_wrong_amount");
      const [attempt] = await attemptsOf(server, payment);
      const alter = async (change: string) => {
        await query(server, `UPDATE payment_attempts SET ${change} WHERE id = $1`, attempt);
        return faultsOf(server, `payment ${payment.id}`);
      };
      const [late] = Object.entries((await alter("update_time = now() - interval '25 hours'")).remarks);
      expect(late?.[0]).to.equal("Charges that are not kept, and have not been given back for more than a day");
      expect(late?.[1]).to.match(new RegExp(`^charge ${attempt} by sandbox-primary of 31.000, since `));
      expect(await alter("reversal_failure = 'no_funds'")).to.deep.equal({
        breaches: {},
        remarks: {
          "Charges that are not kept, and that their gateway refuses to give back": `charge ${attempt} by sandbox-primary of 31.000: no_funds`,
        },
      });
    });

    it("of a payment that loses more by refunds and disputes than it took, since no gateway asks us first", async () => {
      const { payment } = await aRefundedPayment();
      await query(
        server,
        `INSERT INTO disputes (id, payment_id, gateway, gateway_dispute_id, currency, amount, status, create_time)
         VALUES (gen_random_uuid(), $1, 'sandbox-primary', 'dsp_1', 'USD', 121, 'OPEN', now())`,
        payment.id,
      );
      expect(await faultsOf(server, `payment ${payment.id}`)).to.deep.equal({
        breaches: {},
        remarks: {
          "Payments that lose more by refunds and disputes together than they took":
            "of 150.000 USD, 30.000 were or are being refunded, and 121.000 are disputed or lost",
        },
      });
    });
  });
});

describe("what the check finds beside the gateways", () => {
  const server = useServer();
  let customer: Person;
  beforeEach(async () => {
    customer = await newCustomer(server);
  });

  /** What a gateway and our books differ in about a payment, as "movement: books / gateway". */
  const differencesOf = async ({ id }: Payment, extra: Parameters<typeof askedOf>[1] = {}) =>
    (await askedOf(server, extra)).differences
      .filter(({ paymentId }) => paymentId === id)
      .map(
        ({ movement, gateway, underWay, books, gatewaySays }) =>
          `${underWay ? "under way: " : ""}${movement} at ${gateway}: ${books} / ${gatewaySays}`,
      );
  /** A lookup that the test decides, in the primary's place. */
  const asking = (lookup: Gateway["lookup"]) => {
    const { primary } = server.deps.gateways;
    const lookupRefund: Gateway["lookupRefund"] = (...asked) => primary.lookupRefund(...asked);
    return new Map<GatewayName, Gateway>([[primary.name, { name: primary.name, lookup, lookupRefund } as Gateway]]);
  };

  it("a charge that only the gateway knows", async () => {
    const payment = await pay(customer, "tok_unreachable");
    expect(payment.status).to.equal(PaymentStatus.FAILED);
    const [reference = ""] = await attemptsOf(server, payment);
    expect(await differencesOf(payment)).to.deep.equal([]);
    await server.deps.gateways.primary.charge(
      { reference, amount: { currency: "USD", minor: 3_000n }, paymentMethodToken: "tok_visa" },
      { timeoutMs: 5_000 },
    );
    expect(await differencesOf(payment)).to.deep.equal([
      `charge ${reference} at sandbox-primary: never executed / captured, 30.00 USD`,
    ]);
  });

  it("a charge of another amount, although our books agree among themselves", async () => {
    const payment = await pay(customer);
    const [attempt] = await attemptsOf(server, payment);
    await query(server, "UPDATE payments SET amount = 31 WHERE id = $1", payment.id);
    await query(server, "UPDATE payment_attempts SET captured_amount = 31 WHERE id = $1", attempt);
    await tamperWithLedger(server.database, "UPDATE ledger_entries SET amount = 31 WHERE payment_id = $1", [
      payment.id,
    ]);
    expect((await faultsOf(server, `payment ${payment.id}`)).breaches).to.deep.equal({});
    expect(await differencesOf(payment)).to.deep.equal([
      `charge ${attempt} at sandbox-primary: captured, 31.00 USD / captured, 30.00 USD`,
    ]);
  });

  it("a charge that the gateway declined, one that it does not have, and one that is another to it", async () => {
    const settle = async (payment: Payment, transactionId: string) => {
      const [attempt] = await attemptsOf(server, payment);
      await query(
        server,
        `UPDATE payment_attempts SET state = 'CAPTURED', captured_amount = 30, transaction_id = $2 WHERE id = $1`,
        ...[attempt, transactionId],
      );
      return attempt;
    };
    const [declined, unreachable, visa] = [
      await pay(customer, "tok_declined"),
      await pay(customer, "tok_unreachable"),
      await pay(customer),
    ];
    const attempts = [await settle(declined, "a"), await settle(unreachable, "b"), await settle(visa, "txn_other")];
    const found = [await differencesOf(declined), await differencesOf(unreachable), await differencesOf(visa)];
    expect(found).to.deep.equal([
      [`charge ${attempts[0]} at sandbox-primary: captured, 30.00 USD / declined`],
      [`charge ${attempts[1]} at sandbox-primary: captured, 30.00 USD / it has no such charge`],
      [`charge ${attempts[2]} at sandbox-primary: captured as txn_other / captured as ${visa.gatewayTransactionId}`],
    ]);
  });

  it("a refund that the gateway does not have, and one that only the gateway knows", async () => {
    const [ours, theirs] = [await pay(customer), await pay(customer)];
    const id = randomUUID();
    await query(
      server,
      `INSERT INTO refunds (id, payment_id, currency, amount, status, create_time, process_time)
       VALUES ($1, $2, 'USD', 10, 'COMPLETED', now(), now())`,
      ...[id, ours.id],
    );
    const [reference = ""] = await attemptsOf(server, theirs);
    const asked = { key: randomUUID(), reference, transactionId: theirs.gatewayTransactionId };
    await server.deps.gateways.primary.refund(
      { ...asked, amount: { currency: "USD", minor: 700n } },
      { timeoutMs: 5_000 },
    );
    expect([await differencesOf(ours), await differencesOf(theirs)]).to.deep.equal([
      [`refund ${id} at sandbox-primary: completed, 10.00 USD / it has no such refund`],
      [`charge ${reference} at sandbox-primary: 0.00 USD of it refunded / 7.00 USD of it refunded`],
    ]);
  });

  it("a refund of another amount, one that failed, and one that completed after all", async () => {
    const payment = await pay(customer);
    const [more, not] = [await refund(customer, payment, "10"), await refund(customer, payment, "5")];
    const failing = await pay(customer, "tok_refund_failed");
    const failed = await refund(customer, failing, "10");
    expect(failed.status).to.equal(RefundStatus.FAILED);
    await query(server, "UPDATE refunds SET amount = 11 WHERE id = $1", more.id);
    await query(server, "UPDATE refunds SET status = 'FAILED' WHERE id = $1", not.id);
    await query(server, "UPDATE refunds SET status = 'COMPLETED' WHERE id = $1", failed.id);
    const [attempt] = await attemptsOf(server, payment);
    expect(await differencesOf(payment)).to.have.members([
      `refund ${more.id} at sandbox-primary: completed, 11.00 USD / completed, 10.00 USD`,
      `refund ${not.id} at sandbox-primary: failed, 5.00 USD / completed, 5.00 USD`,
      `charge ${attempt} at sandbox-primary: 11.00 USD of it refunded / 15.00 USD of it refunded`,
    ]);
    expect(await differencesOf(failing)).to.deep.equal([
      `refund ${failed.id} at sandbox-primary: completed, 10.00 USD / failed`,
    ]);
  });

  it("a charge that was never given back, and a dispute that our books lack", async () => {
    const wrong = await pay(customer, "tok_wrong_amount");
    const [attempt] = await attemptsOf(server, wrong);
    await query(server, "UPDATE payment_attempts SET state = 'REVERSED', check_time = NULL WHERE id = $1", attempt);
    const disputed = await pay(customer);
    const [reference] = await attemptsOf(server, disputed);
    await fetch(`${server.sandbox.url}/sandbox-primary/charges/${reference}/disputes`, {
      method: "POST",
      body: JSON.stringify({ amount_minor: 1_000 }),
    });
    expect([await differencesOf(wrong), await differencesOf(disputed)]).to.deep.equal([
      [
        `charge ${attempt} at sandbox-primary: captured and given back, 31.00 USD / captured, 31.00 USD, 0.00 USD of it refunded`,
      ],
      [`charge ${reference} at sandbox-primary: 0.00 USD of it disputed / 10.00 USD of it disputed`],
    ]);
  });

  it("a charge that has gone back at the gateway: for two hours our books may still learn of it", async () => {
    const payment = await pay(customer, "tok_wrong_amount");
    const [reference = ""] = await attemptsOf(server, payment);
    expect(await differencesOf(payment)).to.deep.equal([]);
    await server.deps.gateways.primary.refund(
      { key: randomUUID(), reference, transactionId: "", amount: { currency: "USD", minor: 3_100n } },
      { timeoutMs: 5_000 },
    );
    const words = "captured and to be given back, 31.00 USD / captured, 31.00 USD, 31.00 USD of it refunded";
    const later = new Date(server.clock.now().getTime() + 2 * HOUR_MS);
    expect(await differencesOf(payment)).to.deep.equal([`under way: charge ${reference} at sandbox-primary: ${words}`]);
    expect(await differencesOf(payment, { now: later })).to.deep.equal([
      `charge ${reference} at sandbox-primary: ${words}`,
    ]);
  });

  it("nothing of a charge that the gateway has cancelled, and that our books give back for it", async () => {
    const payment = await pay(customer);
    const [attempt = ""] = await attemptsOf(server, payment);
    await query(
      server,
      "SELECT * FROM void_captured($1, 'The gateway has cancelled the charge', '{}', '', now())",
      attempt,
    );
    expect((await faultsOf(server, `payment ${payment.id}`)).breaches).to.deep.equal({});
    const words = "captured and then cancelled by the gateway / captured, 30.00 USD, 0.00 USD of it refunded";
    expect(await differencesOf(payment)).to.deep.equal([`charge ${attempt} at sandbox-primary: ${words}`]);
    const gateways = asking(async () => ({ kind: "found", charge: { outcome: "voided" } }));
    expect(await differencesOf(payment, { gateways })).to.deep.equal([]);
  });

  it("a charge that is still open in our books: for two hours it is under way, then it disagrees", async () => {
    const payment = await pay(customer, "tok_declined");
    const [attempt] = await attemptsOf(server, payment);
    await query(server, "UPDATE payment_attempts SET state = 'UNKNOWN' WHERE id = $1", attempt);
    await query(
      server,
      "UPDATE payments SET status = 'PENDING', process_time = NULL, check_time = now() WHERE id = $1",
      payment.id,
    );
    const later = new Date(server.clock.now().getTime() + 2 * HOUR_MS);
    const difference = `charge ${attempt} at sandbox-primary: its outcome is unknown / declined`;
    expect(await differencesOf(payment)).to.deep.equal([`under way: ${difference}`]);
    expect(await differencesOf(payment, { now: later })).to.deep.equal([difference]);
    expect(await differencesOf(payment, { since: later })).to.deep.equal([`under way: ${difference}`]);
  });

  it("nothing of a payment that the service settles while its gateway is asked", async () => {
    const payment = await pay(customer, "tok_declined");
    const [attempt = ""] = await attemptsOf(server, payment);
    await query(server, "UPDATE payment_attempts SET state = 'UNKNOWN' WHERE id = $1", attempt);
    const gateways = asking(async (asked) => {
      const known = asked.reference === attempt;
      if (known) await query(server, "UPDATE payment_attempts SET state = 'DECLINED' WHERE id = $1", attempt);
      const declined = { outcome: "declined", reason: "", responseCode: "05" } as const;
      return { kind: "found", charge: declined };
    });
    expect(await differencesOf(payment, { gateways })).to.deep.equal([]);
  });

  it("no difference in a payment that changes every time it is looked at: that is under way", async () => {
    const payment = await pay(customer);
    const [attempt] = await attemptsOf(server, payment);
    const lookup = sinon.stub<Parameters<Gateway["lookup"]>, ReturnType<Gateway["lookup"]>>();
    lookup.callsFake(async ({ reference }) => {
      if (reference === attempt)
        await query(
          server,
          "UPDATE payment_attempts SET update_time = update_time + interval '1 ms' WHERE id = $1",
          attempt,
        );
      return { kind: "not_found" };
    });
    expect(await differencesOf(payment, { gateways: asking(lookup) })).to.deep.equal([
      `under way: charge ${attempt} at sandbox-primary: captured, 30.00 USD / it has no such charge`,
    ]);
    expect(lookup.args.filter(([{ reference }]) => reference === attempt)).to.have.length(3);
  });
});

describe("the check beside Stripe", () => {
  const stripe = new StripeServer("sk_test");
  let gateway: Gateway;
  before(async () => {
    await stripe.start();
    gateway = createStripeGateway({ apiKey: "sk_test", baseUrl: stripe.url });
  });
  after(() => stripe.close());
  const server = useServer({
    get gateways() {
      return { primary: gateway, backup: undefined };
    },
  });

  it("finds charges and refunds by Stripe's own ids once it has forgotten our keys, and what it says otherwise", async () => {
    const customer = await newCustomer(server);
    const payment = await pay(customer, "pm_card_visa");
    await refund(customer, payment, "10");
    const declined = await pay(customer, "pm_card_chargeDeclined");
    expect([payment.status, declined.status]).to.deep.equal([PaymentStatus.COMPLETED, PaymentStatus.FAILED]);
    stripe.forgetKeys();
    expect(await askedOf(server)).to.deep.equal({
      differences: [],
      tallies: [{ gateway: "stripe", agreeing: 3, disagreeing: 0, underWay: 0, unanswered: 0, why: "" }],
    });

    for (const [id, held] of stripe.refunds) stripe.refunds.set(id, { ...held, amount: 900 });
    const { differences } = await askedOf(server);
    expect(differences.map(({ books, gatewaySays }) => [books, gatewaySays])).to.deep.equal([
      ["completed, 10.00 USD", "completed, 9.00 USD"],
    ]);
  });
});

describe("the check beside a service at work", () => {
  const server = useServer();

  it("takes nothing that is just being charged, refunded or given back for a difference", async () => {
    const customers = await Promise.all([1, 2, 3, 4].map(() => newCustomer(server)));
    const shop = async (customer: Person) => {
      for (const token of [
        "tok_visa",
        "tok_wrong_amount",
        "tok_unreachable@primary",
        "tok_error_captured",
        "tok_visa",
      ]) {
        const payment = await pay(customer, token);
        if (payment.status === PaymentStatus.COMPLETED) await refund(customer, payment, "30");
        await reverseCharges(server.deps);
      }
    };
    const shops = (mayEnd: () => boolean) =>
      Promise.all(
        customers.map(async (customer) => {
          do await shop(customer);
          while (!mayEnd());
        }),
      );
    await lookBeside(shops, async () => {
      const { differences } = await askedOf(server);
      expect(differences.filter(({ underWay }) => !underWay)).to.deep.equal([]);
      expect((await faultsOf(server)).breaches).to.deep.equal({});
    });
  });
});

describe("how the gateways are asked", () => {
  const server = useServer();
  const notFound: LookupAnswer = { kind: "not_found" };
  const PAYMENTS = 7;
  let payments: Payment[];
  before(async () => {
    const customer = await newCustomer(server);
    payments = [];
    for (let i = 0; i < PAYMENTS; i++) payments.push(await pay(customer));
  });

  const withLookup = (lookup: Gateway["lookup"]) =>
    new Map<GatewayName, Gateway>([["sandbox-primary", { name: "sandbox-primary", lookup } as Gateway]]);

  it("about each movement once, page after page, a few at a time, with an end to each question", async () => {
    let underWay = 0;
    let most = 0;
    const lookup = sinon.stub<Parameters<Gateway["lookup"]>, ReturnType<Gateway["lookup"]>>().callsFake(async () => {
      most = Math.max(most, ++underWay);
      await new Promise(setImmediate);
      underWay--;
      return notFound;
    });
    const done: number[] = [];
    const limits = { pageSize: 3, width: 2, timeoutMs: 1_234 };
    const { differences } = await askedOf(server, {
      gateways: withLookup(lookup),
      limits,
      progress: (count) => done.push(count),
    });
    const references = lookup.args.map(([{ reference }]) => reference);
    expect([references.length, new Set(references).size, differences.length]).to.deep.equal([7, 7, 7]);
    expect(done).to.deep.equal([3, 6, 7]);
    expect(most).to.equal(2);
    expect(lookup.args.every(([, { timeoutMs }]) => timeoutMs === 1_234)).to.equal(true);
  });

  it("by the gateway's own id of the charge, which finds also what is older than its keys, and never by sending a key", async () => {
    const lookup = sinon.stub<Parameters<Gateway["lookup"]>, ReturnType<Gateway["lookup"]>>().resolves(notFound);
    await askedOf(server, { gateways: withLookup(lookup) });
    expect(lookup.args.map(([{ gatewayReference }]) => gatewayReference)).to.have.members(
      payments.map(({ gatewayTransactionId }) => gatewayTransactionId),
    );
    expect(lookup.args.every(([asked]) => !("amount" in asked))).to.equal(true);
  });

  it("once more where an answer failed to come, and no more at all once many in a row did", async () => {
    const lookup = sinon
      .stub<Parameters<Gateway["lookup"]>, ReturnType<Gateway["lookup"]>>()
      .resolves({ kind: "unknown", cause: "timeout", detail: "No answer within 10 s." });
    const limits = { pauseMs: 1, maxSilences: 3, width: 1 };
    const { differences, tallies } = await askedOf(server, { gateways: withLookup(lookup), limits });
    expect(lookup.callCount).to.equal(6);
    expect(differences).to.deep.equal([]);
    expect(tallies).to.deep.equal([
      {
        ...{ gateway: "sandbox-primary", agreeing: 0, disagreeing: 0, underWay: 0 },
        ...{ unanswered: 7, why: "No answer within 10 s." },
      },
    ]);
  });

  it("only where they are in the settings; the others are counted", async () => {
    const { differences, tallies } = await askedOf(server, { gateways: new Map() });
    expect(differences).to.deep.equal([]);
    expect(tallies).to.deep.equal([
      {
        ...{ gateway: "sandbox-primary", agreeing: 0, disagreeing: 0, underWay: 0 },
        ...{ unanswered: 7, why: "It is not one of the gateways of the settings." },
      },
    ]);
  });

  it("not about what ended before the given day", async () => {
    const { tallies } = await askedOf(server, { since: new Date(server.clock.now().getTime() + HOUR_MS) });
    expect(tallies).to.deep.equal([]);
  });
});

describe("a sandbox that does not run", () => {
  const log = pino({ level: "silent" });
  let dataDir: string;
  beforeEach(async () => {
    dataDir = await mkdtemp(join(tmpdir(), "tradepost-check-"));
  });
  afterEach(() => rm(dataDir, { recursive: true, force: true }));

  const consult = () => {
    const config = readConfig({ NODE_ENV: "test", DATA_DIR: dataDir, SANDBOX_PORT: "0" });
    return consultGateways({ config, log });
  };

  it("is asked by its memory", async () => {
    const reference = randomUUID();
    const sandbox = await startSandbox({ port: 0, dataDir: join(dataDir, "sandbox"), log });
    const gateway = createSandboxGateway({ name: "sandbox-primary", baseUrl: sandbox.url });
    const charge = { reference, amount: { currency: "USD", minor: 500n }, paymentMethodToken: "tok_visa" };
    await gateway.charge(charge, { timeoutMs: 5_000 });
    gateway.close();
    await sandbox.close();

    const { gateways, close } = await consult();
    const found = gateways.get("sandbox-primary");
    if (found === undefined || found instanceof Error) throw new Error("the sandbox was not reached", { cause: found });
    const answer = await found.lookup({ reference }, { timeoutMs: 5_000 });
    await close();
    expect(answer.kind).to.equal("found");
  });

  it("is not made up where it has none", async () => {
    const { gateways, close } = await consult();
    await close();
    const lost = [...gateways.values()].map((gateway) => (gateway instanceof Error ? gateway.message : gateway.name));
    const sentence = `No sandbox runs at port 0 (SANDBOX_PORT), and none has ever run in ${join(dataDir, "sandbox")}.`;
    expect(lost).to.deep.equal([sentence, sentence]);
  });
});
