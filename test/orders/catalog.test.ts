import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { sql } from "../support/database.ts";
import {
  money,
  newAdmin,
  newCustomer,
  newOrder,
  newProduct,
  type Person,
  present,
  text,
} from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
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

describe("UpdateProduct", () => {
  const server = useServer();
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });

  it("changes the fields of the mask, and no others", async () => {
    const { id } = await newProduct(admin, { name: "Mug", price: "10.99", stock: 3 });
    const product = { id, name: "Cup", price: money("9.50"), description: "not in the mask", stockQuantity: 99 };
    const { product: changed } = await admin.catalog.updateProduct({
      product,
      updateMask: { paths: ["name", "price"] },
    });
    expect(changed).to.include({ name: "Cup", description: "", stockQuantity: 3, etag: "2" });
    expect(text(changed?.price)).to.equal("9.5 USD");
  });

  it("takes the populated fields where there is no mask", async () => {
    const { id } = await newProduct(admin, { name: "Mug" });
    const { product } = await admin.catalog.updateProduct({ product: { id, active: false } });
    expect(product).to.include({ name: "Mug", active: false });
  });

  it("refuses an update of what somebody else has changed since", async () => {
    const { id, etag } = await newProduct(admin);
    const rename = (name: string) => admin.catalog.updateProduct({ product: { id, name, etag } });
    expect(await tally([rename("A"), rename("B"), rename("C")])).to.deep.equal({ ok: 1, ETAG_MISMATCH: 2 });
    expect(await refusalOf(rename("D"))).to.include({ code: "Aborted", reason: "ETAG_MISMATCH" });
    const odd = admin.catalog.updateProduct({ product: { id, name: "E", etag: "not ours" } });
    expect((await refusalOf(odd)).reason).to.equal("ETAG_MISMATCH");
  });

  it("tells an unknown product, an unknown path and faulty values", async () => {
    const unknown = admin.catalog.updateProduct({ product: { id: randomUUID(), name: "A" } });
    expect((await refusalOf(unknown)).reason).to.equal("PRODUCT_NOT_FOUND");
    const { id } = await newProduct(admin);
    const faulty = admin.catalog.updateProduct({
      product: { id, price: money("-1") },
      updateMask: { paths: ["name", "price", "stock_quantity"] },
    });
    expect((await refusalOf(faulty)).reasons).to.deep.equal({
      update_mask: "UPDATE_MASK_INVALID",
      "product.name": "REQUIRED",
      "product.price": "AMOUNT_NEGATIVE",
    });
  });

  it("does not change the price of orders that were made", async () => {
    const customer = await newCustomer(server);
    const product = await newProduct(admin, { price: "10.99" });
    const order = await newOrder(customer, [[product, 1]]);
    await admin.catalog.updateProduct({ product: { id: product.id, price: money("1") } });
    const { order: again } = await customer.orders.getOrder({ orderId: order.id });
    expect(text(again?.totalAmount)).to.equal("10.99 USD");
  });
});

describe("AdjustStock", () => {
  const server = useServer();
  let admin: Person;
  before(async () => {
    admin = await newAdmin(server);
  });
  const adjustment = (productId: string, delta: number) => ({
    requestId: randomUUID(),
    productId,
    delta,
    reason: "Stocktaking",
  });

  it("adds to and takes from the stock, which the journal explains", async () => {
    const { id } = await newProduct(admin, { stock: 5 });
    await admin.catalog.adjustStock(adjustment(id, 7));
    const { product } = await admin.catalog.adjustStock(adjustment(id, -2));
    expect(product?.stockQuantity).to.equal(10);
    const journal = await sql(
      server.database,
      "SELECT delta, kind, reason FROM stock_movements WHERE product_id = $1 ORDER BY id",
      [id],
    );
    expect(journal).to.deep.equal([
      { delta: 5, kind: "INITIAL", reason: "" },
      { delta: 7, kind: "ADJUSTMENT", reason: "Stocktaking" },
      { delta: -2, kind: "ADJUSTMENT", reason: "Stocktaking" },
    ]);
  });

  it("never goes below zero nor above a thousand million", async () => {
    const { id } = await newProduct(admin, { name: "Widget A", stock: 1 });
    expect(await refusalOf(admin.catalog.adjustStock(adjustment(id, -2)))).to.include({
      code: "FailedPrecondition",
      reason: "INSUFFICIENT_STOCK",
      message: "Insufficient stock for product Widget A. Available: 1, Requested: 2",
    });
    expect((await refusalOf(admin.catalog.adjustStock(adjustment(id, 1_000_000_000)))).reason).to.equal(
      "STOCK_TOO_LARGE",
    );
    const calls = Array.from({ length: 10 }, () => admin.catalog.adjustStock(adjustment(id, -1)));
    expect(await tally(calls)).to.deep.equal({ ok: 1, INSUFFICIENT_STOCK: 9 });
  });

  it("carries the same request out once, and refuses another under its id", async () => {
    const { id } = await newProduct(admin, { stock: 0 });
    const request = adjustment(id, 5);
    const calls = Array.from({ length: 10 }, () => admin.catalog.adjustStock(request));
    expect(await tally(calls)).to.deep.equal({ ok: 10 });
    expect((await admin.catalog.getProduct({ productId: id })).product?.stockQuantity).to.equal(5);
    expect((await refusalOf(admin.catalog.adjustStock({ ...request, delta: 6 }))).reason).to.equal("REQUEST_ID_REUSED");
  });

  it("is for admins, of products that are there, by a delta that is not 0, with a reason", async () => {
    const customer = await newCustomer(server);
    const { id } = await newProduct(admin);
    expect((await refusalOf(customer.catalog.adjustStock(adjustment(id, 1)))).reason).to.equal("ADMIN_REQUIRED");
    expect((await refusalOf(admin.catalog.adjustStock(adjustment(randomUUID(), 1)))).reason).to.equal(
      "PRODUCT_NOT_FOUND",
    );
    const faulty = admin.catalog.adjustStock({ ...adjustment(id, 0), reason: " " });
    expect((await refusalOf(faulty)).reasons).to.deep.equal({ delta: "REQUIRED", reason: "REQUIRED" });
  });
});
