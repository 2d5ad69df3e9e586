import { randomUUID } from "node:crypto";
import { expect } from "chai";
import fc from "fast-check";
import sinon from "sinon";
import { jobHandlers } from "../../src/assemble.ts";
import type { Mail } from "../../src/mail/mail.ts";
import { dueRewards, pointsFor, type RewardStanding } from "../../src/payments/rewards.ts";
import { sql } from "../support/database.ts";
import { card, money, newAdmin, newCustomer, type Person, present } from "../support/factories.ts";
import { fakeGateway } from "../support/fakes.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const usd = (cents: bigint) => ({ currency: "USD", nanos: cents * 10_000_000n });

describe("the rule of rewards", () => {
  const standing = (extra: Partial<RewardStanding> = {}): RewardStanding => ({
    amount: usd(15_050n),
    refunded: usd(0n),
    earned: 150n,
    takenBack: 0n,
    ...extra,
  });

  it("is a point a whole unit, from a hundred units on", () => {
    expect([9_999n, 10_000n, 10_099n, 25_000n].map((cents) => pointsFor(usd(cents)))).to.deep.equal([
      0n,
      100n,
      100n,
      250n,
    ]);
  });

  it("takes back the share that was refunded, rounded", () => {
    expect(dueRewards(standing({ refunded: usd(5_000n) }), "r")).to.deep.equal([{ refundId: "r", points: -50n }]);
  });

  it("books what was earned first, where the refund's job came before the payment's", () => {
    const due = dueRewards(standing({ earned: undefined, refunded: usd(15_050n) }), "r");
    expect(due).to.deep.equal([
      { refundId: null, points: 150n },
      { refundId: "r", points: -150n },
    ]);
  });

  it("gives again what a refund took that the bank sent back", () => {
    expect(dueRewards(standing({ takenBack: -50n }), "r")).to.deep.equal([{ refundId: "r", points: 50n }]);
  });

  it("leaves nothing once everything is refunded, in however many parts, and never less than nothing on the way", () => {
    const parts = fc.array(fc.bigInt({ min: 1n, max: 50_000n }), { minLength: 1, maxLength: 40 });
    fc.assert(
      fc.property(parts, (refunds) => {
        const amount = usd(refunds.reduce((a, b) => a + b, 0n));
        const earned = pointsFor(amount);
        let [refunded, takenBack] = [0n, 0n];
        for (const [i, cents] of refunds.entries()) {
          refunded += cents;
          for (const { points } of dueRewards({ amount, refunded: usd(refunded), earned, takenBack }, `r${i}`))
            takenBack += points;
          expect(-takenBack <= earned && takenBack <= 0n).to.equal(true);
        }
        expect(-takenBack).to.equal(earned);
      }),
    );
  });
});

