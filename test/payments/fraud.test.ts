import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createServer as createHttp2Server } from "node:http2";
import type { AddressInfo } from "node:net";
import { Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { expect } from "chai";
import sinon from "sinon";
import { type CheckPaymentRequest, FraudService, RiskLevel } from "../../gen/tradepost/fraud/v1/fraud_service_pb.js";
import { OrderPaymentState } from "../../gen/tradepost/order/v1/order_pb.js";
import { PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { readConfig } from "../../src/config.ts";
import type { Mail } from "../../src/mail/mail.ts";
import type { FraudCheck, FraudFacts } from "../../src/payments/fraud.ts";
import { judgeByRules } from "../../src/payments/fraud-rules.ts";
import type { Payment } from "../../src/payments/payment.ts";
import { reconcilePayments } from "../../src/payments/reconcile-payments.ts";
import { sql } from "../support/database.ts";
import {
  anAddress,
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
import { useServer } from "../support/server.ts";

const HOUR_MS = 60 * 60_000;

const pay = async (customer: Person, amount = "5.00", token = "tok_visa", billingCountry = "") => {
  const method = { case: "card" as const, value: { token, billingCountry } };
  const request = { requestId: randomUUID(), amount: money(amount), paymentMethod: { method } };
  return present((await customer.payments.processPayment(request)).payment);
};

describe("the rules of fraud", () => {
  const { rules } = readConfig({}).fraud;
  const now = new Date("2026-01-01T12:00:00Z");
  const usd = (units: bigint) => ({ currency: "USD", nanos: units * 1_000_000_000n });
  const aPayment = (extra: Partial<Payment> = {}) =>
    ({ amount: usd(50n), card: { token: "tok_visa", billingCountry: "US" }, createTime: now, ...extra }) as Payment;
  const someFacts = (extra: Partial<FraudFacts> = {}): FraudFacts => ({
    shippingCountry: "US",
    customerCreateTime: new Date(now.getTime() - 24 * HOUR_MS),
    customerPayments: 1,
    tokenCustomers: 1,
    completedPayments: 10,
    completedAmount: usd(500n),
    ...extra,
  });
  const newAccount = { customerCreateTime: new Date(now.getTime() - HOUR_MS + 1) };

  const cases: [
    behaviour: string,
    payment: Partial<Payment>,
    facts: Partial<FraudFacts>,
    level: string,
    ...string[],
  ][] = [
    ["find nothing in an ordinary payment", {}, {}, "LOW"],
    [
      "stop a token of the blocklist by itself",
      { card: { token: "tok_fraud", billingCountry: "" } },
      {},
      "HIGH",
      "blocklisted_token",
    ],
    ["bear 60 payments of a customer within the window", {}, { customerPayments: 60 }, "LOW"],
    ["note the 61st", {}, { customerPayments: 61 }, "MEDIUM", "velocity"],
    ["bear 20 customers of a token", {}, { tokenCustomers: 20 }, "LOW"],
    ["note the 21st", {}, { tokenCustomers: 21 }, "MEDIUM", "velocity"],
    ["count velocity once, of whichever kind", {}, { customerPayments: 61, tokenCustomers: 21 }, "MEDIUM", "velocity"],
    ["bear nearly ten times the usual amount", { amount: usd(499n) }, {}, "LOW"],
    ["note ten times the usual amount", { amount: usd(500n) }, {}, "MEDIUM", "unusual_amount"],
    [
      "call nothing unusual while there is hardly a history",
      { amount: usd(500n) },
      { completedPayments: 2, completedAmount: usd(2n) },
      "LOW",
    ],
    ["note another country than the goods go to", {}, { shippingCountry: "DE" }, "MEDIUM", "country_mismatch"],
    ["compare no country that is not known", {}, { shippingCountry: "" }, "LOW"],
    [
      "note more than 1,000 by an account younger than an hour",
      { amount: usd(1_001n) },
      { ...newAccount, completedPayments: 0 },
      "MEDIUM",
      "new_account_large_amount",
    ],
    ["bear 1,000 by it", { amount: usd(1_000n) }, { ...newAccount, completedPayments: 0 }, "LOW"],
    [
      "stop what two of them speak against",
      {},
      { customerPayments: 61, shippingCountry: "DE" },
      "HIGH",
      "velocity",
      "country_mismatch",
    ],
  ];
  for (const [behaviour, payment, facts, riskLevel, ...riskFactors] of cases) {
    it(behaviour, () => {
      expect(judgeByRules(aPayment(payment), someFacts(facts), rules)).to.deep.equal({ riskLevel, riskFactors });
    });
  }
});

describe("payments under the rules of fraud", () => {
  const gateway = fakeGateway();
  const send = sinon.stub<Parameters<Mail["send"]>, Promise<void>>().resolves();
  const mail: Mail = { send, close: () => {} };
  const counted = readableMetrics();
  const server = useServer({
    gateways: { primary: gateway, backup: undefined },
    mail,
    metrics: counted.metrics,
    settings: {
      SECURITY_EMAIL: "security@tradepost.example",
      FRAUD_MAX_CUSTOMER_PAYMENTS: "3",
      FRAUD_MAX_TOKEN_CUSTOMERS: "2",
    },
  });
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });
  afterEach(() => {
    Object.assign(gateway, fakeGateway());
    send.resetHistory();
  });
  const riskOf = async ({ id }: { readonly id: string }) => {
    const [row] = await sql<{ risk_level: string; risk_factors: string[] }>(
      server.database,
      "SELECT risk_level, risk_factors FROM payments WHERE id = $1",
      [id],
    );
    return [row?.risk_level, ...(row?.risk_factors ?? [])];
  };

  it("of high risk are stopped before any gateway is asked: the customer is told little, an admin why", async () => {
    const customer = await newCustomer(server);
    const order = await newOrder(customer, [[await newProduct(admin), 1]], { awaitPayment: true });
    const before = await counted.counters();
    const { payment } = await customer.payments.processPayment(paymentOf(order, {}, "tok_fraud"));
    const stopped = present(payment);
    expect(stopped).to.include({
      status: PaymentStatus.FRAUD_DETECTED,
      failureReason: "Payment declined for security reasons",
      gateway: "",
    });
    const { payment: seenByAdmin } = await admin.payments.getPayment({ paymentId: stopped.id });
    expect(seenByAdmin?.failureReason).to.equal("High fraud risk: blocklisted_token");
    expect((await customer.payments.listPayments({})).payments.map(({ failureReason }) => failureReason)).to.deep.equal(
      ["Payment declined for security reasons"],
    );
    expect(gateway.charge.called).to.equal(false);
    expect(await counted.grownSince(before)).to.deep.equal({ "payment.fraud_detected": 1 });
    const { order: freed } = await customer.orders.getOrder({ orderId: order.id });
    expect(freed?.paymentState).to.equal(OrderPaymentState.UNPAID);
  });

  it("of high risk alert SECURITY_EMAIL by mail, with the card's token in none of it", async () => {
    const stopped = await pay(await newCustomer(server), "12.30", "tok_fraud");
    await server.runJobs();
    const [alert] = send.args.map(([message]) => message).filter(({ text }) => text.includes(stopped.id));
    expect(alert).to.include({ to: "security@tradepost.example", subject: "A payment was stopped as fraud" });
    expect(alert?.text).to.include("12.30 USD").and.to.include("blocklisted_token").and.not.to.include("tok_");
  });

  it("count within ten minutes, and no longer", async () => {
    const customer = await newCustomer(server);
    for (const _ of [1, 2, 3]) expect(await riskOf(await pay(customer, "1", "tok_v"))).to.deep.equal(["LOW"]);
    expect(await riskOf(await pay(customer, "1", "tok_v"))).to.deep.equal(["MEDIUM", "velocity"]);
    await sql(
      server.database,
      "UPDATE payments SET create_time = create_time - interval '10 minutes' WHERE customer_id = $1",
      [customer.id],
    );
    expect(await riskOf(await pay(customer, "1", "tok_v"))).to.deep.equal(["LOW"]);
  });

  it("note a token that goes from customer to customer", async () => {
    const token = "tok_passed_on";
    const levels = [];
    for (const _ of [1, 2, 3]) levels.push((await riskOf(await pay(await newCustomer(server), "1", token)))[0]);
    expect(levels).to.deep.equal(["LOW", "LOW", "MEDIUM"]);
  });

  it("compare the card's country with the one the order goes to, and the amount with what is usual", async () => {
    const customer = await newCustomer(server);
    const { address } = await customer.users.createAddress({ address: { ...anAddress, country: "DE" } });
    const product = await newProduct(admin, { price: "100.00" });
    const order = await newOrder(customer, [[product, 1]], {
      awaitPayment: true,
      shippingAddressId: present(address).id,
    });
    for (const _ of [1, 2, 3]) await pay(customer, "1.00", "tok_u");
    await server.runJobs();
    server.clock.advance(11 * 60_000);
    const method = { case: "card" as const, value: { token: "tok_u", billingCountry: "FR" } };
    const stopped = present(
      (await customer.payments.processPayment(paymentOf(order, { paymentMethod: { method } }))).payment,
    );
    expect(await riskOf(stopped)).to.deep.equal(["HIGH", "unusual_amount", "country_mismatch"]);
    expect(stopped.status).to.equal(PaymentStatus.FRAUD_DETECTED);
  });

  it("that were judged and then left by a crash end by the verdict, and are never charged", async () => {
    const customer = await newCustomer(server);
    const stopped = await pay(customer, "5", "tok_fraud");
    await sql(
      server.database,
      `UPDATE payments SET status = 'PENDING', process_time = NULL, check_time = now(), lease_expire_time = NULL
        WHERE id = $1`,
      [stopped.id],
    );
    await sql(server.database, "UPDATE payment_attempts SET state = 'CREATED' WHERE payment_id = $1", [stopped.id]);
    await reconcilePayments(server.deps);
    const { payment } = await admin.payments.getPayment({ paymentId: stopped.id });
    expect(payment).to.include({
      status: PaymentStatus.FRAUD_DETECTED,
      failureReason: "High fraud risk: blocklisted_token",
    });
    expect([gateway.charge.called, gateway.void.called]).to.deep.equal([false, false]);
  });
});

describe("a fraud check that fails", () => {
  const gateway = fakeGateway();
  const check = sinon.stub<Parameters<FraudCheck["check"]>, ReturnType<FraudCheck["check"]>>();
  const counted = readableMetrics();
  const parts = {
    gateways: { primary: gateway, backup: undefined },
    fraud: { check },
    metrics: counted.metrics,
  };
  const denying = useServer({ ...parts, settings: { FRAUD_TIMEOUT_MS: "100" } });
  const allowing = useServer({ ...parts, settings: { FRAUD_TIMEOUT_MS: "100", FRAUD_UNAVAILABLE: "allow" } });
  beforeEach(() => {
    check.reset();
    gateway.charge.resetHistory();
  });

  it("fails the payment uncharged", async () => {
    check.rejects(new Error("away"));
    const before = await counted.counters();
    expect(await pay(await newCustomer(denying))).to.include({
      status: PaymentStatus.FAILED,
      failureReason: "Fraud check unavailable",
    });
    expect(gateway.charge.called).to.equal(false);
    expect(await counted.grownSince(before)).to.deep.equal({ "payment.failed": 1, "payment.fraud_check_failed": 1 });
  });

  it("is kept as no verdict, so that a process that goes on after a crash fails the payment as well", async () => {
    check.rejects(new Error("away"));
    const { id } = await pay(await newCustomer(denying));
    const text = "SELECT risk_level, risk_factors FROM payments WHERE id = $1";
    expect(await sql(denying.database, text, [id])).to.deep.equal([{ risk_level: "UNCHECKED", risk_factors: [] }]);
    await sql(
      denying.database,
      `UPDATE payments SET status = 'PENDING', process_time = NULL, check_time = now(), lease_expire_time = NULL
        WHERE id = $1`,
      [id],
    );
    await sql(denying.database, "UPDATE payment_attempts SET state = 'CREATED' WHERE payment_id = $1", [id]);
    await reconcilePayments(denying.deps);
    const admin = await newAdmin(denying);
    expect((await admin.payments.getPayment({ paymentId: id })).payment).to.include({
      status: PaymentStatus.FAILED,
      failureReason: "Fraud check unavailable",
    });
    expect([check.callCount, gateway.charge.called]).to.deep.equal([1, false]);
  });

  it("does so too when it never answers, within its time", async () => {
    check.returns(new Promise(() => {}));
    const startedAt = Date.now();
    expect((await pay(await newCustomer(denying))).failureReason).to.equal("Fraud check unavailable");
    expect(Date.now() - startedAt).to.be.below(10_000);
    expect(check.firstCall.args[2].aborted).to.equal(true);
  });

  it("lets the payment be charged with FRAUD_UNAVAILABLE=allow, and that is kept with it", async () => {
    check.rejects(new Error("away"));
    const payment = await pay(await newCustomer(allowing));
    expect(payment.status).to.equal(PaymentStatus.COMPLETED);
    const rows = await sql(allowing.database, "SELECT risk_level, risk_factors FROM payments WHERE id = $1", [
      payment.id,
    ]);
    expect(rows).to.deep.equal([{ risk_level: "LOW", risk_factors: ["check_unavailable"] }]);
  });
});

/** What another team's fraud check does with the next calls. */
type Answer = (request: CheckPaymentRequest) => object | Promise<object>;

for (const protocol of ["connect", "grpc"] as const) {
  describe(`the fraud check of FRAUD_URL, by ${protocol}`, () => {
    const gateway = fakeGateway();
    const asked: CheckPaymentRequest[] = [];
    const urls: string[] = [];
    let answer: Answer;
    const handler = connectNodeAdapter({
      interceptors: [
        (next) => (req) => {
          urls.push(`${req.requestMethod} ${new URL(req.url).pathname}${new URL(req.url).search}`);
          return next(req);
        },
      ],
      routes: (router) => {
        router.service(FraudService, {
          checkPayment: (request) => {
            asked.push(request);
            return answer(request);
          },
        });
      },
    });
    const remote = protocol === "connect" ? createServer(handler) : createHttp2Server(handler);
    const settings: Record<string, string> = { FRAUD_PROTOCOL: protocol, FRAUD_TIMEOUT_MS: "10000" };
    const hurried: Record<string, string> = { FRAUD_PROTOCOL: protocol, FRAUD_TIMEOUT_MS: "200" };
    before(async () => {
      await new Promise<void>((resolve) => remote.listen(0, "127.0.0.1", resolve));
      const url = `http://127.0.0.1:${(remote.address() as AddressInfo).port}`;
      for (const given of [settings, hurried]) given["FRAUD_URL"] = url;
    });
    const gateways = { primary: gateway, backup: undefined };
    const server = useServer({ gateways, settings });
    const hurriedServer = useServer({ gateways, settings: hurried });
    after(() => {
      remote.close();
    });
    beforeEach(() => {
      asked.length = 0;
      urls.length = 0;
      answer = () => ({ riskLevel: RiskLevel.LOW });
      gateway.charge.resetHistory();
    });

    it("is told what is known of the payment, by POST, and its low verdict lets it be charged", async () => {
      const customer = await newCustomer(server);
      const payment = await pay(customer, "7.50", "tok_visa", "US");
      expect(payment.status).to.equal(PaymentStatus.COMPLETED);
      expect(asked).to.have.length(1);
      expect(asked[0]).to.include({
        paymentId: payment.id,
        customerId: customer.id,
        orderId: "",
        paymentMethodToken: "tok_visa",
        billingCountry: "US",
        shippingCountry: "",
      });
      expect(asked[0]?.createTime).to.deep.equal(payment.createTime);
      expect(asked[0]?.customerCreateTime).not.to.equal(undefined);
      expect(urls).to.deep.equal(["POST /tradepost.fraud.v1.FraudService/CheckPayment"]);
    });

    it("stops a payment by a high one, with factors that stay few, short and of one line", async () => {
      answer = () => ({
        riskLevel: RiskLevel.HIGH,
        riskFactors: ["stolen\r\ncard", "x".repeat(500), ...Array(50)].map(String),
      });
      const payment = await pay(await newCustomer(server));
      expect(payment.status).to.equal(PaymentStatus.FRAUD_DETECTED);
      const rows = await sql<{ failure_reason: string }>(
        server.database,
        "SELECT failure_reason FROM payments WHERE id = $1",
        [payment.id],
      );
      expect(rows[0]?.failure_reason).to.match(/^High fraud risk: stolen\?\?card, x{64}, /);
      expect(rows[0]?.failure_reason.split(", ")).to.have.length(16);
      expect(gateway.charge.called).to.equal(false);
    });

    for (const riskFactors of [["unchecked"], ["check_unavailable"], ["never_heard_of"], [""], []]) {
      it(`stops a payment as fraud by a high one with the factors ${JSON.stringify(riskFactors)}`, async () => {
        answer = () => ({ riskLevel: RiskLevel.HIGH, riskFactors });
        const payment = await pay(await newCustomer(server));
        expect(payment).to.include({
          status: PaymentStatus.FRAUD_DETECTED,
          failureReason: "Payment declined for security reasons",
        });
        expect(gateway.charge.called).to.equal(false);
      });
    }

    it("never passes for one that was not there, by whatever factors it names", async () => {
      answer = () => ({ riskLevel: RiskLevel.LOW, riskFactors: ["check_unavailable"] });
      const { id } = await pay(await newCustomer(server));
      const text = "SELECT risk_level, risk_factors FROM payments WHERE id = $1";
      const [row] = await sql<{ risk_level: string; risk_factors: string[] }>(server.database, text, [id]);
      expect(row?.risk_level).to.equal("LOW");
      expect(row?.risk_factors).not.to.include("check_unavailable");
    });

    it("has failed when it names no level or none that is known, or an error", async () => {
      const customer = await newCustomer(server);
      const failures: Answer[] = [
        () => ({}),
        () => ({ riskLevel: 99 as RiskLevel, riskFactors: ["velocity"] }),
        () => {
          throw new ConnectError("no", Code.Internal);
        },
      ];
      for (const failure of failures) {
        answer = failure;
        expect((await pay(customer)).failureReason).to.equal("Fraud check unavailable");
      }
      expect(gateway.charge.called).to.equal(false);
    });

    it("has failed when it says nothing in time", async () => {
      const customer = await newCustomer(hurriedServer);
      answer = () => new Promise(() => {});
      expect((await pay(customer)).failureReason).to.equal("Fraud check unavailable");
      expect(gateway.charge.called).to.equal(false);
    });

    it("is left alone for a while after five failures in a row", async () => {
      const customer = await newCustomer(server);
      answer = () => {
        throw new ConnectError("no", Code.Internal);
      };
      for (const _ of Array(8)) expect((await pay(customer)).failureReason).to.equal("Fraud check unavailable");
      expect(asked.length).to.be.at.most(5);
    });
  });
}
