import { execFile } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { request as requestHttps } from "node:https";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import tls from "node:tls";
import {
  type DescMethod,
  type DescMethodUnary,
  fromBinary,
  fromJson,
  type JsonObject,
  type JsonValue,
  toJson,
} from "@bufbuild/protobuf";
import { base64Decode } from "@bufbuild/protobuf/wire";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, createGrpcWebTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { type ChannelCredentials, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { expect } from "chai";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "../gen/google/rpc/status_pb.js";
import { createGrpcJsClient } from "../src/client/grpc-js.ts";
import { services } from "../src/server/routes.ts";
import { selfSignedCertificate } from "./server/self-signed.ts";
import { createDatabase, type TestDatabase } from "./support/database.ts";
import { usePrograms } from "./support/process.ts";

const ROOT = join(import.meta.dirname, "..");
const BUF = join(ROOT, "node_modules/.bin/buf");
const CALL_TIMEOUT_MS = 30_000;
const PASSWORD = "a password of some length";

/** A refused call, as far as every protocol carries it. */
interface Refused {
  readonly code: string;
  readonly message: string;
  /** Of google.rpc.ErrorInfo. */
  readonly reason: string;
}

/** Calls one RPC, such as "order.v1.OrderService/GetOrder", with a message in Protobuf's JSON form. */
type Caller = (
  rpc: string,
  request: JsonObject,
  token?: string,
) => Promise<{ answer: JsonObject } | { refused: Refused }>;

interface Shop {
  readonly url: string;
  /** The certificate to trust; absent in cleartext. */
  readonly ca: string | undefined;
}

// ---- The independent clients

/** @grpc/grpc-js, which shares no code with the server. */
function grpcJs({ url, ca }: Shop): { caller: Caller; close(): void } {
  const trust: ChannelCredentials =
    ca === undefined ? credentials.createInsecure() : credentials.createSsl(Buffer.from(ca));
  const clients = services.map((service) => ({
    service,
    client: createGrpcJsClient(service, new URL(url).host, trust),
  }));
  const close = (): void => {
    for (const { client } of clients) client.close();
  };
  const caller: Caller = (rpc, request, token) => {
    const { service, client } = found(
      clients.find((one) => rpc.startsWith(one.service.typeName.replace("tradepost.", ""))),
    );
    const method = methodOf(rpc);
    const metadata = new Metadata();
    if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
    const stub = client as unknown as Record<string, (...args: unknown[]) => void>;
    expect(service.methods).to.include(method);
    return new Promise((resolve, reject) => {
      const done = (error: ServiceError | null, message: never): void => {
        if (error === null) resolve({ answer: toJson(method.output, message) as JsonObject });
        else if (error.metadata.get("grpc-status-details-bin").length === 0) reject(error);
        else resolve({ refused: refusedByStatus(error) });
      };
      const deadline = Date.now() + CALL_TIMEOUT_MS;
      stub[method.localName]?.call(client, fromJson(method.input, request), metadata, { deadline }, done);
    });
  };
  return { caller, close };
}

/** The trailers carry google.rpc.Status beside the plain code and message. */
function refusedByStatus({ code, metadata }: ServiceError): Refused {
  const [encoded] = metadata.get("grpc-status-details-bin");
  const status = fromBinary(StatusSchema, encoded as Buffer);
  expect(status.code, "the code in the details and the one of the trailers").to.equal(code);
  const info = found(status.details.find(({ typeUrl }) => typeUrl.endsWith("/google.rpc.ErrorInfo")));
  const { reason } = fromBinary(ErrorInfoSchema, info.value);
  return { code: snake(Code[status.code]), message: status.message, reason };
}

/** `buf curl`, which learns the schema by reflection. */
function bufCurl({ url }: Shop, protocol: "connect" | "grpc" | "grpcweb"): Caller {
  return async (rpc, request, token) => {
    const header = token === undefined ? [] : ["--header", `authorization: Bearer ${token}`];
    const args = [
      "curl",
      "--http2-prior-knowledge",
      "--protocol",
      protocol,
      ...header,
      "--data",
      JSON.stringify(request),
      `${url}/tradepost.${rpc}`,
    ];
    const { failed, stdout, stderr } = await new Promise<{ failed: boolean; stdout: string; stderr: string }>(
      (resolve) => {
        execFile(BUF, args, { cwd: ROOT, timeout: CALL_TIMEOUT_MS }, (error, out, err) =>
          resolve({ failed: error !== null, stdout: out, stderr: err }),
        );
      },
    );
    if (!failed) return { answer: JSON.parse(stdout) as JsonObject };
    expect(stderr, "buf prints the refusal as JSON").to.match(/^\s*\{/);
    return { refused: refusedByJson(JSON.parse(stderr) as ErrorJson) };
  };
}

type Send = (url: string, headers: Record<string, string>, body: string) => Promise<{ status: number; body: string }>;

/** Connect's JSON form, as any HTTP client speaks it. */
function connectJson({ url }: Shop, send: Send): Caller {
  return async (rpc, request, token) => {
    const authorization = token === undefined ? {} : { authorization: `Bearer ${token}` };
    const headers = { "content-type": "application/json", ...authorization };
    const { status, body } = await send(`${url}/tradepost.${rpc}`, headers, JSON.stringify(request));
    const json = JSON.parse(body) as JsonObject;
    return status === 200 ? { answer: json } : { refused: refusedByJson(json as unknown as ErrorJson) };
  };
}

const byFetch: Send = async (url, headers, body) => {
  const response = await fetch(url, { method: "POST", headers, body, signal: AbortSignal.timeout(CALL_TIMEOUT_MS) });
  return { status: response.status, body: await response.text() };
};

/** HTTP/1.1 over TLS, trusting one certificate. */
function byHttps(ca: string): Send {
  return async (url, headers, body) =>
    new Promise((resolve, reject) => {
      const request = requestHttps(url, { method: "POST", headers, ca, timeout: CALL_TIMEOUT_MS }, async (response) => {
        resolve({ status: response.statusCode ?? 0, body: await text(response) });
      });
      request.once("error", reject).once("timeout", () => request.destroy(new Error("no answer in time")));
      request.end(body);
    });
}

interface ErrorJson {
  readonly code: string;
  readonly message: string;
  readonly details?: readonly { readonly type: string; readonly value: string }[];
}

function refusedByJson({ code, message, details = [] }: ErrorJson): Refused {
  const info = found(details.find(({ type }) => type.endsWith("google.rpc.ErrorInfo")));
  return { code, message, reason: fromBinary(ErrorInfoSchema, base64Decode(info.value)).reason };
}

/** A transport of connect-node. */
function connectNode(transport: Transport): Caller {
  return async (rpc, request, token) => {
    const method = methodOf(rpc);
    const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
    const message = fromJson(method.input, request);
    try {
      const response = await transport.unary(method, undefined, CALL_TIMEOUT_MS, headers, message);
      return { answer: toJson(method.output, response.message) as JsonObject };
    } catch (error) {
      const refusal = ConnectError.from(error);
      const { reason } = found(refusal.findDetails(ErrorInfoSchema)[0]);
      return { refused: { code: snake(Code[refusal.code]), message: refusal.rawMessage, reason } };
    }
  };
}

function methodOf(rpc: string): DescMethodUnary {
  const [service, name] = `tradepost.${rpc}`.split("/");
  const { methods } = found(services.find(({ typeName }) => typeName === service));
  return found((methods as readonly DescMethod[]).find((method) => method.name === name)) as DescMethodUnary;
}

function snake(name = ""): string {
  return name.replace(/(?<=[a-z])(?=[A-Z])/g, "_").toLowerCase();
}

function found<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("the answer lacks what it promises");
  return value;
}

// ---- The way from nothing to a paid order

/** The product's ids, put up for sale by an admin. */
async function stockUp(call: Caller, email: string): Promise<{ mug: string; tote: string }> {
  const { accessToken } = await ok(call("user.v1.AuthService/Login", { email, password: PASSWORD }));
  const put = async (name: string, units: string, nanos: number) => {
    const product = { name, price: { currencyCode: "USD", units, nanos }, stockQuantity: 100, active: true };
    return (await ok(call("order.v1.CatalogService/CreateProduct", { product }, String(accessToken))))[
      "product"
    ] as JsonObject;
  };
  const [mug, tote] = [await put("Mug", "10", 990_000_000), await put("Tote", "25", 500_000_000)];
  return { mug: String(mug["id"]), tote: String(tote["id"]) };
}

async function ok(outcome: ReturnType<Caller>): Promise<JsonObject> {
  const settled = await outcome;
  if ("answer" in settled) return settled.answer;
  throw new Error(`the call was refused: ${JSON.stringify(settled.refused)}`);
}

async function refused(outcome: ReturnType<Caller>): Promise<Refused> {
  const settled = await outcome;
  if ("refused" in settled) return settled.refused;
  throw new Error(`the call was not refused but answered: ${JSON.stringify(settled.answer)}`);
}

/** Everything a customer does, from registration to a paid order, and two things that are refused. */
async function shopAt(call: Caller, { mug, tote }: { mug: string; tote: string }): Promise<void> {
  const email = `${randomUUID()}@tradepost.example`;
  const person = { firstName: "Casey", lastName: "Jones", dateOfBirth: { year: 1990, month: 1, day: 2 } };
  await ok(call("user.v1.AuthService/Register", { email, password: PASSWORD, ...person }));
  const token = String((await ok(call("user.v1.AuthService/Login", { email, password: PASSWORD })))["accessToken"]);

  const { products } = await ok(call("order.v1.CatalogService/ListProducts", {}));
  expect((products as JsonObject[]).map(({ id }) => id)).to.include.members([mug, tote]);

  const home = { street: "1 Main St", city: "Anytown", state: "CA", postalCode: "12345", country: "US" };
  const address = (await ok(call("user.v1.UserService/CreateAddress", { address: home }, token)))[
    "address"
  ] as JsonObject;
  const items = [
    { productId: mug, quantity: 2 },
    { productId: tote, quantity: 1 },
  ];
  const request = { requestId: randomUUID(), items, shippingAddressId: address["id"] as JsonValue, awaitPayment: true };
  const order = (await ok(call("order.v1.OrderService/CreateOrder", request, token)))["order"] as JsonObject;
  expect(order).to.deep.include({ status: "ORDER_STATUS_PENDING", paymentState: "ORDER_PAYMENT_STATE_UNPAID" });
  expect(order["totalAmount"]).to.deep.equal({ currencyCode: "USD", units: "47", nanos: 480_000_000 });
  const again = (await ok(call("order.v1.OrderService/CreateOrder", request, token)))["order"] as JsonObject;
  expect(again["id"]).to.equal(order["id"]);

  const payment = await pay(call, order, token);
  expect(payment["status"]).to.equal("PAYMENT_STATUS_COMPLETED");
  const paid = (await ok(call("order.v1.OrderService/GetOrder", { orderId: order["id"] as JsonValue }, token)))[
    "order"
  ];
  expect(paid).to.deep.include({ status: "ORDER_STATUS_CONFIRMED", paymentState: "ORDER_PAYMENT_STATE_PAID" });
  const read = await ok(call("payment.v1.PaymentService/GetPayment", { paymentId: payment["id"] as JsonValue }, token));
  expect(read["payment"]).to.deep.include({ id: payment["id"], status: "PAYMENT_STATUS_COMPLETED" });

  const tooMany = {
    requestId: randomUUID(),
    items: [{ productId: mug, quantity: 1000 }],
    shippingAddressId: address["id"] as JsonValue,
  };
  const outOfStock = await refused(call("order.v1.OrderService/CreateOrder", tooMany, token));
  expect(outOfStock).to.deep.include({ code: "failed_precondition", reason: "INSUFFICIENT_STOCK" });
  expect(outOfStock.message).to.match(/^Insufficient stock for product Mug\. Available: \d+, Requested: 1000$/);
  const anonymous = await refused(call("user.v1.UserService/GetProfile", {}));
  expect(anonymous).to.deep.include({ code: "unauthenticated", reason: "TOKEN_MISSING" });
}

async function pay(call: Caller, order: JsonObject, token: string): Promise<JsonObject> {
  const { id, totalAmount } = order as Record<string, JsonValue>;
  const request = {
    requestId: randomUUID(),
    orderId: found(id),
    amount: found(totalAmount),
    paymentMethod: { card: { token: "tok_visa" } },
  };
  return (await ok(call("payment.v1.PaymentService/ProcessPayment", request, token)))["payment"] as JsonObject;
}

describe("from registration to a paid order", function () {
  this.timeout(120_000);
  const programs = usePrograms({ per: "suite" });
  const admin = "root@tradepost.example";
  let database: TestDatabase;
  let settings: Record<string, string>;
  let plain: Shop;
  let goods: { mug: string; tote: string };

  before(async () => {
    database = await createDatabase();
    settings = { DATABASE_URL: database.url, LOG_LEVEL: "warn", SECRET_KEY: randomBytes(32).toString("base64") };
    const made = await programs.start("src/commands/create-admin.ts", {
      args: ["--email", admin],
      settings,
      input: PASSWORD,
    }).ended;
    expect(made.code, made.stderr).to.equal(0);
    const { url } = await programs.runService({ ...settings, DATA_DIR: await programs.newFolder() });
    plain = { url, ca: undefined };
    goods = await stockUp(connectJson(plain, byFetch), admin);
  });
  after(() => database.drop());

  it("works for @grpc/grpc-js, which gets the details of refusals in the trailers", async () => {
    const { caller, close } = grpcJs(plain);
    await shopAt(caller, goods);
    close();
  });

  for (const protocol of ["grpc", "grpcweb"] as const) {
    it(`works for buf curl by reflection, over ${protocol}`, () => shopAt(bufCurl(plain, protocol), goods));
  }

  it("works for fetch with Connect's JSON", () => shopAt(connectJson(plain, byFetch), goods));

  it("works for gRPC-Web of connect-node over HTTP/1.1", () =>
    shopAt(connectNode(createGrpcWebTransport({ baseUrl: plain.url, httpVersion: "1.1" })), goods));

  describe("on a port that speaks TLS", () => {
    let secure: Shop;

    before(async () => {
      const { cert, key } = selfSignedCertificate();
      const folder = await programs.newFolder();
      await writeFile(join(folder, "cert.pem"), cert);
      await writeFile(join(folder, "key.pem"), key, { mode: 0o600 });
      const files = { TLS_CERT: join(folder, "cert.pem"), TLS_KEY: join(folder, "key.pem") };
      const { url } = await programs.runService({ ...settings, ...files, DATA_DIR: folder });
      // A name in TLS may not be an IP address.
      secure = { url: url.replace("127.0.0.1", "localhost"), ca: cert };
    });

    for (const [offer, chosen] of [
      [["h2", "http/1.1"], "h2"],
      [["http/1.1"], "http/1.1"],
    ] as const) {
      it(`chooses ${chosen} for a client that offers ${offer.join(" and ")}`, async () => {
        const { hostname, port } = new URL(secure.url);
        const socket = tls.connect({
          host: hostname,
          port: Number(port),
          ca: found(secure.ca),
          ALPNProtocols: [...offer],
        });
        await new Promise((resolve, reject) => socket.once("secureConnect", resolve).once("error", reject));
        expect(socket.alpnProtocol).to.equal(chosen);
        socket.destroy();
      });
    }

    it("works for @grpc/grpc-js", async () => {
      const { caller, close } = grpcJs(secure);
      await shopAt(caller, goods);
      close();
    });

    it("works for gRPC of connect-node over HTTP/2", async () => {
      const sessionManager = new Http2SessionManager(secure.url, {}, { ca: found(secure.ca) });
      await shopAt(connectNode(createGrpcTransport({ baseUrl: secure.url, sessionManager })), goods);
      sessionManager.abort();
    });

    it("works for Connect's JSON over HTTP/1.1", () => shopAt(connectJson(secure, byHttps(found(secure.ca))), goods));
  });
});
