import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import type { Metrics } from "../../telemetry/metrics.ts";
import { ending } from "./logging.ts";

/** Measures every call once, by method and code: a unary one to its answer, a streaming one to the end of its stream. */
export function measuring(metrics: Metrics): Interceptor {
  return (next) => async (req) => {
    const startedAt = performance.now();
    const method = `${req.service.typeName}/${req.method.name}`;
    const end = (error?: unknown) => metrics.recordCall(method, codeOf(error), performance.now() - startedAt);
    try {
      const res = await next(req);
      if (res.stream) return { ...res, message: ending(res.message, end) };
      end();
      return res;
    } catch (error) {
      end(error);
      throw error;
    }
  };
}

/** As gRPC writes codes: "NOT_FOUND" for NotFound. */
function codeOf(error: unknown): string {
  if (error === undefined) return "OK";
  const name = Code[ConnectError.from(error).code];
  if (name === "Canceled") return "CANCELLED";
  return name.replaceAll(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
}
