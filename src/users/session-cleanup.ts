import type { Deps } from "../deps.ts";
import { ACCESS_TOKEN_LIFETIME_MS, CLOCK_TOLERANCE_MS } from "./token-lifetimes.ts";

const INTERVAL_MS = 10 * 60_000;
/** Few enough that no lock is held for long. */
const MAX_ROWS_AT_ONCE = 500;
/** A replica that reads revocations from the beginning takes those of a token's lifetime and more. */
const KEEP_REVOCATIONS_MS = 2 * (ACCESS_TOKEN_LIFETIME_MS + CLOCK_TOLERANCE_MS);

type CleanupDeps = Pick<Deps, "sessions" | "clock" | "log">;

/**
 * Deletes sessions and refresh tokens that have expired, and revocations that no token can be concerned by. Replicas may
 * do it at once: each takes other rows.
 * @returns how many rows went.
 */
export async function cleanUpSessions({ sessions, clock }: CleanupDeps, signal?: AbortSignal): Promise<number> {
  const now = clock.now();
  const revokedBefore = new Date(now.getTime() - KEEP_REVOCATIONS_MS);
  let all = 0;
  for (;;) {
    const deleted = await sessions.deleteExpired(now, revokedBefore, MAX_ROWS_AT_ONCE);
    all += deleted;
    if (deleted === 0 || signal?.aborted) return all;
  }
}

/** Cleans up every ten minutes, until what is returned is called: it resolves when the batch under way has ended. */
export function startSessionCleanup(deps: CleanupDeps): () => Promise<void> {
  const stopping = new AbortController();
  let underWay: Promise<void> = Promise.resolve();
  let timer = after(INTERVAL_MS * Math.random());
  const cleanUp = async () => {
    try {
      const deleted = await cleanUpSessions(deps, stopping.signal);
      if (deleted > 0) deps.log.debug({ deleted }, "expired sessions, refresh tokens and revocations deleted");
    } catch (error) {
      deps.log.warn({ err: error }, "expired sessions could not be deleted; tried again later");
    }
    if (!stopping.signal.aborted) timer = after(INTERVAL_MS);
  };
  function after(pauseMs: number): NodeJS.Timeout {
    return setTimeout(() => {
      underWay = cleanUp();
    }, pauseMs).unref();
  }
  return async () => {
    stopping.abort();
    clearTimeout(timer);
    await underWay;
  };
}
