import type { Role } from "../call.ts";
import type { Clock } from "../deps.ts";
import { newId } from "../ids.ts";
import { verificationEmailJob } from "./account-jobs.ts";
import type { Passwords } from "./passwords.ts";
import type { UserStore } from "./store.ts";
import { normaliseEmail, type User } from "./user.ts";

export interface Registration {
  readonly email: string;
  readonly password: string;
  readonly firstName: string;
  readonly lastName: string;
  /** YYYY-MM-DD */
  readonly dateOfBirth: string;
}

/**
 * Makes an account, and has a verification mail sent to it unless its email counts as verified. The password is hashed
 * before the email is looked at, so that the time taken says nothing of it.
 * @throws DomainError EMAIL_TAKEN, OVERLOADED
 */
export async function register(
  { users, passwords, clock }: { users: UserStore; passwords: Passwords; clock: Clock },
  { email, password, firstName, lastName, dateOfBirth }: Registration,
  role: Role = "USER",
  emailVerified = false,
): Promise<User> {
  const passwordHash = await passwords.hash(password);
  const now = clock.now();
  const user: User = {
    id: newId(),
    email: normaliseEmail(email),
    passwordHash,
    firstName,
    lastName,
    phone: "",
    dateOfBirth,
    role,
    bio: "",
    newsletter: true,
    notifications: true,
    avatarFile: "",
    emailVerified,
    createTime: now,
    updateTime: now,
    lastLoginTime: null,
    deleteTime: null,
    version: 1,
  };
  await users.create(user, emailVerified ? [] : [verificationEmailJob(user.id)]);
  return user;
}
