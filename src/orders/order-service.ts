import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampDate, timestampFromDate, timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { OrderPaymentState, type OrderSchema, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import {
  CreateOrderRequestSchema,
  GetOrderStatsRequestSchema,
  type GetOrderStatsResponseSchema,
  ListOrdersRequestSchema,
  type OrderService,
} from "../../gen/tradepost/order/v1/order_service_pb.js";
import { callerOf, callOf } from "../call.ts";
import { type PageTokens, pageOf, readPage } from "../db/page.ts";
import type { Deps } from "../deps.ts";
import { DomainError, type FieldViolation, notFound } from "../errors.ts";
import { multiply, toMoneyMessage } from "../money.ts";
import { requestRule } from "../request-rules.ts";
import { createOrder } from "./create-order.ts";
import { cancelOrder, shipOrder } from "./move-order.ts";
import { lineFaults, type Order } from "./order.ts";
import { type OrderStats, toOrderStats } from "./order-stats.ts";
import type { Position } from "./store.ts";
import { updateOrderStatuses } from "./update-order-statuses.ts";

export const orderRules = [
  requestRule(CreateOrderRequestSchema, ({ items }) => lineFaults(items)),
  requestRule(ListOrdersRequestSchema, ({ orderTimeFrom, orderTimeTo }) => rangeFaults(orderTimeFrom, orderTimeTo)),
  requestRule(GetOrderStatsRequestSchema, ({ orderTimeFrom, orderTimeTo }) => rangeFaults(orderTimeFrom, orderTimeTo)),
];

export function orderService(deps: Deps): Partial<ServiceImpl<typeof OrderService>> {
  const { orders, orderFeed, clock, config, pageTokens } = deps;
  const placing = { orders, clock, reservationMinutes: config.orders.reservationMinutes };
  return {
    async createOrder({ items: lines, ...request }, context) {
      const order = await createOrder(placing, { ...request, lines }, callerOf(context), callOf(context).deadline);
      return { order: toOrderMessage(order) };
    },

    async getOrder({ orderId }, context) {
      const { userId, role } = callerOf(context);
      const order = await orders.find(orderId, callOf(context).deadline);
      if (order === undefined || (order.customerId !== userId && role !== "ADMIN")) throw notFound("Order", orderId);
      return { order: toOrderMessage(order) };
    },

    async listOrders(request, context) {
      const { userId, role } = callerOf(context);
      const { orderTimeFrom, orderTimeTo } = request;
      if (role !== "ADMIN" && request.customerId !== "" && request.customerId !== userId) {
        throw new DomainError("forbidden", "ADMIN_REQUIRED", "Only an admin may list another customer's orders");
      }
      const customerId = request.customerId || (role === "ADMIN" ? undefined : userId);
      const statuses = [...new Set(request.statuses)].map(nameOf);
      const from = orderTimeFrom && timestampDate(orderTimeFrom);
      const to = orderTimeTo && timestampDate(orderTimeTo);
      const page = readPage(pageTokens, request, ["ListOrders", customerId, statuses.toSorted(), from, to]);
      const [time, id] = page.after ?? [];
      const after = time !== undefined && id !== undefined ? ([new Date(time), id] as const) : undefined;
      const rows = await orders.list({ customerId, statuses, from, to }, page.limit, after);
      const { items, nextPageToken } = pageOf(page, rows, (order) => [order.orderTime.toISOString(), order.id]);
      return { orders: items.map(toOrderMessage), nextPageToken };
    },

    async cancelOrder({ orderId, reason }, context) {
      return { order: toOrderMessage(await cancelOrder(deps, orderId, reason, callerOf(context))) };
    },

    async shipOrder({ orderId, trackingNumber }, context) {
      return { order: toOrderMessage(await shipOrder(deps, orderId, trackingNumber, callerOf(context))) };
    },

    async batchUpdateOrderStatuses({ updates }, context) {
      const named = updates.map((update) => ({ ...update, status: nameOf(update.status) }));
      return updateOrderStatuses(deps, named, callerOf(context));
    },

    async *watchOrders({ cursor, customerId: asked }, context) {
      const { userId, role } = callerOf(context);
      if (role !== "ADMIN" && asked !== "" && asked !== userId) {
        throw new DomainError("forbidden", "ADMIN_REQUIRED", "Only an admin may watch another customer's orders");
      }
      const customerId = asked || (role === "ADMIN" ? undefined : userId);
      const after = cursor === "" ? undefined : openCursor(pageTokens, cursor);
      for await (const { order, position } of orderFeed.watch(customerId, after, context.signal)) {
        yield {
          ...(order !== undefined && { order: toOrderMessage(order) }),
          cursor: sealCursor(pageTokens, position),
        };
      }
    },

    async getOrderStats({ orderTimeFrom, orderTimeTo }) {
      const sums = await orders.sum(
        orderTimeFrom && timestampDate(orderTimeFrom),
        orderTimeTo && timestampDate(orderTimeTo),
      );
      const [firstCurrency = "USD"] = config.payments.currencies;
      return toStatsMessage(toOrderStats(sums, firstCurrency));
    },
  };
}

const CURSOR = ["WatchOrders"];

function sealCursor(tokens: PageTokens, { xact, id }: Position): string {
  return tokens.seal([String(xact), String(id)], CURSOR);
}

function openCursor(tokens: PageTokens, cursor: string): Position {
  const [xact, id] = tokens.open(cursor, CURSOR) ?? [];
  if (xact === undefined || id === undefined) {
    throw new DomainError("invalid", "CURSOR_INVALID", "The cursor is not one that this service gave out");
  }
  return { xact: BigInt(xact), id: BigInt(id) };
}

function rangeFaults(from: Timestamp | undefined, to: Timestamp | undefined): FieldViolation[] {
  if (from === undefined || to === undefined || timestampMs(from) <= timestampMs(to)) return [];
  const description = "Order time from must not be after order time to";
  return [{ field: "order_time_from", reason: "RANGE_INVALID", description }];
}

/** The schema has refused statuses that are not defined. */
function nameOf(status: OrderStatus): Order["status"] {
  return OrderStatus[status] as Order["status"];
}

function toOrderMessage(order: Order): MessageInitShape<typeof OrderSchema> {
  const { id, customerId, shippingAddressId, shippingAddress, expireTime, notes, trackingNumber } = order;
  return {
    id,
    customerId,
    status: OrderStatus[order.status],
    paymentState: OrderPaymentState[order.paymentState],
    items: order.items.map(({ unitPrice, ...item }) => ({
      ...item,
      unitPrice: toMoneyMessage(unitPrice),
      lineTotal: toMoneyMessage(multiply(unitPrice, item.quantity)),
    })),
    totalAmount: toMoneyMessage(order.totalAmount),
    shippingAddressId: shippingAddressId ?? "",
    ...(shippingAddress !== null && {
      shippingAddress: { id: shippingAddressId ?? "", userId: customerId, ...shippingAddress },
    }),
    ...(expireTime !== null && { expireTime: timestampFromDate(expireTime) }),
    notes,
    trackingNumber,
    orderTime: timestampFromDate(order.orderTime),
    updateTime: timestampFromDate(order.updateTime),
    etag: String(order.version),
  };
}

function toStatsMessage({
  orderCount,
  statusCounts,
  currencies,
}: OrderStats): MessageInitShape<typeof GetOrderStatsResponseSchema> {
  return {
    orderCount,
    statusCounts: [...statusCounts].map(([status, count]) => ({ status: OrderStatus[status], orderCount: count })),
    currencies: currencies.map(({ revenue, average, topCustomers, ...stats }) => ({
      orderCount: stats.orderCount,
      currencyCode: revenue.currency,
      revenue: toMoneyMessage(revenue),
      averageOrderValue: toMoneyMessage(average),
      topCustomers: topCustomers.map(({ total, ...customer }) => ({ ...customer, totalAmount: toMoneyMessage(total) })),
    })),
  };
}
