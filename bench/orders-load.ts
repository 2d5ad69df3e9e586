import { randomInt, randomUUID } from "node:crypto";
import { OrderService } from "../gen/tradepost/order/v1/order_service_pb.js";
import { Buyers, type Load, type LogIn } from "./buyers.ts";
import type { Samples } from "./harness/load.ts";
import { serveTasks } from "./harness/processes.ts";
import { addressId, type ProductRange, productId } from "./orders-data.ts";

// The calls of `npm run bench -- orders`, in a process of their own.

const LIST_PAGE_SIZE = 20;

export type OrderTasks = typeof tasks;

const { createOrder, getOrder, getOrderStats, listOrders } = OrderService.method;
const buyers = new Buyers();

const tasks = {
  logIn: (at: LogIn): Promise<void> => buyers.logIn(at),

  /** Orders of three products; the second one is of a range, so that it may be one that everybody wants. */
  async createOrder({ second, ...load }: Load & { readonly second: ProductRange }): Promise<Samples> {
    return buyers.callInLoop(load, createOrder, ({ token, buyer }) => {
      const products = [randomInt(0, 333), randomInt(second.from, second.to + 1), randomInt(667, 1000)];
      const items = products.map((product) => ({ productId: productId(product), quantity: 1 }));
      return { request: { requestId: randomUUID(), items, shippingAddressId: addressId(buyer) }, token };
    });
  },

  /** Single orders of one's own, from `orderIds` by buyer. */
  async getOrder({
    orderIds,
    ...load
  }: Load & { readonly orderIds: readonly (readonly string[])[] }): Promise<Samples> {
    return buyers.callInLoop(load, getOrder, ({ token, buyer }) => {
      const own = orderIds[buyer] ?? [];
      return { request: { orderId: own[randomInt(own.length)] ?? "" }, token };
    });
  },

  /** The newest page of one's own orders. */
  async listOrders(load: Load): Promise<Samples> {
    return buyers.callInLoop(load, listOrders, ({ token }) => ({ request: { pageSize: LIST_PAGE_SIZE }, token }));
  },

  /** The statistics of one day. */
  async getOrderStats({
    fromS,
    toS,
    ...load
  }: Load & { readonly fromS: number; readonly toS: number }): Promise<Samples> {
    const request = { orderTimeFrom: { seconds: BigInt(fromS) }, orderTimeTo: { seconds: BigInt(toS) } };
    return buyers.callInLoop(load, getOrderStats, ({ adminToken }) => ({ request, token: adminToken }));
  },
};

serveTasks(tasks);
