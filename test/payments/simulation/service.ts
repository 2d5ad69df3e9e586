import { createNoopMeter } from "@opentelemetry/api";
import { pino } from "pino";
import type { Database, Statement } from "../../../src/db/database.ts";
import { OrderStore } from "../../../src/orders/store.ts";
import { DisputeStore } from "../../../src/payments/dispute-store.ts";
import type { FraudCheck } from "../../../src/payments/fraud.ts";
import { FraudFactStore } from "../../../src/payments/fraud-fact-store.ts";
import type { Gateways } from "../../../src/payments/gateways/gateways.ts";
import { RefundStore } from "../../../src/payments/refund-store.ts";
import { PaymentStore } from "../../../src/payments/store.ts";
import { WebhookStore } from "../../../src/payments/webhook-store.ts";
import { Metrics } from "../../../src/telemetry/metrics.ts";
import { Crashed, type Process, type Scheduler } from "./scheduler.ts";

/** Real time, which the simulated world does not know: only a machine that stands still comes near it. */
const FRAUD_TIMEOUT_MS = 600_000;
const WINDOW = { windowMs: 600_000, maxCustomerPayments: 60, maxTokenCustomers: 20 };

export type SimulatedService = ReturnType<typeof startService>;

interface ServiceParts {
  readonly process: Process;
  readonly scheduler: Scheduler;
  readonly database: Database;
  readonly gateways: Gateways;
  readonly fraud: FraudCheck;
  /** Takes what the service would log as a fault of its own. */
  readonly onFault: (fault: string) => void;
}

/** The payments feature as one process has it: stores with nothing in memory yet, on the real database. */
export function startService({ process, scheduler, database, gateways, fraud, onFault }: ServiceParts) {
  const db = databaseOf(process, scheduler, database);
  return {
    process,
    payments: new PaymentStore(db),
    refunds: new RefundStore(db),
    disputes: new DisputeStore(db),
    webhooks: new WebhookStore(db),
    fraudFacts: new FraudFactStore(db, WINDOW),
    orders: ordersOf(process, scheduler, new OrderStore(database)),
    gateways,
    fraud,
    clock: scheduler.clock,
    metrics: new Metrics(createNoopMeter()),
    log: pino({ level: "error" }, { write: (line: string) => reportFault(line, onFault) }),
    config: {
      fraud: { timeoutMs: FRAUD_TIMEOUT_MS, unavailable: "deny" as const },
      payments: { refundWindowDays: 30 },
    },
  };
}

/** The real database, each statement of which is a step. */
function databaseOf(process: Process, scheduler: Scheduler, database: Database): Database {
  const query = async (statement: Statement, values: readonly unknown[]) => {
    const rows = await scheduler.step(process, statement.name, () =>
      database.query<{ id?: string }>(statement, values),
    );
    // In which order PostgreSQL gives what an UPDATE took hangs on random ids; ids are made in one order in every replay.
    return statement.name.startsWith("take-") ? rows.sort((a, b) => ((a.id ?? "") < (b.id ?? "") ? -1 : 1)) : rows;
  };
  const unseen = () => {
    throw new Error("the simulation sees only Database.query");
  };
  return Object.create(database, {
    query: { value: query },
    withConnection: { value: unseen },
    sequelize: { get: unseen },
  }) as Database;
}

/** Moves of orders take several statements in one transaction: all of it or nothing, so it is one step. */
function ordersOf(process: Process, scheduler: Scheduler, orders: OrderStore): OrderStore {
  const stepwise =
    <Given extends unknown[], Answer>(label: string, call: (...given: Given) => Promise<Answer>) =>
    (...given: Given): Promise<Answer> =>
      scheduler.step(process, label, () => call.apply(orders, given));
  return Object.create(orders, {
    moveOrders: { value: stepwise("move-orders", orders.moveOrders) },
    expireOrders: { value: stepwise("expire-orders", orders.expireOrders) },
    findExpired: { value: stepwise("find-expired", orders.findExpired) },
    findOrders: { value: stepwise("find-orders", orders.findOrders) },
  }) as OrderStore;
}

function reportFault(line: string, onFault: (fault: string) => void): void {
  const { msg, err } = JSON.parse(line) as { msg: string; err?: { type?: string; message: string } };
  // What only a person can look at is logged without an error, and shows in the books.
  if (err !== undefined && err.type !== Crashed.name && err.type !== "DomainError") onFault(`${msg}: ${err.message}`);
}
