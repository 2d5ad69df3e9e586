/** What the sandbox's gateways hold, and the rules by which it changes. Every change is decided in memory, at once. */
import { randomUUID } from "node:crypto";
import { z } from "zod";
import { SandboxJournal } from "./sandbox-journal.ts";
import {
  type ChargeBody,
  type ChargeRequestBody,
  chargeSchema,
  type DisputeBody,
  type DisputeRequestBody,
  disputeSchema,
  type RefundBody,
  type RefundRequestBody,
  refundSchema,
  type SandboxEventType,
  type SandboxGatewayName,
  type WebhookEventBody,
  webhookEventSchema,
} from "./sandbox-protocol.ts";
import { type RefundBehaviour, responseCodes } from "./sandbox-tokens.ts";

/** Bounds the memory and the journal: charges, refunds and disputes of both gateways together. */
const maxEntries = 500_000;
/** Bounds the webhook events that wait for a receiver that is away; later ones are not made. */
const maxWaitingEvents = 10_000;
/** Lines per entry above which the journal is rewritten at start, and how many lines are not worth it. */
const compactionFactor = 2;
const compactionFloorLines = 1_000;

/** Why a request changes nothing. `code` is the wire's error code. */
export interface Refusal {
  readonly code:
    | "charge_not_found"
    | "refund_not_found"
    | "dispute_not_found"
    | "key_conflict"
    | "voided"
    | "already_captured"
    | "already_declined"
    | "already_decided"
    | "amount_exceeds_remaining"
    | "ledger_full";
  readonly message: string;
  readonly charge?: ChargeBody;
}

/** The entity as it is now, or why nothing was done. */
export type Decision<T> = { readonly ok: T } | { readonly refusal: Refusal };

/** How a new charge begins. */
export type ChargeOutcome =
  | { readonly state: "captured"; readonly capturedMinor: number }
  | { readonly state: "declined"; readonly reason: string; readonly responseCode: string }
  | { readonly state: "pending" };

const transitionSchema = z.object({
  charge: chargeSchema.omit({ refunded_minor: true, disputed_minor: true }).optional(),
  refund: refundSchema.optional(),
  dispute: disputeSchema.optional(),
  event: webhookEventSchema.optional(),
  delivered: z.string().optional(),
});

type StoredCharge = Omit<ChargeBody, "refunded_minor" | "disputed_minor">;

/** One line of the journal: everything in it happens together or, after a crash, not at all. */
interface Transition {
  charge?: StoredCharge;
  refund?: RefundBody;
  dispute?: DisputeBody;
  event?: WebhookEventBody;
  /** The id of an event that needs no more sending. */
  delivered?: string;
}

/** A charge with the sums over its refunds and disputes, which are kept as they change. */
interface Account {
  charge: StoredCharge;
  refundedMinor: number;
  pendingRefundMinor: number;
  disputedMinor: number;
}

/** Where the ledger lives and what it tells. */
export interface SandboxLedgerOptions {
  readonly dataDir: string;
  /** Whether changes make webhook events; without a receiver they would only pile up. */
  readonly recordEvents: boolean;
  readonly now: () => Date;
  /** Called once an event waits, after the transition that made it is decided but maybe before it is durable. */
  readonly onEvent?: () => void;
}

/**
 * The durable books of both gateways. A caller shows nothing to the outside before `flushed` has resolved: also a plain
 * read may have seen a change that a crash could still undo.
 */
export class SandboxLedger {
  readonly #options: SandboxLedgerOptions;
  readonly #accounts = new Map<string, Account>();
  readonly #refunds = new Map<string, RefundBody>();
  readonly #disputes = new Map<string, DisputeBody>();
  readonly #waitingEvents = new Map<string, WebhookEventBody>();
  #journal: SandboxJournal | undefined;

  private constructor(options: SandboxLedgerOptions) {
    this.#options = options;
  }

