import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampDate, timestampFromDate, timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { type PaymentSchema, PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import {
  ListPaymentsRequestSchema,
  type PaymentService,
  ProcessPaymentRequestSchema,
  type RewardEntrySchema,
} from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { type Caller, callerOf, callOf } from "../call.ts";
import { pageOf, readPage } from "../db/page.ts";
import type { Deps } from "../deps.ts";
import { type FieldViolation, notFound } from "../errors.ts";
import { fromMoneyMessage, toMoneyMessage } from "../money.ts";
import { requestRule } from "../request-rules.ts";
import { amountFaults, cardFaults, type Payment, type PaymentLimits } from "./payment.ts";
import { listPayments, readableCustomer } from "./payment-history.ts";
import { processPayment } from "./process-payment.ts";
import type { Dispute, Refund } from "./refund.ts";
import { refundRules, refundService, toDisputeMessage, toRefundMessage } from "./refund-service.ts";
import type { RewardEntry } from "./reward-store.ts";

export function paymentRules(limits: PaymentLimits) {
  return [
    requestRule(ProcessPaymentRequestSchema, ({ amount, paymentMethod }) => [
      ...amountFaults(amount, limits),
      ...cardFaults(paymentMethod?.method.case === "card" ? paymentMethod.method.value : undefined),
    ]),
    requestRule(ListPaymentsRequestSchema, ({ createTimeFrom, createTimeTo }) =>
      rangeFaults(createTimeFrom, createTimeTo),
    ),
    ...refundRules,
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
      return { payment: toPaymentMessage(payment, callerOf(context)) };
    },

    async getPayment({ paymentId }, context) {
      const caller = callerOf(context);
      const { userId, role } = caller;
      const payment = await deps.payments.find(paymentId, callOf(context).deadline);
      if (payment === undefined || (payment.customerId !== userId && role !== "ADMIN"))
        throw notFound("Payment", paymentId);
      const ids = [payment.id];
      const [refunds, disputes] = await Promise.all([deps.refunds.ofPayments(ids), deps.disputes.ofPayments(ids)]);
      return { payment: toPaymentMessage(payment, caller, refunds, disputes) };
    },

    async listPayments(request, context) {
      const caller = callerOf(context);
      const { createTimeFrom, createTimeTo, includeRefunds, includeDisputes } = request;
      const customerId = readableCustomer(request.customerId, caller, "payments");
      const statuses = [...new Set(request.statuses)].map(nameOf);
      const from = createTimeFrom && timestampDate(createTimeFrom);
      const to = createTimeTo && timestampDate(createTimeTo);
      const query = ["ListPayments", customerId, statuses.toSorted(), from, to, includeRefunds, includeDisputes];
      const page = readPage(deps.pageTokens, request, query);
      const [time, id] = page.after ?? [];
      const after = time !== undefined && id !== undefined ? ([new Date(time), id] as const) : undefined;
      const asked = { customerId, statuses, from, to, includeRefunds, includeDisputes };
      const found = await listPayments(deps, asked, page.limit, after);
      const { items, nextPageToken } = pageOf(page, found, ({ payment }) => [
        payment.createTime.toISOString(),
        payment.id,
      ]);
      const payments = items.map(({ payment, refunds, disputes }) =>
        toPaymentMessage(payment, caller, refunds, disputes),
      );
      return { payments, nextPageToken };
    },

    async getRewards(request, context) {
      const caller = callerOf(context);
      const customerId = readableCustomer(request.customerId, caller, "points") ?? caller.userId;
      const page = readPage(deps.pageTokens, request, ["GetRewards", customerId]);
      const [points, found] = await Promise.all([
        deps.rewards.balance(customerId),
        deps.rewards.list(customerId, page.limit, page.after?.[0]),
      ]);
      const { items, nextPageToken } = pageOf(page, found, ({ id }) => [id]);
      return { points, entries: items.map(toEntryMessage), nextPageToken };
    },

    ...refundService(deps),
  };
}

function rangeFaults(from: Timestamp | undefined, to: Timestamp | undefined): FieldViolation[] {
  if (from === undefined || to === undefined || timestampMs(from) <= timestampMs(to)) return [];
  const description = "Create time from must not be after create time to";
  return [{ field: "create_time_from", reason: "RANGE_INVALID", description }];
}

/** The schema has refused statuses that are not defined. */
function nameOf(status: PaymentStatus): Payment["status"] {
  return PaymentStatus[status] as Payment["status"];
}

/** Why a payment failed, as far as the caller may know: what gave a fraud away is not for whoever tried it. */
function failureReasonFor({ status, failureReason }: Payment, { role }: Pick<Caller, "role">): string {
  return status === "FRAUD_DETECTED" && role !== "ADMIN" ? "Payment declined for security reasons" : failureReason;
}

function toEntryMessage(entry: RewardEntry): MessageInitShape<typeof RewardEntrySchema> {
  const { id, paymentId, refundId, points, createTime } = entry;
  return { id, paymentId, refundId: refundId ?? "", points, createTime: timestampFromDate(createTime) };
}

function toPaymentMessage(
  payment: Payment,
  caller: Pick<Caller, "role">,
  refunds: readonly Refund[] = [],
  disputes: readonly Dispute[] = [],
): MessageInitShape<typeof PaymentSchema> {
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
    failureReason: failureReasonFor(payment, caller),
    refundedAmount: toMoneyMessage(payment.refundedAmount),
    refunds: refunds.map(toRefundMessage),
    disputes: disputes.map(toDisputeMessage),
    createTime: timestampFromDate(createTime),
    ...(processTime !== null && { processTime: timestampFromDate(processTime) }),
  };
}
