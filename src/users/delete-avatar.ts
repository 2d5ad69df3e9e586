import type { Clock } from "../deps.ts";
import type { AvatarStore } from "./avatar-store.ts";
import type { UserStore } from "./store.ts";
import type { User } from "./user.ts";

/**
 * Takes an account's picture away; its file goes soon after. Nothing changes where there is none.
 * @throws DomainError USER_NOT_FOUND
 */
export async function deleteAvatar(
  { users, avatars, clock }: { users: UserStore; avatars: AvatarStore; clock: Clock },
  userId: string,
): Promise<User> {
  return users.transaction(async (transaction) => {
    const user = await users.getForUpdate(userId, transaction);
    if (user.avatarFile === "") return user;
    const now = clock.now();
    await avatars.hide(userId, transaction);
    const changed = await users.update(user, { avatarFile: "" }, now, transaction);
    const details = { action: "DELETED" };
    await users.addEvent({ userId, actorId: userId, type: "AVATAR_CHANGED", details, createTime: now }, transaction);
    if (changed === undefined) throw new Error("a locked account has changed");
    return changed;
  });
}
