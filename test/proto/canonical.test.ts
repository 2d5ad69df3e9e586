import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import {
  clone,
  create,
  createFileRegistry,
  type DescFile,
  fromBinary,
  fromJson,
  isFieldSet,
  type JsonValue,
} from "@bufbuild/protobuf";
import {
  type DescriptorProto,
  type EnumDescriptorProto,
  type FieldDescriptorProto,
  FieldDescriptorProtoSchema,
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
  type FileDescriptorSet,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import { file_buf_validate_validate as officialValidate } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { expect } from "chai";
import { file_buf_validate_validate } from "../../gen/buf/validate/validate_pb.js";
import { file_google_rpc_error_details } from "../../gen/google/rpc/error_details_pb.js";
import { file_google_rpc_status } from "../../gen/google/rpc/status_pb.js";
import { file_google_type_date } from "../../gen/google/type/date_pb.js";
import { file_google_type_money } from "../../gen/google/type/money_pb.js";
import { file_grpc_health_v1_health } from "../../gen/grpc/health/v1/health_pb.js";
import { file_grpc_reflection_v1_reflection } from "../../gen/grpc/reflection/v1/reflection_pb.js";
import { file_grpc_reflection_v1alpha_reflection } from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";
import { RegisterRequestSchema } from "../../gen/tradepost/user/v1/auth_service_pb.js";

const require = createRequire(import.meta.url);
const protoRoot = fileURLToPath(new URL("../../proto", import.meta.url));
const bufTimeoutMs = 60_000;

/** Our declarations, except that of buf.validate, and the packages that carry the official files. */
const declarations: { ours: DescFile; official: string }[] = [
  { ours: file_google_type_money, official: require.resolve("google-proto-files/google/type/money.proto") },
  { ours: file_google_type_date, official: require.resolve("google-proto-files/google/type/date.proto") },
  { ours: file_google_rpc_status, official: require.resolve("google-proto-files/google/rpc/status.proto") },
  {
    ours: file_google_rpc_error_details,
    official: require.resolve("google-proto-files/google/rpc/error_details.proto"),
  },
  { ours: file_grpc_health_v1_health, official: require.resolve("grpc-health-check/proto/health/v1/health.proto") },
  {
    ours: file_grpc_reflection_v1_reflection,
    official: require.resolve("@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto"),
  },
  {
    ours: file_grpc_reflection_v1alpha_reflection,
    official: require.resolve("@grpc/reflection/build/proto/grpc/reflection/v1alpha/reflection.proto"),
  },
];

describe("the declarations of google, buf and grpc", function () {
  this.timeout(2 * bufTimeoutMs);

  let folder: string;
  /** The whole contract, compiled with the official files in the place of ours, and as it is. */
  let withOfficial: Map<string, FileDescriptorProto>;
  let withOurs: Map<string, FileDescriptorProto>;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "tradepost-canonical-"));
    await cp(protoRoot, folder, { recursive: true });
    for (const { ours, official } of declarations) {
      const target = join(folder, ours.proto.name);
      await mkdir(dirname(target), { recursive: true });
      await cp(official, target);
    }
    withOfficial = byName(await compile(folder));
    withOurs = byName(await compile(protoRoot));
  });

  after(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  for (const { ours } of declarations) {
    it(`agrees with the official ${ours.proto.name}`, () => {
      expect(differences(ours.proto, withOfficial.get(ours.proto.name))).to.deep.equal([]);
    });
  }

  it("agrees with the buf/validate/validate.proto that the validation runtime carries", () => {
    expect(differences(file_buf_validate_validate.proto, officialValidate.proto)).to.deep.equal([]);
  });

  it("covers every file that proto/ has of them", () => {
    const foreign = [...withOurs.keys()].filter((name) => !/^(tradepost|google\/protobuf)\//.test(name));
    const compared = [...declarations.map((each) => each.ours), file_buf_validate_validate];
    expect(foreign).to.have.members(compared.map(({ proto }) => proto.name));
  });

  it("compiles to the same contract when the official files take their place", () => {
    for (const [name, file] of withOurs) {
      if (name.startsWith("tradepost/")) expect(withOfficial.get(name), name).to.deep.equal(file);
    }
  });
});

