import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { v7 as uuidv7 } from "uuid";
import {
  type AddressSchema,
  PreferencesSchema,
  Role as RoleMessage,
  type UserSchema,
} from "../../gen/tradepost/user/v1/user_pb.js";
import { CreateAddressRequestSchema, type UserService } from "../../gen/tradepost/user/v1/user_service_pb.js";
import { callerOf } from "../call.ts";
import { pageOf, readPage } from "../db/page.ts";
import type { Deps } from "../deps.ts";
import { notFound } from "../errors.ts";
import { requestRule, required } from "../request-rules.ts";
import { type Address, DEFAULT_COUNTRY, type User } from "./user.ts";

export const userRules = [
  requestRule(CreateAddressRequestSchema, ({ address }) =>
    address === undefined
      ? []
      : [
          ...required("address.street", "Street", address.street),
          ...required("address.city", "City", address.city),
          ...required("address.state", "State", address.state),
          ...required("address.postal_code", "Postal code", address.postalCode),
        ],
  ),
];

export function userService({ users, addresses, clock, pageTokens }: Deps): Partial<ServiceImpl<typeof UserService>> {
  return {
    async getProfile(_request, context) {
      const { userId } = callerOf(context);
      const user = await users.find(userId);
      if (user === undefined || user.deleteTime !== null) throw notFound("User", userId);
      return { user: toUserMessage(user) };
    },

    async createAddress({ address: given }, context) {
      const { userId } = callerOf(context);
      const address = await addresses.create({
        id: uuidv7(),
        userId,
        street: given?.street ?? "",
        city: given?.city ?? "",
        state: given?.state ?? "",
        postalCode: given?.postalCode ?? "",
        country: given?.country || DEFAULT_COUNTRY,
        isPrimary: given?.primary ?? false,
        createTime: clock.now(),
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

function toAddressMessage({ isPrimary, createTime, ...address }: Address): MessageInitShape<typeof AddressSchema> {
  return { ...address, primary: isPrimary, createTime: timestampFromDate(createTime) };
}
