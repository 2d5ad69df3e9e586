import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type DisputeSchema,
  DisputeStatus,
  type RefundSchema,
  RefundStatus,
} from "../../gen/tradepost/payment/v1/payment_pb.js";
import { type PaymentService, RefundPaymentRequestSchema } from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { callerOf, callOf } from "../call.ts";
import type { Deps } from "../deps.ts";
import { notFound } from "../errors.ts";
import { fromMoneyMessage, toMoneyMessage } from "../money.ts";
import { requestRule } from "../request-rules.ts";
import { type Dispute, type Refund, refundAmountFaults } from "./refund.ts";
import { refundPayment } from "./refund-payment.ts";

export const refundRules = [requestRule(RefundPaymentRequestSchema, ({ amount }) => refundAmountFaults(amount))];

/** The RPCs of PaymentService that are about refunds. */
export function refundService(deps: Deps): Pick<ServiceImpl<typeof PaymentService>, "refundPayment" | "getRefund"> {
  return {
    async refundPayment({ requestId, paymentId, amount, reason }, context) {
      const asked = {
        ...{ requestId, paymentId, reason },
        amount: fromMoneyMessage(amount ?? { currencyCode: "", units: 0n, nanos: 0 }),
      };
      const refund = await refundPayment(deps, asked, callerOf(context), callOf(context).deadline);
      return { refund: toRefundMessage(refund) };
    },

    async getRefund({ refundId }, context) {
      const { userId, role } = callerOf(context);
      const refund = await deps.refunds.find(refundId);
      if (refund === undefined || (refund.customerId !== userId && role !== "ADMIN"))
        throw notFound("Refund", refundId);
      return { refund: toRefundMessage(refund) };
    },
  };
}

export function toRefundMessage(refund: Refund): MessageInitShape<typeof RefundSchema> {
  const { id, paymentId, amount, status, reason, gatewayTransactionId, failureReason, createTime, processTime } =
    refund;
  return {
    ...{ id, paymentId, reason, gatewayTransactionId, failureReason },
    amount: toMoneyMessage(amount),
    status: RefundStatus[status],
    createTime: timestampFromDate(createTime),
    ...(processTime !== null && { processTime: timestampFromDate(processTime) }),
  };
}

export function toDisputeMessage(dispute: Dispute): MessageInitShape<typeof DisputeSchema> {
  const { id, paymentId, amount, status, reason, createTime, resolveTime } = dispute;
  return {
    ...{ id, paymentId, reason },
    amount: toMoneyMessage(amount),
    status: DisputeStatus[status],
    createTime: timestampFromDate(createTime),
    ...(resolveTime !== null && { resolveTime: timestampFromDate(resolveTime) }),
  };
}