describe("the comparison with official declarations", () => {
  const official = file_grpc_reflection_v1_reflection.proto;
  const mutations: Record<string, [mutate: (file: FileDescriptorProto) => void, difference: string]> = {
    "a field's number": [
      (file) => Object.assign(file.messageType[0]!.field[1]!, { number: 99 }),
      "grpc.reflection.v1.ServerReflectionRequest.file_by_filename: number is 99, officially 3",
    ],
    "a field's type": [
      (file) => Object.assign(file.messageType[1]!.field[1]!, { type: 3 }),
      "grpc.reflection.v1.ExtensionRequest.extension_number: type is 3, officially 5",
    ],
    "a field's label": [
      (file) => Object.assign(file.messageType[1]!.field[1]!, { label: 3 }),
      "grpc.reflection.v1.ExtensionRequest.extension_number: label is 3, officially 1",
    ],
    "the type that a field refers to": [
      (file) => Object.assign(file.messageType[2]!.field[1]!, { typeName: ".some.Other" }),
      'grpc.reflection.v1.ServerReflectionResponse.original_request: typeName is ".some.Other", officially ".grpc.reflection.v1.ServerReflectionRequest"',
    ],
    "a field's place in a oneof": [
      (file) => Object.assign(file.messageType[0]!.field[0]!, { oneofIndex: 0 }),
      'grpc.reflection.v1.ServerReflectionRequest.host: oneof is "message_request", officially undefined',
    ],
    "a field's name": [
      (file) => Object.assign(file.messageType[1]!.field[0]!, { name: "invented" }),
      "grpc.reflection.v1.ExtensionRequest.invented: not in the official file",
    ],
    "a message's name": [
      (file) => Object.assign(file.messageType[1]!, { name: "Invented" }),
      "grpc.reflection.v1.Invented: not in the official file",
    ],
    "a method's streaming": [
      (file) => Object.assign(file.service[0]!.method[0]!, { clientStreaming: false }),
      "grpc.reflection.v1.ServerReflection.ServerReflectionInfo: clientStreaming is false, officially true",
    ],
    "a method missing": [
      (file) => Object.assign(file.service[0]!, { method: [] }),
      "grpc.reflection.v1.ServerReflection: has not the official methods: ServerReflectionInfo",
    ],
    "the package": [
      (file) => Object.assign(file, { package: "grpc.reflection.v2" }),
      'grpc/reflection/v1/reflection.proto: package is "grpc.reflection.v2", officially "grpc.reflection.v1"',
    ],
  };
  for (const [what, [mutate, difference]] of Object.entries(mutations)) {
    it(`notices ${what}`, () => {
      const mutated = clone(FileDescriptorProtoSchema, official);
      mutate(mutated);
      expect(differences(mutated, official)).to.include(difference);
    });
  }

  it("notices an enum value's number", () => {
    const mutated = clone(FileDescriptorProtoSchema, file_grpc_health_v1_health.proto);
    const messages = mutated.messageType.filter(({ enumType }) => enumType.length > 0);
    Object.assign(messages[0]!.enumType[0]!.value[1]!, { number: 7 });
    expect(differences(mutated, file_grpc_health_v1_health.proto)).to.deep.equal([
      "grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING: number is 7, officially 1",
    ]);
  });

  it("notices an extension's number", () => {
    const mutated = clone(FileDescriptorProtoSchema, file_buf_validate_validate.proto);
    Object.assign(mutated.extension[0]!, { number: 1160 });
    expect(differences(mutated, officialValidate.proto)).to.deep.equal([
      "buf.validate.message: number is 1160, officially 1159",
    ]);
  });

  it("notices that there is no official file", () => {
    expect(differences(official, undefined)).to.deep.equal([
      "grpc/reflection/v1/reflection.proto: there is no official file",
    ]);
  });
});

