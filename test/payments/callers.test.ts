import { randomUUID } from "node:crypto";
import { expect } from "chai";
import pg from "pg";
import { OrderPaymentState } from "../../gen/tradepost/order/v1/order_pb.js";
import { newBuyers, signedInAs } from "../orders/buyers.ts";
import { sql } from "../support/database.ts";
import { card, money, newAdmin, newOrder, newProduct, type Person, paymentOf, present } from "../support/factories.ts";
import { until } from "../support/process.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const paymentBy = (extra: { customerId?: string } = {}) => ({
  requestId: randomUUID(),
  amount: money("10.99"),
  paymentMethod: card("tok_visa"),
  ...extra,
});
const refundOf = (paymentId: string) => ({ requestId: randomUUID(), paymentId, amount: money("1") });

describe("payments of callers whose account is not there any more", () => {
  const server = useServer();
  let admin: Person;
  let buyer: Person;
  before(async () => {
    admin = await newAdmin(server);
    [buyer] = (await newBuyers(server, 1)) as [Person];
  });
  const gone = { code: "Unauthenticated", reason: "TOKEN_INVALID" };
  const inactive = { code: "FailedPrecondition", reason: "CUSTOMER_INACTIVE" };

  /** Somebody with a token that is good by itself, and no account. */
  const newGhost = async (role: "USER" | "ADMIN" = "USER") => {
    const id = randomUUID();
    return signedInAs(server, { id, email: `${id}@tradepost.example` }, role);
  };
  const aPayment = async () => present((await buyer.payments.processPayment(paymentBy())).payment);

  /** Deletes an account by hand, and commits that when `call` waits for it. */
  const deletedDuring = async <T>(id: string, call: () => Promise<T>): Promise<T> => {
    const hand = new pg.Client({ connectionString: server.database.url });
    await hand.connect();
    try {
      await hand.query("BEGIN");
      await hand.query("DELETE FROM users WHERE id = $1", [id]);
      const answer = call();
      await until("a call waits for the account's row", async () => {
        const waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        return (await sql(server.database, waits)).length > 0 ? true : undefined;
      });
      await hand.query("COMMIT");
      return await answer;
    } finally {
      await hand.end();
    }
  };

  it("are refused, for themselves as for others, and leave nothing", async () => {
    const ghost = await newGhost("ADMIN");
    expect(await refusalOf(ghost.payments.processPayment(paymentBy()))).to.include(inactive);
    expect(await refusalOf(ghost.payments.processPayment(paymentBy({ customerId: buyer.id })))).to.include(gone);
    const order = await newOrder(buyer, [[await newProduct(admin), 1]], { awaitPayment: true });
    const forOrder = ghost.payments.processPayment(paymentOf(order, { customerId: buyer.id }));
    expect(await refusalOf(forOrder)).to.include(gone);
    expect((await buyer.orders.getOrder({ orderId: order.id })).order?.paymentState).to.equal(OrderPaymentState.UNPAID);
    expect(await sql(server.database, "SELECT 1 FROM payments WHERE created_by = $1", [ghost.id])).to.deep.equal([]);
  });

  it("are refused when the account is deleted by hand in that moment", async () => {
    const [customer] = (await newBuyers(server, 1)) as [Person];
    const own = await deletedDuring(customer.id, () => refusalOf(customer.payments.processPayment(paymentBy())));
    expect(own).to.include(inactive);
    const [helper] = (await newBuyers(server, 1)) as [Person];
    const asAdmin = await signedInAs(server, helper, "ADMIN");
    const forBuyer = () => refusalOf(asAdmin.payments.processPayment(paymentBy({ customerId: buyer.id })));
    expect(await deletedDuring(helper.id, forBuyer)).to.include(gone);
  });

  it("cost those that are recorded with them nothing", async () => {
    const ghost = await newGhost("ADMIN");
    const buyers = await newBuyers(server, 6);
    const calls = [
      ...buyers.map((each) => each.payments.processPayment(paymentBy())),
      ghost.payments.processPayment(paymentBy({ customerId: buyer.id })),
      ...buyers.map((each) => each.payments.processPayment(paymentBy())),
    ];
    expect(await tally(calls)).to.deep.equal({ ok: 12, TOKEN_INVALID: 1 });
  });

  it("cannot be refunded by them either", async () => {
    const payment = await aPayment();
    const ghost = await newGhost("ADMIN");
    expect(await refusalOf(ghost.payments.refundPayment(refundOf(payment.id)))).to.include(gone);
    const stranger = await newGhost();
    expect((await refusalOf(stranger.payments.refundPayment(refundOf(payment.id)))).reason).to.equal(
      "PAYMENT_NOT_FOUND",
    );
    const [helper] = (await newBuyers(server, 1)) as [Person];
    const asAdmin = await signedInAs(server, helper, "ADMIN");
    const refund = () => refusalOf(asAdmin.payments.refundPayment(refundOf(payment.id)));
    expect(await deletedDuring(helper.id, refund)).to.include(gone);
    expect(await sql(server.database, "SELECT 1 FROM refunds WHERE payment_id = $1", [payment.id])).to.deep.equal([]);
  });

  it("are taken or refused, never half and never INTERNAL, while DeleteUser deletes the account", async () => {
    const outcomes: Record<string, number> = {};
    for (const customer of await newBuyers(server, 4)) {
      const { id: paymentId } = present((await customer.payments.processPayment(paymentBy())).payment);
      const calls = Array.from({ length: 6 }, (_, i) =>
        i % 2 === 0
          ? customer.payments.processPayment(paymentBy())
          : customer.payments.refundPayment(refundOf(paymentId)),
      );
      const deletion = admin.users.deleteUser({ userId: customer.id });
      for (const [outcome, count] of Object.entries(await tally(calls)))
        outcomes[outcome] = (outcomes[outcome] ?? 0) + count;
      await deletion;
      expect((await refusalOf(customer.payments.processPayment(paymentBy()))).reason).to.be.oneOf([
        "CUSTOMER_INACTIVE",
        "TOKEN_INVALID",
      ]);
    }
    expect(Object.keys(outcomes)).to.satisfy((seen: string[]) =>
      seen.every((each) => ["ok", "CUSTOMER_INACTIVE", "TOKEN_INVALID"].includes(each)),
    );
  });
});