describe("GetRewards", () => {
  const gateway = fakeGateway();
  const send = sinon.stub<Parameters<Mail["send"]>, ReturnType<Mail["send"]>>().resolves();
  const server = useServer({ gateways: { primary: gateway, backup: undefined }, mail: { send, close: () => {} } });
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });

  const pay = async (customer: Person, amount: string) => {
    const request = { requestId: randomUUID(), amount: money(amount), paymentMethod: card("tok_visa") };
    return present((await customer.payments.processPayment(request)).payment);
  };
  /** A refund as the database has it when it has ended. */
  const refund = async (paymentId: string, amount: string, status = "COMPLETED"): Promise<string> => {
    const id = randomUUID();
    await sql(
      server.database,
      `INSERT INTO refunds (id, payment_id, created_by, request_id, currency, amount, status, create_time, process_time)
       SELECT $1, id, customer_id, $1, currency, $3, $4, now(), now() FROM payments WHERE id = $2`,
      [id, paymentId, amount, status],
    );
    return id;
  };
  const run = async (task: "grant-rewards" | "take-back-rewards", payload: object) => {
    const context = { jobId: "0", attempt: 1, isLastAttempt: false, signal: new AbortController().signal };
    await jobHandlers(server.deps)[task]?.(payload, context);
  };

  it("shows what payments of a hundred units and more have earned, once each", async () => {
    const customer = await newCustomer(server);
    const [, second, third] = [
      await pay(customer, "99.99"),
      await pay(customer, "100.00"),
      await pay(customer, "250.75"),
    ];
    await server.runJobs();
    await Promise.all([1, 2, 3].map(() => run("grant-rewards", { paymentId: second?.id })));
    const { points, entries } = await customer.payments.getRewards({});
    expect(points).to.equal(350n);
    expect(entries.map(({ paymentId, refundId, points: earned }) => [paymentId, refundId, earned])).to.deep.equal([
      [third?.id, "", 250n],
      [second?.id, "", 100n],
    ]);
    expect(entries[0]?.createTime).not.to.equal(undefined);
  });

  it("shows what refunds took back: their share, once however often their jobs run, and all after a full refund", async () => {
    const customer = await newCustomer(server);
    const { id } = await pay(customer, "150.50");
    await server.runJobs();
    const first = await refund(id, "50.00");
    await Promise.all([1, 2, 3].map(() => run("take-back-rewards", { refundId: first })));
    expect((await customer.payments.getRewards({})).points).to.equal(100n);

    // Two at once, each of whose jobs sees both.
    const rest = [await refund(id, "0.50"), await refund(id, "100.00")];
    await Promise.all(rest.map((refundId) => run("take-back-rewards", { refundId })));
    const { points, entries } = await customer.payments.getRewards({});
    expect(points).to.equal(0n);
    expect(entries.find(({ refundId }) => refundId === first)?.points).to.equal(-50n);
  });

  it("follows refunds that people ask for, whose confirmation is mailed", async () => {
    const customer = await newCustomer(server);
    const { id } = await pay(customer, "150.00");
    gateway.refund.callsFake(async ({ key, amount: refunded }) => ({
      kind: "executed",
      result: { outcome: "completed", transactionId: `re_${key}`, refunded, responseCode: "00" },
    }));
    const request = { requestId: randomUUID(), paymentId: id, amount: money("30.00"), reason: "too large" };
    const { refund: made } = await customer.payments.refundPayment(request);
    await server.runJobs();
    expect((await customer.payments.getRewards({})).points).to.equal(120n);
    const mails = send.args.map(([message]) => message).filter(({ to }) => to === customer.email);
    const mail = mails.find(({ subject }) => subject === "Your refund is on its way");
    expect(mail?.text).to.include("30.00 USD").and.to.include(present(made).id).and.to.include(id);
    expect(mail?.text).not.to.include("too large");
  });

  it("gives again what a refund took that the bank sent back, once", async () => {
    const customer = await newCustomer(server);
    const { id } = await pay(customer, "200.00");
    await server.runJobs();
    const refundId = await refund(id, "100.00");
    await run("take-back-rewards", { refundId });
    await sql(server.database, "UPDATE refunds SET status = 'FAILED' WHERE id = $1", [refundId]);
    for (const _ of [1, 2]) await run("take-back-rewards", { refundId });
    const { points, entries } = await customer.payments.getRewards({});
    expect(points).to.equal(200n);
    expect(entries.map((entry) => entry.points)).to.deep.equal([100n, -100n, 200n]);
  });

  it("follows two refunds that the bank sent back, in whatever order their jobs come", async () => {
    const customer = await newCustomer(server);
    const { id } = await pay(customer, "200.00");
    await server.runJobs();
    const sendBack = (refundId: string) =>
      sql(server.database, "UPDATE refunds SET status = 'FAILED' WHERE id = $1", [refundId]);
    const large = await refund(id, "100.00");
    await run("take-back-rewards", { refundId: large });
    await sendBack(large);
    // Its first job finds that the large one is no more, and gives again in its own name.
    const small = await refund(id, "50.00");
    await run("take-back-rewards", { refundId: small });
    await run("take-back-rewards", { refundId: large });
    expect((await customer.payments.getRewards({})).points).to.equal(150n);
    await sendBack(small);
    await run("take-back-rewards", { refundId: small });
    expect((await customer.payments.getRewards({})).points).to.equal(200n);
  });

  it("is right when a refund's job comes before the payment's", async () => {
    const customer = await newCustomer(server);
    const { id } = await pay(customer, "200.00");
    await run("take-back-rewards", { refundId: await refund(id, "50.00") });
    await server.runJobs();
    expect((await customer.payments.getRewards({})).points).to.equal(150n);
  });

  it("pages through the entries, newest first, with the whole balance on each page", async () => {
    const customer = await newCustomer(server);
    for (const amount of ["101", "102", "103", "104", "105"]) await pay(customer, amount);
    await server.runJobs();
    const seen: bigint[] = [];
    let pageToken = "";
    do {
      const page = await customer.payments.getRewards({ pageSize: 2, pageToken });
      expect(page.points).to.equal(515n);
      seen.push(...page.entries.map(({ points }) => points));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen.toSorted()).to.deep.equal([101n, 102n, 103n, 104n, 105n]);
    expect(seen).to.have.length(5);
  });

  it("shows one's own, and anybody's to admins", async () => {
    const [customer, other] = await Promise.all([newCustomer(server), newCustomer(server)]);
    await pay(customer, "100");
    await server.runJobs();
    const refusal = await refusalOf(other.payments.getRewards({ customerId: customer.id }));
    expect(refusal).to.include({
      code: "PermissionDenied",
      reason: "ADMIN_REQUIRED",
      message: "Only an admin may read another customer's points",
    });
    expect((await admin.payments.getRewards({ customerId: customer.id })).points).to.equal(100n);
    expect(await other.payments.getRewards({})).to.include({ points: 0n, nextPageToken: "" });
  });

  it("takes page tokens of its own query only", async () => {
    const customer = await newCustomer(server);
    for (const amount of ["100", "100"]) await pay(customer, amount);
    await server.runJobs();
    const { nextPageToken: pageToken } = await customer.payments.getRewards({ pageSize: 1 });
    const refusal = await refusalOf(admin.payments.getRewards({ pageToken }));
    expect(refusal.reasons).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
  });
});
