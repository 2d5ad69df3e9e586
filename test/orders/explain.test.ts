import { randomUUID } from "node:crypto";
import { expect } from "chai";
import sinon from "sinon";
import { Database, type Statement } from "../../src/db/database.ts";
import { CatalogStore } from "../../src/orders/catalog-store.ts";
import { cancellation, type NewOrder, requestHash } from "../../src/orders/order.ts";
import { OrderStore } from "../../src/orders/store.ts";
import { sql, useDatabase } from "../support/database.ts";
import { present } from "../support/factories.ts";
import { CUSTOMERS, fillWithAYear, ORDERS, theYear } from "./year-of-orders.ts";

/** Tables that grow with the shop: no statement may read one of them from end to end. */
const LARGE_TABLES = ["orders", "order_items", "order_events", "stock_movements", "products", "users"];
const PAGE = 50;
/** A B-tree of these sizes is three pages deep, and the rows of an order are on about three more. */
const PAGES_PER_ORDER = 12;

interface PlanNode {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Index Name"?: string;
  readonly "Shared Hit Blocks": number;
  readonly "Shared Read Blocks": number;
  readonly Plans?: readonly PlanNode[];
}

/** What a statement cost: pages of 8 KiB that it touched, tables it read from end to end, indexes it used. */
interface Cost {
  readonly pages: number;
  readonly scanned: readonly string[];
  readonly indexes: readonly string[];
}

