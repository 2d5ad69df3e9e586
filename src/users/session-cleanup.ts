import type { Deps } from "../deps.ts";
import { ACCESS_TOKEN_LIFETIME_MS, CLOCK_TOLERANCE_MS } from "./token-lifetimes.ts";

/** Few enough that no lock is held for long. */
const MAX_ROWS_AT_ONCE = 500;
/** A replica that reads revocations from the beginning takes those of a token's lifetime and more. */
const KEEP_REVOCATIONS_MS = 2 * (ACCESS_TOKEN_LIFETIME_MS + CLOCK_TOLERANCE_MS);

/**
 * Deletes sessions and refresh tokens that have expired, and revocations that no token can be concerned by: a bounded
 * number. Replicas may do it at once: each takes other rows.
 * @returns whether more may be left.
 */
export async function cleanUpSessions({ sessions, clock }: Pick<Deps, "sessions" | "clock">): Promise<boolean> {
  const now = clock.now();
  const revokedBefore = new Date(now.getTime() - KEEP_REVOCATIONS_MS);
  return (await sessions.deleteExpired(now, revokedBefore, MAX_ROWS_AT_ONCE)) > 0;
}
