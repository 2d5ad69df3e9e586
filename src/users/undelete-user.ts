import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError, etagMismatch, notFound } from "../errors.ts";
import type { SecurityLog } from "../telemetry/security-log.ts";
import type { UserStore } from "./store.ts";
import type { User } from "./user.ts";

/**
 * Brings a deleted account back as it was; its sessions stay ended.
 * @throws DomainError USER_NOT_FOUND, USER_NOT_DELETED
 */
export async function undeleteUser(
  { users, securityLog, clock }: { users: UserStore; securityLog: SecurityLog; clock: Clock },
  caller: Caller,
  userId: string,
): Promise<User> {
  const restored = await users.transaction(async (transaction) => {
    const user = await users.findForUpdate(userId, transaction);
    if (user === undefined) throw notFound("User", userId);
    if (user.deleteTime === null) {
      const details = { resource: { type: "User", name: userId } };
      throw new DomainError("precondition", "USER_NOT_DELETED", `User ${userId} is not deleted`, details);
    }
    const now = clock.now();
    const updated = await users.update(user, { deleteTime: null }, now, transaction);
    if (updated === undefined) throw etagMismatch("User", userId);
    const event = { userId, actorId: caller.userId, type: "UNDELETED", details: {}, createTime: now };
    await users.addEvent(event, transaction);
    return updated;
  });
  securityLog.note("account_undeleted", { userId, actorId: caller.userId });
  return restored;
}
