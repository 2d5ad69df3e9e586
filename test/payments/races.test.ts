import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "chai";
import type { Order } from "../../gen/tradepost/order/v1/order_pb.js";
import { PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { expireOrders } from "../../src/orders/expire-orders.ts";
import { faultsOfBooks } from "../orders/books.ts";
import { newBuyers } from "../orders/buyers.ts";
import { sql } from "../support/database.ts";
import { newAdmin, newOrder, newProduct, type Person, paymentOf, present } from "../support/factories.ts";
import { tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const RACES = 24;
/** The last moments of an order: some of its payments come before its end, some after it. */
const LAST_MS = 150;

interface SandboxCharge {
  readonly reference: string;
  readonly captured_minor: number;
  readonly refunded_minor: number;
}

/** What became of one order. */
interface Outcome {
  readonly status: string;
  readonly payment_state: string;
  /** Its attempts to charge, whatever became of them. */
  readonly attempts: readonly string[];
}

describe("races of payments", function () {
  this.timeout(60_000);
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    admin = await newAdmin(server);
    [customer] = (await newBuyers(server, 1)) as [Person];
  });

  const ordersOf = async (count: number): Promise<Order[]> => {
    const product = await newProduct(admin, { stock: 1_000 });
    return Promise.all(Array.from({ length: count }, () => newOrder(customer, [[product, 1]], { awaitPayment: true })));
  };
  const chargesOf = async (references: readonly string[]): Promise<SandboxCharge[]> => {
    const answer = await fetch(`${server.sandbox.url}/charges`);
    const { charges } = (await answer.json()) as { charges: SandboxCharge[] };
    return charges.filter(({ reference }) => references.includes(reference));
  };
  const outcomeOf = async ({ id }: Order): Promise<Outcome> => {
    const [row] = await sql<Outcome>(
      server.database,
      `SELECT o.status, o.payment_state,
              coalesce(array_agg(a.id::text) FILTER (WHERE a.id IS NOT NULL), '{}') AS attempts
         FROM orders o LEFT JOIN payments p ON p.order_id = o.id LEFT JOIN payment_attempts a ON a.payment_id = p.id
        WHERE o.id = $1 GROUP BY o.id`,
      [id],
    );
    return present(row);
  };
  /** Charges of an order whose money was not given back. */
  const keptOf = async ({ attempts }: Outcome): Promise<number> =>
    (await chargesOf(attempts)).filter(({ captured_minor: taken, refunded_minor: back }) => taken > back).length;
  /** Of each order exactly one thing holds: it is paid and goes on, or it is cancelled and nobody's money is kept. */
  const settledOutcomes = async (orders: readonly Order[]): Promise<string[]> => {
    const outcomes = await Promise.all(orders.map(outcomeOf));
    return Promise.all(
      outcomes.map(async (outcome) => `${outcome.status} ${outcome.payment_state}, ${await keptOf(outcome)} kept`),
    );
  };
  const allowed = ["CONFIRMED PAID, 1 kept", "CANCELLED UNPAID, 0 kept", "CANCELLED REFUNDED, 0 kept"];

  it("charges one request once, sent 200 times at once; the others hear the same or are told to come back", async () => {
    const [order] = await ordersOf(1);
    const request = paymentOf(present(order));
    const calls = Array.from({ length: 200 }, () => customer.payments.processPayment(request, { timeoutMs: 30_000 }));
    const outcomes = await tally(calls);
    expect(Object.keys(outcomes)).to.include("ok");
    expect(Object.keys(outcomes).filter((key) => key !== "ok" && key !== "REQUEST_IN_PROGRESS")).to.deep.equal([]);

    const answers = (await Promise.allSettled(calls)).flatMap((call) =>
      call.status === "fulfilled" ? [present(call.value.payment)] : [],
    );
    expect(new Set(answers.map(({ id, status }) => `${id} ${PaymentStatus[status]}`)).size).to.equal(1);
    const outcome = await outcomeOf(present(order));
    expect(outcome.attempts).to.have.length(1);
    expect(await chargesOf(outcome.attempts)).to.have.length(1);
  });

  it("charges one order once, paid by 100 different requests at once", async () => {
    const [order] = await ordersOf(1);
    const calls = Array.from({ length: 100 }, () =>
      customer.payments.processPayment(paymentOf(present(order)), { timeoutMs: 30_000 }),
    );
    expect(await tally(calls)).to.deep.equal({ ok: 1, ORDER_NOT_PAYABLE: 99 });
    const outcome = await outcomeOf(present(order));
    expect(outcome.attempts).to.have.length(1);
    expect(await keptOf(outcome)).to.equal(1);
  });

  it("lets cancelling win or paying, never both: what was paid for a cancelled order goes back", async () => {
    const orders = await ordersOf(RACES);
    const races = orders.flatMap((order, i) => {
      const pay = async () => {
        // The two come apart by a little more in each race, so that either is first somewhere.
        await sleep(i % 2 === 0 ? i : 0);
        return customer.payments.processPayment(paymentOf(order));
      };
      const cancel = async () => {
        await sleep(i % 2 === 0 ? 0 : 2 * i);
        return customer.orders.cancelOrder({ orderId: order.id });
      };
      return [pay(), cancel()];
    });
    const refusals = Object.keys(await tally(races)).filter((key) => key !== "ok");
    expect(refusals.filter((key) => key !== "ORDER_NOT_PAYABLE" && key !== "ORDER_PAYMENT_IN_FLIGHT")).to.deep.equal(
      [],
    );
    await server.runJobs();
    expect((await settledOutcomes(orders)).filter((outcome) => !allowed.includes(outcome))).to.deep.equal([]);
  });

  it("lets an order's end win or its payment, never both", async () => {
    const orders = await ordersOf(RACES);
    await sql(server.database, "UPDATE orders SET expire_time = $2 WHERE id = ANY ($1)", [
      orders.map(({ id }) => id),
      new Date(server.clock.now().getTime() + LAST_MS),
    ]);
    let over = false;
    const expiring = async () => {
      while (!over) {
        await expireOrders(server.deps);
        await sleep(2);
      }
      await expireOrders(server.deps);
    };
    const swept = expiring();
    const payments = orders.map(async (order, i) => {
      await sleep((2 * LAST_MS * i) / RACES);
      return customer.payments.processPayment(paymentOf(order));
    });
    const refusals = Object.keys(await tally(payments)).filter((key) => key !== "ok");
    over = true;
    await swept;
    expect(refusals.filter((key) => key !== "ORDER_NOT_PAYABLE")).to.deep.equal([]);
    await server.runJobs();
    expect((await settledOutcomes(orders)).filter((outcome) => !allowed.includes(outcome))).to.deep.equal([]);
  });

  it("has left stock, totals, histories and the ledger as they must be", async () => {
    expect(await faultsOfBooks(server.database)).to.deep.equal([]);
    const unbalanced = await sql(
      server.database,
      `SELECT movement_id FROM ledger_entries GROUP BY movement_id, kind, currency
        HAVING sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END) <> 0`,
    );
    expect(unbalanced).to.deep.equal([]);
    expect(await sql(server.database, "SELECT id FROM payments WHERE status = 'PENDING'")).to.deep.equal([]);
  });
});
