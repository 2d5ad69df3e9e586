import { createHash, randomBytes } from "node:crypto";
import type { Call } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError } from "../errors.ts";
import type { SecurityLog } from "../telemetry/security-log.ts";
import type { AccountToken, AccountTokenStore, TokenPurpose } from "./account-token-store.ts";
import type { UserStore } from "./store.ts";
import type { User } from "./user.ts";

const TOKEN_BYTES = 32;
const HOUR_MS = 60 * 60_000;
const LIFETIME_MS: Readonly<Record<TokenPurpose, number>> = { VERIFY_EMAIL: 24 * HOUR_MS, RESET_PASSWORD: HOUR_MS };

interface TokenDeps {
  readonly users: UserStore;
  readonly accountTokens: AccountTokenStore;
  readonly clock: Clock;
}

/** A token that was just made, in clear: it exists in memory and in the mail alone. */
export interface IssuedToken {
  readonly token: string;
  readonly user: User;
}

/**
 * Makes a token for an account and keeps its hash.
 * @returns undefined when there is nothing to make it for: no account, a deleted one, or an email verified already.
 */
export async function issueToken(
  { users, accountTokens, clock }: TokenDeps,
  userId: string,
  purpose: TokenPurpose,
): Promise<IssuedToken | undefined> {
  const token = randomBytes(TOKEN_BYTES).toString("base64url");
  const now = clock.now();
  const user = await users.transaction(async (transaction) => {
    const found = await users.findForUpdate(userId, transaction);
    if (found === undefined || found.deleteTime !== null) return undefined;
    if (purpose === "VERIFY_EMAIL" && found.emailVerified) return undefined;
    const expireTime = new Date(now.getTime() + LIFETIME_MS[purpose]);
    const { email } = found;
    await accountTokens.add(
      { tokenHash: hashOf(token), userId, purpose, email, createTime: now, expireTime },
      transaction,
    );
    return found;
  });
  await accountTokens.sweep(now);
  return user && { token, user };
}

/**
 * What a token that somebody sends stands for; it is not used up by that.
 * @returns undefined for an unknown, used or expired one, or one for another purpose.
 */
export function findToken(
  { accountTokens, clock }: Pick<TokenDeps, "accountTokens" | "clock">,
  token: string,
  purpose: TokenPurpose,
): Promise<AccountToken | undefined> {
  return accountTokens.find(hashOf(token), purpose, clock.now());
}

/** Whether what was proved by a token's mail is about the account as it is now. */
export function stillConcerns({ email }: AccountToken, user: User | undefined): user is User {
  return user !== undefined && user.deleteTime === null && user.email === email;
}

/** Notes that somebody sent a token that cannot be used; gives the one answer to that, for whatever reason. */
export function refuseToken(
  { securityLog }: { readonly securityLog: SecurityLog },
  purpose: TokenPurpose,
  userId: string | undefined,
  { clientAddress, requestId }: Pick<Call, "clientAddress" | "requestId">,
): DomainError {
  securityLog.note("mailed_token_bad", { userId, clientAddress, requestId });
  return purpose === "VERIFY_EMAIL"
    ? new DomainError("invalid", "VERIFICATION_TOKEN_INVALID", "This token is not valid; ask for another mail")
    : new DomainError("invalid", "RESET_TOKEN_INVALID", "This token is not valid; ask for another password reset");
}

function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
