import { randomUUID } from "node:crypto";
import { expect } from "chai";
import fc from "fast-check";
import { type NewOrder, requestHash } from "../../src/orders/order.ts";
import { OrderStore, type PlaceOutcome } from "../../src/orders/store.ts";
import { sql, type TestDatabase, useDatabase } from "../support/database.ts";

/** An order of the model: which customer, which address, which lines, by small numbers. */
interface Asked {
  readonly customer: number;
  readonly address: number | null;
  readonly lines: readonly { readonly product: number; readonly quantity: number }[];
  readonly requestId: number;
}

const PRODUCTS = 5;
const STOCKS = [0, 3, 5, 8, 20];
/** The third customer is deleted; the last product is inactive; product 3 is in euros. */
const CUSTOMERS = 3;

const asked: fc.Arbitrary<Asked> = fc.record({
  customer: fc.nat({ max: CUSTOMERS - 1 }),
  address: fc.option(fc.nat({ max: 1 }), { nil: null }),
  lines: fc.uniqueArray(fc.record({ product: fc.nat({ max: PRODUCTS }), quantity: fc.integer({ min: 1, max: 4 }) }), {
    minLength: 1,
    maxLength: 4,
    selector: ({ product }) => product,
  }),
  requestId: fc.nat({ max: 5 }),
});

describe("placing a batch of orders", () => {
  const together = useDatabase();
  const oneByOne = useDatabase();

  it("has the outcomes, the stock and the journal of placing them one at a time in arrival order", async function () {
    this.timeout(300_000);
    await fc.assert(
      fc.asyncProperty(fc.array(asked, { minLength: 1, maxLength: 12 }), async (batch) => {
        // Two requests under one id never share a batch: the batcher sees to that.
        const distinct = batch.filter(
          (a, i) => batch.findIndex((b) => b.customer === a.customer && b.requestId === a.requestId) === i,
        );
        const world = newWorld();
        await Promise.all([world.fill(together), world.fill(oneByOne)]);
        const orders = distinct.map((order) => world.order(order));

        const batched = await new OrderStore(together.db).placeOrders(orders);
        const single: PlaceOutcome[] = [];
        const store = new OrderStore(oneByOne.db);
        for (const order of orders) single.push(...(await store.placeOrders([order])));

        expect(batched).to.deep.equal(single);
        expect(await state(together)).to.deep.equal(await state(oneByOne));
      }),
      { numRuns: 60 },
    );
  });

  it("finds the orders of an earlier batch by their requests", async () => {
    const world = newWorld();
    await world.fill(together);
    const store = new OrderStore(together.db);
    const order = world.order({ customer: 0, address: 0, lines: [{ product: 4, quantity: 1 }], requestId: 1 });
    const [first] = await store.placeOrders([order]);
    expect(first?.outcome).to.equal("PLACED");
    const twin = { ...order, id: randomUUID() };
    const changed = { ...order, id: randomUUID(), requestHash: requestHash({ other: true }) };
    expect(await store.placeOrders([twin])).to.deep.equal([{ outcome: "REPEATED", orderId: order.id }]);
    expect(await store.placeOrders([changed])).to.deep.equal([{ outcome: "REQUEST_ID_REUSED" }]);
  });

  it("makes one order of one request that two stores send at the same time", async () => {
    const world = newWorld();
    await world.fill(together);
    const order = world.order({ customer: 0, address: null, lines: [{ product: 4, quantity: 1 }], requestId: 1 });
    const stores = Array.from({ length: 6 }, () => new OrderStore(together.db));
    const outcomes = await Promise.all(stores.flatMap((store) => store.placeOrders([{ ...order, id: randomUUID() }])));
    expect(
      outcomes
        .flat()
        .map(({ outcome }) => outcome)
        .sort(),
    ).to.deep.equal(["PLACED", ...Array(5).fill("REPEATED")]);
    const { stocks } = await state(together);
    expect(stocks[4]).to.equal(19);
  });
});

/** Customers, addresses and products with ids of their own, the same in both databases. */
function newWorld() {
  // Sorted, so that the database's order by id is the order of the numbers.
  const ids = (count: number) => Array.from({ length: count }, () => randomUUID()).sort();
  const customers = ids(CUSTOMERS);
  const addresses = customers.map(() => ids(1)[0] as string);
  const products = ids(PRODUCTS + 1);
  const requests = ids(6);
  const orderTime = new Date();
  return {
    order({ customer, address, lines, requestId }: Asked): NewOrder {
      const customerId = customers[customer] as string;
      return {
        id: randomUUID(),
        customerId,
        createdBy: customerId,
        requestId: requests[requestId] as string,
        requestHash: requestHash({ lines, address }),
        lines: lines.map(({ product, quantity }) => ({
          id: randomUUID(),
          productId: products[product] as string,
          quantity,
        })),
        shippingAddressId: address === null ? null : (addresses[address] as string),
        notes: "",
        status: "CONFIRMED",
        expireTime: null,
        orderTime,
      };
    },
    async fill(database: TestDatabase) {
      await sql(database, "TRUNCATE users, products CASCADE");
      for (const [i, id] of customers.entries()) {
        await sql(
          database,
          `INSERT INTO users (id, email, password_hash, first_name, last_name, date_of_birth, create_time, update_time, delete_time)
           VALUES ($1, $2, '', 'Ada', 'Marsh', '1990-01-01', now(), now(), $3)`,
          [id, `${id}@x.example`, i === 2 ? orderTime : null],
        );
        await sql(
          database,
          `INSERT INTO addresses (id, user_id, street, city, state, postal_code, country, is_primary, create_time)
           VALUES ($1, $2, 's', 'c', 's', 'p', 'US', true, now())`,
          [addresses[i], id],
        );
      }
      for (const [i, id] of products.slice(0, PRODUCTS).entries()) {
        await sql(
          database,
          `INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
           VALUES ($1, $2, $3, $4, $5, $6, now(), now())`,
          [id, `P${i}`, i === 3 ? "EUR" : "USD", `${i}.99`, STOCKS[i], i !== 0],
        );
      }
    },
  };
}

/** All that the two ways must agree on, without the ids that each order has of its own. */
async function state(database: TestDatabase) {
  const stocks = await sql<{ stock_quantity: number }>(database, "SELECT stock_quantity FROM products ORDER BY id");
  const journal = await sql(
    database,
    "SELECT product_id, order_id, delta, kind FROM stock_movements ORDER BY order_id, product_id",
  );
  const orders = await sql(
    database,
    `SELECT o.id, o.customer_id, o.status, o.currency, o.total_amount, o.shipping_address,
            (SELECT json_agg(json_build_array(position, product_id, product_name, quantity, unit_price) ORDER BY position)
               FROM order_items WHERE order_id = o.id) AS items
       FROM orders o ORDER BY o.id`,
  );
  return { stocks: stocks.map(({ stock_quantity }) => stock_quantity), journal, orders };
}
