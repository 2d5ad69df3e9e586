import type { Call } from "../call.ts";
import type { Transaction } from "../db/transaction.ts";
import type { Deps } from "../deps.ts";
import { DomainError } from "../errors.ts";
import type { Login } from "./log-in.ts";
import { hashOfToken, isRefreshToken } from "./refresh-tokens.ts";
import type { Session } from "./session-store.ts";
import { REUSE_GRACE_MS, refreshExpireTime } from "./token-lifetimes.ts";
import type { User } from "./user.ts";

type RefreshDeps = Pick<
  Deps,
  "users" | "sessions" | "refreshTokens" | "tokens" | "revocations" | "securityLog" | "clock"
>;

/** What became of a refresh token that was presented. */
type Outcome =
  | { readonly outcome: "unknown" | "expired" }
  | { readonly outcome: "reused"; readonly session: Session }
  | {
      readonly outcome: "renewed";
      readonly user: User;
      readonly session: Session;
      readonly refreshToken: string;
      readonly expireTime: Date;
    };

/**
 * Exchanges a refresh token for new tokens. One that was used up moments ago gives the same successor again: tabs race,
 * and answers are lost. Used again after that, it is in two hands, and nobody can tell which of them is a thief's: the
 * session ends for both.
 * @throws DomainError TOKEN_INVALID, the same for every reason
 */
export async function refreshSession(
  deps: RefreshDeps,
  presented: string,
  { clientAddress, requestId }: Pick<Call, "clientAddress" | "requestId">,
): Promise<Login> {
  const { users, refreshTokens } = deps;
  const found: Outcome = isRefreshToken(presented)
    ? await refreshTokens.exchangeOnce(presented, () => users.transaction((tx) => exchange(deps, presented, tx)))
    : { outcome: "unknown" };
  if (found.outcome === "renewed") {
    const { user, session, refreshToken, expireTime } = found;
    const { id: sessionId, generation } = session;
    const access = await deps.tokens.issue({ userId: user.id, role: user.role, sessionId, generation });
    return { user, access, refreshToken, refreshTokenExpireTime: expireTime };
  }
  if (found.outcome === "reused") {
    await deps.revocations.catchUp();
    const { id: sessionId, userId } = found.session;
    deps.securityLog.note("refresh_token_reused", { userId, sessionId, clientAddress, requestId });
  } else {
    deps.securityLog.note("refresh_token_bad", { cause: found.outcome, clientAddress, requestId });
  }
  const message = "The refresh token is invalid or expired; log in again";
  throw new DomainError("unauthenticated", "TOKEN_INVALID", message);
}

/** With the session locked: what is read after that cannot be changed by another use of its tokens. */
async function exchange(deps: RefreshDeps, presented: string, transaction: Transaction): Promise<Outcome> {
  const { users, sessions, refreshTokens, clock } = deps;
  const tokenHash = hashOfToken(presented);
  const session = await sessions.lockByRefreshToken(tokenHash, transaction);
  const token = await sessions.findRefreshToken(tokenHash, transaction);
  if (session === undefined || token === undefined) return { outcome: "unknown" };
  const now = clock.now();
  if (token.expireTime <= now || session.expireTime <= now) return { outcome: "expired" };

  if (token.rotateTime !== null && now.getTime() - token.rotateTime.getTime() > REUSE_GRACE_MS) {
    await endReused(deps, session, now, transaction);
    return { outcome: "reused", session };
  }
  // Read after the session was locked: a change of role either shows here, or comes later and refuses our token.
  const user = await users.find(session.userId, transaction);
  if (user === undefined || user.deleteTime !== null) return { outcome: "unknown" };

  const refreshToken = refreshTokens.successorOf(presented);
  const successorHash = hashOfToken(refreshToken);
  const expireTime = refreshExpireTime(session.createTime, now);
  const successor = { tokenHash: successorHash, sessionId: session.id, createTime: now, expireTime, rotateTime: null };
  if (token.rotateTime === null && (await sessions.rotate(tokenHash, successor, transaction))) {
    return { outcome: "renewed", user, session, refreshToken, expireTime };
  }
  const given = await sessions.findRefreshToken(successorHash, transaction);
  if (given === undefined) return { outcome: "unknown" };
  return { outcome: "renewed", user, session, refreshToken, expireTime: given.expireTime };
}

async function endReused(deps: RefreshDeps, session: Session, now: Date, transaction: Transaction): Promise<void> {
  const { id: sessionId, userId } = session;
  await deps.sessions.end(sessionId, userId, now, transaction);
  const details = { session_id: sessionId };
  await deps.users.addEvent(
    { userId, actorId: null, type: "REFRESH_TOKEN_REUSED", details, createTime: now },
    transaction,
  );
}
