import type { Role } from "../call.ts";
import { DomainError, type FieldViolation } from "../errors.ts";

/** One account, as the database keeps it. */
export interface User {
  readonly id: string;
  /** Normalised by {@link normaliseEmail}. */
  readonly email: string;
  /** Argon2id, PHC string format. */
  readonly passwordHash: string;
  readonly firstName: string;
  readonly lastName: string;
  readonly phone: string;
  /** YYYY-MM-DD */
  readonly dateOfBirth: string;
  readonly role: Role;
  readonly bio: string;
  readonly newsletter: boolean;
  readonly notifications: boolean;
  /** Empty: no picture. */
  readonly avatarFile: string;
  readonly emailVerified: boolean;
  readonly createTime: Date;
  readonly updateTime: Date;
  readonly lastLoginTime: Date | null;
  readonly deleteTime: Date | null;
  readonly version: number;
}

/** What an update may change of an account. */
export type UserPatch = Partial<
  Pick<
    User,
    "email" | "firstName" | "lastName" | "phone" | "dateOfBirth" | "role" | "bio" | "newsletter" | "notifications"
  >
>;

/** The part of a patch that differs from what is there. */
export function changesOf<Row extends object, Patch extends Partial<Row>>(row: Row, patch: Patch): Patch {
  const differs = ([field, value]: [string, unknown]) => value !== row[field as keyof Row];
  return Object.fromEntries(Object.entries(patch).filter(differs)) as Patch;
}

/** What changes, by the names that the contract has for it: for logs and events, which do not repeat what people wrote. */
export function namesOf(changes: object): string[] {
  return Object.keys(changes).map((name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
}

/** A postal address of one account. */
export interface Address {
  readonly id: string;
  readonly userId: string;
  readonly street: string;
  readonly city: string;
  readonly state: string;
  readonly postalCode: string;
  /** ISO 3166-1 alpha-2 */
  readonly country: string;
  readonly isPrimary: boolean;
  readonly createTime: Date;
}

/** What a person tells of an address. */
export type AddressInput = Pick<Address, "street" | "city" | "state" | "postalCode" | "country" | "isPrimary">;

/** What an update may change of an address. */
export type AddressPatch = Partial<AddressInput>;

export const DEFAULT_COUNTRY = "US";
export const MAX_ADDRESSES = 100;
const EARLIEST_BIRTH_YEAR = 1900;

/** One account per email however it is typed: trimmed, Unicode NFKC, lower case. */
export function normaliseEmail(email: string): string {
  return email.normalize("NFKC").trim().toLowerCase();
}

/** A day as google.type.Date has it; 0 stands for a part that is not given. */
export interface CalendarDay {
  readonly year: number;
  readonly month: number;
  readonly day: number;
}

/** YYYY-MM-DD, or undefined when there is no such day. */
export function isoDay({ year, month, day }: CalendarDay): string | undefined {
  const date = new Date(Date.UTC(year, month - 1, day));
  const real =
    year >= 1 &&
    year <= 9999 &&
    date.getUTCFullYear() === year &&
    date.getUTCMonth() === month - 1 &&
    date.getUTCDate() === day;
  return real ? date.toISOString().slice(0, 10) : undefined;
}

/** Faults of a date of birth: it is a real day, in the past wherever on earth one asks, and not before 1900. */
export function birthDateFaults(day: CalendarDay | undefined, now: Date, field = "date_of_birth"): FieldViolation[] {
  if (day === undefined) return [];
  const fault = (reason: string, description: string) => [{ field, reason, description }];
  const iso = isoDay(day);
  if (iso === undefined) return fault("DATE_INVALID", "Date of birth must be a real date");
  if (iso >= now.toISOString().slice(0, 10)) return fault("DATE_NOT_PAST", "Date of birth must be in the past");
  if (day.year < EARLIEST_BIRTH_YEAR)
    return fault("DATE_TOO_EARLY", `Date of birth must not be before ${EARLIEST_BIRTH_YEAR}`);
  return [];
}

/** The one answer to an unknown email, a wrong password and a deleted account. */
export function credentialsInvalid(): DomainError {
  return new DomainError("unauthenticated", "CREDENTIALS_INVALID", "Invalid email or password");
}

/** The email belongs to another account, be it a deleted one. */
export function emailTaken(): DomainError {
  return new DomainError("already-exists", "EMAIL_TAKEN", "An account with this email already exists");
}

/** Accounts tell by no other answer whether there is one. */
export function accessDenied(): DomainError {
  return new DomainError("forbidden", "ACCESS_DENIED", "Only an admin may see or change another account");
}

/** Somebody must be left who may do what admins do. */
export function lastAdmin(userId: string): DomainError {
  const message = `User ${userId} is the last admin; make another account an admin first`;
  return new DomainError("precondition", "LAST_ADMIN", message, { resource: { type: "User", name: userId } });
}

/** Enough of an email for its holder to know it again, and no more: for the account's events. */
export function maskEmail(email: string): string {
  const at = email.lastIndexOf("@");
  return `${[...email][0] ?? ""}***${email.slice(at)}`;
}