describe("rules compiled against our buf/validate/validate.proto", function () {
  this.timeout(2 * bufTimeoutMs);

  /** A field `v` with one rule, a value that breaks it, and the id of the rule as the runtime reports it. */
  const rules: [field: string, value: JsonValue | undefined, ruleId: string][] = [
    ["string v = 1 [(buf.validate.field).required = true]", undefined, "required"],
    ["int32 v = 1 [(buf.validate.field).int32.const = 1]", 2, "int32.const"],
    ["int32 v = 1 [(buf.validate.field).int32.lt = 1]", 1, "int32.lt"],
    ["int32 v = 1 [(buf.validate.field).int32.lte = 1]", 2, "int32.lte"],
    ["int32 v = 1 [(buf.validate.field).int32.gt = 1]", 1, "int32.gt"],
    ["int32 v = 1 [(buf.validate.field).int32.gte = 1]", 0, "int32.gte"],
    ["int32 v = 1 [(buf.validate.field).int32 = {in: [1, 2]}]", 3, "int32.in"],
    ["int32 v = 1 [(buf.validate.field).int32 = {not_in: [3]}]", 3, "int32.not_in"],
    ["int64 v = 1 [(buf.validate.field).int64.gt = 0]", "0", "int64.gt"],
    ["uint32 v = 1 [(buf.validate.field).uint32.lte = 5]", 6, "uint32.lte"],
    ["uint64 v = 1 [(buf.validate.field).uint64.gte = 5]", "4", "uint64.gte"],
    ["bool v = 1 [(buf.validate.field).bool.const = true]", false, "bool.const"],
    ['string v = 1 [(buf.validate.field).string.const = "a"]', "b", "string.const"],
    ["string v = 1 [(buf.validate.field).string.len = 2]", "a", "string.len"],
    ["string v = 1 [(buf.validate.field).string.min_len = 2]", "a", "string.min_len"],
    ["string v = 1 [(buf.validate.field).string.max_len = 2]", "abc", "string.max_len"],
    ["string v = 1 [(buf.validate.field).string.len_bytes = 2]", "é€", "string.len_bytes"],
    ["string v = 1 [(buf.validate.field).string.min_bytes = 2]", "a", "string.min_bytes"],
    ["string v = 1 [(buf.validate.field).string.max_bytes = 2]", "€", "string.max_bytes"],
    ['string v = 1 [(buf.validate.field).string.pattern = "^[a-z]+$"]', "A", "string.pattern"],
    ['string v = 1 [(buf.validate.field).string.prefix = "a"]', "b", "string.prefix"],
    ['string v = 1 [(buf.validate.field).string.suffix = "a"]', "b", "string.suffix"],
    ['string v = 1 [(buf.validate.field).string.contains = "a"]', "b", "string.contains"],
    ['string v = 1 [(buf.validate.field).string.not_contains = "b"]', "b", "string.not_contains"],
    ['string v = 1 [(buf.validate.field).string = {in: ["a"]}]', "b", "string.in"],
    ['string v = 1 [(buf.validate.field).string = {not_in: ["b"]}]', "b", "string.not_in"],
    ["string v = 1 [(buf.validate.field).string.email = true]", "a@", "string.email"],
    ["string v = 1 [(buf.validate.field).string.hostname = true]", "a b", "string.hostname"],
    ["string v = 1 [(buf.validate.field).string.ip = true]", "1.2.3", "string.ip"],
    ["string v = 1 [(buf.validate.field).string.uri = true]", "a b", "string.uri"],
    ["string v = 1 [(buf.validate.field).string.uuid = true]", "no", "string.uuid"],
    ["string v = 1 [(buf.validate.field).string.host_and_port = true]", "a", "string.host_and_port"],
    ["bytes v = 1 [(buf.validate.field).bytes.len = 2]", "AA==", "bytes.len"],
    ["bytes v = 1 [(buf.validate.field).bytes.min_len = 2]", "AA==", "bytes.min_len"],
    ["bytes v = 1 [(buf.validate.field).bytes.max_len = 2]", "AAAA", "bytes.max_len"],
    ['bytes v = 1 [(buf.validate.field).bytes.prefix = "a"]', "AAAA", "bytes.prefix"],
    ["E v = 1 [(buf.validate.field).enum.const = 1]", 0, "enum.const"],
    ["E v = 1 [(buf.validate.field).enum.defined_only = true]", 9, "enum.defined_only"],
    ["E v = 1 [(buf.validate.field).enum = {in: [1]}]", 0, "enum.in"],
    ["E v = 1 [(buf.validate.field).enum = {not_in: [0]}]", 0, "enum.not_in"],
    ["repeated int32 v = 1 [(buf.validate.field).repeated.min_items = 2]", [1], "repeated.min_items"],
    ["repeated int32 v = 1 [(buf.validate.field).repeated.max_items = 2]", [1, 2, 3], "repeated.max_items"],
    ["repeated int32 v = 1 [(buf.validate.field).repeated.unique = true]", [1, 1], "repeated.unique"],
    ["repeated string v = 1 [(buf.validate.field).repeated.items.string.uuid = true]", ["no"], "string.uuid"],
    ["map<string, int32> v = 1 [(buf.validate.field).map.min_pairs = 1]", {}, "map.min_pairs"],
    ["map<string, int32> v = 1 [(buf.validate.field).map.max_pairs = 1]", { a: 1, b: 2 }, "map.max_pairs"],
    ["map<string, int32> v = 1 [(buf.validate.field).map.keys.string.max_len = 1]", { ab: 1 }, "string.max_len"],
    ["map<string, int32> v = 1 [(buf.validate.field).map.values.int32.gt = 0]", { a: 0 }, "int32.gt"],
    ["google.protobuf.Duration v = 1 [(buf.validate.field).duration.lte = {seconds: 5}]", "6s", "duration.lte"],
    [
      "google.protobuf.Timestamp v = 1 [(buf.validate.field).timestamp.lt_now = true]",
      "9999-01-01T00:00:00Z",
      "timestamp.lt_now",
    ],
    [
      "google.protobuf.Timestamp v = 1 [(buf.validate.field).timestamp.gte = {seconds: 1}]",
      "1970-01-01T00:00:00Z",
      "timestamp.gte",
    ],
    ["oneof o { option (buf.validate.oneof).required = true; string v = 1; }", undefined, "required"],
    [
      'option (buf.validate.message).oneof = {fields: ["v", "w"], required: true}; string v = 1; string w = 2',
      undefined,
      "message.oneof",
    ],
  ];
  const validator = createValidator();
  let folder: string;
  let registry: ReturnType<typeof createFileRegistry>;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "tradepost-rules-"));
    await cp(join(protoRoot, "buf"), join(folder, "buf"), { recursive: true });
    const messages = rules.map(([field], i) => `message M${i} { ${field}${field.endsWith("}") ? "" : ";"} }`);
    const imports = ["buf/validate/validate", "google/protobuf/duration", "google/protobuf/timestamp"];
    await writeFile(
      join(folder, "rules.proto"),
      [
        'syntax = "proto3";',
        "package rules;",
        ...imports.map((name) => `import "${name}.proto";`),
        "enum E { E_UNSPECIFIED = 0; E_ONE = 1; }",
        ...messages,
      ].join("\n"),
    );
    registry = createFileRegistry(await compile(folder));
  });

  after(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  rules.forEach(([field, value, ruleId], i) => {
    it(`are enforced by the official runtime: ${field}`, () => {
      const schema = registry.getMessage(`rules.M${i}`)!;
      const message = value === undefined ? create(schema) : fromJson(schema, { v: value });
      const { kind, violations, error } = validator.validate(schema, message);
      expect(
        violations?.map((violation) => violation.ruleId),
        `${kind}: ${error}`,
      ).to.deep.equal([ruleId]);
    });
  });

  it("are seen in generated code too", () => {
    const { kind, violations } = validator.validate(RegisterRequestSchema, create(RegisterRequestSchema));
    expect(kind).to.equal("invalid");
    expect(
      violations?.map(({ field }) => field.map((part) => ("name" in part ? part.name : "?")).join(".")),
    ).to.include.members(["email", "password"]);
  });
});

