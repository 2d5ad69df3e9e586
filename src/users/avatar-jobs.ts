import type { Clock } from "../deps.ts";
import type { Files } from "../files/files.ts";
import type { Job } from "../jobs/enqueue.ts";
import type { JobHandlers } from "../jobs/worker.ts";
import type { AvatarStore } from "./avatar-store.ts";

/** Longer than any call that uploads a picture may take, whatever the clocks of replicas say. */
const ABANDONED_AFTER_MS = 60 * 60 * 1000;
const MAX_FILES_AT_ONCE = 50;

const REMOVE_AVATAR_FILES = "remove-avatar-files";

/** Follows every change that leaves a file behind; one that waits does for all of them. */
export const removeAvatarFilesJob: Job = { task: REMOVE_AVATAR_FILES, payload: {}, key: REMOVE_AVATAR_FILES };

interface AvatarJobDeps {
  readonly avatars: AvatarStore;
  readonly files: Files;
  readonly clock: Clock;
}

/** The handlers of the jobs about pictures. */
export function avatarJobs(deps: AvatarJobDeps): JobHandlers {
  return { [REMOVE_AVATAR_FILES]: (_payload, { signal }) => removeAvatarFiles(deps, signal) };
}

/**
 * Removes the files of pictures that no account shows any more: replaced and deleted ones, and those of uploads that
 * failed or that a crash cut off. May be repeated and run at the same time: removing what is gone does nothing.
 * @throws DomainError FILES_UNAVAILABLE when the store does not answer; what is left is found again the next time.
 */
async function removeAvatarFiles({ avatars, files, clock }: AvatarJobDeps, signal: AbortSignal): Promise<void> {
  const abandonedBefore = new Date(clock.now().getTime() - ABANDONED_AFTER_MS);
  for (;;) {
    const found = await avatars.toRemove(abandonedBefore, MAX_FILES_AT_ONCE);
    for (const file of found) {
      signal.throwIfAborted();
      await files.delete(file);
      await avatars.forget(file);
    }
    if (found.length < MAX_FILES_AT_ONCE) return;
  }
}
