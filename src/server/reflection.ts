import { type DescFile, toBinary } from "@bufbuild/protobuf";
import {
  type DescriptorProto,
  type EnumDescriptorProto,
  type FieldDescriptorProto,
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
} from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import {
  type ServerReflectionRequest as RequestV1,
  ServerReflection as ServerReflectionV1,
} from "../../gen/grpc/reflection/v1/reflection_pb.js";
import {
  type ServerReflectionRequest as RequestV1Alpha,
  ServerReflection as ServerReflectionV1Alpha,
} from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";

/** Longest name that may be asked for, and longest host, in UTF-16 code units. Real names are far below. */
const defaultMaxNameChars = 1_024;
/** How many questions one stream may ask. Listing everything that a large server has takes a few hundred. */
const defaultMaxRequests = 1_000;
/** How long a stream may ask nothing before it is ended. Clients open another one when they have more to ask. */
const defaultIdleTimeoutMs = 120_000;

/** What {@link reflectionRoutes} needs. */
export interface ReflectionOptions {
  /**
   * The files whose services are listed, and any other files whose types can be asked for, such as those of error
   * details. What they import can be asked for too, but services in imported files are not listed.
   */
  readonly files: readonly DescFile[];
  /** Length of a name or host beyond which a stream is ended with INVALID_ARGUMENT. */
  readonly maxNameChars?: number;
  /** Number of questions after which a stream is ended with RESOURCE_EXHAUSTED. */
  readonly maxRequests?: number;
  /** Time without a question after which a stream is ended with OK. */
  readonly idleTimeoutMs?: number;
}

/**
 * Makes the routes of grpc.reflection.v1 and v1alpha, which list themselves too. All descriptors are serialised here,
 * once. Throws when two different files have the same name.
 */
export function reflectionRoutes(options: ReflectionOptions): (router: ConnectRouter) => void {
  const versions = [ServerReflectionV1, ServerReflectionV1Alpha];
  const index = new DescriptorIndex([...options.files, ...versions.map((service) => service.file)]);
  return (router) => {
    router.service(ServerReflectionV1, {
      serverReflectionInfo: (requests) => answerAll(requests, index, options),
    });
    router.service(ServerReflectionV1Alpha, {
      serverReflectionInfo: (requests) => answerAll(requests, index, options),
    });
  };
}

/** The two versions differ in nothing but the package's name. */
type Request = RequestV1 | RequestV1Alpha;
type Question = Request["messageRequest"];

/** A response to a request of the same version. */
interface Response<R extends Request> {
  validHost: string;
  originalRequest: R;
  messageResponse: Answer;
}

type Answer =
  | { case: "fileDescriptorResponse"; value: { fileDescriptorProto: Uint8Array<ArrayBuffer>[] } }
  | { case: "allExtensionNumbersResponse"; value: { baseTypeName: string; extensionNumber: number[] } }
  | { case: "listServicesResponse"; value: { service: { name: string }[] } }
  | { case: "errorResponse"; value: { errorCode: number; errorMessage: string } };

async function* answerAll<R extends Request>(
  requests: AsyncIterable<R>,
  index: DescriptorIndex,
  options: ReflectionOptions,
): AsyncGenerator<Response<R>> {
  const { maxRequests = defaultMaxRequests, maxNameChars = defaultMaxNameChars } = options;
  const iterator = requests[Symbol.asyncIterator]();
  const sent = new Set<IndexedFile>();
  for (let count = 0; ; count++) {
    const request = await nextWithin(iterator, options.idleTimeoutMs ?? defaultIdleTimeoutMs);
    if (request === undefined) return;
    if (count >= maxRequests) throw tooManyRequests(maxRequests);
    // The answer repeats the question, so what is too long ends the stream instead of travelling back.
    if (longestName(request) > maxNameChars) throw nameTooLong(maxNameChars);
    const messageResponse = answer(request.messageRequest, index, sent);
    yield { validHost: request.host, originalRequest: request, messageResponse };
  }
}

