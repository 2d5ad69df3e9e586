import { randomUUID } from "node:crypto";
import { appendFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "chai";
import { OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { examine } from "../../src/db/invariants.ts";
import { orderInvariants } from "../../src/orders/check-store.ts";
import { expireOrders } from "../../src/orders/expire-orders.ts";
import { paymentInvariants } from "../../src/payments/check-store.ts";
import { accountInvariants } from "../../src/users/check-store.ts";
import { createDatabase, sql, type TestDatabase } from "../support/database.ts";
import {
  anAddress,
  card,
  money,
  newAdmin,
  newCustomer,
  newOrder,
  newProduct,
  type Person,
  paymentOf,
  present,
} from "../support/factories.ts";
import { type Ended, processesNaming, until, usePrograms } from "../support/process.ts";
import { useServer } from "../support/server.ts";
import { lookBeside } from "../support/timing.ts";

const PROGRAM = "src/commands/check.ts";
const MINUTE_MS = 60_000;

const invariants = [...accountInvariants, ...orderInvariants, ...paymentInvariants];

/** Every breach in a database, as "rule: subject: fault". */
async function breachesOf({ db }: Pick<TestDatabase, "db">): Promise<string[]> {
  const { verdicts } = await examine(db, invariants);
  return verdicts.flatMap(({ rule, examples }) =>
    examples.map(({ subject, fault }) => `${rule}: ${subject}: ${fault}`),
  );
}

describe("the check of a service's data", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  it("finds nothing wrong with what orders, payments, stock and addresses go through", async () => {
    const product = await newProduct(admin, { stock: 100 });
    const place = (extra = {}) => newOrder(customer, [[product, 2]], extra);
    const moveTo = (status: OrderStatus, ...orderIds: string[]) =>
      admin.orders.batchUpdateOrderStatuses({ updates: orderIds.map((orderId) => ({ orderId, status })) });

    for (const street of ["1 Main St", "2 Main St"]) {
      await customer.users.createAddress({ address: { ...anAddress, street } });
    }
    await admin.catalog.adjustStock({ requestId: randomUUID(), productId: product.id, delta: -7, reason: "Broken" });
    await customer.orders.cancelOrder({ orderId: (await place()).id });
    const [delivered, returned] = [await place(), await place()];
    await admin.orders.shipOrder({ orderId: delivered.id, trackingNumber: "1Z" });
    await moveTo(OrderStatus.SHIPPED, returned.id);
    await moveTo(OrderStatus.DELIVERED, delivered.id, returned.id);
    await moveTo(OrderStatus.RETURNED, returned.id);
    await customer.payments.processPayment(paymentOf(await place({ awaitPayment: true })));
    await customer.payments.processPayment(paymentOf(await place(), {}, "tok_chargeDeclined"));
    await place({ awaitPayment: true });
    server.clock.advance(31 * MINUTE_MS);
    await expireOrders(server.deps);
    server.clock.advance(-31 * MINUTE_MS);

    const statuses = await sql(server.database, "SELECT DISTINCT status FROM orders");
    expect(statuses, "every way an order can end was gone").to.have.length(4);
    expect(await breachesOf(server.database)).to.deep.equal([]);
  });

  it("sees one moment of a database in which orders are placed, paid and cancelled", async () => {
    const products = await Promise.all([1, 2, 3].map(() => newProduct(admin, { stock: 10_000 })));
    const shop = async (mayEnd: () => boolean) => {
      for (let i = 0; i < 15 || !mayEnd(); i++) {
        const order = await newOrder(customer, [[products[i % 3] ?? products[0], 1] as never]);
        if (i % 2 === 0) await customer.orders.cancelOrder({ orderId: order.id });
        else await customer.payments.processPayment(paymentOf(order));
      }
    };
    await lookBeside(
      (mayEnd) => Promise.all(Array.from({ length: 8 }, () => shop(mayEnd))),
      async () => expect(await breachesOf(server.database)).to.deep.equal([]),
    );
  });
});

describe("what the check finds", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;

  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    // The database itself refuses some of these faults.
    for (const statement of [
      "ALTER TABLE products DROP CONSTRAINT products_stock_not_negative",
      "DROP INDEX stock_movements_once",
      "ALTER TABLE stock_movements DROP CONSTRAINT stock_movements_item_fkey",
      "DROP INDEX payments_one_per_order",
      "DROP INDEX addresses_one_primary",
      "ALTER TABLE addresses DISABLE TRIGGER addresses_some_primary",
    ]) {
      await sql(server.database, statement);
    }
  });

  /** What is wrong with one row: the fault, by the rule. */
  async function faultsOf(subject: string): Promise<Record<string, string>> {
    const { verdicts } = await examine(server.database.db, invariants);
    const found = verdicts.flatMap(({ rule, examples }) =>
      examples.filter((breach) => breach.subject === subject).map(({ fault }) => [rule, fault] as const),
    );
    return Object.fromEntries(found);
  }

  const query = (text: string, ...values: unknown[]) => sql<Record<string, string>>(server.database, text, values);
  const anOrder = async (extra: Parameters<typeof newOrder>[2] = {}) => {
    const product = await newProduct(admin, { stock: 100, price: "10.00" });
    const { id } = await newOrder(customer, [[product, 3]], extra);
    return { id, product };
  };
  const aCancelledOrder = async () => {
    const { id, product } = await anOrder();
    await customer.orders.cancelOrder({ orderId: id });
    return { id, product };
  };
  const aPaidOrder = async () => {
    const product = await newProduct(admin, { stock: 100, price: "10.00" });
    const order = await newOrder(customer, [[product, 3]]);
    await customer.payments.processPayment(paymentOf(order));
    return order;
  };
  /** A payment by hand; the values of others are taken from an account. */
  const insertPayment = async (orderId: string | null, status: string, attempts = 1) => {
    const id = randomUUID();
    await query(
      `INSERT INTO payments (id, customer_id, order_id, created_by, request_id, request_hash, currency, amount, status,
                             card_token, create_time, process_time, check_time)
       VALUES ($1, $2, $3, $2, $1, '', 'USD', 30, $4, 'tok_visa', now(), CASE WHEN $4 <> 'PENDING' THEN now() END,
               CASE WHEN $4 = 'PENDING' THEN now() END)`,
      ...[id, customer.id, orderId, status],
    );
    await query(
      `INSERT INTO payment_attempts (id, payment_id, number, gateway, create_time, update_time)
       SELECT gen_random_uuid(), $1, number, 'sandbox-primary', now(), now() FROM generate_series(1, $2) number`,
      ...[id, attempts],
    );
    return id;
  };

  describe("of stock", () => {
    const RULE = "The stock of every product is the sum of its journal";

    it("a stock that is not what the journal makes", async () => {
      const { id } = await newProduct(admin, { stock: 100 });
      await query("UPDATE products SET stock_quantity = 101 WHERE id = $1", id);
      expect(await faultsOf(`product ${id}`)).to.deep.equal({
        [RULE]: "Widget: 101 in stock, but its journal makes 100",
      });
    });

    it("a stock without a journal", async () => {
      const { id } = await newProduct(admin, { stock: 5 });
      await query("DELETE FROM stock_movements WHERE product_id = $1", id);
      expect(await faultsOf(`product ${id}`)).to.deep.equal({
        [RULE]: "Widget: 5 in stock, but its journal makes 0",
      });
    });

    it("a negative stock, even where the journal agrees", async () => {
      const { id } = await newProduct(admin, { stock: 1 });
      await query("UPDATE products SET stock_quantity = -2 WHERE id = $1", id);
      await query("UPDATE stock_movements SET delta = -2 WHERE product_id = $1", id);
      expect(await faultsOf(`product ${id}`)).to.deep.equal({ "No stock is negative": "Widget: -2 in stock" });
    });
  });

  describe("of orders and their items", () => {
    const TOTAL = "The total of every order is the sum of its items";
    const TAKEN = "Every order took its items from stock, once";
    const RESTORED = "Every cancelled order gave its items back, once, and no other order did";

    it("a total that the items do not make", async () => {
      const { id } = await anOrder();
      await query("UPDATE orders SET total_amount = 30.01 WHERE id = $1", id);
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [TOTAL]: "its total is 30.010, but its items make 30.000",
      });
    });

    it("an order without items", async () => {
      const { id, product } = await anOrder();
      await query("DELETE FROM order_items WHERE order_id = $1", id);
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [TOTAL]: "its total is 30.000, but its items make nothing",
        [TAKEN]: `of product ${product.id} it has 0, and took 3 in 1 entries of the journal`,
      });
    });

    for (const [what, text, taken] of [
      ["that was never taken", "DELETE FROM stock_movements WHERE order_id = $1", "0 in 0"],
      ["of which too few were taken", "UPDATE stock_movements SET delta = -2 WHERE order_id = $1", "2 in 1"],
      [
        "that was taken in two parts",
        `WITH half AS (UPDATE stock_movements SET delta = -1 WHERE order_id = $1)
         INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
         SELECT product_id, -2, 'SALE', order_id, now() FROM stock_movements WHERE order_id = $1`,
        "3 in 2",
      ],
    ] as const) {
      it(`an item ${what}`, async () => {
        const { id, product } = await anOrder();
        await query(text, id);
        expect(await faultsOf(`order ${id}`)).to.deep.equal({
          [TAKEN]: `of product ${product.id} it has 3, and took ${taken} entries of the journal`,
        });
      });
    }

    const restore = `INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
                     SELECT product_id, quantity, 'RESTORE', order_id, now() FROM order_items WHERE order_id = $1`;
    for (const [what, anyOrder, text, due, given] of [
      [
        "a cancelled order that gave nothing back",
        aCancelledOrder,
        "DELETE FROM stock_movements WHERE order_id = $1 AND kind = 'RESTORE'",
        3,
        "0 in 0",
      ],
      ["a cancelled order that gave back twice", aCancelledOrder, restore, 3, "6 in 2"],
      ["an order that gave back and was not cancelled", anOrder, restore, 0, "3 in 1"],
    ] as const) {
      it(what, async () => {
        const { id, product } = await anyOrder();
        await query(text, id);
        expect(await faultsOf(`order ${id}`)).to.deep.equal({
          [RESTORED]: `of product ${product.id} it should have given back ${due}, and gave back ${given} entries of the journal`,
        });
      });
    }
  });

  describe("of an order's history", () => {
    const WHOLE = "The history of every order begins with its placing and has no gap";
    const LEGAL = "Every order moved as the table of transitions allows";
    const ENDS = "The history of every order ends where it stands";
    const insertEvent = `INSERT INTO order_events (order_id, from_status, to_status, from_payment_state, to_payment_state,
                                                   create_time) VALUES ($1, $2, $3, $4, $5, now()) RETURNING id`;

    it("one that does not begin with the placing", async () => {
      const { id } = await aCancelledOrder();
      await query("DELETE FROM order_events WHERE order_id = $1 AND from_status IS NULL", id);
      const [event] = await query("SELECT id FROM order_events WHERE order_id = $1", id);
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [WHOLE]: `event ${event?.["id"]} moves it from CONFIRMED and UNPAID, but it was nothing and nothing`,
      });
    });

    it("one with a gap", async () => {
      const { id } = await anOrder();
      await query("UPDATE orders SET status = 'DELIVERED' WHERE id = $1", id);
      const [event] = await query(insertEvent, id, "SHIPPED", "DELIVERED", "UNPAID", "UNPAID");
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [WHOLE]: `event ${event?.["id"]} moves it from SHIPPED and UNPAID, but it was CONFIRMED and UNPAID`,
      });
    });

    it("one in which the payment jumps", async () => {
      const { id } = await anOrder();
      const [event] = await query(insertEvent, id, "CONFIRMED", "CONFIRMED", "PENDING", "UNPAID");
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [WHOLE]: `event ${event?.["id"]} moves it from CONFIRMED and PENDING, but it was CONFIRMED and UNPAID`,
      });
    });

    it("a move that is not in the table", async () => {
      const { id } = await anOrder();
      await query("UPDATE orders SET status = 'DELIVERED' WHERE id = $1", id);
      const [event] = await query(insertEvent, id, "CONFIRMED", "DELIVERED", "UNPAID", "UNPAID");
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [LEGAL]: `event ${event?.["id"]} moves it from CONFIRMED to DELIVERED`,
      });
    });

    it("an order that was placed as something else than an order can be", async () => {
      const { id } = await anOrder();
      await query("UPDATE orders SET status = 'SHIPPED' WHERE id = $1", id);
      await query("UPDATE order_events SET to_status = 'SHIPPED' WHERE order_id = $1", id);
      expect((await faultsOf(`order ${id}`))[LEGAL]).to.match(/^event \d+ moves it from nothing to SHIPPED$/);
    });

    it("an order that stands elsewhere", async () => {
      const { id } = await anOrder();
      await query("UPDATE orders SET status = 'SHIPPED', payment_state = 'REFUNDED' WHERE id = $1", id);
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [ENDS]: "it is SHIPPED and REFUNDED, but its history ends at CONFIRMED and UNPAID",
        "An order is refunded when its payment was given back whole, and only then":
          "it is REFUNDED, and of the 0 that it paid 0 were refunded",
      });
    });

    it("an order without any", async () => {
      const { id } = await anOrder();
      await query("DELETE FROM order_events WHERE order_id = $1", id);
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [ENDS]: "it is CONFIRMED and UNPAID, but its history ends at nothing and nothing",
      });
    });
  });

  describe("of payments", () => {
    const ATTEMPT = "Every payment under way has an attempt";
    const PENDING = "Every order that is being paid has one payment under way";
    const PAID = "Every paid order has one completed payment, of its total";
    const ONE = "No order has more than one payment that is under way or completed";

    it("one under way that nobody was asked for", async () => {
      const id = await insertPayment(null, "PENDING", 0);
      expect((await faultsOf(`payment ${id}`))[ATTEMPT]).to.match(/^it is PENDING since \S+ \S+ without an attempt$/);
      const asked = await insertPayment(null, "PENDING");
      const failed = await insertPayment(null, "FAILED", 0);
      for (const good of [asked, failed]) expect(await faultsOf(`payment ${good}`)).to.deep.equal({});
    });

    for (const payments of [0, 2]) {
      it(`an order that is being paid by ${payments} payments`, async () => {
        const { id } = await anOrder();
        await query("UPDATE orders SET payment_state = 'PENDING' WHERE id = $1", id);
        await query("UPDATE order_events SET to_payment_state = 'PENDING' WHERE order_id = $1", id);
        for (let i = 0; i < payments; i++) await insertPayment(id, "PENDING");
        await insertPayment(id, "FAILED");
        expect(await faultsOf(`order ${id}`)).to.deep.equal({
          [PENDING]: `its payment is PENDING, in ${payments} payments`,
          ...(payments > 1 && { [ONE]: `it has ${payments} such payments` }),
        });
      });
    }

    for (const [what, text, paid] of [
      ["without a completed payment", "UPDATE payments SET status = 'FAILED' WHERE order_id = $1", "nothing"],
      ["with too little", "UPDATE payments SET amount = 29.99 WHERE order_id = $1", "29.990 USD"],
      ["in another currency", "UPDATE payments SET currency = 'EUR' WHERE order_id = $1", "30.000 EUR"],
    ] as const) {
      it(`an order that was paid ${what}`, async () => {
        const { id } = await aPaidOrder();
        await query(text, id);
        expect(await faultsOf(`order ${id}`)).to.deep.equal({
          [PAID]: `its total is 30.000 USD, and it was paid ${paid}`,
        });
      });
    }

    it("an order that was paid twice", async () => {
      const { id } = await aPaidOrder();
      await insertPayment(id, "COMPLETED");
      expect(await faultsOf(`order ${id}`)).to.deep.equal({
        [PAID]: "its total is 30.000 USD, and it was paid 30.000 USD and 30.000 USD",
        [ONE]: "it has 2 such payments",
      });
    });
  });

  describe("of addresses", () => {
    const RULE = "Every account with addresses has one primary address";

    for (const primary of [0, 2]) {
      it(`an account with ${primary} primary ones`, async () => {
        const { id, users } = await newCustomer(server);
        for (const street of ["1 Main St", "2 Main St"]) {
          await users.createAddress({ address: { ...anAddress, street } });
        }
        await query("UPDATE addresses SET is_primary = $2 WHERE user_id = $1", id, primary > 0);
        expect(await faultsOf(`account ${id}`)).to.deep.equal({ [RULE]: `of its 2 addresses ${primary} are primary` });
      });
    }
  });
});

