import { randomUUID } from "node:crypto";
import { sql } from "../support/database.ts";
import type { Person } from "../support/factories.ts";
import type { TestServer } from "../support/server.ts";

/** Many customers at once, with tokens but without passwords, which would take a second for every twenty of them. */
export async function newBuyers(server: TestServer, count: number): Promise<Person[]> {
  const ids = Array.from({ length: count }, () => randomUUID());
  await sql(
    server.database,
    `INSERT INTO users (id, email, password_hash, first_name, last_name, date_of_birth, create_time, update_time)
     SELECT id, id || '@tradepost.example', '', 'Casey', 'Jones', '1990-01-02', now(), now() FROM unnest($1::uuid[]) id`,
    [ids],
  );
  return Promise.all(ids.map((id) => signedInAs(server, { id, email: `${id}@tradepost.example` })));
}

/** The same person with a token that is good from now on by the server's clock, at any of the servers of a database. */
export async function signedInAs(
  server: TestServer,
  { id, email }: Pick<Person, "id" | "email">,
  role: "USER" | "ADMIN" = "USER",
): Promise<Person> {
  const { token } = await server.deps.tokens.issue({ userId: id, role, sessionId: randomUUID(), generation: 1 });
  return { id, email, token, ...server.as(token) };
}
