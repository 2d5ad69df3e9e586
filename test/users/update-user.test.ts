import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { expect } from "chai";
import { Role, type UserSchema } from "../../gen/tradepost/user/v1/user_pb.js";
import { sql } from "../support/database.ts";
import { newAdmin, newCustomer, type Person, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

type Changes = MessageInitShape<typeof UserSchema>;

/** Changes an account as `person`; without paths the populated fields are taken. */
async function update({ users }: Person, id: string, changes: Changes, ...paths: string[]) {
  const user = { ...changes, id };
  return present((await users.updateUser({ user, ...(paths.length > 0 && { updateMask: { paths } }) })).user);
}

describe("UpdateUser", () => {
  const server = useServer();

  it("changes the populated fields of one's own account, and its etag and update time", async () => {
    const ada = await newCustomer(server);
    const before = present((await ada.users.getProfile({})).user);
    server.clock.advance(1_000);
    const user = await update(ada, ada.id, { firstName: " Ada ", phone: "+1 (555) 010-0000" });
    expect(user).to.include({ firstName: "Ada", lastName: before.lastName, phone: "+1 (555) 010-0000", etag: "2" });
    expect(user.updateTime).not.to.deep.equal(before.updateTime);
    expect(user.createTime).to.deep.equal(before.createTime);
    expect((await ada.users.getProfile({})).user).to.deep.equal(user);
  });

  it("takes the fields of the mask and no others", async () => {
    const ada = await newCustomer(server);
    const user = await update(ada, ada.id, { firstName: "Ada", lastName: "Marsh" }, "last_name");
    expect(user).to.include({ firstName: "Casey", lastName: "Marsh" });
  });

  it("clears a phone or bio that the mask names without a value", async () => {
    const ada = await newCustomer(server);
    await update(ada, ada.id, { phone: "555 0100", bio: "Sails." });
    expect(await update(ada, ada.id, {}, "phone", "bio")).to.include({ phone: "", bio: "" });
  });

  it("refuses to clear what every account has, all faults at once", async () => {
    const ada = await newCustomer(server);
    const paths = ["email", "first_name", "last_name", "date_of_birth", "role"];
    const refusal = await refusalOf(update(ada, ada.id, { firstName: "   " }, ...paths));
    expect(refusal.fields).to.deep.equal({
      "user.email": "Email is required",
      "user.first_name": "First name is required",
      "user.last_name": "Last name is required",
      "user.date_of_birth": "Date of birth is required",
      "user.role": "Role is required",
    });
  });

  it("checks the values by the rules of Register", async () => {
    const ada = await newCustomer(server);
    const changes = { email: "ada", firstName: "A", phone: "call me", dateOfBirth: { year: 2023, month: 2, day: 29 } };
    const refusal = await refusalOf(update(ada, ada.id, { ...changes, bio: "x".repeat(501) }));
    expect(refusal.reasons).to.deep.equal({
      "user.email": "EMAIL_INVALID",
      "user.first_name": "TOO_SHORT",
      "user.phone": "FORMAT_INVALID",
      "user.date_of_birth": "DATE_INVALID",
      "user.bio": "TOO_LONG",
    });
    const nextYear = { year: new Date().getUTCFullYear() + 1, month: 1, day: 1 };
    expect((await refusalOf(update(ada, ada.id, { dateOfBirth: nextYear }))).reasons).to.deep.equal({
      "user.date_of_birth": "DATE_NOT_PAST",
    });
  });

  it("changes the date of birth", async () => {
    const ada = await newCustomer(server);
    const user = await update(ada, ada.id, { dateOfBirth: { year: 1980, month: 2, day: 29 } });
    expect(user.dateOfBirth).to.include({ year: 1980, month: 2, day: 29 });
  });

  it("refuses a mask with an unknown or output-only path", async () => {
    const ada = await newCustomer(server);
    for (const path of ["id", "email_verified", "etag", "delete_time", "avatar_url", "password_hash", "*"]) {
      const refusal = await refusalOf(update(ada, ada.id, { firstName: "Ada" }, "first_name", path));
      expect(refusal.reasons, path).to.deep.equal({ update_mask: "UPDATE_MASK_INVALID" });
    }
  });

  it("takes an account that was read and sent back, ignoring what is output only", async () => {
    const ada = await newCustomer(server);
    const user = present((await ada.users.getProfile({})).user);
    const back = await update(ada, ada.id, { ...user, emailVerified: true, locked: true, bio: "Sails." });
    expect(back).to.include({ emailVerified: false, bio: "Sails.", etag: "2" });
    expect(back.locked).to.equal(undefined);
  });

  it("changes nothing, not even the etag, when all is so already", async () => {
    const ada = await newCustomer(server);
    const before = present((await ada.users.getProfile({})).user);
    expect(await update(ada, ada.id, before)).to.deep.equal(before);
    expect(await update(ada, ada.id, {})).to.deep.equal(before);
  });

  it("demands the id of an account", async () => {
    const ada = await newCustomer(server);
    expect((await refusalOf(ada.users.updateUser({ user: { firstName: "Ada" } }))).reasons).to.deep.equal({
      "user.id": "REQUIRED",
    });
    expect((await refusalOf(ada.users.updateUser({}))).reasons).to.deep.equal({ user: "REQUIRED" });
  });

  it("denies another's account in the same words, whether or not it is there", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const refusals = [
      await refusalOf(update(ada, ben.id, { firstName: "Ada" })),
      await refusalOf(update(ada, randomUUID(), { firstName: "Ada" })),
    ];
    expect(refusals[0]).to.include({ code: "PermissionDenied", reason: "ACCESS_DENIED" });
    expect(refusals[1]).to.deep.equal(refusals[0]);
    expect((await ben.users.getProfile({})).user).to.include({ firstName: "Casey", etag: "1" });
  });

  it("lets an admin change anybody, and tells of accounts that are not there or deleted", async () => {
    const [admin, ada] = await Promise.all([newAdmin(server), newCustomer(server)]);
    expect(await update(admin, ada.id, { firstName: "Ada" })).to.include({ firstName: "Ada", failedLoginAttempts: 0 });
    const missing = refusalOf(update(admin, randomUUID(), { firstName: "Ada" }));
    expect(await missing).to.include({ code: "NotFound", reason: "USER_NOT_FOUND" });
    await admin.users.deleteUser({ userId: ada.id });
    expect(await refusalOf(update(admin, ada.id, { firstName: "Eve" }))).to.include({ reason: "USER_NOT_FOUND" });
  });
});