/** Compiles all files under a folder, without the comments. */
async function compile(folder: string): Promise<FileDescriptorSet> {
  const args = [
    require.resolve("@bufbuild/buf/bin/buf"),
    "build",
    folder,
    "--exclude-source-info",
    "-o",
    "-#format=binpb",
  ];
  const options = { encoding: "buffer", timeout: bufTimeoutMs, maxBuffer: 16 * 1024 * 1024 } as const;
  const { stdout } = await promisify(execFile)(process.execPath, args, options);
  return fromBinary(FileDescriptorSetSchema, stdout);
}

function byName({ file }: FileDescriptorSet): Map<string, FileDescriptorProto> {
  return new Map(file.map((each) => [each.name, each]));
}

/** What matters on the wire, in JSON or in generated code about one declaration. */
type Facts = Record<string, unknown>;

/** Says where our file contradicts the official one. What only the official one has is no contradiction. */
function differences(ours: FileDescriptorProto, official: FileDescriptorProto | undefined): string[] {
  if (official === undefined) return [`${ours.name}: there is no official file`];
  const expected = factsOfFile(official);
  const found: string[] = [];
  for (const [name, facts] of factsOfFile(ours)) {
    const officially = expected.get(name);
    if (officially === undefined) {
      found.push(`${name}: not in the official file`);
      continue;
    }
    for (const [fact, value] of Object.entries(facts)) {
      const [is, should] = [JSON.stringify(value), JSON.stringify(officially[fact])];
      if (is !== should) found.push(`${name}: ${fact} is ${is}, officially ${should}`);
    }
  }
  return [...found, ...missingMethods(ours, official)];
}

