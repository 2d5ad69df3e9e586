import { randomBytes, randomUUID } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Client, createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { expect } from "chai";
import pg from "pg";
import { CatalogService } from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { DEMO_PASSWORD } from "../../src/demo.ts";
import { createDatabase, sql, type TestDatabase } from "../support/database.ts";
import { orderOf, present } from "../support/factories.ts";
import { processTree, type ServiceProcess, until, usePrograms } from "../support/process.ts";
import { type Refusal, refusalOf } from "../support/refusals.ts";
import { faultsOfBooks } from "./books.ts";

const STOCK = 100_000;
/** What waits in a crowd may wait long where the machine has other work, too. */
const PATIENTLY = { timeoutMs: 60_000 };
/** A client that repeats a call gives up at last. */
const MAX_TRIES = 200;
const RETRY_PAUSE_MS = 100;

type Request = ReturnType<typeof orderOf>;

/** A signed-in customer's clients of a service in a process of its own. */
interface Session {
  readonly orders: Client<typeof OrderService>;
  readonly catalog: Client<typeof CatalogService>;
  close(): void;
}

describe("orders and crashes", function () {
  this.timeout(180_000);

  describe("the service killed in the middle of 1,000 orders", () => {
    const { runService, newFolder } = usePrograms({ per: "suite" });
    let database: TestDatabase;
    before(async () => {
      database = await createDatabase();
    });
    after(() => database.drop());

    it("has lost no order that it has acknowledged, and has none by half", async () => {
      const settings = {
        DATABASE_URL: database.url,
        DATA_DIR: await newFolder(),
        SECRET_KEY: randomBytes(32).toString("base64"),
        RATE_LIMITS: "off",
      };
      const first = await runService(settings);
      const { token, product } = await customerAndProduct(first, database);
      const requests = Array.from({ length: 1_000 }, () => orderOf([[product, 1]]));
      const acknowledged = new Map<Request, string>();
      const session = connect(first, token);
      await Promise.allSettled(
        requests.map(async (request) => {
          const { order } = await session.orders.createOrder(request, PATIENTLY);
          acknowledged.set(request, present(order).id);
          if (acknowledged.size === 250) first.child.kill("SIGKILL");
        }),
      );
      session.close();
      expect((await first.ended).signal).to.equal("SIGKILL");
      expect(acknowledged.size).to.be.within(250, 999);
      expect(await faultsOfBooks(database)).to.deep.equal([]);

      const second = await runService(settings);
      const again = connect(second, token);
      const found = await Promise.all(
        [...acknowledged.values()].map(
          async (orderId) => (await again.orders.getOrder({ orderId }, PATIENTLY)).order?.id,
        ),
      );
      expect(found).to.deep.equal([...acknowledged.values()]);
      const repeated = await Promise.all(requests.map((request) => again.orders.createOrder(request, PATIENTLY)));
      const changed = requests.filter(
        (request, i) => acknowledged.has(request) && acknowledged.get(request) !== repeated[i]?.order?.id,
      );
      expect(changed).to.deep.equal([]);
      again.close();
      expect(await countOf(database, product.id)).to.deep.equal({ orders: 1_000, stock: STOCK - 1_000 });
      expect(await faultsOfBooks(database)).to.deep.equal([]);
    });
  });

  describe("PostgreSQL's processes killed while orders are placed", () => {
    const { runService, newFolder } = usePrograms({ per: "suite" });
    let service: ServiceProcess;
    let url: string;
    let session: Session;
    before(async () => {
      const folder = await newFolder();
      service = await runService({ DATA_DIR: folder, RATE_LIMITS: "off" });
      const file = await readFile(join(folder, "database.json"), "utf8");
      ({ url } = JSON.parse(file) as { url: string });
      const { accessToken } = await createClient(AuthService, createGrpcTransport({ baseUrl: service.url })).login({
        email: "admin@tradepost.example",
        password: DEMO_PASSWORD,
      });
      session = connect(service, accessToken);
    });
    after(() => session?.close());

    for (const [what, harm] of [
      ["connections are closed by pg_terminate_backend", terminateBackends],
      ["a backend is killed with SIGKILL, so that PostgreSQL restarts", killBackend],
    ] as const) {
      it(`${what}: clients are told to come back, and coming back places each order once`, async () => {
        const stocked = { name: "Widget", price: { currencyCode: "USD", units: 1n, nanos: 0 }, stockQuantity: STOCK };
        const product = present((await session.catalog.createProduct({ product: stocked })).product);
        const refusals: Refusal[] = [];
        let placed = 0;
        let harming = true;
        const shopping = Array.from({ length: 20 }, async () => {
          const ids: string[] = [];
          while (harming) {
            ids.push(await placeAtLast(session, orderOf([[product, 1]]), refusals));
            placed++;
          }
          return ids;
        });
        // The first time an order is under way for certain; after that it comes when it comes, as to the commit.
        for (const at of [whileOrdersWait, atAnyMoment, atAnyMoment]) {
          const before = placed;
          await until("orders are being placed", () => (placed >= before + 50 ? true : undefined));
          await at(url, product, () => harm(url, service));
        }
        harming = false;
        const ids = (await Promise.all(shopping)).flat();
        expect(new Set(ids).size).to.equal(ids.length);
        const told = new Set(refusals.map(({ code, reason }) => `${code} ${reason}`));
        expect([...told]).to.deep.equal(["Unavailable DATABASE_UNAVAILABLE"]);
        const rows = await ask<{ orders: number; stock: number }>(url, COUNT, [product.id]);
        expect(rows).to.deep.equal([{ orders: ids.length, stock: STOCK - ids.length }]);
      });
    }
  });
});

