import { dictionary } from "@zxcvbn-ts/language-common";
import type { FieldViolation } from "../errors.ts";

/** The first that whoever guesses passwords tries. */
const COMMONEST = 10_000;

/** In lower case; the list comes commonest first. */
const common = new Set(dictionary["passwords-common"].slice(0, COMMONEST).map((password) => password.toLowerCase()));

/** The fault of a new password that many others have, in whatever case. `field` is its Protobuf name. */
export function commonPasswordFaults(field: "password" | "new_password", password: string): FieldViolation[] {
  if (!common.has(password.toLowerCase())) return [];
  const description = "Password is one of the 10,000 most common ones; choose another";
  return [{ field, reason: "PASSWORD_TOO_COMMON", description }];
}
