import { randomUUID } from "node:crypto";
import { expect } from "chai";
import fc from "fast-check";
import type { Address } from "../../gen/tradepost/user/v1/user_pb.js";
import { sql } from "../support/database.ts";
import { anAddress, newCustomer, type Person, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

describe("CreateAddress", () => {
  const server = useServer();

  it("makes the first address primary, in the US where no country is given", async () => {
    const { users, id } = await newCustomer(server);
    const { address } = await users.createAddress({ address: anAddress });
    expect(address).to.include({ ...anAddress, userId: id, country: "US", primary: true });
  });

  it("makes a later address primary only when asked, and takes that from the old one", async () => {
    const { users } = await newCustomer(server);
    for (const primary of [false, false, true]) await users.createAddress({ address: { ...anAddress, primary } });
    const { addresses } = await users.listAddresses({});
    expect(addresses.map(({ primary }) => primary)).to.deep.equal([false, false, true]);
  });

  it("leaves exactly one primary address when ten first ones come at once", async () => {
    const { users, id } = await newCustomer(server);
    const calls = Array.from({ length: 10 }, (_, i) =>
      users.createAddress({ address: { ...anAddress, primary: i % 2 === 0 } }),
    );
    expect(await tally(calls)).to.deep.equal({ ok: 10 });
    const rows = await sql(server.database, "SELECT 1 FROM addresses WHERE user_id = $1 AND is_primary", [id]);
    expect(rows).to.have.length(1);
  });

  it("demands street, city, state and postal code", async () => {
    const { users } = await newCustomer(server);
    const refusal = await refusalOf(users.createAddress({ address: { street: "  ", country: "usa" } }));
    expect(refusal.fields).to.deep.equal({
      "address.country": "Country must be a two-letter ISO 3166-1 code in upper case",
      "address.street": "Street is required",
      "address.city": "City is required",
      "address.state": "State is required",
      "address.postal_code": "Postal code is required",
    });
    expect((await refusalOf(users.createAddress({}))).reasons).to.deep.equal({ address: "REQUIRED" });
  });

  it("stops at 100 addresses of one account", async () => {
    const { users, id } = await newCustomer(server);
    await users.createAddress({ address: anAddress });
    await sql(
      server.database,
      `INSERT INTO addresses (id, user_id, street, city, state, postal_code, country, is_primary, create_time)
       SELECT gen_random_uuid(), user_id, street, city, state, postal_code, country, false, now()
         FROM addresses, generate_series(1, 99) WHERE user_id = $1`,
      [id],
    );
    const refusal = await refusalOf(users.createAddress({ address: anAddress }));
    expect(refusal).to.include({ code: "FailedPrecondition", reason: "TOO_MANY_ADDRESSES" });
  });
});

describe("ListAddresses", () => {
  const server = useServer();

  it("lists the caller's own addresses in pages, oldest first", async () => {
    const { users } = await newCustomer(server);
    const other = await newCustomer(server);
    await other.users.createAddress({ address: anAddress });
    const made: string[] = [];
    for (let i = 0; i < 5; i++) made.push(present((await users.createAddress({ address: anAddress })).address).id);

    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await users.listAddresses({ pageSize: 2, pageToken });
      expect(page.addresses.length).to.be.within(1, 2);
      seen.push(...page.addresses.map(({ id }) => id));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen).to.deep.equal(made);
  });

  it("refuses another account's page token and a negative page size", async () => {
    const ada = await newCustomer(server);
    const ben = await newCustomer(server);
    for (let i = 0; i < 2; i++) await ada.users.createAddress({ address: anAddress });
    const { nextPageToken } = await ada.users.listAddresses({ pageSize: 1 });
    const refusal = await refusalOf(ben.users.listAddresses({ pageSize: 1, pageToken: nextPageToken }));
    expect(refusal.reasons).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
    expect((await refusalOf(ada.users.listAddresses({ pageSize: -1 }))).fields).to.deep.equal({
      page_size: "Page size must be at least 0",
    });
  });
});

/** The addresses of an account as the database has them: those that are shown, oldest first. */
async function rowsOf({ database }: TestServer, userId: string) {
  return sql<{ id: string; primary: boolean }>(
    database,
    `SELECT id, is_primary AS primary FROM addresses WHERE user_id = $1 AND delete_time IS NULL ORDER BY id`,
    [userId],
  );
}

async function newAddress({ users }: Person, fields: { primary?: boolean } = {}): Promise<Address> {
  return present((await users.createAddress({ address: { ...anAddress, ...fields } })).address);
}