describe("UpdateUser with an etag", () => {
  const server = useServer();

  it("refuses an update of an account that has changed meanwhile", async () => {
    const ada = await newCustomer(server);
    await update(ada, ada.id, { firstName: "Ada", etag: "1" });
    const refusal = await refusalOf(update(ada, ada.id, { lastName: "Marsh", etag: "1" }));
    expect(refusal).to.include({ code: "Aborted", reason: "ETAG_MISMATCH", resource: `User ${ada.id}` });
    expect((await ada.users.getProfile({})).user).to.include({ firstName: "Ada", lastName: "Jones" });
  });

  it("refuses an etag that never was", async () => {
    const ada = await newCustomer(server);
    for (const etag of ["0", "01", "x", "9".repeat(64), "1; DROP TABLE users"]) {
      expect(await refusalOf(update(ada, ada.id, { firstName: "Ada", etag })), etag).to.include({
        reason: "ETAG_MISMATCH",
      });
    }
  });

  it("lets exactly one of twenty updates of the same version through", async () => {
    const ada = await newCustomer(server);
    const calls = Array.from({ length: 20 }, (_, i) => update(ada, ada.id, { bio: `Version ${i}`, etag: "1" }));
    expect(await tally(calls)).to.deep.equal({ ok: 1, ETAG_MISMATCH: 19 });
    expect((await ada.users.getProfile({})).user?.etag).to.equal("2");
  });

  it("loses none of twenty updates without one", async () => {
    const ada = await newCustomer(server);
    const calls = Array.from({ length: 20 }, (_, i) => update(ada, ada.id, { bio: `Version ${i}` }));
    expect(await tally(calls)).to.deep.equal({ ok: 20 });
    expect((await ada.users.getProfile({})).user?.etag).to.equal("21");
  });
});

describe("UpdateUser of an email", () => {
  const server = useServer();
  const jobs = (userId: string) =>
    sql(
      server.database,
      "SELECT FROM graphile_worker.jobs WHERE task_identifier = 'send-verification-email' AND key LIKE $1",
      [`%${userId}`],
    );
  const fresh = () => `${randomUUID()}@tradepost.example`;

  it("normalises it, takes its verification back and sends a new verification mail", async () => {
    const ada = await newCustomer(server);
    await sql(server.database, "UPDATE users SET email_verified = true WHERE id = $1", [ada.id]);
    const email = fresh();
    const user = await update(ada, ada.id, { email: ` ${email.toUpperCase()} ` });
    expect(user).to.include({ email, emailVerified: false });
    expect(await jobs(ada.id)).to.have.length(1);
  });

  it("leaves the verification alone when it is the same", async () => {
    const ada = await newCustomer(server);
    await sql(server.database, "UPDATE users SET email_verified = true WHERE id = $1", [ada.id]);
    expect(await update(ada, ada.id, { email: ada.email.toUpperCase() })).to.include({
      emailVerified: true,
      etag: "1",
    });
  });

  it("refuses one that another account has, a deleted one too, and then changes nothing", async () => {
    const [admin, ada, ben] = await Promise.all([newAdmin(server), newCustomer(server), newCustomer(server)]);
    const refusal = await refusalOf(update(ada, ada.id, { email: ben.email, firstName: "Ada" }));
    expect(refusal).to.include({ code: "AlreadyExists", reason: "EMAIL_TAKEN" });
    await admin.users.deleteUser({ userId: ben.id });
    expect(await refusalOf(update(ada, ada.id, { email: ben.email }))).to.include({ reason: "EMAIL_TAKEN" });
    expect((await ada.users.getProfile({})).user).to.include({ email: ada.email, firstName: "Casey", etag: "1" });
  });

  it("gives an email to one of ten accounts that want it at once", async () => {
    const email = fresh();
    const people = await Promise.all(Array.from({ length: 10 }, () => newCustomer(server)));
    const calls = people.map((person) => update(person, person.id, { email }));
    expect(await tally(calls)).to.deep.equal({ ok: 1, EMAIL_TAKEN: 9 });
  });
});

