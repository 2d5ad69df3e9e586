import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { type PaymentSchema, PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { type PaymentService, ProcessPaymentRequestSchema } from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { callerOf, callOf } from "../call.ts";
import type { Deps } from "../deps.ts";
import { notFound } from "../errors.ts";
import { fromMoneyMessage, toMoneyMessage } from "../money.ts";
import { requestRule } from "../request-rules.ts";
import { amountFaults, cardFaults, type Payment, type PaymentLimits } from "./payment.ts";
import { processPayment } from "./process-payment.ts";

export function paymentRules(limits: PaymentLimits) {
  return [
    requestRule(ProcessPaymentRequestSchema, ({ amount, paymentMethod }) => [
      ...amountFaults(amount, limits),
      ...cardFaults(paymentMethod?.method.case === "card" ? paymentMethod.method.value : undefined),
    ]),
  ];
}

export function paymentService(deps: Deps): Partial<ServiceImpl<typeof PaymentService>> {
  return {
    async processPayment({ requestId, orderId, customerId, amount, paymentMethod }, context) {
      const payment = await processPayment(
        deps,
        {
          requestId,
          orderId,
          customerId,
          amount: fromMoneyMessage(amount ?? { currencyCode: "", units: 0n, nanos: 0 }),
          card: {
            token: paymentMethod?.method.value?.token ?? "",
            billingCountry: paymentMethod?.method.value?.billingCountry ?? "",
          },
        },
        callerOf(context),
        callOf(context).deadline,
      );
      return { payment: toPaymentMessage(payment) };
    },

    async getPayment({ paymentId }, context) {
      const { userId, role } = callerOf(context);
      const payment = await deps.payments.find(paymentId, callOf(context).deadline);
      if (payment === undefined || (payment.customerId !== userId && role !== "ADMIN"))
        throw notFound("Payment", paymentId);
      return { payment: toPaymentMessage(payment) };
    },
  };
}

function toPaymentMessage(payment: Payment): MessageInitShape<typeof PaymentSchema> {
  const { id, customerId, orderId, amount, status, card, createTime, processTime } = payment;
  return {
    id,
    customerId,
    orderId: orderId ?? "",
    amount: toMoneyMessage(amount),
    status: PaymentStatus[status],
    paymentMethod: { method: { case: "card", value: card } },
    gateway: payment.gateway,
    gatewayTransactionId: payment.gatewayTransactionId,
    gatewayResponseCode: payment.gatewayResponseCode,
    failureReason: payment.failureReason,
    refundedAmount: toMoneyMessage(payment.refundedAmount),
    createTime: timestampFromDate(createTime),
    ...(processTime !== null && { processTime: timestampFromDate(processTime) }),
  };
}
