import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { type DestinationStream, pino } from "pino";
import { CatalogService } from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { PaymentService } from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { UserService } from "../../gen/tradepost/user/v1/user_service_pb.js";
import { assemble } from "../../src/assemble.ts";
import { readConfig } from "../../src/config.ts";
import type { Deps } from "../../src/deps.ts";
import type { Gateway } from "../../src/payments/gateways/gateway.ts";
import { createSandboxGateway } from "../../src/payments/gateways/sandbox.ts";
import { type Sandbox, startSandbox } from "../../src/payments/gateways/sandbox-server.ts";
import { type FraudCheck, noFraudRules } from "../../src/payments/screen.ts";
import { type Server, startServer } from "../../src/server/server.ts";
import { createDatabase, type TestDatabase } from "./database.ts";
import { FakeClock } from "./fakes.ts";

export interface TestServerOptions {
  /** Settings by their names, such as `{ RESERVATION_MINUTES: "5" }`. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Not given: a real sandbox gateway. */
  readonly gateway?: Gateway;
  readonly fraud?: FraudCheck;
  /** Takes the log lines; not given: nobody does. */
  readonly logTo?: DestinationStream;
  /** Not given: a fresh clone of the migrated template. Given, it is not dropped at the end. */
  readonly database?: TestDatabase;
}

/** The whole service in this process: the real listener, interceptors, services and PostgreSQL. */
export interface TestServer {
  readonly url: string;
  readonly deps: Deps;
  readonly database: TestDatabase;
  readonly clock: FakeClock;
  readonly sandbox: Sandbox;
  /** Typed clients over gRPC; with a token they send it. */
  as(token?: string): Clients;
  stop(): Promise<void>;
}

/** One generated client for each service. */
export interface Clients {
  readonly auth: Client<typeof AuthService>;
  readonly users: Client<typeof UserService>;
  readonly catalog: Client<typeof CatalogService>;
  readonly orders: Client<typeof OrderService>;
  readonly payments: Client<typeof PaymentService>;
}

async function startTestServer(options: TestServerOptions = {}): Promise<TestServer> {
  const dataDir = await mkdtemp(join(tmpdir(), "tradepost-server-"));
  const database = options.database ?? (await createDatabase());
  const clock = new FakeClock();
  const silent = pino({ level: "silent" });
  const sandbox = await startSandbox({
    port: 0,
    dataDir: join(dataDir, "sandbox"),
    log: silent,
    lateMs: 50,
    hangMs: 20_000,
  });
  const gateway = options.gateway ?? createSandboxGateway({ name: "sandbox-primary", baseUrl: sandbox.url });
  const config = readConfig({ NODE_ENV: "test", DATA_DIR: dataDir, ...options.settings });
  const log = options.logTo === undefined ? silent : pino({ level: "debug" }, options.logTo);
  const { fraud = noFraudRules } = options;
  const deps = await assemble({ config, log, databaseUrl: database.url, gateway, fraud, clock });
  const server = await startServer(deps, { host: "127.0.0.1", port: 0 });
  const session = new Http2SessionManager(server.url);

  return {
    url: server.url,
    deps,
    database,
    clock,
    sandbox,
    as: (token) =>
      clientsOver(createGrpcTransport({ baseUrl: server.url, sessionManager: session, interceptors: bearing(token) })),
    async stop() {
      session.abort();
      await stopAll(server, deps, sandbox);
      if (options.database === undefined) await database.drop();
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}

/** Gives the suite it is called in a server, started before its first test and stopped after its last. */
export function useServer(options: TestServerOptions = {}): TestServer {
  let started: TestServer | undefined;
  before(async () => {
    started = await startTestServer(options);
  });
  after(() => started?.stop());
  const present = () => {
    if (started === undefined) throw new Error("the server is there from `before` on");
    return started;
  };
  return {
    get url() {
      return present().url;
    },
    get deps() {
      return present().deps;
    },
    get database() {
      return present().database;
    },
    get clock() {
      return present().clock;
    },
    get sandbox() {
      return present().sandbox;
    },
    as: (token) => present().as(token),
    stop: async () => present().stop(),
  };
}

function clientsOver(transport: Transport): Clients {
  const client = <Service extends DescService>(service: Service) => createClient(service, transport);
  return {
    auth: client(AuthService),
    users: client(UserService),
    catalog: client(CatalogService),
    orders: client(OrderService),
    payments: client(PaymentService),
  };
}

async function stopAll(server: Server, deps: Deps, sandbox: Sandbox): Promise<void> {
  await server.stop(1_000);
  deps.gateway.close();
  await deps.db.close();
  await sandbox.close();
}

function bearing(token: string | undefined): Interceptor[] {
  if (token === undefined) return [];
  return [
    (next) => (req) => {
      req.header.set("authorization", `Bearer ${token}`);
      return next(req);
    },
  ];
}
