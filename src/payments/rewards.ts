import type { Clock } from "../deps.ts";
import type { Money } from "../money.ts";
import type { RewardStore } from "./reward-store.ts";

const NANOS_PER_UNIT = 1_000_000_000n;
/** Smaller payments earn nothing. */
const MIN_UNITS = 100n;

/** How a completed payment and its points stand. */
export interface RewardStanding {
  readonly amount: Money;
  /** The sum of its completed refunds. */
  readonly refunded: Money;
  /** Undefined: its points are not booked yet. */
  readonly earned: bigint | undefined;
  /** What its refunds took back until now, and banks' returns of refunds gave again; not positive. */
  readonly takenBack: bigint;
}

/** Points to be booked, for a payment or (negative) for its refund. */
export interface DueReward {
  readonly refundId: string | null;
  readonly points: bigint;
}

interface RewardDeps {
  readonly rewards: RewardStore;
  readonly clock: Clock;
}

/** Books what a completed payment earns, once. */
export async function grantRewards({ rewards, clock }: RewardDeps, paymentId: string): Promise<void> {
  await rewards.book(paymentId, (standing) => dueRewards(standing, undefined), clock.now());
}

/** Makes a payment's points follow its refunds after one of them has completed, or was sent back by the bank. */
export async function followRefund(
  { rewards, clock }: RewardDeps,
  { id, paymentId }: { readonly id: string; readonly paymentId: string },
): Promise<void> {
  await rewards.book(paymentId, (standing) => dueRewards(standing, id), clock.now());
}

/** One point a whole unit of the currency, from a hundred units on. */
export function pointsFor({ nanos }: Money): bigint {
  const units = nanos / NANOS_PER_UNIT;
  return units >= MIN_UNITS ? units : 0n;
}

/**
 * What is to be booked so that a payment keeps the share of its points that it keeps of its money. It is the difference
 * to what is booked already, so that the roundings of many refunds never add up, and a full refund leaves nothing.
 */
export function dueRewards(
  { amount, refunded, earned, takenBack }: RewardStanding,
  refundId: string | undefined,
): DueReward[] {
  const points = earned ?? pointsFor(amount);
  if (points === 0n) return [];
  // The payment's own job may come after a refund's.
  const due: DueReward[] = earned === undefined ? [{ refundId: null, points }] : [];
  if (refundId === undefined) return due;
  const share = -roundedQuotient(points * refunded.nanos, amount.nanos);
  if (share !== takenBack) due.push({ refundId, points: share - takenBack });
  return due;
}

/** Half is rounded up; neither number is negative. */
function roundedQuotient(dividend: bigint, divisor: bigint): bigint {
  return (2n * dividend + divisor) / (2n * divisor);
}
