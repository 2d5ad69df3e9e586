import { type DescField, type DescMessage, getOption, hasOption, type Message } from "@bufbuild/protobuf";
import { field as fieldRules } from "../../../gen/buf/validate/validate_pb.js";
import type { FieldViolation } from "../../errors.ts";
import { normaliseEmail } from "../../users/user.ts";

type Fields = Record<string, unknown>;
/** Normalises one message in place; adds what cannot be stored at all to `violations`. */
type Normaliser = (message: Fields, path: string, violations: FieldViolation[]) => void;

const normalisers = new Map<DescMessage, Normaliser>();

/**
 * Brings the texts of a request into the form in which they are checked and kept, by what the schema says of them: an
 * email (rule `string.email`) is NFKC, trimmed and lower-cased; a UUID (rule `string.uuid`) is trimmed and lower-cased; a
 * secret (option `debug_redact`) stays as it is; all others are trimmed. A text with a NUL character, which PostgreSQL
 * cannot hold, is a fault of its field.
 */
export function normalise(schema: DescMessage, message: Message): FieldViolation[] {
  const violations: FieldViolation[] = [];
  normaliserOf(schema)(message as unknown as Fields, "", violations);
  return violations;
}

function normaliserOf(schema: DescMessage): Normaliser {
  const known = normalisers.get(schema);
  if (known !== undefined) return known;
  const steps: Normaliser[] = [];
  const normaliser: Normaliser = (message, path, violations) => {
    for (const step of steps) step(message, path, violations);
  };
  // Registered before its fields are looked at, since a message may contain itself.
  normalisers.set(schema, normaliser);
  steps.push(...schema.fields.flatMap(stepsOf));
  return normaliser;
}

function stepsOf(field: DescField): Normaliser[] {
  if (field.fieldKind === "scalar" && field.scalar === 9) return [scalarStep(field)];
  if (field.fieldKind === "message") return [messageStep(field, field.message)];
  if (field.fieldKind === "list" && field.listKind === "message") return [listStep(field, field.message)];
  return [];
}

function scalarStep(field: DescField): Normaliser {
  const form = formOf(field);
  return (message, path, violations) => {
    const [holder, key] = holderOf(field, message);
    const text = holder?.[key];
    if (holder === undefined || typeof text !== "string" || text === "") return;
    if (text.includes("\0")) {
      const description = `${labelOf(field)} must not contain NUL characters`;
      violations.push({ field: path + field.name, reason: "FORMAT_INVALID", description });
      return;
    }
    holder[key] = form(text);
  };
}

function messageStep(field: DescField, schema: DescMessage): Normaliser {
  const inner = lazily(schema);
  return (message, path, violations) => {
    const [holder, key] = holderOf(field, message);
    const value = holder?.[key];
    if (value !== undefined) inner(value as Fields, `${path}${field.name}.`, violations);
  };
}

function listStep(field: DescField, schema: DescMessage): Normaliser {
  const inner = lazily(schema);
  return (message, path, violations) => {
    const list = message[field.localName] as Fields[];
    for (const [i, value] of list.entries()) inner(value, `${path}${field.name}[${i}].`, violations);
  };
}

function lazily(schema: DescMessage): Normaliser {
  // Google's own messages hold no text that is ours to change.
  if (schema.typeName.startsWith("google.")) return () => {};
  return normaliserOf(schema);
}

/** Where a field's value stands: in the message itself or, for a member of a oneof, in the oneof's `value`. */
function holderOf(field: DescField, message: Fields): [Fields | undefined, string] {
  if (field.oneof === undefined) return [message, field.localName];
  const chosen = message[field.oneof.localName] as { case?: string } & Fields;
  return chosen.case === field.localName ? [chosen, "value"] : [undefined, "value"];
}

function formOf(field: DescField): (text: string) => string {
  if (field.proto.options?.debugRedact === true) return (text) => text;
  if (hasOption(field, fieldRules)) {
    const { type } = getOption(field, fieldRules);
    const wellKnown = type.case === "string" ? type.value.wellKnown.case : undefined;
    if (wellKnown === "email") return normaliseEmail;
    // Both spellings name one thing, and the database answers in this one.
    if (wellKnown === "uuid") return (text) => text.trim().toLowerCase();
  }
  return (text) => text.trim();
}

/** The field's name as a sentence begins with it: `first_name` is "First name". */
export function labelOf({ name }: { readonly name: string }): string {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}
