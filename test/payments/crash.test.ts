import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { type Client, createClient } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { expect } from "chai";
import pg from "pg";
import { FraudService, RiskLevel } from "../../gen/tradepost/fraud/v1/fraud_service_pb.js";
import { PaymentStatus } from "../../gen/tradepost/payment/v1/payment_pb.js";
import { PaymentService } from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { createDatabase, sql, type TestDatabase } from "../support/database.ts";
import { card, money, present } from "../support/factories.ts";
import { type ServiceProcess, until, usePrograms } from "../support/process.ts";
import { type GatewayProxy, startGatewayProxy } from "./gateway-proxy.ts";

/** What is left of a crash has to be over so soon after the service is back. */
const FINISH_TIMEOUT_MS = 60_000;
/** A payment that stands still is given up by its client when the service dies, not before. */
const PATIENTLY = { timeoutMs: 60_000 };

/** Where each payment is when the service dies. Its amount, in whole dollars, is how everybody here knows it. */
const BOUNDARIES = [
  { dollars: 10, at: "recorded, and not screened" },
  { dollars: 11, at: "screened, and its charge on the way to the gateway" },
  { dollars: 12, at: "charged, and the answer on its way back" },
  { dollars: 13, at: "charged, and not settled" },
] as const;
const [unscreened, unsent, unanswered, unsettled] = BOUNDARIES.map(({ dollars }) => dollars);

interface SandboxCharge {
  readonly amount_minor: number;
  readonly state: string;
  readonly captured_minor: number;
  readonly refunded_minor: number;
}

describe("payments and crashes", function () {
  this.timeout(180_000);
  const { start, runService, newFolder } = usePrograms({ per: "suite" });
  let database: TestDatabase;
  let proxy: GatewayProxy;
  let fraud: Awaited<ReturnType<typeof startFraudService>>;
  let sandboxUrl: string;
  let service: ServiceProcess;
  /** What each client asked for. */
  const requests = new Map(BOUNDARIES.map(({ dollars }) => [dollars, requestOf(dollars)]));
  const ended = new Map<number, { status: string; attempts: string[] }>();
  let session: ReturnType<typeof connect>;

  before("a service is killed with a payment at each boundary, and started again", async () => {
    database = await createDatabase();
    const sandbox = start("src/commands/sandbox.ts", { settings: { SANDBOX_PORT: "0", DATA_DIR: await newFolder() } });
    [, sandboxUrl = ""] = await sandbox.printed(/Payment sandbox at (http:\/\/127\.0\.0\.1:\d+) /);
    const door = Promise.withResolvers<void>();
    proxy = await startGatewayProxy(sandboxUrl, {
      requests: new Set([Number(unsent) * 100]),
      answers: new Set([Number(unanswered) * 100]),
      doors: new Map([[Number(unsettled) * 100, door.promise]]),
    });
    fraud = await startFraudService(Number(unscreened));
    const settings = {
      DATABASE_URL: database.url,
      DATA_DIR: await newFolder(),
      SECRET_KEY: randomBytes(32).toString("base64"),
      SANDBOX_PORT: String(proxy.port),
      FRAUD_URL: fraud.url,
      FRAUD_TIMEOUT_MS: "10000",
      RATE_LIMITS: "off",
    };
    service = await runService(settings);
    const token = await signUp(service);
    const first = connect(service, token);
    const calls = [...requests.values()].map((request) => first.payments.processPayment(request, PATIENTLY));
    const outcomes = Promise.allSettled(calls);

    const locked = await lockPayment(database, Number(unsettled));
    door.resolve();
    await until("every payment stands at its boundary", async () => {
      const waiting = fraud.isAsked() && proxy.held.size === 2 && (await locked.hasWaiting());
      return waiting ? true : undefined;
    });
    service.child.kill("SIGKILL");
    expect((await service.ended).signal).to.equal("SIGKILL");
    expect((await outcomes).map(({ status }) => status)).to.deep.equal(BOUNDARIES.map(() => "rejected"));
    first.close();
    await locked.abandon();
    fraud.release();
    proxy.release();

    service = await runService(settings);
    session = connect(service, token);
    await finish(database, ended);
  });
  after(async () => {
    session?.close();
    proxy?.close();
    fraud?.close();
    await service?.stop();
    await database?.drop();
  });

  for (const { dollars, at } of BOUNDARIES) {
    it(`finishes a payment that was ${at}, with one charge`, async () => {
      const charges = await chargesOf(sandboxUrl, dollars);
      const kept = charges.filter(({ captured_minor: captured, refunded_minor: back }) => captured > back);
      expect(kept, JSON.stringify(charges)).to.have.length(1);
      expect(ended.get(dollars)?.status).to.equal("COMPLETED");
    });

    it(`tells a client that repeats it how it ended: it was ${at}`, async () => {
      const { payment } = await session.payments.processPayment(present(requests.get(dollars)), PATIENTLY);
      expect(payment?.status).to.equal(PaymentStatus.COMPLETED);
      expect(await chargesOf(sandboxUrl, dollars)).to.have.length(1);
    });
  }

  it("never sends again what may have been executed: it asks, and goes to the backup on proof only", () => {
    const attempts = Object.fromEntries(BOUNDARIES.map(({ dollars }) => [dollars, ended.get(dollars)?.attempts]));
    expect(attempts).to.deep.equal({
      [Number(unscreened)]: ["sandbox-primary CAPTURED"],
      [Number(unsent)]: ["sandbox-primary VOIDED", "sandbox-backup CAPTURED"],
      [Number(unanswered)]: ["sandbox-primary CAPTURED"],
      [Number(unsettled)]: ["sandbox-primary CAPTURED"],
    });
  });

  it("keeps the ledger balanced, with each charge in it once", async () => {
    const rows = await sql(
      database,
      `SELECT kind, count(DISTINCT movement_id)::int AS movements,
              sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END)::float8 AS sum
         FROM ledger_entries GROUP BY kind`,
    );
    expect(rows).to.deep.equal([{ kind: "CHARGE", movements: BOUNDARIES.length, sum: 0 }]);
  });
});

