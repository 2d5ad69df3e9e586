import { randomUUID } from "node:crypto";
import type { Caller } from "../../../src/call.ts";
import { DomainError } from "../../../src/errors.ts";
import { fromMinor } from "../../../src/money.ts";
import { expireOrders } from "../../../src/orders/expire-orders.ts";
import { cancelOrder } from "../../../src/orders/move-order.ts";
import type { FraudCheck } from "../../../src/payments/fraud.ts";
import type { Gateway, GatewayEvent } from "../../../src/payments/gateways/gateway.ts";
import type { Payment } from "../../../src/payments/payment.ts";
import { processPayment } from "../../../src/payments/process-payment.ts";
import { webhookJobs } from "../../../src/payments/process-webhook.ts";
import { reconcilePayments } from "../../../src/payments/reconcile-payments.ts";
import { reconcileRefunds } from "../../../src/payments/reconcile-refunds.ts";
import { refundOrder, refundPayment } from "../../../src/payments/refund-payment.ts";
import { reverseCharges } from "../../../src/payments/reverse-charges.ts";
import { writeEvent } from "../../../src/payments/webhook-event.ts";
import { PROCESS_WEBHOOK } from "../../../src/payments/webhook-store.ts";
import { sql, type TestDatabase } from "../../support/database.ts";
import { faultsOfWorld } from "./books.ts";
import { SimulatedGateway } from "./gateway.ts";
import { Random } from "./random.ts";
import { Crashed, Scheduler } from "./scheduler.ts";
import { type SimulatedService, startService } from "./service.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const START_TIME = new Date("2026-01-01T12:00:00Z");
const RESERVATION_MS = 15 * MINUTE_MS;
const MAX_ORDERS = 3;
const MAX_TRIES = 4;
const JUMPS_MS = [
  SECOND_MS,
  6 * SECOND_MS,
  35 * SECOND_MS,
  80 * SECOND_MS,
  11 * MINUTE_MS,
  20 * MINUTE_MS,
  2 * HOUR_MS,
];
/** What is not known once nothing is broken any more has to be known within so many rounds. */
const MAX_CALM_ROUNDS = 12;
const CALM_PAUSES_MS = [6 * SECOND_MS, 80 * SECOND_MS, 10 * MINUTE_MS];
const CURRENCY = "USD";

/** How the service may be broken on purpose, to see that the simulation notices. */
export type Sabotage = (gateway: Gateway) => Gateway;

export interface WorldResult {
  readonly seed: number;
  /** Empty: every rule held. */
  readonly faults: readonly string[];
  /** Every step that was taken, in order. */
  readonly trace: readonly string[];
}

interface SimulatedOrder {
  readonly id: string;
  readonly minor: bigint;
}

/** Lives through the world of one seed on a database in which nothing is due, and looks at what it left behind. */
export async function runWorld(database: TestDatabase, seed: number, sabotage?: Sabotage): Promise<WorldResult> {
  const world = new World(database, seed, sabotage);
  try {
    await world.run();
  } catch (error) {
    world.faults.push(`the simulation stopped: ${error instanceof Error ? error.message : String(error)}`);
  }
  return { seed, faults: world.faults, trace: world.scheduler.trace };
}

class World {
  readonly faults: string[] = [];
  readonly scheduler: Scheduler;
  readonly #database: TestDatabase;
  readonly #random: Random;
  readonly #sabotage: Sabotage;
  readonly #customer: Caller;
  readonly #gateways: readonly [SimulatedGateway, SimulatedGateway];
  readonly #services: SimulatedService[] = [];
  readonly #orders: SimulatedOrder[] = [];
  /** What clients were told, by request. */
  readonly #told = new Map<string, Payment>();
  #lives = 0;

