/** Whether our books and a gateway say the same of a movement of money. */
import { formatMoney, fromMinor, type Money, minorDigits } from "../money.ts";
import type { BookedCharge, BookedRefund } from "./gateway-check-store.ts";
import { identifier } from "./gateways/answers.ts";
import type { ChargeState, GatewayMoney, LookupAnswer, RefundLookupAnswer } from "./gateways/gateway.ts";
import { type AttemptState, isOpen } from "./payment.ts";

/** How two words about one movement compare. */
export type Comparison =
  | { readonly kind: "agrees" }
  /** The gateway has decided what in our books is open, and there is still time for us to learn of it. */
  | { readonly kind: "under_way"; readonly books: string; readonly gateway: string }
  | { readonly kind: "disagrees"; readonly books: string; readonly gateway: string }
  | { readonly kind: "unanswered"; readonly why: string };

/** The sweeps ask at least once an hour, so after two hours a decision of the gateway has to be in our books. */
const OPEN_FOR_MS = 2 * 60 * 60_000;

type Held = ChargeState | { readonly outcome: "nothing" };
type HeldCapture = Extract<ChargeState, { outcome: "captured" }>;
type HeldRefund = Extract<RefundLookupAnswer, { kind: "found" }>["result"] | { readonly outcome: "nothing" };

const NOTHING = { outcome: "nothing" } as const;
const AGREES: Comparison = { kind: "agrees" };

/**
 * What a gateway may hold of a charge. That it does not know one that took nothing is no contradiction: no money is
 * amiss, and not every gateway keeps what came to nothing.
 */
const AGREEING: Readonly<Record<AttemptState, readonly Held["outcome"][]>> = {
  CREATED: ["nothing", "pending"],
  UNKNOWN: ["nothing", "pending"],
  CAPTURED: ["captured"],
  REVERSING: ["captured"],
  // What is cancelled before it was really taken need not be refunded.
  REVERSED: ["captured", "voided", "declined"],
  DECLINED: ["declined", "nothing"],
  NOT_EXECUTED: ["voided", "nothing"],
  VOIDED: ["voided", "nothing"],
};

const OUR_WORD: Readonly<Record<AttemptState, string>> = {
  CREATED: "it may have been sent",
  UNKNOWN: "its outcome is unknown",
  CAPTURED: "captured",
  REVERSING: "captured and to be given back",
  REVERSED: "captured and given back",
  DECLINED: "declined",
  NOT_EXECUTED: "never executed",
  VOIDED: "voided",
};

const ITS_WORD: Readonly<Record<Held["outcome"], string>> = {
  captured: "captured",
  declined: "declined",
  voided: "voided",
  pending: "not decided yet",
  nothing: "it has no such charge",
};

/** Compares a charge with what its gateway holds under our reference. */
export function compareCharge(charge: BookedCharge, answer: LookupAnswer, now: Date): Comparison {
  if (answer.kind === "unknown") return { kind: "unanswered", why: answer.detail };
  const held = answer.kind === "found" ? answer.charge : NOTHING;
  const { state, captured, cancelled, createTime, updateTime } = charge;
  if (!AGREEING[cancelled ? "REVERSED" : state].includes(held.outcome)) {
    const openSince = isOpen(charge) ? createTime : state === "REVERSING" ? updateTime : undefined;
    return differing(openSince, now, ourWord(charge), itsWord(held));
  }
  if (captured === undefined || held.outcome !== "captured") return AGREES;
  if (!isSame(captured, held.captured)) return differing(undefined, now, ourWord(charge), itsWord(held));
  if (charge.transactionId !== held.transactionId) {
    const theirs = identifier(held.transactionId) || "another";
    return differing(undefined, now, `captured as ${charge.transactionId}`, `captured as ${theirs}`);
  }
  const isKept = state === "CAPTURED" && !cancelled;
  return isKept ? compareKept(charge, held, now) : compareGivenBack(charge, captured, held, now);
}

