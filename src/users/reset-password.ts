import type { Call } from "../call.ts";
import type { Clock } from "../deps.ts";
import type { SecurityLog } from "../telemetry/security-log.ts";
import { passwordChangedJob, passwordResetRequestJob } from "./account-jobs.ts";
import type { AccountTokenStore } from "./account-token-store.ts";
import { findToken, refuseToken, stillConcerns } from "./account-tokens.ts";
import type { LockStore } from "./lock-store.ts";
import type { Passwords } from "./passwords.ts";
import type { Revocations } from "./revocations.ts";
import type { SessionStore } from "./session-store.ts";
import type { UserStore } from "./store.ts";

interface ResetDeps {
  readonly users: UserStore;
  readonly accountTokens: AccountTokenStore;
  readonly locks: LockStore;
  readonly passwords: Passwords;
  readonly sessions: SessionStore;
  readonly revocations: Revocations;
  readonly securityLog: SecurityLog;
  readonly clock: Clock;
}

/**
 * Has a mail sent by which its reader can set a new password, if there is an account of that email. Whether there is one
 * is found out by the job: what is answered, and how fast, is the same for every email.
 */
export async function requestPasswordReset({ users }: { users: UserStore }, email: string): Promise<void> {
  await users.transaction((transaction) => users.enqueue([passwordResetRequestJob(email)], transaction));
}

/**
 * Sets a new password on the strength of a mailed token, which is used up. Whoever has it reads the account's mail: so
 * a lock ends, the email counts as verified, and every session ends, since one may belong to whoever knew the old
 * password.
 * @throws DomainError RESET_TOKEN_INVALID for a token that is unknown, used or expired, or was mailed to an email that
 * the account has no more; OVERLOADED, DEADLINE_EXCEEDED
 */
export async function resetPassword(
  deps: ResetDeps,
  { token, newPassword }: { readonly token: string; readonly newPassword: string },
  call: Pick<Call, "clientAddress" | "requestId" | "deadline">,
): Promise<void> {
  const { users, accountTokens, locks, passwords, sessions, revocations, securityLog, clock } = deps;
  // Before the password is hashed, which is dear: a token cannot be guessed, so the time tells nothing.
  const found = await findToken(deps, token, "RESET_PASSWORD");
  if (found === undefined) throw refuseToken(deps, "RESET_PASSWORD", undefined, call);
  const { userId, tokenHash, email } = found;
  const passwordHash = await passwords.hash(newPassword, call.deadline);
  const now = clock.now();
  await users.transaction(async (transaction) => {
    await locks.clear(email, transaction);
    const user = await users.findForUpdate(userId, transaction);
    if (!stillConcerns(found, user) || !(await accountTokens.use(tokenHash, transaction))) {
      throw refuseToken(deps, "RESET_PASSWORD", userId, call);
    }
    await accountTokens.removeAll(userId, transaction);
    await users.update(user, { passwordHash, emailVerified: true }, now, transaction);
    await sessions.endAll(userId, now, transaction);
    const event = { userId, actorId: null, details: {}, createTime: now };
    await users.addEvent({ ...event, type: "PASSWORD_RESET" }, transaction);
    if (!user.emailVerified) await users.addEvent({ ...event, type: "EMAIL_VERIFIED" }, transaction);
    await users.enqueue([passwordChangedJob(user, now)], transaction);
  });
  await revocations.catchUp();
  const { clientAddress, requestId } = call;
  securityLog.note("password_reset", { userId, clientAddress, requestId });
}