  /** Reads the books back. Rejects with SandboxJournalError when the folder cannot be used. */
  static async open(options: SandboxLedgerOptions): Promise<SandboxLedger> {
    const ledger = new SandboxLedger(options);
    ledger.#journal = await SandboxJournal.open(
      options.dataDir,
      (line) => ledger.#replay(line),
      (lines) => ledger.#snapshot(lines),
    );
    return ledger;
  }

  /** Resolves when every change decided so far is durable; rejects, for good, once the journal cannot be written. */
  flushed(): Promise<void> {
    return this.#openJournal().flushed();
  }

  /** Makes everything durable and lets another sandbox use the folder. */
  async close(): Promise<void> {
    await this.#openJournal().close();
  }

  /** Every charge of both gateways, oldest first. Each is read when it is asked for. */
  *charges(): Generator<ChargeBody> {
    for (const account of this.#accounts.values()) yield chargeOf(account);
  }

  /** The refunds that are still pending. */
  pendingRefunds(): RefundBody[] {
    return [...this.#refunds.values()].filter((refund) => refund.state === "pending");
  }

  /** The events that still wait to be delivered, oldest first. */
  waitingEvents(): IterableIterator<WebhookEventBody> {
    return this.#waitingEvents.values();
  }

  /** The charge under a reference, also one in flight, or a tombstone. */
  findCharge(gateway: SandboxGatewayName, reference: string): ChargeBody | undefined {
    const account = this.#accounts.get(keyOf(gateway, reference));
    return account === undefined ? undefined : chargeOf(account);
  }

  findRefund(gateway: SandboxGatewayName, key: string): RefundBody | undefined {
    return this.#refunds.get(keyOf(gateway, key));
  }

  /** What stands in the way of a first charge of this reference, or the charge that the same request already made. */
  earlierCharge(gateway: SandboxGatewayName, request: ChargeRequestBody): Decision<ChargeBody | undefined> {
    const charge = this.findCharge(gateway, request.reference);
    if (charge === undefined) return this.#isFull() ? refused("ledger_full", fullMessage) : { ok: undefined };
    if (charge.state === "voided") {
      return refused("voided", `The reference ${request.reference} was voided: it can never be charged.`, charge);
    }
    const same =
      charge.token === request.token &&
      charge.amount_minor === request.amount_minor &&
      charge.currency === request.currency;
    if (same) return { ok: charge };
    return refused("key_conflict", `The reference ${request.reference} belongs to a charge of other parameters.`);
  }

  /** Enters a charge whose reference is free: the caller has asked `earlierCharge` just before. */
  openCharge(gateway: SandboxGatewayName, request: ChargeRequestBody, outcome: ChargeOutcome): ChargeBody {
    const charge: StoredCharge = {
      gateway,
      reference: request.reference,
      token: request.token,
      amount_minor: request.amount_minor,
      currency: request.currency,
      state: outcome.state,
      captured_minor: outcome.state === "captured" ? outcome.capturedMinor : 0,
      transaction_id: `txn_${randomUUID()}`,
      response_code: "",
      decline_reason: "",
      create_time: this.#time(),
    };
    if (outcome.state === "captured") charge.response_code = responseCodes.approved;
    if (outcome.state === "declined") {
      charge.response_code = outcome.responseCode;
      charge.decline_reason = outcome.reason;
    }
    return this.#commitCharge(charge);
  }

  /** Captures a charge that is in flight. A void that came first has the last word. */
  captureLate(gateway: SandboxGatewayName, reference: string): void {
    const account = this.#accounts.get(keyOf(gateway, reference));
    if (account?.charge.state !== "pending") return;
    this.#commitCharge({
      ...account.charge,
      state: "captured",
      captured_minor: account.charge.amount_minor,
      response_code: responseCodes.approved,
    });
  }

  /** Puts a tombstone on a reference, whether or not it was ever seen. Refused where the charge was decided before. */
  voidCharge(gateway: SandboxGatewayName, reference: string): Decision<ChargeBody> {
    const charge = this.findCharge(gateway, reference);
    if (charge?.state === "voided") return { ok: charge };
    if (charge?.state === "captured") {
      return refused("already_captured", `The charge ${reference} was captured: refund it instead.`, charge);
    }
    if (charge?.state === "declined") {
      return refused("already_declined", `The charge ${reference} was declined: nothing is left to void.`, charge);
    }
    if (charge === undefined && this.#isFull()) return refused("ledger_full", fullMessage);
    const tombstone: StoredCharge = charge ?? {
      gateway,
      reference,
      token: "",
      amount_minor: 0,
      currency: "",
      state: "voided",
      captured_minor: 0,
      transaction_id: "",
      response_code: "",
      decline_reason: "",
      create_time: this.#time(),
    };
    return { ok: this.#commitCharge({ ...tombstone, state: "voided" }) };
  }

  /**
   * Refunds by key. One that exceeds what is left of the capture is entered as failed, so that its key is used up and
   * the answer stays the same however often it is asked.
   */
  refund(
    gateway: SandboxGatewayName,
    request: RefundRequestBody,
    behaviour: (charge: ChargeBody) => RefundBehaviour,
  ): Decision<RefundBody> {
    const earlier = this.findRefund(gateway, request.key);
    if (earlier !== undefined) {
      const same =
        earlier.reference === request.reference &&
        earlier.amount_minor === request.amount_minor &&
        earlier.currency === request.currency;
      if (same) return { ok: earlier };
      return refused("key_conflict", `The key ${request.key} belongs to a refund of other parameters.`);
    }
    const account = this.#accounts.get(keyOf(gateway, request.reference));
    if (account?.charge.state !== "captured") {
      return refused("charge_not_found", `There is no captured charge ${request.reference}.`);
    }
    if (this.#isFull()) return refused("ledger_full", fullMessage);
    const refund: RefundBody = {
      gateway,
      ...request,
      transaction_id: `rfd_${randomUUID()}`,
      create_time: this.#time(),
      ...refundOutcome(account, request, behaviour(chargeOf(account))),
    };
    return { ok: this.#commitRefund(refund) };
  }

  /** Completes a refund that was pending; any other stays as it is. */
  completeLate(gateway: SandboxGatewayName, key: string): void {
    const refund = this.findRefund(gateway, key);
    if (refund?.state !== "pending") return;
    this.#commitRefund({ ...refund, state: "completed", response_code: responseCodes.approved });
  }

  /** The bank sends a refund back, also one that had completed. */
  failRefund(gateway: SandboxGatewayName, key: string): Decision<RefundBody> {
    const refund = this.findRefund(gateway, key);
    if (refund === undefined) return refused("refund_not_found", `There is no refund ${key}.`);
    if (refund.state === "failed") return { ok: refund };
    return {
      ok: this.#commitRefund({
        ...refund,
        state: "failed",
        response_code: responseCodes.doNotHonor,
        failure_reason: "returned_by_bank",
      }),
    };
  }

  /** A cardholder disputes a capture, or a part of it; never more than is neither refunded nor disputed. */
  openDispute(gateway: SandboxGatewayName, reference: string, request: DisputeRequestBody): Decision<DisputeBody> {
    const account = this.#accounts.get(keyOf(gateway, reference));
    if (account?.charge.state !== "captured") {
      return refused("charge_not_found", `There is no captured charge ${reference}.`);
    }
    if (this.#isFull()) return refused("ledger_full", fullMessage);
    const remaining = remainingMinor(account);
    const amount = request.amount_minor ?? remaining;
    if (amount > remaining || amount === 0) {
      return refused("amount_exceeds_remaining", `Of the charge ${reference} only ${remaining} can be disputed.`);
    }
    const dispute: DisputeBody = {
      gateway,
      id: `dsp_${randomUUID()}`,
      reference,
      amount_minor: amount,
      currency: account.charge.currency,
      state: "open",
      reason: request.reason ?? "fraudulent",
      create_time: this.#time(),
    };
    return { ok: this.#commitDispute(dispute, "dispute.opened") };
  }

  /** Decides an open dispute: won gives the amount back to the merchant, lost keeps it with the cardholder. */
  closeDispute(gateway: SandboxGatewayName, id: string, state: "won" | "lost"): Decision<DisputeBody> {
    const dispute = this.#disputes.get(keyOf(gateway, id));
    if (dispute === undefined) return refused("dispute_not_found", `There is no dispute ${id}.`);
    if (dispute.state === state) return { ok: dispute };
    if (dispute.state !== "open") return refused("already_decided", `The dispute ${id} was ${dispute.state} before.`);
    return { ok: this.#commitDispute({ ...dispute, state }, `dispute.${state}`) };
  }

  /** Notes that an event needs no more sending. After a crash it may be sent again: delivery is at least once. */
  eventDelivered(id: string): void {
    if (this.#waitingEvents.has(id)) this.#commit({ delivered: id });
  }

  #commitCharge(charge: StoredCharge): ChargeBody {
    const transition: Transition = { charge };
    if (charge.state !== "pending") {
      const account = this.#accounts.get(keyOf(charge.gateway, charge.reference));
      this.#addEvent(transition, `charge.${charge.state}`, { charge: chargeOf({ ...(account ?? noSums), charge }) });
    }
    this.#commit(transition);
    return this.#mustFind(charge);
  }

  #commitRefund(refund: RefundBody): RefundBody {
    const transition: Transition = { refund };
    if (refund.state !== "pending") this.#addEvent(transition, `refund.${refund.state}`, { refund });
    this.#commit(transition);
    return refund;
  }

  #commitDispute(dispute: DisputeBody, type: SandboxEventType): DisputeBody {
    const transition: Transition = { dispute };
    this.#addEvent(transition, type, { dispute });
    this.#commit(transition);
    return dispute;
  }

  #addEvent(
    transition: Transition,
    type: SandboxEventType,
    subject: Pick<WebhookEventBody, "charge" | "refund" | "dispute">,
  ): void {
    const gateway = (subject.charge ?? subject.refund ?? subject.dispute)?.gateway;
    if (!this.#options.recordEvents || gateway === undefined || this.#waitingEvents.size >= maxWaitingEvents) return;
    transition.event = { id: `evt_${randomUUID()}`, type, gateway, create_time: this.#time(), ...subject };
  }

  #commit(transition: Transition): void {
    // The journal throws when it has failed before; then nothing may change in memory either.
    this.#openJournal().append(JSON.stringify(transition));
    this.#apply(transition);
    if (transition.event !== undefined) this.#options.onEvent?.();
  }

  #apply(transition: Transition): void {
    if (transition.charge !== undefined) this.#applyCharge(transition.charge);
    if (transition.refund !== undefined) this.#applyRefund(transition.refund);
    if (transition.dispute !== undefined) this.#applyDispute(transition.dispute);
    if (transition.event !== undefined) this.#waitingEvents.set(transition.event.id, transition.event);
    if (transition.delivered !== undefined) this.#waitingEvents.delete(transition.delivered);
  }

  #applyCharge(charge: StoredCharge): void {
    const key = keyOf(charge.gateway, charge.reference);
    const account = this.#accounts.get(key);
    if (account === undefined) this.#accounts.set(key, { ...noSums, charge });
    else account.charge = charge;
  }

  #applyRefund(refund: RefundBody): void {
    const key = keyOf(refund.gateway, refund.key);
    const account = this.#accounts.get(keyOf(refund.gateway, refund.reference));
    const before = this.#refunds.get(key);
    this.#refunds.set(key, refund);
    if (account === undefined) return;
    account.refundedMinor += amountWhen("completed", refund) - amountWhen("completed", before);
    account.pendingRefundMinor += amountWhen("pending", refund) - amountWhen("pending", before);
  }

  #applyDispute(dispute: DisputeBody): void {
    const key = keyOf(dispute.gateway, dispute.id);
    const account = this.#accounts.get(keyOf(dispute.gateway, dispute.reference));
    const before = this.#disputes.get(key);
    this.#disputes.set(key, dispute);
    if (account !== undefined) account.disputedMinor += disputedMinor(dispute) - disputedMinor(before);
  }

  #replay(line: string): boolean {
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch {
      return false;
    }
    const parsed = transitionSchema.safeParse(value);
    if (!parsed.success) return false;
    this.#apply(withoutUndefined(parsed.data));
    return true;
  }

  /** The same books with one line per entity, where the journal holds many lines that say nothing any more. */
  #snapshot(replayedLines: number): Iterable<string> | undefined {
    const entities = this.#size() + this.#waitingEvents.size;
    if (replayedLines <= entities * compactionFactor + compactionFloorLines) return undefined;
    return this.#snapshotLines();
  }

  *#snapshotLines(): Generator<string> {
    // Charges come first: refunds and disputes add to the sums of an account that must be there.
    for (const { charge } of this.#accounts.values()) yield JSON.stringify({ charge } satisfies Transition);
    for (const refund of this.#refunds.values()) yield JSON.stringify({ refund } satisfies Transition);
    for (const dispute of this.#disputes.values()) yield JSON.stringify({ dispute } satisfies Transition);
    for (const event of this.#waitingEvents.values()) yield JSON.stringify({ event } satisfies Transition);
  }

  #size(): number {
    return this.#accounts.size + this.#refunds.size + this.#disputes.size;
  }

  #isFull(): boolean {
    return this.#size() >= maxEntries;
  }

  #mustFind(charge: StoredCharge): ChargeBody {
    const found = this.findCharge(charge.gateway, charge.reference);
    if (found === undefined) throw new Error(`The charge ${charge.reference} was entered but is not there.`);
    return found;
  }

  #openJournal(): SandboxJournal {
    if (this.#journal === undefined) throw new Error("The ledger is used before it was opened.");
    return this.#journal;
  }

  #time(): string {
    return this.#options.now().toISOString();
  }
}

