import { timestampDate } from "@bufbuild/protobuf/wkt";
import { expect } from "chai";
import { type Order, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { sql } from "../support/database.ts";
import { newAdmin, newCustomer, newOrder, newProduct, type Person, present, text } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("ListOrders", () => {
  const server = useServer();
  let admin: Person;
  let ada: Person;
  let ben: Person;
  const placed: Order[] = [];
  before(async () => {
    [admin, ada, ben] = await Promise.all([newAdmin(server), newCustomer(server), newCustomer(server)]);
    const product = await newProduct(admin);
    const other = await newProduct(admin);
    for (let i = 0; i < 6; i++) {
      placed.push(
        await newOrder(
          i % 3 === 2 ? ben : ada,
          [
            [product, 1],
            [other, 2],
          ],
          { awaitPayment: i % 2 === 0 },
        ),
      );
    }
  });

  const ids = (orders: readonly Order[]) => orders.map(({ id }) => id);
  const newestFirst = (orders: readonly Order[]) => ids(orders).toReversed();

  it("shows a customer their own orders with items, newest first", async () => {
    const { orders } = await ada.orders.listOrders({});
    expect(ids(orders)).to.deep.equal(newestFirst(placed.filter(({ customerId }) => customerId === ada.id)));
    expect(orders[0]).to.deep.equal(placed[4]);
  });

  it("shows an admin everybody's, or one customer's", async () => {
    expect(ids((await admin.orders.listOrders({})).orders)).to.deep.equal(newestFirst(placed));
    const { orders } = await admin.orders.listOrders({ customerId: ben.id });
    expect(ids(orders)).to.deep.equal(newestFirst(placed.filter(({ customerId }) => customerId === ben.id)));
    expect((await refusalOf(ada.orders.listOrders({ customerId: ben.id }))).reason).to.equal("ADMIN_REQUIRED");
  });

  it("filters by statuses, for admins and customers alike", async () => {
    const pending = placed.filter(({ status }) => status === OrderStatus.PENDING);
    const statuses = [OrderStatus.PENDING, OrderStatus.SHIPPED, OrderStatus.PENDING];
    expect(ids((await admin.orders.listOrders({ statuses })).orders)).to.deep.equal(newestFirst(pending));
    const own = pending.filter(({ customerId }) => customerId === ada.id);
    expect(ids((await ada.orders.listOrders({ statuses })).orders)).to.deep.equal(newestFirst(own));
    expect((await refusalOf(ada.orders.listOrders({ statuses: [OrderStatus.UNSPECIFIED] }))).reasons).to.deep.equal({
      "statuses[0]": "VALUE_UNDEFINED",
    });
  });

  it("filters by time, both bounds inclusive", async () => {
    const [second, fourth] = [present(placed[1]?.orderTime), present(placed[3]?.orderTime)];
    const { orders } = await admin.orders.listOrders({ orderTimeFrom: second, orderTimeTo: fourth });
    expect(ids(orders)).to.deep.equal(newestFirst(placed.slice(1, 4)));
    const reversed = admin.orders.listOrders({ orderTimeFrom: fourth, orderTimeTo: second });
    expect((await refusalOf(reversed)).reasons).to.deep.equal({ order_time_from: "RANGE_INVALID" });
  });

  for (const [name, request] of [
    ["all", { statuses: [] }],
    ["filtered", { statuses: [OrderStatus.PENDING, OrderStatus.CONFIRMED] }],
  ] as [string, { statuses: OrderStatus[] }][]) {
    it(`pages through ${name} without a gap or a repetition, also where orders have one time`, async () => {
      await sql(server.database, "UPDATE orders SET order_time = date_trunc('minute', order_time)");
      const seen: string[] = [];
      let pageToken = "";
      do {
        const page = await admin.orders.listOrders({ ...request, pageSize: 2, pageToken });
        seen.push(...ids(page.orders));
        pageToken = page.nextPageToken;
      } while (pageToken !== "");
      expect(seen).to.have.members(ids(placed)).and.have.length(placed.length);
    });
  }

  it("refuses a page token with changed filters", async () => {
    const { nextPageToken: pageToken } = await admin.orders.listOrders({ pageSize: 1 });
    const changed = admin.orders.listOrders({ pageSize: 1, pageToken, statuses: [OrderStatus.PENDING] });
    expect((await refusalOf(changed)).reasons).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
  });
});

describe("GetOrderStats", () => {
  const server = useServer();
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });

  it("has zeros where there are no orders", async () => {
    const stats = await admin.orders.getOrderStats({});
    expect(stats.orderCount).to.equal(0n);
    expect(stats.statusCounts.map(({ orderCount }) => orderCount)).to.deep.equal([0n, 0n, 0n, 0n, 0n, 0n]);
    const [usd] = stats.currencies;
    expect([text(usd?.revenue), text(usd?.averageOrderValue), usd?.topCustomers.length]).to.deep.equal([
      "0 USD",
      "0 USD",
      0,
    ]);
  });

  it("counts without cancelled orders: of three orders of 10.99, one cancelled, 21.98 and 10.99 remain", async () => {
    const john = await newCustomer(server);
    await sql(server.database, "UPDATE users SET first_name = 'John', last_name = 'Doe' WHERE id = $1", [john.id]);
    const product = await newProduct(admin, { price: "10.99" });
    const orders = [
      await newOrder(john, [[product, 1]]),
      await newOrder(john, [[product, 1]]),
      await newOrder(john, [[product, 1]]),
    ];
    await john.orders.cancelOrder({ orderId: present(orders[2]).id });

    const [first, last] = [present(orders[0]?.orderTime), present(orders[2]?.orderTime)];
    const stats = await admin.orders.getOrderStats({ orderTimeFrom: first, orderTimeTo: last });
    expect(stats.orderCount).to.equal(2n);
    const counts = Object.fromEntries(
      stats.statusCounts.map(({ status, orderCount }) => [OrderStatus[status], Number(orderCount)]),
    );
    expect(counts).to.deep.equal({ PENDING: 0, CONFIRMED: 2, SHIPPED: 0, DELIVERED: 0, CANCELLED: 1, RETURNED: 0 });
    const [usd] = stats.currencies;
    expect([text(usd?.revenue), text(usd?.averageOrderValue)]).to.deep.equal(["21.98 USD", "10.99 USD"]);
    const top = present(usd).topCustomers.map((customer) => [
      customer.name,
      customer.email,
      Number(customer.orderCount),
      text(customer.totalAmount),
    ]);
    expect(top).to.deep.equal([["John Doe", john.email, 2, "21.98 USD"]]);
  });

  it("leaves out what was placed before or after the range", async () => {
    const customer = await newCustomer(server);
    const order = await newOrder(customer, [[await newProduct(admin), 1]]);
    const at = timestampDate(present(order.orderTime)).getTime();
    const time = (ms: number) => ({ seconds: BigInt(Math.floor(ms / 1000)), nanos: (ms % 1000) * 1_000_000 });
    const count = async (from: number, to: number) =>
      Number((await admin.orders.getOrderStats({ orderTimeFrom: time(from), orderTimeTo: time(to) })).orderCount);
    expect([await count(at, at), await count(at + 1, at + 10), await count(at - 10, at - 1)]).to.deep.equal([1, 0, 0]);
  });

  it("keeps currencies apart, rounds averages half-even, and shows the five who spent most", async () => {
    const euros = await newProduct(admin, { price: "0.01", currency: "EUR", stock: 1_000 });
    const buyers = await Promise.all(Array.from({ length: 6 }, () => newCustomer(server)));
    for (const [i, buyer] of buyers.entries()) await newOrder(buyer, [[euros, i + 1]]);
    const { currencies } = await admin.orders.getOrderStats({});
    const eur = present(currencies.find(({ currencyCode }) => currencyCode === "EUR"));
    // 0.21 over 6 orders is 0.035: half-even makes it 0.04.
    expect([text(eur.revenue), text(eur.averageOrderValue)]).to.deep.equal(["0.21 EUR", "0.04 EUR"]);
    expect(eur.topCustomers.map(({ customerId }) => customerId)).to.deep.equal(
      buyers
        .map(({ id }) => id)
        .toReversed()
        .slice(0, 5),
    );
    expect(currencies.map(({ currencyCode }) => currencyCode)).to.deep.equal(["EUR", "USD"]);
  });

  it("is for admins", async () => {
    const customer = await newCustomer(server);
    expect((await refusalOf(customer.orders.getOrderStats({}))).reason).to.equal("ADMIN_REQUIRED");
  });
});
