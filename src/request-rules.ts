import type { DescMessage, Message, MessageShape } from "@bufbuild/protobuf";
import type { FieldViolation } from "./errors.ts";

/**
 * What the schema cannot say of a request: rules that need a calendar, a clock, a currency or a setting. They run beside
 * the schema's own rules, so that a client hears of all faults of its request at once. They are pure; what needs the
 * database is decided later.
 */
export interface RequestRule {
  readonly schema: DescMessage;
  readonly check: (message: Message, now: Date) => FieldViolation[];
}

/** A rule for the requests of one message type. */
export function requestRule<Desc extends DescMessage>(
  schema: Desc,
  check: (message: MessageShape<Desc>, now: Date) => FieldViolation[],
): RequestRule {
  return { schema, check: check as RequestRule["check"] };
}

/** The violation for a text that has to be there and is empty; none when it is not. */
export function required(field: string, label: string, value: string): FieldViolation[] {
  return value === "" ? [{ field, description: `${label} is required`, reason: "REQUIRED" }] : [];
}