describe("the plans of the catalogue's and the orders' statements", function () {
  this.timeout(120_000);
  const database = useDatabase();
  let db: Database;
  let orders: OrderStore;
  let catalog: CatalogStore;
  let customer: string;
  const { from, to } = theYear();

  before(async () => {
    // One connection, so that its statements and the functions' own are planned once and kept.
    db = new Database({ url: database.url, poolMax: 1, prepared: true });
    orders = new OrderStore(db);
    catalog = new CatalogStore(db);
    await useWhileEmpty();
    await fillWithAYear(database);
    const [first] = await sql<{ id: string }>(database, "SELECT id FROM users ORDER BY id LIMIT 1");
    customer = present(first).id;
  });
  after(() => db.close());

  /** Everything is planned for tables with next to nothing in them, more often than PostgreSQL needs to keep a plan. */
  async function useWhileEmpty(): Promise<void> {
    const [user, product] = [randomUUID(), randomUUID()];
    await sql(
      database,
      `INSERT INTO users (id, email, password_hash, first_name, last_name, date_of_birth, create_time, update_time)
       VALUES ($1, 'first@tradepost.example', '', 'Casey', 'Jones', '1990-01-02', now(), now())`,
      [user],
    );
    await sql(
      database,
      `INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
       VALUES ($1, 'First', 'USD', 10.99, 100, true, now(), now())`,
      [product],
    );
    await sql(database, "VACUUM ANALYZE");
    for (let i = 0; i < 10; i++) await useAll(user, product);
    await sql(database, "TRUNCATE orders, order_items, order_events, stock_movements, products, users CASCADE");
    await sql(database, "VACUUM ANALYZE");
  }

  const newOrder = (customerId: string, productId: string): NewOrder => ({
    id: randomUUID(),
    customerId,
    createdBy: customerId,
    requestId: randomUUID(),
    requestHash: requestHash({}),
    lines: [{ id: randomUUID(), productId, quantity: 1 }],
    shippingAddressId: null,
    notes: "",
    status: "CONFIRMED",
    expireTime: null,
    orderTime: new Date(),
  });

  /** Every store function behind the RPCs once. Statistics over everything read everything, so they are not among it. */
  async function useAll(customerId: string, productId: string): Promise<void> {
    const now = new Date();
    const order = newOrder(customerId, productId);
    const adjustment = { productId, delta: 1, reason: "Found", actorId: customerId, requestId: randomUUID() };
    const filter = { customerId: undefined, statuses: [], from: undefined, to: undefined } as const;
    const lastDay = new Date(now.getTime() - 24 * 60 * 60 * 1000);
    expect(await orders.placeOrders([order])).to.have.nested.property("[0].outcome", "PLACED");
    expect(await orders.placeOrders([order])).to.have.nested.property("[0].outcome", "REPEATED");
    await orders.findOrders([order.id]);
    await orders.list(filter, PAGE);
    await orders.list({ ...filter, customerId }, PAGE);
    await orders.list({ ...filter, statuses: ["RETURNED", "PENDING"] }, PAGE);
    await orders.list({ ...filter, customerId, statuses: ["RETURNED"] }, PAGE);
    await orders.sum(lastDay, now);
    await orders.findExpired(new Date(now.getTime() - 7 * 24 * 60 * 60 * 1000), 10);
    const position = await orders.feedPosition();
    await orders.readChanges(position, PAGE, undefined);
    await orders.moveOrders([cancellation(order.id, "")], now, customerId);
    await catalog.findProduct(productId);
    await catalog.listProducts({ nameContains: "", showInactive: false }, PAGE);
    await catalog.listProducts({ nameContains: "kind abcd", showInactive: false }, PAGE);
    await catalog.updateProduct(productId, { description: "Round" }, undefined, now);
    await catalog.adjustStock({ ...adjustment, requestHash: requestHash(adjustment), createTime: now });
  }

  /** The statements of some work, as they are sent. */
  async function statementsOf(work: () => Promise<unknown>): Promise<[Statement, readonly unknown[]][]> {
    const spy = sinon.spy(db, "query");
    try {
      await work();
      return spy.args.map(([statement, values]) => [statement, values]);
    } finally {
      spy.restore();
    }
  }

  /** Explains the one statement of some work, with a plan for its values and with the plan for all values. */
  async function costsOf(work: () => Promise<unknown>): Promise<Cost[]> {
    return explaining(work, async (explain) => [
      await explain("force_custom_plan"),
      await explain("force_generic_plan"),
    ]);
  }

  /** Prepares the one statement of some work for `use`, which may have it explained and rolled back as often as it likes. */
  async function explaining<T>(
    work: () => Promise<unknown>,
    use: (explain: (mode: string, values?: readonly unknown[]) => Promise<Cost>) => Promise<T>,
  ): Promise<T> {
    const statements = await statementsOf(work);
    expect(statements, "statements").to.have.length(1);
    const [[{ text }, sent]] = statements as [[Statement, readonly unknown[]]];
    return database.db.withConnection(async (connection) => {
      await connection.query(`PREPARE explained AS ${text}`);
      try {
        return await use(async (mode, values = sent) => {
          await connection.query(`SET plan_cache_mode = ${mode}; BEGIN`);
          try {
            const args = values.length === 0 ? "" : `(${values.map(literal).join(", ")})`;
            const { rows } = await connection.query<{ "QUERY PLAN": [{ Plan: PlanNode }] }>(
              `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE explained${args}`,
            );
            return toCost(present(rows[0])["QUERY PLAN"][0].Plan);
          } finally {
            await connection.query("ROLLBACK; RESET plan_cache_mode");
          }
        });
      } finally {
        await connection.query("DEALLOCATE explained");
      }
    });
  }

  /** Holds that work uses indexes, and reads at most so many pages. */
  async function expectPages(work: () => Promise<unknown>, atMost: number): Promise<number> {
    const costs = await costsOf(work);
    for (const cost of costs) {
      const facts = JSON.stringify(cost);
      expect(cost.scanned, facts).to.deep.equal([]);
      expect(cost.pages, facts).to.be.at.most(atMost);
    }
    return Math.max(...costs.map(({ pages }) => pages));
  }

  const filter = { customerId: undefined, statuses: [], from: undefined, to: undefined } as const;
  /** The keyset of the order after which `offset` orders have been shown. */
  const keysetAt = async (offset: number, condition = "true"): Promise<[Date, string]> => {
    const [row] = await sql<{ order_time: Date; id: string }>(
      database,
      `SELECT order_time, id FROM orders WHERE ${condition} ORDER BY order_time DESC, id DESC OFFSET ${offset} LIMIT 1`,
    );
    const { order_time: time, id } = present(row);
    return [time, id];
  };

  for (const [name, chosen, condition, deep] of [
    ["all orders", {}, "true", ORDERS - 1_000],
    [
      "a time range",
      { from, to: new Date(to.getTime() - 30 * 24 * 3600 * 1000) },
      "order_time < now() - interval '30 days'",
      20_000,
    ],
    ["two rare statuses", { statuses: ["RETURNED", "PENDING"] }, "status IN ('RETURNED', 'PENDING')", 250],
    [
      "a common and a rare status",
      { statuses: ["DELIVERED", "PENDING"] },
      "status IN ('DELIVERED', 'PENDING')",
      25_000,
    ],
  ] as const) {
    it(`ListOrders of ${name}: a late page costs what the first one costs`, async () => {
      const atMost = (PAGE + 1) * PAGES_PER_ORDER;
      const first = await expectPages(() => orders.list({ ...filter, ...chosen }, PAGE + 1), atMost);
      const after = await keysetAt(deep, condition);
      const late = await expectPages(() => orders.list({ ...filter, ...chosen }, PAGE + 1, after), atMost);
      expect(late / first, `${late} pages against ${first}`).to.be.within(0.5, 1.5);
    });
  }

  it("ListOrders of one customer: a late page costs what the first one costs", async () => {
    const own = { ...filter, customerId: customer };
    const page = 10;
    const first = await expectPages(() => orders.list(own, page), page * PAGES_PER_ORDER);
    const after = await keysetAt(ORDERS / CUSTOMERS - 2 * page, `customer_id = '${customer}'`);
    const late = await expectPages(() => orders.list(own, page, after), page * PAGES_PER_ORDER);
    expect(late / first, `${late} pages against ${first}`).to.be.within(0.5, 1.5);
  });

  it("ListOrders of one customer with statuses reads that customer's orders only", async () => {
    const own = { ...filter, customerId: customer, statuses: ["RETURNED"] } as const;
    await expectPages(() => orders.list(own, PAGE), (ORDERS / CUSTOMERS) * 2);
  });

  it("GetOrderStats of one day reads a small share of what the year reads", async () => {
    const middle = new Date((from.getTime() + to.getTime()) / 2);
    const dayLater = new Date(middle.getTime() + 24 * 3600 * 1000);
    const perDay = ORDERS / 365;
    const day = await expectPages(() => orders.sum(middle, dayLater), perDay * 6);
    const year = await costsOf(() => orders.sum(from, to));
    const [least] = year.map(({ pages }) => pages).toSorted((a, b) => a - b);
    expect(day, `${day} pages of one day against ${least} of the year`).to.be.below(present(least) / 2);
  });

  it("GetOrder reads the order and its items by their keys", async () => {
    const [, id] = await keysetAt(15_000);
    await expectPages(() => orders.findOrders([id]), PAGES_PER_ORDER);
    const ids = await sql<{ id: string }>(database, "SELECT id FROM orders ORDER BY md5(id::text) LIMIT 20");
    await expectPages(() => orders.findOrders(ids.map((row) => row.id)), 20 * PAGES_PER_ORDER);
  });

  it("the sweep of unpaid orders reads those that are due", async () => {
    await expectPages(() => orders.findExpired(new Date(from.getTime() + 40 * 24 * 3600 * 1000), 100), 40);
    await expectPages(() => orders.findExpired(new Date(from.getTime() - 1), 100), 10);
  });

  it("WatchOrders reads on from its position", async () => {
    const [event] = await sql<{ xact: string; id: string }>(
      database,
      `SELECT xact_id::text AS xact, id FROM order_events ORDER BY xact_id, id OFFSET ${ORDERS - 500} LIMIT 1`,
    );
    const { xact, id } = present(event);
    const late = { xact: BigInt(xact), id: BigInt(id) };
    await expectPages(() => orders.readChanges(late, 100, undefined), 30);
    await expectPages(() => orders.readChanges({ xact: 0n, id: 0n }, 100, undefined), 30);
    const now = await orders.feedPosition();
    await expectPages(() => orders.readChanges(now, 100, undefined), 10);
    await expectPages(() => orders.readChanges(now, 100, customer), 10);
  });

  it("ListProducts finds a part of a name by the index of names, and pages by the key", async () => {
    const rare = "%kind 0a1b%";
    await explaining(
      () => catalog.listProducts({ nameContains: "kind 0a1b", showInactive: false }, PAGE),
      async (explain) => {
        // Which way is best depends on how many names have the part, so PostgreSQL must go on planning for each part.
        for (const part of ["%widget%", rare]) {
          const values = [false, "00000000-0000-0000-0000-000000000000", PAGE, part];
          for (let i = 0; i < 8; i++) await explain("auto", values);
        }
        const { indexes, pages } = await explain("auto");
        expect(indexes).to.include("products_name");
        expect(pages).to.be.below(150);
      },
    );
    await expectPages(() => catalog.listProducts({ nameContains: "", showInactive: false }, PAGE), 2 * PAGE);
    const [middle] = await sql<{ id: string }>(database, "SELECT id FROM products ORDER BY id OFFSET 7000 LIMIT 1");
    const after = present(middle).id;
    await expectPages(() => catalog.listProducts({ nameContains: "", showInactive: true }, PAGE, after), 2 * PAGE);
  });

  it("GetProduct reads one row by its key", async () => {
    const [product] = await sql<{ id: string }>(database, "SELECT id FROM products OFFSET 777 LIMIT 1");
    await expectPages(() => catalog.findProduct(present(product).id), 5);
  });

  it("placing and moving orders costs the same in a large shop as in a small one", async () => {
    const [product] = await sql<{ id: string }>(database, "SELECT id FROM products OFFSET 777 LIMIT 1");
    const batch = () => Array.from({ length: 32 }, () => newOrder(customer, present(product).id));
    await expectPages(() => orders.placeOrders(batch()), 32 * 60);
  });

  it("no statement planned while the tables were empty reads a large one from end to end", async () => {
    const [product] = await sql<{ id: string }>(database, "SELECT id FROM products ORDER BY id OFFSET 777 LIMIT 1");
    const before = await tableScans();
    await useAll(customer, present(product).id);
    expect(await tableScans()).to.deep.equal(before);
    // The count is one of this connection, and up to date: it sees a scan.
    await db.query({ name: "scan", text: "SELECT count(*) FROM order_items" }, []);
    expect(await tableScans()).to.not.deep.equal(before);
  });

  /** How often each large table was read from end to end, with what both connections have not told yet. */
  async function tableScans(): Promise<Record<string, string>> {
    for (const text of ["SELECT pg_stat_force_next_flush()", "SELECT 1"]) {
      await db.query({ name: text, text }, []);
      await sql(database, text);
    }
    const rows = await sql<{ relname: string; seq_scan: string }>(
      database,
      "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname = ANY ($1) AND schemaname = 'public'",
      [LARGE_TABLES],
    );
    expect(rows).to.have.length(LARGE_TABLES.length);
    return Object.fromEntries(rows.map(({ relname, seq_scan }) => [relname, seq_scan]));
  }
});

