import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { Agent as HttpAgent, request } from "node:http";
import { connect } from "node:http2";
import { createServer as createHttpsServer, Agent as HttpsAgent } from "node:https";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { expect } from "chai";
import { pino } from "pino";
import sinon from "sinon";
import { OrderPaymentState } from "../../gen/tradepost/order/v1/order_pb.js";
import { type Payment, PaymentStatus, RefundStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import type { Gateway, GatewayEvent, Unknown } from "../../src/payments/gateways/gateway.ts";
import { exchange } from "../../src/payments/gateways/http-exchange.ts";
import { startSandbox } from "../../src/payments/gateways/sandbox-server.ts";
import { signWebhook } from "../../src/payments/gateways/sandbox-webhook.ts";
import { forgetWebhooks } from "../../src/payments/receive-webhook.ts";
import { reconcilePayments } from "../../src/payments/reconcile-payments.ts";
import { reverseCharges } from "../../src/payments/reverse-charges.ts";
import { selfSignedCertificate } from "../server/self-signed.ts";
import { sql, useDatabase } from "../support/database.ts";
import {
  card,
  money,
  newAdmin,
  newCustomer,
  newOrder,
  newProduct,
  PASSWORD,
  type Person,
  paymentOf,
  present,
  text,
} from "../support/factories.ts";
import { fakeGateway } from "../support/fakes.ts";
import { freePort } from "../support/ports.ts";
import { until, usePrograms } from "../support/process.ts";
import { type TestServer, useServer, WEBHOOK_SECRET } from "../support/server.ts";

const DAY_MS = 24 * 3_600_000;

const post = (server: TestServer, vendor: string, body: string, headers: Record<string, string> = {}) =>
  fetch(`${server.url}/webhooks/${vendor}`, { method: "POST", body, headers });

/** An event of the sandbox, as it would send it. */
const eventOf = (type: string, subject: object, gateway = "sandbox-primary") => ({
  id: `evt_${randomUUID()}`,
  type,
  gateway,
  create_time: new Date().toISOString(),
  ...subject,
});

const signed = (body: string, time = new Date(), secret = WEBHOOK_SECRET) => ({
  "sandbox-signature": signWebhook(secret, body, time),
});

const send = (server: TestServer, event: object) => {
  const body = JSON.stringify(event);
  return post(server, "sandbox", body, signed(body));
};

const captureOf = (reference: string, minor: number, gateway = "sandbox-primary") => ({
  charge: {
    ...{ gateway, reference, token: "tok_visa", amount_minor: minor, currency: "USD", state: "captured" },
    ...{ captured_minor: minor, refunded_minor: 0, disputed_minor: 0, transaction_id: `txn_${reference}` },
    ...{ response_code: "00", decline_reason: "", create_time: new Date().toISOString() },
  },
});

const waitingEvents = ({ database }: TestServer) =>
  sql<{ event_id: string }>(database, "SELECT event_id FROM webhook_events WHERE process_time IS NULL");

const attemptOf = async ({ database }: TestServer, paymentId: string) => {
  const [row] = await sql<{ id: string; state: string }>(
    database,
    "SELECT id, state FROM payment_attempts WHERE payment_id = $1 ORDER BY number",
    [paymentId],
  );
  return present(row);
};

describe("POST /webhooks/<gateway>", () => {
  const counted = sinon.spy();
  const server = useServer();
  before(() => {
    sinon.replace(server.deps.metrics, "count", counted);
  });
  after(() => sinon.restore());
  afterEach(() => counted.resetHistory());

  const unknownCharge = () => eventOf("charge.captured", captureOf(randomUUID(), 100));

  it("keeps what is signed, once, and acknowledges it every time", async () => {
    const event = unknownCharge();
    const answers = await Promise.all(Array.from({ length: 5 }, () => send(server, event)));
    expect(answers.map(({ status }) => status)).to.deep.equal([200, 200, 200, 200, 200]);
    expect((await waitingEvents(server)).map(({ event_id }) => event_id)).to.deep.equal([event.id]);
    const jobs = await sql(
      server.database,
      `SELECT 1 FROM graphile_worker._private_jobs WHERE payload ->> 'eventId' = $1`,
      [event.id],
    );
    expect(jobs).to.have.length(1);
    await server.runJobs();
    expect(await waitingEvents(server)).to.deep.equal([]);
  });

  for (const { what, headers, cause } of [
    { what: "is not signed", headers: () => ({}), cause: "forged" },
    {
      what: "is signed with another secret",
      headers: (body: string) => signed(body, new Date(), "another secret of some length"),
      cause: "forged",
    },
    { what: "is signed for another body", headers: (body: string) => signed(`${body} `), cause: "forged" },
    {
      what: "was signed six minutes ago",
      headers: (body: string) => signed(body, new Date(Date.now() - 360_000)),
      cause: "stale",
    },
  ]) {
    it(`refuses what ${what}, counts it and keeps nothing`, async () => {
      const body = JSON.stringify(unknownCharge());
      const answer = await post(server, "sandbox", body, headers(body));
      expect(answer.status).to.equal(400);
      expect(await answer.text()).to.equal("The webhook was refused.");
      expect(counted.args).to.deep.equal([["webhook.rejected", { gateway: "sandbox", cause }]]);
      expect(await waitingEvents(server)).to.deep.equal([]);
    });
  }

  it("refuses what is signed but no event", async () => {
    const answers = await Promise.all(
      ["not JSON", "{}", "[]", JSON.stringify({ ...unknownCharge(), gateway: "stripe" })].map((body) =>
        post(server, "sandbox", body, signed(body)),
      ),
    );
    expect(answers.map(({ status }) => status)).to.deep.equal([400, 400, 400, 400]);
  });

  it("knows no gateway that is not in use", async () => {
    for (const vendor of ["stripe", "adyen", "sandbox-primary", "", "constructor", "sandbox/x"]) {
      expect((await post(server, vendor, "{}")).status, vendor).to.equal(404);
    }
  });

  it("takes nothing but POST", async () => {
    const answer = await fetch(`${server.url}/webhooks/sandbox`);
    expect([answer.status, answer.headers.get("allow")]).to.deep.equal([405, "POST"]);
  });

  it("takes no more than 256 KiB, and says so instead of reading on", async () => {
    const answer = await post(server, "sandbox", "x".repeat(256 * 1024 + 1));
    expect(answer.status).to.equal(413);
    expect((await post(server, "sandbox", "x".repeat(256 * 1024))).status).to.equal(400);
  });

  it("takes them over HTTP/2 as well", async () => {
    const body = JSON.stringify(unknownCharge());
    const session = connect(server.url);
    const stream = session.request({ ":method": "POST", ":path": "/webhooks/sandbox", ...signed(body) });
    stream.end(body);
    const [headers] = (await once(stream, "response")) as [Record<string, unknown>];
    session.close();
    expect(headers[":status"]).to.equal(200);
    await server.runJobs();
  });

  it("survives a sender that goes away in the middle of its body", async () => {
    const { hostname, port } = new URL(server.url);
    await new Promise<void>((resolve) => {
      const req = request({
        hostname,
        port,
        path: "/webhooks/sandbox",
        method: "POST",
        headers: { "content-length": 100 },
      });
      req.on("error", () => resolve());
      req.write("half", () => req.destroy(new Error("gone")));
    });
    expect((await send(server, unknownCharge())).status).to.equal(200);
    await server.runJobs();
  });

  it("acknowledges an event that it has no use for, and keeps none of it", async () => {
    const body = JSON.stringify(eventOf("charge.invented_later", {}));
    expect((await post(server, "sandbox", body, signed(body))).status).to.equal(200);
    expect(await waitingEvents(server)).to.deep.equal([]);
  });

  it("keeps texts that a database would not take", async () => {
    const event = eventOf("dispute.opened", {
      dispute: {
        ...{ gateway: "sandbox-primary", id: "dsp_1", reference: randomUUID(), amount_minor: 100, currency: "USD" },
        ...{ state: "open", reason: "a\u0000b\ud800c \\u0000", create_time: new Date().toISOString() },
      },
    });
    expect((await send(server, event)).status).to.equal(200);
    await server.runJobs();
    expect(await waitingEvents(server)).to.deep.equal([]);
  });

  it("forgets what was dealt with 90 days ago, and nothing that waits", async () => {
    const [done, waiting] = [unknownCharge(), unknownCharge()];
    await send(server, done);
    await server.runJobs();
    await send(server, waiting);
    server.clock.advance(91 * DAY_MS);
    expect(await forgetWebhooks(server.deps)).to.equal(false);
    server.clock.advance(-91 * DAY_MS);
    const left = await sql<{ event_id: string }>(server.database, "SELECT event_id FROM webhook_events");
    expect(left.map(({ event_id }) => event_id)).to.deep.equal([waiting.id]);
    await server.runJobs();
  });
});

describe("webhooks of vendors", () => {
  const adyen = { ...fakeGateway(), name: "adyen" } as unknown as Gateway & ReturnType<typeof fakeGateway>;
  const stripe = { ...fakeGateway(), name: "stripe" } as unknown as Gateway & ReturnType<typeof fakeGateway>;
  const server = useServer({ gateways: { primary: stripe, backup: adyen } });

  it("are acknowledged as Adyen wants it, with all of their events", async () => {
    const events: GatewayEvent[] = ["a", "b"].map((id) => ({
      ...{ type: "charge_voided", reference: randomUUID(), id, gateway: "adyen", occurTime: new Date() },
    }));
    adyen.parseWebhook.returns({ kind: "accepted", events });
    const answer = await post(server, "adyen", "signed");
    expect([answer.status, await answer.text()]).to.deep.equal([200, "[accepted]"]);
    expect(Buffer.from(adyen.parseWebhook.firstCall.args[0].body).toString()).to.equal("signed");
    expect(await waitingEvents(server)).to.have.length(2);
  });

  it("are of the gateway that the path names", async () => {
    stripe.parseWebhook.returns({ kind: "accepted", events: [] });
    const answer = await post(server, "stripe", "{}", { "stripe-signature": "t=1,v1=0" });
    expect([answer.status, await answer.text()]).to.deep.equal([200, ""]);
    expect(stripe.parseWebhook.firstCall.args[0].headers["stripe-signature"]).to.equal("t=1,v1=0");
  });

  it("are for nobody where the gateway was given no secret", async () => {
    stripe.parseWebhook.returns({ kind: "refused", cause: "unconfigured", detail: "" });
    expect((await post(server, "stripe", "{}")).status).to.equal(404);
  });
});

describe("what webhooks tell of charges and refunds", () => {
  const primary = fakeGateway();
  const backup = { ...fakeGateway(), name: "sandbox-backup" as const };
  /** The event of a body that holds one as JSON. */
  const revive = (json: Record<string, unknown>): GatewayEvent => {
    const walk = (value: unknown): unknown => {
      if (typeof value !== "object" || value === null) return value;
      return Object.fromEntries(
        Object.entries(value).map(([key, inner]) => [key, key === "minor" ? BigInt(inner as string) : walk(inner)]),
      );
    };
    return { ...(walk(json) as GatewayEvent), occurTime: new Date() };
  };
  const server = useServer({ gateways: { primary, backup } });
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });
  beforeEach(() => {
    Object.assign(primary, fakeGateway());
    Object.assign(backup, fakeGateway(), { name: "sandbox-backup" });
    primary.parseWebhook.callsFake(({ body }) => ({
      kind: "accepted",
      events: [revive(JSON.parse(Buffer.from(body).toString()))],
    }));
  });

  const TIMEOUT: Unknown = { kind: "unknown", cause: "timeout", detail: "" };
  const SILENCE: Unknown = { kind: "unknown", cause: "not_sent", detail: "" };
  const usd = (minor: string) => ({ currency: "USD", minor });
  const captured = (minor: string) => ({
    ...{ outcome: "captured", transactionId: "txn_told", captured: usd(minor), responseCode: "00" },
  });

  /** Delivers an event and carries its job out. */
  const tell = async (fact: object, gateway = "sandbox-primary") => {
    const answer = await post(server, "sandbox", JSON.stringify({ id: `evt_${randomUUID()}`, gateway, ...fact }));
    expect(answer.status).to.equal(200);
    await server.runJobs();
    expect(await waitingEvents(server)).to.deep.equal([]);
  };
  const anOrder = async () => newOrder(customer, [[await newProduct(admin), 1]], { awaitPayment: true });
  const unknownPayment = async () => {
    primary.charge.resolves(TIMEOUT);
    primary.lookup.resolves(SILENCE);
    primary.void.resolves(SILENCE);
    const order = await anOrder();
    const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
    expect(payment.status).to.equal(PaymentStatus.PENDING);
    return { order, payment, reference: (await attemptOf(server, payment.id)).id };
  };
  const paymentNow = async ({ id }: Payment) =>
    present((await customer.payments.getPayment({ paymentId: id })).payment);
  const aPayment = async () => {
    const asked = { requestId: randomUUID(), amount: money("10.99"), paymentMethod: card("tok_visa") };
    const payment = present((await customer.payments.processPayment(asked)).payment);
    return { payment, reference: (await attemptOf(server, payment.id)).id };
  };
  const orderState = async (orderId: string) =>
    (await customer.orders.getOrder({ orderId })).order?.paymentState ?? OrderPaymentState.UNSPECIFIED;

  it("complete a payment whose outcome was unknown, once", async () => {
    const { order, payment, reference } = await unknownPayment();
    const event = { type: "charge_captured", reference, result: captured("1099") };
    await tell(event);
    await tell(event);
    expect(await paymentNow(payment)).to.include({
      status: PaymentStatus.COMPLETED,
      gateway: "sandbox-primary",
      gatewayTransactionId: "txn_told",
    });
    expect(await orderState(order.id)).to.equal(OrderPaymentState.PAID);
    const entries = await sql(server.database, "SELECT 1 FROM ledger_entries WHERE payment_id = $1", [payment.id]);
    expect(entries).to.have.length(4);
  });

  it("fail a payment that was declined, and free its order", async () => {
    const { order, payment, reference } = await unknownPayment();
    await tell({
      ...{ type: "charge_declined", reference },
      result: { outcome: "declined", reason: "card_declined", responseCode: "05" },
    });
    expect(await paymentNow(payment)).to.include({
      status: PaymentStatus.FAILED,
      failureReason: "Payment declined: card_declined",
    });
    expect(await orderState(order.id)).to.equal(OrderPaymentState.UNPAID);
  });

  it("let the sweep charge the backup at once after the proof that the first charge never executes", async () => {
    const { payment, reference } = await unknownPayment();
    await tell({ type: "charge_voided", reference });
    expect((await paymentNow(payment)).status).to.equal(PaymentStatus.PENDING);
    expect(backup.charge.called).to.equal(false);
    await reconcilePayments(server.deps);
    expect(await paymentNow(payment)).to.include({ status: PaymentStatus.COMPLETED, gateway: "sandbox-backup" });
    expect(primary.lookup.callCount, "nothing is left to be asked").to.equal(1);
  });

  it("change nothing of a payment that is over, in whatever order they come", async () => {
    const { payment, reference } = await aPayment();
    await tell({ type: "charge_voided", reference });
    await tell({
      ...{ type: "charge_declined", reference },
      result: { outcome: "declined", reason: "capture_failed", responseCode: "05" },
    });
    await tell({ type: "charge_captured", reference, result: captured("1099") });
    expect(await paymentNow(payment)).to.deep.equal(payment);
    expect((await attemptOf(server, payment.id)).state).to.equal("CAPTURED");
  });

  it("are believed when they tell of money that was taken although its attempt had been given up: it goes back", async () => {
    primary.charge.resolves({ kind: "not_executed", cause: "rejected", proves: "this_send", detail: "" });
    const asked = { requestId: randomUUID(), amount: money("10.99"), paymentMethod: card("tok_visa") };
    const payment = present((await customer.payments.processPayment(asked)).payment);
    expect([payment.status, payment.gateway]).to.deep.equal([PaymentStatus.COMPLETED, "sandbox-backup"]);
    const { id: reference } = await attemptOf(server, payment.id);
    await tell({ type: "charge_captured", reference, result: captured("1099") });
    expect(await attemptOf(server, payment.id)).to.deep.equal({ id: reference, state: "REVERSING" });

    // The answer to giving it back is lost; the webhook about it is not.
    primary.refund.resolves(TIMEOUT);
    await reverseCharges(server.deps);
    const [{ key } = { key: "" }] = primary.refund.firstCall.args;
    await tell({
      ...{ type: "refund_completed", reference, key },
      result: { outcome: "completed", transactionId: "rfd", refunded: usd("1099"), responseCode: "00" },
    });
    expect(await attemptOf(server, payment.id)).to.deep.equal({ id: reference, state: "REVERSED" });
    expect((await paymentNow(payment)).status).to.equal(PaymentStatus.COMPLETED);
  });

  it("are noted and no more when they tell of a charge or a refund that is not ours, or of another gateway's", async () => {
    const { payment, reference } = await unknownPayment();
    const result = captured("1099");
    await tell({ type: "charge_captured", reference: randomUUID(), result });
    await tell({ type: "charge_captured", reference: "somebody else's", result });
    await tell({ type: "charge_captured", reference, result }, "sandbox-backup");
    const refund = { outcome: "failed", reason: "x", responseCode: "" };
    await tell({ type: "refund_failed", reference, key: randomUUID(), result: refund });
    await tell({ type: "refund_failed", reference: "x", key: "y", result: refund });
    expect((await paymentNow(payment)).status).to.equal(PaymentStatus.PENDING);
  });

  describe("of refunds", () => {
    const pendingRefund = async () => {
      const { payment, reference } = await aPayment();
      primary.refund.resolves({ kind: "pending", transactionId: "rfd_1" });
      const asked = { requestId: randomUUID(), paymentId: payment.id, amount: money("10.99") };
      const refund = present((await customer.payments.refundPayment(asked)).refund);
      expect(refund.status).to.equal(RefundStatus.PENDING);
      return { payment, reference, key: refund.id };
    };
    const completed = { outcome: "completed", transactionId: "rfd_1", refunded: usd("1099"), responseCode: "00" };
    const failed = { outcome: "failed", reason: "returned_by_bank", responseCode: "05" };
    const refundNow = async (refundId: string) => present((await customer.payments.getRefund({ refundId })).refund);
    const movements = async ({ id }: Payment) =>
      (
        await sql<{ kind: string }>(
          server.database,
          "SELECT DISTINCT kind, movement_id FROM ledger_entries WHERE payment_id = $1 ORDER BY kind",
          [id],
        )
      ).map(({ kind }) => kind);

    it("complete what was pending, once", async () => {
      const { payment, reference, key } = await pendingRefund();
      const event = { type: "refund_completed", reference, key, result: completed };
      await tell(event);
      await tell(event);
      expect((await refundNow(key)).status).to.equal(RefundStatus.COMPLETED);
      expect(text((await paymentNow(payment)).refundedAmount)).to.equal("10.99 USD");
      expect(await movements(payment)).to.deep.equal(["CHARGE", "REFUND"]);
    });

    it("release the amount of one that failed", async () => {
      const { payment, reference, key } = await pendingRefund();
      await tell({ type: "refund_failed", reference, key, result: failed });
      expect(await refundNow(key)).to.include({
        status: RefundStatus.FAILED,
        failureReason: "Refund failed: returned_by_bank",
      });
      primary.refund.resolves({
        kind: "executed",
        result: { ...completed, refunded: { currency: "USD", minor: 1099n } } as never,
      });
      const asked = { requestId: randomUUID(), paymentId: payment.id, amount: money("10.99") };
      expect((await customer.payments.refundPayment(asked)).refund?.status).to.equal(RefundStatus.COMPLETED);
    });

    it("release the amount of one that completed first and was sent back later, in either order of the news", async () => {
      for (const reordered of [false, true]) {
        const { payment, reference, key } = await pendingRefund();
        const news = [
          { type: "refund_completed", reference, key, result: completed },
          { type: "refund_failed", reference, key, result: failed },
        ];
        for (const event of reordered ? news.toReversed() : news) await tell(event);
        expect((await refundNow(key)).status).to.equal(RefundStatus.FAILED);
        expect(text((await paymentNow(payment)).refundedAmount)).to.equal("0 USD");
        const moved = reordered ? ["CHARGE"] : ["CHARGE", "REFUND", "REFUND_RETURNED"];
        expect(await movements(payment)).to.deep.equal(moved);
      }
    });

    it("make an order PAID again whose money was sent back", async () => {
      const order = await anOrder();
      const payment = present((await customer.payments.processPayment(paymentOf(order))).payment);
      const { id: reference } = await attemptOf(server, payment.id);
      primary.refund.resolves({ kind: "pending" });
      const asked = { requestId: randomUUID(), paymentId: payment.id, amount: money("10.99") };
      const { id: key } = present((await customer.payments.refundPayment(asked)).refund);
      await tell({ type: "refund_completed", reference, key, result: completed });
      expect(await orderState(order.id)).to.equal(OrderPaymentState.REFUNDED);
      await tell({ type: "refund_failed", reference, key, result: failed });
      expect(await orderState(order.id)).to.equal(OrderPaymentState.PAID);
    });
  });
});

