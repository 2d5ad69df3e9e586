import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { expect } from "chai";
import { type Payment, PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { sql } from "../support/database.ts";
import { card, money, newAdmin, newCustomer, type Person, present, text } from "../support/factories.ts";
import { fakeGateway } from "../support/fakes.ts";
import { readableMetrics } from "../support/metrics.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("ListPayments", () => {
  const gateway = fakeGateway();
  const counted = readableMetrics();
  const server = useServer({ gateways: { primary: gateway, backup: undefined }, metrics: counted.metrics });
  let admin: Person;
  let customer: Person;
  /** Oldest first: minute by minute, every third one failed. */
  const payments: Payment[] = [];
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    for (let i = 0; i < 6; i++) {
      if (i % 3 === 2) {
        const result = { outcome: "declined", reason: "card_declined", responseCode: "05" } as const;
        gateway.charge.onCall(i).resolves({ kind: "executed", result });
      }
      payments.push(await pay(customer));
    }
    const start = Date.UTC(2026, 0, 1);
    for (const [i, { id }] of payments.entries()) {
      await sql(server.database, "UPDATE payments SET create_time = $2 WHERE id = $1", [
        id,
        new Date(start + i * 60_000),
      ]);
    }
    await pay(await newCustomer(server));
  });

  const pay = async ({ payments: client }: Person): Promise<Payment> => {
    const request = { requestId: randomUUID(), amount: money("5"), paymentMethod: card("tok_visa") };
    return present((await client.processPayment(request)).payment);
  };
  const minute = (i: number) => timestampFromMs(Date.UTC(2026, 0, 1) + i * 60_000);
  /** Which of the payments above were listed, in the order in which they were. */
  const placesOf = (listed: readonly Payment[]) => listed.map(({ id }) => payments.findIndex((p) => p.id === id));
  const listed = async (request: Parameters<Person["payments"]["listPayments"]>[0], by = customer) =>
    placesOf((await by.payments.listPayments(request)).payments);

  it("lists one's own, newest first", async () => {
    expect(await listed({})).to.deep.equal([5, 4, 3, 2, 1, 0]);
  });

  it("lists anybody's for admins, and everybody's when nobody is named", async () => {
    expect(await listed({ customerId: customer.id }, admin)).to.deep.equal([5, 4, 3, 2, 1, 0]);
    expect((await admin.payments.listPayments({})).payments).to.have.length(7);
    const other = await newCustomer(server);
    expect(await refusalOf(other.payments.listPayments({ customerId: customer.id }))).to.include({
      code: "PermissionDenied",
      reason: "ADMIN_REQUIRED",
      message: "Only an admin may read another customer's payments",
    });
  });

  it("takes a time range with both ends in it", async () => {
    expect(await listed({ createTimeFrom: minute(1), createTimeTo: minute(3) })).to.deep.equal([3, 2, 1]);
    expect(await listed({ createTimeFrom: minute(4) })).to.deep.equal([5, 4]);
    expect(await listed({ createTimeTo: minute(0) })).to.deep.equal([0]);
    const refusal = await refusalOf(
      customer.payments.listPayments({ createTimeFrom: minute(2), createTimeTo: minute(1) }),
    );
    expect(refusal.reasons).to.deep.equal({ create_time_from: "RANGE_INVALID" });
  });

  it("takes statuses, together with the rest", async () => {
    const { COMPLETED, FAILED, PENDING } = PaymentStatus;
    expect(await listed({ statuses: [FAILED] })).to.deep.equal([5, 2]);
    expect(await listed({ statuses: [FAILED, COMPLETED, FAILED] })).to.deep.equal([5, 4, 3, 2, 1, 0]);
    expect(await listed({ statuses: [PENDING] })).to.deep.equal([]);
    expect(await listed({ statuses: [COMPLETED], createTimeFrom: minute(1) })).to.deep.equal([4, 3, 1]);
    expect(await listed({ statuses: [FAILED], createTimeTo: minute(4) }, admin)).to.deep.equal([2]);
  });

  it("pages without repeating or losing one, whatever is filtered and although some have one time", async () => {
    await sql(server.database, "UPDATE payments SET create_time = $2 WHERE id = ANY ($1)", [
      payments.slice(0, 4).map(({ id }) => id),
      new Date(Date.UTC(2026, 0, 1)),
    ]);
    for (const request of [{}, { statuses: [PaymentStatus.FAILED, PaymentStatus.COMPLETED] }]) {
      const seen: string[] = [];
      let pageToken = "";
      do {
        const page = await customer.payments.listPayments({ ...request, pageSize: 2, pageToken });
        seen.push(...page.payments.map(({ id }) => id));
        pageToken = page.nextPageToken;
      } while (pageToken !== "");
      expect(seen).to.have.length(6);
      expect(new Set(seen)).to.deep.equal(new Set(payments.map(({ id }) => id)));
    }
  });

  it("takes page tokens of its own query only", async () => {
    const { nextPageToken: pageToken } = await customer.payments.listPayments({ pageSize: 1 });
    for (const other of [{ statuses: [PaymentStatus.FAILED] }, { includeRefunds: true }, { createTimeTo: minute(9) }]) {
      const refusal = await refusalOf(customer.payments.listPayments({ ...other, pageToken }));
      expect(refusal.reasons).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
    }
    expect((await refusalOf(admin.payments.listPayments({ pageToken }))).reason).to.equal("FIELD_INVALID");
  });

  it("brings refunds and disputes along only when asked, by one statement each for the whole page", async () => {
    const ids = payments.slice(0, 2).map(({ id }) => id);
    await sql(
      server.database,
      `INSERT INTO refunds (id, payment_id, created_by, request_id, currency, amount, status, create_time, process_time)
       SELECT gen_random_uuid(), p.id, $2, gen_random_uuid(), 'USD', n, 'COMPLETED', now() + n * interval '1 s', now()
         FROM unnest($1::uuid[]) p (id), generate_series(1, 2) n`,
      [ids, customer.id],
    );
    await sql(
      server.database,
      `INSERT INTO disputes (id, payment_id, gateway, gateway_dispute_id, currency, amount, status, create_time)
       SELECT gen_random_uuid(), id, 'sandbox-primary', id::text, 'USD', 5, 'OPEN', now() FROM unnest($1::uuid[]) p (id)`,
      [ids],
    );
    const [bare] = (await customer.payments.listPayments({ createTimeTo: minute(0) })).payments;
    expect([bare?.refunds, bare?.disputes]).to.deep.equal([[], []]);

    const statements: string[] = [];
    const { db } = server.deps;
    const query = db.query.bind(db);
    db.query = (statement, values, transaction) => {
      statements.push(statement.name);
      return query(statement, values, transaction);
    };
    try {
      const page = await customer.payments.listPayments({ includeRefunds: true, includeDisputes: true });
      const found = page.payments.filter(({ id }) => ids.includes(id));
      for (const { refunds, disputes } of found) {
        expect(refunds.map(({ amount }) => text(amount))).to.deep.equal(["1 USD", "2 USD"]);
        expect(disputes.map(({ amount }) => text(amount))).to.deep.equal(["5 USD"]);
      }
      expect(found).to.have.length(2);
      expect(page.payments).to.have.length(6);
    } finally {
      db.query = query;
    }
    expect(statements.filter((name) => /payments/.test(name)).toSorted()).to.deep.equal([
      "disputes-of-payments",
      "list-payments-of-customer",
      "refunds-of-payments",
    ]);
  });

  it("is counted when the database refuses", async () => {
    const before = await counted.counters();
    await sql(server.database, "ALTER TABLE payments RENAME TO payments_away");
    try {
      expect((await refusalOf(customer.payments.listPayments({}))).code).to.equal("Internal");
    } finally {
      await sql(server.database, "ALTER TABLE payments_away RENAME TO payments");
    }
    expect(await counted.grownSince(before)).to.deep.equal({ "payment_history.query_error": 1 });
  });
});
