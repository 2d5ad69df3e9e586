import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { expect } from "chai";
import { Role } from "../../gen/tradepost/user/v1/user_pb.js";
import type { ListUsersRequestSchema, ListUsersResponse } from "../../gen/tradepost/user/v1/user_service_pb.js";
import { sql } from "../support/database.ts";
import { newAdmin, newCustomer, PASSWORD, type Person, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

const MINUTE_MS = 60_000;

type ListRequest = MessageInitShape<typeof ListUsersRequestSchema>;

/** Wrong passwords for an email, as many logins would have left them; `lockedMs` from now, negative: it is over. */
async function failLogins(server: TestServer, email: string, attempts: number, lockedMs?: number): Promise<void> {
  const now = server.clock.now().getTime();
  const lockExpireTime = lockedMs === undefined ? null : new Date(now + lockedMs);
  await sql(
    server.database,
    `INSERT INTO login_failures (email, attempts, locks, lock_expire_time, forget_time) VALUES ($1, $2, $3, $4, $5)`,
    [email, attempts, lockExpireTime === null ? 0 : 1, lockExpireTime, new Date(now + 24 * 60 * MINUTE_MS)],
  );
}

describe("GetUser", () => {
  const server = useServer();

  it("shows one's own account, without the fields for admins", async () => {
    const { users, id, email } = await newCustomer(server);
    const user = present((await users.getUser({ userId: id })).user);
    expect(user).to.include({ id, email, role: Role.USER, emailVerified: false });
    expect(user.preferences).to.include({ newsletter: true, notifications: true });
    expect(user.lastLoginTime).not.to.equal(undefined);
    expect(user).not.to.have.any.keys("locked", "lockExpireTime", "failedLoginAttempts");
  });

  it("denies another's account in the same words, whether or not it is there", async () => {
    const [{ users }, other] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const refusals = [
      await refusalOf(users.getUser({ userId: other.id })),
      await refusalOf(users.getUser({ userId: randomUUID() })),
    ];
    expect(refusals[0]).to.include({ code: "PermissionDenied", reason: "ACCESS_DENIED" });
    expect(refusals[1]).to.deep.equal(refusals[0]);
  });

  it("shows an admin anybody's, with failed logins and the lock that is in force", async () => {
    const [{ users }, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    const before = present((await users.getUser({ userId: customer.id })).user);
    expect(before).to.include({ id: customer.id, locked: false, failedLoginAttempts: 0 });
    expect(before.lockExpireTime).to.equal(undefined);

    await failLogins(server, customer.email, 5, 15 * MINUTE_MS);
    const locked = present((await users.getUser({ userId: customer.id })).user);
    expect(locked).to.include({ locked: true, failedLoginAttempts: 5 });
    expect(Number(present(locked.lockExpireTime).seconds) * 1000).to.be.closeTo(Date.now() + 15 * MINUTE_MS, MINUTE_MS);
  });

  it("judges a lock by the service's clock", async () => {
    const [{ users }, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    await failLogins(server, customer.email, 5, MINUTE_MS);
    server.clock.advance(2 * MINUTE_MS);
    const { user } = await users.getUser({ userId: customer.id });
    server.clock.advance(-2 * MINUTE_MS);
    expect(user).to.include({ locked: false, failedLoginAttempts: 5 });
    expect(user?.lockExpireTime).to.equal(undefined);
  });

  it("tells an admin that there is no such account", async () => {
    const { users } = await newAdmin(server);
    const userId = randomUUID();
    const refusal = await refusalOf(users.getUser({ userId }));
    expect(refusal).to.include({ code: "NotFound", reason: "USER_NOT_FOUND", resource: `User ${userId}` });
  });

  it("takes an id in upper case for the same", async () => {
    const { users, id } = await newCustomer(server);
    expect((await users.getUser({ userId: id.toUpperCase() })).user?.id).to.equal(id);
  });

  it("demands a UUID", async () => {
    const { users } = await newCustomer(server);
    expect((await refusalOf(users.getUser({ userId: "1 OR 1=1" }))).reasons).to.deep.equal({ user_id: "UUID_INVALID" });
  });
});

describe("ListUsers", () => {
  const server = useServer();
  const email = (name: string) => `${name}@list.example`;
  let admin: Person;

  before(async () => {
    admin = await newAdmin(server);
    // Many accounts beside those that a filter asks for, so that plans show what they cost.
    await sql(
      server.database,
      `INSERT INTO users (id, email, password_hash, first_name, last_name, date_of_birth, role, create_time, update_time, delete_time)
       SELECT gen_random_uuid(), name, '', 'Ada', 'Marsh', '1990-01-01', role, now(), now(), delete_time
         FROM (SELECT 'u' || n || '@many.example' AS name, 'USER' AS role, NULL::timestamptz AS delete_time
                 FROM generate_series(1, 5000) n
               UNION ALL VALUES ('mod@list.example', 'MODERATOR', NULL), ('z_b@list.example', 'USER', NULL),
                 ('zxb@list.example', 'USER', NULL), ('z%b@list.example', 'USER', NULL),
                 ('z:now@list.example', 'USER', NULL), ('gone@list.example', 'USER', now()), ('locked@list.example', 'USER', NULL),
                 ('was-locked@list.example', 'USER', NULL)) made`,
    );
    await failLogins(server, email("locked"), 5, 15 * MINUTE_MS);
    await failLogins(server, email("was-locked"), 5, -1);
    await failLogins(server, "nobody@list.example", 5, 15 * MINUTE_MS);
    await sql(server.database, "ANALYZE users, login_failures");
  });

  const list = async (request: ListRequest): Promise<ListUsersResponse> =>
    admin.users.listUsers({ pageSize: 1000, ...request });
  const emails = async (request: ListRequest) =>
    (await list(request)).users.map((user) => user.email.replace("@list.example", ""));

  it("is for admins", async () => {
    const { users } = await newCustomer(server);
    expect(await refusalOf(users.listUsers({}))).to.include({ code: "PermissionDenied", reason: "ADMIN_REQUIRED" });
  });

  it("lists all accounts once, ordered by id, in pages of the default 50", async () => {
    const seen: string[] = [];
    let pageToken = "";
    for (let page = 0; page < 3; page++) {
      const answer = await admin.users.listUsers({ pageToken });
      expect(answer.users).to.have.length(50);
      seen.push(...answer.users.map(({ id }) => id));
      pageToken = answer.nextPageToken;
    }
    expect(seen).to.deep.equal([...new Set(seen)].sort());
  });

  it("ends with an empty page token and gives at most 1000 accounts at once", async () => {
    let count = 0;
    let pageToken = "";
    do {
      const page = await list({ pageSize: 5000, pageToken });
      expect(page.users.length).to.be.at.most(1000);
      count += page.users.length;
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    const [row] = await sql<{ live: string }>(
      server.database,
      "SELECT count(*) AS live FROM users WHERE delete_time IS NULL",
    );
    expect(String(count)).to.equal(row?.live);
  });

  it("filters by role", async () => {
    expect(await emails({ role: Role.MODERATOR })).to.deep.equal(["mod"]);
    expect((await list({ role: Role.ADMIN })).users.map(({ id }) => id)).to.include(admin.id);
  });

  it("filters by a prefix of the email, normalised as emails are", async () => {
    expect(await emails({ emailPrefix: "  MOD@list" })).to.deep.equal(["mod"]);
  });

  it("takes the letters of a prefix as they are", async () => {
    expect(await emails({ emailPrefix: "z_b" })).to.deep.equal(["z_b"]);
    expect(await emails({ emailPrefix: "z%b" })).to.deep.equal(["z%b"]);
    expect(await emails({ emailPrefix: "z" })).to.have.members(["z_b", "zxb", "z%b", "z:now"]);
    expect(await emails({ emailPrefix: "z:now", locked: false })).to.deep.equal(["z:now"]);
    for (const emailPrefix of ["\\", "'", "z\\_b", "';--", ":now", "$1"]) {
      expect(await emails({ emailPrefix }), emailPrefix).to.deep.equal([]);
    }
  });

  it("filters by locks that are in force", async () => {
    expect(await emails({ locked: true })).to.deep.equal(["locked"]);
    const others = await emails({ locked: false, emailPrefix: "was-" });
    expect(others).to.deep.equal(["was-locked"]);
    expect(await emails({ locked: false, emailPrefix: "locked" })).to.deep.equal([]);
  });

  it("shows what admins see of each account", async () => {
    const [user] = (await list({ emailPrefix: "locked" })).users;
    expect(user).to.include({ locked: true, failedLoginAttempts: 5 });
    const [other] = (await list({ emailPrefix: "mod@" })).users;
    expect(other).to.include({ locked: false, failedLoginAttempts: 0 });
  });

  it("leaves deleted accounts out, unless asked for", async () => {
    expect(await emails({ emailPrefix: "gone" })).to.deep.equal([]);
    const [gone] = (await list({ emailPrefix: "gone", showDeleted: true })).users;
    expect(gone?.deleteTime).not.to.equal(undefined);
  });

  it("refuses a page token with any other filter than its own", async () => {
    const { nextPageToken: pageToken } = await list({ pageSize: 1 });
    const others = [{ role: Role.USER }, { locked: false }, { emailPrefix: "u" }, { showDeleted: true }];
    for (const other of others) {
      const refusal = await refusalOf(list({ pageSize: 1, pageToken, ...other }));
      expect(refusal.reasons, JSON.stringify(other)).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
    }
  });

  it("does not read accounts by the thousand to find a few", async () => {
    const requests: ListRequest[] = [
      {},
      { showDeleted: true },
      { role: Role.MODERATOR },
      { role: Role.USER },
      { emailPrefix: "mod" },
      { locked: true },
      { locked: false },
    ];
    for (const request of requests) {
      const [query = ""] = await sqlOf(server, () => admin.users.listUsers({ pageSize: 50, ...request }));
      const explain = `EXPLAIN (ANALYZE, FORMAT JSON) ${query}`;
      const [row] = await sql<{ "QUERY PLAN": [{ Plan: Plan }] }>(server.database, explain);
      expect(rowsRead(present(row)["QUERY PLAN"][0].Plan), query).to.be.below(500);
    }
  });
});

/** The statements that Sequelize makes of a call. */
async function sqlOf({ deps }: TestServer, call: () => Promise<unknown>): Promise<string[]> {
  const statements: string[] = [];
  const { options } = deps.db.sequelize as unknown as { options: { logging: unknown } };
  options.logging = (text: string) => statements.push(text.replace(/^Executing \(.*?\): /, ""));
  await call();
  options.logging = false;
  return statements;
}

interface Plan {
  readonly "Relation Name"?: string;
  readonly "Actual Rows": number;
  readonly "Actual Loops": number;
  readonly "Rows Removed by Filter"?: number;
  readonly Plans?: readonly Plan[];
}

/** Rows that the scans of a plan went through. */
function rowsRead(plan: Plan): number {
  const own = plan["Relation Name"] === undefined ? 0 : plan["Actual Rows"] + (plan["Rows Removed by Filter"] ?? 0);
  return own * plan["Actual Loops"] + (plan.Plans ?? []).reduce((sum, inner) => sum + rowsRead(inner), 0);
}

describe("DeleteUser", () => {
  const server = useServer();

  it("hides the account, ends its sessions at once and keeps its email", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    const { user } = await admin.users.deleteUser({ userId: customer.id });
    expect(user?.deleteTime).not.to.equal(undefined);
    expect(user?.etag).to.equal("2");

    expect(await refusalOf(customer.users.getProfile({}))).to.include({
      code: "Unauthenticated",
      reason: "TOKEN_INVALID",
    });
    const login = { email: customer.email, password: PASSWORD };
    expect(await refusalOf(server.as().auth.login(login))).to.include({ reason: "CREDENTIALS_INVALID" });
    const person = { firstName: "Eve", lastName: "Moss", dateOfBirth: { year: 1990, month: 1, day: 2 } };
    const registration = { ...person, email: customer.email, password: "another long password" };
    expect(await refusalOf(server.as().auth.register(registration))).to.include({ reason: "EMAIL_TAKEN" });
    const { user: seen } = await admin.users.getUser({ userId: customer.id });
    expect(seen?.deleteTime).to.deep.equal(user?.deleteTime);
  });

  it("leaves no session and no refresh token", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    await admin.users.deleteUser({ userId: customer.id });
    expect(await sql(server.database, "SELECT FROM sessions WHERE user_id = $1", [customer.id])).to.deep.equal([]);
  });

  it("is not for oneself", async () => {
    const admin = await newAdmin(server);
    const refusal = await refusalOf(admin.users.deleteUser({ userId: admin.id.toUpperCase() }));
    expect(refusal).to.include({ code: "FailedPrecondition", reason: "SELF_DELETION" });
    expect((await admin.users.getProfile({})).user?.deleteTime).to.equal(undefined);
  });

  it("does not find an account that is not there, or is deleted already", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    expect(await refusalOf(admin.users.deleteUser({ userId: randomUUID() }))).to.include({ reason: "USER_NOT_FOUND" });
    const twice = [1, 2].map(() => admin.users.deleteUser({ userId: customer.id }));
    expect(await tally(twice)).to.deep.equal({ ok: 1, USER_NOT_FOUND: 1 });
  });

  it("is for admins, whatever the id", async () => {
    const customer = await newCustomer(server);
    for (const userId of [customer.id, randomUUID()]) {
      expect(await refusalOf(customer.users.deleteUser({ userId }))).to.include({ reason: "ADMIN_REQUIRED" });
    }
  });
});

describe("the last admin", () => {
  const server = useServer();

  it("stays when the last two delete each other at once", async () => {
    await sql(server.database, "UPDATE users SET role = 'USER'");
    for (let round = 0; round < 5; round++) {
      const [ada, ben] = await Promise.all([newAdmin(server), newAdmin(server)]);
      const outcomes = await tally([
        ada.users.deleteUser({ userId: ben.id }),
        ben.users.deleteUser({ userId: ada.id }),
      ]);
      expect(outcomes["ok"], JSON.stringify(outcomes)).to.equal(1);
      expect(Object.keys(outcomes).filter((key) => !["ok", "LAST_ADMIN", "TOKEN_INVALID"].includes(key))).to.deep.equal(
        [],
      );
      const left = await sql<{ id: string }>(
        server.database,
        "UPDATE users SET role = 'USER' WHERE role = 'ADMIN' AND delete_time IS NULL RETURNING id",
      );
      expect(left).to.have.length(1);
    }
  });

  it("cannot be demoted, by nobody and not by itself", async () => {
    await sql(server.database, "UPDATE users SET role = 'USER'");
    const admin = await newAdmin(server);
    const demotion = { user: { id: admin.id, role: Role.USER } };
    expect(await refusalOf(admin.users.updateUser(demotion))).to.include({
      code: "FailedPrecondition",
      reason: "LAST_ADMIN",
      resource: `User ${admin.id}`,
    });
    await newAdmin(server);
    expect((await admin.users.updateUser(demotion)).user?.role).to.equal(Role.USER);
  });

  it("stays when the last two demote each other at once", async () => {
    await sql(server.database, "UPDATE users SET role = 'USER'");
    for (let round = 0; round < 5; round++) {
      const [ada, ben] = await Promise.all([newAdmin(server), newAdmin(server)]);
      const demote = (by: Person, { id }: Person) => by.users.updateUser({ user: { id, role: Role.USER } });
      const outcomes = await tally([demote(ada, ben), demote(ben, ada)]);
      expect(outcomes["ok"], JSON.stringify(outcomes)).to.equal(1);
      const left = await sql(server.database, "UPDATE users SET role = 'USER' WHERE role = 'ADMIN' RETURNING id");
      expect(left).to.have.length(1);
    }
  });

  it("stays when ten admins demote one another at once", async () => {
    await sql(server.database, "UPDATE users SET role = 'USER'");
    const admins = await Promise.all(Array.from({ length: 10 }, () => newAdmin(server)));
    const calls = admins.map((admin, i) => {
      const id = present(admins[(i + 1) % admins.length]).id;
      return admin.users.updateUser({ user: { id, role: Role.MODERATOR } });
    });
    await tally(calls);
    const left = await sql(server.database, "SELECT FROM users WHERE role = 'ADMIN' AND delete_time IS NULL");
    expect(left.length).to.be.at.least(1);
  });
});

describe("UndeleteUser", () => {
  const server = useServer();

  it("brings the account back as it was, but signed out", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    await admin.users.deleteUser({ userId: customer.id });
    const { user } = await admin.users.undeleteUser({ userId: customer.id });
    expect(user).to.include({ id: customer.id, email: customer.email, etag: "3" });
    expect(user?.deleteTime).to.equal(undefined);
    expect(await refusalOf(customer.users.getProfile({}))).to.include({ reason: "TOKEN_INVALID" });
    const login = await server.as().auth.login({ email: customer.email, password: PASSWORD });
    expect(login.user?.id).to.equal(customer.id);
  });

  it("refuses an account that is not deleted, and one that is not there", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    expect(await refusalOf(admin.users.undeleteUser({ userId: customer.id }))).to.include({
      code: "FailedPrecondition",
      reason: "USER_NOT_DELETED",
    });
    expect(await refusalOf(admin.users.undeleteUser({ userId: randomUUID() }))).to.include({
      reason: "USER_NOT_FOUND",
    });
  });
});

