import { setTimeout as sleep } from "node:timers/promises";
import type { Interceptor } from "@connectrpc/connect";
import { type Call, type Caller, callOf } from "../../call.ts";
import { isAway } from "../../db/database.ts";
import { DomainError } from "../../errors.ts";
import type { SecurityLog } from "../../telemetry/security-log.ts";
import type { Tokens } from "../../users/tokens.ts";
import { accessOf, mayCall } from "../access.ts";

/** How often a stream's token is looked at, so that its receiver is gone within a second of what ends the token. */
const STREAM_CHECK_MS = 250;

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

/**
 * Passes a stream on for as long as its receiver's token is good, and ends it with what the token is refused with. While
 * that cannot be known no message is passed on, and none is lost. That the stream has ended is told at once.
 * @param verify rejects with a DomainError where the token is refused, and with what says so where it cannot be known.
 */
export async function* whileGood<T>(
  stream: AsyncIterable<T>,
  verify: () => Promise<unknown>,
  signal: AbortSignal,
): AsyncGenerator<T> {
  const messages = stream[Symbol.asyncIterator]();
  try {
    let next = new Arrival(messages.next());
    for (;;) {
      await next.within(STREAM_CHECK_MS);
      if (next.kind === "end") {
        await next.result;
        return;
      }
      const good = await isGood(verify);
      if (good && next.kind === "message") {
        yield (await next.result).value;
        next = new Arrival(messages.next());
      } else if (signal.aborted) {
        return;
      } else if (!good) {
        await sleep(STREAM_CHECK_MS);
      }
    }
  } finally {
    // Not awaited: who still waits for a message returns after that, and the end of the call ends the waiting.
    messages.return?.().catch(() => {});
  }
}

/** The next message of a stream, and what came instead of waiting for it. */
class Arrival<T> {
  readonly result: Promise<IteratorResult<T>>;
  /** Undefined: nothing yet. An end may be a fault. */
  kind: "message" | "end" | undefined;
  #wake = () => {};

  constructor(result: Promise<IteratorResult<T>>) {
    this.result = result;
    const end = () => this.#settle("end");
    result.then(({ done }) => (done === true ? end() : this.#settle("message")), end);
  }

  /** Waits until it is there, but no longer than so many milliseconds. */
  async within(ms: number): Promise<void> {
    if (this.kind !== undefined) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #settle(kind: "message" | "end"): void {
    this.kind = kind;
    this.#wake();
  }
}

/** @throws DomainError when the token is refused. */
async function isGood(verify: () => Promise<unknown>): Promise<boolean> {
  try {
    await verify();
    return true;
  } catch (error) {
    if (isAway(error) || (error instanceof DomainError && error.kind === "unavailable")) return false;
    throw error;
  }
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
