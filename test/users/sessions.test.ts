import { createHash, randomBytes } from "node:crypto";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { expect } from "chai";
import type { LoginResponse, RefreshTokenResponse } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { cleanUpSessions } from "../../src/users/session-cleanup.ts";
import { sql, useDatabase } from "../support/database.ts";
import { newCustomer, PASSWORD, type Person, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

const SECOND_MS = 1_000;
const DAY_MS = 24 * 60 * 60 * SECOND_MS;
const REFUSAL = {
  code: "Unauthenticated",
  reason: "TOKEN_INVALID",
  message: "The refresh token is invalid or expired; log in again",
};

type Tokens = LoginResponse | RefreshTokenResponse;

function logIn(server: TestServer, { email }: Pick<Person, "email">): Promise<LoginResponse> {
  return server.as().auth.login({ email, password: PASSWORD });
}

function refresh(server: TestServer, { refreshToken }: Pick<Tokens, "refreshToken">): Promise<RefreshTokenResponse> {
  return server.as().auth.refreshToken({ refreshToken });
}

function claimsOf({ accessToken }: Pick<Tokens, "accessToken">) {
  return JSON.parse(Buffer.from(accessToken.split(".")[1] ?? "", "base64url").toString());
}

function whoIs(server: TestServer, { accessToken }: Pick<Tokens, "accessToken">) {
  return server.as(accessToken).users.getProfile({});
}

describe("RefreshToken", () => {
  const database = useDatabase();
  const settings = { SECRET_KEY: Buffer.alloc(32, 5).toString("base64") };
  const server = useServer({ database, settings });
  const replica = useServer({ database, settings });
  before(() => {
    for (const { clock } of [server, replica]) clock.stop();
  });
  const advance = (ms: number) => {
    for (const { clock } of [server, replica]) clock.advance(ms);
  };
  /** So many refreshes of one token at once, on two replicas in turn. */
  const refreshOften = (count: number, tokens: Tokens) =>
    Promise.all(Array.from({ length: count }, (_, i) => refresh(i % 2 === 0 ? server : replica, tokens)));

  it("gives a new refresh token and a new access token of the same session, and the account", async () => {
    const person = await newCustomer(server);
    const login = await logIn(server, person);
    const refreshed = await refresh(server, login);
    expect(refreshed.refreshToken)
      .to.match(/^[\w-]{43}$/)
      .and.not.equal(login.refreshToken);
    expect(refreshed.accessToken).not.to.equal(login.accessToken);
    expect(claimsOf(refreshed).sid).to.equal(claimsOf(login).sid);
    expect(refreshed.user).to.deep.include({ id: person.id, email: person.email });
    expect((await whoIs(server, refreshed)).user?.id).to.equal(person.id);
  });

  it("gives refresh tokens that go on from one another", async () => {
    let tokens: Tokens = await logIn(server, await newCustomer(server));
    const seen = new Set([tokens.refreshToken]);
    for (let i = 0; i < 5; i++) {
      tokens = await refresh(server, tokens);
      seen.add(tokens.refreshToken);
    }
    expect(seen).to.have.property("size", 6);
  });

  it("is the moment from which the session lasts another 30 days", async () => {
    const person = await newCustomer(server);
    const login = await logIn(server, person);
    advance(20 * DAY_MS);
    const before = server.clock.now().getTime();
    const refreshed = await refresh(server, login);
    const expireMs = timestampMs(present(refreshed.refreshTokenExpireTime));
    expect(expireMs).to.be.closeTo(before + 30 * DAY_MS, 10 * SECOND_MS);
    const { sessions } = await server.as(refreshed.accessToken).auth.listSessions({});
    const current = present(sessions.find((session) => session.current));
    expect(timestampMs(present(current.expireTime))).to.equal(expireMs);
    expect(timestampMs(present(current.lastUseTime))).to.be.at.least(before);
  });

  it("does not keep a session going for more than a year", async () => {
    let tokens: Tokens = await logIn(server, await newCustomer(server));
    const loginMs = server.clock.now().getTime();
    for (let month = 0; month < 13; month++) {
      advance(28 * DAY_MS);
      tokens = await refresh(server, tokens);
    }
    const expireMs = timestampMs(present(tokens.refreshTokenExpireTime));
    expect(expireMs).to.be.closeTo(loginMs + 365 * DAY_MS, 60 * SECOND_MS);
    advance(2 * DAY_MS);
    expect(await refusalOf(refresh(server, tokens))).to.include(REFUSAL);
  });

  it("gives the account's role as it is now", async () => {
    const person = await newCustomer(server);
    const login = await logIn(server, person);
    await sql(server.database, "UPDATE users SET role = 'MODERATOR' WHERE id = $1", [person.id]);
    expect(claimsOf(await refresh(server, login)).role).to.equal("MODERATOR");
  });

  it("gives the same successor to whoever repeats the call within ten seconds, and a good access token", async () => {
    const login = await logIn(server, await newCustomer(server));
    const first = await refresh(server, login);
    advance(9 * SECOND_MS);
    const second = await refresh(server, login);
    expect(second.refreshToken).to.equal(first.refreshToken);
    expect(second.refreshTokenExpireTime).to.deep.equal(first.refreshTokenExpireTime);
    await whoIs(server, second);
  });

  it("ends the whole session when a used token comes again after that, for the thief and for the owner", async () => {
    const person = await newCustomer(server);
    const login = await logIn(server, person);
    const owner = await refresh(server, login);
    advance(11 * SECOND_MS);
    expect(await refusalOf(refresh(server, login))).to.include(REFUSAL);
    expect(await refusalOf(refresh(server, owner))).to.include(REFUSAL);
    expect((await refusalOf(whoIs(server, owner))).reason).to.equal("TOKEN_INVALID");
    expect((await whoIs(server, { accessToken: person.token })).user?.id, "another session").to.equal(person.id);
  });

  it("notes a token that is used again in the account's events", async () => {
    const person = await newCustomer(server);
    const login = await logIn(server, person);
    await refresh(server, login);
    advance(11 * SECOND_MS);
    await tally(Array.from({ length: 5 }, () => refresh(server, login)));
    const events = await sql(
      server.database,
      "SELECT actor_id, details FROM account_events WHERE user_id = $1 AND type = 'REFRESH_TOKEN_REUSED'",
      [person.id],
    );
    expect(events).to.deep.equal([{ actor_id: null, details: { session_id: claimsOf(login).sid } }]);
  });

  it("gives a hundred callers at once, on two replicas, one successor, and one family lives", async () => {
    const login = await logIn(server, await newCustomer(server));
    const answers = await refreshOften(100, login);
    expect(new Set(answers.map(({ refreshToken }) => refreshToken))).to.have.property("size", 1);
    const rows = await sql<{ used: boolean }>(
      server.database,
      "SELECT rotate_time IS NOT NULL AS used FROM refresh_tokens WHERE session_id = $1 ORDER BY create_time, used DESC",
      [claimsOf(login).sid],
    );
    expect(rows.map(({ used }) => used)).to.deep.equal([true, false]);
    await refresh(server, present(answers[0]));
  });

  it("gives each of many links of a chain one successor, whatever is repeated at once", async () => {
    let tokens: Tokens = await logIn(server, await newCustomer(server));
    const { sid } = claimsOf(tokens);
    for (let i = 0; i < 5; i++) {
      const answers = await refreshOften(8, tokens);
      expect(new Set(answers.map(({ refreshToken }) => refreshToken))).to.have.property("size", 1);
      tokens = present(answers[0]);
    }
    const [row] = await sql(server.database, "SELECT count(*)::int FROM refresh_tokens WHERE session_id = $1", [sid]);
    expect(row).to.deep.equal({ count: 6 });
  });

  it("stores hashes alone, from which no token can be made", async () => {
    const login = await logIn(server, await newCustomer(server));
    const refreshed = await refresh(server, login);
    const rows = await sql<{ token_hash: Buffer }>(
      server.database,
      "SELECT * FROM refresh_tokens WHERE session_id = $1",
      [claimsOf(login).sid],
    );
    const stored = JSON.stringify(rows.map((row) => ({ ...row, token_hash: row.token_hash.toString("base64url") })));
    for (const { refreshToken } of [login, refreshed]) {
      expect(stored).to.include(createHash("sha256").update(refreshToken).digest("base64url"));
      expect(stored).not.to.include(refreshToken);
    }
  });

  const strangers: Record<string, (login: LoginResponse) => string | Promise<string>> = {
    unknown: () => randomBytes(32).toString("base64url"),
    "of another form": () => "'; DROP TABLE sessions; --",
    "an access token": ({ accessToken }) => accessToken.slice(0, 256),
    "one character off": ({ refreshToken }) =>
      `${refreshToken.slice(0, -2)}${refreshToken.endsWith("AA") ? "BA" : "AA"}`,
    expired: ({ refreshToken }) => {
      advance(30 * DAY_MS);
      return refreshToken;
    },
    "of a session that was logged out": async ({ accessToken, refreshToken }) => {
      await server.as(accessToken).auth.logout({});
      return refreshToken;
    },
    "of a deleted account": async ({ user, refreshToken }) => {
      await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [user?.id]);
      return refreshToken;
    },
  };
  for (const [what, made] of Object.entries(strangers)) {
    it(`refuses a token that is ${what}, in the same words`, async () => {
      const login = await logIn(server, await newCustomer(server));
      const refreshToken = await made(login);
      expect(await refusalOf(server.as().auth.refreshToken({ refreshToken }))).to.include(REFUSAL);
    });
  }

  it("demands a token", async () => {
    const refusal = await refusalOf(server.as().auth.refreshToken({}));
    expect(refusal.fields).to.deep.equal({ refresh_token: "Refresh token is required" });
  });
});

