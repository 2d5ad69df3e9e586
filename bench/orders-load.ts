import { randomInt, randomUUID } from "node:crypto";
import { credentials, Metadata, type requestCallback } from "@grpc/grpc-js";
import { OrderService } from "../gen/tradepost/order/v1/order_service_pb.js";
import { AuthService } from "../gen/tradepost/user/v1/auth_service_pb.js";
import { createGrpcJsClient, type GrpcJsClient } from "../src/client/grpc-js.ts";
import { closedLoop, type Samples } from "./harness/load.ts";
import { serveTasks } from "./harness/processes.ts";
import { addressId, BUYER_PASSWORD, buyerEmail, type ProductRange, productId } from "./orders-data.ts";

// The calls of `npm run bench -- orders`, in a process of their own: generated messages over @grpc/grpc-js, which takes
// less of the processor than Connect's client.

/** Each is one HTTP/2 connection. */
const CONNECTIONS = 4;
const CONNECTION_OPTIONS = { "grpc.use_local_subchannel_pool": 1 };
const LIST_PAGE_SIZE = 20;

export type OrderTasks = typeof tasks;

interface Load {
  readonly clients: number;
  readonly durationMs: number;
}

const tasks = {
  /** Opens the connections and logs the buyers and an admin in. Before the first calls, and again before tokens expire. */
  async logIn({ url, buyers, admin }: { url: string; buyers: number; admin: string }): Promise<void> {
    const address = new URL(url).host;
    const insecure = credentials.createInsecure();
    for (const { orders } of connected?.connections ?? []) orders.close();
    const connections = Array.from({ length: CONNECTIONS }, () => ({
      orders: createGrpcJsClient(OrderService, address, insecure, CONNECTION_OPTIONS),
    }));
    const auth = createGrpcJsClient(AuthService, address, insecure, CONNECTION_OPTIONS);
    const tokenOf = async (email: string) => {
      const { accessToken } = await answerOf<{ accessToken: string }>((answer) =>
        auth.login({ email, password: BUYER_PASSWORD }, answer),
      );
      const metadata = new Metadata();
      metadata.set("authorization", `Bearer ${accessToken}`);
      return metadata;
    };
    const tokens: Metadata[] = [];
    for (let buyer = 0; buyer < buyers; buyer++) tokens.push(await tokenOf(buyerEmail(buyer)));
    connected = { connections, tokens, adminToken: await tokenOf(admin) };
    auth.close();
  },

  /** Orders of three products; the second one is of a range, so that it may be one that everybody wants. */
  async createOrder({ second, ...load }: Load & { readonly second: ProductRange }): Promise<Samples> {
    return callInLoop(load, ({ orders, token, buyer }, answer) => {
      const products = [randomInt(0, 333), randomInt(second.from, second.to + 1), randomInt(667, 1000)];
      const items = products.map((product) => ({ productId: productId(product), quantity: 1 }));
      const request = { requestId: randomUUID(), items, shippingAddressId: addressId(buyer) };
      orders.createOrder(request, token, answer);
    });
  },

  /** Single orders of one's own, from `orderIds` by buyer. */
  async getOrder({
    orderIds,
    ...load
  }: Load & { readonly orderIds: readonly (readonly string[])[] }): Promise<Samples> {
    return callInLoop(load, ({ orders, token, buyer }, answer) => {
      const own = orderIds[buyer] ?? [];
      orders.getOrder({ orderId: own[randomInt(own.length)] ?? "" }, token, answer);
    });
  },

  /** The newest page of one's own orders. */
  async listOrders(load: Load): Promise<Samples> {
    return callInLoop(load, ({ orders, token }, answer) => {
      orders.listOrders({ pageSize: LIST_PAGE_SIZE }, token, answer);
    });
  },

  /** The statistics of one day. */
  async getOrderStats({
    fromS,
    toS,
    ...load
  }: Load & { readonly fromS: number; readonly toS: number }): Promise<Samples> {
    const { adminToken } = session();
    const range = { orderTimeFrom: { seconds: BigInt(fromS) }, orderTimeTo: { seconds: BigInt(toS) } };
    return callInLoop(load, ({ orders }, answer) => {
      orders.getOrderStats(range, adminToken, answer);
    });
  },
};

interface Session {
  readonly connections: readonly { readonly orders: GrpcJsClient<typeof OrderService> }[];
  readonly tokens: readonly Metadata[];
  readonly adminToken: Metadata;
}

let connected: Session | undefined;

function session(): Session {
  if (connected === undefined) throw new Error("nobody has logged in");
  return connected;
}

interface AsBuyer {
  readonly orders: GrpcJsClient<typeof OrderService>;
  readonly token: Metadata;
  readonly buyer: number;
}

async function callInLoop(
  load: Load,
  // biome-ignore lint/suspicious/noExplicitAny: the answers themselves are not looked at, only whether they came.
  call: (as: AsBuyer, answer: requestCallback<any>) => void,
): Promise<Samples> {
  const { connections, tokens } = session();
  return closedLoop(load, (client) => {
    const buyer = client % tokens.length;
    const { orders } = connections[client % connections.length] as Session["connections"][number];
    const as = { orders, token: tokens[buyer] as Metadata, buyer };
    return new Promise((resolve) => call(as, (error) => resolve(error === null ? "ok" : `code ${error.code}`)));
  });
}

function answerOf<T>(call: (answer: requestCallback<T>) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    call((error, answer) => (error === null && answer !== undefined ? resolve(answer) : reject(error)));
  });
}

serveTasks(tasks);
