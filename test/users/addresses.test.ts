import { expect } from "chai";
import { sql } from "../support/database.ts";
import { anAddress, newCustomer, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

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
