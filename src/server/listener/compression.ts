import { promisify } from "node:util";
import zlib from "node:zlib";
import { Code, ConnectError, type ConnectRouterOptions } from "@connectrpc/connect";

type Compression = NonNullable<ConnectRouterOptions["acceptCompression"]>[number];

const gzip = promisify<zlib.InputType, zlib.ZlibOptions, Buffer<ArrayBuffer>>(zlib.gzip);
const gunzip = promisify<zlib.InputType, zlib.ZlibOptions, Buffer<ArrayBuffer>>(zlib.gunzip);

/** libuv runs at most this many at once by default; more would only hold more half-inflated messages. */
const parallelInflations = 4;

/**
 * gzip for requests and responses, at the fastest level: the higher ones cost several times the processor for a few
 * percent. Brotli is left out, because its default quality takes tens of milliseconds for a page of orders.
 *
 * Few messages are inflated at a time, so that many small bombs at once cannot fill the memory with their contents;
 * each by itself ends at the limit for messages.
 */
export function createGzip(): Compression {
  const slots = new Slots(parallelInflations);
  return {
    name: "gzip",
    compress: compressGzip,
    async decompress(bytes, readMaxBytes) {
      if (bytes.length === 0) {
        return new Uint8Array(0);
      }
      await slots.take();
      try {
        return await gunzip(bytes, { maxOutputLength: readMaxBytes });
      } catch (error) {
        throw inflationError(error, readMaxBytes);
      } finally {
        slots.give();
      }
    },
  };
}

/** At the fastest level: see {@link createGzip}. */
export function compressGzip(bytes: Uint8Array): Promise<Uint8Array<ArrayBuffer>> {
  return gzip(bytes, { level: zlib.constants.Z_BEST_SPEED });
}

function inflationError(error: unknown, readMaxBytes: number): ConnectError {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return code === "ERR_BUFFER_TOO_LARGE"
    ? new ConnectError(`The message is larger than ${readMaxBytes} bytes when decompressed.`, Code.ResourceExhausted)
    : new ConnectError("The message is not valid gzip.", Code.InvalidArgument, undefined, undefined, error);
}

/** A counting semaphore. Its queue is bounded by the number of requests in flight. */
class Slots {
  #free: number;
  readonly #waiting: Array<() => void> = [];

  constructor(count: number) {
    this.#free = count;
  }

  take(): Promise<void> | undefined {
    if (this.#free > 0) {
      this.#free--;
      return undefined;
    }
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  give(): void {
    const next = this.#waiting.shift();
    if (next === undefined) {
      this.#free++;
    } else {
      next();
    }
  }
}