describe("npm run check", function () {
  this.timeout(120_000);
  const rules = invariants.filter(({ remark }) => remark !== true).map(({ rule }) => rule);
  const { start, runService, newFolder } = usePrograms();
  let database: TestDatabase;

  beforeEach(async () => {
    database = await createDatabase();
  });
  afterEach(() => database.drop());

  const run = (settings: Record<string, string> = {}, args: readonly string[] = []): Promise<Ended> =>
    start(PROGRAM, { args, settings: { DATABASE_URL: database.url, ...settings } }).ended;

  const insertProducts = (count: number) =>
    sql(
      database,
      `INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
       SELECT gen_random_uuid(), 'Widget', 'USD', 1, 1, true, now(), now() FROM generate_series(1, $1)`,
      [count],
    );

  it("says that all is well, of what and as of when, and ends with 0", async () => {
    const { code, stdout, stderr } = await run();
    expect({ code, stderr }).to.deep.equal({ code: 0, stderr: "" });
    const lines = stdout.trimEnd().split("\n");
    expect(lines[0]).to.match(
      /^Checked the database \S+ at \S+, as of \S+Z: 0 users, 0 products, 0 orders, 0 payments, 0 refunds, 0 ledger entries\.$/,
    );
    expect(lines.slice(1, -2)).to.deep.equal(rules.map((rule) => `✔ ${rule}.`));
    expect(lines.at(-2)).to.equal(`All ${rules.length} rules hold.`);
    expect(lines.at(-1)).to.match(
      /^Charges and refunds since \d{4}-\d\d-\d\d or under way, for gateways to tell of: 0\.$/,
    );
  });

  it("lists the first 20 breaches of a rule, counts the others, and ends with 1", async () => {
    await insertProducts(1_023);
    const { code, stdout, stderr } = await run();
    expect({ code, stderr }).to.deep.equal({ code: 1, stderr: "" });
    expect(stdout).to.contain("✘ The stock of every product is the sum of its journal: not so for 1,023.\n");
    expect(stdout.match(/^ {4}product [\w-]+: Widget: 1 in stock, but its journal makes 0$/gm)).to.have.length(20);
    expect(stdout).to.contain("    and 1,003 more\n").and.contain("✔ No stock is negative.");
    expect(stdout).to.contain(`\n${rules.length - 1} of ${rules.length} rules hold.\n`);
  });

  it("explains itself when asked, and when an argument is wrong", async () => {
    expect(await run({}, ["--help"])).to.deep.include({ code: 0, stderr: "" });
    for (const argument of ["--fix", "everything", "--since=2026-02-30", "--since=2999-01-01"]) {
      const { code, stderr } = await run({}, [argument]);
      expect(code).to.equal(1);
      expect(stderr).to.contain(argument.split("=").at(-1)).and.contain("Usage: npm run check");
    }
  });

  it("says that the database cannot be reached", async () => {
    const { code, stdout, stderr } = await run({ DATABASE_URL: "postgres://shop:hunter2-hunter2@127.0.0.1:1/shop" });
    expect({ code, stdout }).to.deep.equal({ code: 1, stdout: "" });
    expect(stderr).to.match(/^DATABASE_URL: nothing listens at 127\.0\.0\.1:1: [^\n]+\n$/);
  });

  it("says that the database lacks tables, and makes none", async () => {
    await sql(database, "DROP SCHEMA public CASCADE");
    await sql(database, "CREATE SCHEMA public");
    const { code, stdout, stderr } = await run();
    expect({ code, stdout }).to.deep.equal({ code: 1, stdout: "" });
    expect(stderr).to.match(/^DATABASE_URL: database "\w+" at \S+ lacks tables of this version: [^\n]+\n$/);
    expect(await sql(database, "SELECT 1 FROM pg_tables WHERE schemaname = 'public'")).to.deep.equal([]);
  });

  it("checks the embedded database, whether or not the service runs on it, and leaves nothing running", async () => {
    const settings = { DATABASE_URL: "", DATA_DIR: await newFolder() };
    const service = await runService(settings);
    const beside = await run(settings);
    expect(beside).to.include({ code: 0, stderr: "" });
    expect(beside.stdout)
      .to.contain(`Checked the embedded database of ${settings.DATA_DIR}`)
      .and.contain("24 products");
    expect(await service.stop()).to.include({ code: 0, stderr: "" });

    expect(await run(settings)).to.include({ code: 0, stderr: "" });
    expect(await processesNaming(settings.DATA_DIR), "PostgreSQL is left").to.deep.equal([]);

    // It cannot be finished before it is stopped.
    await appendFile(join(settings.DATA_DIR, "postgres/data/postgresql.auto.conf"), "pre_auth_delay = 60\n");
    const stopped = start(PROGRAM, { settings });
    await until("PostgreSQL is being started", async () => (await processesNaming(`-D ${settings.DATA_DIR}`))[0]);
    expect((await stopped.stop()).code).to.equal(1);
    await until("PostgreSQL has gone", async () =>
      (await processesNaming(settings.DATA_DIR)).length === 0 ? true : undefined,
    );
  });
});

