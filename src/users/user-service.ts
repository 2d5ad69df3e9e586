import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  type Address as AddressMessage,
  AddressSchema,
  PreferencesSchema,
  Role as RoleMessage,
  type User as UserMessage,
  UserSchema,
} from "../../gen/tradepost/user/v1/user_pb.js";
import {
  type AccountEventSchema,
  CreateAddressRequestSchema,
  UpdateAddressRequestSchema,
  UpdateProfileRequestSchema,
  UpdateUserRequestSchema,
  type UserService,
} from "../../gen/tradepost/user/v1/user_service_pb.js";
import { type Caller, callerOf, callOf, type Role } from "../call.ts";
import { pageOf, readPage } from "../db/page.ts";
import type { Deps } from "../deps.ts";
import { type FieldViolation, notFound } from "../errors.ts";
import { requestRule, required } from "../request-rules.ts";
import { updatableFields } from "../update-mask.ts";
import { createAddress } from "./create-address.ts";
import { deleteAddress } from "./delete-address.ts";
import { deleteAvatar } from "./delete-avatar.ts";
import { deleteUser } from "./delete-user.ts";
import type { LoginFailures } from "./lock-store.ts";
import type { AccountEvent } from "./store.ts";
import { undeleteUser } from "./undelete-user.ts";
import { unlockUser } from "./unlock-user.ts";
import { updateAddress } from "./update-address.ts";
import { updateUser } from "./update-user.ts";
import { uploadAvatar } from "./upload-avatar.ts";
import {
  type Address,
  type AddressPatch,
  accessDenied,
  birthDateFaults,
  DEFAULT_COUNTRY,
  isoDay,
  normaliseEmail,
  type User,
  type UserPatch,
} from "./user.ts";

const roles: Readonly<Record<RoleMessage, Role | undefined>> = {
  [RoleMessage.UNSPECIFIED]: undefined,
  [RoleMessage.USER]: "USER",
  [RoleMessage.MODERATOR]: "MODERATOR",
  [RoleMessage.ADMIN]: "ADMIN",
};

/** What is absent changes nothing; where it has to be there, the rules below refuse the request. */
function unlessAbsent<Field extends string, Value>(field: Field, value: Value | undefined): { [F in Field]?: Value } {
  return value === undefined ? {} : ({ [field]: value } as { [F in Field]: Value });
}

/** Fields that concern nobody but the account's holder. */
const profileFields = {
  first_name: ({ firstName }: UserMessage) => ({ firstName }),
  last_name: ({ lastName }: UserMessage) => ({ lastName }),
  phone: ({ phone }: UserMessage) => ({ phone }),
  bio: ({ bio }: UserMessage) => ({ bio }),
  "preferences.newsletter": ({ preferences }: UserMessage) => unlessAbsent("newsletter", preferences?.newsletter),
  "preferences.notifications": ({ preferences }: UserMessage) =>
    unlessAbsent("notifications", preferences?.notifications),
};

const updatableProfile = updatableFields<typeof UserSchema, UserPatch>(UserSchema, profileFields);

const updatableUser = updatableFields<typeof UserSchema, UserPatch>(UserSchema, {
  email: ({ email }) => ({ email }),
  ...profileFields,
  date_of_birth: ({ dateOfBirth }) => unlessAbsent("dateOfBirth", dateOfBirth && isoDay(dateOfBirth)),
  role: ({ role }) => unlessAbsent("role", roles[role]),
});

const updatableAddress = updatableFields<typeof AddressSchema, AddressPatch>(AddressSchema, {
  street: ({ street }) => ({ street }),
  city: ({ city }) => ({ city }),
  state: ({ state }) => ({ state }),
  postal_code: ({ postalCode }) => ({ postalCode }),
  country: ({ country }) => ({ country }),
  primary: ({ primary }) => unlessAbsent("isPrimary", primary),
});

export const userRules = [
  requestRule(UpdateUserRequestSchema, ({ user, updateMask }, now) => {
    if (user === undefined) return [];
    const paths = updatableUser.paths(user, updateMask);
    return [
      ...required("user.id", "Id", user.id),
      ...updatableUser.faults(updateMask),
      ...emptyFields(user, paths),
      ...(paths.has("date_of_birth") ? birthDateFaults(user.dateOfBirth, now, "user.date_of_birth") : []),
    ];
  }),
  requestRule(UpdateProfileRequestSchema, ({ user, updateMask }) =>
    user === undefined
      ? []
      : [...updatableProfile.faults(updateMask), ...emptyFields(user, updatableProfile.paths(user, updateMask))],
  ),
  requestRule(CreateAddressRequestSchema, ({ address }) =>
    address === undefined ? [] : emptyAddressFields(address, new Set(["street", "city", "state", "postal_code"])),
  ),
  requestRule(UpdateAddressRequestSchema, ({ address, updateMask }) => {
    if (address === undefined) return [];
    return [
      ...required("address.id", "Id", address.id),
      ...updatableAddress.faults(updateMask),
      ...emptyAddressFields(address, updatableAddress.paths(address, updateMask)),
    ];
  }),
];

