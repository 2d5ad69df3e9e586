import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError, etagMismatch } from "../errors.ts";
import type { SecurityLog } from "../telemetry/security-log.ts";
import type { Revocations } from "./revocations.ts";
import type { SessionStore } from "./session-store.ts";
import type { UserStore } from "./store.ts";
import { lastAdmin, type User } from "./user.ts";

interface DeleteDeps {
  readonly users: UserStore;
  readonly sessions: SessionStore;
  readonly revocations: Revocations;
  readonly securityLog: SecurityLog;
  readonly clock: Clock;
}

/**
 * Deletes an account and ends its sessions; the row stays, and with it the email. As nobody deletes themselves, an
 * admin is left in the ordinary case; two who delete each other at once are held by the lock on all admins.
 * @throws DomainError SELF_DELETION, USER_NOT_FOUND (deleted already, too), LAST_ADMIN
 */
export async function deleteUser(deps: DeleteDeps, caller: Caller, userId: string): Promise<User> {
  const { users, sessions, revocations, securityLog, clock } = deps;
  if (userId === caller.userId) {
    const message = "Nobody may delete their own account; ask another admin";
    throw new DomainError("precondition", "SELF_DELETION", message);
  }
  const deleted = await users.transaction(async (transaction) => {
    const admins = await users.lockAdmins(transaction);
    const user = await users.getForUpdate(userId, transaction);
    if (user.role === "ADMIN" && admins.every((id) => id === userId)) throw lastAdmin(userId);
    const now = clock.now();
    const updated = await users.update(user, { deleteTime: now }, now, transaction);
    if (updated === undefined) throw etagMismatch("User", userId);
    const event = { userId, actorId: caller.userId, type: "DELETED", details: {}, createTime: now };
    await users.addEvent(event, transaction);
    await sessions.endAll(userId, now, transaction);
    return updated;
  });
  await revocations.catchUp();
  securityLog.note("account_deleted", { userId, actorId: caller.userId });
  return deleted;
}
