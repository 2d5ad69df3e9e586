/**
 * The port to the payment gateways.
 *
 * Every call answers with data. A promise of this port rejects only for a fault of our own code, so a `catch` around a
 * call never has to guess whether money moved. Three kinds of answer are kept apart by type:
 *
 * - **executed**: the gateway decided, and its decision is final.
 * - **not executed**: proof that this send moved nothing. How far the proof reaches stands in `proves`.
 * - **unknown**: the request may have been executed, now or later. Only the gateway's own word about the reference (an
 *   executed answer, a lookup that finds it, a void) clears it; a later refused connection or 429 proves nothing.
 */

/** The names under which payments record who took their money. */
export type GatewayName = "stripe" | "adyen" | "sandbox-primary" | "sandbox-backup";

/** An amount in the currency's minor units (cents for USD, yen for JPY). `currency` is ISO 4217, upper case. */
export interface GatewayMoney {
  readonly currency: string;
  readonly minor: bigint;
}

/** Bounds of one call. `timeoutMs` covers all of it: queueing, connecting, sending and reading the whole answer. */
export interface GatewayCallOptions {
  readonly timeoutMs: number;
  /** Aborting ends the wait, not the charge: after the first byte went out the answer is `unknown`. */
  readonly signal?: AbortSignal;
}

/**
 * One attempt to charge. `reference` is the id of the attempt's row, committed before the call; it is the gateway's
 * idempotency key, so the same reference always goes with the same amount and token. 1 to 128 of `A-Z a-z 0-9 . _ : -`.
 */
export interface ChargeRequest {
  readonly reference: string;
  readonly amount: GatewayMoney;
  /** The gateway's token of the card, never a card number. */
  readonly paymentMethodToken: string;
  /**
   * Stores the gateway's own id of this attempt before any money can move, for gateways whose void needs it. Nothing is
   * charged before it resolves; when it rejects, the answer is `not_executed` with the cause `aborted`.
   */
  readonly remember?: (gatewayReference: string) => Promise<void>;
}

/** Names an attempt to `lookup` and `void`: our reference and, where it was remembered, the gateway's own. */
export interface AttemptReference {
  readonly reference: string;
  readonly gatewayReference?: string;
  /**
   * What `charge` was asked for, given only while the reference's first send is younger than 23 hours. A `void` without
   * `gatewayReference` may need it to learn the gateway's id by an idempotent request; older keys are never sent again.
   */
  readonly amount?: GatewayMoney;
}

/** The gateway took money. */
export interface Captured {
  readonly outcome: "captured";
  readonly transactionId: string;
  /** What was really taken. It may differ from what was asked for; the caller compares and decides. */
  readonly captured: GatewayMoney;
  readonly responseCode: string;
  /**
   * So far it is authorised, and the gateway captures it by itself. Should it tell that the charge was voided, before or
   * after this, then no money was taken.
   */
  readonly untilVoided?: true | undefined;
}

/** The gateway refused the charge for good. It never fails over to another gateway. */
export interface Declined {
  readonly outcome: "declined";
  /** The gateway's own word for it, such as `card_declined`. */
  readonly reason: string;
  readonly responseCode: string;
}

/** Proof that money did not move. */
export interface NotExecuted {
  readonly kind: "not_executed";
  /**
   * - `connection_failed`: no connection came about, so nothing was sent.
   * - `unavailable`: the gateway refused before processing, in words its contract defines as that proof.
   * - `rate_limited`: the same, by a rate limit.
   * - `rejected`: the request itself is invalid; sending it again gives the same answer.
   * - `key_conflict`: the reference already belongs to a charge of other parameters, whose fate this does not tell.
   * - `timeout`, `aborted`: the caller's bound ended the call before anything was sent.
   * - `voided`: the reference was voided.
   */
  readonly cause:
    | "connection_failed"
    | "unavailable"
    | "rate_limited"
    | "rejected"
    | "key_conflict"
    | "timeout"
    | "aborted"
    | "voided";
  /**
   * `this_send`: earlier sends of the same reference may still execute, so an attempt that was ever unknown stays so.
   * `reference`: no send of the reference has executed or ever can.
   */
  readonly proves: "this_send" | "reference";
  /** For logs and operators. Bounded; holds nothing secret. */
  readonly detail: string;
  /** When the gateway says how long to wait before another try. */
  readonly retryAfterMs?: number;
}

