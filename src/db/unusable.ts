import { ConfigError } from "../config.ts";
import { sentenceOf } from "../faults.ts";
import { faultCode } from "./database.ts";
import { MigrationError } from "./migrate.ts";

const TIMEOUT_MESSAGES = /timeout|timed out|no answer within/i;

/** The second half of a sentence: why the database at `url` cannot be used, with names but without the password. */
export function whyUnusable(url: string, error: unknown): string {
  const { where, user, database } = placesOf(url);
  const message = sentenceOf(error);
  // The migrator wraps what a migration throws.
  for (const fault of [error, (error as Error | undefined)?.cause]) {
    if (fault instanceof MigrationError || fault instanceof ConfigError) return fault.message;
  }
  switch (faultCode(error)) {
    case "ECONNREFUSED":
      return `nothing listens at ${where}: start PostgreSQL there, or correct the address`;
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return `the host of ${where} cannot be found: correct the name`;
    case "28P01":
      return `PostgreSQL at ${where} does not accept the password of user "${user}"`;
    case "3D000":
      return `PostgreSQL at ${where} has no database "${database}": create it, or correct the name`;
    case "42501":
      return `user "${user}" lacks a right in database "${database}" at ${where}: ${message}`;
    case "42P01":
    case "42703":
    case "42883":
      return `database "${database}" at ${where} lacks tables of this version: start the service on it, which makes them`;
    case "55P03":
      return `another process has been migrating the database at ${where} for too long: stop it and start again`;
  }
  if (TIMEOUT_MESSAGES.test(message)) return `PostgreSQL at ${where} does not answer (${message})`;
  return `PostgreSQL at ${where} cannot be used: ${message}`;
}

function placesOf(url: string): { where: string; user: string; database: string } {
  const { hostname, port, username, pathname, searchParams } = new URL(url);
  const host = searchParams.get("host") ?? hostname;
  return { where: `${host}:${port || "5432"}`, user: decoded(username), database: decoded(pathname.slice(1)) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
