import { expect } from "chai";
import { newAdmin, newCustomer, newOrder, newProduct } from "../support/factories.ts";
import { readableMetrics } from "../support/metrics.ts";
import { until } from "../support/process.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("calls are measured", () => {
  const counted = readableMetrics();
  const server = useServer({ metrics: counted.metrics });
  /** How often a method was measured, by the code of its outcome. */
  const measured = async (method: string) => {
    const found = Object.entries(await counted.byAttributes("rpc.server.call.duration"));
    const ours = found
      .map(([attributes, count]) => [JSON.parse(attributes) as Record<string, string>, count] as const)
      .filter(([attributes]) => attributes["rpc.method"] === method);
    return Object.fromEntries(ours.map(([attributes, count]) => [attributes["rpc.response.status_code"], count]));
  };

  it("by method and code, each once", async () => {
    const customer = await newCustomer(server);
    await customer.users.getProfile({});
    await customer.users.getProfile({});
    await refusalOf(customer.orders.getOrder({ orderId: "0199a4a5-0000-7000-8000-000000000000" }));
    await refusalOf(server.as().users.getProfile({}));
    await refusalOf(customer.orders.getOrder({ orderId: "no uuid" }));
    expect(await measured("tradepost.user.v1.UserService/GetProfile")).to.deep.equal({ OK: 2, UNAUTHENTICATED: 1 });
    expect(await measured("tradepost.order.v1.OrderService/GetOrder")).to.deep.equal({
      NOT_FOUND: 1,
      INVALID_ARGUMENT: 1,
    });
  });

  it("of a stream when it has ended", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    const product = await newProduct(admin, { stock: 10_000 });
    const leaving = new AbortController();
    const method = "tradepost.order.v1.OrderService/WatchOrders";
    const reading = (async () => {
      for await (const _ of customer.orders.watchOrders({}, { signal: leaving.signal })) leaving.abort();
    })().catch(() => {});
    // Only an order that is placed once the stream is there is told to it.
    while (!leaving.signal.aborted) await newOrder(customer, [[product, 1]]);
    await reading;
    await until("the stream is measured", async () =>
      Object.keys(await measured(method)).length > 0 ? true : undefined,
    );
    expect(Object.values(await measured(method))).to.deep.equal([1]);
  });
});