/** A service is implemented as a whole, so unlike a message it may not lack anything. */
function missingMethods(ours: FileDescriptorProto, official: FileDescriptorProto): string[] {
  return ours.service.flatMap((service) => {
    const has = new Set(service.method.map(({ name }) => name));
    const should = official.service.find(({ name }) => name === service.name)?.method ?? [];
    const missing = should.map(({ name }) => name).filter((name) => !has.has(name));
    if (missing.length === 0) return [];
    return [`${ours.package}.${service.name}: has not the official methods: ${missing.join(", ")}`];
  });
}

/** The facts about everything that a file declares, by full name. */
function factsOfFile(file: FileDescriptorProto): Map<string, Facts> {
  const options = Object.entries(file.options ?? {}).filter(
    ([key, value]) => !key.startsWith("$") && !Array.isArray(value),
  );
  const all = new Map<string, Facts>();
  all.set(file.name, { package: file.package, syntax: file.syntax || "proto2", ...Object.fromEntries(options) });
  for (const message of file.messageType) addMessage(all, file.package, message);
  for (const each of file.enumType) addEnum(all, file.package, each);
  for (const each of file.extension)
    all.set(`${file.package}.${each.name}`, { ...factsOfField(each), extendee: each.extendee });
  for (const service of file.service) {
    const name = `${file.package}.${service.name}`;
    all.set(name, { kind: "service" });
    for (const { name: method, inputType, outputType, clientStreaming, serverStreaming } of service.method) {
      all.set(`${name}.${method}`, { kind: "method", inputType, outputType, clientStreaming, serverStreaming });
    }
  }
  return all;
}

function addMessage(all: Map<string, Facts>, scope: string, message: DescriptorProto): void {
  const name = `${scope}.${message.name}`;
  all.set(name, { kind: "message", mapEntry: message.options?.mapEntry === true });
  for (const field of message.field) {
    const oneof = isFieldSet(field, FieldDescriptorProtoSchema.field.oneofIndex)
      ? message.oneofDecl[field.oneofIndex]?.name
      : undefined;
    all.set(`${name}.${field.name}`, { ...factsOfField(field), jsonName: field.jsonName, oneof });
  }
  for (const nested of message.nestedType) addMessage(all, name, nested);
  for (const nested of message.enumType) addEnum(all, name, nested);
}

function factsOfField(field: FieldDescriptorProto): Facts {
  const { number, type, label, typeName, defaultValue, proto3Optional, options } = field;
  return {
    kind: "field",
    number,
    type,
    label,
    typeName,
    defaultValue,
    proto3Optional,
    packed: options?.packed === true,
  };
}

function addEnum(all: Map<string, Facts>, scope: string, { name, value: values }: EnumDescriptorProto): void {
  all.set(`${scope}.${name}`, { kind: "enum" });
  for (const value of values) all.set(`${scope}.${name}.${value.name}`, { kind: "enum value", number: value.number });
}
