import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { OrderPaymentState, type OrderSchema, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { CreateOrderRequestSchema, type OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { callerOf, callOf } from "../call.ts";
import type { Deps } from "../deps.ts";
import { notFound } from "../errors.ts";
import { multiply, toMoneyMessage } from "../money.ts";
import { requestRule } from "../request-rules.ts";
import { createOrder } from "./create-order.ts";
import { lineFaults, type Order } from "./order.ts";

export const orderRules = [requestRule(CreateOrderRequestSchema, ({ items }) => lineFaults(items))];

export function orderService(deps: Deps): Partial<ServiceImpl<typeof OrderService>> {
  const { orders, clock, config } = deps;
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
  };
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
