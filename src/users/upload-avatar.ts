import { randomBytes } from "node:crypto";
import type { Clock } from "../deps.ts";
import { DomainError } from "../errors.ts";
import type { Files } from "../files/files.ts";
import type { AvatarImages } from "./avatar-image.ts";
import type { AvatarStore } from "./avatar-store.ts";
import type { UserStore } from "./store.ts";
import type { User } from "./user.ts";

/** Too many to guess: whoever has not been given the address of a picture cannot find it. */
const NAME_BYTES = 16;
const CONTENT_TYPE = "image/webp";
const RETRY_AFTER_MS = 1_000;

/**
 * Sets an account's picture. The new file is noted, stored, and only then shown, in one transaction with the order to
 * remove the one before; whichever step a crash comes after, the note tells of a file that nobody shows.
 * @throws DomainError FIELD_INVALID (IMAGE_INVALID), OVERLOADED, FILES_UNAVAILABLE, USER_NOT_FOUND
 */
export async function uploadAvatar(
  deps: { users: UserStore; avatars: AvatarStore; images: AvatarImages; files: Files; clock: Clock },
  userId: string,
  image: Uint8Array,
): Promise<User> {
  const { avatars, files, images, clock } = deps;
  const picture = await images.normalise(image);
  const file = `${randomBytes(NAME_BYTES).toString("hex")}.webp`;
  await avatars.begin(file, userId, clock.now());
  try {
    await files.put(file, picture, CONTENT_TYPE);
    return await show(deps, userId, file);
  } catch (error) {
    // If that fails too, the note is found to be old one day. What the caller has to know is the first fault.
    await avatars.giveUp(file).catch(() => {});
    throw error;
  }
}

function show(
  { users, avatars, clock }: Pick<Parameters<typeof uploadAvatar>[0], "users" | "avatars" | "clock">,
  userId: string,
  file: string,
): Promise<User> {
  return users.transaction(async (transaction) => {
    const user = await users.getForUpdate(userId, transaction);
    const now = clock.now();
    if (!(await avatars.show(file, userId, transaction))) throw tookTooLong();
    const changed = await users.update(user, { avatarFile: file }, now, transaction);
    const details = { action: user.avatarFile === "" ? "ADDED" : "REPLACED" };
    await users.addEvent({ userId, actorId: userId, type: "AVATAR_CHANGED", details, createTime: now }, transaction);
    if (changed === undefined) throw new Error("a locked account has changed");
    return changed;
  });
}

function tookTooLong(): DomainError {
  const message = "Storing the picture took too long; upload it again";
  return new DomainError("unavailable", "FILES_UNAVAILABLE", message, { retryAfterMs: RETRY_AFTER_MS });
}
