import { create, createFileRegistry, type DescService } from "@bufbuild/protobuf";
import type { GenService } from "@bufbuild/protobuf/codegenv2";
import {
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
  file_google_protobuf_wrappers,
  MethodOptions_IdempotencyLevel,
  type StringValueSchema,
} from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter, type ServiceImpl } from "@connectrpc/connect";

type Text = typeof StringValueSchema;

/** The service that the listener's tests call: every kind of method, over `google.protobuf.StringValue`. */
export type EchoService = GenService<{
  /** Answers what it was sent. Has no side effects, so that Connect's GET is allowed. */
  say: { methodKind: "unary"; input: Text; output: Text };
  /** Answers what it was sent, by POST only. */
  save: { methodKind: "unary"; input: Text; output: Text };
  /** Sends its input as often as the input's length. */
  repeat: { methodKind: "server_streaming"; input: Text; output: Text };
  /** Joins its inputs. */
  join: { methodKind: "client_streaming"; input: Text; output: Text };
  /** Answers every input at once. */
  chat: { methodKind: "bidi_streaming"; input: Text; output: Text };
}>;

/** The full name of the test service, which is the first segment of its request paths. */
export const echoServiceName = "tradepost.test.v1.EchoService";

/** The descriptor of the test service, made at run time because the project's contract has no test service. */
export const EchoServiceDescriptor = describeEchoService();

/** What the test service does where a test wants something else than an echo. */
export type EchoImplementation = Partial<ServiceImpl<EchoService>>;

/** Registers the echo service, with `overrides` in place of the ordinary methods. */
export function echoRoutes(overrides: EchoImplementation = {}): (router: ConnectRouter) => void {
  const implementation: ServiceImpl<EchoService> = {
    say: (request) => ({ value: request.value }),
    save: (request) => ({ value: request.value }),
    async *repeat(request) {
      for (let i = 0; i < request.value.length; i++) {
        yield { value: request.value };
      }
    },
    async join(requests) {
      const parts: string[] = [];
      for await (const request of requests) {
        parts.push(request.value);
      }
      return { value: parts.join("+") };
    },
    async *chat(requests) {
      for await (const request of requests) {
        yield { value: request.value };
      }
    },
    ...overrides,
  };
  return (router) => {
    router.service(EchoServiceDescriptor, implementation);
  };
}

function describeEchoService(): EchoService {
  const method = (name: string, clientStreaming: boolean, serverStreaming: boolean) => ({
    name,
    inputType: ".google.protobuf.StringValue",
    outputType: ".google.protobuf.StringValue",
    clientStreaming,
    serverStreaming,
  });
  const wrappers = file_google_protobuf_wrappers;
  const file: FileDescriptorProto = create(FileDescriptorProtoSchema, {
    name: "tradepost/test/v1/echo_service.proto",
    package: "tradepost.test.v1",
    syntax: "proto3",
    dependency: [wrappers.proto.name],
    service: [
      {
        name: "EchoService",
        method: [
          {
            ...method("Say", false, false),
            options: { idempotencyLevel: MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS },
          },
          method("Save", false, false),
          method("Repeat", false, true),
          method("Join", true, false),
          method("Chat", true, true),
        ],
      },
    ],
  });
  const registry = createFileRegistry(file, (name) => (name === wrappers.proto.name ? wrappers : undefined));
  const service: DescService | undefined = registry.getService(echoServiceName);
  if (service === undefined) {
    throw new ConnectError("The test service was not registered.", Code.Internal);
  }
  return service as EchoService;
}