/** The next request, or undefined when there are no more or none has come in time. */
async function nextWithin<T>(iterator: AsyncIterator<T>, timeoutMs: number): Promise<T | undefined> {
  const { promise: idle, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(resolve, timeoutMs, undefined).unref();
  try {
    const next = await Promise.race([iterator.next(), idle]);
    return next === undefined || next.done === true ? undefined : next.value;
  } finally {
    clearTimeout(timer);
  }
}

function longestName({ host, messageRequest: { case: kind, value } }: Request): number {
  const name = kind === undefined ? "" : typeof value === "string" ? value : value.containingType;
  return Math.max(host.length, name.length);
}

/** Answers one question. Files in `sent` are left out unless the question is for them; those that are sent are added. */
function answer(question: Question, index: DescriptorIndex, sent: Set<IndexedFile>): Answer {
  switch (question.case) {
    case "fileByFilename": {
      const file = index.file(question.value);
      return file ? filesAnswer(file, sent) : notFound(`file ${JSON.stringify(question.value)}`);
    }
    case "fileContainingSymbol": {
      const file = index.fileOfSymbol(question.value);
      return file ? filesAnswer(file, sent) : notFound(`symbol ${JSON.stringify(question.value)}`);
    }
    case "fileContainingExtension": {
      const { containingType, extensionNumber } = question.value;
      const file = index.extensionsOf(containingType)?.get(extensionNumber);
      return file
        ? filesAnswer(file, sent)
        : notFound(`extension ${extensionNumber} of ${JSON.stringify(containingType)}`);
    }
    case "allExtensionNumbersOfType": {
      const extensions = index.extensionsOf(question.value);
      if (extensions === undefined) return notFound(`message ${JSON.stringify(question.value)}`);
      const extensionNumber = [...extensions.keys()].sort((a, b) => a - b);
      return { case: "allExtensionNumbersResponse", value: { baseTypeName: question.value, extensionNumber } };
    }
    case "listServices":
      return { case: "listServicesResponse", value: { service: index.services.map((name) => ({ name })) } };
    default:
      return failure(Code.InvalidArgument, "The request asks nothing: message_request is not set, or not known here");
  }
}

function filesAnswer(file: IndexedFile, sent: Set<IndexedFile>): Answer {
  const files = file.closure.filter((each) => each === file || !sent.has(each));
  for (const each of files) sent.add(each);
  return { case: "fileDescriptorResponse", value: { fileDescriptorProto: files.map(({ bytes }) => bytes) } };
}

function notFound(what: string): Answer {
  return failure(Code.NotFound, `This server has no ${what}`);
}

function failure(errorCode: Code, errorMessage: string): Answer {
  return { case: "errorResponse", value: { errorCode, errorMessage } };
}

function tooManyRequests(maxRequests: number): ConnectError {
  const value = { reason: "TOO_MANY_REQUESTS", domain: "tradepost", metadata: { max_requests: String(maxRequests) } };
  const message = `No more than ${maxRequests} requests may be sent on one reflection stream`;
  return new ConnectError(message, Code.ResourceExhausted, undefined, [{ desc: ErrorInfoSchema, value }]);
}

function nameTooLong(maxNameChars: number): ConnectError {
  const value = { reason: "NAME_TOO_LONG", domain: "tradepost", metadata: { max_length: String(maxNameChars) } };
  const message = `A name or host may be at most ${maxNameChars} characters long`;
  return new ConnectError(message, Code.InvalidArgument, undefined, [{ desc: ErrorInfoSchema, value }]);
}

/** A file, serialised, with itself and everything it imports, directly or not: the file itself is the first. */
interface IndexedFile {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly closure: readonly IndexedFile[];
}

/** Everything that can be asked for, by name. */
class DescriptorIndex {
  /** Full names, sorted. */
  readonly services: readonly string[];
  readonly #files = new Map<string, IndexedFile & { readonly desc: DescFile }>();
  readonly #symbols = new Map<string, IndexedFile>();
  readonly #extensions = new Map<string, Map<number, IndexedFile>>();

  constructor(files: readonly DescFile[]) {
    for (const file of files) this.#add(file);
    this.services = [...new Set(files.flatMap((file) => file.services.map((service) => service.typeName)))].sort();
  }

  /** By the name that import statements use. */
  file(name: string): IndexedFile | undefined {
    return this.#files.get(name);
  }

  /** By the full name of a service, method, message, field, oneof, enum, enum value or extension. */
  fileOfSymbol(name: string): IndexedFile | undefined {
    return this.#symbols.get(name);
  }

  /** The files of the extensions of a message, by number. Undefined when there is no such message. */
  extensionsOf(messageName: string): ReadonlyMap<number, IndexedFile> | undefined {
    return this.#extensions.get(messageName);
  }

  #add(desc: DescFile): IndexedFile {
    const { name } = desc.proto;
    const known = this.#files.get(name);
    if (known?.desc === desc) return known;
    const bytes = toBinary(FileDescriptorProtoSchema, desc.proto);
    if (known !== undefined) {
      if (Buffer.compare(known.bytes, bytes) !== 0) throw new Error(`Two different files are named ${name}`);
      return known;
    }
    const imported = desc.dependencies.flatMap((dependency) => this.#add(dependency).closure);
    const closure: IndexedFile[] = [];
    const file = { desc, bytes, closure };
    closure.push(...new Set([file, ...imported]));
    this.#files.set(name, file);
    this.#addSymbols(desc.proto, file);
    return file;
  }

  #addSymbols({ package: scope, messageType, enumType, extension, service }: FileDescriptorProto, file: IndexedFile) {
    for (const message of messageType) this.#addMessage(scope, message, file);
    for (const each of enumType) this.#addEnum(scope, each, file);
    for (const each of extension) this.#addExtension(scope, each, file);
    for (const each of service) {
      const name = this.#addSymbol(scope, each.name, file);
      for (const method of each.method) this.#addSymbol(name, method.name, file);
    }
  }

  #addMessage(scope: string, message: DescriptorProto, file: IndexedFile) {
    const name = this.#addSymbol(scope, message.name, file);
    this.#extendable(name);
    for (const field of message.field) this.#addSymbol(name, field.name, file);
    for (const oneof of message.oneofDecl) this.#addSymbol(name, oneof.name, file);
    for (const nested of message.nestedType) this.#addMessage(name, nested, file);
    for (const nested of message.enumType) this.#addEnum(name, nested, file);
    for (const nested of message.extension) this.#addExtension(name, nested, file);
  }

  #addEnum(scope: string, { name, value: values }: EnumDescriptorProto, file: IndexedFile) {
    this.#addSymbol(scope, name, file);
    // The full name of an enum value does not hold the name of its enum: values are siblings of the enum.
    for (const value of values) this.#addSymbol(scope, value.name, file);
  }

  #addExtension(scope: string, { name, extendee, number }: FieldDescriptorProto, file: IndexedFile) {
    this.#addSymbol(scope, name, file);
    this.#extendable(extendee.replace(/^\./, "")).set(number, file);
  }

  #addSymbol(scope: string, name: string, file: IndexedFile): string {
    const fullName = scope === "" ? name : `${scope}.${name}`;
    this.#symbols.set(fullName, file);
    return fullName;
  }

  #extendable(messageName: string): Map<number, IndexedFile> {
    const extensions = this.#extensions.get(messageName) ?? new Map<number, IndexedFile>();
    this.#extensions.set(messageName, extensions);
    return extensions;
  }
}
