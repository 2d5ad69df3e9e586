import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { OrderPaymentState, OrderStatus } from "../../gen/tradepost/order/v1/order_pb.js";
import { expireOrders } from "../../src/orders/expire-orders.ts";
import { orderStatuses, type OrderStatus as Status, transitions } from "../../src/orders/order.ts";
import { sql } from "../support/database.ts";
import { newAdmin, newCustomer, newOrder, newProduct, type Person, paymentOf, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

describe("an order's way", () => {
  const server = useServer();
  let admin: Person;
  let customer: Person;
  before(async () => {
    [admin, customer] = await Promise.all([newAdmin(server), newCustomer(server)]);
  });

  const anOrder = async ({ stock = 10, quantity = 3, awaitPayment = false } = {}) => {
    const product = await newProduct(admin, { stock });
    return { product, order: await newOrder(customer, [[product, quantity]], { awaitPayment }) };
  };
  const stockOf = async ({ id }: { id: string }) =>
    present((await admin.catalog.getProduct({ productId: id })).product).stockQuantity;
  const orderNow = async (orderId: string) => present((await admin.orders.getOrder({ orderId })).order);
  const moveTo = (orderId: string, status: OrderStatus, notes = "") =>
    admin.orders.batchUpdateOrderStatuses({ updates: [{ orderId, status, notes }] });
  /** Puts an order to a status by hand, to test the moves from there. */
  const put = (orderId: string, status: Status) =>
    sql(server.database, "UPDATE orders SET status = $2 WHERE id = $1", [orderId, status]);

  describe("CancelOrder", () => {
    it("gives the stock back, once, and says so in notes, journal and history", async () => {
      const { product, order } = await anOrder();
      const { order: cancelled } = await customer.orders.cancelOrder({ orderId: order.id, reason: "Changed my mind" });
      expect(cancelled).to.include({ status: OrderStatus.CANCELLED, notes: "Cancelled: Changed my mind", etag: "2" });
      expect(await stockOf(product)).to.equal(10);
      const journal = await sql(
        server.database,
        "SELECT kind, delta FROM stock_movements WHERE order_id = $1 ORDER BY id",
        [order.id],
      );
      expect(journal).to.deep.equal([
        { kind: "SALE", delta: -3 },
        { kind: "RESTORE", delta: 3 },
      ]);
      const history = await sql(
        server.database,
        "SELECT from_status, to_status, actor_id, reason FROM order_events WHERE order_id = $1 ORDER BY id",
        [order.id],
      );
      expect(history).to.deep.equal([
        { from_status: null, to_status: "CONFIRMED", actor_id: customer.id, reason: "" },
        { from_status: "CONFIRMED", to_status: "CANCELLED", actor_id: customer.id, reason: "Changed my mind" },
      ]);
    });

    it("appends to the notes, also where no reason is given", async () => {
      const product = await newProduct(admin);
      const order = await newOrder(customer, [[product, 1]], { notes: "Ring twice" });
      const { order: cancelled } = await customer.orders.cancelOrder({ orderId: order.id });
      expect(cancelled?.notes).to.equal("Ring twice\nCancelled: No reason provided");
    });

    it("refuses orders that are shipped, delivered, cancelled or returned", async () => {
      for (const status of ["SHIPPED", "DELIVERED", "CANCELLED", "RETURNED"] as const) {
        const { product, order } = await anOrder();
        await put(order.id, status);
        expect(await refusalOf(customer.orders.cancelOrder({ orderId: order.id }))).to.include({
          code: "FailedPrecondition",
          reason: "ORDER_STATUS_INVALID",
          message: `Cannot cancel order with status: ${status}`,
        });
        expect(await stockOf(product)).to.equal(7);
      }
    });

    it("refuses an order while a payment of it is under way", async () => {
      const { order } = await anOrder({ awaitPayment: true });
      await sql(server.database, "UPDATE orders SET payment_state = 'PENDING' WHERE id = $1", [order.id]);
      expect(await refusalOf(customer.orders.cancelOrder({ orderId: order.id }))).to.include({
        code: "FailedPrecondition",
        reason: "ORDER_PAYMENT_IN_FLIGHT",
      });
    });

    it("enqueues the refund of a paid order in the same transaction", async () => {
      const { order } = await anOrder({ awaitPayment: true });
      await customer.payments.processPayment(paymentOf(order));
      await customer.orders.cancelOrder({ orderId: order.id });
      const jobs = await sql(server.database, "SELECT task_identifier, key FROM graphile_worker.jobs WHERE key = $1", [
        `refund-order ${order.id}`,
      ]);
      expect(jobs).to.have.length(1);
    });

    it("is for the owner and admins: another's order is not there", async () => {
      const { order } = await anOrder();
      const other = await newCustomer(server);
      expect((await refusalOf(other.orders.cancelOrder({ orderId: order.id }))).reason).to.equal("ORDER_NOT_FOUND");
      expect((await refusalOf(customer.orders.cancelOrder({ orderId: randomUUID() }))).reason).to.equal(
        "ORDER_NOT_FOUND",
      );
      expect((await admin.orders.cancelOrder({ orderId: order.id })).order?.status).to.equal(OrderStatus.CANCELLED);
    });

    it("restores stock once when ten cancel at once", async () => {
      const { product, order } = await anOrder();
      const calls = Array.from({ length: 10 }, () => customer.orders.cancelOrder({ orderId: order.id }));
      expect(await tally(calls)).to.deep.equal({ ok: 1, ORDER_STATUS_INVALID: 9 });
      expect(await stockOf(product)).to.equal(10);
    });
  });

  describe("ShipOrder", () => {
    it("keeps the tracking number in its field and in the notes", async () => {
      const { order } = await anOrder();
      const { order: shipped } = await admin.orders.shipOrder({ orderId: order.id, trackingNumber: "1Z999" });
      expect(shipped).to.include({
        status: OrderStatus.SHIPPED,
        trackingNumber: "1Z999",
        notes: "Shipped with tracking: 1Z999",
      });
    });

    it("refuses what is not confirmed", async () => {
      const { order } = await anOrder({ awaitPayment: true });
      expect(await refusalOf(admin.orders.shipOrder({ orderId: order.id, trackingNumber: "1Z999" }))).to.include({
        reason: "ORDER_STATUS_INVALID",
        message: "Can only ship confirmed orders. Current status: PENDING",
      });
    });

    it("is for admins, and demands a tracking number", async () => {
      const { order } = await anOrder();
      expect((await refusalOf(customer.orders.shipOrder({ orderId: order.id, trackingNumber: "1" }))).reason).to.equal(
        "ADMIN_REQUIRED",
      );
      expect((await refusalOf(admin.orders.shipOrder({ orderId: order.id }))).reasons).to.deep.equal({
        tracking_number: "REQUIRED",
      });
    });
  });

  describe("BatchUpdateOrderStatuses", () => {
    it("makes exactly the moves of the table", async () => {
      for (const from of orderStatuses) {
        for (const to of orderStatuses) {
          const { order } = await anOrder();
          await put(order.id, from);
          const { orderIds, failures } = await moveTo(order.id, OrderStatus[to]);
          const allowed = transitions[from].includes(to);
          expect(orderIds, `${from} to ${to}`).to.deep.equal(allowed ? [order.id] : []);
          if (allowed) continue;
          expect(failures.map(({ message }) => message)).to.deep.equal([
            `Invalid status transition from ${from} to ${to}`,
          ]);
        }
      }
    }).timeout(30_000);

    it("commits the valid moves, and says of the others why not", async () => {
      const good = (await anOrder()).order;
      const illegal = (await anOrder()).order;
      await put(illegal.id, "CANCELLED");
      const unknown = randomUUID();
      const { orderIds, failures } = await admin.orders.batchUpdateOrderStatuses({
        updates: [
          { orderId: good.id, status: OrderStatus.SHIPPED, notes: "With the carrier" },
          { orderId: unknown, status: OrderStatus.SHIPPED },
          { orderId: illegal.id, status: OrderStatus.SHIPPED },
        ],
      });
      expect(orderIds).to.deep.equal([good.id]);
      expect(failures.map(({ orderId, reason, message }) => ({ orderId, reason, message }))).to.deep.equal([
        { orderId: unknown, reason: "ORDER_NOT_FOUND", message: "Order not found" },
        {
          orderId: illegal.id,
          reason: "ORDER_STATUS_INVALID",
          message: "Invalid status transition from CANCELLED to SHIPPED",
        },
      ]);
      expect(await orderNow(good.id)).to.include({ status: OrderStatus.SHIPPED, notes: "With the carrier" });
    });

    it("applies moves of one order in their order, each seeing the one before", async () => {
      const { order } = await anOrder();
      const updates = [OrderStatus.SHIPPED, OrderStatus.DELIVERED, OrderStatus.SHIPPED, OrderStatus.RETURNED].map(
        (status) => ({
          orderId: order.id,
          status,
        }),
      );
      const { orderIds, failures } = await admin.orders.batchUpdateOrderStatuses({ updates });
      expect(orderIds).to.deep.equal([order.id, order.id, order.id]);
      expect(failures.map(({ message }) => message)).to.deep.equal([
        "Invalid status transition from DELIVERED to SHIPPED",
      ]);
      expect(await orderNow(order.id)).to.include({ status: OrderStatus.RETURNED, etag: "4" });
    });

    it("cancels as CancelOrder does, and does not restock what is returned", async () => {
      const cancelled = await anOrder();
      const returned = await anOrder();
      await put(returned.order.id, "DELIVERED");
      await moveTo(cancelled.order.id, OrderStatus.CANCELLED);
      await moveTo(returned.order.id, OrderStatus.RETURNED);
      expect((await orderNow(cancelled.order.id)).notes).to.equal("Cancelled: No reason provided");
      expect([await stockOf(cancelled.product), await stockOf(returned.product)]).to.deep.equal([10, 7]);
    });

    it("takes 1 to 1,000 moves, of admins only", async () => {
      expect((await refusalOf(admin.orders.batchUpdateOrderStatuses({}))).reasons).to.deep.equal({
        updates: "TOO_FEW",
      });
      const updates = Array.from({ length: 1_001 }, () => ({ orderId: randomUUID(), status: OrderStatus.SHIPPED }));
      expect((await refusalOf(admin.orders.batchUpdateOrderStatuses({ updates }))).reasons).to.deep.equal({
        updates: "TOO_MANY",
      });
      const { failures } = await admin.orders.batchUpdateOrderStatuses({ updates: updates.slice(1) });
      expect(failures).to.have.length(1_000);
      expect((await refusalOf(customer.orders.batchUpdateOrderStatuses({ updates: [] }))).reason).to.equal(
        "ADMIN_REQUIRED",
      );
    });
  });

  describe("the sweep of unpaid orders", () => {
    const MINUTE_MS = 60_000;
    const sweepIn = async (minutes: number) => {
      server.clock.advance(minutes * MINUTE_MS);
      await expireOrders(server.deps);
      server.clock.advance(-minutes * MINUTE_MS);
    };

    it("cancels an order whose time has passed and gives its stock back, not a minute before", async () => {
      const { product, order } = await anOrder({ awaitPayment: true });
      await sweepIn(29);
      expect((await orderNow(order.id)).status).to.equal(OrderStatus.PENDING);
      await sweepIn(31);
      expect(await orderNow(order.id)).to.include({
        status: OrderStatus.CANCELLED,
        notes: "Cancelled: Not paid in time",
      });
      expect(await stockOf(product)).to.equal(10);
    });

    it("leaves paid orders alone, and those whose payment is under way for 30 minutes more", async () => {
      const paid = (await anOrder({ awaitPayment: true })).order;
      await customer.payments.processPayment(paymentOf(paid));
      const pending = (await anOrder({ awaitPayment: true })).order;
      await sql(server.database, "UPDATE orders SET payment_state = 'PENDING' WHERE id = $1", [pending.id]);
      await sweepIn(59);
      expect((await orderNow(paid.id)).status).to.equal(OrderStatus.CONFIRMED);
      expect((await orderNow(pending.id)).status).to.equal(OrderStatus.PENDING);
      await sweepIn(61);
      expect(await orderNow(pending.id)).to.include({
        status: OrderStatus.CANCELLED,
        paymentState: OrderPaymentState.UNPAID,
      });
    });

    it("racing a payment never loses or doubles a unit: one of both wins", async () => {
      for (let round = 0; round < 10; round++) {
        const { product, order } = await anOrder({ awaitPayment: true });
        const soon = new Date(server.clock.now().getTime() + round);
        await sql(server.database, "UPDATE orders SET expire_time = $2 WHERE id = $1", [order.id, soon]);
        const [payment] = await Promise.allSettled([
          customer.payments.processPayment(paymentOf(order)),
          ...[1, 2, 3].map(() => expireOrders(server.deps)),
        ]);
        while ((await orderNow(order.id)).status === OrderStatus.PENDING) await expireOrders(server.deps);
        const { status, paymentState } = await orderNow(order.id);
        const won = payment.status === "fulfilled";
        expect([status, paymentState]).to.deep.equal(
          won ? [OrderStatus.CONFIRMED, OrderPaymentState.PAID] : [OrderStatus.CANCELLED, OrderPaymentState.UNPAID],
        );
        expect(await stockOf(product)).to.equal(won ? 7 : 10);
      }
    });
  });
});
