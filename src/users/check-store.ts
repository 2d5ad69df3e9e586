import type { Invariant } from "../db/invariants.ts";

/** What must hold of accounts and their addresses. */
export const accountInvariants: readonly Invariant[] = [
  {
    rule: "Every account with addresses has one primary address",
    table: "users",
    text: `
      SELECT 'account ' || user_id AS subject,
             format('of its %s addresses %s are primary', count(*), count(*) FILTER (WHERE is_primary)) AS fault
        FROM addresses WHERE delete_time IS NULL
       GROUP BY user_id HAVING count(*) FILTER (WHERE is_primary) <> 1`,
  },
];