  constructor(database: TestDatabase, seed: number, sabotage: Sabotage = (gateway) => gateway) {
    this.#database = database;
    this.#random = new Random(seed);
    this.#sabotage = sabotage;
    this.scheduler = new Scheduler(this.#random, START_TIME);
    this.#customer = { userId: randomUUID(), role: "USER" } as Caller;
    const gateway = (name: "sandbox-primary" | "sandbox-backup") =>
      new SimulatedGateway(name, this.scheduler, this.#random, this.#customer.userId, (event) => this.#tell(event));
    this.#gateways = [gateway("sandbox-primary"), gateway("sandbox-backup")];
  }

  async run(): Promise<void> {
    await this.#furnish();
    for (let i = 0; i < 2; i++) this.#services.push(this.#start());
    for (const order of this.#orders) this.#enlist(order);
    for (let i = this.#random.below(3); i > 0; i--) this.#client(undefined);
    this.#actor("sweeps", 3 + this.#random.below(6), (service) => this.#sweep(service, this.#random.below(4)));
    this.#actor("time", this.#random.below(5), async () => {
      const jumpMs = this.#random.pick(JUMPS_MS);
      this.scheduler.note(`${jumpMs / SECOND_MS} s pass`);
      this.scheduler.advance(jumpMs);
    });
    await this.scheduler.run();
    await this.#calm();
    const truth = new Map(this.#gateways.map(({ name, charges }) => [name, charges]));
    this.faults.push(...(await faultsOfWorld(this.#database, this.#customer.userId, truth, this.#told.values())));
  }

  /** A customer with some unpaid orders. */
  async #furnish(): Promise<void> {
    const orders = 1 + this.#random.below(MAX_ORDERS);
    for (let i = 0; i < orders; i++)
      this.#orders.push({ id: randomUUID(), minor: BigInt(1_000 + this.#random.below(9_000)) });
    await sql(this.#database, FURNISH, [
      this.#customer.userId,
      this.#orders.map(({ id }) => id),
      this.#orders.map(({ minor }) => (Number(minor) / 100).toFixed(2)),
      START_TIME,
      this.#orders.map((_, i) => new Date(START_TIME.getTime() + RESERVATION_MS + i)),
      randomUUID(),
    ]);
  }

  #start(): SimulatedService {
    const process = { name: `p${++this.#lives}`, alive: true };
    const [primary, backup] = this.#gateways.map((gateway) => this.#sabotage(gateway.reachedFrom(process)));
    if (primary === undefined) throw new Error("there are two gateways");
    return startService({
      process,
      scheduler: this.scheduler,
      database: this.#database.db,
      gateways: { primary, backup },
      fraud: this.#fraudOf(process.name),
      onFault: (fault) => this.faults.push(fault),
    });
  }

  #fraudOf(name: string): FraudCheck {
    return {
      check: (payment) =>
        this.scheduler.step(
          undefined,
          `${name} asks for the risk of ${this.scheduler.nameOf(payment.id, "payment")}`,
          () => {
            if (this.scheduler.calm || this.#random.chance(0.85)) return { riskLevel: "LOW", riskFactors: [] };
            if (this.#random.chance(0.5)) throw new DomainError("unavailable", "FRAUD_UNAVAILABLE", "no verdict");
            return { riskLevel: "HIGH", riskFactors: ["simulated"] };
          },
        ),
    };
  }

  /** A process that is alive: where one has died, another begins with nothing in memory. */
  #service(): SimulatedService {
    const at = this.#random.below(this.#services.length);
    const found = this.#services[at];
    if (found?.process.alive === true) return found;
    const fresh = this.#start();
    this.scheduler.note(`${fresh.process.name} starts`);
    this.#services[at] = fresh;
    return fresh;
  }

  /** Somebody who does something, so many times and whenever the scheduler says; what dies under them they leave. */
  #actor(name: string, times: number, act: (service: SimulatedService) => Promise<unknown>): void {
    const life = async () => {
      for (let i = 0; i < times; i++) {
        await this.scheduler.step(undefined, `${name} act`, () => {});
        await act(this.#service()).catch((error: unknown) => this.#judge(name, error));
      }
    };
    void life();
  }

  /** Refusals and deaths are part of the world; anything else is a fault of the service. */
  #judge(name: string, error: unknown): void {
    if (error instanceof Crashed) return;
    if (error instanceof DomainError) this.scheduler.note(`${name}: ${error.reason}`);
    else this.faults.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
  }

  /** The people around one order. */
  #enlist(order: SimulatedOrder): void {
    for (let i = 1 + this.#random.below(2); i > 0; i--) this.#client(order);
    if (this.#random.chance(0.3)) {
      this.#actor("customer cancels", 1, (service) => cancelOrder(service, order.id, "", this.#customer));
    }
  }

  /** Pays under one request id, again and again and also twice at once; refunds some of it at times. */
  #client(order: SimulatedOrder | undefined): void {
    const requestId = randomUUID();
    const minor = order?.minor ?? BigInt(100 + this.#random.below(5_000));
    const request = {
      requestId,
      orderId: order?.id ?? "",
      customerId: "",
      amount: fromMinor(CURRENCY, minor),
      card: { token: "tok_visa", billingCountry: "" },
    };
    const name = `client ${this.scheduler.nameOf(requestId, "request")}`;
    const pay = async (service: SimulatedService) => {
      const payment = await processPayment(service, request, this.#customer, Number.POSITIVE_INFINITY);
      this.scheduler.note(`${name} is told ${payment.status}`);
      this.#hear(name, requestId, payment);
    };
    for (let i = 1 + this.#random.below(2); i > 0; i--) this.#actor(name, 1 + this.#random.below(MAX_TRIES - 1), pay);
    if (this.#random.chance(0.4)) this.#refunder(requestId, minor);
  }

  #hear(name: string, requestId: string, payment: Payment): void {
    const before = this.#told.get(requestId);
    if (before !== undefined && before.id !== payment.id) this.faults.push(`${name} was told of two payments`);
    // An answer that was read before the end may come after it.
    if (payment.status === "PENDING" && before !== undefined) return;
    if (before !== undefined && before.status !== "PENDING" && before.status !== payment.status) {
      this.faults.push(`${name} was told ${before.status}, and then ${payment.status}`);
    }
    this.#told.set(requestId, payment);
  }

  #refunder(paymentRequestId: string, minor: bigint): void {
    const part = this.#random.chance(0.5) ? minor : minor / 2n;
    const requestIds = [randomUUID(), randomUUID()];
    this.#actor("customer refunds", 3, async (service) => {
      const payment = this.#told.get(paymentRequestId);
      if (payment === undefined) return;
      const requestId = this.#random.pick(requestIds);
      const request = { requestId, paymentId: payment.id, amount: fromMinor(CURRENCY, part), reason: "" };
      await refundPayment(service, request, this.#customer, Number.POSITIVE_INFINITY);
    });
  }

  /** Webhooks come late, in any order, twice or not at all. */
  #tell(event: GatewayEvent): void {
    if (!this.scheduler.calm && this.#random.chance(0.4)) return;
    const about = `${event.gateway} sends ${event.type}`;
    const copies = this.#random.chance(0.2) ? 2 : 1;
    for (let i = 0; i < copies; i++) {
      this.#actor(about, 1, async (service) => {
        await service.webhooks.keep([{ gateway: event.gateway, id: event.id, event: writeEvent(event) }], this.#now());
        await this.#processWebhook(service, event.gateway, event.id);
      });
    }
  }

  async #processWebhook(service: SimulatedService, gateway: string, eventId: string): Promise<void> {
    const helpers = {} as Parameters<NonNullable<ReturnType<typeof webhookJobs>[string]>>[1];
    await webhookJobs(service)[PROCESS_WEBHOOK]?.({ gateway, eventId }, helpers);
  }

