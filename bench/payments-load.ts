import { randomUUID } from "node:crypto";
import { PaymentStatus } from "../gen/tradepost/payment/v1/payment_pb.js";
import { PaymentService, type ProcessPaymentResponse } from "../gen/tradepost/payment/v1/payment_service_pb.js";
import { fromDecimal, toMoneyMessage } from "../src/money.ts";
import { Buyers, type Load, type LogIn } from "./buyers.ts";
import type { Samples } from "./harness/load.ts";
import { serveTasks } from "./harness/processes.ts";
import type { UnpaidOrder } from "./payments-data.ts";

// The calls of `npm run bench -- payments`, in a process of their own.

/** Enough to earn rewards, and below what makes a new account suspicious. The scripts in bench/pgbench/ take as much. */
const AMOUNT = toMoneyMessage(fromDecimal("USD", "120"));
const CARD = { method: { case: "card" as const, value: { token: "tok_visa" } } };

export type PaymentTasks = typeof tasks;

const { processPayment } = PaymentService.method;
const buyers = new Buyers();

const tasks = {
  logIn: (at: LogIn): Promise<void> => buyers.logIn(at),

  /** Payments without an order. */
  async processPayment(load: Load): Promise<Samples> {
    const call = ({ token }: { token: string }) => ({
      request: { requestId: randomUUID(), amount: AMOUNT, paymentMethod: CARD },
      token,
    });
    return buyers.callInLoop(load, processPayment, call, judge);
  },

  /** Payments of orders, each once, by an admin: the orders are of more customers than have logged in. */
  async payOrders({ orders, ...load }: Load & { readonly orders: readonly UnpaidOrder[] }): Promise<Samples> {
    const waiting = orders.values();
    const call = ({ adminToken }: { adminToken: string }) => {
      const { value: order } = waiting.next();
      if (order === undefined) throw new Error(`the ${orders.length} orders are all paid before the round is over`);
      const amount = toMoneyMessage(fromDecimal("USD", order.total));
      const of = { orderId: order.id, customerId: order.customerId };
      return { request: { requestId: randomUUID(), ...of, amount, paymentMethod: CARD }, token: adminToken };
    };
    return buyers.callInLoop(load, processPayment, call, judge);
  },
};

/** Only money that was taken counts as an answer. */
function judge({ payment }: ProcessPaymentResponse): string {
  if (payment?.status === PaymentStatus.COMPLETED) return "ok";
  return `${PaymentStatus[payment?.status ?? 0]}: ${payment?.failureReason}`;
}

serveTasks(tasks);
