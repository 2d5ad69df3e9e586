import type { Call } from "../call.ts";
import type { RateLimiter } from "../db/rate-limits.ts";
import type { Transaction } from "../db/transaction.ts";
import type { Clock } from "../deps.ts";
import { DomainError } from "../errors.ts";
import type { SecurityEvent, SecurityLog } from "../telemetry/security-log.ts";
import type { LockRule, LockStore } from "./lock-store.ts";
import type { Passwords } from "./passwords.ts";
import type { UserStore } from "./store.ts";
import { credentialsInvalid, type User } from "./user.ts";

const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;

/** Five wrong passwords in a row lock for 15 minutes, five more for 30, and so on up to a day. */
export const LOCK_RULE: LockRule = {
  maxAttempts: 5,
  firstLockMs: 15 * MINUTE_MS,
  maxLockMs: DAY_MS,
  forgetAttemptsMs: DAY_MS,
  forgetLocksMs: 7 * DAY_MS,
};

interface Guards {
  readonly users: UserStore;
  readonly locks: LockStore;
  readonly passwords: Passwords;
  readonly rateLimits: { readonly loginFailures: RateLimiter };
  readonly securityLog: SecurityLog;
  readonly clock: Clock;
}

/** One try to show by a password who one is. */
export interface PasswordTry {
  /** Normalised. */
  readonly email: string;
  readonly password: string;
  /** The account of that email, deleted or not; undefined: there is none. */
  readonly account: User | undefined;
}

type CallFacts = Pick<Call, "clientAddress" | "clientNetwork" | "requestId" | "deadline">;

/**
 * Checks a password, and counts a wrong one by its email and by where it comes from. All that the answer depends on is
 * the same for an email with an account, without one and with a deleted one.
 *
 * A right one is good for nothing until `admit` has been called in the transaction of what it is for: many guesses may
 * be under way at once, and those that are beyond the limit must not learn that they were right.
 * @returns the account.
 * @throws DomainError CREDENTIALS_INVALID, ACCOUNT_LOCKED, RATE_LIMITED, OVERLOADED, DEADLINE_EXCEEDED
 */
export async function checkPassword(guards: Guards, attempt: PasswordTry, call: CallFacts): Promise<User> {
  const { locks, passwords, clock } = guards;
  await refuseIfAddressIsSpent(guards, attempt, call);
  const unlockTime = await locks.lockedUntil(attempt.email, clock.now());
  if (unlockTime !== undefined) throw refuseLocked(guards, attempt, unlockTime, call);

  const account = attempt.account?.deleteTime === null ? attempt.account : undefined;
  const right = await passwords.matches(account?.passwordHash, attempt.password, call.deadline);
  if (account === undefined || !right) throw await countFailure(guards, attempt, call);
  await refuseIfAddressIsSpent(guards, attempt, call);
  return account;
}

/**
 * The last word on a right password, in the transaction of what it is for: it forgets the wrong ones before it, unless
 * they have led to a lock meanwhile. To be called before the account's row is changed.
 * @throws DomainError ACCOUNT_LOCKED
 */
export async function admit(
  guards: Pick<Guards, "locks" | "securityLog" | "clock">,
  account: User,
  call: CallFacts,
  transaction: Transaction,
): Promise<void> {
  const { email } = account;
  const unlockTime = await guards.locks.clearUnlessLocked(email, guards.clock.now(), transaction);
  if (unlockTime !== undefined) throw refuseLocked(guards, { email, account }, unlockTime, call);
}

/** Counts a wrong password, and gives what its sender is told. */
async function countFailure(guards: Guards, attempt: PasswordTry, call: CallFacts): Promise<DomainError> {
  const { users, locks, clock, securityLog } = guards;
  const { email, account } = attempt;
  // First by address: what is beyond that limit must not lock anybody.
  await limitedByAddress(guards, attempt, call, () => guards.rateLimits.loginFailures.take(call.clientNetwork));
  const now = clock.now();
  const counted = await users.transaction(async (transaction) => {
    const failure = await locks.countFailure(email, now, transaction);
    if (failure.outcome === "locks" && account !== undefined) {
      const details = { unlock_time: failure.unlockTime.toISOString() };
      const event = { userId: account.id, actorId: null, type: "LOCKED", details, createTime: now };
      await users.addEvent(event, transaction);
    }
    return failure;
  });
  await locks.sweep(now);
  if (counted.outcome === "locked") return refuseLocked(guards, attempt, counted.unlockTime, call);

  note(guards, failureEvent(account), attempt, call);
  if (counted.outcome === "locks") {
    securityLog.note("account_locked", { ...fieldsOf(attempt, call), unlockTime: counted.unlockTime });
  }
  return credentialsInvalid();
}

function failureEvent(account: User | undefined): SecurityEvent {
  if (account === undefined) return "unknown_email";
  return account.deleteTime === null ? "wrong_password" : "deleted_account";
}

async function refuseIfAddressIsSpent(guards: Guards, attempt: PasswordTry, call: CallFacts): Promise<void> {
  await limitedByAddress(guards, attempt, call, () =>
    guards.rateLimits.loginFailures.refuseIfSpent(call.clientNetwork),
  );
}

async function limitedByAddress(
  guards: Guards,
  attempt: PasswordTry,
  call: CallFacts,
  limit: () => Promise<void>,
): Promise<void> {
  try {
    await limit();
  } catch (error) {
    if (error instanceof DomainError) note(guards, "client_address_limited", attempt, call);
    throw error;
  }
}

function refuseLocked(
  guards: Pick<Guards, "securityLog" | "clock">,
  attempt: Pick<PasswordTry, "email" | "account">,
  unlockTime: Date,
  call: CallFacts,
): DomainError {
  guards.securityLog.note("login_locked", { ...fieldsOf(attempt, call), unlockTime });
  const time = unlockTime.toISOString();
  const message = `Too many wrong passwords in a row. Try again after ${time}, or reset the password by mail`;
  const retryAfterMs = Math.max(unlockTime.getTime() - guards.clock.now().getTime(), 1);
  return new DomainError("exhausted", "ACCOUNT_LOCKED", message, { metadata: { unlock_time: time }, retryAfterMs });
}

function note(
  { securityLog }: Pick<Guards, "securityLog">,
  event: SecurityEvent,
  attempt: PasswordTry,
  call: CallFacts,
): void {
  securityLog.note(event, fieldsOf(attempt, call));
}

function fieldsOf({ email, account }: Pick<PasswordTry, "email" | "account">, call: CallFacts) {
  const { clientAddress, requestId } = call;
  return { email, userId: account?.id, clientAddress, requestId };
}