describe("UpdateUser of a role", () => {
  const server = useServer();

  it("is for admins only", async () => {
    const ada = await newCustomer(server);
    const refusal = await refusalOf(update(ada, ada.id, { role: Role.ADMIN, firstName: "Ada" }));
    expect(refusal).to.include({ code: "PermissionDenied", reason: "ROLE_CHANGE_FORBIDDEN" });
    expect((await ada.users.getProfile({})).user).to.include({ role: Role.USER, firstName: "Casey" });
  });

  it("is no change when one names the role one has", async () => {
    const ada = await newCustomer(server);
    expect(await update(ada, ada.id, { role: Role.USER, firstName: "Ada" })).to.include({
      role: Role.USER,
      firstName: "Ada",
    });
  });

  it("refuses the old access tokens from the next call on, and lets the session go on with the new role", async () => {
    const [admin, ada] = await Promise.all([newAdmin(server), newCustomer(server)]);
    expect(await update(admin, ada.id, { role: Role.ADMIN })).to.include({ role: Role.ADMIN });
    expect(await refusalOf(ada.users.getProfile({}))).to.include({ code: "Unauthenticated", reason: "TOKEN_INVALID" });
    const sessions = await sql(server.database, "SELECT FROM sessions WHERE user_id = $1", [ada.id]);
    expect(sessions).to.have.length(1);
  });

  it("takes what an admin may do from the next call on", async () => {
    const [admin, other] = await Promise.all([newAdmin(server), newAdmin(server)]);
    await update(admin, other.id, { role: Role.USER });
    expect(await refusalOf(other.users.listUsers({}))).to.include({ reason: "TOKEN_INVALID" });
  });

  it("refuses a role that is not defined", async () => {
    const [admin, ada] = await Promise.all([newAdmin(server), newCustomer(server)]);
    expect((await refusalOf(update(admin, ada.id, { role: 99 as Role }))).reasons).to.deep.equal({
      "user.role": "VALUE_UNDEFINED",
    });
  });
});

describe("a role or a user id in a body", () => {
  const server = useServer();
  const person = { firstName: "Ada", lastName: "Marsh", dateOfBirth: { year: 1990, month: 1, day: 2 } };

  /** Sends JSON as a client of no schema would. */
  async function post(method: string, body: object, token?: string): Promise<{ status: number; answer: string }> {
    const headers = {
      "content-type": "application/json",
      ...(token !== undefined && { authorization: `Bearer ${token}` }),
    };
    const response = await fetch(new URL(method, server.url), { method: "POST", headers, body: JSON.stringify(body) });
    return { status: response.status, answer: await response.text() };
  }

  it("makes nobody an admin at registration", async () => {
    const email = `${randomUUID()}@tradepost.example`;
    const body = { ...person, email, password: "a password of some length", role: "ROLE_ADMIN", user: { role: 3 } };
    await post("/tradepost.user.v1.AuthService/Register", body);
    const rows = await sql<{ role: string }>(server.database, "SELECT role FROM users WHERE email = $1", [email]);
    expect(rows.filter(({ role }) => role !== "USER")).to.deep.equal([]);
  });

  it("makes nobody an admin by an update of the profile", async () => {
    const ada = await newCustomer(server);
    await ada.users.updateProfile({ user: { role: Role.ADMIN, bio: "Sails." } });
    const masked = { user: { role: Role.ADMIN }, updateMask: { paths: ["role"] } };
    expect((await refusalOf(ada.users.updateProfile(masked))).reasons).to.deep.equal({
      update_mask: "UPDATE_MASK_INVALID",
    });
    expect((await ada.users.getProfile({})).user).to.include({ role: Role.USER, bio: "Sails." });
  });

  it("turns no update of the profile on another's account", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const { user } = await ada.users.updateProfile({ user: { id: ben.id, bio: "Sails." } });
    expect(user).to.include({ id: ada.id, bio: "Sails." });
    expect((await ben.users.getProfile({})).user?.bio).to.equal("");
  });

  it("puts no address into another's account", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const place = { street: "1 Main St", city: "Anytown", state: "CA", postalCode: "12345" };
    const { address } = await ada.users.createAddress({ address: { ...place, id: randomUUID(), userId: ben.id } });
    expect(address?.userId).to.equal(ada.id);
    expect((await ben.users.listAddresses({})).addresses).to.deep.equal([]);
  });

  it("lets nobody see or change more than their token says", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const body = { userId: ben.id, role: "ROLE_ADMIN", caller: { role: "ADMIN" } };
    const { status, answer } = await post("/tradepost.user.v1.UserService/GetUser", body, ada.token);
    expect(status, answer).to.be.oneOf([400, 403]);
    expect(answer).not.to.include(ben.email);
  });
});
