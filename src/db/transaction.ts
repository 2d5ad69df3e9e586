import { Transaction } from "sequelize";

export type { Transaction };

import { type Database, faultCode, violatedConstraint } from "./database.ts";

const SERIALIZATION_FAILURE = "40001";
const DEADLOCK_DETECTED = "40P01";
const UNIQUE_VIOLATION = "23505";
const MAX_TRIES = 5;
const FIRST_PAUSE_MS = 5;

interface RetryOptions {
  /** Constraints whose violation means that somebody was faster and the work, run anew, will see what they did. */
  readonly rerunOn?: readonly string[];
}

/**
 * Runs `work` again when PostgreSQL asks for it (serialization failure, deadlock), at most five times in all with
 * growing pauses. `work` must be one whole transaction.
 */
export async function retrying<T>(work: () => Promise<T>, { rerunOn = [] }: RetryOptions = {}): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work();
    } catch (error) {
      if (tries >= MAX_TRIES || !mayRerun(error, rerunOn)) throw error;
      const pauseMs = FIRST_PAUSE_MS * 2 ** tries * (0.5 + Math.random());
      await new Promise((resolve) => setTimeout(resolve, pauseMs));
    }
  }
}

/**
 * Runs `work` in one READ COMMITTED transaction and commits it; any error rolls back and is thrown on. Nothing outside
 * the database may be called inside.
 */
export async function inTransaction<T>(
  db: Database,
  work: (transaction: Transaction) => Promise<T>,
  options?: RetryOptions,
): Promise<T> {
  const isolationLevel = Transaction.ISOLATION_LEVELS.READ_COMMITTED;
  return retrying(() => db.sequelize.transaction({ isolationLevel }, work), options);
}

function mayRerun(error: unknown, rerunOn: readonly string[]): boolean {
  const code = faultCode(error);
  if (code === SERIALIZATION_FAILURE || code === DEADLOCK_DETECTED) return true;
  return code === UNIQUE_VIOLATION && rerunOn.includes(violatedConstraint(error) ?? "");
}
