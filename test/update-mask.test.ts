import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { expect } from "chai";
import fc from "fast-check";
import { Role, UserSchema } from "../gen/tradepost/user/v1/user_pb.js";
import { updatableFields } from "../src/update-mask.ts";

interface Patch {
  readonly firstName: string;
  readonly phone: string;
  readonly role: Role;
  readonly newsletter: boolean | undefined;
  readonly notifications: boolean | undefined;
}

const updatable = updatableFields<typeof UserSchema, Patch>(UserSchema, {
  first_name: ({ firstName }) => ({ firstName }),
  phone: ({ phone }) => ({ phone }),
  role: ({ role }) => ({ role }),
  "preferences.newsletter": ({ preferences }) => ({ newsletter: preferences?.newsletter }),
  "preferences.notifications": ({ preferences }) => ({ notifications: preferences?.notifications }),
});
const ada = (fields: MessageInitShape<typeof UserSchema> = {}) => create(UserSchema, fields);
const mask = (...paths: string[]) => ({ paths });

describe("an update mask", () => {
  it("takes the fields it names, with a value or without", () => {
    const user = ada({ firstName: "Ada", role: Role.ADMIN });
    expect(updatable.patch(user, mask("first_name", "phone"))).to.deep.equal({ firstName: "Ada", phone: "" });
  });

  it("takes a field of a field by itself", () => {
    const user = ada({ preferences: { newsletter: false, notifications: false } });
    expect(updatable.patch(user, mask("preferences.newsletter"))).to.deep.equal({ newsletter: false });
  });

  it("means all that is below a path by the path", () => {
    const user = ada({ preferences: { newsletter: false, notifications: true } });
    expect(updatable.patch(user, mask("preferences"))).to.deep.equal({ newsletter: false, notifications: true });
  });

  it("takes the populated fields when it is absent or empty, and no others", () => {
    const user = ada({ firstName: "Ada", email: "ada@tradepost.example", preferences: { newsletter: false } });
    for (const none of [undefined, mask()]) {
      expect(updatable.patch(user, none)).to.deep.equal({ firstName: "Ada", newsletter: false });
    }
    expect(updatable.patch(ada(), undefined)).to.deep.equal({});
  });

  it("is faulty when it names what cannot be updated", () => {
    for (const path of ["etag", "preferences.nope", "first_name.x", "firstName", "*", "", "prefer", "__proto__"]) {
      const faults = updatable.faults(mask("first_name", path));
      expect(faults, path).to.have.length(1);
      expect(faults[0]).to.include({ field: "update_mask", reason: "UPDATE_MASK_INVALID" });
    }
  });

  it("says which path is at fault and which would do", () => {
    expect(updatable.faults(mask("etag"))[0]?.description).to.equal(
      'Update mask names "etag", but may only name first_name, phone, role, preferences, preferences.newsletter, ' +
        "preferences.notifications",
    );
  });

  it("repeats only the beginning of a path that a client made up", () => {
    expect(updatable.faults(mask("x".repeat(100_000)))[0]?.description.length).to.be.below(300);
    const cut = updatable.faults(mask(`${"x".repeat(63)}🦆`))[0]?.description ?? "";
    expect(cut.isWellFormed(), "a character that is cut in half cannot be sent").to.equal(true);
  });

  it("takes each path once, however often it is named", () => {
    const repeated = { paths: Array.from({ length: 200_000 }, (_, i) => (i % 2 === 0 ? "phone" : "role")) };
    expect(updatable.faults(repeated)).to.deep.equal([]);
    expect([...updatable.paths(ada(), repeated)]).to.have.members(["phone", "role"]);
  });

  it("finds the faults of exactly those masks that name something else", () => {
    const known = ["first_name", "phone", "role", "preferences", "preferences.newsletter", "preferences.notifications"];
    const path = fc.oneof(fc.constantFrom(...known), fc.string(), fc.constantFrom("etag", "valueOf", "preferences."));
    fc.assert(
      fc.property(fc.array(path), (paths) => {
        const faulty = paths.some((each) => !known.includes(each));
        expect(updatable.faults(mask(...paths)).length).to.equal(faulty ? 1 : 0);
      }),
    );
  });

  it("cannot be described for a field that the schema does not have", () => {
    expect(() => updatableFields(UserSchema, { nope: () => ({}) })).to.throw(
      "tradepost.user.v1.User has no field nope",
    );
  });
});
