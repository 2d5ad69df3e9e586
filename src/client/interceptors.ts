import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Interceptor, type UnaryRequest } from "@connectrpc/connect";
import { errorInfo, reasonOf, retryDelayMs } from "./errors.ts";
import type { TokenSource } from "./session.ts";

const firstRetryDelayMs = 100;
/** A server that asks for more patience than this gets it from the caller, not from a call that hangs. */
const maxRetryDelayMs = 5_000;

/** Waits for a promise no longer than the call lasts that needs it. */
function within<T>(signal: AbortSignal, promise: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(ConnectError.from(signal.reason, Code.Canceled));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}

function sleep(durationMs: number, signal: AbortSignal): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const elapsed = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, durationMs);
  });
  return within(signal, elapsed).finally(() => clearTimeout(timer));
}

/** Whether the server refused the token itself, not something else that the call carried. */
function isTokenRefused(error: unknown): boolean {
  return ConnectError.from(error).code === Code.Unauthenticated && reasonOf(error) !== "CREDENTIALS_INVALID";
}

/**
 * Sends the source's token with every call that has no authorization header yet. A unary call whose token is refused
 * is repeated once, with the token that the source gives instead. A stream that is refused ends, and the next call has
 * another token: only its caller knows where to go on.
 */
export function bearerToken(source: TokenSource): Interceptor {
  return (next) => async (request) => {
    if (request.header.has("authorization")) return next(request);
    const token = await within(request.signal, (async () => source.token())());
    if (token !== undefined && token !== "") request.header.set("authorization", `Bearer ${token}`);
    if (token === undefined) return next(request);
    const renew = async () => source.renew(token);
    try {
      const response = await next(request);
      if (!response.stream) return response;
      return { ...response, message: renewing(response.message, renew) };
    } catch (error) {
      if (!isTokenRefused(error)) throw error;
      const renewed = await within(request.signal, renew());
      if (request.stream || renewed === undefined || renewed === "" || renewed === token) throw error;
      request.header.set("authorization", `Bearer ${renewed}`);
      return next(request);
    }
  };
}

/** Passes a stream on, and sees to another token when this one is refused. */
async function* renewing<T>(stream: AsyncIterable<T>, renew: () => Promise<unknown>): AsyncGenerator<T> {
  try {
    yield* stream;
  } catch (error) {
    // Where it fails, the next call that needs the token finds out why.
    if (isTokenRefused(error)) renew().catch(() => {});
    throw error;
  }
}

/** Whether doing the call twice is the same as doing it once: it only reads, or its request_id makes it so. */
function isRepeatable({ method, message }: UnaryRequest): boolean {
  const level = method.idempotency;
  if (level === MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS) return true;
  if (level === MethodOptions_IdempotencyLevel.IDEMPOTENT) return true;
  return "requestId" in message && typeof message["requestId"] === "string" && message["requestId"] !== "";
}

/** Whether the server was not reached, said that it is away, or the connection broke before its answer. */
function isPassing(error: unknown): boolean {
  const { code } = ConnectError.from(error);
  return code === Code.Unavailable || (code === Code.Aborted && errorInfo(error) === undefined);
}

/**
 * Repeats a unary call that is safe to repeat and failed for a passing reason, at most `maxRetries` times. It waits as
 * long as the server asks, or else about twice as long each time, and never past the call's own deadline.
 */
export function retry(maxRetries: number): Interceptor {
  return (next) => async (request) => {
    if (request.stream || !isRepeatable(request)) return next(request);
    for (let retries = 0; ; retries += 1) {
      try {
        return await next(request);
      } catch (error) {
        const delayMs = retryDelayMs(error) ?? firstRetryDelayMs * 2 ** retries * (0.5 + Math.random() / 2);
        if (retries >= maxRetries || delayMs > maxRetryDelayMs || !isPassing(error)) throw error;
        await sleep(delayMs, request.signal);
      }
    }
  };
}
