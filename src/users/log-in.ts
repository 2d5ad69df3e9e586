import { createHash, randomBytes } from "node:crypto";
import { v7 as uuidv7 } from "uuid";
import type { Call } from "../call.ts";
import type { Clock } from "../deps.ts";
import type { Passwords } from "./passwords.ts";
import type { SessionStore } from "./session-store.ts";
import type { UserStore } from "./store.ts";
import type { AccessToken, Tokens } from "./tokens.ts";
import { credentialsInvalid, normaliseEmail, type User } from "./user.ts";

const REFRESH_TOKEN_BYTES = 32;
const REFRESH_TOKEN_LIFETIME_MS = 30 * 24 * 60 * 60 * 1000;
const MAX_USER_AGENT_CHARS = 256;

export interface Login {
  readonly user: User;
  readonly access: AccessToken;
  readonly refreshToken: string;
  readonly refreshTokenExpireTime: Date;
}

/**
 * Opens a session. An unknown email, a wrong password and a deleted account are told apart neither by the error nor by
 * the work that is done.
 * @throws DomainError CREDENTIALS_INVALID, OVERLOADED
 */
export async function logIn(
  deps: { users: UserStore; sessions: SessionStore; passwords: Passwords; tokens: Tokens; clock: Clock },
  credentials: { readonly email: string; readonly password: string },
  { clientAddress, userAgent }: Pick<Call, "clientAddress" | "userAgent">,
): Promise<Login> {
  const found = await deps.users.findByEmail(normaliseEmail(credentials.email));
  const matches = await deps.passwords.matches(found?.passwordHash, credentials.password);
  if (found === undefined || !matches || found.deleteTime !== null) throw credentialsInvalid();

  const now = deps.clock.now();
  const expireTime = new Date(now.getTime() + REFRESH_TOKEN_LIFETIME_MS);
  const refreshToken = randomBytes(REFRESH_TOKEN_BYTES).toString("base64url");
  const session = {
    id: uuidv7(),
    userId: found.id,
    createTime: now,
    lastUseTime: now,
    expireTime,
    clientAddress,
    userAgent: userAgent.slice(0, MAX_USER_AGENT_CHARS),
  };
  const tokenHash = createHash("sha256").update(refreshToken).digest();
  const user = await deps.users.transaction(async (transaction) => {
    const noted = await deps.users.noteLogin(found.id, now, transaction);
    const first = { tokenHash, sessionId: session.id, createTime: now, expireTime, rotateTime: null };
    if (noted !== undefined) await deps.sessions.open(session, first, transaction);
    return noted;
  });
  if (user === undefined) throw credentialsInvalid();

  const access = await deps.tokens.issue({ userId: user.id, role: user.role, sessionId: session.id });
  return { user, access, refreshToken, refreshTokenExpireTime: expireTime };
}
