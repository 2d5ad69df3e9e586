import { expect } from "chai";
import { Role } from "../../gen/tradepost/user/v1/user_pb.js";
import { newAdmin, newCustomer } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("UpdateProfile", () => {
  const server = useServer();

  it("changes names, phone and bio", async () => {
    const { users } = await newCustomer(server);
    const changes = { firstName: "Ada", lastName: "Marsh", phone: "555 0100", bio: "  Sails. " };
    expect((await users.updateProfile({ user: changes })).user).to.include({ ...changes, bio: "Sails.", etag: "2" });
  });

  it("changes each preference by itself, with a mask and without", async () => {
    const { users } = await newCustomer(server);
    const first = await users.updateProfile({ user: { preferences: { newsletter: false } } });
    expect(first.user?.preferences).to.include({ newsletter: false, notifications: true });
    const second = await users.updateProfile({
      user: { preferences: { newsletter: true, notifications: false } },
      updateMask: { paths: ["preferences.notifications"] },
    });
    expect(second.user?.preferences).to.include({ newsletter: false, notifications: false });
    const third = await users.updateProfile({
      user: { preferences: { newsletter: true } },
      updateMask: { paths: ["preferences"] },
    });
    expect(third.user?.preferences).to.include({ newsletter: true, notifications: false });
  });

  it("takes a bio of 500 characters, counted as people do, and no more", async () => {
    const { users } = await newCustomer(server);
    const bio = "🦆".repeat(500);
    expect((await users.updateProfile({ user: { bio } })).user?.bio).to.equal(bio);
    const refusal = await refusalOf(users.updateProfile({ user: { bio: `${bio}!` } }));
    expect(refusal.fields).to.deep.equal({ "user.bio": "Bio must be at most 500 characters" });
  });

  it("leaves email, date of birth and role to UpdateUser", async () => {
    const { users, email } = await newCustomer(server);
    const { user } = await users.updateProfile({
      user: { email: "eve@tradepost.example", role: Role.ADMIN, dateOfBirth: { year: 1980, month: 1, day: 1 } },
    });
    expect(user).to.include({ email, role: Role.USER, etag: "1" });
    for (const path of ["email", "date_of_birth", "role", "preferences.nope"]) {
      const refusal = await refusalOf(users.updateProfile({ user: {}, updateMask: { paths: [path] } }));
      expect(refusal.reasons, path).to.deep.equal({ update_mask: "UPDATE_MASK_INVALID" });
    }
  });

  it("refuses to clear a name", async () => {
    const { users } = await newCustomer(server);
    const refusal = await refusalOf(users.updateProfile({ user: {}, updateMask: { paths: ["first_name"] } }));
    expect(refusal.fields).to.deep.equal({ "user.first_name": "First name is required" });
  });

  it("refuses an etag that is not the current one, and lets one of ten through", async () => {
    const { users } = await newCustomer(server);
    const calls = Array.from({ length: 10 }, (_, i) => users.updateProfile({ user: { bio: `Bio ${i}`, etag: "1" } }));
    expect(await tally(calls)).to.deep.equal({ ok: 1, ETAG_MISMATCH: 9 });
  });

  it("never shows the fields for admins, not even to an admin", async () => {
    const { users } = await newAdmin(server);
    const { user } = await users.updateProfile({ user: { bio: "Runs this." } });
    expect(user?.bio).to.equal("Runs this.");
    expect(user).not.to.have.any.keys("locked", "lockExpireTime", "failedLoginAttempts");
  });

  it("demands something to change", async () => {
    const { users } = await newCustomer(server);
    expect((await refusalOf(users.updateProfile({}))).reasons).to.deep.equal({ user: "REQUIRED" });
  });
});
