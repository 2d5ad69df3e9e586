const KIB = 1024;
const MIB = 1024 * KIB;

/** What one listener allows its clients. Every number bounds memory, processor time or waiting. */
export interface Limits {
  /** Open connections in total. One more is closed as soon as it is accepted. */
  readonly connections: number;
  /** Requests in flight on one connection: HTTP/2 streams, or pipelined HTTP/1.1 requests. */
  readonly requestsPerConnection: number;
  /** Requests in flight in total, streaming ones included. One more is refused with UNAVAILABLE. */
  readonly requests: number;
  /** Bytes of request bodies held in memory in total. Requests beyond it are refused with RESOURCE_EXHAUSTED. */
  readonly requestMemoryBytes: number;
  /** Bytes of one request's header fields. */
  readonly headerBytes: number;
  /** Header fields of one request. */
  readonly headerCount: number;
  /** Bytes of one request message after decompression. */
  readonly readMaxBytes: number;
  /** Bytes of one response message before compression. */
  readonly sendMaxBytes: number;
  /** Response messages of at least this many bytes are compressed where the client accepts it. */
  readonly compressMinBytes: number;
  /** Flow control window of one HTTP/2 stream (bytes). */
  readonly streamWindowBytes: number;
  /** Flow control window of one HTTP/2 connection (bytes): the most that its clients can send unread. */
  readonly connectionWindowBytes: number;
  /** Time from accepting a connection until its protocol is known, TLS handshake included (milliseconds). */
  readonly firstBytesTimeoutMs: number;
  /** Time for the header of one HTTP/1.1 request (milliseconds). */
  readonly headersTimeoutMs: number;
  /** Time for the body of one request whose method takes a single message (milliseconds). */
  readonly bodyTimeoutMs: number;
  /** Time that a response may wait for a client that takes no bytes at all (milliseconds). */
  readonly writeStallTimeoutMs: number;
  /** Time from the last byte of a response being handed to the kernel until it must have been taken (milliseconds). */
  readonly flushTimeoutMs: number;
  /** Time that an HTTP/1.1 client may go on sending a body that nobody reads after its answer (milliseconds). */
  readonly wasteTimeoutMs: number;
  /** Time that a connection may stay open without a request (milliseconds). */
  readonly idleTimeoutMs: number;
  /** How often the timeouts above are checked, so also their precision (milliseconds). */
  readonly sweepIntervalMs: number;
}

/**
 * The limits of a listener that is told nothing else.
 *
 * - `readMaxBytes` is above the 4 MiB that gRPC servers usually take, because UploadAvatar carries images of 5 MiB.
 * - `compressMinBytes` is far above Connect's 1 KiB: gzip queues in the thread pool in which passwords are hashed, and
 *   saves nothing where a response fits a few packets anyway. Only pages of lists are that long.
 * - `idleTimeoutMs` is above the 60 s after which common load balancers drop an idle connection, so that it is they
 *   who close first and never send a request into a connection that is just being closed.
 */
export const defaultLimits: Limits = {
  connections: 4_096,
  requestsPerConnection: 256,
  requests: 8_192,
  requestMemoryBytes: 256 * MIB,
  headerBytes: 16 * KIB,
  headerCount: 128,
  readMaxBytes: 6 * MIB,
  sendMaxBytes: 16 * MIB,
  compressMinBytes: 32 * KIB,
  streamWindowBytes: 256 * KIB,
  connectionWindowBytes: MIB,
  firstBytesTimeoutMs: 10_000,
  headersTimeoutMs: 10_000,
  bodyTimeoutMs: 30_000,
  writeStallTimeoutMs: 30_000,
  flushTimeoutMs: 300_000,
  wasteTimeoutMs: 5_000,
  idleTimeoutMs: 120_000,
  sweepIntervalMs: 1_000,
};
