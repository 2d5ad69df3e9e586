import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { notFound } from "../errors.ts";
import type { SecurityLog } from "../telemetry/security-log.ts";
import type { LockStore } from "./lock-store.ts";
import type { UserStore } from "./store.ts";
import type { User } from "./user.ts";

/**
 * Ends the lock that wrong passwords put on an account, and forgets them. The account's own row is only read: logins
 * lock the failures first and then the account, and the two orders together could deadlock.
 * @throws DomainError USER_NOT_FOUND (deleted, too)
 */
export async function unlockUser(
  deps: { users: UserStore; locks: LockStore; securityLog: SecurityLog; clock: Clock },
  caller: Caller,
  userId: string,
): Promise<User> {
  const { users, locks, securityLog, clock } = deps;
  const user = await users.find(userId);
  if (user === undefined || user.deleteTime !== null) throw notFound("User", userId);
  await users.transaction(async (transaction) => {
    await locks.clear(user.email, transaction);
    const event = { userId, actorId: caller.userId, type: "UNLOCKED", details: {}, createTime: clock.now() };
    await users.addEvent(event, transaction);
  });
  securityLog.note("account_unlocked", { userId, actorId: caller.userId });
  return user;
}
