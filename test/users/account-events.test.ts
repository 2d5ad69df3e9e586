import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { Role } from "../../gen/tradepost/user/v1/user_pb.js";
import type { AccountEvent } from "../../gen/tradepost/user/v1/user_service_pb.js";
import { anAddress, newAdmin, newCustomer, type Person, present } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("ListAccountEvents", () => {
  const lines: string[] = [];
  const server = useServer({ logTo: { write: (line: string) => void lines.push(line) } });
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });

  const eventsOf = async (userId: string): Promise<AccountEvent[]> =>
    (await admin.users.listAccountEvents({ userId, pageSize: 1000 })).events;
  /** Type, details and who did it, newest first, from the given event back to the registration. */
  const story = async (userId: string) =>
    (await eventsOf(userId)).map(({ type, details, actorId }) => ({ type, details: { ...details }, actorId }));

  it("tells who changed what on an account, newest first", async () => {
    const ada = await newCustomer(server);
    const email = `${randomUUID()}@tradepost.example`;
    await ada.users.updateProfile({ user: { firstName: "Ada", bio: "Sails.", preferences: { newsletter: false } } });
    await ada.users.updateUser({ user: { id: ada.id, email } });
    await admin.users.updateUser({ user: { id: ada.id, role: Role.MODERATOR, lastName: "Marsh" } });
    await admin.users.unlockUser({ userId: ada.id });
    await admin.users.deleteUser({ userId: ada.id });
    await admin.users.undeleteUser({ userId: ada.id });

    const masked = (full: string) => `${full[0]}***@tradepost.example`;
    expect((await story(ada.id)).filter(({ type }) => type !== "SESSION_REVOKED")).to.deep.equal([
      { type: "UNDELETED", details: {}, actorId: admin.id },
      { type: "DELETED", details: {}, actorId: admin.id },
      { type: "UNLOCKED", details: {}, actorId: admin.id },
      { type: "ROLE_CHANGED", details: { from: "USER", to: "MODERATOR" }, actorId: admin.id },
      { type: "PROFILE_UPDATED", details: { changed: "last_name" }, actorId: admin.id },
      { type: "EMAIL_CHANGED", details: { from: masked(ada.email), to: masked(email) }, actorId: ada.id },
      { type: "PROFILE_UPDATED", details: { changed: "first_name,bio,newsletter" }, actorId: ada.id },
      { type: "REGISTERED", details: { role: "USER" }, actorId: "" },
    ]);
  });

  it("tells of addresses, by their ids", async () => {
    const ada = await newCustomer(server);
    const { id } = present((await ada.users.createAddress({ address: anAddress })).address);
    await ada.users.updateAddress({ address: { id, city: "Othertown", postalCode: "54321" } });
    await ada.users.deleteAddress({ addressId: id });
    expect((await story(ada.id)).slice(0, 3)).to.deep.equal([
      { type: "ADDRESS_DELETED", details: { address_id: id }, actorId: ada.id },
      { type: "ADDRESS_UPDATED", details: { address_id: id, changed: "city,postal_code" }, actorId: ada.id },
      { type: "ADDRESS_ADDED", details: { address_id: id }, actorId: ada.id },
    ]);
  });

  it("has no event of a change that was refused or changed nothing", async () => {
    const ada = await newCustomer(server);
    const before = await eventsOf(ada.id);
    await refusalOf(ada.users.updateUser({ user: { id: ada.id, firstName: "Ada", role: Role.ADMIN } }));
    await refusalOf(ada.users.updateUser({ user: { id: ada.id, email: admin.email } }));
    await refusalOf(ada.users.updateProfile({ user: { bio: "Sails.", etag: "7" } }));
    await ada.users.updateProfile({ user: { firstName: "Casey" } });
    expect(await eventsOf(ada.id)).to.deep.equal(before);
  });

  it("gives pages that end, without a gap or a repetition", async () => {
    const ada = await newCustomer(server);
    for (let i = 0; i < 5; i++) await ada.users.updateProfile({ user: { bio: `Bio ${i}` } });
    const all = (await eventsOf(ada.id)).map(({ id }) => id);
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await admin.users.listAccountEvents({ userId: ada.id, pageSize: 2, pageToken });
      seen.push(...page.events.map(({ id }) => id));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(all.length).to.be.at.least(6);
    expect(seen).to.deep.equal(all);
  });

  it("refuses a page token of another account", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    await ada.users.updateProfile({ user: { bio: "Sails." } });
    const { nextPageToken: pageToken } = await admin.users.listAccountEvents({ userId: ada.id, pageSize: 1 });
    const refusal = await refusalOf(admin.users.listAccountEvents({ userId: ben.id, pageSize: 1, pageToken }));
    expect(refusal.reasons).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
  });

  it("is for admins, and does not find an account that is not there", async () => {
    const ada = await newCustomer(server);
    expect(await refusalOf(ada.users.listAccountEvents({ userId: ada.id }))).to.include({ reason: "ADMIN_REQUIRED" });
    const missing = refusalOf(admin.users.listAccountEvents({ userId: randomUUID() }));
    expect(await missing).to.include({ code: "NotFound", reason: "USER_NOT_FOUND" });
  });

  it("goes with log lines that name who did it by ids, and repeat nothing that people wrote", async () => {
    const ada = await newCustomer(server);
    const email = `${randomUUID()}@tradepost.example`;
    await ada.users.updateUser({
      user: { id: ada.id, email, bio: "A bio that is nobody's business", phone: "555 0199" },
    });
    await admin.users.deleteUser({ userId: ada.id });
    const mine = lines
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .filter(({ userId }) => userId === ada.id);
    const named = (event: string) => mine.find((line) => line["event"] === event);
    expect(named("account_updated")).to.include({ level: 30, actorId: ada.id });
    expect(named("account_updated")?.["changed"]).to.have.members(["email", "bio", "phone"]);
    expect(named("account_deleted")).to.include({ level: 30, actorId: admin.id });
    for (const text of [email, ada.email, "nobody's business", "555 0199"]) {
      expect(
        lines.some((line) => line.includes(text)),
        text,
      ).to.equal(false);
    }
  });

  it("goes with a warning where access was denied, with the target and the role", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    await refusalOf(ada.users.getUser({ userId: ben.id }));
    const denied = lines
      .map((line) => JSON.parse(line) as Record<string, unknown>)
      .find((line) => line["event"] === "access_denied" && line["userId"] === ada.id);
    expect(denied).to.include({ level: 40, role: "USER", target: `User ${ben.id}` });
    expect(denied?.["method"]).to.equal("tradepost.user.v1.UserService/GetUser");
  });
});