  async #sweep(service: SimulatedService, which: number): Promise<void> {
    const sweeps = [expireOrders, reconcilePayments, reverseCharges, reconcileRefunds];
    await sweeps[which]?.(service);
  }

  /** Nothing is broken any more: whatever is open has to end, without anybody asking. */
  async #calm(): Promise<void> {
    this.scheduler.calm = true;
    this.scheduler.note("from here on nothing goes wrong");
    for (let round = 0; round < MAX_CALM_ROUNDS; round++) {
      const [open] = await sql<OpenRow>(this.#database, OPEN, [this.#customer.userId]);
      if (open === undefined || isClosed(open)) return;
      this.scheduler.advance(CALM_PAUSES_MS[round] ?? HOUR_MS);
      this.#actor("the service", 1, (service) => this.#tidy(service, open));
      await this.scheduler.run();
    }
    this.scheduler.note("it has not come to rest");
  }

  /** One round of everything that the service does by itself. */
  async #tidy(service: SimulatedService, open: OpenRow): Promise<void> {
    for (const [gateway, eventId] of open.events) await this.#processWebhook(service, gateway, eventId);
    for (const orderId of open.refund_orders) await refundOrder(service, orderId);
    await this.#sweep(service, 0);
    if (open.payments > 0) await this.#sweep(service, 1);
    await this.#sweep(service, 2);
    if (open.refunds > 0) await this.#sweep(service, 3);
  }

  #now(): Date {
    return this.scheduler.clock.now();
  }
}

