import { execFile } from "node:child_process";
import { cpSync, existsSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { expect } from "chai";
import { newCustomer, PASSWORD } from "../support/factories.ts";
import { useServer } from "../support/server.ts";

const run = promisify(execFile);
const root = path.resolve(import.meta.dirname, "../..");
const commandTimeoutMs = 60_000;
const hookTimeoutMs = 120_000;

const javaScriptProgram = `
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { createTradepost, newRequestId, reasonOf } from "tradepost/client";
import { createClients } from "tradepost/client/core";
import { MoneySchema } from "tradepost/google/type/money_pb";
import { CreateOrderRequestSchema } from "tradepost/order/v1/order_service_pb";
import { RegisterRequestSchema } from "tradepost/user/v1/auth_service_pb";

const request = create(CreateOrderRequestSchema, { requestId: newRequestId(), items: [{ productId: "p", quantity: 2 }] });
const copy = fromBinary(CreateOrderRequestSchema, toBinary(CreateOrderRequestSchema, request));
const tradepost = createTradepost({ baseUrl: "http://127.0.0.1:9", protocol: "grpc", maxRetries: 0 });
const failure = await tradepost.catalog.listProducts({}).catch((error) => error);
tradepost.close();
console.log(JSON.stringify({
  quantity: copy.items[0].quantity,
  requestIdLength: copy.requestId.length,
  units: String(create(MoneySchema, { currencyCode: "USD", units: 47n }).units),
  typeName: RegisterRequestSchema.typeName,
  code: failure.code,
  reason: reasonOf(failure) ?? null,
  core: typeof createClients,
}));
`;

const callingProgram = `
import { createTradepost, reasonOf } from "tradepost/client";
import { Role } from "tradepost/user/v1/user_pb";

const [baseUrl, email, password] = process.argv.slice(2);
for (const way of [{}, { httpVersion: "2" }, { protocol: "grpc" }, { protocol: "grpc-web" }]) {
  const tradepost = createTradepost({ baseUrl, login: { email, password }, ...way });
  const { user } = await tradepost.users.getProfile({});
  const failure = await tradepost.orders.getOrder({ orderId: "none" }).catch((error) => error);
  console.log(user.email === email, Role[user.role], reasonOf(failure));
  tradepost.close();
}
`;

const commonJsProgram = `
const { createTradepost } = require("tradepost/client");
const { OrderStatus } = require("tradepost/order/v1/order_pb");
console.log(typeof createTradepost, OrderStatus.CONFIRMED);
`;

const typeScriptProgram = `
import { create } from "@bufbuild/protobuf";
import { createTradepost, errorInfo, type Tradepost, violationsOf } from "tradepost/client";
import { type CreateOrderRequest, CreateOrderRequestSchema } from "tradepost/order/v1/order_service_pb";
import { type Order, OrderStatus } from "tradepost/order/v1/order_pb";

const tradepost: Tradepost = createTradepost({
  baseUrl: "http://localhost:8080",
  login: { email: "ada@tradepost.example", password: "secret" },
});
const request: CreateOrderRequest = create(CreateOrderRequestSchema, { items: [{ productId: "p", quantity: 2 }] });
export async function order(): Promise<Order | undefined> {
  try {
    const { order } = await tradepost.orders.createOrder(request, { timeoutMs: 5_000 });
    return order?.status === OrderStatus.CONFIRMED ? order : undefined;
  } catch (error) {
    const field: string | undefined = violationsOf(error)[0]?.field;
    throw new Error(errorInfo(error)?.metadata["available"] ?? field);
  }
}
// @ts-expect-error quantities are numbers
create(CreateOrderRequestSchema, { items: [{ productId: "p", quantity: "2" }] });
// @ts-expect-error there is no such RPC
void tradepost.orders.eatOrder;
`;

const grpcJsProgram = `
import { credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { reasonOf } from "tradepost/client/core";
import { connectErrorFrom, createGrpcJsClient } from "tradepost/client/grpc-js";
import { CatalogService } from "tradepost/order/v1/catalog_service_pb";

const catalog = createGrpcJsClient(CatalogService, "localhost:8080", credentials.createInsecure());
catalog.getProduct({ productId: "p" }, new Metadata(), (error: ServiceError | null, response) => {
  const name: string | undefined = response?.product?.name;
  console.log(name, error === null ? undefined : reasonOf(connectErrorFrom(error)));
});
// @ts-expect-error there is no such field
catalog.getProduct({ id: "p" }, () => {});
`;

interface Manifest {
  readonly dependencies?: Record<string, string>;
  readonly peerDependencies?: Record<string, string>;
  readonly exports: Record<string, unknown>;
}

/** Runs a command and gives its standard output; a failure shows all that it printed. */
async function output(cwd: string, command: string, ...args: string[]): Promise<string> {
  try {
    return (await run(command, args, { cwd, timeout: commandTimeoutMs, maxBuffer: 4_000_000 })).stdout;
  } catch (error) {
    const { stdout = "", stderr = "" } = error as { stdout?: string; stderr?: string };
    throw new Error(`${command} ${args.join(" ")} failed:\n${stdout}${stderr}`);
  }
}

const tsc = (project: string, config: string) =>
  output(project, process.execPath, path.join(root, "node_modules/typescript/bin/tsc"), "--noEmit", "-p", config);

const readManifest = (folder: string) =>
  JSON.parse(readFileSync(path.join(folder, "package.json"), "utf8")) as Manifest;

/** Copies installed packages with all that they depend on, as npm would install them for the project. */
function provide(project: string, names: readonly string[], provided = new Set<string>()): void {
  for (const name of names) {
    if (provided.has(name)) continue;
    provided.add(name);
    const source = path.join(root, "node_modules", name);
    cpSync(source, path.join(project, "node_modules", name), { recursive: true });
    const { dependencies = {}, peerDependencies = {} } = readManifest(source);
    const all = Object.keys({ ...dependencies, ...peerDependencies });
    provide(
      project,
      all.filter((dependency) => existsSync(path.join(root, "node_modules", dependency))),
      provided,
    );
  }
}

/** A project elsewhere that has the packed package and what its manifest declares, and nothing else of this one. */
function makeProject(folder: string, extraPackages: readonly string[] = []): string {
  const project = path.join(folder, extraPackages.length === 0 ? "plain" : "grpc-js");
  mkdirSync(path.join(project, "node_modules"), { recursive: true });
  cpSync(path.join(folder, "package"), path.join(project, "node_modules/tradepost"), { recursive: true });
  const { dependencies = {} } = readManifest(path.join(folder, "package"));
  provide(project, [...Object.keys(dependencies), ...extraPackages]);
  writeFileSync(
    path.join(project, "package.json"),
    JSON.stringify({ name: "consumer", type: "module", private: true }),
  );
  return project;
}

function writeTsConfig(
  project: string,
  name: string,
  module: string,
  moduleResolution: string,
  types: string[] = [],
): void {
  // Libraries are checked too: the declarations of the package have to hold on their own. Those of Connect name types
  // of the DOM, which is what a project gets that chooses no `lib`.
  const compilerOptions = {
    module,
    moduleResolution,
    types,
    strict: true,
    skipLibCheck: false,
    target: "es2023",
  };
  writeFileSync(path.join(project, name), JSON.stringify({ compilerOptions, files: ["program.ts"] }));
}

describe("the published package", function () {
  this.timeout(hookTimeoutMs);
  const server = useServer();
  let folder: string;
  let project: string;
  let packed: string[];

  // The registry is left out: what npm would fetch from there stands in node_modules. All else is as for any user, and
  // an import of something that the manifest does not declare fails, since nothing else can be reached from there.
  before(async () => {
    folder = mkdtempSync(path.join(tmpdir(), "tradepost-package-"));
    const [report] = JSON.parse(
      await output(root, "npm", "pack", "--json", "--silent", "--pack-destination", folder),
    ) as [{ filename: string; files: { path: string }[] }];
    packed = report.files.map((file) => file.path);
    await output(folder, "tar", "-xzf", report.filename);
    project = makeProject(folder);
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  it("contains the client, the generated code and the contract, and nothing else", () => {
    const allowed =
      /^(package\.json|README\.md|LICENSE|CHANGELOG\.md|dist\/client\/[\w-]+\.(js|d\.ts)|gen\/.+_pb\.(js|d\.ts)|proto\/.+\.(proto|md))$/;
    expect(packed.filter((file) => !allowed.test(file))).to.deep.equal([]);
    const generated = globSync("gen/**/*_pb.{js,d.ts}", { cwd: root });
    const client = ["index", "core", "grpc-js", "session", "errors", "interceptors"].map(
      (name) => `dist/client/${name}`,
    );
    const expected = [...generated, ...client.flatMap((name) => [`${name}.js`, `${name}.d.ts`]), "package.json"];
    expect(packed).to.include.members(expected);
  });

  it("gives a JavaScript project clients, messages and readable errors", async () => {
    writeFileSync(path.join(project, "program.js"), javaScriptProgram);
    const result = JSON.parse(await output(project, process.execPath, "program.js"));
    expect(result).to.deep.equal({
      quantity: 2,
      requestIdLength: 36,
      units: "47",
      typeName: "tradepost.user.v1.RegisterRequest",
      code: 14,
      reason: null,
      core: "function",
    });
  });

  it("calls the real server over every protocol, logging in by itself", async () => {
    writeFileSync(path.join(project, "calling.js"), callingProgram);
    const { email } = await newCustomer(server);
    const lines = await output(project, process.execPath, "calling.js", server.url, email, PASSWORD);
    expect(lines.trimEnd().split("\n")).to.deep.equal(Array(4).fill("true USER FIELD_INVALID"));
  });

  it("can be required from CommonJS", async () => {
    writeFileSync(path.join(project, "program.cjs"), commonJsProgram);
    expect(await output(project, process.execPath, "program.cjs")).to.equal("function 2\n");
  });

  it("lets every generated file be imported by its Protobuf path", async () => {
    const specifiers = globSync("gen/**/*_pb.js", { cwd: root })
      .map((file) =>
        file
          .replaceAll(path.sep, "/")
          .replace(/^gen\/(tradepost\/)?/, "tradepost/")
          .replace(/\.js$/, ""),
      )
      .sort();
    const program = `for (const name of ${JSON.stringify(specifiers)}) await import(name); console.log("all");`;
    expect(specifiers).to.include("tradepost/user/v1/auth_service_pb").and.to.include("tradepost/google/type/money_pb");
    expect(await output(project, process.execPath, "--input-type=module", "--eval", program)).to.equal("all\n");
  });

  for (const [module, resolution] of [
    ["nodenext", "nodenext"],
    ["esnext", "bundler"],
  ] as const) {
    it(`type-checks in a strict TypeScript project with moduleResolution ${resolution}`, async () => {
      writeFileSync(path.join(project, "program.ts"), typeScriptProgram);
      writeTsConfig(project, `tsconfig.${resolution}.json`, module, resolution);
      expect(await tsc(project, `tsconfig.${resolution}.json`)).to.equal("");
    });
  }

  it("keeps Node.js out of tradepost/client/core, for browsers", () => {
    const dist = path.join(project, "node_modules/tradepost/dist/client");
    const visited = new Set<string>();
    const foreign: string[] = [];
    const visit = (file: string): void => {
      if (visited.has(file)) return;
      visited.add(file);
      for (const [, specifier = ""] of readFileSync(file, "utf8").matchAll(/\bfrom "([^"]+)"/g)) {
        if (specifier.startsWith(".")) visit(path.resolve(path.dirname(file), specifier));
        else foreign.push(specifier);
      }
    };
    visit(path.join(dist, "core.js"));
    expect(visited.size, "files visited").to.be.greaterThan(5);
    expect(
      [...new Set(foreign)].filter((name) => !/^@bufbuild\/protobuf(\/|$)|^@connectrpc\/connect$/.test(name)),
    ).to.deep.equal([]);
  });

  it("serves projects on @grpc/grpc-js, typed, when they bring that library", async () => {
    const grpcProject = makeProject(folder, ["@grpc/grpc-js", "@types/node"]);
    writeFileSync(path.join(grpcProject, "program.ts"), grpcJsProgram);
    writeTsConfig(grpcProject, "tsconfig.json", "nodenext", "nodenext", ["node"]);
    expect(await tsc(grpcProject, "tsconfig.json")).to.equal("");
  });
});
