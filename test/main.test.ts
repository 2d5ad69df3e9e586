import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import net, { type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect } from "chai";
import { DEMO_PASSWORD } from "../src/demo.ts";
import { selfSignedCertificate } from "./server/self-signed.ts";
import { createDatabase, sql, type TestDatabase } from "./support/database.ts";
import { freePort } from "./support/ports.ts";
import { administer, databaseUrl } from "./support/postgres.ts";
import {
  type Ended,
  listProcesses,
  type Program,
  processesNaming,
  processTree,
  type RunningProcess,
  type ServiceProcess,
  until,
  usePrograms,
} from "./support/process.ts";

const SECRET_KEY = randomBytes(32).toString("base64");
const BIN = join(import.meta.dirname, "../node_modules/.bin");
/** Loads code into the service that throws on SIGUSR2, as a fault nobody foresaw would. */
const FAULT_ON_SIGUSR2 = [
  "--import",
  'data:text/javascript,process.on("SIGUSR2",()=>{throw new Error("out of the blue")})',
];

describe("the service on its embedded database", function () {
  this.timeout(120_000);
  const { runService, startService } = usePrograms();
  let folder: string;
  let dataDir: string;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "tradepost-main-"));
    dataDir = join(folder, "data");
  });

  after(async () => {
    await until("every process on the folder has ended", async () =>
      (await processesNaming(folder)).length === 0 ? true : undefined,
    );
    await rm(folder, { recursive: true, force: true });
  });

  const run = (settings: Record<string, string> = {}, options = {}) =>
    runService({ DATA_DIR: dataDir, ...settings }, options);

  /** Nothing is left: no process of the tree, no PostgreSQL on the data, no claim, no database file. */
  async function expectNothingLeft(tree: readonly RunningProcess[]): Promise<void> {
    expect([...(await alive(tree)), ...(await processesNaming(dataDir))], "processes that are left").to.deep.equal([]);
    // Accounts that were made have mail, and that is kept.
    const left = (await readdir(dataDir)).filter((name) => name !== "outbox");
    expect(left, "files that are left").to.have.members(["postgres", "sandbox", "secret.key"]);
    expect(existsSync(join(dataDir, "postgres", "data", "postmaster.pid")), "PostgreSQL's lock is left").to.equal(
      false,
    );
  }

  it("starts on an empty folder, greets with logins that work, and keeps its data over a restart", async () => {
    const first = await run();
    expect(first.stdout).to.contain(`Password of each: ${DEMO_PASSWORD}`);
    for (const email of ["admin", "ada", "ben"]) await logIn(first, `${email}@tradepost.example`, DEMO_PASSWORD);
    expect((await call(first, "order.v1.CatalogService/ListProducts")).body["products"]).to.have.length(24);
    const customer = await register(first);
    const tree = await processTree(first.pid);
    expect(tree.map(({ command }) => command).join("\n"))
      .to.contain("embedded-supervisor")
      .and.to.contain(`-D ${dataDir}`);
    expect(await first.stop()).to.include({ code: 0, stderr: "" });
    await expectNothingLeft(tree);

    const second = await run();
    await logIn(second, customer.email, customer.password);
    expect((await call(second, "order.v1.CatalogService/ListProducts")).body["products"]).to.have.length(24);
  });

  for (const [how, stop] of [
    ["SIGINT", (it: Program) => it.stop("SIGINT")],
    ["SIGHUP", (it: Program) => it.stop("SIGHUP")],
    ["the end of the process that started it", endChannel],
  ] as const) {
    it(`stops with all that it started on ${how}`, async () => {
      const service = await run();
      const tree = await processTree(service.pid);
      expect(await stop(service)).to.include({ code: 0, stderr: "" });
      await expectNothingLeft(tree);
    });
  }

  it("lets a call that is under way end before it stops", async () => {
    const service = await run();
    const slow = await beginCall(service);
    service.child.kill("SIGTERM");
    await service.printed(/"stopping"/);
    expect(await slow.finish()).to.match(/^HTTP\/1\.1 200 /);
    expect(await service.ended).to.include({ code: 0, stderr: "" });
  });

  it("ends at once when asked a second time, and PostgreSQL goes down nevertheless", async () => {
    const service = await run({ DRAIN_SECONDS: "300" });
    const tree = await processTree(service.pid);
    const slow = await beginCall(service);
    service.child.kill("SIGTERM");
    await service.printed(/"stopping"/);
    // What follows within a second is taken for an echo, so a patient person asks until it works.
    const patience = setInterval(() => service.child.kill("SIGTERM"), 300);
    const { code } = await service.ended.finally(() => clearInterval(patience));
    expect(code).to.equal(143);
    slow.abandon();
    await until("all it started has gone", async () => ((await alive(tree)).length === 0 ? true : undefined));
  });

  for (const [when, hasBegun, mayBeLeft] of [
    ["that has just taken its folder", (dir: string) => existsSync(join(dir, "server.json")), [[], ["postgres"]]],
    ["that makes PostgreSQL's data", async (dir: string) => (await unfinishedDataIn(dir)).length > 0, [["postgres"]]],
  ] as const) {
    it(`stops cleanly in the middle of a start ${when}`, async () => {
      const emptyDir = await mkdtemp(join(folder, "empty-"));
      const service = startService({ DATA_DIR: emptyDir });
      await until(`there is a start ${when}`, async () => (await hasBegun(emptyDir)) || undefined);
      const tree = await processTree(service.pid);
      expect(await service.stop()).to.include({ code: 0, stderr: "" });
      expect((await processesNaming(emptyDir)).map(({ command }) => command)).to.deep.equal([]);
      expect(await alive(tree)).to.deep.equal([]);
      expect(mayBeLeft).to.deep.include(await readdir(emptyDir));
      expect(await unfinishedDataIn(emptyDir)).to.deep.equal([]);
    });
  }

  it("stops cleanly in the middle of a start whose PostgreSQL runs already", async () => {
    await (await run()).stop();
    const service = startService({ DATA_DIR: dataDir });
    await until("PostgreSQL is being started", async () => (await processesNaming(`-D ${dataDir}`))[0]);
    const tree = await processTree(service.pid);
    expect(await service.stop()).to.include({ code: 0, stderr: "" });
    await expectNothingLeft(tree);
  });

  it("recovers by itself after it was killed", async () => {
    const service = await run();
    const customer = await register(service);
    await service.stop("SIGKILL");
    const next = await run();
    await logIn(next, customer.email, customer.password);
    const tree = await processTree(next.pid);
    expect(await next.stop()).to.include({ code: 0, stderr: "" });
    await expectNothingLeft(tree);
  });

  it("says so when a second one is started beside it, and is not disturbed", async () => {
    const service = await run();
    const { code, stderr } = await startService({ DATA_DIR: dataDir }).ended;
    expect({ code, stderr }).to.deep.equal({
      code: 1,
      stderr: `Tradepost already runs here: pid ${service.pid}, ${service.url}\n`,
    });
    expect((await call(service, "order.v1.CatalogService/ListProducts")).status).to.equal(200);
  });

  it("says that its address cannot be had before it starts PostgreSQL", async () => {
    const other = await listenOn(() => {});
    const tls = selfSignedCertificate();
    const files = { TLS_CERT: join(folder, "cert.pem"), TLS_KEY: join(folder, "other-key.pem") };
    await writeFile(files.TLS_CERT, tls.cert);
    await writeFile(files.TLS_KEY, selfSignedCertificate().key);
    const DATA_DIR = join(folder, "never");
    for (const [settings, sentence] of [
      [{ PORT: String(other.port) }, new RegExp(`^Port ${other.port} \\(PORT\\) is in use on 127\\.0\\.0\\.1\\. `)],
      [{ HOST: "192.0.2.1" }, /^Host 192\.0\.2\.1 \(HOST\) is not an address of this machine\. /],
      [files, /^The private key \(TLS_KEY\) does not belong to the certificate \(TLS_CERT\)\./],
    ] as const) {
      const { code, stderr } = await startService({ DATA_DIR, ...settings }).ended;
      expect(stderr)
        .to.match(sentence)
        .and.match(/^[^\n]+\n$/);
      expect(code).to.equal(1);
      expect(await readdir(DATA_DIR)).to.deep.equal([]);
    }
    other.close();
  });

  it("ends with one sentence when PostgreSQL ends by itself", async () => {
    const service = await run();
    const pid = Number((await readFile(join(dataDir, "postgres/data/postmaster.pid"), "utf8")).split("\n")[0]);
    process.kill(pid, "SIGKILL");
    const { code, stderr } = await service.ended;
    expect(code).to.equal(1);
    expect(stderr).to.match(/^PostgreSQL ended by itself: [^\n]+\n$/);
    expect((await readdir(dataDir)).filter((name) => /^(server|database)\.json/.test(name))).to.deep.equal([]);
  });

  it("logs a fault nobody foresaw with its cause, and takes PostgreSQL down", async () => {
    const service = await run({}, { nodeOptions: FAULT_ON_SIGUSR2 });
    const tree = await processTree(service.pid);
    service.child.kill("SIGUSR2");
    const { code, stdout, stderr } = await service.ended;
    expect(code).to.equal(1);
    expect(stderr).to.equal("Tradepost stops because of an unforeseen fault: out of the blue\n");
    const fatal = stdout.split("\n").filter((line) => line.includes('"level":60'));
    expect(fatal, stdout).to.have.length(1);
    expect(fatal[0]).to.contain("out of the blue").and.contain("data:text/javascript");
    await expectNothingLeft(tree);
  });
});