const COUNT = `
  SELECT (SELECT count(DISTINCT order_id)::int FROM order_items WHERE product_id = $1) AS orders,
         (SELECT stock_quantity FROM products WHERE id = $1) AS stock`;

async function countOf(database: TestDatabase, productId: string): Promise<object | undefined> {
  return (await sql(database, COUNT, [productId]))[0];
}

/** Places an order, as often as it takes; what it is told on the way is added to `refusals`. */
async function placeAtLast({ orders }: Session, request: Request, refusals: Refusal[]): Promise<string> {
  for (let tries = 1; ; tries++) {
    const call = orders.createOrder(request, PATIENTLY);
    const [result] = await Promise.allSettled([call]);
    if (result.status === "fulfilled") return present(result.value.order).id;
    const refusal = await refusalOf(call);
    refusals.push(refusal);
    if (refusal.code !== "Unavailable" || tries === MAX_TRIES) throw result.reason;
    await sleep(RETRY_PAUSE_MS);
  }
}

/** Does harm while orders of the product are before PostgreSQL and cannot go on. */
async function whileOrdersWait(url: string, { id }: { id: string }, harm: () => Promise<void>): Promise<void> {
  const holder = new pg.Client({ connectionString: url });
  // The harm may be its end, too.
  holder.on("error", () => {});
  await holder.connect();
  try {
    await holder.query("BEGIN");
    await holder.query("SELECT FROM products WHERE id = $1 FOR UPDATE", [id]);
    await until("an order waits for the product", async () => (await ask(url, WAITING_BACKENDS))[0]);
    await harm();
  } finally {
    await holder.end().catch(() => {});
  }
}

const atAnyMoment = (_url: string, _product: object, harm: () => Promise<void>): Promise<void> => harm();

const BACKENDS = `pid FROM pg_stat_activity WHERE application_name = 'tradepost' AND datname = current_database()`;
const WAITING_BACKENDS = `SELECT ${BACKENDS} AND wait_event_type = 'Lock'`;

async function terminateBackends(url: string): Promise<void> {
  await ask(url, `SELECT pg_terminate_backend(pid) FROM (SELECT ${BACKENDS}) backends`);
}

async function killBackend(url: string, { pid: service }: ServiceProcess): Promise<void> {
  const [backend] = await ask<{ pid: number }>(url, `SELECT ${BACKENDS} LIMIT 1`);
  const processes = await processTree(service);
  const found = processes.find(({ pid }) => pid === backend?.pid);
  if (found === undefined) throw new Error(`there is no backend among ${JSON.stringify(processes)}`);
  process.kill(found.pid, "SIGKILL");
}

/** Asks PostgreSQL over a connection of its own, again while it restarts. */
async function ask<Row extends object = object>(url: string, text: string, values: unknown[] = []): Promise<Row[]> {
  return until("PostgreSQL answers", async () => {
    const client = new pg.Client({ connectionString: url });
    client.on("error", () => {});
    try {
      await client.connect();
      return (await client.query<Row>(text, values)).rows;
    } catch {
      return undefined;
    } finally {
      await client.end().catch(() => {});
    }
  });
}

function connect({ url }: ServiceProcess, token: string): Session {
  const sessionManager = new Http2SessionManager(url);
  const transport = createGrpcTransport({
    baseUrl: url,
    sessionManager,
    interceptors: [
      (next) => (req) => {
        req.header.set("authorization", `Bearer ${token}`);
        return next(req);
      },
    ],
  });
  return {
    orders: createClient(OrderService, transport),
    catalog: createClient(CatalogService, transport),
    close: () => sessionManager.abort(),
  };
}

/** A customer with a token of the service, and a product made by hand. */
async function customerAndProduct(
  { url }: ServiceProcess,
  database: TestDatabase,
): Promise<{ token: string; product: { id: string } }> {
  const auth = createClient(AuthService, createGrpcTransport({ baseUrl: url }));
  const account = { email: `${randomUUID()}@tradepost.example`, password: randomBytes(12).toString("base64") };
  const dateOfBirth = { year: 1990, month: 1, day: 2 };
  await auth.register({ ...account, firstName: "Casey", lastName: "Jones", dateOfBirth });
  const { accessToken } = await auth.login(account);
  const product = { id: randomUUID() };
  await sql(
    database,
    `WITH product AS (
       INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
       VALUES ($1, 'Widget', 'USD', 10.99, $2, true, now(), now()) RETURNING id)
     INSERT INTO stock_movements (product_id, delta, kind, create_time) SELECT id, $2, 'INITIAL', now() FROM product`,
    [product.id, STOCK],
  );
  return { token: accessToken, product };
}
