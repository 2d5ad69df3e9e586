import type { Attributes, Counter, Histogram, Meter } from "@opentelemetry/api";

/** What is counted, and when one is added. */
const counters = {
  "payment.successful": "Payments completed",
  "payment.failed": "Payments that ended without money being taken, fraud aside",
  "payment.fraud_detected": "Payments stopped before any gateway was asked",
  "payment.fraud_check_failed": "Fraud checks that failed or were slow",
  "payment.gateway_error": "Answers of gateways that were errors",
  "payment.gateway_failover": "Payments for which the backup gateway was about to be charged",
  "payment.backup_gateway_successful": "Payments completed by the backup gateway",
  "payment.backup_gateway_failed": "Payments that failed at the backup gateway too",
  "payment.processing_error": "Payments interrupted by an unexpected fault of our own",
  "payment.duplicate_reversed": "Charges given back because their payment did not need them any more",
  "refund.successful": "Refunds completed",
  "refund.failed": "Refunds that did not go through",
  "refund.processing_error": "Refunds interrupted by an unexpected fault of our own",
  "webhook.rejected": "Webhooks refused: forged, stale, malformed, or of a gateway that has no secret",
  "payment_history.query_error": "Failed reads of customers' payments",
  "notification.payment_confirmation_failed": "Confirmation mails that could not be sent",
  "notification.refund_confirmation_failed": "Mails about refunds that could not be sent",
  "notification.fraud_alert_failed": "Fraud alerts that could not be sent",
  "customer_history.update_failed": "Failed updates of customers' payment history",
  "rewards.processing_failed": "Failed bookings of reward points",
} as const;

export type CounterName = keyof typeof counters;

export const counterNames = Object.keys(counters) as CounterName[];

/** Seconds; a call takes milliseconds, or as long as a gateway does. */
const CALL_BUCKETS_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];
/** Milliseconds. The last ones are for payments that were reconciled. */
const PAYMENT_BUCKETS_MS = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 600_000];

/**
 * Counts and measures what happens, for whoever collects it (docs/telemetry.md). The values of attributes are of closed
 * sets: names of gateways, methods, codes and states, never ids.
 */
export class Metrics {
  readonly #counters: ReadonlyMap<string, Counter>;
  readonly #processingTime: Histogram;
  readonly #callDuration: Histogram;

  constructor(meter: Meter) {
    const made = Object.entries(counters).map(
      ([name, description]) => [name, meter.createCounter(name, { description })] as const,
    );
    this.#counters = new Map(made);
    this.#processingTime = meter.createHistogram("payment.processing_time", {
      description: "Time from the request of a payment to its outcome",
      unit: "ms",
      advice: { explicitBucketBoundaries: PAYMENT_BUCKETS_MS },
    });
    this.#callDuration = meter.createHistogram("rpc.server.call.duration", {
      description: "Time of calls, of streams to their end",
      unit: "s",
      advice: { explicitBucketBoundaries: CALL_BUCKETS_S },
    });
  }

  count(name: CounterName, attributes: Attributes = {}): void {
    this.#counters.get(name)?.add(1, attributes);
  }

  recordProcessingTime(ms: number, attributes: Attributes = {}): void {
    this.#processingTime.record(ms, attributes);
  }

  /** @param method "package.Service/Method" @param code UPPER_SNAKE, such as NOT_FOUND */
  recordCall(method: string, code: string, durationMs: number): void {
    const attributes = { "rpc.system.name": "connectrpc", "rpc.method": method, "rpc.response.status_code": code };
    this.#callDuration.record(durationMs / 1_000, attributes);
  }
}