describe("the service on a database of its user", function () {
  this.timeout(120_000);
  const { runService, startService, newFolder } = usePrograms();
  let database: TestDatabase;

  beforeEach(async () => {
    database = await createDatabase();
  });
  afterEach(() => database.drop());

  // Services that share a database share the key of what is encrypted in it.
  const settings = async () => ({ DATABASE_URL: database.url, DATA_DIR: await newFolder(), SECRET_KEY });

  it("starts no PostgreSQL, makes no demo data, and tells how to make the first admin", async () => {
    const given = await settings();
    const service = await runService(given);
    const tree = await processTree(service.pid);
    expect(tree.map(({ pid }) => pid)).to.deep.equal([service.pid]);
    expect(await readdir(given.DATA_DIR)).to.deep.equal(["sandbox"]);
    expect(await sql(database, "SELECT 1 FROM users UNION ALL SELECT 1 FROM products")).to.deep.equal([]);
    expect(service.stdout).to.contain("npm run admin:create -- --email").and.not.contain(DEMO_PASSWORD);
    expect(await service.stop()).to.include({ code: 0, stderr: "" });
  });

  it("migrates an empty database", async () => {
    await sql(database, "DROP SCHEMA public CASCADE");
    await sql(database, "CREATE SCHEMA public");
    const service = await runService(await settings());
    expect((await call(service, "order.v1.CatalogService/ListProducts")).status).to.equal(200);
  });

  it("cancels an order that is not paid in time, and gives its stock back", async () => {
    const service = await runService(await settings());
    const { email, password } = await register(service);
    const { accessToken } = (await call(service, "user.v1.AuthService/Login", { email, password })).body;
    const productId = randomUUID();
    await sql(
      database,
      `WITH product AS (
         INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
         VALUES ($1, 'Widget', 'USD', 1, 5, true, now(), now()) RETURNING id)
       INSERT INTO stock_movements (product_id, delta, kind, create_time) SELECT id, 5, 'INITIAL', now() FROM product`,
      [productId],
    );
    const request = { requestId: randomUUID(), items: [{ productId, quantity: 2 }], awaitPayment: true };
    const placed = await call(service, "order.v1.OrderService/CreateOrder", request, accessToken as string);
    expect(placed.status, JSON.stringify(placed.body)).to.equal(200);

    const look = async () => {
      const [row] = await sql<{ status: string; stock: number }>(
        database,
        "SELECT status, (SELECT stock_quantity FROM products) AS stock FROM orders",
      );
      return row;
    };
    expect(await look()).to.deep.equal({ status: "PENDING", stock: 3 });
    await sql(database, "UPDATE orders SET expire_time = now() - interval '1 second'");
    await until("the order is cancelled", async () => ((await look())?.status === "PENDING" ? undefined : true));
    expect(await look()).to.deep.equal({ status: "CANCELLED", stock: 5 });
    expect(await service.stop()).to.include({ code: 0, stderr: "" });
  });

  it("greets with commands that work when they are copied, by reflection and without it", async () => {
    for (const REFLECTION of ["on", "off"]) {
      const service = await runService({ ...(await settings()), REFLECTION });
      for (const command of commandsOf(service)) expect(await tryCommand(command), command).to.match(/^\s*\{/);
      await service.stop();
    }
  });

  it("greets with commands that work over TLS", async () => {
    const folder = await newFolder();
    const { cert, key } = selfSignedCertificate();
    await writeFile(join(folder, "cert.pem"), cert);
    await writeFile(join(folder, "key.pem"), key);
    const tls = { TLS_CERT: join(folder, "cert.pem"), TLS_KEY: join(folder, "key.pem") };
    const service = await runService({ ...(await settings()), ...tls });
    expect(service.url).to.match(/^https:/);
    for (const command of commandsOf(service)) expect(await tryCommand(command), command).to.match(/^\s*\{/);
  });

  it("greets with an address that can be reached where HOST is not the usual one", async () => {
    const service = await runService({ ...(await settings()), HOST: "127.0.0.2" });
    expect(service.url).to.match(/^http:\/\/127\.0\.0\.2:\d+$/);
    expect(commandsOf(service).join("\n")).to.not.contain("localhost").and.not.contain("127.0.0.1");
    expect((await call(service, "order.v1.CatalogService/ListProducts")).status).to.equal(200);
  });

  it("serves on when the reader of its output has gone", async () => {
    const service = await runService(await settings());
    service.child.stdout?.destroy();
    service.child.stderr?.destroy();
    for (let i = 0; i < 20; i++)
      expect((await call(service, "order.v1.CatalogService/ListProducts")).status).to.equal(200);
    service.child.kill("SIGTERM");
    const [code] = (await once(service.child, "exit")) as [number];
    expect(code).to.equal(0);
  });

  it("says which port is taken", async () => {
    const other = await listenOn(() => {});
    const { code, stderr } = await startService({ ...(await settings()), PORT: String(other.port) }).ended;
    other.close();
    expect(code).to.equal(1);
    expect(stderr).to.match(new RegExp(`^Port ${other.port} \\(PORT\\) is in use on 127\\.0\\.0\\.1\\. [^\\n]+\\n$`));
  });

  for (const [what, behave] of [
    ["never answers", () => {}],
    ["speaks another protocol", (socket: net.Socket) => socket.end("220 mail.example ESMTP\r\n")],
    ["answers without end", answerWithoutEnd],
  ] as const) {
    it(`says that the port of the sandbox is taken by something that ${what}`, async () => {
      const other = await listenOn(behave);
      const { code, stderr } = await startService({ ...(await settings()), SANDBOX_PORT: String(other.port) }).ended;
      other.close();
      expect(code).to.equal(1);
      expect(stderr).to.match(new RegExp(`^Port ${other.port} is taken: [^\\n]*SANDBOX_PORT[^\\n]*\\n$`));
    });
  }

  it("uses the sandbox of another instance, and leaves it running", async () => {
    const port = String(await freePort());
    const first = await runService({ ...(await settings()), SANDBOX_PORT: port });
    const second = await runService({ ...(await settings()), SANDBOX_PORT: port });
    expect(await second.stop()).to.include({ code: 0, stderr: "" });
    expect((await fetch(`http://127.0.0.1:${port}/charges`)).status).to.equal(200);
    expect(await first.stop()).to.include({ code: 0, stderr: "" });
  });

  it("refuses a database that a newer version has migrated", async () => {
    await sql(database, "INSERT INTO schema_migrations (name, checksum) VALUES ('9999_future.sql', 'x')");
    await expectRefusal(await settings(), /^DATABASE_URL: .*migrated by a newer version \(it has 9999_future\.sql\)/);
  });

  it("refuses a PostgreSQL older than 15", async () => {
    // What the server says of itself is covered by functions of the database's own.
    await sql(
      database,
      `CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql
         AS $$ SELECT CASE $1 WHEN 'server_version' THEN '14.11' ELSE '140011' END $$`,
    );
    const name = new URL(database.url).pathname.slice(1);
    await administer(database.url, `ALTER DATABASE ${name} SET search_path = public, pg_catalog`);
    await expectRefusal(await settings(), /^DATABASE_URL: this is PostgreSQL 14\.11, and Tradepost needs 15 or newer/);
  });

  it("says which database is missing, and which user or password is wrong", async () => {
    await expectRefusal(
      { ...(await settings()), DATABASE_URL: databaseUrl(database.url, "nowhere") },
      /^DATABASE_URL: .*has no database "nowhere"/,
    );
    const wrong = new URL(database.url);
    wrong.password = "hunter2-hunter2";
    const sentence = await expectRefusal(
      { ...(await settings()), DATABASE_URL: wrong.href },
      /^DATABASE_URL: .*password of user "/,
    );
    expect(sentence).to.not.contain("hunter2");
  });

  for (const [what, behave] of [
    ["never answers", () => {}],
    ["hangs up at once", (socket: net.Socket) => socket.destroy()],
    ["speaks another protocol", (socket: net.Socket) => socket.end("220 mail.example ESMTP\r\n")],
  ] as const) {
    it(`gives up on a database server that ${what}`, async () => {
      const other = await listenOn(behave);
      const url = `postgres://shop:hunter2-hunter2@127.0.0.1:${other.port}/shop`;
      const sentence = await expectRefusal(
        { ...(await settings()), DATABASE_URL: url },
        new RegExp(`^DATABASE_URL: PostgreSQL at 127\\.0\\.0\\.1:${other.port} `),
      );
      other.close();
      expect(sentence).to.not.contain("hunter2");
    });
  }

  it("says where nothing listens, and which host does not exist", async () => {
    const refused = { ...(await settings()), DATABASE_URL: "postgres://shop:hunter2-hunter2@127.0.0.1:1/shop" };
    await expectRefusal(refused, /^DATABASE_URL: nothing listens at 127\.0\.0\.1:1: /);
    const unknown = { ...(await settings()), DATABASE_URL: "postgres://shop:hunter2-hunter2@db.invalid/shop" };
    await expectRefusal(unknown, /^DATABASE_URL: the host of db\.invalid:5432 cannot be found/);
  });

  async function expectRefusal(given: Record<string, string>, pattern: RegExp): Promise<string> {
    const { code, stdout, stderr } = await startService(given).ended;
    expect(stderr).to.match(pattern);
    expect(stderr, "one line").to.match(/^[^\n]+\n$/);
    expect(code).to.equal(1);
    expect(stdout + stderr).to.not.contain("hunter2");
    return stderr;
  }
});

describe("the service with settings that are wrong", function () {
  this.timeout(120_000);
  const { startService, newFolder } = usePrograms();

  it("names every one of them, and its folder stays untouched", async () => {
    const DATA_DIR = await newFolder();
    const wrong = {
      DATA_DIR,
      PORT: "eighty",
      LOG_LEVEL: "loud",
      DATABASE_URL: "mysql://u:hunter2-hunter2@h/d",
      TLS_CERT: "/cert.pem",
    };
    const { code, stdout, stderr } = await startService(wrong).ended;
    expect(code).to.equal(1);
    expect(stdout).to.equal("");
    expect(stderr.trimEnd().split("\n")).to.have.length(4);
    for (const name of ["PORT", "LOG_LEVEL", "DATABASE_URL", "TLS_CERT"])
      expect(stderr).to.match(new RegExp(`^${name}\\b.*: `, "m"));
    expect(stderr).to.not.contain("hunter2");
    expect(await readdir(DATA_DIR)).to.deep.equal([]);
  });

  it("names DATA_DIR when nothing can be written there", async () => {
    const file = join(await newFolder(), "file");
    await writeFile(file, "");
    for (const DATA_DIR of [file, join(file, "below")]) {
      const { code, stderr } = await startService({ DATA_DIR }).ended;
      expect(stderr).to.match(/^DATA_DIR: [^\n]+ cannot be used: [^\n]+\n$/);
      expect(code).to.equal(1);
    }
  });
});

/** Those of the processes that are still there, under their own command and not another's that got the pid. */
async function alive(tree: readonly RunningProcess[]): Promise<string[]> {
  const now = await listProcesses();
  return tree
    .filter((one) => now.some(({ pid, command }) => pid === one.pid && command === one.command))
    .map(({ command }) => command);
}

/** Data of PostgreSQL that are being made below `dir`. */
async function unfinishedDataIn(dir: string): Promise<string[]> {
  const names = await readdir(join(dir, "postgres")).catch(() => []);
  return names.filter((name) => name.startsWith("initdb-"));
}

interface Answer {
  readonly status: number;
  readonly body: Record<string, unknown>;
}

async function call({ url }: ServiceProcess, rpc: string, request: object = {}, token?: string): Promise<Answer> {
  const headers = {
    "content-type": "application/json",
    ...(token !== undefined && { authorization: `Bearer ${token}` }),
  };
  const init = { method: "POST", headers, body: JSON.stringify(request) };
  const response = await fetch(`${url}/tradepost.${rpc}`, init);
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

async function logIn(service: ServiceProcess, email: string, password: string): Promise<void> {
  const { status, body } = await call(service, "user.v1.AuthService/Login", { email, password });
  expect(status, `login of ${email}: ${JSON.stringify(body)}`).to.equal(200);
}

async function register(service: ServiceProcess): Promise<{ email: string; password: string }> {
  const account = { email: `casey-${Date.now()}@tradepost.example`, password: "a password of some length" };
  const person = { firstName: "Casey", lastName: "Jones", dateOfBirth: { year: 1990, month: 1, day: 2 } };
  const { status, body } = await call(service, "user.v1.AuthService/Register", { ...account, ...person });
  expect(status, JSON.stringify(body)).to.equal(200);
  return account;
}

/** Sends all of a call but its last byte, so that it is under way until `finish`. */
async function beginCall({ url }: ServiceProcess): Promise<{ finish(): Promise<string>; abandon(): void }> {
  const { hostname, port, host } = new URL(url);
  const socket = net.connect(Number(port), hostname);
  socket.setEncoding("utf8").on("error", () => {});
  let answer = "";
  socket.on("data", (text: string) => {
    answer += text;
  });
  await once(socket, "connect");
  const head = [
    "POST /tradepost.order.v1.CatalogService/ListProducts HTTP/1.1",
    `host: ${host}`,
    "content-type: application/json",
    "content-length: 2",
    "expect: 100-continue",
  ];
  socket.write(`${head.join("\r\n")}\r\n\r\n`);
  // The interim answer proves that the request has reached the service.
  await until("the service takes the request", () => (answer.includes("100 Continue") ? true : undefined));
  answer = "";
  socket.write("{");
  return {
    async finish() {
      socket.write("}");
      await until("the service answers", () => (answer.includes("\r\n\r\n") ? true : undefined));
      socket.destroy();
      return answer;
    },
    abandon: () => socket.destroy(),
  };
}

async function endChannel(program: Program): Promise<Ended> {
  program.child.disconnect();
  return program.ended;
}

/** The commands of a greeting whose programs this machine has. */
function commandsOf({ stdout }: Program): string[] {
  const [, block = ""] = /Try it:\n((?: {2}.*\n)+)/.exec(stdout) ?? [];
  const commands = block
    .trim()
    .split("\n")
    .map((line) => line.trim());
  expect(commands.map((command) => command.split(" ")[0])).to.deep.equal(["grpcurl", "npx", "curl"]);
  return commands;
}

/** Runs a command in the project's folder as a shell would. A program that is not there counts as answering. */
async function tryCommand(command: string): Promise<string> {
  const offline = command.replace(/^npx /, "");
  const [program = ""] = offline.split(" ");
  const options = {
    cwd: join(import.meta.dirname, ".."),
    timeout: 60_000,
    env: { ...process.env, PATH: `${BIN}:${process.env["PATH"]}` },
  };
  const there = await promisify(execFile)("sh", ["-c", `command -v ${program}`], options).catch(() => undefined);
  if (there === undefined) return "{}";
  return (await promisify(execFile)("sh", ["-c", offline], options)).stdout;
}

interface OtherServer {
  readonly port: number;
  close(): void;
}

async function listenOn(behave: (socket: net.Socket) => void): Promise<OtherServer> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    behave(socket);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    close() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

function answerWithoutEnd(socket: net.Socket): void {
  socket.write("HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\n\r\n{");
  const timer = setInterval(() => socket.write(" ".repeat(16 * 1024)), 5);
  socket.on("close", () => clearInterval(timer));
}
