import { expect } from "chai";
import fc from "fast-check";
import { OrderPaymentState, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { sql } from "../support/database.ts";
import { newAdmin, newCustomer, type Person, present } from "../support/factories.ts";
import { useServer } from "../support/server.ts";
import { faultsOfBooks } from "./books.ts";
import { Shop } from "./shop-client.ts";
import { type Command, CUSTOMERS, command, newProducts, RESERVATION_MINUTES, ShopModel } from "./shop-model.ts";

// A failure prints its seed and path. TEST_SEED and TEST_PATH run it again: a sequence exactly, parallel clients with the
// same commands.
const { TEST_SEED: seed, TEST_PATH: path } = process.env;
const replay = { ...(seed !== undefined && { seed: Number(seed) }), ...(path !== undefined && { path }) };

const CLIENTS = 5;
/** What parallel clients may be told: all of it is somebody else having been faster. */
const REFUSALS = [
  ...["INSUFFICIENT_STOCK", "PRODUCT_UNAVAILABLE", "CURRENCY_MIXED", "REQUEST_ID_REUSED", "ORDER_NOT_FOUND"],
  ...["ORDER_STATUS_INVALID", "ORDER_PAYMENT_IN_FLIGHT", "ORDER_NOT_PAYABLE"],
];

describe("a shop that does whatever comes to its clients' minds", function () {
  this.timeout(300_000);
  const server = useServer({ settings: { RESERVATION_MINUTES: String(RESERVATION_MINUTES) } });
  let admin: Person;
  let customers: Person[];
  before(async () => {
    admin = await newAdmin(server);
    customers = await Promise.all(Array.from({ length: CUSTOMERS }, () => newCustomer(server)));
  });

  it("answers one command after another as a shop in memory does", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(command, { minLength: 1, maxLength: 40, size: "max" }), async (commands) => {
        const shop = await Shop.open(server, { admin, customers });
        const model = new ShopModel();
        for (const each of commands) expect(await shop.answer(each), print(each)).to.deep.equal(model.answer(each));

        const { orders, stocks } = await shop.look();
        expect(stocks).to.deep.equal(model.products.map(({ stock }) => stock));
        expect(
          orders.map(({ status, paymentState }) => [OrderStatus[status], OrderPaymentState[paymentState]]),
        ).to.deep.equal(model.orders.map(({ status, paymentState }) => [status, paymentState]));
        expect(await faultsOfBooks(server.database)).to.deep.equal([]);
      }),
      { numRuns: 30, ...replay },
    );
  });

  it("contradicts itself in nothing when parallel clients ask at once", async () => {
    const script = fc.array(command, { minLength: 4, maxLength: 16, size: "max" });
    const scripts = fc.array(script, { minLength: CLIENTS, maxLength: CLIENTS });
    await fc.assert(
      fc.asyncProperty(scripts, async (clients) => {
        const shop = await Shop.open(server, { admin, customers });
        await Promise.all(clients.map((commands) => carryOut(shop, commands)));
        await expectConsistent(shop);
      }),
      // Timing is not replayed, so a shorter sequence that passes proves nothing.
      { numRuns: 25, endOnFailure: true, ...replay },
    );
  });

  async function carryOut(shop: Shop, commands: readonly Command[]): Promise<void> {
    for (const each of commands) {
      const { outcome, failed = [] } = await shop.answer(each);
      const told = [outcome, ...failed.map(([, reason]) => reason)];
      for (const reason of told) expect(["ok", ...REFUSALS], `told after ${print(each)}`).to.include(reason);
    }
  }

  /** By what clients were told: stock = initial + adjustments − sold + restored; one order a request. By the books: all. */
  async function expectConsistent(shop: Shop): Promise<void> {
    const { orders, stocks } = await shop.look();
    const expected = newProducts().map(({ stock }, i) => stock + (shop.adjusted[i] ?? 0));
    for (const { status, items } of orders) {
      if (status === OrderStatus.CANCELLED) continue;
      for (const { productId, quantity } of items) {
        const product = shop.productIds.indexOf(productId);
        expected[product] = present(expected[product]) - quantity;
      }
    }
    expect(stocks).to.deep.equal(expected);
    expect(Math.min(...stocks)).to.be.at.least(0);
    for (const [request, ids] of shop.answered) expect([...ids], `orders of request ${request}`).to.have.length(1);
    const requests = [...shop.answered.keys()];
    const [placed] = await sql<{ count: string }>(
      server.database,
      "SELECT count(*) FROM orders WHERE request_id = ANY ($1::uuid[])",
      [requests],
    );
    expect(Number(placed?.count)).to.equal(requests.length);
    expect(await faultsOfBooks(server.database)).to.deep.equal([]);
  }
});

function print(value: Command): string {
  return JSON.stringify(value);
}
