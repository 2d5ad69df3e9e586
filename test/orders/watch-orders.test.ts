import { expect } from "chai";
import { Transaction } from "sequelize";
import sinon from "sinon";
import { type Order, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import type { WatchOrdersResponse } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { Role } from "../../gen/tradepost/user/v1/user_pb.js";
import { Listener } from "../../src/db/listen.ts";
import { inTransaction } from "../../src/db/transaction.ts";
import { DomainError } from "../../src/errors.ts";
import { OrderFeed } from "../../src/orders/order-feed.ts";
import { whileGood } from "../../src/server/interceptors/while-good.ts";
import { sql } from "../support/database.ts";
import {
  newAdmin,
  newCustomer,
  newOrder,
  newProduct,
  PASSWORD,
  type Person,
  paymentOf,
  present,
} from "../support/factories.ts";
import { until } from "../support/process.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";
import { expectWithin } from "../support/timing.ts";

/** Reads a watch message by message. */
class Reader {
  readonly #leave = new AbortController();
  readonly #messages: AsyncIterator<WatchOrdersResponse>;
  cursor = "";

  constructor(person: Person, request: { cursor?: string; customerId?: string } = {}) {
    const options = { signal: this.#leave.signal, timeoutMs: 20_000 };
    this.#messages = person.orders.watchOrders(request, options)[Symbol.asyncIterator]();
  }

  async next(): Promise<Order> {
    for (;;) {
      const { value, done } = await this.#messages.next();
      if (done === true) throw new Error("the watch ended without an error");
      this.cursor = value.cursor;
      if (value.order !== undefined) return value.order;
    }
  }

  leave(): void {
    this.#leave.abort();
  }
}

/** Places orders until a reader has seen one, and so is surely there. */
async function untilThere(reader: Reader, place: () => Promise<unknown>): Promise<void> {
  let seen = false;
  const first = reader.next().then(() => {
    seen = true;
  });
  while (!seen) {
    await place();
    await Promise.race([first, new Promise((resolve) => setTimeout(resolve, 100))]);
  }
  await first;
}

describe("WatchOrders", () => {
  const server = useServer();
  let admin: Person;
  let ada: Person;
  let ben: Person;
  const readers: Reader[] = [];
  before(async () => {
    [admin, ada, ben] = await Promise.all([newAdmin(server), newCustomer(server), newCustomer(server)]);
  });
  afterEach(() => {
    for (const reader of readers.splice(0)) reader.leave();
  });

  const watch = (...args: ConstructorParameters<typeof Reader>) => {
    const reader = new Reader(...args);
    readers.push(reader);
    return reader;
  };
  const watching = async (...args: ConstructorParameters<typeof Reader>) => {
    const reader = watch(...args);
    await untilThere(reader, () => placeFor(ada));
    return reader;
  };
  const placeFor = async (customer: Person, extra = {}) => newOrder(customer, [[await newProduct(admin), 1]], extra);
  /** The next change of one order, whatever else comes before it. */
  const nextOf = async (reader: Reader, id: string) => {
    for (;;) {
      const order = await reader.next();
      if (order.id === id) return order;
    }
  };

  /** Whose orders a reader is told of, up to that order. */
  const customersUntil = async (reader: Reader, id: string) => {
    const seen: Order[] = [];
    while (seen.at(-1)?.id !== id) seen.push(await reader.next());
    return [...new Set(seen.map(({ customerId }) => customerId))];
  };

  it("tells of an order's whole way as it happens", async () => {
    const reader = await watching(ada);
    const { id } = await placeFor(ada, { awaitPayment: true });
    expect((await nextOf(reader, id)).status).to.equal(OrderStatus.PENDING);
    const order = present((await ada.orders.getOrder({ orderId: id })).order);
    await ada.payments.processPayment(paymentOf(order));
    let status = OrderStatus.PENDING;
    while (status === OrderStatus.PENDING) ({ status } = await nextOf(reader, id));
    expect(status).to.equal(OrderStatus.CONFIRMED);
    await admin.orders.shipOrder({ orderId: id, trackingNumber: "1" });
    while (status !== OrderStatus.SHIPPED) ({ status } = await nextOf(reader, id));
  });

  it("shows a customer their own orders only, an admin everybody's or one customer's", async () => {
    const own = await watching(ada);
    const all = await watching(admin);
    const bens = watch(admin, { customerId: ben.id });
    await untilThere(bens, () => placeFor(ben));
    const bensOrder = await placeFor(ben);
    await nextOf(all, bensOrder.id);
    const adasOrder = await placeFor(ada);
    expect(await customersUntil(own, adasOrder.id)).to.deep.equal([ada.id]);
    const bensLast = await placeFor(ben);
    expect(await customersUntil(bens, bensLast.id)).to.deep.equal([ben.id]);
    expect((await refusalOf(watch(ada, { customerId: ben.id }).next())).reason).to.equal("ADMIN_REQUIRED");
  });

  it("resumes after its cursor without a gap or a repetition", async () => {
    const reader = await watching(admin);
    const before = await placeFor(ada);
    await nextOf(reader, before.id);
    reader.leave();
    const missed = [await placeFor(ada), await placeFor(ben), await placeFor(ada)];
    const resumed = watch(admin, { cursor: reader.cursor });
    const seen = [await resumed.next(), await resumed.next(), await resumed.next()];
    expect(seen.map(({ id }) => id)).to.deep.equal(missed.map(({ id }) => id));
    const own = watch(ada, { cursor: reader.cursor });
    expect([(await own.next()).id, (await own.next()).id]).to.deep.equal([missed[0]?.id, missed[2]?.id]);
    const last = await placeFor(ada);
    expect((await resumed.next()).id).to.equal(last.id);
  });

  it("misses nothing when transactions commit in another order than they began", async () => {
    const reader = await watching(admin);
    const slow = await placeFor(ada);
    const quick = await placeFor(ada);
    await nextOf(reader, quick.id);

    // The first transaction writes its event first and commits last.
    const { sequelize } = server.deps.db;
    const options = { isolationLevel: Transaction.ISOLATION_LEVELS.READ_COMMITTED };
    const held = await sequelize.transaction(options);
    await server.deps.orders.setPaymentState(slow.id, "PENDING", new Date(), held);
    await admin.orders.shipOrder({ orderId: quick.id, trackingNumber: "1" });
    await held.commit();

    const changed = new Set<string>();
    while (!changed.has(slow.id) || !changed.has(quick.id)) changed.add((await reader.next()).id);
    await sql(server.database, "UPDATE orders SET payment_state = 'UNPAID' WHERE id = $1", [slow.id]);
  });

  it("shows two hundred orders that are placed at once, each once", async () => {
    const reader = await watching(admin);
    const product = await newProduct(admin, { stock: 1_000 });
    const placed = await Promise.all(Array.from({ length: 200 }, () => newOrder(ben, [[product, 1]])));
    const wanted = new Set(placed.map(({ id }) => id));
    const seen: string[] = [];
    while (seen.length < 200) {
      const { id } = await reader.next();
      if (wanted.has(id)) seen.push(id);
    }
    expect(new Set(seen).size).to.equal(200);
  });

  it("begins at a change that is there, so that no number that a crash gives out again is before it", async () => {
    await placeFor(ada);
    const { xact, id } = await server.deps.orders.feedPosition();
    const changes = await sql(server.database, "SELECT FROM order_events WHERE xact_id = $1::xid8 AND id = $2", [
      String(xact),
      String(id),
    ]);
    expect(changes).to.have.length(1);
  });

  it("refuses a cursor that is not its own", async () => {
    expect(await refusalOf(watch(ada, { cursor: "AAAA" }).next())).to.include({
      code: "InvalidArgument",
      reason: "CURSOR_INVALID",
    });
  });

  it("tells a reader that does not keep up to resume, and bounds what waits for it", async function () {
    this.timeout(60_000);
    const leave = new AbortController();
    const slow = server.deps.orderFeed.watch(undefined, undefined, leave.signal);
    const first = slow.next();
    const product = await newProduct(admin, { stock: 10_000 });
    await Promise.all(Array.from({ length: 1_200 }, () => newOrder(ben, [[product, 1]])));
    expect((await first).value?.order).not.to.equal(undefined);
    // It reads nothing meanwhile. The one that reads beside it shows when all has been told.
    const quick = watch(admin);
    const probe = quick.next();
    const { id } = await placeFor(ada);
    if ((await probe).id !== id) await nextOf(quick, id);
    const rest = async () => {
      for (;;) await slow.next();
    };
    const error = await rest().catch((reason) => reason);
    expect(error).to.include({ kind: "exhausted", reason: "STREAM_TOO_SLOW" });
    leave.abort();
  });
});

describe("WatchOrders of a caller whose token is no longer good", () => {
  const server = useServer();
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });

  const watching = async (person: Person) => {
    const reader = new Reader(person);
    await untilThere(reader, async () => newOrder(person, [[await newProduct(admin), 1]]));
    return reader;
  };

  /** What the reader is told in the end, whatever comes before it. */
  const endOf = (reader: Reader) =>
    refusalOf(
      (async () => {
        for (;;) await reader.next();
      })(),
    );

  it("ends within a second of a logout, although nothing happens", async () => {
    await expectWithin(1_000, async () => {
      const ada = await newCustomer(server);
      const ended = endOf(await watching(ada));
      await ada.auth.logout({});
      const loggedOutAtMs = performance.now();
      expect(await ended).to.include({ code: "Unauthenticated", reason: "TOKEN_INVALID" });
      return performance.now() - loggedOutAtMs;
    });
  });

  it("shows no change after the account's role was taken", async () => {
    const former = await newAdmin(server);
    const reader = await watching(former);
    const user = { id: former.id, role: Role.USER };
    await admin.users.updateUser({ user, updateMask: { paths: ["role"] } });
    const seen = refusalOf(
      (async () => {
        for (;;) expect((await reader.next()).customerId).to.equal(former.id);
      })(),
    );
    await newOrder(await newCustomer(server), [[await newProduct(admin), 1]]);
    expect(await seen).to.include({ reason: "TOKEN_INVALID" });
  });

  it("ends when the token expires, and its cursor resumes with another token without a gap", async () => {
    const ada = await newCustomer(server);
    const reader = await watching(ada);
    const ended = endOf(reader);
    server.clock.advance(15 * 60_000);
    expect(await ended).to.include({ reason: "TOKEN_INVALID" });
    const { accessToken } = await server.as().auth.login({ email: ada.email, password: PASSWORD });
    const again = { ...ada, ...server.as(accessToken) };
    const { id } = await newOrder(again, [[await newProduct(await newAdmin(server)), 1]]);
    const resumed = new Reader(again, { cursor: reader.cursor });
    while ((await resumed.next()).id !== id);
    resumed.leave();
  });

  const unknown = new DomainError("unavailable", "DATABASE_UNAVAILABLE", "away");

  it("is told at once that the stream has ended, also while it cannot be known", async () => {
    // biome-ignore lint/correctness/useYield: it ends before there is anything to tell.
    async function* ending(): AsyncGenerator<string> {
      throw new DomainError("unavailable", "SERVER_DRAINING", "The server is stopping");
    }
    const verify = sinon.stub().rejects(unknown);
    const ended = whileGood(ending(), verify, new AbortController().signal).next();
    expect(await ended.catch((error: unknown) => error)).to.include({ reason: "SERVER_DRAINING" });
  });

  it("is told nothing while it cannot be known, and then everything", async () => {
    async function* orders() {
      yield* ["first", "second"];
    }
    const verify = sinon.stub().resolves();
    verify.onCall(0).rejects(unknown).onCall(2).rejects(unknown);
    const told: string[] = [];
    for await (const order of whileGood(orders(), verify, new AbortController().signal)) told.push(order);
    expect(told).to.deep.equal(["first", "second"]);
    expect(verify.callCount).to.equal(4);
  });
});

