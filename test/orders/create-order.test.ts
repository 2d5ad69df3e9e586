import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { OrderPaymentState, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { sql } from "../support/database.ts";
import {
  anAddress,
  newAdmin,
  newCustomer,
  newOrder,
  newProduct,
  orderOf,
  type Person,
  present,
  text,
} from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("CreateOrder", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  const stockOf = async (productId: string) =>
    present((await admin.catalog.getProduct({ productId })).product).stockQuantity;
  const ordersOf = (customerId: string) =>
    sql(server.database, "SELECT id FROM orders WHERE customer_id = $1", [customerId]);

  it("takes the stock and records the order with exact totals: 10.99 × 2 + 25.50 = 47.48", async () => {
    const a = await newProduct(admin, { name: "Widget A", price: "10.99", stock: 100 });
    const b = await newProduct(admin, { name: "Widget B", price: "25.50", stock: 50 });
    const order = await newOrder(
      customer,
      [
        [a, 2],
        [b, 1],
      ],
      { notes: "Leave at the door" },
    );

    expect(order).to.include({
      customerId: customer.id,
      status: OrderStatus.CONFIRMED,
      paymentState: OrderPaymentState.UNPAID,
      notes: "Leave at the door",
      shippingAddressId: "",
    });
    expect(text(order.totalAmount)).to.equal("47.48 USD");
    const items = order.items.map((item) => [
      item.productName,
      item.quantity,
      text(item.unitPrice),
      text(item.lineTotal),
    ]);
    expect(items).to.deep.equal([
      ["Widget A", 2, "10.99 USD", "21.98 USD"],
      ["Widget B", 1, "25.5 USD", "25.5 USD"],
    ]);
    expect([await stockOf(a.id), await stockOf(b.id)]).to.deep.equal([98, 49]);
  });

  it("gives the same order back from GetOrder", async () => {
    const { address } = await customer.users.createAddress({ address: anAddress });
    const product = await newProduct(admin);
    const placed = await newOrder(customer, [[product, 3]], {
      shippingAddressId: present(address).id,
      awaitPayment: true,
    });
    expect((await customer.orders.getOrder({ orderId: placed.id })).order).to.deep.equal(placed);
    expect(placed.shippingAddress).to.include(anAddress);
  });

  it("holds the stock of an order that awaits its payment for 30 minutes", async () => {
    const product = await newProduct(admin, { stock: 10 });
    const order = await newOrder(customer, [[product, 4]], { awaitPayment: true });
    expect(order.status).to.equal(OrderStatus.PENDING);
    expect(Number(present(order.expireTime).seconds - present(order.orderTime).seconds)).to.equal(30 * 60);
    expect(await stockOf(product.id)).to.equal(6);
  });

  it("merges lines of one product", async () => {
    const product = await newProduct(admin, { stock: 10 });
    const order = await newOrder(customer, [
      [product, 2],
      [product, 3],
    ]);
    expect(order.items.map(({ quantity }) => quantity)).to.deep.equal([5]);
    expect(await stockOf(product.id)).to.equal(5);
  });

  it("refuses what is more than the stock, with the figures, and leaves nothing behind", async () => {
    const buyer = await newCustomer(server);
    const plenty = await newProduct(admin, { stock: 10 });
    const scarce = await newProduct(admin, { name: "Widget A", stock: 1 });
    const refusal = await refusalOf(
      newOrder(buyer, [
        [plenty, 1],
        [scarce, 2],
      ]),
    );
    expect(refusal).to.deep.include({
      code: "FailedPrecondition",
      reason: "INSUFFICIENT_STOCK",
      message: "Insufficient stock for product Widget A. Available: 1, Requested: 2",
      metadata: { product_id: scarce.id, product: "Widget A", available: "1", requested: "2" },
    });
    expect([await stockOf(plenty.id), await stockOf(scarce.id)]).to.deep.equal([10, 1]);
    expect(await ordersOf(buyer.id)).to.deep.equal([]);
  });

  it("sells exactly what there is: fifty buyers of 2 from a stock of 5, two succeed and 1 is left", async () => {
    const product = await newProduct(admin, { stock: 5 });
    const calls = Array.from({ length: 50 }, () => newOrder(customer, [[product, 2]]));
    expect(await tally(calls)).to.deep.equal({ ok: 2, INSUFFICIENT_STOCK: 48 });
    expect(await stockOf(product.id)).to.equal(1);
  });

  it("never deadlocks over the same products in different orders", async () => {
    const [a, b, c] = await Promise.all([1, 2, 3].map(() => newProduct(admin, { stock: 10_000 })));
    const ways = [
      [a, b, c],
      [c, b, a],
      [b, c, a],
    ] as [typeof a, typeof b, typeof c][];
    const calls = Array.from({ length: 200 }, (_, i) =>
      newOrder(
        customer,
        present(ways[i % 3]).map((p) => [present(p), 1] as const),
      ),
    );
    expect(await tally(calls)).to.deep.equal({ ok: 200 });
    expect(await stockOf(present(a).id)).to.equal(9_800);
  });

  it("carries the same request out once, however often it comes at once", async () => {
    const product = await newProduct(admin, { stock: 100 });
    const request = orderOf([[product, 1]]);
    const answers = await Promise.all(Array.from({ length: 20 }, () => customer.orders.createOrder(request)));
    expect(new Set(answers.map(({ order }) => order?.id)).size).to.equal(1);
    expect(await stockOf(product.id)).to.equal(99);
  });

  it("answers the same request later with the order as it is then", async () => {
    const product = await newProduct(admin, { stock: 100 });
    const request = orderOf([[product, 1]]);
    const first = present((await customer.orders.createOrder(request)).order);
    await sql(server.database, "UPDATE orders SET notes = 'changed since' WHERE id = $1", [first.id]);
    const again = present((await customer.orders.createOrder(request)).order);
    expect([again.id, again.notes]).to.deep.equal([first.id, "changed since"]);
  });

  it("refuses another request under the same id, and one caller's id does not bind another's", async () => {
    const product = await newProduct(admin, { stock: 100 });
    const request = orderOf([[product, 1]]);
    await customer.orders.createOrder(request);
    const other = { ...request, items: [{ productId: product.id, quantity: 2 }] };
    expect(await refusalOf(customer.orders.createOrder(other))).to.include({
      code: "InvalidArgument",
      reason: "REQUEST_ID_REUSED",
    });
    expect(await tally([admin.orders.createOrder(request)])).to.deep.equal({ ok: 1 });
  });

  it("decides between two different requests under one id that come at once: one is placed", async () => {
    const product = await newProduct(admin, { stock: 100 });
    const requestId = randomUUID();
    const calls = [1, 2, 3, 4].map((quantity) =>
      customer.orders.createOrder(orderOf([[product, quantity]], { requestId })),
    );
    expect(await tally(calls)).to.deep.equal({ ok: 1, REQUEST_ID_REUSED: 3 });
  });

  it("lets a refused request be tried again under its id", async () => {
    const product = await newProduct(admin, { stock: 1 });
    const request = orderOf([[product, 2]]);
    expect((await refusalOf(customer.orders.createOrder(request))).reason).to.equal("INSUFFICIENT_STOCK");
    await sql(server.database, "UPDATE products SET stock_quantity = 2 WHERE id = $1", [product.id]);
    expect(await tally([customer.orders.createOrder(request)])).to.deep.equal({ ok: 1 });
  });

  it("takes the price from the catalogue of one currency", async () => {
    const dollars = await newProduct(admin);
    const euros = await newProduct(admin, { currency: "EUR" });
    expect(
      await refusalOf(
        newOrder(customer, [
          [dollars, 1],
          [euros, 1],
        ]),
      ),
    ).to.include({ code: "FailedPrecondition", reason: "CURRENCY_MIXED" });
  });

  it("refuses products that are inactive or not there", async () => {
    const inactive = await newProduct(admin, { active: false });
    const unknown = randomUUID();
    for (const id of [inactive.id, unknown]) {
      expect(await refusalOf(newOrder(customer, [[{ id }, 1]]))).to.deep.include({
        reason: "PRODUCT_UNAVAILABLE",
        metadata: { product_id: id },
      });
    }
  });

  it("refuses an address that is not the customer's", async () => {
    const product = await newProduct(admin);
    const { address } = await admin.users.createAddress({ address: anAddress });
    for (const shippingAddressId of [present(address).id, randomUUID()]) {
      const refusal = await refusalOf(newOrder(customer, [[product, 1]], { shippingAddressId }));
      expect(refusal).to.include({ code: "FailedPrecondition", reason: "ADDRESS_INVALID" });
    }
  });

  it("refuses a total above 99,999,999.99", async () => {
    const product = await newProduct(admin, { price: "99999999.99" });
    expect(await tally([newOrder(customer, [[product, 1]])])).to.deep.equal({ ok: 1 });
    expect((await refusalOf(newOrder(customer, [[product, 2]]))).reason).to.equal("ORDER_TOTAL_TOO_LARGE");
  });

  it("refuses a customer who was deleted", async () => {
    const product = await newProduct(admin);
    const gone = await newCustomer(server);
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [gone.id]);
    expect(await refusalOf(newOrder(gone, [[product, 1]]))).to.include({
      code: "FailedPrecondition",
      reason: "CUSTOMER_INACTIVE",
    });
  });

  it("lets an admin, and nobody else, order for another customer", async () => {
    const product = await newProduct(admin);
    const order = await newOrder(admin, [[product, 1]], { customerId: customer.id });
    expect(order.customerId).to.equal(customer.id);
    const refusal = await refusalOf(newOrder(customer, [[product, 1]], { customerId: admin.id }));
    expect(refusal).to.include({ code: "PermissionDenied", reason: "ADMIN_REQUIRED" });
  });

  it("tells every fault of its lines at once", async () => {
    const refusal = await refusalOf(
      customer.orders.createOrder({
        requestId: "1",
        items: [
          { productId: "x", quantity: 0 },
          { productId: randomUUID(), quantity: 10_001 },
        ],
        shippingAddressId: "home",
      }),
    );
    expect(refusal.fields).to.deep.equal({
      request_id: "Request id must be a UUID",
      "items[0].product_id": "Product id must be a UUID",
      "items[0].quantity": "Quantity must be between 1 and 10000",
      "items[1].quantity": "Quantity must be between 1 and 10000",
      items: refusal.fields["items"],
      shipping_address_id: "Shipping address id must be a UUID",
    });
  });

  it("takes 1 to 100 lines, and at most 10,000 of one product together", async () => {
    const product = await newProduct(admin);
    expect((await refusalOf(newOrder(customer, []))).reasons).to.deep.equal({ items: "TOO_FEW" });
    const many = Array.from({ length: 101 }, () => [product, 1] as const);
    expect((await refusalOf(newOrder(customer, many))).reasons).to.deep.equal({ items: "TOO_MANY" });
    expect(
      (
        await refusalOf(
          newOrder(customer, [
            [product, 6_000],
            [product, 6_000],
          ]),
        )
      ).reasons,
    ).to.deep.equal({
      items: "QUANTITY_TOO_LARGE",
    });
  });
});

describe("GetOrder", () => {
  const server = useServer();

  it("shows an order to its customer and to admins, and to others not even that it is there", async () => {
    const [admin, ada, ben] = await Promise.all([newAdmin(server), newCustomer(server), newCustomer(server)]);
    const { id } = await newOrder(ada, [[await newProduct(admin), 1]]);
    expect((await ada.orders.getOrder({ orderId: id })).order?.id).to.equal(id);
    expect((await admin.orders.getOrder({ orderId: id })).order?.id).to.equal(id);
    const others = await refusalOf(ben.orders.getOrder({ orderId: id }));
    expect(others).to.include({ code: "NotFound", reason: "ORDER_NOT_FOUND", message: `Order ${id} not found` });
  });
});
