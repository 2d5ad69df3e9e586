import type { Call } from "../call.ts";
import type { Clock } from "../deps.ts";
import type { SecurityLog } from "../telemetry/security-log.ts";
import { verificationEmailRequestJob } from "./account-jobs.ts";
import type { AccountTokenStore } from "./account-token-store.ts";
import { findToken, refuseToken, stillConcerns } from "./account-tokens.ts";
import type { UserStore } from "./store.ts";

/**
 * Has a new verification mail sent, if there is an unverified account of that email. Whether there is one is found out
 * by the job: what is answered, and how fast, is the same for every email.
 */
export async function resendVerificationEmail({ users }: { users: UserStore }, email: string): Promise<void> {
  await users.transaction((transaction) => users.enqueue([verificationEmailRequestJob(email)], transaction));
}

/**
 * Uses a mailed token up, and marks the email that it was mailed to as verified.
 * @throws DomainError VERIFICATION_TOKEN_INVALID for a token that is unknown, used or expired, or was mailed to an email
 * that the account has no more.
 */
export async function verifyEmail(
  deps: { users: UserStore; accountTokens: AccountTokenStore; securityLog: SecurityLog; clock: Clock },
  token: string,
  call: Pick<Call, "clientAddress" | "requestId">,
): Promise<void> {
  const { users, accountTokens, securityLog, clock } = deps;
  const found = await findToken(deps, token, "VERIFY_EMAIL");
  if (found === undefined) throw refuseToken(deps, "VERIFY_EMAIL", undefined, call);
  const { userId, tokenHash } = found;
  const now = clock.now();
  await users.transaction(async (transaction) => {
    const user = await users.findForUpdate(userId, transaction);
    if (!stillConcerns(found, user) || !(await accountTokens.use(tokenHash, transaction))) {
      throw refuseToken(deps, "VERIFY_EMAIL", userId, call);
    }
    await accountTokens.removeAll(userId, transaction, "VERIFY_EMAIL");
    if (user.emailVerified) return;
    await users.update(user, { emailVerified: true }, now, transaction);
    const event = { userId, actorId: null, type: "EMAIL_VERIFIED", details: {}, createTime: now };
    await users.addEvent(event, transaction);
  });
  const { clientAddress, requestId } = call;
  securityLog.note("email_verified", { userId, clientAddress, requestId });
}
