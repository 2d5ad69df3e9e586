import {
  create,
  type DescField,
  type DescMessage,
  type DescService,
  getOption,
  hasOption,
  type Message,
} from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator, type Violation } from "@bufbuild/protovalidate";
import type { Interceptor } from "@connectrpc/connect";
import { type FieldRules, field as fieldRules } from "../../../gen/buf/validate/validate_pb.js";
import type { Clock } from "../../deps.ts";
import { type FieldViolation, fieldsInvalid } from "../../errors.ts";
import type { RequestRule } from "../../request-rules.ts";
import { labelOf, normalise } from "./normalise.ts";

interface ValidateOptions {
  readonly services: readonly DescService[];
  readonly rules: readonly RequestRule[];
  readonly clock: Clock;
}

/**
 * Normalises each request, then checks it by the rules of the schema and by those that the schema cannot say, and
 * refuses it with all of its faults at once, one for each field.
 */
export function validate({ services, rules, clock }: ValidateOptions): Interceptor {
  const validator = createValidator();
  const rulesOf = new Map<DescMessage, RequestRule[]>();
  for (const rule of rules) rulesOf.set(rule.schema, [...(rulesOf.get(rule.schema) ?? []), rule]);
  // The first check of a message compiles its rules, some 100 ms in all: before the first client comes, not with it.
  for (const { methods } of services) for (const { input } of methods) validator.validate(input, create(input));

  const check = (schema: DescMessage, message: Message) => {
    const found = normalise(schema, message);
    const result = validator.validate(schema, message);
    if (result.kind === "error") throw result.error;
    if (result.kind === "invalid") found.push(...result.violations.map(toFieldViolation));
    for (const rule of rulesOf.get(schema) ?? []) found.push(...rule.check(message, clock.now()));
    if (found.length > 0) throw fieldsInvalid(firstOfEachField(found));
  };

  return (next) => async (req) => {
    const { input } = req.method;
    if (req.stream) return next({ ...req, message: checking(req.message, (message) => check(input, message)) });
    check(input, req.message);
    return next(req);
  };
}

async function* checking<T>(messages: AsyncIterable<T>, check: (message: T) => void): AsyncGenerator<T> {
  for await (const message of messages) {
    check(message);
    yield message;
  }
}

function firstOfEachField(violations: readonly FieldViolation[]): FieldViolation[] {
  const first = new Map<string, FieldViolation>();
  for (const violation of violations) if (!first.has(violation.field)) first.set(violation.field, violation);
  return [...first.values()];
}

function toFieldViolation({ field: path, ruleId, message }: Violation): FieldViolation {
  const field = path.findLast((step) => step.kind === "field");
  const label = field === undefined ? "The request" : labelOf(field);
  const { reason, text } = wording(ruleId, field) ?? { reason: "FIELD_INVALID", text: message };
  return { field: pathToString(path), reason, description: `${label} ${text}` };
}

/** What a broken rule of the schema is called and how a person is told. */
function wording(ruleId: string, field: DescField | undefined): { reason: string; text: string } | undefined {
  const rules = field !== undefined && hasOption(field, fieldRules) ? getOption(field, fieldRules) : undefined;
  const bound = (name: string) => boundOf(rules, name);
  switch (ruleId) {
    case "required":
      return { reason: "REQUIRED", text: "is required" };
    case "string.min_len":
      return { reason: "TOO_SHORT", text: `must be at least ${bound("minLen")} characters` };
    case "string.max_len":
      return { reason: "TOO_LONG", text: `must be at most ${bound("maxLen")} characters` };
    case "string.email":
    case "string.email_empty":
      return { reason: "EMAIL_INVALID", text: "must be a valid email address" };
    case "string.uuid":
    case "string.uuid_empty":
      return { reason: "UUID_INVALID", text: "must be a UUID" };
    case "string.pattern":
      return {
        reason: "FORMAT_INVALID",
        text: field?.name.endsWith("country") ? COUNTRY : `must match ${bound("pattern")}`,
      };
    case "int32.gte":
      return { reason: "OUT_OF_RANGE", text: `must be at least ${bound("greaterThan")}` };
    case "int32.lte":
      return { reason: "OUT_OF_RANGE", text: `must be at most ${bound("lessThan")}` };
    case "int32.gte_lte":
      return { reason: "OUT_OF_RANGE", text: `must be between ${bound("greaterThan")} and ${bound("lessThan")}` };
    case "enum.defined_only":
    case "enum.not_in":
      return { reason: "VALUE_UNDEFINED", text: "must be one of the defined values" };
    case "repeated.min_items":
      return { reason: "TOO_FEW", text: `must have at least ${bound("minItems")}` };
    case "repeated.max_items":
      return { reason: "TOO_MANY", text: `must have at most ${bound("maxItems")}` };
    case "bytes.min_len":
      return { reason: "TOO_SHORT", text: `must be at least ${bound("minLen")} bytes` };
    case "bytes.max_len":
      return { reason: "TOO_LONG", text: `must be at most ${bound("maxLen")} bytes` };
    default:
      return undefined;
  }
}

const COUNTRY = "must be a two-letter ISO 3166-1 code in upper case";

/** A number or pattern of a field's rules, by its generated name; a member of a oneof stands in its `value`. */
function boundOf(rules: FieldRules | undefined, name: string): string {
  const value = (rules?.type.value as Record<string, unknown> | undefined)?.[name];
  return String(typeof value === "object" && value !== null && "value" in value ? value.value : value);
}
