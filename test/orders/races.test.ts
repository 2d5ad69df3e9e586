import { randomBytes, randomUUID } from "node:crypto";
import { Code, ConnectError } from "@connectrpc/connect";
import { expect } from "chai";
import pg from "pg";
import { OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import type { Product } from "../../gen/tradepost/order/v1/product_pb.js";
import { sql, type TestDatabase, useDatabase } from "../support/database.ts";
import { newAdmin, newOrder, newProduct, orderOf, type Person, present } from "../support/factories.ts";
import { until } from "../support/process.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";
import { faultsOfBooks } from "./books.ts";
import { newBuyers, signedInAs } from "./buyers.ts";

/** What waits in a crowd may wait long where the machine has other work, too. */
const PATIENTLY = { timeoutMs: 60_000 };

describe("orders under fire", function () {
  this.timeout(120_000);
  const database = useDatabase();
  // Servers of one database read each other's tokens.
  const settings = { SECRET_KEY: randomBytes(32).toString("base64") };

  describe("at two servers on one database", () => {
    const servers = [useServer({ database, settings }), useServer({ database, settings })] as const;
    let admins: readonly Person[];
    let buyers: readonly (readonly Person[])[];
    before(async () => {
      const admin = await newAdmin(servers[0]);
      admins = [admin, await signedInAs(servers[1], admin, "ADMIN")];
      const first = await newBuyers(servers[0], 500);
      buyers = [first, await Promise.all(first.map((buyer) => signedInAs(servers[1], buyer)))];
    });
    afterEach(async () => {
      expect(await faultsOfBooks(database)).to.deep.equal([]);
    });

    /** The i-th buyer's clients: of one server and of the other in turn. */
    const buyer = (i: number): Person => present(buyers[i % 2]?.[i % 500]);
    const admin = (i: number): Person => present(admins[i % 2]);
    const stockOf = async ({ id }: Pick<Product, "id">) =>
      present((await admin(0).catalog.getProduct({ productId: id })).product).stockQuantity;

    it("five hundred buyers of a hundred units: exactly a hundred get one", async () => {
      const product = await newProduct(admin(0), { stock: 100 });
      const calls = Array.from({ length: 500 }, (_, i) =>
        buyer(i).orders.createOrder(orderOf([[product, 1]]), PATIENTLY),
      );
      expect(await tally(calls)).to.deep.equal({ ok: 100, INSUFFICIENT_STOCK: 400 });
      expect(await stockOf(product)).to.equal(0);
    });

    it("2,000 orders of hot products in opposite orders, with cancels and adjustments: no error but too little stock", async () => {
      const products = await Promise.all(Array.from({ length: 4 }, () => newProduct(admin(0), { stock: 300 })));
      let cancelled = 0;
      const visit = async (i: number): Promise<void> => {
        const [a, b] = [present(products[i % 4]), present(products[(i + 1 + (i % 3)) % 4])];
        const lines = (i % 2 === 0 ? [a, b] : [b, a]).map((product) => [product, 1] as const);
        const { order } = await buyer(i).orders.createOrder(orderOf(lines), PATIENTLY);
        if (i % 4 < 2) {
          const canceller = i % 8 < 4 ? buyer(i) : admin(i);
          await canceller.orders.cancelOrder({ orderId: present(order).id }, PATIENTLY);
          cancelled++;
        }
        if (i % 10 > 0) return;
        const delta = i % 20 === 0 ? -3 : 1;
        const request = { requestId: randomUUID(), productId: a.id, delta, reason: "Counted" };
        await admin(i).catalog.adjustStock(request, PATIENTLY);
      };
      // Some at a time, so that what changes stock in its own ways comes between the orders and not after them.
      const inTurn = turns(100);
      const outcomes = await tally(Array.from({ length: 2_000 }, (_, i) => inTurn(() => visit(i))));
      expect(outcomes).to.have.all.keys("ok", "INSUFFICIENT_STOCK");
      expect(cancelled).to.be.greaterThan(100);
    });

    it("moves of the same orders at once, one by one and in batches: each is made once", async () => {
      const product = await newProduct(admin(0), { stock: 1_000 });
      const other = await newProduct(admin(0), { stock: 1_000 });
      const pair = [[product, 1] as const, [other, 2] as const];
      const placed = await Promise.all(Array.from({ length: 60 }, (_, i) => newOrder(buyer(i), pair)));
      const ids = placed.map(({ id }) => id);
      const cancel = (orderIds: readonly string[]) =>
        orderIds.map((orderId) => ({ orderId, status: OrderStatus.CANCELLED }));
      const results = await Promise.all([
        ...[0, 1, 2, 3].map((i) =>
          admin(i)
            .orders.batchUpdateOrderStatuses({ updates: cancel(i % 2 === 0 ? ids : ids.toReversed()) })
            .then(({ orderIds }) => orderIds.length),
        ),
        ...ids.map((orderId, i) =>
          buyer(i)
            .orders.cancelOrder({ orderId })
            .then(
              () => 1,
              (error: unknown) => {
                expect(ConnectError.from(error).code).to.equal(Code.FailedPrecondition);
                return 0;
              },
            ),
        ),
      ]);
      expect(results.reduce((sum, count) => sum + count)).to.equal(ids.length);
      expect([await stockOf(product), await stockOf(other)]).to.deep.equal([1_000, 1_000]);
    });

    it("the same requests at both servers, many times at once: each makes one order and one stock change", async () => {
      const product = await newProduct(admin(0), { stock: 1_000 });
      const requests = Array.from({ length: 25 }, () => orderOf([[product, 2]]));
      const answers = await Promise.all(
        Array.from({ length: 500 }, async (_, i) => {
          const person = present(buyers[i % 2]?.[0]);
          const { order } = await person.orders.createOrder(present(requests[Math.floor(i / 2) % 25]));
          return present(order).id;
        }),
      );
      const idsOf = (request: number) => new Set(answers.filter((_, i) => Math.floor(i / 2) % 25 === request));
      expect(requests.map((_, i) => idsOf(i).size)).to.deep.equal(requests.map(() => 1));
      expect(await stockOf(product)).to.equal(1_000 - 25 * 2);
    });

    it("different requests under one id at both servers: one is placed, the others are told so", async () => {
      const products = await Promise.all([0, 1].map(() => newProduct(admin(0), { stock: 100 })));
      const requestId = randomUUID();
      const calls = Array.from({ length: 40 }, (_, i) =>
        present(buyers[i % 2]?.[1]).orders.createOrder(
          orderOf([[present(products[i % 2]), 1 + (i % 5)]], { requestId }),
        ),
      );
      const { ok = 0, ...others } = await tally(calls);
      // The request that won came four times.
      expect([ok, others]).to.deep.equal([4, { REQUEST_ID_REUSED: 36 }]);
    });
  });

  describe("at one server whose lane is busy", () => {
    const server = useServer({ database, settings });
    let admin: Person;
    let buyer: Person;
    before(async () => {
      admin = await newAdmin(server);
      [buyer] = (await newBuyers(server, 1)) as [Person];
    });
    afterEach(async () => {
      expect(await faultsOfBooks(database)).to.deep.equal([]);
    });

    /** Has the lane wait for a row that we hold, does `work`, and lets it go on with what has come meanwhile. */
    async function whileLaneWaits(work: () => Promise<void>): Promise<void> {
      const blocked = await newProduct(admin, { stock: 10 });
      let blocker: Promise<unknown> = Promise.resolve();
      await holding(database, blocked, async () => {
        blocker = newOrder(buyer, [[blocked, 1]]);
        await until("the lane waits", async () => ((await lockWaits(database)) >= 1 ? true : undefined));
        await work();
      });
      await blocker;
    }

    /** Returns when the server has every call that was sent before: calls of one connection arrive in their order. */
    const arrived = () => admin.catalog.listProducts({ pageSize: 1 });
    const idOf = async (requestId: string): Promise<string | undefined> =>
      (await sql<{ id: string }>(database, "SELECT id FROM orders WHERE request_id = $1", [requestId]))[0]?.id;

    it("an order that fails for a reason nobody foresaw costs none of its batch-mates theirs", async () => {
      await sql(
        database,
        `CREATE FUNCTION fail_for_poison() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'poisoned'; END $$;
         CREATE TRIGGER poison BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.notes = 'poison')
           EXECUTE FUNCTION fail_for_poison()`,
      );
      const product = await newProduct(admin, { stock: 100 });
      let calls: Promise<unknown>[] = [];
      await whileLaneWaits(async () => {
        const notes = (i: number) => (i % 10 === 7 ? "poison" : "");
        calls = Array.from({ length: 30 }, (_, i) => newOrder(buyer, [[product, 1]], { notes: notes(i) }));
        await arrived();
      });
      expect(await tally(calls)).to.deep.equal({ ok: 27, INTERNAL: 3 });
    });

    it("a client that gives up takes none of its batch-mates with it", async () => {
      const product = await newProduct(admin, { stock: 100 });
      const leave = new AbortController();
      let calls: Promise<unknown>[] = [];
      await whileLaneWaits(async () => {
        calls = Array.from({ length: 20 }, (_, i) =>
          buyer.orders.createOrder(orderOf([[product, 1]]), i % 2 === 0 ? { signal: leave.signal } : {}),
        );
        await arrived();
        leave.abort();
        await Promise.allSettled(calls.filter((_, i) => i % 2 === 0));
      });
      const stayed = await Promise.allSettled(calls.filter((_, i) => i % 2 === 1));
      expect(stayed.filter(({ status }) => status === "fulfilled")).to.have.length(10);
    });

    it("an order that was sent is placed although its client gave up, and its request then finds it", async () => {
      const product = await newProduct(admin, { stock: 100 });
      const request = orderOf([[product, 1]]);
      await holding(database, product, async () => {
        const leave = new AbortController();
        const call = buyer.orders.createOrder(request, { signal: leave.signal });
        await until("the order is sent", async () => ((await lockWaits(database)) > 0 ? true : undefined));
        leave.abort();
        expect((await refusalOf(call)).code).to.equal("Canceled");
      });
      const placed = await until("the order is placed", () => idOf(request.requestId));
      expect((await buyer.orders.createOrder(request)).order?.id).to.equal(placed);
    });

    it("an order whose deadline passed while it waited is not placed, but can be asked for again", async () => {
      const product = await newProduct(admin, { stock: 100 });
      const timeoutMs = 200;
      const [late, twin] = [orderOf([[product, 1]]), orderOf([[product, 1]])];
      let patient: Promise<unknown> = Promise.resolve();
      await whileLaneWaits(async () => {
        const calls = [late, twin].map((request) => buyer.orders.createOrder(request, { timeoutMs }));
        const codes = calls.map(async (call) => (await refusalOf(call)).code);
        await arrived();
        const arrivedAt = Date.now();
        patient = buyer.orders.createOrder(twin);
        await arrived();
        expect(await Promise.all(codes)).to.deep.equal(["DeadlineExceeded", "DeadlineExceeded"]);
        await until("its deadline has passed", () => (Date.now() > arrivedAt + timeoutMs ? true : undefined));
      });
      await newOrder(buyer, [[product, 1]]);
      expect(await idOf(late.requestId)).to.equal(undefined);
      // The same request with more time was not dropped with the one that it would have shared an outcome with.
      expect(await tally([patient])).to.deep.equal({ ok: 1 });
      expect(await tally([buyer.orders.createOrder(late)])).to.deep.equal({ ok: 1 });
    });
  });

  describe("once the servers have stopped", () => {
    it("PostgreSQL has had to break no deadlock", async () => {
      // A backend tells what it has counted when it ends, at the latest.
      await until("all other backends have ended", async () => {
        const [row] = await sql<{ others: string }>(
          database,
          `SELECT count(*) AS others FROM pg_stat_activity
            WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`,
        );
        return row?.others === "0" ? true : undefined;
      });
      const [counts] = await sql(database, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()");
      expect(counts).to.deep.equal({ deadlocks: "0" });
    });
  });
});

/** Starts what it is given when one of `count` places is free. */
function turns(count: number): <T>(work: () => Promise<T>) => Promise<T> {
  const ends: Promise<unknown>[] = Array.from({ length: count }, () => Promise.resolve());
  let next = 0;
  return (work) => {
    const place = next++ % count;
    const done = present(ends[place]).then(work);
    ends[place] = done.catch(() => {});
    return done;
  };
}

/** Does `work` while another session has a product's row locked. */
async function holding(database: TestDatabase, { id }: Product, work: () => Promise<void>): Promise<void> {
  const session = new pg.Client({ connectionString: database.url });
  await session.connect();
  try {
    await session.query("BEGIN");
    await session.query("SELECT FROM products WHERE id = $1 FOR UPDATE", [id]);
    await work();
    await session.query("COMMIT");
  } finally {
    await session.end();
  }
}

/** How many statements of a database wait for a lock at the moment. */
async function lockWaits(database: TestDatabase): Promise<number> {
  const [row] = await sql<{ waits: string }>(
    database,
    `SELECT count(*) AS waits FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`,
  );
  return Number(row?.waits);
}
