/**
 * What kind of refusal an error is. The server maps each kind to one RPC code (server/interceptors/errors.ts); nothing
 * below the server knows of RPC codes.
 */
export type ErrorKind =
  | "invalid"
  | "unauthenticated"
  | "forbidden"
  | "not-found"
  | "already-exists"
  | "precondition"
  | "conflict"
  | "exhausted"
  | "unavailable"
  | "deadline";

/** One faulty field of a request. */
export interface FieldViolation {
  /** Path of the field in Protobuf names, such as `items[0].quantity`. */
  readonly field: string;
  /** A sentence for a person. */
  readonly description: string;
  /** UPPER_SNAKE, for programs. */
  readonly reason: string;
}

interface DomainErrorDetails {
  /** Facts for programs, shown to the client: never a secret. */
  readonly metadata?: Readonly<Record<string, string>>;
  readonly violations?: readonly FieldViolation[];
  /** What was looked for and not found. */
  readonly resource?: { readonly type: string; readonly name: string };
  /** Set where the same request may succeed later. */
  readonly retryAfterMs?: number;
  /** The fault behind it, for the log only. */
  readonly cause?: unknown;
}

/**
 * A request that is refused for a reason its sender can understand. `message` is a sentence a person can act on and
 * reaches the client as it is; `reason` is its stable name for programs.
 */
export class DomainError extends Error {
  readonly kind: ErrorKind;
  readonly reason: string;
  readonly details: DomainErrorDetails;

  constructor(kind: ErrorKind, reason: string, message: string, details: DomainErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "DomainError";
    this.kind = kind;
    this.reason = reason;
    this.details = details;
  }
}

/** A request with faulty fields, all of them at once. */
export function fieldsInvalid(violations: readonly FieldViolation[]): DomainError {
  const message = violations.map((violation) => violation.description).join("; ");
  return new DomainError("invalid", "FIELD_INVALID", message, { violations });
}

/** Something that is not there, or that the caller may not know of. `type` is a word such as "Order". */
export function notFound(type: string, id: string): DomainError {
  const reason = `${type.toUpperCase()}_NOT_FOUND`;
  return new DomainError("not-found", reason, `${type} ${id} not found`, { resource: { type, name: id } });
}

/** Somebody else changed what was to be changed, since it was read. */
export function etagMismatch(type: string, id: string): DomainError {
  const message = `${type} ${id} was changed by somebody else meanwhile; read it again`;
  return new DomainError("conflict", "ETAG_MISMATCH", message, { resource: { type, name: id } });
}

/** Same `request_id`, another request. */
export function requestIdReused(requestId: string): DomainError {
  const message = `request_id ${requestId} was used before with another request; choose a new one`;
  return new DomainError("invalid", "REQUEST_ID_REUSED", message, { metadata: { request_id: requestId } });
}
