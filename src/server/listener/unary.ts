import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodUnary,
  fromBinary,
  type Message,
  toBinary,
} from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  type HandlerContext,
  type Interceptor,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import { compressedFlag, encodeEnvelope } from "@connectrpc/connect/protocol";
import { grpcStatusOk, setTrailerStatus } from "@connectrpc/connect/protocol-grpc";
import { compressGzip } from "./compression.ts";
import type { Exchange } from "./exchange.ts";
import { msOfGrpcTimeout, responseHeader } from "./headers.ts";
import type { Limits } from "./limits.ts";
import type { RequestBody } from "./request-body.ts";
import type { RpcRequest } from "./rpc.ts";

// gRPC's unary calls of plain shape, which are nearly all of the calls between services, without the streams, copies of
// headers and abort signals that Connect makes for every call whatever it is. The interceptors and implementations are
// the same. Whatever is not plain, or not right, is handed to Connect with all of its bytes, so there is one word on it.

/** A unary RPC with all that a call of it passes through. */
export interface UnaryMethod {
  readonly method: DescMethod & DescMethodUnary;
  readonly invoke: (req: UnaryRequest) => Promise<UnaryResponse>;
}

type Implementation = (message: Message, context: HandlerContext) => unknown;
type MessageLimits = Pick<Limits, "readMaxBytes" | "sendMaxBytes" | "compressMinBytes">;

const CONTENT_TYPES: ReadonlySet<string | undefined> = new Set(["application/grpc", "application/grpc+proto"]);
/** Flags and length. */
const PREFIX_BYTES = 5;

/**
 * Registers RPCs with `router`, and gives the unary ones by their path. Each interceptor is applied once, not for every
 * call: what it keeps outside of the function that it returns is shared by all calls.
 */
export function registerUnary(
  router: ConnectRouter,
  routes: (router: ConnectRouter) => void,
  interceptors: readonly Interceptor[],
): ReadonlyMap<string, UnaryMethod> {
  const found = new Map<string, UnaryMethod>();
  const recorder: ConnectRouter = {
    handlers: router.handlers,
    service(service, implementation, options) {
      router.service(service, implementation, options);
      for (const method of service.methods) {
        const own = (implementation as Readonly<Record<string, unknown>>)[method.localName];
        if (!isUnary(method) || typeof own !== "function" || options !== undefined) continue;
        const invoke = compose(method, own.bind(implementation) as Implementation, interceptors);
        found.set(`/${service.typeName}/${method.name}`, { method, invoke });
      }
      return recorder;
    },
    rpc(method, implementation, options) {
      router.rpc(method, implementation, options);
      return recorder;
    },
  };
  routes(recorder);
  return found;
}

function isUnary(method: DescMethod): method is DescMethod & DescMethodUnary {
  return method.methodKind === "unary";
}

function compose(
  method: DescMethod & DescMethodUnary,
  implementation: Implementation,
  interceptors: readonly Interceptor[],
): UnaryMethod["invoke"] {
  const innermost = async (req: UnaryRequest): Promise<UnaryResponse> => {
    const context = contextOf(req);
    const message = create(method.output, (await implementation(req.message, context)) as Message);
    const { service, responseHeader: header, responseTrailer: trailer } = context;
    return { stream: false, service, method, header, trailer, message };
  };
  type Next = ReturnType<Interceptor>;
  return interceptors.reduceRight<Next>((next, intercept) => intercept(next), innermost as Next) as typeof innermost;
}

function contextOf(req: UnaryRequest): HandlerContext {
  const expiresAtMs = Date.now() + (msOfGrpcTimeout(req.header.get("grpc-timeout")) ?? Number.NaN);
  return {
    service: req.service,
    method: req.method,
    protocolName: "grpc",
    requestMethod: req.requestMethod,
    url: req.url,
    requestHeader: req.header,
    responseHeader: new Headers(),
    responseTrailer: new Headers(),
    values: req.contextValues,
    timeoutMs: () => (Number.isNaN(expiresAtMs) ? undefined : expiresAtMs - Date.now()),
    get signal() {
      return req.signal;
    },
  };
}

/** Whether a request's header fields are those of a plain call. */
export function isPlain({ stream, headers, method }: Exchange): boolean {
  return (
    stream !== undefined &&
    method === "POST" &&
    CONTENT_TYPES.has(headers["content-type"]) &&
    (headers["grpc-encoding"] ?? "identity") === "identity" &&
    headers.expect === undefined &&
    (headers["grpc-timeout"] === undefined || msOfGrpcTimeout(String(headers["grpc-timeout"])) !== undefined)
  );
}

/**
 * Receives a plain call and answers it.
 * @returns undefined; or the request's bytes, for Connect to answer what is not plain after all.
 */
