import { expect } from "chai";
import { sql } from "../support/database.ts";
import { money, newAdmin, newCustomer, newProduct, type Person, present, text } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("the catalogue", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  it("gains a product with its first stock, which the journal explains", async () => {
    const product = await newProduct(admin, { name: "  Enamel Mug ", price: "10.99", stock: 7 });
    expect(product).to.include({ name: "Enamel Mug", stockQuantity: 7, active: true, etag: "1" });
    expect(text(product.price)).to.equal("10.99 USD");
    const journal = await sql(
      server.database,
      "SELECT delta, kind, actor_id FROM stock_movements WHERE product_id = $1",
      [product.id],
    );
    expect(journal).to.deep.equal([{ delta: 7, kind: "INITIAL", actor_id: admin.id }]);
  });

  it("takes an absent stock for 0 and an absent `active` for true", async () => {
    const { product } = await admin.catalog.createProduct({ product: { name: "Bare", price: money("1") } });
    expect(product).to.include({ stockQuantity: 0, active: true });
  });

  it("is changed by admins only", async () => {
    const product = { name: "Mine", price: money("1") };
    expect(await refusalOf(customer.catalog.createProduct({ product }))).to.include({
      code: "PermissionDenied",
      reason: "ADMIN_REQUIRED",
    });
    expect(await refusalOf(server.as().catalog.createProduct({ product }))).to.include({
      code: "Unauthenticated",
      reason: "TOKEN_MISSING",
    });
  });

  it("refuses prices that are missing, negative, too large, too fine, or of no currency, and never rounds", async () => {
    const reasonFor = async (price?: ReturnType<typeof money>) => {
      const product = { name: "Odd", stockQuantity: 1, ...(price && { price }) };
      return (await refusalOf(admin.catalog.createProduct({ product }))).reasons["product.price"];
    };
    expect(await reasonFor()).to.equal("REQUIRED");
    expect(await reasonFor(money("-0.01"))).to.equal("AMOUNT_NEGATIVE");
    expect(await reasonFor(money("100000000"))).to.equal("AMOUNT_TOO_LARGE");
    expect(await reasonFor(money("0.001"))).to.equal("AMOUNT_TOO_FINE");
    expect(await reasonFor(money("0.5", "JPY"))).to.equal("AMOUNT_TOO_FINE");
    expect(await reasonFor(money("1", "XXQ"))).to.equal("CURRENCY_UNKNOWN");
    expect(await reasonFor({ currencyCode: "USD", units: 1n, nanos: -1 })).to.equal("AMOUNT_MALFORMED");
  });

  it("takes the extremes: a price of nothing, and 99,999,999.99", async () => {
    for (const price of ["0", "99999999.99"]) {
      expect(text((await newProduct(admin, { price })).price)).to.equal(`${price} USD`);
    }
    expect(text((await newProduct(admin, { price: "1.234", currency: "KWD" })).price)).to.equal("1.234 KWD");
  });

  it("refuses a nameless product and a negative stock together", async () => {
    const refusal = await refusalOf(
      admin.catalog.createProduct({ product: { name: " ", price: money("1"), stockQuantity: -1 } }),
    );
    expect(refusal.reasons).to.deep.equal({ "product.stock_quantity": "OUT_OF_RANGE", "product.name": "REQUIRED" });
  });

  it("shows active products to everybody, inactive ones to admins", async () => {
    const hidden = await newProduct(admin, { name: "Hidden", active: false });
    const shown = await newProduct(admin, { name: "Shown" });
    const anybody = server.as();
    expect((await anybody.catalog.getProduct({ productId: shown.id })).product?.name).to.equal("Shown");
    expect(await refusalOf(anybody.catalog.getProduct({ productId: hidden.id }))).to.include({
      code: "NotFound",
      reason: "PRODUCT_NOT_FOUND",
      resource: `Product ${hidden.id}`,
    });
    expect((await admin.catalog.getProduct({ productId: hidden.id })).product?.active).to.equal(false);
    expect(await refusalOf(customer.catalog.listProducts({ showInactive: true }))).to.include({
      reason: "ADMIN_REQUIRED",
    });
    const { products } = await admin.catalog.listProducts({ showInactive: true, nameContains: "hidd" });
    expect(products.map(({ id }) => id)).to.deep.equal([hidden.id]);
  });

  it("is listed in pages, oldest first, filtered by name without minding case or wildcards", async () => {
    const names = ["Alpha 50% wool", "alpha 500 wool", "Beta"];
    for (const name of names) await newProduct(admin, { name });
    const { products } = await server.as().catalog.listProducts({ nameContains: "ALPHA 50% W" });
    expect(products.map(({ name }) => name)).to.deep.equal(["Alpha 50% wool"]);

    const first = await server.as().catalog.listProducts({ nameContains: "alpha", pageSize: 1 });
    expect(first.products.map(({ name }) => name)).to.deep.equal(["Alpha 50% wool"]);
    const token = present(first.nextPageToken);
    const second = await server.as().catalog.listProducts({ nameContains: "alpha", pageSize: 1, pageToken: token });
    expect(second.products.map(({ name }) => name)).to.deep.equal(["alpha 500 wool"]);
    expect(second.nextPageToken).to.equal("");
    const changed = server.as().catalog.listProducts({ nameContains: "beta", pageSize: 1, pageToken: token });
    expect((await refusalOf(changed)).reasons).to.deep.equal({ page_token: "PAGE_TOKEN_INVALID" });
  });

  it("refuses an id that is no UUID", async () => {
    const refusal = await refusalOf(server.as().catalog.getProduct({ productId: "42" }));
    expect(refusal.fields).to.deep.equal({ product_id: "Product id must be a UUID" });
  });
});
