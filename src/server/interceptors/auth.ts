import type { Interceptor } from "@connectrpc/connect";
import { type Call, type Caller, callOf } from "../../call.ts";
import { DomainError } from "../../errors.ts";
import type { SecurityLog } from "../../telemetry/security-log.ts";
import type { Tokens } from "../../users/tokens.ts";
import { accessOf, mayCall } from "../access.ts";
import { whileGood } from "./while-good.ts";

/**
 * Lets through who the access table lets through. Where no token is needed one that is sent is checked all the same:
 * its sender must not be taken for nobody. A stream ends when its token does.
 */
export function auth(tokens: Tokens, securityLog: SecurityLog): Interceptor {
  return (next) => async (req) => {
    const method = `${req.service.typeName}/${req.method.name}`;
    const access = accessOf(method);
    const call = callOf({ values: req.contextValues });
    if (access === undefined) throw forbidden("ACCESS_DENIED", `Nobody may call ${method}`);

    const token = bearerToken(req.header.get("authorization"));
    if (token === undefined && access !== "anybody") {
      throw new DomainError(
        "unauthenticated",
        "TOKEN_MISSING",
        "Send an access token as `authorization: Bearer <token>`",
      );
    }
    if (token !== undefined) call.caller = await verify(tokens, token, securityLog, call);
    if (!mayCall(access, call.caller?.role)) {
      const { requestId, clientAddress, caller } = call;
      const who = { userId: caller?.userId, role: caller?.role, requestId, clientAddress };
      securityLog.note("access_denied", { ...who, method, target: method });
      throw forbidden("ADMIN_REQUIRED", "Only an admin may do this");
    }
    const res = await next(req);
    if (!res.stream || token === undefined) return res;
    return { ...res, message: whileGood(res.message, () => tokens.verify(token), req.signal) };
  };
}

async function verify(
  tokens: Tokens,
  token: string,
  securityLog: SecurityLog,
  { requestId, clientAddress }: Call,
): Promise<Caller> {
  try {
    return await tokens.verify(token);
  } catch (error) {
    if (error instanceof DomainError && error.reason === "TOKEN_INVALID") {
      const cause = String(error.details.cause ?? "unknown key");
      securityLog.note("access_token_bad", { cause, requestId, clientAddress });
    }
    throw error;
  }
}

/** The token of an `authorization` header; undefined where there is none. Another scheme is no token either. */
function bearerToken(header: string | null): string | undefined {
  const match = /^bearer +(\S+) *$/i.exec(header ?? "");
  return match?.[1];
}

function forbidden(reason: string, message: string): DomainError {
  return new DomainError("forbidden", reason, message);
}