export async function serveUnary(
  unary: UnaryMethod,
  request: RpcRequest,
  limits: MessageLimits,
  shutdownSignal: AbortSignal,
): Promise<AsyncIterable<Uint8Array> | undefined> {
  const { exchange, body } = request;
  const received = await receive(body, limits.readMaxBytes);
  const message = read(unary.method.input, received);
  if (message === undefined) return replay(received, body);
  try {
    const { header, trailer, message: answer } = await unary.invoke(toCall(unary, request, message, shutdownSignal));
    const bytes = toBinary(unary.method.output, answer as Message);
    if (bytes.length > limits.sendMaxBytes) throw tooLong(bytes.length, limits.sendMaxBytes);
    const accepted = String(exchange.headers["grpc-accept-encoding"] ?? "");
    const zipped = bytes.length >= limits.compressMinBytes && /\bgzip\b/.test(accepted);
    if (zipped) header.set("grpc-encoding", "gzip");
    trailer.set("grpc-status", grpcStatusOk);
    send(
      exchange,
      header,
      zipped ? encodeEnvelope(compressedFlag, await compressGzip(bytes)) : encodeEnvelope(0, bytes),
      trailer,
    );
  } catch (error) {
    const told = error instanceof ConnectError ? error : new ConnectError("internal error", Code.Internal);
    send(exchange, new Headers(), undefined, setTrailerStatus(new Headers(), told));
  }
  return undefined;
}

function toCall(
  { method }: UnaryMethod,
  { exchange, target, header, contextValues }: RpcRequest,
  message: Message,
  shutdownSignal: AbortSignal,
): UnaryRequest {
  let signal: AbortSignal | undefined;
  return {
    stream: false,
    service: method.parent,
    method,
    requestMethod: "POST",
    url: target.url,
    header,
    contextValues,
    message,
    // Made for the few that look at it: making it for each call would cost more than the rest of the way through here.
    get signal() {
      signal ??= AbortSignal.any([exchange.signal, shutdownSignal, ...deadlineOf(header)]);
      return signal;
    },
  };
}

function deadlineOf(header: Headers): AbortSignal[] {
  const timeoutMs = msOfGrpcTimeout(header.get("grpc-timeout"));
  return timeoutMs === undefined ? [] : [AbortSignal.timeout(Math.ceil(timeoutMs))];
}

interface Received {
  readonly chunks: readonly Uint8Array[];
  readonly bytes: number;
  /** Why there are no more. */
  readonly fault: unknown;
}

/** Receives a request's bytes until they end, fail, or turn out to be more than one message of a length that is taken. */
async function receive(body: RequestBody, maxBytes: number): Promise<Received> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  try {
    for (let next = await body.next(); next.done !== true; next = await body.next()) {
      chunks.push(next.value);
      bytes += next.value.length;
      const promised = promisedBytes(chunks[0] as Uint8Array);
      if (bytes > PREFIX_BYTES + maxBytes || (promised !== undefined && promised > maxBytes)) break;
    }
    return { chunks, bytes, fault: undefined };
  } catch (fault) {
    return { chunks, bytes, fault };
  }
}

/** The length of the message that begins with `head`. */
function promisedBytes(head: Uint8Array): number | undefined {
  if (head.length < PREFIX_BYTES) return undefined;
  return new DataView(head.buffer, head.byteOffset).getUint32(1);
}

/** The message, if it is whole, alone, not compressed, and can be read. */
function read(schema: DescMessage, { chunks, bytes, fault }: Received): Message | undefined {
  const [first] = chunks;
  if (first === undefined || fault !== undefined) return undefined;
  const whole = chunks.length === 1 ? first : Buffer.concat(chunks, bytes);
  if (whole[0] !== 0 || promisedBytes(whole) !== bytes - PREFIX_BYTES) return undefined;
  try {
    return fromBinary(schema, whole.subarray(PREFIX_BYTES));
  } catch {
    return undefined;
  }
}

async function* replay({ chunks, fault }: Received, rest: RequestBody): AsyncGenerator<Uint8Array> {
  yield* chunks;
  if (fault !== undefined) throw fault;
  yield* rest;
}

function send(exchange: Exchange, header: Headers, frame: Uint8Array | undefined, trailer: Headers): void {
  const { stream } = exchange;
  if (stream === undefined || exchange.closed || stream.destroyed || stream.closed) return;
  const trailerFields = responseHeader(trailer);
  const fields = { ":status": 200, "content-type": "application/grpc+proto", ...responseHeader(header) };
  stream.once("wantTrailers", () => {
    try {
      stream.sendTrailers(trailerFields);
    } catch {
      // The client reset the stream meanwhile.
      exchange.destroy();
    }
  });
  stream.respond(fields, { waitForTrailers: true });
  stream.end(frame);
}

function tooLong(bytes: number, maxBytes: number): ConnectError {
  return new ConnectError(
    `message size ${bytes} is larger than configured writeMaxBytes ${maxBytes}`,
    Code.ResourceExhausted,
  );
}
