import type { Call } from "../call.ts";
import type { Deps } from "../deps.ts";
import { newId } from "../ids.ts";
import { admit, checkPassword } from "./locks.ts";
import { hashOfToken } from "./refresh-tokens.ts";
import { refreshExpireTime } from "./token-lifetimes.ts";
import type { AccessToken } from "./tokens.ts";
import { credentialsInvalid, normaliseEmail, type User } from "./user.ts";

const MAX_USER_AGENT_CHARS = 256;
/** How often a password is checked anew because its hash was changed while it was being checked. */
const MAX_CHECKS = 3;

type LoginDeps = Pick<
  Deps,
  | "users"
  | "sessions"
  | "locks"
  | "passwords"
  | "rateLimits"
  | "tokens"
  | "refreshTokens"
  | "clock"
  | "securityLog"
  | "log"
>;

export interface Login {
  readonly user: User;
  readonly access: AccessToken;
  readonly refreshToken: string;
  readonly refreshTokenExpireTime: Date;
}

/**
 * Opens a session. An unknown email, a wrong password and a deleted account are told apart neither by the error nor by
 * the work that is done.
 * @throws DomainError CREDENTIALS_INVALID, ACCOUNT_LOCKED, RATE_LIMITED, OVERLOADED, DEADLINE_EXCEEDED
 */
export async function logIn(
  deps: LoginDeps,
  credentials: { readonly email: string; readonly password: string },
  call: Call,
): Promise<Login> {
  const email = normaliseEmail(credentials.email);
  const { password } = credentials;
  for (let checks = 0; checks < MAX_CHECKS; checks++) {
    const found = await deps.users.findByEmail(email);
    const account = await checkPassword(deps, { email, password, account: found }, call);
    const login = await openSession(deps, account, call);
    if (login !== undefined) {
      const { clientAddress, requestId } = call;
      deps.securityLog.note("login_succeeded", { userId: account.id, email, clientAddress, requestId });
      // After the answer, which must not wait for it.
      if (deps.passwords.isWeak(account.passwordHash)) void upgradeHash(deps, account, password);
      return login;
    }
  }
  throw credentialsInvalid();
}

/** @returns undefined when the account was deleted or its password changed since it was checked. */
async function openSession(deps: LoginDeps, found: User, call: Call): Promise<Login | undefined> {
  const { clientAddress, userAgent } = call;
  const now = deps.clock.now();
  const expireTime = refreshExpireTime(now, now);
  const refreshToken = deps.refreshTokens.first();
  const session = {
    id: newId(),
    userId: found.id,
    createTime: now,
    lastUseTime: now,
    expireTime,
    clientAddress,
    userAgent: userAgent.slice(0, MAX_USER_AGENT_CHARS),
    generation: 1,
  };
  const tokenHash = hashOfToken(refreshToken);
  const user = await deps.users.transaction(async (transaction) => {
    await admit(deps, found, call, transaction);
    const noted = await deps.users.noteLogin(found, now, transaction);
    const first = { tokenHash, sessionId: session.id, createTime: now, expireTime, rotateTime: null };
    if (noted !== undefined) await deps.sessions.open(session, first, transaction);
    return noted;
  });
  if (user === undefined) return undefined;

  const { id: sessionId, generation } = session;
  const access = await deps.tokens.issue({ userId: user.id, role: user.role, sessionId, generation });
  return { user, access, refreshToken, refreshTokenExpireTime: expireTime };
}

/** Hashes a password anew as the settings ask for now; if that fails, the next login tries again. */
async function upgradeHash(deps: LoginDeps, { id, passwordHash }: User, password: string): Promise<void> {
  try {
    await deps.users.upgradeHash(id, passwordHash, await deps.passwords.hash(password));
  } catch (error) {
    deps.log.warn({ err: error, userId: id }, "a password hash could not be upgraded");
  }
}