function requestOf(dollars: number) {
  return { requestId: randomUUID(), amount: money(String(dollars)), paymentMethod: card("tok_visa") };
}

async function chargesOf(sandboxUrl: string, dollars: number): Promise<SandboxCharge[]> {
  const { charges } = (await (await fetch(`${sandboxUrl}/charges`)).json()) as { charges: SandboxCharge[] };
  // A tombstone of what never came has no amount of its own, so it is nobody's here.
  return charges.filter(({ amount_minor: minor }) => minor === dollars * 100);
}

/** Waits until no payment is PENDING, and notes how each ended. */
async function finish(database: TestDatabase, ended: Map<number, { status: string; attempts: string[] }>) {
  const deadline = Date.now() + FINISH_TIMEOUT_MS;
  for (;;) {
    const rows = await sql<{ dollars: number; status: string; attempts: string[] }>(
      database,
      `SELECT p.amount::int AS dollars, p.status, array_agg(a.gateway || ' ' || a.state ORDER BY a.number) AS attempts
         FROM payments p JOIN payment_attempts a ON a.payment_id = p.id GROUP BY p.id`,
    );
    for (const { dollars, ...end } of rows) ended.set(dollars, end);
    if (rows.length === BOUNDARIES.length && rows.every(({ status }) => status !== "PENDING")) return;
    if (Date.now() > deadline)
      throw new Error(`not over after ${FINISH_TIMEOUT_MS / 1_000} s: ${JSON.stringify(rows)}`);
    await sleep(200);
  }
}

/** A lock on a payment's row, for which its settlement has to wait. */
async function lockPayment(database: TestDatabase, dollars: number) {
  await until(`the payment of ${dollars} is screened`, async () => {
    const text = "SELECT 1 FROM payments WHERE amount = $1 AND risk_level IS NOT NULL";
    return (await sql(database, text, [dollars])).length > 0 ? true : undefined;
  });
  const client = new pg.Client({ connectionString: database.url });
  // Where the test fails before it lets go, the database is dropped under it.
  client.on("error", () => {});
  await client.connect();
  await client.query("BEGIN");
  await client.query("SELECT FROM payments WHERE amount = $1 FOR UPDATE", [dollars]);
  const waiting = `pid FROM pg_stat_activity
                    WHERE wait_event_type = 'Lock' AND query LIKE '%settle_payments%' AND pid <> pg_backend_pid()
                      AND datname = current_database()`;
  return {
    hasWaiting: async () => (await sql(database, `SELECT ${waiting}`)).length > 0,
    /** Lets go, once nothing that has waited for it is left to go on. */
    async abandon() {
      await until("what waited is gone", async () => {
        const left = await sql(database, `SELECT pg_terminate_backend(pid) FROM (SELECT ${waiting}) w`);
        return left.length === 0 ? true : undefined;
      });
      await client.query("ROLLBACK");
      await client.end();
    },
  };
}

/** A fraud check that finds no risk, and does not answer about one amount until it is released. */
async function startFraudService(silentDollars: number) {
  const released = Promise.withResolvers<void>();
  let asked = false;
  const server = createServer(
    connectNodeAdapter({
      routes: (router) =>
        router.service(FraudService, {
          async checkPayment({ amount }) {
            if (amount?.units === BigInt(silentDollars)) {
              asked = true;
              await released.promise;
            }
            return { riskLevel: RiskLevel.LOW };
          },
        }),
    }),
  );
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    isAsked: () => asked,
    release: () => released.resolve(),
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}

async function signUp({ url }: ServiceProcess): Promise<string> {
  const auth = createClient(AuthService, createGrpcTransport({ baseUrl: url }));
  const account = { email: `${randomUUID()}@tradepost.example`, password: randomBytes(12).toString("base64") };
  const dateOfBirth = { year: 1990, month: 1, day: 2 };
  await auth.register({ ...account, firstName: "Casey", lastName: "Jones", dateOfBirth });
  return (await auth.login(account)).accessToken;
}

function connect({ url }: ServiceProcess, token: string): { payments: Client<typeof PaymentService>; close(): void } {
  const sessionManager = new Http2SessionManager(url);
  const transport = createGrpcTransport({
    baseUrl: url,
    sessionManager,
    interceptors: [
      (next) => (req) => {
        req.header.set("authorization", `Bearer ${token}`);
        return next(req);
      },
    ],
  });
  return { payments: createClient(PaymentService, transport), close: () => sessionManager.abort() };
}