/** Compares what has gone of a charge that is kept. */
function compareKept({ refunded, refunding, disputed }: BookedCharge, held: HeldCapture, now: Date): Comparison {
  // That the gateway has refunded less shows in the one refund which it does not have.
  const most: Money = { ...refunded, nanos: refunded.nanos + refunding.nanos };
  if (isMore(held.refunded, most)) {
    return differing(undefined, now, `${formatMoney(most)} of it refunded`, `${textOf(held.refunded)} of it refunded`);
  }
  if (isSame(disputed, held.disputed)) return AGREES;
  return differing(
    undefined,
    now,
    `${formatMoney(disputed)} of it disputed`,
    `${textOf(held.disputed)} of it disputed`,
  );
}

/**
 * Compares a charge that is not kept by what has gone back of it. By whose key that was is all the same: a person may
 * have done it at the gateway.
 */
function compareGivenBack(charge: BookedCharge, captured: Money, held: HeldCapture, now: Date): Comparison {
  const isBack = isSame(captured, held.refunded);
  if (isBack === (charge.state !== "REVERSING")) return AGREES;
  const openSince = charge.state === "REVERSING" ? charge.updateTime : undefined;
  return differing(openSince, now, ourWord(charge), `${itsWord(held)}, ${textOf(held.refunded)} of it refunded`);
}

/** Compares a refund with what its gateway holds under its key. */
export function compareRefund(
  { status, amount, createTime }: BookedRefund,
  answer: RefundLookupAnswer,
  now: Date,
): Comparison {
  if (answer.kind === "unknown") return { kind: "unanswered", why: answer.detail };
  const held: HeldRefund = answer.kind === "found" ? answer.result : NOTHING;
  const agrees = {
    PENDING: held.outcome === "pending" || held.outcome === "nothing",
    FAILED: held.outcome === "failed" || held.outcome === "nothing",
    COMPLETED: held.outcome === "completed" && isSame(amount, held.refunded),
  }[status];
  if (agrees) return AGREES;
  const openSince = status === "PENDING" ? createTime : undefined;
  return differing(openSince, now, `${status.toLowerCase()}, ${formatMoney(amount)}`, refundWord(held));
}

/** @param openSince Since when our books may learn of what the gateway says; undefined: they have their last word. */
function differing(openSince: Date | undefined, now: Date, books: string, gateway: string): Comparison {
  const inTime = openSince !== undefined && now.getTime() - openSince.getTime() < OPEN_FOR_MS;
  return { kind: inTime ? "under_way" : "disagrees", books, gateway };
}

function ourWord({ state, captured, cancelled }: BookedCharge): string {
  if (cancelled) return "captured and then cancelled by the gateway";
  return captured === undefined ? OUR_WORD[state] : `${OUR_WORD[state]}, ${formatMoney(captured)}`;
}

function itsWord(held: Held): string {
  return held.outcome === "captured" ? `captured, ${textOf(held.captured)}` : ITS_WORD[held.outcome];
}

function refundWord(held: HeldRefund): string {
  if (held.outcome === "completed") return `completed, ${textOf(held.refunded)}`;
  if (held.outcome === "nothing") return "it has no such refund";
  return held.outcome === "pending" ? "not decided yet" : "failed";
}

function isSame(ours: Money, { currency, minor }: GatewayMoney): boolean {
  return (
    currency === ours.currency && minorDigits(currency) !== undefined && fromMinor(currency, minor).nanos === ours.nanos
  );
}

/** More, or something else. */
function isMore(theirs: GatewayMoney, ours: Money): boolean {
  if (theirs.currency !== ours.currency || minorDigits(theirs.currency) === undefined) return true;
  return fromMinor(theirs.currency, theirs.minor).nanos > ours.nanos;
}

/** As a person writes it; a currency that we do not know has no decimals that we know. */
function textOf({ currency, minor }: GatewayMoney): string {
  if (minorDigits(currency) === undefined) return `${minor} minor units of ${identifier(currency) || "no currency"}`;
  return formatMoney(fromMinor(currency, minor));
}
