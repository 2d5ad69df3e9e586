import type {
  AttemptReference,
  ChargeAnswer,
  ChargeRequest,
  Gateway,
  GatewayCallOptions,
  GatewayEvent,
  GatewayEventFact,
  GatewayMoney,
  LookupAnswer,
  NotExecuted,
  RefundAnswer,
  RefundLookupAnswer,
  RefundReference,
  RefundRequest,
  Unknown,
  VoidAnswer,
} from "../../../src/payments/gateways/gateway.ts";
import type { Random } from "./random.ts";
import type { Process, Scheduler } from "./scheduler.ts";

/** What a gateway holds under one reference, whatever anybody was told of it. */
export interface HeldCharge {
  state: "captured" | "declined" | "voided";
  capturedMinor: bigint;
  readonly currency: string;
  /** By the refund's key, minor units. */
  readonly refunds: Map<string, bigint>;
}

type Name = "sandbox-primary" | "sandbox-backup";

const SILENCE: Unknown = { kind: "unknown", cause: "not_sent", detail: "" };
const VOIDED: NotExecuted = { kind: "not_executed", cause: "voided", proves: "reference", detail: "" };
const CAUSES = ["timeout", "connection_lost", "gateway_error", "malformed_answer"] as const;

/** What goes wrong with a call, by how often. `none` is what happens once the world is calm. */
const CHARGE_FAULTS = {
  none: 40,
  unreachable: 8,
  rate_limited: 4,
  request_lost: 12,
  answer_lost: 12,
  late: 12,
  repeated: 6,
  pending: 6,
};
const QUESTION_FAULTS = { none: 75, request_lost: 15, answer_lost: 10 };
const VOID_FAULTS = { none: 65, request_lost: 15, answer_lost: 12, pending: 8 };
const REFUND_FAULTS = { none: 50, unreachable: 10, request_lost: 15, answer_lost: 15, pending: 10 };
/** How a charge is decided, the first time that it is executed. */
const DECISIONS = { captured: 80, declined: 15, wrong_amount: 5 };

/** A gateway in memory with a truth of its own, which loses, delays and repeats what it is asked and what it answers. */
export class SimulatedGateway {
  readonly name: Name;
  /** The gateway's truth, by our reference. */
  readonly charges = new Map<string, HeldCharge>();
  readonly #scheduler: Scheduler;
  readonly #random: Random;
  readonly #tell: (event: GatewayEvent) => void;
  /** Event ids have to be new in the whole database. */
  readonly #prefix: string;
  #events = 0;

  constructor(name: Name, scheduler: Scheduler, random: Random, prefix: string, tell: (event: GatewayEvent) => void) {
    this.name = name;
    this.#scheduler = scheduler;
    this.#random = random;
    this.#prefix = prefix;
    this.#tell = tell;
  }

  /** The gateway as one process reaches it: a process that dies loses the answer, not what was done. */
  reachedFrom(process: Process): Gateway {
    const call = async <Answer extends { readonly kind: string }>(
      what: string,
      reference: string,
      work: () => Answer,
    ): Promise<Answer> => {
      const label = `${this.name} ${what} ${this.#scheduler.nameOf(reference, "charge")}`;
      const answer = await this.#scheduler.step(process, label, work);
      return this.#scheduler.step(process, `${label} answers ${wordOf(answer)}`, () => answer);
    };
    return {
      name: this.name,
      charge: (request, options) => call("charge", request.reference, () => this.#charge(request, options)),
      lookup: (attempt, options) => call("lookup", attempt.reference, () => this.#lookup(attempt, options)),
      void: (attempt, options) => call("void", attempt.reference, () => this.#void(attempt, options)),
      refund: (request, options) => call("refund", request.reference, () => this.#refund(request, options)),
      lookupRefund: (refund) => call("lookupRefund", refund.reference, () => this.#lookupRefund(refund)),
      parseWebhook: () => ({ kind: "refused", cause: "unconfigured", detail: "" }),
      close: () => {},
    };
  }

  #charge({ reference, amount }: ChargeRequest, { timeoutMs }: GatewayCallOptions): ChargeAnswer {
    const execute = () => this.#execute(reference, amount);
    switch (this.#fault(CHARGE_FAULTS)) {
      case "none":
        return execute();
      case "unreachable":
        return { kind: "not_executed", cause: "connection_failed", proves: "this_send", detail: "" };
      case "rate_limited":
        return { kind: "not_executed", cause: "rate_limited", proves: "this_send", detail: "" };
      case "request_lost":
        return this.#unknown(timeoutMs);
      case "answer_lost":
        execute();
        return this.#unknown(timeoutMs);
      case "late":
        this.#later("charge", reference, execute);
        return this.#unknown(timeoutMs);
      case "repeated":
        this.#later("charge again", reference, execute);
        return execute();
      case "pending":
        this.#later("pending charge", reference, execute);
        return { kind: "pending" };
    }
  }

  /** However often a reference comes, it is decided once, and never after it was voided. */
  #execute(reference: string, amount: GatewayMoney): ChargeAnswer {
    const held = this.charges.get(reference) ?? this.#decide(reference, amount);
    if (held.state === "voided") return VOIDED;
    return { kind: "executed", result: resultOf(reference, held) };
  }

  #decide(reference: string, { currency, minor }: GatewayMoney): HeldCharge {
    const decision = this.#random.weighted(DECISIONS);
    const capturedMinor = decision === "declined" ? 0n : minor + (decision === "captured" ? 0n : 100n);
    const held: HeldCharge = {
      state: decision === "declined" ? "declined" : "captured",
      capturedMinor,
      currency,
      refunds: new Map(),
    };
    this.charges.set(reference, held);
    const result = resultOf(reference, held);
    if (result.outcome === "captured") this.#emit({ type: "charge_captured", reference, result });
    else this.#emit({ type: "charge_declined", reference, result });
    return held;
  }

  #lookup({ reference }: AttemptReference, { timeoutMs }: GatewayCallOptions): LookupAnswer {
    if (this.#fault(QUESTION_FAULTS) !== "none") return this.#unknown(timeoutMs);
    const held = this.charges.get(reference);
    if (held === undefined) return { kind: "not_found" };
    if (held.state === "voided") return { kind: "found", charge: { outcome: "voided" } };
    const result = resultOf(reference, held);
    if (result.outcome === "declined") return { kind: "found", charge: result };
    const { currency } = held;
    const refunded = { currency, minor: refundedMinorOf(held) };
    return { kind: "found", charge: { ...result, refunded, disputed: { currency, minor: 0n } } };
  }

  #void({ reference }: AttemptReference, { timeoutMs }: GatewayCallOptions): VoidAnswer {
    switch (this.#fault(VOID_FAULTS)) {
      case "none":
        return this.#bar(reference);
      case "request_lost":
        return SILENCE;
      case "answer_lost":
        this.#bar(reference);
        return this.#unknown(timeoutMs);
      case "pending":
        this.#later("pending void", reference, () => this.#bar(reference));
        return { kind: "pending" };
    }
  }

  /** A void that comes before the charge stands in its way for ever. */
  #bar(reference: string): VoidAnswer {
    const held = this.charges.get(reference);
    if (held !== undefined && held.state !== "voided") return { kind: "executed", result: resultOf(reference, held) };
    if (held === undefined) {
      this.charges.set(reference, { state: "voided", capturedMinor: 0n, currency: "", refunds: new Map() });
      this.#emit({ type: "charge_voided", reference });
    }
    return { kind: "voided" };
  }