/** Nobody on our side knows whether the gateway executed the request, or will. */
export interface Unknown {
  readonly kind: "unknown";
  /**
   * - `timeout`, `aborted`: the caller's bound ended the call after sending had begun.
   * - `connection_lost`: the connection ended before the whole answer was there.
   * - `gateway_error`: the gateway answered, with a status that says nothing of the outcome (5xx and the like).
   * - `malformed_answer`: the gateway answered what its contract does not define, or more than we read.
   * - `not_sent`: for a lookup or void, which ask about an earlier request: the question did not reach the gateway.
   */
  readonly cause: "timeout" | "aborted" | "connection_lost" | "gateway_error" | "malformed_answer" | "not_sent";
  readonly detail: string;
}

/** The gateway accepted the request and will decide later; a webhook or a lookup tells. */
export interface Pending {
  readonly kind: "pending";
  /** The gateway's own id of the pending operation, where it gave one. */
  readonly transactionId?: string;
}

/** The answer to `charge`. `pending` is to be treated as `unknown` that will clear by itself. */
export type ChargeAnswer =
  | { readonly kind: "executed"; readonly result: Captured | Declined }
  | Pending
  | NotExecuted
  | Unknown;

/** What a gateway holds under a reference. */
export type ChargeState =
  | (Captured & {
      /** Refunds that completed. */
      readonly refunded: GatewayMoney;
      /** Open and lost disputes. */
      readonly disputed: GatewayMoney;
    })
  | Declined
  | { readonly outcome: "voided" }
  | { readonly outcome: "pending" };

/** The answer to `lookup`. `not_found` means *not now*: a request still under way may yet execute. It proves nothing. */
export type LookupAnswer =
  | { readonly kind: "found"; readonly charge: ChargeState }
  | { readonly kind: "not_found" }
  | Unknown;

/**
 * The answer to `void`. `voided` is proof that the reference has not executed and never can, whatever is still under
 * way. `executed` means the void came too late: the charge was decided as told. `pending`: accepted, a webhook will
 * tell; no proof yet.
 */
export type VoidAnswer =
  | { readonly kind: "voided" }
  | { readonly kind: "executed"; readonly result: Captured | Declined }
  | Pending
  | Unknown;

/** One refund. `key` is the id of the refund's row and the idempotency key, of the same form as a charge's reference. */
export interface RefundRequest {
  readonly key: string;
  /** The attempt that captured, and the gateway's id of that capture. */
  readonly reference: string;
  readonly transactionId: string;
  readonly amount: GatewayMoney;
}

/** Names a refund to `lookupRefund`. */
export interface RefundReference {
  readonly key: string;
  readonly reference: string;
  readonly transactionId: string;
  /** The gateway's own id of the refund, where it is known. */
  readonly refundTransactionId?: string;
}

/** The refund reached the customer's side, as far as the gateway knows today: banks may still send it back. */
export interface RefundCompleted {
  readonly outcome: "completed";
  readonly transactionId: string;
  readonly refunded: GatewayMoney;
  readonly responseCode: string;
}

/** The refund was refused or sent back; its amount is free again. */
export interface RefundFailed {
  readonly outcome: "failed";
  readonly reason: string;
  readonly responseCode: string;
}

/** The answer to `refund`. */
export type RefundAnswer =
  | { readonly kind: "executed"; readonly result: RefundCompleted | RefundFailed }
  | Pending
  | NotExecuted
  | Unknown;

