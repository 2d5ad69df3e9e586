import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  type AuthService,
  ChangePasswordRequestSchema,
  type RefreshTokenResponseSchema,
  RegisterRequestSchema,
  ResetPasswordRequestSchema,
  type SessionSchema,
} from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { callerOf, callOf } from "../call.ts";
import { pageOf, readPage } from "../db/page.ts";
import type { Deps } from "../deps.ts";
import { requestRule } from "../request-rules.ts";
import { changePassword } from "./change-password.ts";
import { commonPasswordFaults } from "./common-passwords.ts";
import { logOut, revokeSession } from "./end-session.ts";
import { type Login, logIn } from "./log-in.ts";
import { refreshSession } from "./refresh-session.ts";
import { register } from "./register.ts";
import { requestPasswordReset, resetPassword } from "./reset-password.ts";
import type { Session } from "./session-store.ts";
import { birthDateFaults, isoDay } from "./user.ts";
import { toUserMessage } from "./user-service.ts";
import { resendVerificationEmail, verifyEmail } from "./verify-email.ts";

export const authRules = [
  requestRule(RegisterRequestSchema, ({ password, dateOfBirth }, now) => [
    ...commonPasswordFaults("password", password),
    ...birthDateFaults(dateOfBirth, now),
  ]),
  requestRule(ResetPasswordRequestSchema, ({ newPassword }) => commonPasswordFaults("new_password", newPassword)),
  requestRule(ChangePasswordRequestSchema, ({ newPassword }) => commonPasswordFaults("new_password", newPassword)),
];

export function authService(deps: Deps): Partial<ServiceImpl<typeof AuthService>> {
  return {
    async register({ email, password, firstName, lastName, dateOfBirth }, context) {
      const day = (dateOfBirth && isoDay(dateOfBirth)) ?? "";
      const user = await register(deps, { email, password, firstName, lastName, dateOfBirth: day });
      const { clientAddress, requestId } = callOf(context);
      deps.securityLog.note("account_registered", { userId: user.id, email: user.email, clientAddress, requestId });
      return { user: toUserMessage(user) };
    },

    async verifyEmail({ token }, context) {
      await verifyEmail(deps, token, callOf(context));
      return {};
    },

    async resendVerificationEmail({ email }) {
      await resendVerificationEmail(deps, email);
      return {};
    },

    async requestPasswordReset({ email }) {
      await requestPasswordReset(deps, email);
      return {};
    },

    async resetPassword({ token, newPassword }, context) {
      await resetPassword(deps, { token, newPassword }, callOf(context));
      return {};
    },

    async changePassword({ currentPassword, newPassword }, context) {
      await changePassword(deps, callerOf(context), { currentPassword, newPassword }, callOf(context));
      return {};
    },

    async login({ email, password }, context) {
      return toTokensMessage(await logIn(deps, { email, password }, callOf(context)));
    },

    async refreshToken({ refreshToken }, context) {
      return toTokensMessage(await refreshSession(deps, refreshToken, callOf(context)));
    },

    async logout(_request, context) {
      await logOut(deps, callerOf(context));
      return {};
    },

    async listSessions(request, context) {
      const { userId, sessionId } = callerOf(context);
      const page = readPage(deps.pageTokens, request, ["ListSessions", userId]);
      const rows = await deps.sessions.list(userId, deps.clock.now(), page.limit, page.after?.[0]);
      const { items, nextPageToken } = pageOf(page, rows, ({ id }) => [id]);
      return { sessions: items.map((session) => toSessionMessage(session, sessionId)), nextPageToken };
    },

    async revokeSession({ sessionId }, context) {
      await revokeSession(deps, callerOf(context), sessionId, callOf(context));
      return {};
    },
  };
}

/** The answers of Login and RefreshToken have the same fields. */
function toTokensMessage({
  user,
  access,
  refreshToken,
  refreshTokenExpireTime,
}: Login): Omit<MessageInitShape<typeof RefreshTokenResponseSchema>, "$typeName"> {
  return {
    accessToken: access.token,
    accessTokenExpireTime: timestampFromDate(access.expireTime),
    refreshToken,
    refreshTokenExpireTime: timestampFromDate(refreshTokenExpireTime),
    user: toUserMessage(user),
  };
}

function toSessionMessage(session: Session, currentId: string): MessageInitShape<typeof SessionSchema> {
  const { id, createTime, lastUseTime, expireTime, clientAddress, userAgent } = session;
  return {
    id,
    createTime: timestampFromDate(createTime),
    lastUseTime: timestampFromDate(lastUseTime),
    expireTime: timestampFromDate(expireTime),
    clientAddress,
    userAgent,
    current: id === currentId,
  };
}
