import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { type Order, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { expireOrders } from "../../src/orders/expire-orders.ts";
import type { OrderStatus as Status } from "../../src/orders/order.ts";
import { money, newProduct, orderOf, type Person, paymentOf, present } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import type { TestServer } from "../support/server.ts";
import { signedInAs } from "./buyers.ts";
import { type Answer, type Command, LONGER_THAN_RESERVED_MS, newProducts } from "./shop-model.ts";

/** A card that the sandbox declines. */
const DECLINED = "tok_declined";

/** Who calls in a run. */
interface People {
  readonly admin: Person;
  readonly customers: readonly Person[];
}

interface Placed {
  readonly id: string;
  readonly customer: number;
  readonly request: ReturnType<typeof orderOf>;
}

/** One run's products and orders at a real server, which carries commands out by its clients. */
export class Shop {
  readonly #server: TestServer;
  #people: People;
  readonly productIds: readonly string[];
  readonly orders: Placed[] = [];
  /** Units of each product that adjustments have added. */
  readonly adjusted: number[];
  /** The orders that were answered to each request. */
  readonly answered = new Map<string, Set<string>>();

  private constructor(server: TestServer, people: People, productIds: readonly string[]) {
    this.#server = server;
    this.#people = people;
    this.productIds = productIds;
    this.adjusted = productIds.map(() => 0);
  }

  /** Opens a shop with the products of the model. */
  static async open(server: TestServer, people: People): Promise<Shop> {
    const fresh = await signIn(server, people);
    const ids: string[] = [];
    for (const { stock, cents, currency } of newProducts()) {
      const product = await newProduct(fresh.admin, { stock, price: (cents / 100).toFixed(2), currency });
      ids.push(product.id);
    }
    return new Shop(server, fresh, ids);
  }

  /** Carries a command out. @throws what is neither an answer nor a refusal. */
  async answer(command: Command): Promise<Answer> {
    const { admin } = this.#people;
    switch (command.kind) {
      case "create":
        return this.#create(command);
      case "cancel":
        return this.#move(command.order, ({ id: orderId, customer }) => {
          const other = this.#customer(customer + 1);
          const callers = { owner: this.#customer(customer), another: other, admin };
          return callers[command.by].orders.cancelOrder({ orderId });
        });
      case "ship":
        return this.#move(command.order, ({ id: orderId }) =>
          admin.orders.shipOrder({ orderId, trackingNumber: "1Z" }),
        );
      case "batch":
        return this.#batch(command.moves);
      case "adjust":
        return this.#adjust(command);
      case "price": {
        const price = money((command.cents / 100).toFixed(2), present(newProducts()[command.product]).currency);
        return this.#update({ id: this.#productId(command.product), price });
      }
      case "activate":
        return this.#update({ id: this.#productId(command.product), active: command.active });
      case "pay":
        return this.#pay(command);
      case "wait":
        this.#server.clock.advance(LONGER_THAN_RESERVED_MS);
        // Tokens do not last for many waits.
        this.#people = await signIn(this.#server, this.#people);
        return { outcome: "ok" };
      case "expire":
        while (await expireOrders(this.#server.deps));
        return { outcome: "ok" };
    }
  }

  /** The orders as they are now, and the stock of each product, as clients are told. */
  async look(): Promise<{ orders: Order[]; stocks: number[] }> {
    const { admin } = this.#people;
    const orders = await Promise.all(this.orders.map(({ id: orderId }) => admin.orders.getOrder({ orderId })));
    const products = await Promise.all(this.productIds.map((productId) => admin.catalog.getProduct({ productId })));
    return {
      orders: orders.map(({ order }) => present(order)),
      stocks: products.map(({ product }) => present(present(product).stockQuantity)),
    };
  }

  async #create({
    customer,
    lines,
    awaitPayment,
    request: kind,
    earlier,
  }: Command & { kind: "create" }): Promise<Answer> {
    const before = kind === "new" ? undefined : this.#order(earlier);
    const pairs = lines.map(({ product, quantity }) => [{ id: this.#productId(product) }, quantity] as const);
    const fresh = orderOf(pairs, { awaitPayment });
    const changed = { ...fresh, requestId: before?.request.requestId ?? fresh.requestId, notes: "another order" };
    const request = before === undefined ? fresh : kind === "repeated" ? before.request : changed;
    const caller = before?.customer ?? customer;
    return answerOf(async () => {
      const order = present((await this.#customer(caller).orders.createOrder(request)).order);
      const ids = this.answered.get(request.requestId) ?? new Set();
      this.answered.set(request.requestId, ids.add(order.id));
      if (before === undefined) this.orders.push({ id: order.id, customer: caller, request });
      return { order: this.#shown(order) };
    });
  }

  #move(number: number, call: (order: Placed) => Promise<{ order?: Order | undefined }>): Promise<Answer> {
    const placed = this.#order(number);
    if (placed === undefined) {
      const { admin } = this.#people;
      return answerOf(() => nothing(admin.orders.cancelOrder({ orderId: randomUUID() })));
    }
    return answerOf(async () => ({ order: this.#shown(present((await call(placed)).order)) }));
  }

  #batch(moves: readonly { readonly order: number; readonly to: Status }[]): Promise<Answer> {
    const updates = moves.map(({ order, to }) => ({
      orderId: this.#order(order)?.id ?? randomUUID(),
      status: OrderStatus[to],
    }));
    return answerOf(async () => {
      const { orderIds, failures } = await this.#people.admin.orders.batchUpdateOrderStatuses({ updates });
      return {
        moved: orderIds.map((id) => this.#numberOf(id)),
        failed: failures.map(({ orderId, reason }) => [this.#numberOf(orderId), reason] as const),
      };
    });
  }

  async #adjust({ product, delta, twice }: Command & { kind: "adjust" }): Promise<Answer> {
    const request = { requestId: randomUUID(), productId: this.#productId(product), delta, reason: "Counted" };
    const adjust = () =>
      answerOf(async () => {
        const answer = await this.#people.admin.catalog.adjustStock(request);
        return { stock: present(present(answer.product).stockQuantity) };
      });
    const answers = await Promise.all(twice ? [adjust(), adjust()] : [adjust()]);
    const made = answers.find(({ outcome }) => outcome === "ok");
    if (made !== undefined) this.adjusted[product] = (this.adjusted[product] ?? 0) + delta;
    return made ?? present(answers[0]);
  }

  #update(product: { id: string; price?: ReturnType<typeof money>; active?: boolean }): Promise<Answer> {
    return answerOf(() => nothing(this.#people.admin.catalog.updateProduct({ product })));
  }

  async #pay({ order: number, declined }: Command & { kind: "pay" }): Promise<Answer> {
    const placed = this.#order(number);
    if (placed === undefined) {
      const request = { requestId: randomUUID(), orderId: randomUUID(), amount: money("1.00") };
      const { payments } = this.#customer(0);
      const paymentMethod = { method: { case: "card" as const, value: { token: "tok_visa" } } };
      return answerOf(() => nothing(payments.processPayment({ ...request, paymentMethod })));
    }
    const { orders, payments } = this.#customer(placed.customer);
    return answerOf(async () => {
      const order = present((await orders.getOrder({ orderId: placed.id })).order);
      return nothing(payments.processPayment(paymentOf(order, {}, declined ? DECLINED : "tok_visa")));
    });
  }

  /** Also holds that the order's total is exactly the sum of its lines. */
  #shown({ id, status, totalAmount, items }: Order): NonNullable<Answer["order"]> {
    const cents = centsOf(totalAmount);
    expect(items.reduce((sum, { lineTotal }) => sum + centsOf(lineTotal), 0)).to.equal(cents);
    expect(items.map(({ lineTotal }) => centsOf(lineTotal))).to.deep.equal(
      items.map(({ unitPrice, quantity }) => centsOf(unitPrice) * quantity),
    );
    return { number: this.#numberOf(id), status: OrderStatus[status] as Status, cents };
  }

  #order(number: number): Placed | undefined {
    return this.orders[number % this.orders.length];
  }

  #numberOf(id: string): number {
    return this.orders.findIndex((order) => order.id === id);
  }

  #productId(number: number): string {
    return present(this.productIds[number]);
  }

  #customer(number: number): Person {
    const { customers } = this.#people;
    return present(customers[number % customers.length]);
  }
}

/** Everybody with a token that is good from now on. */
async function signIn(server: TestServer, { admin, customers }: People): Promise<People> {
  return {
    admin: await signedInAs(server, admin, "ADMIN"),
    customers: await Promise.all(customers.map((customer) => signedInAs(server, customer))),
  };
}

/** For calls of whose answers there is nothing to compare. */
async function nothing(call: Promise<unknown>): Promise<object> {
  await call;
  return {};
}

/** What a call is told. @throws what is no refusal. */
async function answerOf(call: () => Promise<Omit<Answer, "outcome">>): Promise<Answer> {
  try {
    return { outcome: "ok", ...(await call()) };
  } catch (error) {
    if (!(error instanceof Error) || error.name !== "ConnectError") throw error;
    return { outcome: (await refusalOf(Promise.reject(error))).reason };
  }
}

function centsOf(amount: { units: bigint; nanos: number } | undefined): number {
  const { units, nanos } = present(amount);
  return Number(units) * 100 + nanos / 10_000_000;
}