const noSums = { refundedMinor: 0, pendingRefundMinor: 0, disputedMinor: 0 };
const fullMessage = `The sandbox holds its most of ${maxEntries} entries: stop it, delete its folder and start it again.`;

function keyOf(gateway: SandboxGatewayName, id: string): string {
  return `${gateway}/${id}`;
}

function chargeOf(account: Account): ChargeBody {
  return { ...account.charge, refunded_minor: account.refundedMinor, disputed_minor: account.disputedMinor };
}

function remainingMinor(account: Account): number {
  return account.charge.captured_minor - account.refundedMinor - account.pendingRefundMinor - account.disputedMinor;
}

function refundOutcome(
  account: Account,
  request: RefundRequestBody,
  behaviour: RefundBehaviour,
): Pick<RefundBody, "state" | "response_code" | "failure_reason"> {
  if (request.currency !== account.charge.currency) {
    return { state: "failed", response_code: responseCodes.notPermitted, failure_reason: "currency_mismatch" };
  }
  if (request.amount_minor > remainingMinor(account)) {
    return { state: "failed", response_code: responseCodes.exceedsAmount, failure_reason: "exceeds_captured_amount" };
  }
  if (behaviour === "fail") {
    return { state: "failed", response_code: responseCodes.doNotHonor, failure_reason: "refund_declined" };
  }
  if (behaviour === "complete_late") return { state: "pending", response_code: "", failure_reason: "" };
  return { state: "completed", response_code: responseCodes.approved, failure_reason: "" };
}

function amountWhen(state: RefundBody["state"], refund: RefundBody | undefined): number {
  return refund?.state === state ? refund.amount_minor : 0;
}

function disputedMinor(dispute: DisputeBody | undefined): number {
  return dispute === undefined || dispute.state === "won" ? 0 : dispute.amount_minor;
}

function refused(code: Refusal["code"], message: string, charge?: ChargeBody): { readonly refusal: Refusal } {
  return { refusal: charge === undefined ? { code, message } : { code, message, charge } };
}

/** Narrows zod's `key?: T | undefined` to `key?: T`; parsed JSON has no undefined members. */
function withoutUndefined(transition: z.infer<typeof transitionSchema>): Transition {
  return transition as Transition;
}