describe("Logout", () => {
  const server = useServer();

  it("ends the session: neither its access token nor its refresh token is good for the next call", async () => {
    const login = await logIn(server, await newCustomer(server));
    await server.as(login.accessToken).auth.logout({});
    expect(await refusalOf(whoIs(server, login))).to.include({ code: "Unauthenticated", reason: "TOKEN_INVALID" });
    expect(await refusalOf(refresh(server, login))).to.include(REFUSAL);
  });

  it("leaves the account's other sessions alone", async () => {
    const person = await newCustomer(server);
    const other = await logIn(server, person);
    await person.auth.logout({});
    await whoIs(server, other);
    await refresh(server, other);
  });

  it("needs a token", async () => {
    expect((await refusalOf(server.as().auth.logout({}))).reason).to.equal("TOKEN_MISSING");
  });
});

describe("ListSessions", () => {
  const server = useServer();

  it("lists the caller's open sessions, newest first, and marks the one that asks", async () => {
    const person = await newCustomer(server);
    const logins = [await logIn(server, person), await logIn(server, person)];
    const ids = [...logins.map((login) => claimsOf(login).sid), claimsOf({ accessToken: person.token }).sid].sort();
    const { sessions, nextPageToken } = await person.auth.listSessions({});
    expect(sessions.map(({ id }) => id)).to.deep.equal(ids.reverse());
    expect(sessions.map(({ current }) => current)).to.deep.equal([false, false, true]);
    expect(sessions[0]).to.include({ clientAddress: "127.0.0.1" });
    expect(sessions[0]?.userAgent).to.match(/connect/);
    expect(nextPageToken).to.equal("");
  });

  it("goes on page by page without leaving one out", async () => {
    const person = await newCustomer(server);
    for (let i = 0; i < 4; i++) await logIn(server, person);
    const all = (await person.auth.listSessions({})).sessions.map(({ id }) => id);
    const paged: string[] = [];
    let pageToken = "";
    do {
      const page = await person.auth.listSessions({ pageSize: 2, pageToken });
      expect(page.sessions.length).to.be.at.most(2);
      paged.push(...page.sessions.map(({ id }) => id));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(paged).to.deep.equal(all).and.have.lengthOf(5);
  });

  it("takes no page token of somebody else's list", async () => {
    const [one, other] = await Promise.all([newCustomer(server), newCustomer(server)]);
    await logIn(server, one);
    const { nextPageToken: pageToken } = await one.auth.listSessions({ pageSize: 1 });
    const refusal = await refusalOf(other.auth.listSessions({ pageSize: 1, pageToken }));
    expect(refusal.reasons).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
  });

  it("leaves out what is over: logged out, revoked or expired", async () => {
    const person = await newCustomer(server);
    const out = await logIn(server, person);
    await server.as(out.accessToken).auth.logout({});
    server.clock.advance(31 * DAY_MS);
    const now = await logIn(server, person);
    const { sessions } = await server.as(now.accessToken).auth.listSessions({});
    expect(sessions.map(({ id }) => id)).to.deep.equal([claimsOf(now).sid]);
  });
});

describe("RevokeSession", () => {
  const server = useServer();

  it("ends one session and leaves the caller's own", async () => {
    const person = await newCustomer(server);
    const other = await logIn(server, person);
    await person.auth.revokeSession({ sessionId: claimsOf(other).sid });
    expect((await refusalOf(whoIs(server, other))).reason).to.equal("TOKEN_INVALID");
    expect(await refusalOf(refresh(server, other))).to.include(REFUSAL);
    expect((await person.auth.listSessions({})).sessions).to.have.lengthOf(1);
  });

  it("may end the session that asks", async () => {
    const person = await newCustomer(server);
    await person.auth.revokeSession({ sessionId: claimsOf({ accessToken: person.token }).sid });
    expect((await refusalOf(person.users.getProfile({}))).reason).to.equal("TOKEN_INVALID");
  });

  it("notes who ended what in the account's events", async () => {
    const person = await newCustomer(server);
    const { sid } = claimsOf(await logIn(server, person));
    await person.auth.revokeSession({ sessionId: sid });
    const events = await sql(
      server.database,
      "SELECT actor_id, details FROM account_events WHERE user_id = $1 AND type = 'SESSION_REVOKED'",
      [person.id],
    );
    expect(events).to.deep.equal([{ actor_id: person.id, details: { session_id: sid } }]);
  });

  it("does not find another's session, and leaves it alone", async () => {
    const [thief, owner] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const { sid: sessionId } = claimsOf({ accessToken: owner.token });
    const refusal = await refusalOf(thief.auth.revokeSession({ sessionId }));
    expect(refusal).to.include({
      code: "NotFound",
      reason: "SESSION_NOT_FOUND",
      message: `Session ${sessionId} not found`,
      resource: `Session ${sessionId}`,
    });
    await owner.users.getProfile({});
  });

  it("finds a session once when twenty want to end it", async () => {
    const person = await newCustomer(server);
    const { sid: sessionId } = claimsOf(await logIn(server, person));
    const calls = Array.from({ length: 20 }, () => person.auth.revokeSession({ sessionId }));
    expect(await tally(calls)).to.deep.equal({ ok: 1, SESSION_NOT_FOUND: 19 });
  });
});

describe("the cleanup of sessions", () => {
  const server = useServer();

  it("deletes what has expired, in more than one batch, and nothing that is of use", async () => {
    const person = await newCustomer(server);
    const old = await logIn(server, person);
    await refresh(server, old);
    await sql(
      server.database,
      `INSERT INTO refresh_tokens (token_hash, session_id, create_time, expire_time, rotate_time)
       SELECT sha256(i::text::bytea), $1, now() - interval '31 days', now() - interval '1 day', now() - interval '2 days'
         FROM generate_series(1, 1200) i`,
      [claimsOf(old).sid],
    );
    const revoked = await logIn(server, person);
    await person.auth.revokeSession({ sessionId: claimsOf(revoked).sid });
    server.clock.advance(31 * DAY_MS);
    const current = await logIn(server, person);
    const gone = await logIn(server, person);
    await server.as(current.accessToken).auth.revokeSession({ sessionId: claimsOf(gone).sid });

    const cleanUp = async () => {
      while (await cleanUpSessions(server.deps)) {}
    };
    await Promise.all([cleanUp(), cleanUp()]);
    const counts = await sql(
      server.database,
      `SELECT (SELECT count(*)::int FROM sessions) AS sessions, (SELECT count(*)::int FROM refresh_tokens) AS tokens,
              (SELECT count(*)::int FROM session_revocations) AS revocations`,
    );
    expect(counts).to.deep.equal([{ sessions: 1, tokens: 1, revocations: 1 }]);
    await refresh(server, current);
  });
});
