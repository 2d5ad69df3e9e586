import { ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.js";

/** Why a call was refused, for programs. */
export interface TradepostErrorInfo {
  /** Stable name in UPPER_SNAKE, such as INSUFFICIENT_STOCK; unique within `domain`. */
  readonly reason: string;
  /** Who gave the reason: "tradepost" for ours. */
  readonly domain: string;
  /** Facts beside the message, such as `available` and `requested`. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** One field of a refused request. */
export interface FieldViolation {
  /** Path in Protobuf names, such as `items[0].quantity`. */
  readonly field: string;
  /** A sentence for a person. */
  readonly description: string;
  /** Stable name in UPPER_SNAKE; empty where there is none. */
  readonly reason: string;
}

/** The reason of a failed call; undefined where the error carries none, as those of the network do. */
export function errorInfo(error: unknown): TradepostErrorInfo | undefined {
  if (!(error instanceof ConnectError)) return undefined;
  const info = error.findDetails(ErrorInfoSchema)[0];
  return info === undefined ? undefined : { reason: info.reason, domain: info.domain, metadata: { ...info.metadata } };
}

/** The short form of {@link errorInfo}: `if (reasonOf(error) === "INSUFFICIENT_STOCK") …` */
export function reasonOf(error: unknown): string | undefined {
  return errorInfo(error)?.reason;
}

/** Every faulty field of a request that was refused for its fields; empty for other errors. */
export function violationsOf(error: unknown): FieldViolation[] {
  if (!(error instanceof ConnectError)) return [];
  return error
    .findDetails(BadRequestSchema)
    .flatMap((detail) => detail.fieldViolations)
    .map(({ field, description, reason }) => ({ field, description, reason }));
}

/** How long to wait before the same call may succeed; undefined where the server does not say. */
export function retryDelayMs(error: unknown): number | undefined {
  if (!(error instanceof ConnectError)) return undefined;
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return delay === undefined ? undefined : Math.max(0, Number(delay.seconds) * 1_000 + delay.nanos / 1_000_000);
}