describe("UnlockUser", () => {
  const server = useServer();

  it("ends a lock and forgets the wrong passwords", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    await failLogins(server, customer.email, 5, 15 * MINUTE_MS);
    const login = () => server.as().auth.login({ email: customer.email, password: PASSWORD });
    expect(await refusalOf(login())).to.include({ code: "ResourceExhausted", reason: "ACCOUNT_LOCKED" });
    const { user } = await admin.users.unlockUser({ userId: customer.id });
    expect(user).to.include({ locked: false, failedLoginAttempts: 0 });
    expect(user?.lockExpireTime).to.equal(undefined);
    expect((await login()).user?.id).to.equal(customer.id);
  });

  it("does nothing to an account that is not locked, and does not find one that is not there or deleted", async () => {
    const [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
    expect((await admin.users.unlockUser({ userId: customer.id })).user).to.include({ locked: false, etag: "1" });
    expect(await refusalOf(admin.users.unlockUser({ userId: randomUUID() }))).to.include({ reason: "USER_NOT_FOUND" });
    await admin.users.deleteUser({ userId: customer.id });
    expect(await refusalOf(admin.users.unlockUser({ userId: customer.id }))).to.include({ reason: "USER_NOT_FOUND" });
  });

  it("is for admins, also where the account is one's own", async () => {
    const customer = await newCustomer(server);
    const refusal = await refusalOf(customer.users.unlockUser({ userId: customer.id }));
    expect(refusal).to.include({ code: "PermissionDenied", reason: "ADMIN_REQUIRED" });
  });
});
