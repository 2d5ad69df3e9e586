import type { Caller } from "../call.ts";
import { DomainError } from "../errors.ts";
import type { Metrics } from "../telemetry/metrics.ts";
import type { DisputeStore } from "./dispute-store.ts";
import type { Payment, PaymentStatus } from "./payment.ts";
import type { PaymentHistoryStore } from "./payment-history-store.ts";
import type { Dispute, Refund } from "./refund.ts";
import type { RefundStore } from "./refund-store.ts";

/** Which payments somebody wants to see. */
export interface ListPayments {
  readonly customerId: string | undefined;
  readonly statuses: readonly PaymentStatus[];
  readonly from: Date | undefined;
  readonly to: Date | undefined;
  readonly includeRefunds: boolean;
  readonly includeDisputes: boolean;
}

/** A payment with what was asked for beside it; otherwise those are empty. */
export interface PaymentRecord {
  readonly payment: Payment;
  readonly refunds: readonly Refund[];
  readonly disputes: readonly Dispute[];
}

interface HistoryDeps {
  readonly paymentHistory: PaymentHistoryStore;
  readonly refunds: RefundStore;
  readonly disputes: DisputeStore;
  readonly metrics: Metrics;
}

/**
 * Whose payments or points a caller may read: undefined, everybody's.
 * @param asked Empty: not told. `what` names in the refusal what was to be read.
 * @throws DomainError ADMIN_REQUIRED
 */
export function readableCustomer(asked: string, { userId, role }: Caller, what: string): string | undefined {
  if (role === "ADMIN") return asked || undefined;
  if (asked !== "" && asked !== userId) {
    throw new DomainError("forbidden", "ADMIN_REQUIRED", `Only an admin may read another customer's ${what}`);
  }
  return userId;
}

/** One page of payments, newest first: one statement, and at most one more each for refunds and disputes. */
export async function listPayments(
  { paymentHistory, refunds, disputes, metrics }: HistoryDeps,
  { includeRefunds, includeDisputes, ...filter }: ListPayments,
  limit: number,
  after?: readonly [createTime: Date, id: string],
): Promise<PaymentRecord[]> {
  try {
    const payments = await paymentHistory.list(filter, limit, after);
    const ids = payments.map(({ id }) => id);
    const [refundsOf, disputesOf] = await Promise.all([
      includeRefunds && ids.length > 0 ? refunds.ofPayments(ids).then(byPayment) : undefined,
      includeDisputes && ids.length > 0 ? disputes.ofPayments(ids).then(byPayment) : undefined,
    ]);
    return payments.map((payment) => ({
      payment,
      refunds: refundsOf?.get(payment.id) ?? [],
      disputes: disputesOf?.get(payment.id) ?? [],
    }));
  } catch (error) {
    metrics.count("payment_history.query_error");
    throw error;
  }
}

function byPayment<Item extends { readonly paymentId: string }>(items: readonly Item[]): Map<string, Item[]> {
  return Map.groupBy(items, ({ paymentId }) => paymentId);
}