describe("npm run check, beside the gateways", function () {
  this.timeout(120_000);
  const server = useServer();
  const { start, newFolder } = usePrograms();
  let customer: Person;
  before(async () => {
    customer = await newCustomer(server);
    await pay();
  });

  const pay = async (token = "tok_visa") => {
    const request = { requestId: randomUUID(), amount: money("30"), paymentMethod: card(token) };
    return present((await customer.payments.processPayment(request)).payment);
  };
  const run = async (args: readonly string[] = [], settings: Record<string, string> = {}) => {
    const sandbox = { SANDBOX_PORT: String(server.sandbox.port), DATA_DIR: await newFolder() };
    const { code, stdout, stderr } = await start(PROGRAM, {
      args,
      settings: { DATABASE_URL: server.database.url, ...sandbox, ...settings },
    }).ended;
    return { code, stderr, lines: stdout.trimEnd().split("\n") };
  };

  it("ends with 0 where they say the same, with 1 and a line for each difference where they do not", async () => {
    const agreeing = await run(["--since", "2020-01-01"]);
    expect(agreeing).to.deep.include({ code: 0, stderr: "" });
    expect(agreeing.lines.slice(-2)).to.deep.equal([
      "Charges and refunds since 2020-01-01 or under way, for gateways to tell of: 1.",
      "✔ Charges and refunds by sandbox-primary: 1 agree.",
    ]);

    const { id } = await pay("tok_unreachable");
    const [attempt] = await sql<{ id: string }>(
      server.database,
      "SELECT id FROM payment_attempts WHERE payment_id = $1 AND number = 1",
      [id],
    );
    const reference = present(attempt).id;
    const amount = { currency: "USD", minor: 3_000n };
    await server.deps.gateways.primary.charge(
      { reference, amount, paymentMethodToken: "tok_visa" },
      { timeoutMs: 5_000 },
    );
    const { code, stderr, lines } = await run();
    expect({ code, stderr }).to.deep.equal({ code: 1, stderr: "" });
    expect(lines.slice(-3)).to.deep.equal([
      `✘ payment ${id}: charge ${reference} at sandbox-primary: our books say never executed; the gateway says captured, 30.00 USD.`,
      "✘ Charges and refunds by sandbox-primary: 1 agree, 1 disagree.",
      "✔ Charges and refunds by sandbox-backup: 1 agree.",
    ]);
  });

  it("ends with 2 where nothing is known to be wrong, but a gateway cannot be asked, and does not ask without need", async () => {
    const unanswered = await run([], { SANDBOX_PORT: "0" });
    expect(unanswered.code).to.equal(2);
    expect(unanswered.lines.find((line) => line.startsWith("? sandbox-primary"))).to.match(
      /^\? sandbox-primary did not answer for \d+: No sandbox runs at port 0 \(SANDBOX_PORT\), [^\n]+\.$/,
    );
    const alone = await run(["--no-gateways"], { SANDBOX_PORT: "0" });
    expect(alone).to.deep.include({ code: 0, stderr: "" });
    expect(alone.lines.at(-1)).to.match(/^All \d+ rules hold\.$/);
  });
});