  #refund(request: RefundRequest, { timeoutMs }: GatewayCallOptions): RefundAnswer {
    const execute = () => this.#giveBack(request);
    switch (this.#fault(REFUND_FAULTS)) {
      case "none":
        return execute();
      case "unreachable":
        return { kind: "not_executed", cause: "connection_failed", proves: "this_send", detail: "" };
      case "request_lost":
        return this.#unknown(timeoutMs);
      case "answer_lost":
        execute();
        return this.#unknown(timeoutMs);
      case "pending":
        this.#later("pending refund", request.reference, execute);
        return { kind: "pending", transactionId: `refund_${request.key}` };
    }
  }

  #giveBack({ key, reference, amount }: RefundRequest): RefundAnswer {
    const held = this.charges.get(reference);
    const known = held?.refunds.has(key) === true;
    if (held?.state !== "captured" || (!known && refundedMinorOf(held) + amount.minor > held.capturedMinor)) {
      return { kind: "executed", result: { outcome: "failed", reason: "exceeds the charge", responseCode: "61" } };
    }
    const result = refundOf(key, amount);
    if (!known) {
      held.refunds.set(key, amount.minor);
      this.#emit({ type: "refund_completed", reference, key, result });
    }
    return { kind: "executed", result };
  }

  #lookupRefund({ key, reference }: RefundReference): RefundLookupAnswer {
    if (this.#fault(QUESTION_FAULTS) !== "none") return SILENCE;
    const held = this.charges.get(reference);
    const minor = held?.refunds.get(key);
    if (held === undefined || minor === undefined) return { kind: "not_found" };
    return { kind: "found", result: refundOf(key, { currency: held.currency, minor }) };
  }

  #fault<Name extends string>(faults: Readonly<Record<Name | "none", number>>): Name | "none" {
    return this.#scheduler.calm ? "none" : this.#random.weighted(faults);
  }

  #unknown(timeoutMs: number): Unknown {
    const cause = this.#random.pick(CAUSES);
    if (cause === "timeout") this.#scheduler.advance(timeoutMs);
    return { kind: "unknown", cause, detail: "" };
  }

  #later(what: string, reference: string, effect: () => unknown): void {
    this.#scheduler.later(
      `${this.name} carries out the ${what} of ${this.#scheduler.nameOf(reference, "charge")}`,
      () => {
        effect();
      },
    );
  }

  #emit(fact: GatewayEventFact): void {
    const id = `${this.#prefix}-${this.name}-${String(++this.#events).padStart(4, "0")}`;
    this.#tell({ ...fact, id, gateway: this.name, occurTime: this.#scheduler.clock.now() });
  }
}

export function refundedMinorOf({ refunds }: HeldCharge): bigint {
  return [...refunds.values()].reduce((sum, minor) => sum + minor, 0n);
}

function resultOf(reference: string, { state, currency, capturedMinor }: HeldCharge) {
  if (state === "declined") return { outcome: "declined", reason: "card_declined", responseCode: "05" } as const;
  const captured = { currency, minor: capturedMinor };
  return { outcome: "captured", transactionId: `txn_${reference}`, captured, responseCode: "00" } as const;
}

function refundOf(key: string, refunded: GatewayMoney) {
  return { outcome: "completed", transactionId: `refund_${key}`, refunded, responseCode: "00" } as const;
}

/** An answer in a word or two, for the trace. */
function wordOf(answer: { readonly kind: string }): string {
  const { kind, cause, result, charge } = answer as {
    readonly kind: string;
    readonly cause?: string;
    readonly result?: { readonly outcome: string };
    readonly charge?: { readonly outcome: string };
  };
  return [kind, cause ?? result?.outcome ?? charge?.outcome].filter(Boolean).join(" ");
}
