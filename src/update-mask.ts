import { type DescField, type DescMessage, isFieldSet, type Message, type MessageShape } from "@bufbuild/protobuf";
import type { FieldViolation } from "./errors.ts";

/** `google.protobuf.FieldMask` as far as it matters here. */
interface FieldMask {
  readonly paths: readonly string[];
}

/** A client's own text goes into an error no further than this: errors travel in headers. */
const MAX_QUOTED_CHARS = 64;

/** What each updatable path of a message says to change, by its Protobuf name, such as `preferences.newsletter`. */
type Fields<Desc extends DescMessage, Patch> = Readonly<
  Record<string, (message: MessageShape<Desc>) => Partial<Patch>>
>;

/** The fields of a message that an update may change, and what a given request changes of them. */
export interface UpdatableFields<Desc extends DescMessage, Patch> {
  /** The fault of a mask that names what cannot be updated; none when there is no such path. */
  faults(mask: FieldMask | undefined): FieldViolation[];
  /** The paths that a request changes, fields of fields each by itself; what `faults` complains of is left out. */
  paths(message: MessageShape<Desc>, mask: FieldMask | undefined): ReadonlySet<string>;
  /** The values that a request changes. */
  patch(message: MessageShape<Desc>, mask: FieldMask | undefined): Partial<Patch>;
}

/**
 * Describes what an update may change. A mask's path stands for all updatable paths below it. Without a mask, or with an
 * empty one, the populated fields are taken; those that no update changes are then ignored, so that a message that was
 * read can be sent back.
 * @throws Error when the schema has no such path: a fault of the wiring.
 */
export function updatableFields<Desc extends DescMessage, Patch>(
  schema: Desc,
  fields: Fields<Desc, Patch>,
): UpdatableFields<Desc, Patch> {
  const known = Object.keys(fields);
  const steps = new Map(known.map((path) => [path, stepsOf(schema, path)]));
  const namesOf = new Map(known.map((path) => [path, prefixesOf(path)]));
  const nameable = new Set([...namesOf.values()].flat());

  const paths = (message: MessageShape<Desc>, mask: FieldMask | undefined): ReadonlySet<string> => {
    const named = new Set(mask?.paths);
    if (named.size === 0) return new Set(known.filter((path) => isPopulated(message, steps.get(path) ?? [])));
    return new Set(known.filter((path) => namesOf.get(path)?.some((name) => named.has(name))));
  };

  return {
    paths,
    faults(mask) {
      const unknown = mask?.paths.find((path) => !nameable.has(path));
      if (unknown === undefined) return [];
      const quoted = unknown.slice(0, MAX_QUOTED_CHARS).toWellFormed();
      const description = `Update mask names "${quoted}", but may only name ${[...nameable].join(", ")}`;
      return [{ field: "update_mask", reason: "UPDATE_MASK_INVALID", description }];
    },
    patch(message, mask) {
      const patches = [...paths(message, mask)].map((path) => fields[path]?.(message));
      return Object.assign({}, ...patches) as Partial<Patch>;
    },
  };
}

/** The path itself and those above it: each stands for it in a mask. */
function prefixesOf(path: string): string[] {
  const names = path.split(".");
  return names.map((_, i) => names.slice(0, i + 1).join("."));
}

function stepsOf(schema: DescMessage, path: string): DescField[] {
  const steps: DescField[] = [];
  let inner: DescMessage | undefined = schema;
  for (const name of path.split(".")) {
    const field: DescField | undefined = inner?.fields.find((each) => each.name === name);
    if (field === undefined) throw new Error(`${schema.typeName} has no field ${path}`);
    steps.push(field);
    inner = field.message;
  }
  return steps;
}

function isPopulated(message: Message, steps: readonly DescField[]): boolean {
  let inner: Message | undefined = message;
  for (const field of steps) {
    if (inner === undefined || !isFieldSet(inner, field)) return false;
    inner = (inner as unknown as Record<string, Message | undefined>)[field.localName];
  }
  return true;
}
