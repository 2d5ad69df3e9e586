import { type ClientHttp2Session, connect } from "node:http2";
import { connect as connectSocket } from "node:net";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { encodeEnvelope } from "@connectrpc/connect/protocol";

const PREFIX_BYTES = 5;

/** What came of a call: its answer's bytes where it was answered as it should be, or else the code or what happened. */
export type Answer<O extends DescMessage> =
  | { readonly ok: true; readonly read: () => MessageShape<O> }
  | { readonly ok: false; readonly why: string };

/**
 * One HTTP/2 connection that makes unary gRPC calls, with no more than it takes to make many. @grpc/grpc-js takes twice
 * the processor time for a call, and a load on the machine that it measures takes it from what is measured.
 */
export class GrpcClient {
  readonly #session: ClientHttp2Session;

  /** @param url such as `http://127.0.0.1:8080` */
  constructor(url: string) {
    const { hostname, port } = new URL(url);
    // Without it a small frame waits for the other side to acknowledge the one before, up to 40 ms.
    const createConnection = () => connectSocket({ host: hostname, port: Number(port), noDelay: true });
    this.#session = connect(url, { createConnection });
    // What goes wrong with the connection goes wrong with its calls, and they tell.
    this.#session.on("error", () => {});
  }

  call<I extends DescMessage, O extends DescMessage>(
    { parent, name, input, output }: DescMethodUnary<I, O> & CallPath,
    request: MessageInitShape<I>,
    token?: string,
  ): Promise<Answer<O>> {
    const frame = encodeEnvelope(0, toBinary(input, create(input, request)));
    return new Promise((resolve) => {
      const stream = this.#session.request({
        ":method": "POST",
        ":path": `/${parent.typeName}/${name}`,
        "content-type": "application/grpc+proto",
        te: "trailers",
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
      });
      const chunks: Buffer[] = [];
      let status: unknown;
      const statusIn = (fields: object) => {
        if ("grpc-status" in fields) status = fields["grpc-status"];
      };
      stream.on("response", statusIn);
      stream.on("trailers", statusIn);
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.on("error", () => {});
      stream.once("close", () => {
        if (status !== "0") resolve({ ok: false, why: status === undefined ? "no answer" : `code ${status}` });
        else resolve({ ok: true, read: () => fromBinary(output, Buffer.concat(chunks).subarray(PREFIX_BYTES)) });
      });
      stream.end(frame);
    });
  }

  close(): void {
    this.#session.close();
  }
}

interface CallPath {
  readonly parent: { readonly typeName: string };
  readonly name: string;
}