/** What every account has cannot be cleared: to name it in a mask without a value is a fault. */
function emptyFields(user: UserMessage, paths: ReadonlySet<string>): FieldViolation[] {
  return emptyOf("user", paths, [
    ["email", "Email", user.email],
    ["first_name", "First name", user.firstName],
    ["last_name", "Last name", user.lastName],
    ["date_of_birth", "Date of birth", user.dateOfBirth],
    ["role", "Role", roles[user.role]],
  ]);
}

function emptyAddressFields(address: AddressMessage, paths: ReadonlySet<string>): FieldViolation[] {
  return emptyOf("address", paths, [
    ["street", "Street", address.street],
    ["city", "City", address.city],
    ["state", "State", address.state],
    ["postal_code", "Postal code", address.postalCode],
    ["country", "Country", address.country],
  ]);
}

function emptyOf(
  holder: string,
  paths: ReadonlySet<string>,
  fields: readonly (readonly [path: string, label: string, value: unknown])[],
): FieldViolation[] {
  return fields
    .filter(([path, , value]) => paths.has(path) && (value === undefined || value === ""))
    .flatMap(([path, label]) => required(`${holder}.${path}`, label, ""));
}

export function userService(deps: Deps): Partial<ServiceImpl<typeof UserService>> {
  const { users, addresses, locks, clock, pageTokens } = deps;

  /** Accounts as admins see them. */
  const withLocks = async (shown: readonly User[], now = clock.now()) => {
    const emails = shown.map(({ email }) => email);
    const failures = await locks.of(emails, now);
    return shown.map((user) => ({ ...toUserMessage(user), ...lockFields(failures.get(user.email), now) }));
  };
  const asSeenBy = async ({ role }: Caller, user: User) => {
    const [message] = role === "ADMIN" ? await withLocks([user]) : [toUserMessage(user)];
    return message ?? toUserMessage(user);
  };
  /** Whoever asks for another's account without being an admin hears the same, whether or not it is there. */
  const mustBeSelfOrAdmin = (context: HandlerContext, userId: string): Caller => {
    const caller = callerOf(context);
    const { role } = caller;
    if (role === "ADMIN" || caller.userId === userId) return caller;
    const method = `${context.service.typeName}/${context.method.name}`;
    const facts = { userId: caller.userId, role, target: `User ${userId}`, method };
    deps.securityLog.note("access_denied", { ...facts, requestId: callOf(context).requestId });
    throw accessDenied();
  };

  return {
    async listUsers(request) {
      const { role, locked, showDeleted } = request;
      const emailPrefix = normaliseEmail(request.emailPrefix);
      const query = ["ListUsers", role, locked ?? null, emailPrefix, showDeleted];
      const page = readPage(pageTokens, request, query);
      const filter = { role: roles[role], locked, emailPrefix, showDeleted };
      const now = clock.now();
      const rows = await users.list(filter, now, page.limit, page.after?.[0]);
      const { items, nextPageToken } = pageOf(page, rows, ({ id }) => [id]);
      return { users: await withLocks(items, now), nextPageToken };
    },

    async getUser(request, context) {
      const userId = request.userId.toLowerCase();
      const caller = mustBeSelfOrAdmin(context, userId);
      const user = await users.find(userId);
      if (user === undefined || (user.deleteTime !== null && caller.role !== "ADMIN")) throw notFound("User", userId);
      return { user: await asSeenBy(caller, user) };
    },

    async updateUser({ user: given, updateMask }, context) {
      const { id = "", etag = "" } = given ?? {};
      const userId = id.toLowerCase();
      const caller = mustBeSelfOrAdmin(context, userId);
      const patch = given === undefined ? {} : updatableUser.patch(given, updateMask);
      return { user: await asSeenBy(caller, await updateUser(deps, caller, { userId, patch, etag })) };
    },

    async deleteUser({ userId }, context) {
      const caller = callerOf(context);
      return { user: await asSeenBy(caller, await deleteUser(deps, caller, userId.toLowerCase())) };
    },

    async undeleteUser({ userId }, context) {
      const caller = callerOf(context);
      return { user: await asSeenBy(caller, await undeleteUser(deps, caller, userId.toLowerCase())) };
    },

    async unlockUser({ userId }, context) {
      const caller = callerOf(context);
      return { user: await asSeenBy(caller, await unlockUser(deps, caller, userId.toLowerCase())) };
    },

    async listAccountEvents(request) {
      const userId = request.userId.toLowerCase();
      const page = readPage(pageTokens, request, ["ListAccountEvents", userId]);
      if ((await users.find(userId)) === undefined) throw notFound("User", userId);
      const rows = await users.listEvents(userId, page.limit, page.after?.[0]);
      const { items, nextPageToken } = pageOf(page, rows, ({ id }) => [id]);
      return { events: items.map(toEventMessage), nextPageToken };
    },

    async getProfile(_request, context) {
      const { userId } = callerOf(context);
      const user = await users.find(userId);
      if (user === undefined || user.deleteTime !== null) throw notFound("User", userId);
      return { user: toUserMessage(user) };
    },

    async updateProfile({ user: given, updateMask }, context) {
      const caller = callerOf(context);
      const patch = given === undefined ? {} : updatableProfile.patch(given, updateMask);
      const update = { userId: caller.userId, patch, etag: given?.etag ?? "" };
      return { user: toUserMessage(await updateUser(deps, caller, update)) };
    },

    async uploadAvatar({ image }, context) {
      return { user: toUserMessage(await uploadAvatar(deps, callerOf(context).userId, image)) };
    },

    async deleteAvatar(_request, context) {
      return { user: toUserMessage(await deleteAvatar(deps, callerOf(context).userId)) };
    },

    async createAddress({ address: given }, context) {
      const { userId } = callerOf(context);
      const address = await createAddress(deps, userId, {
        street: given?.street ?? "",
        city: given?.city ?? "",
        state: given?.state ?? "",
        postalCode: given?.postalCode ?? "",
        country: given?.country || DEFAULT_COUNTRY,
        isPrimary: given?.primary ?? false,
      });
      return { address: toAddressMessage(address) };
    },

    async listAddresses(request, context) {
      const { userId } = callerOf(context);
      const page = readPage(pageTokens, request, ["ListAddresses", userId]);
      const rows = await addresses.list(userId, page.limit, page.after?.[0]);
      const { items, nextPageToken } = pageOf(page, rows, ({ id }) => [id]);
      return { addresses: items.map(toAddressMessage), nextPageToken };
    },

    async updateAddress({ address: given, updateMask }, context) {
      const patch = given === undefined ? {} : updatableAddress.patch(given, updateMask);
      const addressId = given?.id.toLowerCase() ?? "";
      const address = await updateAddress(deps, callerOf(context).userId, addressId, patch);
      return { address: toAddressMessage(address) };
    },

    async deleteAddress({ addressId }, context) {
      await deleteAddress(deps, callerOf(context).userId, addressId.toLowerCase());
      return {};
    },
  };
}

