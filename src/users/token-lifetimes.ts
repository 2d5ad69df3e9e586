const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;

export const ACCESS_TOKEN_LIFETIME_MS = 15 * MINUTE_MS;
/** By so much the clocks of replicas may differ before a token that is good anywhere is refused anywhere. */
export const CLOCK_TOLERANCE_MS = 5 * MINUTE_MS;

/** Each rotation gives so much anew. */
const REFRESH_TOKEN_LIFETIME_MS = 30 * DAY_MS;
/** However often it is used, a session ends so long after its login. */
const MAX_SESSION_AGE_MS = 365 * DAY_MS;
/** Tabs of a browser that refresh at once, and answers that were lost, may use a refresh token again for so long. */
export const REUSE_GRACE_MS = 10_000;

/** When a refresh token that is given out at `now` expires, and its session with it. */
export function refreshExpireTime(sessionCreateTime: Date, now: Date): Date {
  const oldest = sessionCreateTime.getTime() + MAX_SESSION_AGE_MS;
  return new Date(Math.min(now.getTime() + REFRESH_TOKEN_LIFETIME_MS, oldest));
}
