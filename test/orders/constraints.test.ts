import { randomUUID } from "node:crypto";
import { expect } from "chai";
import pg from "pg";
import { OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { violatedConstraint } from "../../src/db/database.ts";
import { sql } from "../support/database.ts";
import {
  anAddress,
  money,
  newAdmin,
  newOrder,
  newProduct,
  orderOf,
  type Person,
  present,
} from "../support/factories.ts";
import { until } from "../support/process.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";
import { faultsOfBooks } from "./books.ts";
import { newBuyers, signedInAs } from "./buyers.ts";

describe("what the database refuses", () => {
  const server = useServer();
  let admin: Person;
  let buyer: Person;
  before(async () => {
    admin = await newAdmin(server);
  });
  beforeEach(async () => {
    [buyer] = (await newBuyers(server, 1)) as [Person];
  });
  afterEach(async () => {
    expect(await faultsOfBooks(server.database)).to.deep.equal([]);
  });

  /** A session of somebody who changes rows by hand; it has begun a transaction. */
  async function byHand(...statements: readonly string[]): Promise<{ commit(): Promise<void> }> {
    const session = new pg.Client({ connectionString: server.database.url });
    await session.connect();
    await session.query("BEGIN");
    for (const statement of statements) await session.query(statement);
    return {
      async commit() {
        await session.query("COMMIT");
        await session.end();
      },
    };
  }

  const waiting = (count: number) =>
    until(`${count} calls wait for a lock`, async () => {
      const waits = await sql(
        server.database,
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
      );
      return waits.length >= count ? true : undefined;
    });

  /** Carries statements out by hand, and commits them when `call` waits for what they have locked. */
  async function beforeItsWrite<T>(statements: readonly string[], call: () => Promise<T>): Promise<T> {
    const hand = await byHand(...statements);
    try {
      const answer = call();
      await waiting(1);
      await hand.commit();
      return await answer;
    } catch (error) {
      await hand.commit().catch(() => {});
      throw error;
    }
  }

  describe("while an order is being placed", () => {
    it("a product that is deleted is not available", async () => {
      const product = await newProduct(admin, { stock: 5 });
      const statements = [
        `DELETE FROM stock_movements WHERE product_id = '${product.id}'`,
        `DELETE FROM products WHERE id = '${product.id}'`,
      ];
      const refusal = await beforeItsWrite(statements, () => refusalOf(newOrder(buyer, [[product, 1]])));
      expect(refusal).to.include({ code: "FailedPrecondition", reason: "PRODUCT_UNAVAILABLE" });
    });

    it("a product that is made inactive is not available, and one whose price changes costs the new price", async () => {
      const [one, other] = await Promise.all([newProduct(admin), newProduct(admin)]);
      const inactive = [`UPDATE products SET active = false WHERE id = '${one.id}'`];
      const refusal = await beforeItsWrite(inactive, () => refusalOf(newOrder(buyer, [[one, 1]])));
      expect(refusal.reason).to.equal("PRODUCT_UNAVAILABLE");
      const dearer = [`UPDATE products SET price = 12.34 WHERE id = '${other.id}'`];
      const order = await beforeItsWrite(dearer, () => newOrder(buyer, [[other, 2]]));
      expect(order.totalAmount).to.include({ units: 24n, nanos: 680_000_000 });
    });

    it("a customer who is deleted by hand is not active", async () => {
      const product = await newProduct(admin);
      const statements = [`DELETE FROM users WHERE id = '${buyer.id}'`];
      const refusal = await beforeItsWrite(statements, () => refusalOf(newOrder(buyer, [[product, 1]])));
      expect(refusal).to.include({ code: "FailedPrecondition", reason: "CUSTOMER_INACTIVE" });
    });

    it("an address that is deleted by hand is not the customer's any more", async () => {
      const product = await newProduct(admin);
      const { address } = await buyer.users.createAddress({ address: anAddress });
      const { id: shippingAddressId } = present(address);
      const statements = [`DELETE FROM addresses WHERE id = '${shippingAddressId}'`];
      const refusal = await beforeItsWrite(statements, () =>
        refusalOf(newOrder(buyer, [[product, 1]], { shippingAddressId })),
      );
      expect(refusal).to.include({ code: "FailedPrecondition", reason: "ADDRESS_INVALID" });
    });

    it("an address that its owner removes is refused, or the order keeps it as it was", async () => {
      const product = await newProduct(admin);
      const { address } = await buyer.users.createAddress({ address: anAddress });
      const { id: shippingAddressId } = present(address);
      const orders = Array.from({ length: 20 }, () => newOrder(buyer, [[product, 1]], { shippingAddressId }));
      const removal = buyer.users.deleteAddress({ addressId: shippingAddressId });
      const { ok = 0, ADDRESS_INVALID: refused = 0 } = await tally(orders);
      await removal;
      expect(ok + refused).to.equal(20);
      for (const result of await Promise.allSettled(orders)) {
        if (result.status === "fulfilled") expect(result.value.shippingAddress).to.include(anAddress);
      }
      const late = newOrder(buyer, [[product, 1]], { shippingAddressId });
      expect((await refusalOf(late)).reason).to.equal("ADDRESS_INVALID");
    });

    it("a batch-mate whose customer is deleted by hand costs the others nothing", async () => {
      const product = await newProduct(admin);
      const blocked = await newProduct(admin);
      const buyers = await newBuyers(server, 6);
      const deletion = await byHand(`DELETE FROM users WHERE id = '${present(buyers[2]).id}'`);
      const lock = await byHand(`SELECT FROM products WHERE id = '${blocked.id}' FOR UPDATE`);
      // While the lane waits for the lock the others gather, and then go together as far as the deletion lets them.
      const first = newOrder(buyer, [[blocked, 1]]);
      await waiting(1);
      const calls = buyers.map((each) => newOrder(each, [[product, 1]]));
      await admin.catalog.listProducts({ pageSize: 1 });
      await lock.commit();
      await first;
      await waiting(1);
      await deletion.commit();
      const outcomes = await tally(calls);
      expect(outcomes).to.deep.equal({ ok: 5, CUSTOMER_INACTIVE: 1 });
    });
  });

  describe("of callers whose account does not exist any more", () => {
    let ghost: Person;
    before(async () => {
      const id = randomUUID();
      ghost = await signedInAs(server, { id, email: `${id}@tradepost.example` }, "ADMIN");
    });
    const gone = { code: "Unauthenticated", reason: "TOKEN_INVALID" };

    it("refuses to place orders, for themselves as for others", async () => {
      const product = await newProduct(admin);
      expect((await refusalOf(newOrder(ghost, [[product, 1]]))).reason).to.equal("CUSTOMER_INACTIVE");
      expect(await refusalOf(newOrder(ghost, [[product, 1]], { customerId: buyer.id }))).to.include(gone);
    });

    it("refuses to cancel, also in a batch", async () => {
      const order = await newOrder(buyer, [[await newProduct(admin), 1]]);
      expect(await refusalOf(ghost.orders.cancelOrder({ orderId: order.id }))).to.include(gone);
      const updates = [{ orderId: order.id, status: OrderStatus.CANCELLED }];
      expect(await refusalOf(ghost.orders.batchUpdateOrderStatuses({ updates }))).to.include(gone);
      expect((await buyer.orders.getOrder({ orderId: order.id })).order?.status).to.equal(OrderStatus.CONFIRMED);
    });

    it("refuses to change stock", async () => {
      const product = await newProduct(admin);
      const adjustment = { requestId: randomUUID(), productId: product.id, delta: 1, reason: "Found" };
      expect(await refusalOf(ghost.catalog.adjustStock(adjustment))).to.include(gone);
      const stocked = { name: "Widget", price: money("1.00"), stockQuantity: 1 };
      expect(await refusalOf(ghost.catalog.createProduct({ product: stocked }))).to.include(gone);
    });
  });

  describe("in the stock journal, whoever writes to it", () => {
    /** The constraint that a statement violates. */
    const violates = (statement: string, values: readonly unknown[]) =>
      sql(server.database, statement, [...values]).catch(violatedConstraint);
    const move = (productId: string, kind: string, orderId: string | null) =>
      violates(
        `INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time) VALUES ($1, 1, $2, $3, now())`,
        [productId, kind, orderId],
      );

    it("an order's taking or giving back of a product that it does not have", async () => {
      const [bought, other] = await Promise.all([newProduct(admin), newProduct(admin)]);
      const { id } = await newOrder(buyer, [[bought, 1]]);
      for (const kind of ["SALE", "RESTORE"]) {
        expect(await move(other.id, kind, id)).to.equal("stock_movements_item_fkey");
      }
    });

    it("an order's taking or giving back of a product twice", async () => {
      const product = await newProduct(admin);
      const { id } = await newOrder(buyer, [[product, 1]]);
      await buyer.orders.cancelOrder({ orderId: id });
      for (const kind of ["SALE", "RESTORE"]) {
        expect(await move(product.id, kind, id)).to.equal("stock_movements_once");
      }
    });

    it("a movement of a product that is not there, and the end of a product that has moved", async () => {
      const product = await newProduct(admin, { stock: 1 });
      expect(await move(randomUUID(), "INITIAL", null)).to.equal("stock_movements_product_fkey");
      expect(await violates("DELETE FROM products WHERE id = $1", [product.id])).to.equal(
        "stock_movements_product_fkey",
      );
    });

    it("a second item of one product in an order", async () => {
      const product = await newProduct(admin);
      const { id } = await newOrder(buyer, [[product, 1]]);
      const again = violates(
        `INSERT INTO order_items (order_id, position, id, product_id, product_name, quantity, unit_price)
         VALUES ($1, 2, $2, $3, 'Widget', 1, 1)`,
        [id, randomUUID(), product.id],
      );
      expect(await again).to.equal("order_items_pkey");
    });
  });

  describe("ids in upper case", () => {
    it("are the same ids: one product, one request, one order", async () => {
      const product = await newProduct(admin, { stock: 10 });
      const upper = { id: product.id.toUpperCase() };
      const { address } = await buyer.users.createAddress({ address: anAddress });
      const shippingAddressId = present(address).id;
      const request = orderOf(
        [
          [product, 1],
          [upper, 2],
        ],
        { shippingAddressId },
      );
      const shouted = {
        ...orderOf([[upper, 3]]),
        requestId: request.requestId.toUpperCase(),
        shippingAddressId: shippingAddressId.toUpperCase(),
      };
      const answers = await Promise.all([buyer.orders.createOrder(request), buyer.orders.createOrder(shouted)]);
      const [order, same] = answers.map((answer) => present(answer.order));
      expect(order?.items.map(({ quantity }) => quantity)).to.deep.equal([3]);
      expect(same?.id).to.equal(order?.id);

      const orderId = present(order).id.toUpperCase();
      expect((await buyer.orders.getOrder({ orderId })).order?.id).to.equal(order?.id);
      expect((await buyer.orders.cancelOrder({ orderId })).order?.status).to.equal(OrderStatus.CANCELLED);
      expect(
        (
          await refusalOf(
            newOrder(buyer, [
              [product, 6_000],
              [upper, 6_000],
            ]),
          )
        ).reasons,
      ).to.deep.equal({
        items: "QUANTITY_TOO_LARGE",
      });
    });
  });
});
