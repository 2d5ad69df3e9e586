import type { Attributes, Counter, Histogram, Meter } from "@opentelemetry/api";

/** What is counted, and when one is added. */
const counters = {
  "payment.successful": "Payments completed",
  "payment.failed": "Payments that ended without money being taken, fraud aside",
  "payment.fraud_detected": "Payments stopped before any gateway was asked",
  "payment.gateway_error": "Answers of gateways that were errors",
  "payment.gateway_failover": "Payments for which the backup gateway was about to be charged",
  "payment.backup_gateway_successful": "Payments completed by the backup gateway",
  "payment.backup_gateway_failed": "Payments that failed at the backup gateway too",
  "payment.processing_error": "Payments interrupted by an unexpected fault of our own",
  "payment.duplicate_reversed": "Charges given back because their payment did not need them any more",
  "refund.successful": "Refunds completed",
  "refund.failed": "Refunds that did not go through",
  "refund.processing_error": "Refunds interrupted by an unexpected fault of our own",
  "payment_history.query_error": "Failed reads of customers' payments",
  "notification.payment_confirmation_failed": "Confirmation mails that could not be sent",
  "customer_history.update_failed": "Failed updates of customers' payment history",
  "rewards.processing_failed": "Failed bookings of reward points",
} as const;

export type CounterName = keyof typeof counters;

/** Counts and measures what happens, for whoever collects it (see telemetry of the README). */
export class Metrics {
  readonly #counters: ReadonlyMap<string, Counter>;
  readonly #processingTime: Histogram;

  constructor(meter: Meter) {
    const made = Object.entries(counters).map(
      ([name, description]) => [name, meter.createCounter(name, { description })] as const,
    );
    this.#counters = new Map(made);
    this.#processingTime = meter.createHistogram("payment.processing_time", {
      description: "Time from the request of a payment to its outcome",
      unit: "ms",
    });
  }

  count(name: CounterName, attributes: Attributes = {}): void {
    this.#counters.get(name)?.add(1, attributes);
  }

  recordProcessingTime(ms: number, attributes: Attributes = {}): void {
    this.#processingTime.record(ms, attributes);
  }
}
