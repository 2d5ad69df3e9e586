import type { Call, Caller } from "../call.ts";
import { DomainError, notFound } from "../errors.ts";
import { passwordChangedJob } from "./account-jobs.ts";
import type { AccountTokenStore } from "./account-token-store.ts";
import { admit, checkPassword } from "./locks.ts";
import type { Revocations } from "./revocations.ts";
import type { SessionStore } from "./session-store.ts";

type ChangeDeps = Parameters<typeof checkPassword>[0] & {
  readonly accountTokens: AccountTokenStore;
  readonly sessions: SessionStore;
  readonly revocations: Revocations;
};

/**
 * Sets a new password for the caller, who has to know the one so far: an access token alone must not be enough to take
 * an account over. A wrong one counts as it does at a login. Every other session ends, and so do resets under way.
 * @throws DomainError CREDENTIALS_INVALID, ACCOUNT_LOCKED, RATE_LIMITED, OVERLOADED, DEADLINE_EXCEEDED, USER_NOT_FOUND
 */
export async function changePassword(
  deps: ChangeDeps,
  { userId, sessionId }: Caller,
  { currentPassword, newPassword }: { readonly currentPassword: string; readonly newPassword: string },
  call: Call,
): Promise<void> {
  const { users, accountTokens, passwords, sessions, revocations, securityLog, clock } = deps;
  const found = await users.find(userId);
  if (found === undefined) throw notFound("User", userId);
  const attempt = { email: found.email, password: currentPassword, account: found };
  const account = await checkPassword(deps, attempt, call).catch((error: unknown) => {
    throw error instanceof DomainError && error.reason === "CREDENTIALS_INVALID" ? currentPasswordWrong() : error;
  });
  const passwordHash = await passwords.hash(newPassword, call.deadline);
  const now = clock.now();
  await users.transaction(async (transaction) => {
    await admit(deps, account, call, transaction);
    const user = await users.findForUpdate(userId, transaction);
    // Changed or deleted between the check and the lock: what was checked is not the current password any more.
    if (user === undefined || user.deleteTime !== null || user.passwordHash !== account.passwordHash) {
      throw currentPasswordWrong();
    }
    await accountTokens.removeAll(userId, transaction, "RESET_PASSWORD");
    await users.update(user, { passwordHash }, now, transaction);
    await sessions.endAll(userId, now, transaction, sessionId);
    const event = { userId, actorId: userId, type: "PASSWORD_CHANGED", details: {}, createTime: now };
    await users.addEvent(event, transaction);
    await users.enqueue([passwordChangedJob(user, now)], transaction);
  });
  await revocations.catchUp();
  const { clientAddress, requestId } = call;
  securityLog.note("password_changed", { userId, sessionId, clientAddress, requestId });
}

function currentPasswordWrong(): DomainError {
  return new DomainError("unauthenticated", "CREDENTIALS_INVALID", "The current password is wrong");
}
