import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { type DestinationStream, type Logger, multistream, pino } from "pino";
import { CatalogService } from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { PaymentService } from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { UserService } from "../../gen/tradepost/user/v1/user_service_pb.js";
import { assemble, disconnect, jobHandlers } from "../../src/assemble.ts";
import { readConfig } from "../../src/config.ts";
import type { Deps } from "../../src/deps.ts";
import { runDueJobs } from "../../src/jobs/worker.ts";
import type { Mail } from "../../src/mail/mail.ts";
import type { FraudCheck } from "../../src/payments/fraud.ts";
import type { Gateways } from "../../src/payments/gateways/gateways.ts";
import { createSandboxGateway } from "../../src/payments/gateways/sandbox.ts";
import { type Sandbox, startSandbox } from "../../src/payments/gateways/sandbox-server.ts";
import { startServer } from "../../src/server/server.ts";
import type { Metrics } from "../../src/telemetry/metrics.ts";
import { createDatabase, type TestDatabase } from "./database.ts";
import { FakeClock } from "./fakes.ts";
import { logFile, rememberingSecrets } from "./secrets.ts";

/** How long a test's calls may take to end when its server stops. */
const DRAIN_MS = 1_000;
/** What the sandbox's webhooks are signed with. */
export const WEBHOOK_SECRET = "signs the webhooks of tests";

export interface TestServerOptions {
  /** Settings by their names, such as `{ RESERVATION_MINUTES: "5" }`. */
  readonly settings?: Readonly<Record<string, string>>;
  /** Not given: both gateways of a real sandbox. */
  readonly gateways?: Gateways;
  /** The sandbox sends its webhooks to the server; nobody does otherwise. */
  readonly webhooks?: boolean;
  /** Not given: as the settings want it, which is our own rules. */
  readonly fraud?: FraudCheck;
  /** Not given: nobody reads them. */
  readonly metrics?: Metrics;
  /** Not given: as the settings want it, which is into files. */
  readonly mail?: Mail;
  /** Takes the log lines from debug on. They are searched for secrets at the end of the run in any case. */
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
  /** Carries out the jobs that are due, which nobody does otherwise; those that fail are due again later. */
  runJobs(): Promise<void>;
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
  const started = new AsyncDisposableStack();
  try {
    return await start(options, started);
  } catch (error) {
    // What a failed start leaves running would keep Mocha from ever ending.
    await started.disposeAsync();
    throw error;
  }
}

async function start(options: TestServerOptions, started: AsyncDisposableStack): Promise<TestServer> {
  const dataDir = await mkdtemp(join(tmpdir(), "tradepost-server-"));
  started.defer(() => rm(dataDir, { recursive: true, force: true }));
  const database = options.database ?? (await createDatabase());
  if (options.database === undefined) started.defer(() => database.drop());
  const clock = new FakeClock();
  const silent = pino({ level: "silent" });
  let webhookUrl: string | undefined;
  const sandbox = await startSandbox({
    port: 0,
    dataDir: join(dataDir, "sandbox"),
    log: silent,
    lateMs: 50,
    hangMs: 20_000,
    ...(options.webhooks === true && { webhook: { url: () => webhookUrl, secret: WEBHOOK_SECRET, firstRetryMs: 20 } }),
  });
  started.defer(() => sandbox.close());
  const gateways = options.gateways ?? sandboxGateways(sandbox.url);
  started.defer(() => {
    gateways.primary.close();
    gateways.backup?.close();
  });
  const config = readConfig({ NODE_ENV: "test", DATA_DIR: dataDir, RATE_LIMITS: "off", ...options.settings });
  const log = logInto(options.logTo);
  const { mail, fraud, metrics } = options;
  const parts = {
    ...(mail !== undefined && { mail }),
    ...(fraud !== undefined && { fraud }),
    ...(metrics !== undefined && { metrics }),
  };
  const deps = await assemble({ config, log, databaseUrl: database.url, gateways, clock, ...parts });
  started.defer(() => disconnect(deps));
  started.defer(() => deps.mail.close());
  const server = await startServer(deps, { host: "127.0.0.1", port: 0 });
  started.defer(() => server.stop(DRAIN_MS));
  webhookUrl = `${server.url}/webhooks/sandbox`;
  const session = new Http2SessionManager(server.url);
  started.defer(() => session.abort());

  return {
    url: server.url,
    deps,
    database,
    clock,
    sandbox,
    as: (token) =>
      clientsOver(createGrpcTransport({ baseUrl: server.url, sessionManager: session, interceptors: bearing(token) })),
    runJobs: () => runDueJobs({ databaseUrl: database.url, prepared: true, handlers: jobHandlers(deps), log }),
    stop: () => started.disposeAsync(),
  };
}

/** Without the redaction of the real log: a secret should not even get so far. */
function logInto(logTo: DestinationStream | undefined): Logger {
  const streams = [
    { level: "trace" as const, stream: logFile() },
    ...(logTo === undefined ? [] : [{ level: "debug" as const, stream: logTo }]),
  ];
  return pino({ level: "trace" }, multistream(streams));
}

function sandboxGateways(baseUrl: string): Gateways {
  return {
    primary: createSandboxGateway({ name: "sandbox-primary", baseUrl, webhookSecret: WEBHOOK_SECRET }),
    backup: createSandboxGateway({ name: "sandbox-backup", baseUrl, webhookSecret: WEBHOOK_SECRET }),
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
    runJobs: async () => present().runJobs(),
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

function bearing(token: string | undefined): Interceptor[] {
  if (token === undefined) return [rememberingSecrets];
  return [
    rememberingSecrets,
    (next) => (req) => {
      req.header.set("authorization", `Bearer ${token}`);
      return next(req);
    },
  ];
}