describe("UpdateAddress", () => {
  const server = useServer();

  it("changes the populated fields", async () => {
    const ada = await newCustomer(server);
    const { id } = await newAddress(ada);
    const { address } = await ada.users.updateAddress({ address: { id, street: " 2 Side St ", country: "CA" } });
    expect(address).to.include({ ...anAddress, id, street: "2 Side St", country: "CA", primary: true });
    expect((await ada.users.listAddresses({})).addresses).to.deep.equal([address]);
  });

  it("changes the fields of the mask and no others", async () => {
    const ada = await newCustomer(server);
    const { id } = await newAddress(ada);
    const { address } = await ada.users.updateAddress({
      address: { id, street: "2 Side St", city: "Othertown" },
      updateMask: { paths: ["city"] },
    });
    expect(address).to.include({ street: anAddress.street, city: "Othertown" });
  });

  it("refuses to clear a field, and to name one that is output only", async () => {
    const ada = await newCustomer(server);
    const { id } = await newAddress(ada);
    const clearing = { address: { id }, updateMask: { paths: ["street", "city", "state", "postal_code", "country"] } };
    expect((await refusalOf(ada.users.updateAddress(clearing))).fields).to.deep.equal({
      "address.street": "Street is required",
      "address.city": "City is required",
      "address.state": "State is required",
      "address.postal_code": "Postal code is required",
      "address.country": "Country is required",
    });
    const output = { address: { id }, updateMask: { paths: ["user_id"] } };
    expect((await refusalOf(ada.users.updateAddress(output))).reasons).to.deep.equal({
      update_mask: "UPDATE_MASK_INVALID",
    });
    expect((await refusalOf(ada.users.updateAddress({ address: {} }))).reasons).to.deep.equal({
      "address.id": "REQUIRED",
    });
  });

  it("moves the mark of the primary address", async () => {
    const ada = await newCustomer(server);
    const [first, second] = [await newAddress(ada), await newAddress(ada)];
    const { address } = await ada.users.updateAddress({ address: { id: second.id, primary: true } });
    expect(address?.primary).to.equal(true);
    expect(await rowsOf(server, ada.id)).to.deep.equal([
      { id: first.id, primary: false },
      { id: second.id, primary: true },
    ]);
  });

  it("does not take the mark away, since some address has to have it", async () => {
    const ada = await newCustomer(server);
    const { id } = await newAddress(ada);
    const refusal = await refusalOf(ada.users.updateAddress({ address: { id, primary: false } }));
    expect(refusal).to.include({
      code: "FailedPrecondition",
      reason: "PRIMARY_ADDRESS_REQUIRED",
      resource: `Address ${id}`,
    });
  });

  it("takes an address that was read and sent back", async () => {
    const ada = await newCustomer(server);
    const [, second] = [await newAddress(ada), await newAddress(ada)];
    const { address } = await ada.users.updateAddress({ address: { ...second, userId: ada.id, city: "Othertown" } });
    expect(address).to.deep.include({ ...second, city: "Othertown" });
  });

  it("does not find another's address, one that was removed, or one that never was", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const [mine, removed] = [await newAddress(ada), await newAddress(ben)];
    await ben.users.deleteAddress({ addressId: removed.id });
    for (const id of [mine.id, removed.id, randomUUID()]) {
      const refusal = await refusalOf(ben.users.updateAddress({ address: { id, city: "Othertown" } }));
      expect(refusal).to.include({ code: "NotFound", reason: "ADDRESS_NOT_FOUND", resource: `Address ${id}` });
    }
    expect((await ada.users.listAddresses({})).addresses[0]?.city).to.equal(anAddress.city);
  });
});

describe("DeleteAddress", () => {
  const server = useServer();

  it("makes the oldest address left primary when the primary one goes", async () => {
    const ada = await newCustomer(server);
    const [first, second, third] = [
      await newAddress(ada),
      await newAddress(ada),
      await newAddress(ada, { primary: true }),
    ];
    await ada.users.deleteAddress({ addressId: third.id });
    expect(await rowsOf(server, ada.id)).to.deep.equal([
      { id: first.id, primary: true },
      { id: second.id, primary: false },
    ]);
    await ada.users.deleteAddress({ addressId: first.id });
    expect(await rowsOf(server, ada.id)).to.deep.equal([{ id: second.id, primary: true }]);
  });

  it("leaves the primary one alone when another goes", async () => {
    const ada = await newCustomer(server);
    const [first, second] = [await newAddress(ada), await newAddress(ada)];
    await ada.users.deleteAddress({ addressId: second.id });
    expect(await rowsOf(server, ada.id)).to.deep.equal([{ id: first.id, primary: true }]);
  });

  it("hides the address and keeps its row, as orders may use it", async () => {
    const ada = await newCustomer(server);
    const { id } = await newAddress(ada);
    await ada.users.deleteAddress({ addressId: id });
    expect((await ada.users.listAddresses({})).addresses).to.deep.equal([]);
    expect(await sql(server.database, "SELECT street FROM addresses WHERE id = $1", [id])).to.deep.equal([
      { street: anAddress.street },
    ]);
    expect((await newAddress(ada)).primary, "the next one is the first again").to.equal(true);
  });

  it("removes an address once, and never another's", async () => {
    const [ada, ben] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const { id: addressId } = await newAddress(ada);
    expect(await refusalOf(ben.users.deleteAddress({ addressId }))).to.include({
      code: "NotFound",
      reason: "ADDRESS_NOT_FOUND",
    });
    const calls = Array.from({ length: 5 }, () => ada.users.deleteAddress({ addressId }));
    expect(await tally(calls)).to.deep.equal({ ok: 1, ADDRESS_NOT_FOUND: 4 });
  });
});

