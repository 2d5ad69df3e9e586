import { faultCode } from "./db/database.ts";

/** What went wrong, for a person. Errors of the network may hide it in their code or in the errors they gather. */
export function sentenceOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const [first] = error instanceof AggregateError ? error.errors : [];
  return error.message || (first === undefined ? (faultCode(error) ?? error.name) : sentenceOf(first));
}
