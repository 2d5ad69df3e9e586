import { execFile } from "node:child_process";
import http2 from "node:http2";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { promisify } from "node:util";
import { create, createFileRegistry, type DescFile, fromBinary } from "@bufbuild/protobuf";
import { type FileDescriptorProto, FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError, type ConnectRouter, createClient } from "@connectrpc/connect";
import {
  connectNodeAdapter,
  createConnectTransport,
  createGrpcTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";
import { expect } from "chai";
import { file_buf_validate_validate } from "../../gen/buf/validate/validate_pb.js";
import { file_google_rpc_error_details } from "../../gen/google/rpc/error_details_pb.js";
import { file_google_rpc_status } from "../../gen/google/rpc/status_pb.js";
import { file_google_type_money } from "../../gen/google/type/money_pb.js";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { type ServerReflectionResponse, ServerReflection as V1 } from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { ServerReflection as V1Alpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";
import { type ReflectionOptions, reflectionRoutes } from "../../src/server/reflection.ts";

const files: DescFile[] = [
  Health.file,
  file_google_rpc_error_details,
  file_google_rpc_status,
  file_google_type_money,
  file_buf_validate_validate,
];

type Question =
  NonNullable<Parameters<Client<typeof V1>["serverReflectionInfo"]>[0]> extends AsyncIterable<infer R> ? R : never;

describe("reflection", () => {
  const servers: Server[] = [];
  let server: Server;

  before(async () => {
    server = await start({ files });
  });

  after(async () => {
    for (const each of servers) await each.stop();
  });

  async function start(options: ReflectionOptions): Promise<Server> {
    const started = await startServer((router) => {
      reflectionRoutes(options)(router);
      router.service(Health, { check: () => ({ status: 1 }) });
    });
    servers.push(started);
    return started;
  }

  /** Asks on one stream, each question after the answer to the one before. */
  async function ask(questions: Question[], service: typeof V1 | typeof V1Alpha = V1, on = server) {
    const client = createClient(service as typeof V1, on.transport);
    const responses: ServerReflectionResponse[] = [];
    for await (const response of client.serverReflectionInfo(inTurn(questions))) responses.push(response);
    return responses;
  }

  async function askOne(messageRequest: NonNullable<Question["messageRequest"]>, service?: typeof V1 | typeof V1Alpha) {
    const [response] = await ask([{ host: "shop.example", messageRequest }], service);
    return response!;
  }

  for (const [version, service] of [
    ["v1", V1],
    ["v1alpha", V1Alpha],
  ] as const) {
    describe(version, () => {
      it("lists every service of the files it was given, and itself, in order", async () => {
        const response = await askOne({ case: "listServices", value: "" }, service);
        expect(response.messageResponse.case).to.equal("listServicesResponse");
        if (response.messageResponse.case !== "listServicesResponse") return;
        expect(response.messageResponse.value.service.map(({ name }) => name)).to.deep.equal([
          "grpc.health.v1.Health",
          "grpc.reflection.v1.ServerReflection",
          "grpc.reflection.v1alpha.ServerReflection",
        ]);
      });

      it("repeats the host and the question", async () => {
        const response = await askOne({ case: "fileByFilename", value: "no/such.proto" }, service);
        expect(response.validHost).to.equal("shop.example");
        expect(response.originalRequest?.host).to.equal("shop.example");
        expect(response.originalRequest?.messageRequest).to.deep.equal({
          case: "fileByFilename",
          value: "no/such.proto",
        });
      });

      it("answers for an extension by number and repeats that question too", async () => {
        const value = { containingType: "google.protobuf.FieldOptions", extensionNumber: 1159 };
        const response = await askOne({ case: "fileContainingExtension", value }, service);
        expect(namesOf(response)[0]).to.equal("buf/validate/validate.proto");
        expect(response.originalRequest?.messageRequest.value).to.include(value);
      });
    });
  }

  it("sends a file first and then everything that it imports", async () => {
    const response = await askOne({ case: "fileByFilename", value: "buf/validate/validate.proto" });
    expect(namesOf(response)).to.deep.equal([
      "buf/validate/validate.proto",
      "google/protobuf/descriptor.proto",
      "google/protobuf/duration.proto",
      "google/protobuf/timestamp.proto",
    ]);
  });

  it("sends files from which a client can build every type that the server knows", async () => {
    const names = files.map((file) => file.proto.name);
    const responses = await ask(names.map((value) => ({ messageRequest: { case: "fileByFilename", value } })));
    const sent = responses.flatMap(filesOf);
    const registry = createFileRegistry(create(FileDescriptorSetSchema, { file: inImportOrder(sent) }));
    for (const file of files) {
      expect(registry.getFile(file.proto.name)?.proto, file.proto.name).to.deep.equal(file.proto);
    }
  });

  it("does not send an import twice on a stream, but always the file that is asked for", async () => {
    const status = { messageRequest: { case: "fileByFilename", value: "google/rpc/status.proto" } } as const;
    const any = { messageRequest: { case: "fileByFilename", value: "google/protobuf/any.proto" } } as const;
    const answers = (await ask([status, status, any])).map(namesOf);
    expect(answers).to.deep.equal([
      ["google/rpc/status.proto", "google/protobuf/any.proto"],
      ["google/rpc/status.proto"],
      ["google/protobuf/any.proto"],
    ]);
  });

  it("sends a file once that is imported along two ways", async () => {
    const file = [
      { name: "bottom.proto" },
      { name: "left.proto", dependency: ["bottom.proto"] },
      { name: "right.proto", dependency: ["bottom.proto"] },
      { name: "top.proto", dependency: ["left.proto", "right.proto"] },
    ];
    const top = createFileRegistry(create(FileDescriptorSetSchema, { file })).getFile("top.proto")!;
    const diamond = await start({ files: [top] });
    const [response] = await ask([{ messageRequest: { case: "fileByFilename", value: "top.proto" } }], V1, diamond);
    expect(namesOf(response!)).to.deep.equal(["top.proto", "left.proto", "bottom.proto", "right.proto"]);
  });

  it("serves the well-known types that anything imports", async () => {
    for (const value of ["google/protobuf/descriptor.proto", "google/protobuf/timestamp.proto"]) {
      expect(namesOf(await askOne({ case: "fileByFilename", value }))).to.deep.equal([value]);
    }
  });

  const symbols: Record<string, [symbol: string, file: string]> = {
    service: ["grpc.health.v1.Health", "grpc/health/v1/health.proto"],
    method: ["grpc.health.v1.Health.Watch", "grpc/health/v1/health.proto"],
    message: ["google.type.Money", "google/type/money.proto"],
    field: ["google.type.Money.nanos", "google/type/money.proto"],
    "nested message": ["google.rpc.BadRequest.FieldViolation", "google/rpc/error_details.proto"],
    "field of a nested message": ["google.rpc.BadRequest.FieldViolation.reason", "google/rpc/error_details.proto"],
    "map entry": ["google.rpc.ErrorInfo.MetadataEntry", "google/rpc/error_details.proto"],
    oneof: ["buf.validate.FieldRules.type", "buf/validate/validate.proto"],
    enum: ["buf.validate.Ignore", "buf/validate/validate.proto"],
    "enum value": ["buf.validate.IGNORE_ALWAYS", "buf/validate/validate.proto"],
    "nested enum": ["grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"],
    "value of a nested enum": ["grpc.health.v1.HealthCheckResponse.SERVING", "grpc/health/v1/health.proto"],
    extension: ["buf.validate.field", "buf/validate/validate.proto"],
    "well-known type": ["google.protobuf.Any", "google/protobuf/any.proto"],
    "error detail": ["google.rpc.ErrorInfo", "google/rpc/error_details.proto"],
  };
  for (const [kind, [value, file]] of Object.entries(symbols)) {
    it(`finds the file of a ${kind}: ${value}`, async () => {
      expect(namesOf(await askOne({ case: "fileContainingSymbol", value }))[0]).to.equal(file);
    });
  }

  it("lists the numbers of a message's extensions, and none for a message without", async () => {
    for (const [value, numbers] of [
      ["google.protobuf.OneofOptions", [1159]],
      ["google.type.Money", []],
    ] as const) {
      const { messageResponse } = await askOne({ case: "allExtensionNumbersOfType", value });
      expect(messageResponse.case).to.equal("allExtensionNumbersResponse");
      expect(messageResponse.value).to.deep.include({ baseTypeName: value, extensionNumber: [...numbers] });
    }
  });

  const unanswerable: Record<string, [Question, Code]> = {
    "a file it does not have": [
      { messageRequest: { case: "fileByFilename", value: "../../etc/passwd" } },
      Code.NotFound,
    ],
    "an empty file name": [{ messageRequest: { case: "fileByFilename", value: "" } }, Code.NotFound],
    "a symbol it does not have": [
      { messageRequest: { case: "fileContainingSymbol", value: "__proto__" } },
      Code.NotFound,
    ],
    "a package": [{ messageRequest: { case: "fileContainingSymbol", value: "google.rpc" } }, Code.NotFound],
    "an extension it does not have": [
      {
        messageRequest: {
          case: "fileContainingExtension",
          value: { containingType: "google.type.Money", extensionNumber: -1 },
        },
      },
      Code.NotFound,
    ],
    "extensions of a message it does not have": [
      { messageRequest: { case: "allExtensionNumbersOfType", value: "no.Such" } },
      Code.NotFound,
    ],
    "extensions of something that is no message": [
      { messageRequest: { case: "allExtensionNumbersOfType", value: "grpc.health.v1.Health" } },
      Code.NotFound,
    ],
    nothing: [{}, Code.InvalidArgument],
  };
  for (const [what, [question, code]] of Object.entries(unanswerable)) {
    it(`answers ${Code[code]} when asked for ${what}, and goes on`, async () => {
      const list = { messageRequest: { case: "listServices", value: "*" } } as const;
      const [refused, answered] = await ask([question, list]);
      expect(refused?.messageResponse.case).to.equal("errorResponse");
      expect(refused?.messageResponse.value).to.include({ errorCode: code });
      expect(answered?.messageResponse.case).to.equal("listServicesResponse");
    });
  }

  const x = "x".repeat(1_025);
  const tooLong: Record<string, Question> = {
    host: { host: x, messageRequest: { case: "listServices", value: "" } },
    symbol: { messageRequest: { case: "fileContainingSymbol", value: x } },
    "list argument": { messageRequest: { case: "listServices", value: x } },
    "containing type": { messageRequest: { case: "fileContainingExtension", value: { containingType: x } } },
  };
  for (const [what, question] of Object.entries(tooLong)) {
    it(`ends the stream when a ${what} is longer than any name`, async () => {
      const error = await rejectionOf(ask([question]));
      expect(error.code, error.message).to.equal(Code.InvalidArgument);
      expect(error.message).to.contain("1024");
    });
  }

  it("ends the stream after as many requests as it allows", async () => {
    const strict = await start({ files, maxRequests: 3 });
    const list: Question = { messageRequest: { case: "listServices", value: "" } };
    expect(await ask([list, list, list], V1, strict)).to.have.length(3);
    const error = await rejectionOf(ask([list, list, list, list], V1, strict));
    expect(error.code, error.message).to.equal(Code.ResourceExhausted);
  });

  it("ends a stream that asks nothing for too long, and serves the next one", async () => {
    const impatient = await start({ files, idleTimeoutMs: 50 });
    const client = createClient(V1, impatient.transport);
    const never = Promise.withResolvers<void>();
    async function* oneAndThenSilence() {
      yield { messageRequest: { case: "listServices", value: "" } } as const;
      await never.promise;
    }
    const cases: unknown[] = [];
    for await (const response of client.serverReflectionInfo(oneAndThenSilence()))
      cases.push(response.messageResponse.case);
    never.resolve();
    expect(cases).to.deep.equal(["listServicesResponse"]);
    expect(await ask([{ messageRequest: { case: "listServices", value: "" } }], V1, impatient)).to.have.length(1);
  });

  it("answers questions that are sent all at once, in their order", async () => {
    const client = createClient(V1, server.transport);
    const names = Array.from({ length: 500 }, (_, i) => (i % 2 === 0 ? "google.rpc.Status" : `no.Such${i}`));
    async function* atOnce() {
      for (const value of names) yield { messageRequest: { case: "fileContainingSymbol", value } } as const;
    }
    const asked: unknown[] = [];
    for await (const { originalRequest } of client.serverReflectionInfo(atOnce()))
      asked.push(originalRequest?.messageRequest.value);
    expect(asked).to.deep.equal(names);
  });

  it("serves the Connect protocol as well", async () => {
    const client = createClient(
      V1,
      createConnectTransport({ baseUrl: server.baseUrl, httpVersion: "2", sessionManager: server.session }),
    );
    const cases: unknown[] = [];
    const question: Question = { messageRequest: { case: "listServices", value: "" } };
    for await (const response of client.serverReflectionInfo(inTurn([question])))
      cases.push(response.messageResponse.case);
    expect(cases).to.deep.equal(["listServicesResponse"]);
  });

  it("refuses to start with two different files of one name", () => {
    const other = createFileRegistry(
      create(FileDescriptorSetSchema, {
        file: [{ name: "google/type/money.proto", package: "other", syntax: "proto3" }],
      }),
    ).getFile("google/type/money.proto");
    expect(() => reflectionRoutes({ files: [file_google_type_money, other ?? file_google_type_money] })).to.throw(
      "Two different files are named google/type/money.proto",
    );
  });

  it("lets buf curl list methods and call one, with no schema but what the server tells", async function () {
    this.timeout(60_000);
    const list = await bufCurl("--list-methods", server.baseUrl);
    expect(list.split("\n")).to.include.members([
      "grpc.health.v1.Health/Check",
      "grpc.health.v1.Health/List",
      "grpc.health.v1.Health/Watch",
    ]);
    const answer = await bufCurl("--protocol", "grpc", "-d", "{}", `${server.baseUrl}/grpc.health.v1.Health/Check`);
    expect(JSON.parse(answer)).to.deep.equal({ status: "SERVING" });
    const old = await bufCurl("--reflect-protocol", "grpc-v1alpha", "--list-services", server.baseUrl);
    expect(old.trim().split("\n")).to.include("grpc.health.v1.Health");
  });
});

interface Server {
  readonly baseUrl: string;
  readonly session: Http2SessionManager;
  readonly transport: ReturnType<typeof createGrpcTransport>;
  stop(): Promise<void>;
}

async function startServer(routes: (router: ConnectRouter) => void): Promise<Server> {
  const server = http2.createServer(connectNodeAdapter({ routes }));
  const sessions = new Set<http2.ServerHttp2Session>();
  server.on("session", (session) => sessions.add(session));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const session = new Http2SessionManager(baseUrl);
  return {
    baseUrl,
    session,
    transport: createGrpcTransport({ baseUrl, sessionManager: session }),
    async stop() {
      session.abort();
      for (const each of sessions) each.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function* inTurn<T>(questions: T[]): AsyncGenerator<T> {
  yield* questions;
}

function filesOf({ messageResponse }: ServerReflectionResponse): FileDescriptorProto[] {
  if (messageResponse.case !== "fileDescriptorResponse") {
    throw new Error(`Expected files, got ${messageResponse.case}: ${JSON.stringify(messageResponse.value)}`);
  }
  return messageResponse.value.fileDescriptorProto.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes));
}

function namesOf(response: ServerReflectionResponse): string[] {
  return filesOf(response).map((file) => file.name);
}

/** Each file once, after the files that it imports. */
function inImportOrder(sent: FileDescriptorProto[]): FileDescriptorProto[] {
  const byName = new Map(sent.map((file) => [file.name, file]));
  const ordered = new Set<FileDescriptorProto>();
  function visit(name: string) {
    const file = byName.get(name);
    if (file === undefined) throw new Error(`The server has not sent ${name}, which another file imports`);
    if (ordered.has(file)) return;
    for (const dependency of file.dependency) visit(dependency);
    ordered.add(file);
  }
  for (const name of byName.keys()) visit(name);
  return [...ordered];
}

async function rejectionOf(promise: Promise<unknown>): Promise<ConnectError> {
  try {
    await promise;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("Expected the call to fail, but it ended well");
}

async function bufCurl(...args: string[]): Promise<string> {
  const buf = createRequire(import.meta.url).resolve("@bufbuild/buf/bin/buf");
  const options = { timeout: 50_000 };
  const { stdout } = await promisify(execFile)(
    process.execPath,
    [buf, "curl", "--http2-prior-knowledge", ...args],
    options,
  );
  return stdout;
}