describe("the primary address", () => {
  const server = useServer();

  it("is one, whatever 100 calls at once add, mark and remove", async () => {
    const ada = await newCustomer(server);
    const made: Address[] = [];
    for (let i = 0; i < 10; i++) made.push(await newAddress(ada));
    const calls = Array.from({ length: 100 }, (_, i) => {
      const { id } = present(made[(i * 7) % made.length]);
      if (i % 4 === 0) return newAddress(ada, { primary: i % 8 === 0 });
      if (i % 5 === 0) return ada.users.deleteAddress({ addressId: id });
      return ada.users.updateAddress({ address: { id, primary: true } });
    });
    const outcomes = await tally(calls);
    expect(Object.keys(outcomes).filter((key) => !["ok", "ADDRESS_NOT_FOUND"].includes(key))).to.deep.equal([]);
    const rows = await rowsOf(server, ada.id);
    expect(rows.length).to.be.at.least(25);
    expect(rows.filter(({ primary }) => primary)).to.have.length(1);
  });

  it("is the one that the rules say, after any adding, marking and removing", async () => {
    const step = fc.record({ act: fc.constantFrom("add", "add primary", "mark", "remove"), which: fc.nat(20) });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 3, maxLength: 12 }), async (steps) => {
        const ada = await newCustomer(server);
        let model: { id: string; primary: boolean }[] = [];
        const mark = (id: string | undefined) => {
          model = model.map((each) => ({ ...each, primary: each.id === id }));
        };
        for (const { act, which } of steps) {
          const { id } = model[which % Math.max(model.length, 1)] ?? {};
          if (act.startsWith("add")) {
            const { id: added } = await newAddress(ada, { primary: act === "add primary" });
            model.push({ id: added, primary: false });
            if (act === "add primary" || model.length === 1) mark(added);
          } else if (id !== undefined && act === "mark") {
            await ada.users.updateAddress({ address: { id, primary: true } });
            mark(id);
          } else if (id !== undefined) {
            await ada.users.deleteAddress({ addressId: id });
            const primary = model.find((each) => each.primary)?.id;
            model = model.filter((each) => each.id !== id);
            mark(primary === id ? model[0]?.id : primary);
          }
        }
        expect(await rowsOf(server, ada.id)).to.deep.equal(model);
      }),
      { numRuns: 15 },
    );
  });

  const refused = async (text: string, values: unknown[]): Promise<string> => {
    try {
      await sql(server.database, text, values);
    } catch (error) {
      return (error as { constraint?: string }).constraint ?? String(error);
    }
    return "not refused";
  };

  it("is held by the database, also against SQL that goes past this service", async () => {
    const ada = await newCustomer(server);
    const [first] = [await newAddress(ada), await newAddress(ada)];
    const id = [first.id];
    expect(await refused("UPDATE addresses SET is_primary = false WHERE id = $1", id)).to.equal(
      "addresses_some_primary",
    );
    expect(await refused("DELETE FROM addresses WHERE id = $1", id)).to.equal("addresses_some_primary");
    const hiding = "UPDATE addresses SET is_primary = false, delete_time = now() WHERE id = $1";
    expect(await refused(hiding, id)).to.equal("addresses_some_primary");
    const second = "UPDATE addresses SET is_primary = true WHERE user_id = $1";
    expect(await refused(second, [ada.id])).to.equal("addresses_one_primary");
    const ben = await newCustomer(server);
    expect(await refused("UPDATE addresses SET user_id = $2 WHERE id = $1", [first.id, ben.id])).to.equal(
      "addresses_some_primary",
    );
  });

  it("is held when one transaction removes it while another, that still saw it, adds an address", async () => {
    const ada = await newCustomer(server);
    const { id } = await newAddress(ada);
    const { db } = server.deps;
    await db.withConnection(async (adding) => {
      await adding.query("BEGIN");
      await adding.query(
        `INSERT INTO addresses (id, user_id, street, city, state, postal_code, country, is_primary, create_time)
         VALUES (gen_random_uuid(), $1, 's', 'c', 's', 'p', 'US', false, now())`,
        [ada.id],
      );
      await sql(server.database, "UPDATE addresses SET is_primary = false, delete_time = now() WHERE id = $1", [id]);
      const outcome = await adding.query("COMMIT").then(
        () => "committed",
        (error: { constraint?: string }) => error.constraint,
      );
      expect(outcome).to.equal("addresses_some_primary");
    });
    expect(await rowsOf(server, ada.id)).to.deep.equal([]);
  });
});
