/** The payment sandbox: an HTTP server that behaves like a remote payment provider, faults included. */
import { X509Certificate } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { type Answer, type RequestTarget, SandboxApi } from "./sandbox-api.ts";
import { SandboxLedger } from "./sandbox-ledger.ts";
import { minWebhookSecretLength } from "./sandbox-webhook.ts";
import { type SandboxWebhookOptions, SandboxWebhookSender } from "./sandbox-webhook-sender.ts";

/** How a sandbox runs. */
export interface SandboxOptions {
  /** The address to listen on. Default 127.0.0.1: nothing but this machine should reach a gateway without a lock. */
  readonly host?: string;
  /** 0 takes a free one. */
  readonly port: number;
  /** The folder of its durable memory; created when missing, used by one sandbox at a time. */
  readonly dataDir: string;
  readonly log: Logger;
  /** A wait before each request of a gateway is processed. Default 0, at most 60 s. */
  readonly latencyMs?: number;
  /** How long a request that gets no answer is held before its connection is cut. Default 60 s, at most 10 minutes. */
  readonly hangMs?: number;
  /**
   * How long after the client has given up (or was cut off) `tok_late_capture` captures; also after how long
   * `tok_refund_pending` completes. Default 2 s, at most 10 minutes.
   */
  readonly lateMs?: number;
  /** Where events are sent. Without it, none are made. */
  readonly webhook?: SandboxWebhookOptions;
}

/** A running sandbox. */
export interface Sandbox {
  readonly port: number;
  /** Such as `http://127.0.0.1:8081`, without a slash at its end. */
  readonly url: string;
  /** Stops taking requests, ends those that hang, makes everything durable. Safe to call twice. */
  close(): Promise<void>;
}

/** The sandbox cannot start; the message is a sentence that names the setting to change. */
export class SandboxStartError extends Error {
  override readonly name = "SandboxStartError";
}

const defaultHost = "127.0.0.1";
const defaultHangMs = 60_000;
const defaultLateMs = 2_000;
const maxLatencyMs = 60_000;
const maxHoldMs = 600_000;
const maxBodyBytes = 16 * 1024;
const maxUrlLength = 1_024;
const maxHeaderBytes = 8 * 1024;
const maxConnections = 4_096;
const headersTimeoutMs = 5_000;
const requestTimeoutMs = 10_000;
const connectionsCheckMs = 1_000;
const keepAliveTimeoutMs = 60_000;
const closeGraceMs = 2_000;
const chargesPerWrite = 500;
const garbageBytes = 1024 * 1024;

/**
 * Starts a sandbox that serves both gateways. Rejects with SandboxStartError or SandboxJournalError, whose messages are
 * sentences for the person who starts it.
 */
export async function startSandbox(options: SandboxOptions): Promise<Sandbox> {
  checkOptions(options);
  // The port comes first: a second sandbox beside a running one is told of the port, not of the folder.
  const listener = new SandboxListener(options);
  await listener.listen();
  const books = await openBooks(options).catch(async (error: unknown) => {
    await listener.close();
    throw error;
  });
  listener.serve(books);

  const stop = async (): Promise<void> => {
    books.sender?.close();
    await listener.close();
    books.api.close();
    await books.ledger.close();
  };
  let stopping: Promise<void> | undefined;
  const close = (): Promise<void> => {
    stopping ??= stop();
    return stopping;
  };
  return { ...listener.address(), close };
}

/** What stands behind the listener. */
interface Books {
  readonly ledger: SandboxLedger;
  readonly api: SandboxApi;
  readonly sender: SandboxWebhookSender | undefined;
}

async function openBooks(options: SandboxOptions): Promise<Books> {
  const { webhook, dataDir, log } = options;
  // The sender needs the ledger and the ledger wakes the sender, so one of them is bound late.
  let sender: SandboxWebhookSender | undefined;
  const ledger = await SandboxLedger.open({
    dataDir,
    recordEvents: webhook !== undefined,
    now: () => new Date(),
    onEvent: () => sender?.wake(),
  });
  const api = new SandboxApi(ledger, options.lateMs ?? defaultLateMs, log);
  if (webhook !== undefined) sender = new SandboxWebhookSender(webhook, ledger, log);
  api.resume();
  sender?.wake();
  return { ledger, api, sender };
}

