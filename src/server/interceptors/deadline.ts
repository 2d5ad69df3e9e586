import type { Interceptor } from "@connectrpc/connect";
import { callOf } from "../../call.ts";
import { DomainError } from "../../errors.ts";
import { msOfGrpcTimeout } from "../listener/headers.ts";

const DEFAULT_DEADLINE_MS = 15_000;
const MAX_DEADLINE_MS = 60_000;

/**
 * Ends every unary call at its deadline: the client's, at most 60 s, or 15 s where it sets none. The work behind it may
 * run on (a payment that was recorded is carried out), but nothing that still waits is begun any more. Streams have no
 * deadline but the client's.
 */
export function deadline(): Interceptor {
  return (next) => async (req) => {
    if (req.stream) return next(req);
    const timeoutMs = Math.min(clientTimeoutMs(req.header) ?? DEFAULT_DEADLINE_MS, MAX_DEADLINE_MS);
    const call = callOf({ values: req.contextValues });
    call.deadline = Date.now() + timeoutMs;

    let timer: NodeJS.Timeout | undefined;
    const expired = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const message = `The call took longer than its deadline of ${timeoutMs} ms`;
        reject(new DomainError("deadline", "DEADLINE_EXCEEDED", message));
      }, timeoutMs);
    });
    try {
      return await Promise.race([next(req), expired]);
    } finally {
      clearTimeout(timer);
    }
  };
}

/** What the client asked for, by either protocol's header; a malformed one was refused before. */
function clientTimeoutMs(header: Headers): number | undefined {
  const connect = header.get("connect-timeout-ms");
  return connect === null ? msOfGrpcTimeout(header.get("grpc-timeout")) : Number(connect);
}