/** The account as its holder sees it: without the fields that only admins see. */
export function toUserMessage(user: User): MessageInitShape<typeof UserSchema> {
  const [year = 0, month = 0, day = 0] = user.dateOfBirth.split("-").map(Number);
  return {
    id: user.id,
    email: user.email,
    firstName: user.firstName,
    lastName: user.lastName,
    phone: user.phone,
    dateOfBirth: { year, month, day },
    role: RoleMessage[user.role],
    bio: user.bio,
    preferences: create(PreferencesSchema, { newsletter: user.newsletter, notifications: user.notifications }),
    avatarUrl: user.avatarFile === "" ? "" : `/avatars/${user.avatarFile}`,
    emailVerified: user.emailVerified,
    createTime: timestampFromDate(user.createTime),
    updateTime: timestampFromDate(user.updateTime),
    ...(user.lastLoginTime !== null && { lastLoginTime: timestampFromDate(user.lastLoginTime) }),
    ...(user.deleteTime !== null && { deleteTime: timestampFromDate(user.deleteTime) }),
    etag: String(user.version),
  };
}

/** What admins see besides: how many wrong passwords there were, and the lock that is in force at `now`. */
function lockFields(failures: LoginFailures | undefined, now: Date) {
  const { attempts = 0, lockExpireTime = null } = failures ?? {};
  const locked = lockExpireTime !== null && lockExpireTime > now;
  return {
    failedLoginAttempts: attempts,
    locked,
    ...(locked && { lockExpireTime: timestampFromDate(lockExpireTime) }),
  };
}

function toEventMessage({ actorId, createTime, ...event }: AccountEvent): MessageInitShape<typeof AccountEventSchema> {
  return { ...event, actorId: actorId ?? "", createTime: timestampFromDate(createTime) };
}

function toAddressMessage({ isPrimary, createTime, ...address }: Address): MessageInitShape<typeof AddressSchema> {
  return { ...address, primary: isPrimary, createTime: timestampFromDate(createTime) };
}