function checkOptions(options: SandboxOptions): void {
  const checkRange = (name: string, value: number | undefined, max: number): void => {
    if (value !== undefined && !(value >= 0 && value <= max)) {
      throw new SandboxStartError(`The sandbox's ${name} must be 0 to ${max}, not ${value}.`);
    }
  };
  checkRange("latencyMs", options.latencyMs, maxLatencyMs);
  checkRange("hangMs", options.hangMs, maxHoldMs);
  checkRange("lateMs", options.lateMs, maxHoldMs);
  if (options.webhook === undefined) return;
  const { url: address } = options.webhook;
  const protocol = typeof address === "string" ? URL.parse(address)?.protocol : "http:";
  if (protocol !== "http:" && protocol !== "https:") {
    throw new SandboxStartError(`The sandbox's webhook address must begin with http:// or https://.`);
  }
  if (options.webhook.certificate !== undefined && !isCertificate(options.webhook.certificate)) {
    throw new SandboxStartError("The certificate (TLS_CERT) that the sandbox's webhooks are sent to is not valid PEM.");
  }
  if (options.webhook.secret.length < minWebhookSecretLength) {
    throw new SandboxStartError(`The sandbox's webhook secret must have ${minWebhookSecretLength} characters or more.`);
  }
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem).raw.length > 0;
  } catch {
    return false;
  }
}

/** The HTTP side: bounds what comes in, and writes what the API answers. */
class SandboxListener {
  readonly #log: Logger;
  readonly #host: string;
  readonly #port: number;
  readonly #latencyMs: number;
  readonly #hangMs: number;
  readonly #server: Server;
  /** The answers that will never be written; they would outlast a patient close. */
  readonly #hanging = new Set<ServerResponse>();
  readonly #closing = new AbortController();

  /** Requests that come while the ledger is still being read wait for it. */
  readonly #books = Promise.withResolvers<Books>();

  constructor(options: SandboxOptions) {
    this.#books.promise.catch(() => undefined);
    this.#log = options.log;
    this.#host = options.host ?? defaultHost;
    this.#port = options.port;
    this.#latencyMs = options.latencyMs ?? 0;
    this.#hangMs = options.hangMs ?? defaultHangMs;
    this.#server = createServer({
      maxHeaderSize: maxHeaderBytes,
      headersTimeout: headersTimeoutMs,
      requestTimeout: requestTimeoutMs,
      connectionsCheckingInterval: connectionsCheckMs,
      keepAliveTimeout: keepAliveTimeoutMs,
      noDelay: true,
    });
    this.#server.maxConnections = maxConnections;
    this.#server.on("request", (request, response) => void this.#handle(request, response));
    this.#server.on("clientError", (error, socket) => refuseUnreadable(error, socket as Socket));
  }

  listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", (error) => reject(this.#startError(error)));
      this.#server.listen(this.#port, this.#host, () => {
        this.#server.removeAllListeners("error");
        this.#server.on("error", (error) => this.#log.error({ err: error }, "sandbox listener failed"));
        resolve();
      });
    });
  }

  /** Begins to answer; what came before waited. */
  serve(books: Books): void {
    this.#books.resolve(books);
  }

  address(): { port: number; url: string } {
    const { port, address, family } = this.#server.address() as AddressInfo;
    return { port, url: `http://${family === "IPv6" ? `[${address}]` : address}:${port}` };
  }

  async close(): Promise<void> {
    this.#closing.abort();
    this.#books.reject(new Error("The sandbox closed before it had opened its ledger."));
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const response of this.#hanging) response.destroy();
    this.#server.closeIdleConnections();
    const timer = setTimeout(() => this.#server.closeAllConnections(), closeGraceMs);
    await closed;
    clearTimeout(timer);
  }

  #startError(error: Error): Error {
    const code = "code" in error ? error.code : undefined;
    if (code === "EADDRINUSE") {
      return new SandboxStartError(
        `Port ${this.#port} is taken: stop the program that uses it, or set SANDBOX_PORT to a free one.`,
      );
    }
    return new SandboxStartError(
      `The sandbox cannot listen on port ${this.#port} of ${this.#host} (SANDBOX_PORT): ${error.message}.`,
    );
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    // Errors of a connection that goes away in the middle need no more than this: nobody is left to answer.
    request.on("error", () => undefined);
    response.on("error", () => undefined);
    try {
      const answer = await this.#answer(request);
      if (answer !== undefined) await this.#write(response, answer);
    } catch (error) {
      this.#log.error(
        { err: error, method: request.method, url: request.url?.slice(0, 200) },
        "sandbox request failed",
      );
      if (response.headersSent) response.destroy();
      else writeJson(response, errorAnswer(500, "internal_error", "The sandbox failed; what it did is unknown."));
    }
  }

  /** The answer to a request; undefined when its sender went away before all of it was here, which does nothing. */
  async #answer(request: IncomingMessage): Promise<Answer | undefined> {
    const url = request.url ?? "";
    if (url.length > maxUrlLength) return errorAnswer(414, "address_too_long", "The address is too long.");
    // A page in a browser on this machine must not be able to charge or refund; such requests always name an origin.
    if (request.method === "POST" && request.headers.origin !== undefined) {
      return errorAnswer(403, "browser_refused", "The sandbox takes no requests from web pages.");
    }
    const body = await readBody(request);
    if (body === "gone") return undefined;
    if (body === "too_large") {
      return errorAnswer(413, "body_too_large", `A body may have ${maxBodyBytes} bytes.`, { connection: "close" });
    }
    if (this.#latencyMs > 0) await sleep(this.#latencyMs, undefined, { signal: this.#closing.signal }).catch(() => {});
    // What has not begun when the sandbox closes must not begin on a closed ledger.
    if (this.#closing.signal.aborted) return errorAnswer(500, "internal_error", "The sandbox is closing.");
    const { api, ledger } = await this.#books.promise;
    const answer = api.answer(targetOf(request.method ?? "", url, body));
    // Also an answer that changed nothing may tell of changes that are not on disk yet.
    await ledger.flushed();
    return answer;
  }

  async #write(response: ServerResponse, answer: Answer): Promise<void> {
    switch (answer.kind) {
      case "json":
        return writeJson(response, answer);
      case "hang":
        return this.#hang(response, answer.onGone);
      case "garbage":
        return writeGarbage(response);
      case "charges":
        return await this.#writeCharges(response);
    }
  }

  /** Never answers; tells when the client has given up, or was cut off after `hangMs`. */
  #hang(response: ServerResponse, onGone: (() => void) | undefined): void {
    if (response.destroyed || response.closed) {
      onGone?.();
      return;
    }
    this.#hanging.add(response);
    const timer = setTimeout(() => response.destroy(), this.#hangMs);
    response.once("close", () => {
      clearTimeout(timer);
      this.#hanging.delete(response);
      onGone?.();
    });
  }

  /** The list may be long, so it is written in pieces as the reader takes them. */
  async #writeCharges(response: ServerResponse): Promise<void> {
    response.writeHead(200, { "content-type": "application/json" });
    const { api, ledger } = await this.#books.promise;
    let separator = '{"charges":[';
    let texts: string[] = [];
    let wake: () => void = () => undefined;
    response.on("drain", () => wake());
    response.on("close", () => wake());
    const writePiece = async (): Promise<void> => {
      await ledger.flushed();
      if (response.destroyed || response.write(separator + texts.join(","))) return;
      const ready = Promise.withResolvers<void>();
      wake = ready.resolve;
      await ready.promise;
    };
    for (const charge of api.listedCharges()) {
      texts.push(JSON.stringify(charge));
      if (texts.length < chargesPerWrite) continue;
      await writePiece();
      if (response.destroyed) return;
      separator = ",";
      texts = [];
    }
    if (texts.length > 0 || separator !== ",") await writePiece();
    response.end("]}");
  }
}

