import net from "node:net";

/** The HTTP/2 client connection preface (RFC 9113, section 3.4). */
export const preface: Buffer = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

/** HTTP/2 frame types (RFC 9113, section 6). */
export const FrameType = {
  data: 0,
  headers: 1,
  priority: 2,
  rstStream: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;

/** HTTP/2 frame flags. */
export const Flag = { endStream: 0x1, ack: 0x1, endHeaders: 0x4, padded: 0x8 } as const;

/** One HTTP/2 frame. `declaredLength` lies about the payload's length, for malformed input. */
export function frame(
  type: number,
  flags: number,
  streamId: number,
  payload: Uint8Array,
  declaredLength?: number,
): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(declaredLength ?? payload.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(streamId, 5);
  return Buffer.concat([head, payload]);
}

/** A header block in HPACK, every field a literal without indexing and without Huffman coding. */
export function hpack(fields: ReadonlyArray<readonly [string, string | Buffer]>): Buffer {
  const parts: Buffer[] = [];
  for (const [name, value] of fields) {
    parts.push(Buffer.from([0]), hpackString(Buffer.from(name, "latin1")));
    parts.push(hpackString(typeof value === "string" ? Buffer.from(value, "latin1") : value));
  }
  return Buffer.concat(parts);
}

function hpackString(bytes: Buffer): Buffer {
  if (bytes.length < 127) {
    return Buffer.concat([Buffer.from([bytes.length]), bytes]);
  }
  const prefix = [127];
  let rest = bytes.length - 127;
  while (rest >= 128) {
    prefix.push((rest & 127) | 128);
    rest >>= 7;
  }
  prefix.push(rest);
  return Buffer.concat([Buffer.from(prefix), bytes]);
}

/** The start of every HTTP/2 connection of the raw tests: preface and empty SETTINGS. */
export const opening: Buffer = Buffer.concat([preface, frame(FrameType.settings, 0, 0, Buffer.alloc(0))]);

/** A gRPC, gRPC-Web or Connect streaming envelope around `message`. */
export function envelope(message: Uint8Array, flags = 0, declaredLength = message.length): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(flags, 0);
  head.writeUInt32BE(declaredLength >>> 0, 1);
  return Buffer.concat([head, message]);
}

/** How a raw exchange went: all bytes received, and whether the server closed the connection within the time given. */
export interface RawAnswer {
  readonly bytes: Buffer;
  readonly closed: boolean;
}

/** Far longer than any answer takes that comes at all (milliseconds). */
const defaultListenMs = 10_000;

/** What to do with a raw connection after its bytes are written. */
export interface RawOptions {
  /** Write one byte at a time, each in its own packet as far as the kernel allows. */
  readonly oneByteAtATime?: boolean;
  /** Reset the connection right after writing, as a crashing client would. */
  readonly reset?: boolean;
  /** Send FIN after writing. */
  readonly end?: boolean;
  /** How long to listen for an answer before giving up (milliseconds). Default: ten seconds. */
  readonly listenMs?: number;
  /** Listen no longer once these bytes have come: HTTP/2 connections stay open. */
  readonly until?: Buffer;
  /** How much longer to listen once everything is written and an answer has begun (milliseconds). */
  readonly settleMs?: number;
}

/** Connects, writes `bytes` and collects what comes back until the server closes or the time is up. Never rejects. */
export function sendRaw(port: number, bytes: Uint8Array, options: RawOptions = {}): Promise<RawAnswer> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let written = false;
    let settling: NodeJS.Timeout | undefined;
    const socket = net.connect({ host: "127.0.0.1", port, noDelay: true });
    const finish = (closed: boolean) => {
      clearTimeout(timer);
      clearTimeout(settling);
      socket.destroy();
      resolve({ bytes: Buffer.concat(chunks), closed });
    };
    const settle = () => {
      if (written && chunks.length > 0 && options.settleMs !== undefined) {
        settling ??= setTimeout(() => finish(false), options.settleMs);
      }
    };
    const timer = setTimeout(() => finish(false), options.listenMs ?? defaultListenMs);
    socket.on("data", (chunk) => {
      chunks.push(chunk);
      if (options.until !== undefined && Buffer.concat(chunks).includes(options.until)) finish(false);
      settle();
    });
    socket.on("error", () => {});
    socket.on("close", () => finish(true));
    socket.once("connect", async () => {
      await writeAll(socket, bytes, options.oneByteAtATime === true);
      written = true;
      settle();
      if (options.reset === true) {
        socket.resetAndDestroy();
      } else if (options.end === true) {
        socket.end();
      }
    });
  });
}

async function writeAll(socket: net.Socket, bytes: Uint8Array, oneByteAtATime: boolean): Promise<void> {
  const step = oneByteAtATime ? 1 : Math.max(bytes.length, 1);
  for (let i = 0; i < bytes.length && !socket.destroyed; i += step) {
    await new Promise<void>((resolve) => {
      socket.write(bytes.subarray(i, i + step), () => resolve());
    });
    if (oneByteAtATime) {
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }
}
