import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import type { Logger } from "pino";
import { callOf } from "../../call.ts";

/** Calls of which a line each says nothing: they are noise at `info`. */
const QUIET = /^grpc\.(health|reflection)\./;

/**
 * One line a call: method, code, duration, caller and request id, and the cause where the service itself failed. A
 * streaming call's line is written when its stream has ended.
 */
export function logging(log: Logger): Interceptor {
  return (next) => async (req) => {
    const startedAt = performance.now();
    const { requestId, clientAddress } = callOf({ values: req.contextValues });
    const method = `${req.service.typeName}/${req.method.name}`;

    const end = (error?: unknown) => {
      const { caller } = callOf({ values: req.contextValues });
      const code = error === undefined ? "ok" : Code[ConnectError.from(error).code].toLowerCase();
      const line = {
        method,
        code,
        durationMs: Math.round((performance.now() - startedAt) * 1000) / 1000,
        requestId,
        ...(caller !== undefined && { userId: caller.userId }),
        ...(clientAddress !== "" && { clientAddress }),
      };
      if (isOurFault(error)) log.error({ ...line, err: error.cause ?? error }, "rpc");
      else if (QUIET.test(method)) log.debug(line, "rpc");
      else log.info(line, "rpc");
    };

    try {
      const res = await next(req);
      res.header.set("x-request-id", requestId);
      if (res.stream) return { ...res, message: ending(res.message, end) };
      end();
      return res;
    } catch (error) {
      end(error);
      throw error;
    }
  };
}

function isOurFault(error: unknown): error is ConnectError {
  return (
    error instanceof ConnectError &&
    (error.code === Code.Internal || error.code === Code.Unknown || error.code === Code.Unavailable)
  );
}

/** Passes a stream on and tells once how it ended: by itself, by an error, or because its reader left. */
export async function* ending<T>(stream: AsyncIterable<T>, end: (error?: unknown) => void): AsyncGenerator<T> {
  let fault: unknown;
  try {
    yield* stream;
  } catch (error) {
    fault = error;
    throw error;
  } finally {
    end(fault);
  }
}