function toCost(plan: PlanNode): Cost {
  const nodes = [plan];
  for (const node of nodes) nodes.push(...(node.Plans ?? []));
  const scans = nodes.filter((node) => node["Node Type"] === "Seq Scan");
  return {
    pages: plan["Shared Hit Blocks"] + plan["Shared Read Blocks"],
    scanned: scans.map((node) => node["Relation Name"] ?? "").filter((table) => LARGE_TABLES.includes(table)),
    indexes: nodes.flatMap((node) => node["Index Name"] ?? []),
  };
}

/** A value as SQL, for the kinds that the stores bind. */
function literal(value: unknown): string {
  if (value === null || value === undefined) return "NULL";
  if (Array.isArray(value)) return `'{${value.map(element).join(",")}}'`;
  if (value instanceof Date) return `'${value.toISOString()}'`;
  if (Buffer.isBuffer(value)) return `'\\x${value.toString("hex")}'`;
  return `'${String(value).replaceAll("'", "''")}'`;
}

function element(value: unknown): string {
  if (value === null || value === undefined) return "NULL";
  if (value instanceof Date) return `"${value.toISOString()}"`;
  if (Buffer.isBuffer(value)) return `"\\\\x${value.toString("hex")}"`;
  return `"${String(value).replaceAll(/["\\]/g, "\\$&").replaceAll("'", "''")}"`;
}