describe("webhooks from the sandbox itself", () => {
  const server = useServer({ webhooks: true });
  let customer: Person;
  before(async () => {
    customer = await newCustomer(server);
  });

  it("finish a pending refund, and nothing that was known before is counted twice", async () => {
    const counted = sinon.spy(server.deps.metrics, "count");
    const asked = { requestId: randomUUID(), amount: money("40"), paymentMethod: card("tok_refund_pending") };
    const payment = present((await customer.payments.processPayment(asked)).payment);
    const request = { requestId: randomUUID(), paymentId: payment.id, amount: money("15") };
    let refund = present((await customer.payments.refundPayment(request)).refund);
    expect(refund.status).to.equal(RefundStatus.PENDING);
    while (refund.status === RefundStatus.PENDING) {
      await server.runJobs();
      refund = present((await customer.payments.refundPayment(request)).refund);
    }
    expect(refund.status).to.equal(RefundStatus.COMPLETED);
    expect(text((await customer.payments.getPayment({ paymentId: payment.id })).payment?.refundedAmount)).to.equal(
      "15 USD",
    );
    const names = counted.args.map(([name]) => name).sort();
    counted.restore();
    expect(names).to.deep.equal(["payment.successful", "refund.successful"]);
  });

  it("tell of a refund that the bank sends back", async () => {
    const asked = { requestId: randomUUID(), amount: money("40"), paymentMethod: card("tok_visa") };
    const payment = present((await customer.payments.processPayment(asked)).payment);
    const request = { requestId: randomUUID(), paymentId: payment.id, amount: money("15") };
    const refund = present((await customer.payments.refundPayment(request)).refund);
    await fetch(`${server.sandbox.url}/sandbox-primary/refunds/${refund.id}/fail`, { method: "POST" });
    let { status } = refund;
    while (status === RefundStatus.COMPLETED) {
      await server.runJobs();
      status = present((await customer.payments.getRefund({ refundId: refund.id })).refund).status;
    }
    expect(status).to.equal(RefundStatus.FAILED);
  });
});

