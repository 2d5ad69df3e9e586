import { Code, ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "../../gen/google/rpc/error_details_pb.js";

/** What a client is told when its call is refused, flat enough to compare whole. */
export interface Refusal {
  readonly code: string;
  readonly reason: string;
  readonly message: string;
  readonly metadata: Readonly<Record<string, string>>;
  /** Description of each faulty field, by its path. */
  readonly fields: Readonly<Record<string, string>>;
  /** Reason of each faulty field, by its path. */
  readonly reasons: Readonly<Record<string, string>>;
  readonly resource: string | undefined;
  readonly retryAfterMs: number | undefined;
}

/** Awaits a call that must be refused. */
export async function refusalOf(call: Promise<unknown>): Promise<Refusal> {
  let answer: unknown;
  try {
    answer = await call;
  } catch (error) {
    return read(ConnectError.from(error));
  }
  throw new Error(`expected a refusal, but the call was answered with ${print(answer)}`);
}

/** The outcome of each call: "ok", or the reason of its refusal; a count of each. */
export async function tally(calls: readonly Promise<unknown>[]): Promise<Record<string, number>> {
  const counts: Record<string, number> = {};
  for (const result of await Promise.allSettled(calls)) {
    const key = result.status === "fulfilled" ? "ok" : read(ConnectError.from(result.reason)).reason;
    counts[key] = (counts[key] ?? 0) + 1;
  }
  return counts;
}

function read(error: ConnectError): Refusal {
  const [info] = error.findDetails(ErrorInfoSchema);
  const violations = error.findDetails(BadRequestSchema).flatMap(({ fieldViolations }) => fieldViolations);
  const [retry] = error.findDetails(RetryInfoSchema);
  const [resource] = error.findDetails(ResourceInfoSchema);
  return {
    code: Code[error.code] ?? "",
    reason: info?.reason ?? `no ErrorInfo: ${error.message}`,
    message: error.rawMessage,
    metadata: { ...info?.metadata },
    fields: Object.fromEntries(violations.map(({ field, description }) => [field, description])),
    reasons: Object.fromEntries(violations.map(({ field, reason }) => [field, reason])),
    resource: resource && `${resource.resourceType} ${resource.resourceName}`,
    retryAfterMs: retry?.retryDelay && Number(retry.retryDelay.seconds) * 1000 + retry.retryDelay.nanos / 1e6,
  };
}

function print(value: unknown): string {
  return JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? String(inner) : inner));
}
