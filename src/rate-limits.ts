import type { Database } from "./db/database.ts";
import { RateLimiter } from "./db/rate-limits.ts";

const MINUTE_S = 60;
const FAILURES_WINDOW_S = 10 * MINUTE_S;

/** How many each limit allows in its window of time. */
export interface RateLimitSettings {
  /** False: no limit is in force. */
  readonly on: boolean;
  readonly register: number;
  readonly login: number;
  readonly loginFailures: number;
  readonly resendVerification: number;
  readonly passwordReset: number;
  readonly mailsPerEmail: number;
}

export type RateLimits = ReturnType<typeof rateLimits>;

/** Every limit: by client network in a minute, but for wrong passwords (ten minutes) and mails (by email). */
export function rateLimits(db: Database, settings: RateLimitSettings) {
  const limit = (name: string, points: number, message: string, windowS = MINUTE_S) =>
    new RateLimiter(db, { name, on: settings.on, points, windowS, message });
  const { register, login, loginFailures, resendVerification, passwordReset, mailsPerEmail } = settings;
  return {
    register: limit("register", register, "Too many accounts are being made from your network"),
    login: limit("login", login, "Too many logins from your network"),
    loginFailures: limit(
      "login-failures",
      loginFailures,
      "Too many wrong passwords from your network",
      FAILURES_WINDOW_S,
    ),
    resendVerification: limit("resend-verification", resendVerification, MAILS_FROM_NETWORK),
    resendVerificationEmail: limit("resend-verification-email", mailsPerEmail, MAILS_TO_EMAIL),
    passwordReset: limit("password-reset", passwordReset, MAILS_FROM_NETWORK),
    passwordResetEmail: limit("password-reset-email", mailsPerEmail, MAILS_TO_EMAIL),
  };
}

const MAILS_FROM_NETWORK = "Too many mails were asked for from your network";
const MAILS_TO_EMAIL = "Too many mails were asked for to this email";
