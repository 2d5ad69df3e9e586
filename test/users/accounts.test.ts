import { Code, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { expect } from "chai";
import { createRemoteJWKSet, decodeProtectedHeader, jwtVerify } from "jose";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { Role } from "../../gen/tradepost/user/v1/user_pb.js";
import { sql } from "../support/database.ts";
import { newCustomer, PASSWORD, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const aRegistration = (email: string) => ({
  email,
  password: PASSWORD,
  firstName: "Ada",
  lastName: "Marsh",
  dateOfBirth: { year: 1990, month: 1, day: 2 },
});

describe("Register", () => {
  const server = useServer();

  it("makes an account of the role USER, unverified, with all preferences on", async () => {
    const { user } = await server.as().auth.register(aRegistration("ada@tradepost.example"));
    expect(user).to.include({
      email: "ada@tradepost.example",
      firstName: "Ada",
      role: Role.USER,
      emailVerified: false,
      etag: "1",
    });
    expect(user?.preferences).to.include({ newsletter: true, notifications: true });
    expect(user?.dateOfBirth).to.include({ year: 1990, month: 1, day: 2 });
    expect(user?.lastLoginTime).to.equal(undefined);
  });

  it("keeps an Argon2id hash and never the password", async () => {
    await server.as().auth.register(aRegistration("hash@tradepost.example"));
    const [row] = await sql<{ password_hash: string }>(
      server.database,
      "SELECT password_hash FROM users WHERE email = 'hash@tradepost.example'",
    );
    expect(row?.password_hash).to.match(/^\$argon2id\$v=19\$m=19456,p=1,t=2\$|^\$argon2id\$v=19\$m=19456,t=2,p=1\$/);
  });

  it("takes one account per email, however it is written", async () => {
    await server.as().auth.register(aRegistration("  Mixed.Case@Tradepost.Example "));
    const refusal = await refusalOf(server.as().auth.register(aRegistration("mixed.case@tradepost.example")));
    expect(refusal).to.include({ code: "AlreadyExists", reason: "EMAIL_TAKEN" });
  });

  it("makes one account when twenty want the same email at once", async () => {
    const calls = Array.from({ length: 20 }, () => server.as().auth.register(aRegistration("race@tradepost.example")));
    expect(await tally(calls)).to.deep.equal({ ok: 1, EMAIL_TAKEN: 19 });
  });

  it("tells all five faults of a request at once, one violation each", async () => {
    const refusal = await refusalOf(
      server.as().auth.register({
        email: "invalid-email",
        password: "123",
        firstName: "A",
        lastName: "",
        dateOfBirth: { year: 2023, month: 2, day: 29 },
      }),
    );
    expect(refusal).to.include({ code: "InvalidArgument", reason: "FIELD_INVALID" });
    expect(refusal.fields).to.deep.equal({
      email: "Email must be a valid email address",
      password: "Password must be at least 8 characters",
      first_name: "First name must be at least 2 characters",
      last_name: "Last name must be at least 2 characters",
      date_of_birth: "Date of birth must be a real date",
    });
  });

  it("demands a date of birth in the past", async () => {
    const tomorrow = new Date(Date.now() + 86_400_000);
    const dateOfBirth = {
      year: tomorrow.getUTCFullYear(),
      month: tomorrow.getUTCMonth() + 1,
      day: tomorrow.getUTCDate(),
    };
    const refusal = await refusalOf(
      server.as().auth.register({ ...aRegistration("future@tradepost.example"), dateOfBirth }),
    );
    expect(refusal.reasons).to.deep.equal({ date_of_birth: "DATE_NOT_PAST" });
  });

  it("demands a date of birth", async () => {
    const { dateOfBirth: _, ...rest } = aRegistration("none@tradepost.example");
    expect((await refusalOf(server.as().auth.register(rest))).reasons).to.deep.equal({ date_of_birth: "REQUIRED" });
  });

  it("trims names before it counts their characters, and takes passwords as they are", async () => {
    const spaces = { ...aRegistration("spaces@tradepost.example"), firstName: " A ", password: "        " };
    expect((await refusalOf(server.as().auth.register(spaces))).reasons).to.deep.equal({ first_name: "TOO_SHORT" });
  });

  it("refuses texts that PostgreSQL cannot hold", async () => {
    const refusal = await refusalOf(
      server.as().auth.register({ ...aRegistration("nul@tradepost.example"), lastName: "Ma\0rsh" }),
    );
    expect(refusal.fields).to.deep.equal({ last_name: "Last name must not contain NUL characters" });
  });
});

describe("Login", () => {
  const server = useServer();

  it("gives tokens and the account, and notes when", async () => {
    const { id, email } = await newCustomer(server);
    const answer = await server.as().auth.login({ email: ` ${email.toUpperCase()} `, password: PASSWORD });
    expect(answer.user?.id).to.equal(id);
    expect(answer.user?.lastLoginTime).not.to.equal(undefined);
    expect(Buffer.from(answer.refreshToken, "base64url")).to.have.length(32);
    const lifetimeS = (time: typeof answer.accessTokenExpireTime) => Number(present(time).seconds) - Date.now() / 1000;
    expect(lifetimeS(answer.accessTokenExpireTime)).to.be.within(14 * 60, 15 * 60 + 1);
    expect(lifetimeS(answer.refreshTokenExpireTime) / 86_400).to.be.within(29.9, 30.1);
  });

  it("tells an unknown email, a wrong password and a deleted account apart by nothing", async () => {
    const known = await newCustomer(server);
    const deleted = await newCustomer(server);
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [deleted.id]);
    const refusals = await Promise.all([
      refusalOf(server.as().auth.login({ email: known.email, password: "wrong password" })),
      refusalOf(server.as().auth.login({ email: "nobody@tradepost.example", password: PASSWORD })),
      refusalOf(server.as().auth.login({ email: deleted.email, password: PASSWORD })),
    ]);
    for (const refusal of refusals) {
      expect(refusal).to.deep.equal(refusals[0]);
      expect(refusal).to.include({ code: "Unauthenticated", reason: "CREDENTIALS_INVALID" });
    }
  });

  it("demands an email and a password", async () => {
    const refusal = await refusalOf(server.as().auth.login({ email: "ada", password: "" }));
    expect(refusal.fields).to.deep.equal({
      email: "Email must be a valid email address",
      password: "Password is required",
    });
  });

  it("keeps only the hash of the refresh token", async () => {
    const { email } = await newCustomer(server);
    const { refreshToken } = await server.as().auth.login({ email, password: PASSWORD });
    const rows = await sql<{ found: boolean }>(
      server.database,
      "SELECT true AS found FROM refresh_tokens WHERE token_hash = sha256($1::text::bytea)",
      [refreshToken],
    );
    expect(rows).to.deep.equal([{ found: true }]);
  });

  it("works over Connect with JSON as it does over gRPC", async () => {
    const { email, id } = await newCustomer(server);
    const transport = createConnectTransport({ baseUrl: server.url, httpVersion: "1.1", useBinaryFormat: false });
    const { user } = await createClient(AuthService, transport).login({ email, password: PASSWORD });
    expect(user?.id).to.equal(id);
  });
});

describe("access tokens", () => {
  const server = useServer();

  it("can be checked by anybody with the published keys", async () => {
    const { token, id } = await newCustomer(server);
    const keys = createRemoteJWKSet(new URL("/.well-known/jwks.json", server.url));
    const { payload } = await jwtVerify(token, keys, { issuer: "tradepost", audience: "tradepost", typ: "at+jwt" });
    expect(payload).to.include({ sub: id, role: "USER" });
    expect(payload["sid"]).to.be.a("string");
    expect(decodeProtectedHeader(token)).to.have.keys("alg", "typ", "kid").and.include({ alg: "EdDSA" });
  });

  it("are not accepted once expired", async () => {
    const { users } = await newCustomer(server);
    await users.getProfile({});
    server.clock.advance(15 * 60_000 + 1_000);
    const refusal = await refusalOf(users.getProfile({}));
    server.clock.advance(-15 * 60_000 - 1_000);
    expect(refusal).to.include({ code: "Unauthenticated", reason: "TOKEN_INVALID" });
  });

  it("have their private keys encrypted in the database", async () => {
    const [row] = await sql<{ private_key: Buffer; public_key: object }>(server.database, "SELECT * FROM signing_keys");
    expect(row?.private_key.toString("latin1")).not.to.include("PRIVATE KEY");
    expect(row?.public_key).not.to.have.property("d");
  });
});

describe("GetProfile", () => {
  const server = useServer();

  it("shows the caller's own account, without the fields for admins", async () => {
    const { users, email } = await newCustomer(server);
    const { user } = await users.getProfile({});
    expect(user).to.include({ email, firstName: "Casey", lastName: "Jones" });
    expect(user).not.to.have.any.keys("locked", "lockExpireTime", "failedLoginAttempts");
  });

  it("needs a token", async () => {
    const refusal = await refusalOf(server.as().users.getProfile({}));
    expect(refusal).to.include({ code: "Unauthenticated", reason: "TOKEN_MISSING" });
  });

  it("answers NOT_FOUND for an account that was deleted", async () => {
    const { users, id } = await newCustomer(server);
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [id]);
    expect(await refusalOf(users.getProfile({}))).to.include({
      code: Code[Code.NotFound],
      reason: "USER_NOT_FOUND",
      resource: `User ${id}`,
    });
  });
});