/** The answer to `lookupRefund`. `not_found` proves as little as it does for a charge. */
export type RefundLookupAnswer =
  | { readonly kind: "found"; readonly result: RefundCompleted | RefundFailed | { readonly outcome: "pending" } }
  | { readonly kind: "not_found" }
  | Unknown;

/** A webhook as it arrived: the body's exact bytes, since signatures cover them, and header names in lower case. */
export interface WebhookRequest {
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Uint8Array;
  /** The receiver's clock, against which the replay window is held. */
  readonly now: Date;
}

/** What a verified event tells. Amounts are of the event, not running totals. */
export type GatewayEventFact =
  | { readonly type: "charge_captured"; readonly reference: string; readonly result: Captured }
  /** `beatsCapture`: of a charge that was told to be captured, too, no money is held. */
  | {
      readonly type: "charge_declined";
      readonly reference: string;
      readonly result: Declined;
      readonly beatsCapture?: true;
    }
  | { readonly type: "charge_voided"; readonly reference: string; readonly beatsCapture?: true }
  /** Of a refund whose key is the charge's reference the gateway says that it was made there by hand. */
  | {
      readonly type: "refund_completed";
      readonly reference: string;
      readonly key: string;
      readonly result: RefundCompleted;
    }
  | { readonly type: "refund_failed"; readonly reference: string; readonly key: string; readonly result: RefundFailed }
  | {
      readonly type: "dispute_opened" | "dispute_won" | "dispute_lost";
      /** Absent where the vendor's event does not repeat our reference; `transactionId` is there then. */
      readonly reference?: string;
      /** The gateway's id of the disputed capture, as `Captured.transactionId` had it. */
      readonly transactionId?: string;
      readonly disputeId: string;
      readonly amount: GatewayMoney;
      readonly reason: string;
    }
  /** A genuine event that this port has no use for. It is acknowledged, so that the vendor stops sending it. */
  | { readonly type: "ignored"; readonly vendorType: string };

/** A verified event. Events arrive at least once and in any order: `id` is what to deduplicate by. */
export type GatewayEvent = GatewayEventFact & {
  readonly id: string;
  readonly gateway: GatewayName;
  /** When it happened, by the gateway's clock. */
  readonly occurTime: Date;
};

/**
 * The answer to `parseWebhook`. `forged`: no signature of ours. `stale`: genuine, but outside the replay window.
 * `malformed`: genuine, but not of the vendor's form. `unconfigured`: this gateway was given no webhook secret.
 */
export type WebhookVerdict =
  | { readonly kind: "accepted"; readonly events: readonly GatewayEvent[] }
  | {
      readonly kind: "refused";
      readonly cause: "forged" | "stale" | "malformed" | "unconfigured";
      readonly detail: string;
    };

/** A payment gateway. Implementations hold no state that matters: everything can be asked again after a crash. */
export interface Gateway {
  readonly name: GatewayName;

  /** Charges once per reference, however often it is sent. */
  charge(request: ChargeRequest, options: GatewayCallOptions): Promise<ChargeAnswer>;

  /** Asks what the gateway holds under a reference now. Changes nothing. */
  lookup(attempt: AttemptReference, options: GatewayCallOptions): Promise<LookupAnswer>;

  /** Makes sure that a reference can never execute any more, also when the gateway has never heard of it. Repeatable. */
  void(attempt: AttemptReference, options: GatewayCallOptions): Promise<VoidAnswer>;

  /** Refunds once per key, however often it is sent; never more than was captured and is not refunded or disputed. */
  refund(request: RefundRequest, options: GatewayCallOptions): Promise<RefundAnswer>;

  /** Asks what the gateway holds under a refund's key now. Changes nothing. */
  lookupRefund(refund: RefundReference, options: GatewayCallOptions): Promise<RefundLookupAnswer>;

  /** Verifies a webhook's signature (in constant time) and age, then reads it. Never throws. */
  parseWebhook(request: WebhookRequest): WebhookVerdict;

  /** Lets idle connections go. Calls under way end as if their connection was lost. */
  close(): void;
}
