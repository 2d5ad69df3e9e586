// For teams that are on @grpc/grpc-js: the same generated services as typed clients of that library.

import {
  create,
  type DescMessage,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type Code, ConnectError } from "@connectrpc/connect";
import {
  type CallOptions,
  type ChannelCredentials,
  type ClientOptions,
  type ClientReadableStream,
  type ClientUnaryCall,
  type Client as GrpcClient,
  type Metadata,
  makeGenericClientConstructor,
  type requestCallback,
  type ServiceDefinition,
  type ServiceError,
} from "@grpc/grpc-js";
import { type Status, StatusSchema } from "../../gen/google/rpc/status_pb.js";

interface UnaryCall<I extends DescMessage, O extends DescMessage> {
  (request: MessageInitShape<I>, callback: requestCallback<MessageShape<O>>): ClientUnaryCall;
  (request: MessageInitShape<I>, metadata: Metadata, callback: requestCallback<MessageShape<O>>): ClientUnaryCall;
  (
    request: MessageInitShape<I>,
    metadata: Metadata,
    options: CallOptions,
    callback: requestCallback<MessageShape<O>>,
  ): ClientUnaryCall;
}

type ServerStreamingCall<I extends DescMessage, O extends DescMessage> = (
  request: MessageInitShape<I>,
  metadata?: Metadata,
  options?: CallOptions,
) => ClientReadableStream<MessageShape<O>>;

/** A grpc-js client with the methods of a service. Tradepost's are unary or server-streaming. */
export type GrpcJsClient<S extends DescService> = GrpcClient & {
  [M in keyof S["method"]]: S["method"][M] extends DescMethodUnary<infer I, infer O>
    ? UnaryCall<I, O>
    : S["method"][M] extends DescMethodServerStreaming<infer I, infer O>
      ? ServerStreamingCall<I, O>
      : never;
};

function codecOf(schema: DescMessage) {
  return {
    serialize: (value: MessageInitShape<DescMessage>) => Buffer.from(toBinary(schema, create(schema, value))),
    deserialize: (bytes: Buffer) => fromBinary(schema, bytes),
  };
}

/** A generated service as grpc-js defines services, for clients and for servers. */
export function grpcJsDefinition(service: DescService): ServiceDefinition {
  return Object.fromEntries(
    service.methods.map((method) => {
      const input = codecOf(method.input);
      const output = codecOf(method.output);
      const definition = {
        path: `/${service.typeName}/${method.name}`,
        originalName: method.localName,
        requestStream: method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming",
        responseStream: method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming",
        requestSerialize: input.serialize,
        requestDeserialize: input.deserialize,
        responseSerialize: output.serialize,
        responseDeserialize: output.deserialize,
      };
      return [method.localName, definition];
    }),
  );
}

/**
 * Makes a typed grpc-js client of a generated service.
 *
 * @param address target as grpc-js takes it, such as `localhost:8080`
 */
export function createGrpcJsClient<S extends DescService>(
  service: S,
  address: string,
  credentials: ChannelCredentials,
  options: ClientOptions = {},
): GrpcJsClient<S> {
  const Constructor = makeGenericClientConstructor(grpcJsDefinition(service), service.typeName);
  return new Constructor(address, credentials, options) as unknown as GrpcJsClient<S>;
}

function statusOf({ metadata }: ServiceError): Status | undefined {
  const [encoded] = metadata.get("grpc-status-details-bin");
  if (!Buffer.isBuffer(encoded)) return undefined;
  try {
    return fromBinary(StatusSchema, encoded);
  } catch {
    // A status that cannot be read is left out, as Connect does: the code and the message stand for themselves.
    return undefined;
  }
}

/** The error of a grpc-js call with its details, ready for `reasonOf`, `errorInfo` and `violationsOf`. */
export function connectErrorFrom(error: ServiceError): ConnectError {
  const status = statusOf(error);
  // grpc-js decodes the message only in part (a colon stays "%3A"); inside the status it needs no decoding.
  const message = status?.message ?? error.details;
  const result = new ConnectError(message, error.code as number as Code, undefined, undefined, error);
  result.details = (status?.details ?? []).map(({ typeUrl, value }) => ({
    type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1),
    value,
  }));
  return result;
}