interface OpenRow {
  readonly payments: number;
  readonly reversals: number;
  readonly refunds: number;
  readonly events: readonly (readonly [gateway: string, eventId: string])[];
  /** Cancelled and paid: a job gives their money back. */
  readonly refund_orders: readonly string[];
}

function isClosed({ payments, reversals, refunds, events, refund_orders: orders }: OpenRow): boolean {
  return payments + reversals + refunds + events.length + orders.length === 0;
}

const OPEN = `
  WITH mine AS (SELECT id, status FROM payments WHERE customer_id = $1)
  SELECT (SELECT count(*)::int FROM mine WHERE status = 'PENDING') AS payments,
         (SELECT count(*)::int FROM payment_attempts a JOIN mine ON mine.id = a.payment_id
           WHERE a.state = 'REVERSING') AS reversals,
         (SELECT count(*)::int FROM refunds r JOIN mine ON mine.id = r.payment_id WHERE r.status = 'PENDING') AS refunds,
         (SELECT coalesce(json_agg(json_build_array(gateway, event_id) ORDER BY gateway, event_id), '[]')
            FROM webhook_events WHERE process_time IS NULL) AS events,
         (SELECT coalesce(json_agg(o.id ORDER BY o.expire_time), '[]') FROM orders o
           WHERE o.customer_id = $1 AND o.status = 'CANCELLED' AND o.payment_state = 'PAID'
             AND NOT EXISTS (SELECT FROM refunds r JOIN mine ON mine.id = r.payment_id JOIN payments p ON p.id = mine.id
                              WHERE p.order_id = o.id AND r.created_by IS NULL)) AS refund_orders`;

const FURNISH = `
  WITH customer AS (
    INSERT INTO users (id, email, password_hash, first_name, last_name, date_of_birth, create_time, update_time)
    VALUES ($1, $1::uuid || '@tradepost.example', '', 'Casey', 'Jones', '1990-01-02', $4, $4)),
  product AS (
    INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
    VALUES ($6, 'Widget', 'USD', 10, 100 - cardinality($2::uuid[]), true, $4, $4)),
  placed AS (
    INSERT INTO orders (id, customer_id, created_by, request_id, request_hash, status, currency, total_amount,
                        expire_time, order_time, update_time)
    SELECT o.id, $1, $1, o.id, '', 'PENDING', 'USD', o.total, o.expire_time, $4, $4
      FROM unnest($2::uuid[], $3::numeric[], $5::timestamptz[]) o (id, total, expire_time)),
  items AS (
    INSERT INTO order_items (order_id, position, id, product_id, product_name, quantity, unit_price)
    SELECT o.id, 1, gen_random_uuid(), $6, 'Widget', 1, o.total FROM unnest($2::uuid[], $3::numeric[]) o (id, total)),
  stock AS (
    INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
    SELECT $6, 100, 'INITIAL', NULL, $4 UNION ALL SELECT $6, -1, 'SALE', o.id, $4 FROM unnest($2::uuid[]) o (id))
  INSERT INTO order_events (order_id, to_status, to_payment_state, create_time)
  SELECT o.id, 'PENDING', 'UNPAID', $4 FROM unnest($2::uuid[]) o (id)`;
