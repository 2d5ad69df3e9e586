import { create } from "@bufbuild/protobuf";
import { StringValueSchema } from "@bufbuild/protobuf/wkt";
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { expect } from "chai";
import { pino } from "pino";
import { type Listener, listen } from "../../src/server/listener.ts";
import { type EchoService, EchoServiceDescriptor, echoRoutes } from "./echo-service.ts";
import { type MalformedCase, malformedCases, seededRandom } from "./malformed-corpus.ts";
import { sendRaw } from "./raw-wire.ts";

/** How many mutated requests the fuzz test sends, and how long it listens to each (milliseconds). */
const mutationCount = 400;
const mutationListenMs = 15;
/** How long to wait for the rest of an answer that began: HTTP/2 connections stay open (milliseconds). */
const settleMs = 30;
/** How long a healthy call may take beside the malformed ones (milliseconds). */
const healthyTimeoutMs = 15_000;

describe("malformed requests", function () {
  this.timeout(60_000);
  const faults: string[] = [];
  const onException = (error: unknown) => faults.push(`uncaught exception: ${describeError(error)}`);
  const onRejection = (error: unknown) => faults.push(`unhandled rejection: ${describeError(error)}`);
  const onWarning = (warning: Error) => faults.push(`process warning: ${describeError(warning)}`);
  let foreign: { exceptions: NodeJS.UncaughtExceptionListener[]; rejections: NodeJS.UnhandledRejectionListener[] };
  let listener: Listener;
  let overGrpc: Client<EchoService>;
  let overHttp1: Client<EchoService>;

  before(async () => {
    // Mocha's own listeners would blame whatever test runs at that moment; here the request that did it is named.
    foreign = {
      exceptions: process.listeners("uncaughtException"),
      rejections: process.listeners("unhandledRejection"),
    };
    process.removeAllListeners("uncaughtException").removeAllListeners("unhandledRejection");
    process.on("uncaughtException", onException).on("unhandledRejection", onRejection).on("warning", onWarning);
    listener = await listen({
      host: "127.0.0.1",
      port: 0,
      log: pino({ level: "silent" }),
      routes: echoRoutes(),
      http: { "/plain": (_req, res) => void res.end("plain"), "/plain/": (_req, res) => void res.end("plain") },
      cors: { origins: ["https://shop.example"] },
      limits: { sweepIntervalMs: 20, bodyTimeoutMs: 500 },
    });
    overGrpc = createClient(EchoServiceDescriptor, createGrpcTransport({ baseUrl: listener.url }));
    const http1 = createConnectTransport({ baseUrl: listener.url, httpVersion: "1.1" });
    overHttp1 = createClient(EchoServiceDescriptor, http1);
  });

  after(async () => {
    await listener.drain(1_000);
    process.off("uncaughtException", onException).off("unhandledRejection", onRejection).off("warning", onWarning);
    for (const previous of foreign.exceptions) {
      process.on("uncaughtException", previous);
    }
    for (const previous of foreign.rejections) {
      process.on("unhandledRejection", previous);
    }
  });

  async function expectHealthy(after: string): Promise<void> {
    const request = create(StringValueSchema, { value: after });
    const options = { timeoutMs: healthyTimeoutMs };
    const answers = await Promise.all([overGrpc.say(request, options), overHttp1.say(request, options)]);
    expect(answers.map((answer) => answer.value)).to.deep.equal([after, after]);
    expect(faults.splice(0), `faults that escaped after: ${after}`).to.deep.equal([]);
  }

  for (const malformed of malformedCases()) {
    it(`leave the server healthy: ${malformed.name}`, async () => {
      const answer = await sendRaw(listener.port, malformed.bytes, { settleMs, ...malformed.options });
      await expectHealthy(malformed.name);
      const opened = answer.bytes.subarray(0, 5).toString("latin1") === "HTTP/" || answer.bytes[3] === 4;
      expect(answer.closed || opened, "it was answered in HTTP, or the connection was closed").to.equal(true);
    });
  }

  it("leave the server healthy when the whole corpus arrives at once", async () => {
    await Promise.all(
      malformedCases().map(({ bytes, options }) => sendRaw(listener.port, bytes, { settleMs, ...options })),
    );
    await expectHealthy("the whole corpus");
  });

  it("leave the server healthy: hundreds of mutated ones", async function () {
    this.timeout(180_000);
    const seed = Math.floor(Math.random() * 2 ** 32);
    const random = seededRandom(seed);
    const corpus = malformedCases().filter(({ bytes }) => bytes.length > 0 && bytes.length < 20_000);
    for (let i = 0; i < mutationCount; i++) {
      const parent = corpus[Math.floor(random() * corpus.length)] as MalformedCase;
      const name = `mutation ${i} of seed ${seed}, from: ${parent.name}`;
      const options = { reset: random() < 0.2, end: random() < 0.2, listenMs: mutationListenMs };
      await sendRaw(listener.port, mutate(parent.bytes, random), options);
      await expectHealthy(name);
    }
  });

  it("leave nothing behind", async () => {
    const giveUpAt = performance.now() + 30_000;
    while (listener.load.requests > 0 && performance.now() < giveUpAt) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    const { requests, requestBytes } = listener.load;
    expect({ requests, requestBytes }).to.deep.equal({ requests: 0, requestBytes: 0 });
  });
});

function mutate(bytes: Buffer, random: () => number): Buffer {
  const copy = Buffer.from(bytes);
  const at = () => Math.floor(random() * copy.length);
  const kind = random();
  if (kind < 0.2) {
    return copy.subarray(0, at());
  }
  if (kind < 0.4) {
    const cut = at();
    return Buffer.concat([copy.subarray(0, cut), copy.subarray(Math.floor(cut * random()))]);
  }
  for (let flips = 1 + Math.floor(random() * 8); flips > 0; flips--) {
    copy[at()] = Math.floor(random() * 256);
  }
  return copy;
}

function describeError(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
