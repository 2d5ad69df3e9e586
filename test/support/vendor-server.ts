/** What the local stand-ins for payment vendors share: HTTP, faults on demand, and a count of what was asked. */
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import sinon from "sinon";

export interface VendorRequest {
  readonly method: string;
  readonly url: URL;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export interface VendorReply {
  readonly status: number;
  readonly body: unknown;
  readonly headers?: Record<string, string>;
}

/** One fault of one operation. It is used up by the first request that meets it. */
export interface Fault {
  readonly on: string;
  /** Whether the request is carried out all the same. */
  readonly executes: boolean;
  readonly answer: "cut" | "cut_half" | "hang" | "garbage" | "array" | "huge" | VendorReply;
}

/** What a request asks for, and how to carry it out; `reply` may replace the answer before it is remembered. */
export interface Operation {
  readonly name: string;
  execute(reply?: VendorReply): Promise<VendorReply>;
}

const maxBodyBytes = 64 * 1024;
const hugeBytes = 1024 * 1024;
/** Longer than the time of any call. */
const longMs = 3_600_000;

/** Makes a call whose time does not pass until `reached`, and is over then: it can never be over too early. */
export async function timeOutWhen<T>(reached: Promise<void>, call: () => Promise<T>): Promise<T> {
  const clock = sinon.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    const answer = call();
    await Promise.race([reached, answer]);
    clock.tick(longMs);
    return await answer;
  } finally {
    clock.restore();
  }
}

export class VendorServer {
  /** Every request that arrived, in order. */
  readonly requests: (VendorRequest & { readonly operation: string })[] = [];
  url = "";
  readonly #route: (request: VendorRequest) => Operation;
  readonly #faults: Fault[] = [];
  readonly #hung = Promise.withResolvers<void>();
  readonly #gates = new Map<string, Promise<void>>();
  readonly #server = createServer((request, response) => {
    this.#serve(request, response).catch(() => response.destroy());
  });

  constructor(route: (request: VendorRequest) => Operation) {
    this.#route = route;
  }

  async start(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.listen(0, "127.0.0.1", resolve);
    await promise;
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    if (!this.#server.listening) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    this.#server.closeAllConnections();
    await promise;
  }

  fail(fault: Fault): void {
    this.#faults.push(fault);
  }

  /** Holds the next requests of an operation before they are carried out, until it is called. */
  hold(operation: string): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#gates.set(operation, promise);
    return () => {
      this.#gates.delete(operation);
      resolve();
    };
  }

  /** Waits, within `execute`, while the operation is held. */
  async held(operation: string): Promise<void> {
    await this.#gates.get(operation);
  }

  /** Resolves once a request is left without an answer. */
  get hung(): Promise<void> {
    return this.#hung.promise;
  }

  count(operation: string): number {
    return this.requests.filter((request) => request.operation === operation).length;
  }

  async #serve(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const request = {
      method: incoming.method ?? "",
      url: new URL(incoming.url ?? "/", this.url),
      headers: incoming.headers,
      body: await readBody(incoming),
    };
    const operation = this.#route(request);
    this.requests.push({ ...request, operation: operation.name });
    const index = this.#faults.findIndex(({ on }) => on === operation.name);
    const fault = index < 0 ? undefined : this.#faults.splice(index, 1)[0];
    if (fault === undefined) return send(response, await operation.execute());
    const told = typeof fault.answer === "string" ? undefined : fault.answer;
    const reply = fault.executes ? await operation.execute(told) : told;
    if (fault.answer === "hang") this.#hung.resolve();
    else if (typeof fault.answer === "string") misanswer(response, fault.answer, reply);
    else send(response, fault.answer);
  }
}

async function readBody(incoming: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of incoming) {
    bytes += (chunk as Buffer).length;
    if (bytes > maxBodyBytes) throw new Error("The body is too large.");
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function send(response: ServerResponse, { status, body, headers }: VendorReply): void {
  response.writeHead(status, { "content-type": "application/json", "request-id": "req_1", ...headers });
  response.end(typeof body === "string" ? body : JSON.stringify(body));
}

function misanswer(
  response: ServerResponse,
  answer: Exclude<Extract<Fault["answer"], string>, "hang">,
  reply: VendorReply | undefined,
): void {
  switch (answer) {
    case "cut":
      response.destroy();
      return;
    case "cut_half":
      response.writeHead(200, { "content-type": "application/json", "content-length": 1_000 });
      response.write(JSON.stringify(reply?.body ?? {}).slice(0, 20));
      setImmediate(() => response.destroy());
      return;
    case "garbage":
      send(response, { status: 200, body: "<html>It works!</html>" });
      return;
    case "array":
      send(response, { status: 200, body: "[]" });
      return;
    case "huge":
      send(response, { status: 200, body: `{"id":"${"x".repeat(hugeBytes)}"}` });
  }
}
