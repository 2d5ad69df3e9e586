import type { Interceptor } from "@connectrpc/connect";
import type { Logger } from "pino";
import { type Caller, callOf } from "../../call.ts";
import { DomainError } from "../../errors.ts";
import type { Tokens } from "../../users/tokens.ts";
import { accessOf, mayCall } from "../access.ts";

/**
 * Lets through who the access table lets through. Where no token is needed one that is sent is checked all the same:
 * its sender must not be taken for nobody.
 */
export function auth(tokens: Tokens, log: Logger): Interceptor {
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
    if (token !== undefined) call.caller = await verify(tokens, token, log, call.requestId);
    if (!mayCall(access, call.caller?.role)) {
      log.warn(
        { method, userId: call.caller?.userId, role: call.caller?.role, requestId: call.requestId },
        "access denied",
      );
      throw forbidden("ADMIN_REQUIRED", "Only an admin may do this");
    }
    return next(req);
  };
}

async function verify(tokens: Tokens, token: string, log: Logger, requestId: string): Promise<Caller> {
  try {
    return await tokens.verify(token);
  } catch (error) {
    if (error instanceof DomainError)
      log.warn({ requestId, cause: String(error.cause ?? "unknown key") }, "bad access token");
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