/** A body may have one shape or be absent, so text is enough; malformed UTF-8 becomes malformed JSON. */
function readBody(request: IncomingMessage): Promise<string | "gone" | "too_large"> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    request.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (bytes <= maxBodyBytes) chunks.push(chunk);
      else resolve("too_large");
    });
    request.on("end", () => resolve(bytes > maxBodyBytes ? "too_large" : Buffer.concat(chunks).toString("utf8")));
    request.on("close", () => resolve("gone"));
  });
}

function targetOf(method: string, url: string, body: string): RequestTarget {
  const path = url.split("?", 1)[0] ?? "";
  return { method, segments: path.split("/").slice(1), body };
}

function errorAnswer(
  status: number,
  code: string,
  message: string,
  headers: Readonly<Record<string, string>> = {},
): Extract<Answer, { kind: "json" }> {
  return { kind: "json", status, body: { error: { code, message } }, headers };
}

function writeJson(response: ServerResponse, answer: Extract<Answer, { kind: "json" }>): void {
  const text = JSON.stringify(answer.body);
  response.writeHead(answer.status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
    ...answer.headers,
  });
  response.end(text);
}

/** An answer that begins well and never becomes JSON, larger than any client should read. */
function writeGarbage(response: ServerResponse): void {
  response.writeHead(200, { "content-type": "application/json" });
  response.write('{"charge":{"gateway":"');
  response.end("\u0000}]garbage".repeat(Math.ceil(garbageBytes / 10)));
}

/** What is not HTTP, too much of it or too slow gets a short answer where the socket still takes one. */
function refuseUnreadable(error: Error, socket: Socket): void {
  if (!socket.writable || socket.destroyed) {
    socket.destroy();
    return;
  }
  const code = "code" in error ? error.code : undefined;
  const status = unreadableStatuses.get(String(code)) ?? "400 Bad Request";
  const text = JSON.stringify({ error: { code: "malformed_request", message: "This is no complete HTTP request." } });
  const headers = `connection: close\r\ncontent-type: application/json\r\ncontent-length: ${text.length}`;
  socket.write(`HTTP/1.1 ${status}\r\n${headers}\r\n\r\n${text}`);
  // The other side may never close its half, so this does not wait for it.
  socket.destroySoon();
}

const unreadableStatuses: ReadonlyMap<string, string> = new Map([
  ["ERR_HTTP_REQUEST_TIMEOUT", "408 Request Timeout"],
  ["HPE_HEADER_OVERFLOW", "431 Request Header Fields Too Large"],
]);
