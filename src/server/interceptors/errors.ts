import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RequestInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "../../../gen/google/rpc/error_details_pb.js";
import { callOf } from "../../call.ts";
import { databaseUnavailable, isAway } from "../../db/database.ts";
import { DomainError, type ErrorKind } from "../../errors.ts";

const ERROR_DOMAIN = "tradepost";

/** The only place that knows how a domain error looks on the wire. */
const codes: Readonly<Record<ErrorKind, Code>> = {
  invalid: Code.InvalidArgument,
  unauthenticated: Code.Unauthenticated,
  forbidden: Code.PermissionDenied,
  "not-found": Code.NotFound,
  "already-exists": Code.AlreadyExists,
  precondition: Code.FailedPrecondition,
  conflict: Code.Aborted,
  exhausted: Code.ResourceExhausted,
  unavailable: Code.Unavailable,
  deadline: Code.DeadlineExceeded,
};

/**
 * Turns what a call throws into what its client may know: a domain error with its details; anything unknown as INTERNAL
 * with a request id and nothing else. The cause stays on the error for the log.
 */
export function errors(): Interceptor {
  return (next) => async (req) => {
    const { requestId } = callOf({ values: req.contextValues });
    try {
      const res = await next(req);
      return res.stream ? { ...res, message: translating(res.message, requestId) } : res;
    } catch (error) {
      throw toConnectError(error, requestId);
    }
  };
}

async function* translating<T>(stream: AsyncIterable<T>, requestId: string): AsyncGenerator<T> {
  try {
    yield* stream;
  } catch (error) {
    throw toConnectError(error, requestId);
  }
}

function toConnectError(error: unknown, requestId: string): ConnectError {
  const connectError = translate(error, requestId);
  connectError.metadata.set("x-request-id", requestId);
  return connectError;
}

function translate(error: unknown, requestId: string): ConnectError {
  if (error instanceof DomainError) return fromDomain(error);
  if (isAway(error)) return fromDomain(databaseUnavailable(error));
  if (error instanceof ConnectError) return withReason(error);
  const details = [errorInfo("INTERNAL", {}), { desc: RequestInfoSchema, value: { requestId, servingData: "" } }];
  return new ConnectError("internal error", Code.Internal, undefined, details, error);
}

function fromDomain({ kind, reason, message, details }: DomainError): ConnectError {
  const { metadata = {}, violations, resource, retryAfterMs, cause } = details;
  const outgoing = [
    errorInfo(reason, metadata),
    ...(violations === undefined ? [] : [{ desc: BadRequestSchema, value: { fieldViolations: [...violations] } }]),
    ...(resource === undefined
      ? []
      : [{ desc: ResourceInfoSchema, value: { resourceType: resource.type, resourceName: resource.name } }]),
    ...(retryAfterMs === undefined
      ? []
      : [
          {
            desc: RetryInfoSchema,
            value: {
              retryDelay: {
                seconds: BigInt(Math.floor(retryAfterMs / 1000)),
                nanos: (retryAfterMs % 1000) * 1_000_000,
              },
            },
          },
        ]),
  ];
  return new ConnectError(message, codes[kind], undefined, outgoing, cause);
}

/** Errors of the RPC library itself (an RPC that does not exist yet, a call that was cancelled) get a reason too. */
function withReason(error: ConnectError): ConnectError {
  const has = error.findDetails(ErrorInfoSchema).length > 0;
  if (has) return error;
  const reason = Code[error.code].replace(/(?<=[a-z])(?=[A-Z])/g, "_").toUpperCase();
  return new ConnectError(error.rawMessage, error.code, error.metadata, [errorInfo(reason, {})], error.cause);
}

function errorInfo(reason: string, metadata: Readonly<Record<string, string>>) {
  return { desc: ErrorInfoSchema, value: { reason, domain: ERROR_DOMAIN, metadata: { ...metadata } } };
}