describe("the sandbox as a program", function () {
  this.timeout(90_000);
  const database = useDatabase();
  const { newFolder, runService, start } = usePrograms();
  const tls = selfSignedCertificate();
  const agent = new HttpsAgent({ ca: tls.cert });
  after(() => agent.destroy());
  // Each service has a folder of its own, with another key than the one before it.
  beforeEach(() => sql(database, "DELETE FROM signing_keys"));
  const tlsFiles = async () => {
    const folder = await newFolder();
    const files = { TLS_CERT: join(folder, "cert.pem"), TLS_KEY: join(folder, "key.pem") };
    await writeFile(files.TLS_CERT, tls.cert);
    await writeFile(files.TLS_KEY, tls.key);
    return files;
  };
  /** Makes a payment of a service, and waits until the sandbox has told the service of it. */
  const payAndBeTold = async (url: string) => {
    await sql(database, "DELETE FROM webhook_events");
    const call = async (rpc: string, body: object, token = ""): Promise<{ accessToken?: string }> => {
      const headers = { "content-type": "application/json", ...(token !== "" && { authorization: `Bearer ${token}` }) };
      const target = new URL(`/tradepost.${rpc}`, url);
      const bounds = { agent: url.startsWith("https:") ? agent : new HttpAgent(), timeoutMs: 20_000 };
      const asked = { method: "POST", url: target, headers, body: JSON.stringify(body) } as const;
      const answer = await exchange({ ...asked, ...bounds, maxResponseBytes: 65_536 });
      if (answer.kind !== "answered") throw new Error(`${rpc}: ${answer.cause} ${answer.detail}`);
      expect(answer.status, rpc).to.equal(200);
      return JSON.parse(answer.body.toString()) as { accessToken?: string };
    };
    const credentials = { email: `${randomUUID()}@tradepost.example`, password: PASSWORD };
    const person = { firstName: "Casey", lastName: "Jones", dateOfBirth: { year: 1990, month: 1, day: 2 } };
    await call("user.v1.AuthService/Register", { ...credentials, ...person });
    const { accessToken } = await call("user.v1.AuthService/Login", credentials);
    const asked = {
      ...{ requestId: randomUUID(), amount: { currencyCode: "USD", units: "40" } },
      paymentMethod: { card: { token: "tok_visa" } },
    };
    await call("payment.v1.PaymentService/ProcessPayment", asked, accessToken);
    const event = await until("the capture's webhook was dealt with", async () => {
      const done = "SELECT event ->> 'type' AS type FROM webhook_events WHERE process_time IS NOT NULL";
      return (await sql<{ type: string }>(database, done))[0];
    });
    expect(event.type).to.equal("charge_captured");
  };

  it("sends its webhooks to the service that has started it", async () => {
    const service = await runService({ DATABASE_URL: database.url, DATA_DIR: await newFolder() });
    await payAndBeTold(service.url);
    await service.stop();
  });

  it("does so over TLS, to the service's own certificate", async () => {
    const settings = { DATABASE_URL: database.url, DATA_DIR: await newFolder(), ...(await tlsFiles()) };
    const service = await runService(settings);
    expect(service.url).to.match(/^https:/);
    await payAndBeTold(service.url);
    await service.stop();
  });

  for (const what of ["the same folder", "the same secret"]) {
    it(`alone sends them to SANDBOX_WEBHOOK_URL, signed so that a service with ${what} takes them`, async () => {
      const [port, sandboxPort, folder] = await Promise.all([freePort(), freePort(), newFolder()]);
      const shared = { SANDBOX_PORT: String(sandboxPort), ...(await tlsFiles()) };
      const secret = what === "the same secret" ? { SANDBOX_WEBHOOK_SECRET: randomUUID() } : {};
      const sandbox = start("src/commands/sandbox.ts", {
        settings: {
          ...{ ...shared, ...secret, DATA_DIR: folder },
          SANDBOX_WEBHOOK_URL: `https://127.0.0.1:${port}/webhooks/sandbox`,
        },
      });
      await sandbox.printed(/Payment sandbox at/);
      const dataDir = what === "the same folder" ? folder : await newFolder();
      const settings = { ...shared, ...secret, DATABASE_URL: database.url, DATA_DIR: dataDir, PORT: String(port) };
      const service = await runService(settings);
      await payAndBeTold(service.url);
      await service.stop();
    });
  }
});

describe("the sandbox's webhooks over TLS", () => {
  const { newFolder } = usePrograms();

  it("are given to nobody who has another certificate", async () => {
    const [own, other] = [selfSignedCertificate(), selfSignedCertificate()];
    const received: string[] = [];
    const receiver = createHttpsServer(other, (req, res) => {
      received.push(req.url ?? "");
      res.end();
    });
    receiver.listen(0, "127.0.0.1");
    await once(receiver, "listening");
    const refused = once(receiver, "tlsClientError");
    const { port } = receiver.address() as AddressInfo;
    const sandbox = await startSandbox({
      port: 0,
      dataDir: await newFolder(),
      log: pino({ level: "silent" }),
      webhook: { url: `https://127.0.0.1:${port}/`, secret: WEBHOOK_SECRET, certificate: own.cert, firstRetryMs: 10 },
    });
    const charge = { reference: randomUUID(), token: "tok_visa", amount_minor: 100, currency: "USD" };
    await fetch(`${sandbox.url}/sandbox-primary/charges`, { method: "POST", body: JSON.stringify(charge) });
    await refused;
    await sandbox.close();
    receiver.close();
    expect(received).to.deep.equal([]);
  });
});
