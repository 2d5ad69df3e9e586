import type { Call, Caller } from "../call.ts";
import type { Deps } from "../deps.ts";
import { notFound } from "../errors.ts";

type EndDeps = Pick<Deps, "users" | "sessions" | "revocations" | "securityLog" | "clock">;

/** Ends the caller's own session. One that has just been ended by somebody else is over all the same. */
export async function logOut({ users, sessions, revocations, clock }: EndDeps, caller: Caller): Promise<void> {
  const { userId, sessionId } = caller;
  await users.transaction((transaction) => sessions.end(sessionId, userId, clock.now(), transaction));
  await revocations.catchUp();
}

/**
 * Ends one of the caller's sessions, be it the current one.
 * @throws DomainError SESSION_NOT_FOUND, also for another's
 */
export async function revokeSession(
  { users, sessions, revocations, securityLog, clock }: EndDeps,
  { userId }: Caller,
  sessionId: string,
  { clientAddress, requestId }: Pick<Call, "clientAddress" | "requestId">,
): Promise<void> {
  await users.transaction(async (transaction) => {
    const now = clock.now();
    if (!(await sessions.end(sessionId, userId, now, transaction))) throw notFound("Session", sessionId);
    const details = { session_id: sessionId };
    const event = { userId, actorId: userId, type: "SESSION_REVOKED", details, createTime: now };
    await users.addEvent(event, transaction);
  });
  await revocations.catchUp();
  securityLog.note("session_revoked", { userId, sessionId, clientAddress, requestId });
}
