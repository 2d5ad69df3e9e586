import { createHmac } from "node:crypto";
import type { Logger } from "pino";

const EMAIL_HASH_CHARS = 16;

/** Every kind of security event, with its level and the sentence for a person. */
const EVENTS = {
  account_registered: ["info", "account registered"],
  account_updated: ["info", "account updated"],
  account_deleted: ["info", "account deleted"],
  account_undeleted: ["info", "account undeleted"],
  account_locked: ["warn", "too many failures in a row: passwords for this email are refused for a while"],
  account_unlocked: ["info", "lock cleared"],
  email_verified: ["info", "email verified"],
  password_changed: ["info", "password changed"],
  password_reset: ["info", "password reset by mail"],
  role_changed: ["warn", "role changed"],
  session_revoked: ["info", "session revoked"],
  login_succeeded: ["info", "login succeeded"],
  unknown_email: ["info", "there is no account of this email"],
  wrong_password: ["warn", "the password is not the account's"],
  deleted_account: ["warn", "the account of this email is deleted"],
  login_locked: ["warn", "password refused: its email is locked"],
  client_address_limited: ["warn", "password refused: too many failures from this client address"],
  access_denied: ["warn", "access denied"],
  access_token_bad: ["warn", "bad access token"],
  refresh_token_bad: ["info", "bad refresh token"],
  refresh_token_reused: ["warn", "a refresh token was used again: its session is ended"],
  mailed_token_bad: ["warn", "bad token of a mail"],
} as const satisfies Readonly<Record<string, readonly ["info" | "warn", string]>>;

export type SecurityEvent = keyof typeof EVENTS;

/** What a security event is about. The list is closed, so that no secret gets in by accident. */
export interface SecurityFields {
  /** The account that it happens to. */
  readonly userId?: string | undefined;
  /** Who does it, where that is somebody else. */
  readonly actorId?: string | undefined;
  readonly role?: string | undefined;
  /** Written as a keyed hash only. */
  readonly email?: string | undefined;
  readonly sessionId?: string | undefined;
  /** "package.Service/Method" */
  readonly method?: string | undefined;
  /** What was asked for and refused, such as "User 0199…". */
  readonly target?: string | undefined;
  readonly requestId?: string | undefined;
  readonly clientAddress?: string | undefined;
  /** Names of what changed, never the values. */
  readonly changed?: readonly string[] | undefined;
  readonly unlockTime?: Date | undefined;
  /** Why something was refused, when whoever sent it is not told. Must not quote what was sent. */
  readonly cause?: string | undefined;
}

/**
 * The lines by which operators see attacks: each has `event`, by which they filter, and its fields. An email becomes
 * `emailHash`: equal for equal emails of one installation, and useless without its key.
 */
export class SecurityLog {
  readonly #log: Logger;
  readonly #key: Buffer;

  constructor(log: Logger, key: Buffer) {
    this.#log = log;
    this.#key = key;
  }

  /** Writes one event at its level. */
  note(event: SecurityEvent, { email, ...fields }: SecurityFields): void {
    const [level, sentence] = EVENTS[event];
    const emailHash = email === undefined ? {} : { emailHash: this.#hash(email) };
    this.#log[level]({ event, ...fields, ...emailHash }, sentence);
  }

  #hash(email: string): string {
    return createHmac("sha256", this.#key).update(email).digest("hex").slice(0, EMAIL_HASH_CHARS);
  }
}
