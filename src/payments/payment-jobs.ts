import type { Logger } from "pino";
import { z } from "zod";
import type { Config } from "../config.ts";
import type { Clock } from "../deps.ts";
import type { JobHandler, JobHandlers } from "../jobs/worker.ts";
import { type Mail, type MailMessage, MailRefusedError } from "../mail/mail.ts";
import type { CounterName, Metrics } from "../telemetry/metrics.ts";
import type { UserStore } from "../users/store.ts";
import type { Payment } from "./payment.ts";
import type { PaymentHistoryStore } from "./payment-history-store.ts";
import { fraudAlertMail, paymentConfirmationMail, refundConfirmationMail } from "./payment-mails.ts";
import type { RefundStore } from "./refund-store.ts";
import type { RewardStore } from "./reward-store.ts";
import { followRefund, grantRewards } from "./rewards.ts";
import type { PaymentStore } from "./store.ts";

const ofPayment = z.object({ paymentId: z.uuid() });
const ofRefund = z.object({ refundId: z.uuid() });

interface PaymentJobDeps {
  readonly payments: PaymentStore;
  readonly paymentHistory: PaymentHistoryStore;
  readonly refunds: RefundStore;
  readonly rewards: RewardStore;
  readonly users: UserStore;
  readonly mail: Mail;
  readonly metrics: Metrics;
  readonly clock: Clock;
  readonly config: { readonly fraud: Pick<Config["fraud"], "securityEmail"> };
  readonly log: Logger;
}

/**
 * The handlers of what follows from the end of a payment or refund; settle_payments and settle_refund enqueue their jobs.
 * None of them can change that end. Each is counted when it fails, and tried again by itself.
 */
export function paymentJobs(deps: PaymentJobDeps): JobHandlers {
  const { payments, paymentHistory, refunds, mail, config } = deps;
  const failuresIn = (counter: CounterName, handler: JobHandler) => countingFailures(deps, counter, handler);
  const send = async (message: MailMessage | undefined, signal: AbortSignal) => {
    if (message !== undefined) await mail.send(message, signal);
  };

  return {
    "send-payment-confirmation": failuresIn("notification.payment_confirmation_failed", async (payload, { signal }) => {
      const payment = await completedPayment(payments, ofPayment.parse(payload).paymentId);
      const email = await emailOf(deps, payment.customerId);
      await send(email === undefined ? undefined : paymentConfirmationMail(email, payment), signal);
    }),

    "send-refund-confirmation": failuresIn("notification.refund_confirmation_failed", async (payload, { signal }) => {
      const refund = await refunds.find(ofRefund.parse(payload).refundId);
      // What a bank has sent back since is not on its way any more.
      if (refund?.status !== "COMPLETED") return;
      const email = await emailOf(deps, refund.customerId);
      await send(email === undefined ? undefined : refundConfirmationMail(email, refund), signal);
    }),

    "send-fraud-alert": failuresIn("notification.fraud_alert_failed", async (payload, { signal }) => {
      const { securityEmail } = config.fraud;
      if (securityEmail === undefined) return;
      const payment = await findPayment(payments, ofPayment.parse(payload).paymentId);
      await send(fraudAlertMail(securityEmail, payment), signal);
    }),

    "update-payment-history": failuresIn("customer_history.update_failed", async (payload) => {
      await paymentHistory.count(ofPayment.parse(payload).paymentId);
    }),

    "grant-rewards": failuresIn("rewards.processing_failed", async (payload) => {
      await grantRewards(deps, ofPayment.parse(payload).paymentId);
    }),

    "take-back-rewards": failuresIn("rewards.processing_failed", async (payload) => {
      const refund = await refunds.find(ofRefund.parse(payload).refundId);
      if (refund !== undefined) await followRefund(deps, refund);
    }),
  };
}

/** Counts each failure, and lets the job be tried again where that may help. */
function countingFailures(
  { metrics, log }: Pick<PaymentJobDeps, "metrics" | "log">,
  counter: CounterName,
  handler: JobHandler,
): JobHandler {
  return async (payload, context) => {
    try {
      await handler(payload, context);
    } catch (error) {
      metrics.count(counter);
      if (!(error instanceof MailRefusedError)) throw error;
      // The same mail would be refused again.
      log.warn({ jobId: context.jobId, err: error.cause }, "mail refused");
    }
  };
}

/** Jobs have no deadline of a caller; the worker bounds them. */
async function findPayment(payments: PaymentStore, id: string): Promise<Payment> {
  const payment = await payments.find(id, Number.POSITIVE_INFINITY);
  if (payment === undefined) throw new Error(`there is no payment ${id}`);
  return payment;
}

async function completedPayment(payments: PaymentStore, id: string): Promise<Payment> {
  const payment = await findPayment(payments, id);
  if (payment.status !== "COMPLETED") throw new Error(`payment ${id} is ${payment.status}`);
  return payment;
}

/** Where a customer gets mail; undefined once the account is deleted. */
async function emailOf({ users }: PaymentJobDeps, customerId: string): Promise<string | undefined> {
  const user = await users.find(customerId);
  return user?.deleteTime === null ? user.email : undefined;
}
