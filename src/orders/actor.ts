import { naming } from "../db/constraints.ts";
import { DomainError } from "../errors.ts";

/** Whoever calls has a token that is good by itself, but no account any more. */
export function callerGone(): DomainError {
  return new DomainError(
    "unauthenticated",
    "TOKEN_INVALID",
    "The account of this access token does not exist any more; log in with another one",
  );
}

/**
 * Does work that writes who did it into the stock journal.
 * @throws DomainError TOKEN_INVALID where that account does not exist.
 */
export function actorMustExist<T>(work: () => Promise<T>): Promise<T> {
  return naming({ stock_movements_actor_id_fkey: callerGone }, work);
}