describe("two that begin to watch at once", () => {
  const server = useServer();

  it("take nothing from the one that has begun while the other still looks where to begin", async () => {
    const [admin, ada] = await Promise.all([newAdmin(server), newCustomer(server)]);
    const { id } = await newOrder(ada, [[await newProduct(admin), 1]]);
    const { orders, orderFeed, db } = server.deps;
    await until("both begin after the order was placed", async () =>
      (await orders.readChanges({ xact: 0n, id: 0n }, 1, undefined)).length === 1 ? true : undefined,
    );
    const look = orders.feedPosition.bind(orders);
    const change = Promise.withResolvers<void>();
    const looks = sinon.stub(orders, "feedPosition").callThrough();
    looks.onFirstCall().callsFake(async () => {
      await change.promise;
      return look();
    });
    const leave = new AbortController();
    const [late, early] = [1, 2].map(() => orderFeed.watch(undefined, undefined, leave.signal).next());
    await looks.secondCall.returnValue;
    // As another replica does it: nobody here is told at once.
    orders.onChange = () => {};
    await inTransaction(db, (transaction) => orders.setPaymentState(id, "PENDING", new Date(), transaction));
    change.resolve();
    await looks.firstCall.returnValue;
    expect((await early)?.value?.order?.id).to.equal(id);
    leave.abort();
    await late;
    looks.restore();
  });
});

describe("WatchOrders of a server that stops", () => {
  const server = useServer();

  it("ends with UNAVAILABLE, and a hint to resume", async () => {
    const ada = await newCustomer(server);
    const ended = refusalOf(new Reader(ada).next());
    // The call may still be on its way: whether it comes before or after, it is told the same.
    server.deps.orderFeed.close();
    expect(await ended).to.include({ code: "Unavailable", reason: "SERVER_DRAINING" });
  });

  it("ends, too, where it still looks where to begin", async () => {
    const { orders, log } = server.deps;
    const listener = new Listener({ url: server.database.url, log });
    const feed = new OrderFeed({ store: orders, listener, log });
    const watching = feed.watch(undefined, undefined, new AbortController().signal).next();
    feed.close();
    expect(await watching.catch((error: unknown) => error)).to.include({ reason: "SERVER_DRAINING" });
    await listener.close();
  });
});
