import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { type AuthService, RegisterRequestSchema } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { callOf } from "../call.ts";
import type { Deps } from "../deps.ts";
import { requestRule } from "../request-rules.ts";
import { logIn } from "./log-in.ts";
import { register } from "./register.ts";
import { birthDateFaults, isoDay } from "./user.ts";
import { toUserMessage } from "./user-service.ts";

export const authRules = [
  requestRule(RegisterRequestSchema, ({ dateOfBirth }, now) => birthDateFaults(dateOfBirth, now)),
];

export function authService(deps: Deps): Partial<ServiceImpl<typeof AuthService>> {
  return {
    async register({ email, password, firstName, lastName, dateOfBirth }) {
      const day = (dateOfBirth && isoDay(dateOfBirth)) ?? "";
      const user = await register(deps, { email, password, firstName, lastName, dateOfBirth: day });
      deps.log.info({ userId: user.id }, "account registered");
      return { user: toUserMessage(user) };
    },

    async login({ email, password }, context) {
      const { user, access, refreshToken, refreshTokenExpireTime } = await logIn(
        deps,
        { email, password },
        callOf(context),
      );
      return {
        accessToken: access.token,
        accessTokenExpireTime: timestampFromDate(access.expireTime),
        refreshToken,
        refreshTokenExpireTime: timestampFromDate(refreshTokenExpireTime),
        user: toUserMessage(user),
      };
    },
  };
}
