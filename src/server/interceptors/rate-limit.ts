import type { Interceptor } from "@connectrpc/connect";
import { type Call, callOf } from "../../call.ts";
import type { RateLimits } from "../../rate-limits.ts";

/** What a limit counts by. */
const KEYS = {
  network: ({ clientNetwork }: Call) => clientNetwork,
  email: (_call: Call, message: object) => ("email" in message ? String(message.email) : ""),
} as const;

/** Which limits a call of which RPC counts for, in this order. RPCs that are not here have none. */
const table: Readonly<Record<string, readonly (readonly [keyof RateLimits, keyof typeof KEYS])[]>> = {
  "tradepost.user.v1.AuthService/Register": [["register", "network"]],
  "tradepost.user.v1.AuthService/Login": [["login", "network"]],
  "tradepost.user.v1.AuthService/ResendVerificationEmail": [
    ["resendVerification", "network"],
    ["resendVerificationEmail", "email"],
  ],
  "tradepost.user.v1.AuthService/RequestPasswordReset": [
    ["passwordReset", "network"],
    ["passwordResetEmail", "email"],
  ],
};

/**
 * Refuses calls beyond the limits of their RPC. It comes after validation, whose cost is far below that of counting: a
 * faulty request does not count, and an email is normalised before it is counted by.
 */
export function rateLimit(limits: RateLimits): Interceptor {
  return (next) => async (req) => {
    if (req.stream) return next(req);
    const counted = table[`${req.service.typeName}/${req.method.name}`] ?? [];
    const call = callOf({ values: req.contextValues });
    for (const [limit, key] of counted) await limits[limit].take(KEYS[key](call, req.message));
    return next(req);
  };
}
