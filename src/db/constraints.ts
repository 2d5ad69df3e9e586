import type { DomainError } from "../errors.ts";
import { violatedConstraint } from "./database.ts";

/**
 * Turns the violation of a named constraint into the domain error it means, so that a rule which the database holds
 * needs no read before the write. Other faults are thrown on as they are.
 */
export async function naming<T>(
  meanings: Readonly<Record<string, () => DomainError>>,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    const meaning = meanings[violatedConstraint(error) ?? ""];
    throw meaning === undefined ? error : meaning();
  }
}
