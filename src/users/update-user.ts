import type { Caller } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError, etagMismatch } from "../errors.ts";
import type { SecurityLog } from "../telemetry/security-log.ts";
import { verificationEmailJob } from "./account-jobs.ts";
import type { Revocations } from "./revocations.ts";
import type { SessionStore } from "./session-store.ts";
import type { AccountEvent, UserStore } from "./store.ts";
import { changesOf, lastAdmin, maskEmail, namesOf, type User, type UserPatch } from "./user.ts";

interface UserUpdate {
  readonly userId: string;
  readonly patch: UserPatch;
  /** Empty: whatever the version is. */
  readonly etag: string;
}

interface UpdateDeps {
  readonly users: UserStore;
  readonly sessions: SessionStore;
  readonly revocations: Revocations;
  readonly securityLog: SecurityLog;
  readonly clock: Clock;
}

/**
 * Changes an account, as far as the patch differs from it. A changed email is unverified and gets a verification mail;
 * a changed role counts from the next call on, since the access tokens that name the old one are refused.
 *
 * Admins are locked before the account, in the order that DeleteUser uses too.
 * @throws DomainError USER_NOT_FOUND, ETAG_MISMATCH, ROLE_CHANGE_FORBIDDEN, LAST_ADMIN, EMAIL_TAKEN
 */
export async function updateUser(deps: UpdateDeps, caller: Caller, update: UserUpdate): Promise<User> {
  const { users, sessions, revocations, securityLog, clock } = deps;
  const { userId, patch, etag } = update;
  const mayDemote = caller.role === "ADMIN" && patch.role !== undefined && patch.role !== "ADMIN";

  const { user, changes } = await users.transaction(async (transaction) => {
    const admins = mayDemote ? await users.lockAdmins(transaction) : [];
    const before = await users.getForUpdate(userId, transaction);
    if (etag !== "" && etag !== String(before.version)) throw etagMismatch("User", userId);
    const changes = changesOf(before, patch);
    if (Object.keys(changes).length === 0) return { user: before, changes };
    if (changes.role !== undefined) checkRoleChange(caller, before, admins);

    const now = clock.now();
    const unverified = changes.email === undefined ? {} : { emailVerified: false };
    const user = await users.update(before, { ...changes, ...unverified }, now, transaction);
    if (user === undefined) throw etagMismatch("User", userId);
    for (const event of eventsOf(before, changes)) {
      await users.addEvent({ ...event, userId, actorId: caller.userId, createTime: now }, transaction);
    }
    if (changes.role !== undefined) await sessions.refuseAccessTokens(userId, now, transaction);
    if (changes.email !== undefined) await users.enqueue([verificationEmailJob(userId)], transaction);
    return { user, changes };
  });

  const changed = namesOf(changes);
  if (changes.role !== undefined) {
    await revocations.catchUp();
    securityLog.note("role_changed", { userId, actorId: caller.userId, role: user.role });
  }
  if (changed.length > 0) securityLog.note("account_updated", { userId, actorId: caller.userId, changed });
  return user;
}

function checkRoleChange(caller: Caller, user: User, admins: readonly string[]): void {
  if (caller.role !== "ADMIN") {
    throw new DomainError("forbidden", "ROLE_CHANGE_FORBIDDEN", "Only an admin may change a role");
  }
  if (user.role === "ADMIN" && admins.every((id) => id === user.id)) throw lastAdmin(user.id);
}

/** What happened, one event for each kind of change. */
function eventsOf(before: User, changes: UserPatch): Pick<AccountEvent, "type" | "details">[] {
  const { email, role, ...profile } = changes;
  const changed = namesOf(profile).join(",");
  return [
    ...(changed === "" ? [] : [{ type: "PROFILE_UPDATED", details: { changed } }]),
    ...(email === undefined
      ? []
      : [{ type: "EMAIL_CHANGED", details: { from: maskEmail(before.email), to: maskEmail(email) } }]),
    ...(role === undefined ? [] : [{ type: "ROLE_CHANGED", details: { from: before.role, to: role } }]),
  ];
}
