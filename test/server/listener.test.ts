import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import tls from "node:tls";
import { gzipSync } from "node:zlib";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { StringValueSchema } from "@bufbuild/protobuf/wkt";
import {
  type Client,
  Code,
  ConnectError,
  createClient,
  createContextKey,
  createContextValues,
  type HandlerContext,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import * as grpc from "@grpc/grpc-js";
import { expect } from "chai";
import { pino } from "pino";
import sinon from "sinon";
import { drainSignalKey, type Listener, type ListenerOptions, listen } from "../../src/server/listener.ts";
import {
  type EchoImplementation,
  type EchoService,
  EchoServiceDescriptor,
  echoRoutes,
  echoServiceName,
} from "./echo-service.ts";
import { grpcFields, http1 } from "./malformed-corpus.ts";
import { envelope, Flag, FrameType, frame, hpack, opening, sendRaw } from "./raw-wire.ts";
import { selfSignedCertificate } from "./self-signed.ts";

const silent = pino({ level: "silent" });
const sayPath = `/${echoServiceName}/Say`;
const messageOf = (value: string) => Buffer.from(toBinary(StringValueSchema, create(StringValueSchema, { value })));
const hello = messageOf("hello");
/** Far longer than anything takes that a test waits for, however busy the machine (milliseconds). */
const patienceMs = 15_000;

describe("listener", () => {
  const listeners: Listener[] = [];

  /** Starts a listener that is stopped after the test. */
  async function start(overrides: EchoImplementation = {}, options: Partial<ListenerOptions> = {}): Promise<Listener> {
    const listener = await listen({
      host: "127.0.0.1",
      port: 0,
      log: silent,
      routes: echoRoutes(overrides),
      ...options,
      limits: { sweepIntervalMs: 20, ...options.limits },
    });
    listeners.push(listener);
    return listener;
  }

  afterEach(async () => {
    await Promise.all(listeners.splice(0).map((listener) => listener.drain(0)));
  });

  describe("protocols", () => {
    const transports: Record<string, (baseUrl: string) => Transport> = {
      "gRPC over HTTP/2": (baseUrl) => createGrpcTransport({ baseUrl }),
      "gRPC-Web over HTTP/1.1": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
      "gRPC-Web over HTTP/2": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "2" }),
      "Connect over HTTP/1.1": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "1.1" }),
      "Connect over HTTP/2": (baseUrl) => createConnectTransport({ baseUrl, httpVersion: "2" }),
      "Connect JSON over HTTP/2": (baseUrl) =>
        createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: false }),
      "Connect GET over HTTP/1.1": (baseUrl) =>
        createConnectTransport({ baseUrl, httpVersion: "1.1", useHttpGet: true }),
    };

    for (const [name, createTransport] of Object.entries(transports)) {
      it(`serves unary and server-streaming methods by ${name}`, async () => {
        const { url } = await start();
        const client = createClient(EchoServiceDescriptor, createTransport(url));
        expect((await client.say({ value: "hello" })).value).to.equal("hello");
        expect((await client.save({ value: "saved" })).value).to.equal("saved");
        expect(await collect(client.repeat({ value: "abc" }))).to.deep.equal(["abc", "abc", "abc"]);
      });

      it(`tells UNIMPLEMENTED at an unknown path by ${name}`, async () => {
        const { url } = await start({}, { routes: () => {} });
        const client = createClient(EchoServiceDescriptor, createTransport(url));
        await expectCode(client.say({ value: "x" }), Code.Unimplemented);
        await expectCode(collect(client.repeat({ value: "x" })), Code.Unimplemented);
      });
    }

    it("serves client-streaming and bidirectional methods by gRPC", async () => {
      const { url } = await start();
      const client = grpcClient(url);
      expect((await client.join(values("a", "b", "c"))).value).to.equal("a+b+c");
      expect(await collect(client.chat(values("x", "y")))).to.deep.equal(["x", "y"]);
    });

    it("serves @grpc/grpc-js, which shares no code with Connect", async () => {
      const { port } = await start();
      const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
      try {
        expect(await grpcJsCall(client, sayPath, "hello")).to.equal("hello");
        const failure = await grpcJsCall(client, "/none.Service/None", "x").catch((error: unknown) => error);
        expect(failure).to.include({ code: grpc.status.UNIMPLEMENTED });
      } finally {
        client.close();
      }
    });

    it("answers plain fetch with Connect's JSON", async () => {
      const { url } = await start();
      const answer = await postJson(`${url}${sayPath}`, '"hello"');
      expect([answer.status, await answer.json()]).to.deep.equal([200, "hello"]);
    });

    it("recognises both protocols when bytes arrive one at a time", async () => {
      const { port } = await start();
      const body = '"hi"';
      const request = http1(
        `POST ${sayPath} HTTP/1.1`,
        ["Host: x", "Content-Type: application/json", `Content-Length: ${body.length}`, "Connection: close"],
        body,
      );
      const first = await sendRaw(port, request, { oneByteAtATime: true });
      expect(first.bytes.toString("latin1")).to.match(/^HTTP\/1\.1 200 OK\r\n[\s\S]*"hi"$/);
      const second = await sendRaw(port, rawGrpcCall(sayPath), { oneByteAtATime: true, until: hello });
      expect(second.bytes.includes(hello), "the echoed message").to.equal(true);
    });

    it("keeps a deadline that is longer than any timer from firing at once", async () => {
      const { url } = await start({
        say: async (request, context) => {
          await delay(20);
          return { value: context.signal.aborted ? "aborted" : request.value };
        },
      });
      const answer = await postJson(`${url}${sayPath}`, '"x"', { "connect-timeout-ms": "9999999999" });
      expect(await answer.json()).to.equal("x");
      const metadata = { "grpc-timeout": "99999999H" };
      expect((await grpcClient(url).say({ value: "x" }, { headers: metadata })).value).to.equal("x");
    });

    it("compresses long responses only", async () => {
      const { url } = await start({ say: (request) => ({ value: "a".repeat(Number(request.value)) }) });
      const encoding = async (length: number) => {
        const answer = await postJson(`${url}${sayPath}`, `"${length}"`, { "accept-encoding": "gzip, br" });
        expect(await answer.json()).to.have.lengthOf(length);
        return answer.headers.get("content-encoding");
      };
      expect([await encoding(2_000), await encoding(100_000)]).to.deep.equal([null, "gzip"]);
    });

    it("hands interceptors and context values to RPCs", async () => {
      const key = createContextKey("none");
      const seen: string[] = [];
      const interceptor: Interceptor = (next) => (request) => {
        seen.push(request.contextValues.get(key));
        return next(request);
      };
      const { url } = await start(
        {},
        {
          interceptors: [interceptor],
          contextValues: (req) => createContextValues().set(key, `from ${req.headers["user-agent"]}`),
        },
      );
      await postJson(`${url}${sayPath}`, '"x"', { "user-agent": "tests" });
      expect(seen).to.deep.equal(["from tests"]);
    });

    it("answers INTERNAL when the context of a request cannot be made", async () => {
      const { url } = await start(
        {},
        {
          contextValues: () => {
            throw new Error("a fault of ours");
          },
        },
      );
      const answer = await postJson(`${url}${sayPath}`, '"x"');
      expect([answer.status, await answer.json()]).to.deep.equal([
        500,
        { code: "internal", message: "internal error" },
      ]);
      await expectCode(grpcClient(url).say({ value: "x" }), Code.Internal);
    });
  });

  describe("plain HTTP", () => {
    it("serves exact paths and prefixes over HTTP/1.1 and HTTP/2", async () => {
      const { url } = await start(
        {},
        {
          http: {
            "/.well-known/jwks.json": (_req, res) => void res.end("keys"),
            "/avatars/": (req, res) => void res.end(`avatar ${req.url}`),
            "/avatars/special/": (_req, res) => void res.end("special"),
          },
        },
      );
      const session = http2.connect(url);
      try {
        for (const get of [(path: string) => fetchText(url + path), (path: string) => http2Get(session, path)]) {
          expect(await get("/.well-known/jwks.json")).to.equal("200 keys");
          expect(await get("/avatars/a.webp?size=2")).to.equal("200 avatar /avatars/a.webp?size=2");
          expect(await get("/avatars/special/x")).to.equal("200 special");
          expect(await get("/.well-known/jwks.json/x")).to.equal("404 There is nothing at this path.\n");
        }
      } finally {
        session.close();
      }
    });

    it("answers 500 where a route throws or rejects, and stays alive", async () => {
      const { url } = await start(
        {},
        {
          http: {
            "/throws": () => {
              throw new Error("sync");
            },
            "/rejects": async () => {
              throw new Error("async");
            },
          },
        },
      );
      expect(await fetchText(`${url}/throws`)).to.equal("500 internal error\n");
      expect(await fetchText(`${url}/rejects`)).to.equal("500 internal error\n");
    });

    it("takes GET, HEAD and POST, and names them for other methods", async () => {
      const { url } = await start({}, { http: { "/x": (req, res) => void res.end(req.method ?? "") } });
      for (const method of ["GET", "POST", "HEAD"]) {
        expect((await fetch(`${url}/x`, { method })).status, method).to.equal(200);
      }
      const refused = await fetch(`${url}/x`, { method: "DELETE" });
      expect([refused.status, refused.headers.get("allow")]).to.deep.equal([405, "GET, HEAD, POST"]);
    });

    it("reads an absolute request target as a proxy would write it", async () => {
      const { port } = await start({}, { http: { "/x": (req, res) => void res.end(`at ${req.url}`) } });
      const answer = await sendRaw(
        port,
        http1("GET http://shop.example/x?y HTTP/1.1", ["Host: other", "Connection: close"]),
      );
      expect(answer.bytes.toString()).to.match(/at \/x\?y/);
    });

    it("answers 400 where the target or the host is none", async () => {
      const { port } = await start();
      const status = async (target: string, host: string) => {
        const request = http1(`GET ${target} HTTP/1.1`, [`Host: ${host}`, "Connection: close"]);
        return Number((await sendRaw(port, request)).bytes.toString("latin1", 9, 12));
      };
      expect(await status("*", "x")).to.equal(400);
      expect(await status("http://[/x", "x")).to.equal(400);
      for (const host of ["[", "x:y", "x y", "user:pass@x", "a/b", "x?"]) {
        expect(await status(sayPath, host), host).to.equal(400);
      }
    });

    it("says which methods an RPC has", async () => {
      const { url } = await start();
      const allowed = async (path: string) => {
        const answer = await fetch(`${url}/${echoServiceName}/${path}`, { method: "PUT" });
        return [answer.status, answer.headers.get("allow")];
      };
      expect(await allowed("Save")).to.deep.equal([405, "POST"]);
      expect(await allowed("Say")).to.deep.equal([405, "POST, GET"]);
    });
  });

  describe("browsers of other origins", () => {
    const preflight = { origin: "https://shop.example", "access-control-request-method": "POST" };

    it("get no permission by default", async () => {
      const { url } = await start();
      const answer = await rawFetch(`${url}${sayPath}`, "OPTIONS", preflight);
      expect(answer.statusCode).to.equal(405);
      expect(answer.headers).to.not.have.property("access-control-allow-origin");
    });

    it("get permission for what the protocols need if their origin is listed", async () => {
      const { url } = await start({}, { cors: { origins: ["https://shop.example"] } });
      const answer = await rawFetch(`${url}${sayPath}`, "OPTIONS", preflight);
      expect(answer.statusCode).to.equal(204);
      expect(answer.headers["access-control-allow-origin"]).to.equal("https://shop.example");
      expect(answer.headers["access-control-allow-headers"])
        .to.match(/X-Grpc-Web/)
        .and.match(/Authorization/);
      const call = await postJson(`${url}${sayPath}`, '"x"', { origin: "https://shop.example" });
      expect([call.status, call.headers.get("vary")]).to.deep.equal([200, "origin"]);
      expect(call.headers.get("access-control-expose-headers")?.toLowerCase()).to.match(/grpc-status/);
    });

    it("get nothing if their origin is another", async () => {
      const { url } = await start({}, { cors: { origins: ["https://shop.example"] } });
      const answer = await rawFetch(`${url}${sayPath}`, "OPTIONS", { ...preflight, origin: "https://evil.example" });
      expect(answer.headers).to.not.have.property("access-control-allow-origin");
      expect(answer.headers).to.not.have.property("access-control-allow-headers");
    });
  });

  describe("TLS", () => {
    const certificate = selfSignedCertificate();

    it("serves HTTP/2 and HTTP/1.1, as the client chooses by ALPN", async () => {
      const { url } = await start({}, { tls: certificate });
      expect(url).to.match(/^https:/);
      const nodeOptions = { ca: certificate.cert };
      const second = createGrpcTransport({ baseUrl: url, nodeOptions });
      const first = createConnectTransport({ baseUrl: url, httpVersion: "1.1", nodeOptions });
      for (const transport of [second, first]) {
        const client = createClient(EchoServiceDescriptor, transport);
        expect((await client.say({ value: "secret" })).value).to.equal("secret");
      }
    });

    it("closes a cleartext client, and one that does not finish its handshake", async () => {
      const { port } = await start({}, { tls: certificate, limits: { firstBytesTimeoutMs: 100 } });
      const cleartext = await sendRaw(port, http1("GET / HTTP/1.1", ["Host: x"]));
      expect(cleartext.closed).to.equal(true);
      expect(cleartext.bytes.toString("latin1")).to.not.match(/HTTP/);
      expect((await sendRaw(port, Buffer.from([0x16, 3]))).closed).to.equal(true);
    });

    it("drains a secure connection that is idle, and one in its handshake, at once", async () => {
      const listener = await start({}, { tls: certificate });
      const handshaking = net.connect(listener.port, "127.0.0.1");
      await once(handshaking, "connect");
      // Connections are taken in the order in which they come: when this one counts, the other has been taken.
      const secure = tls.connect({ host: "127.0.0.1", port: listener.port, ca: certificate.cert });
      await once(secure, "secureConnect");
      await until(() => listener.load.connections === 1);
      const closed = Promise.all([once(secure, "close"), once(handshaking, "close")]);
      secure.resume();
      handshaking.on("error", () => {}).resume();
      const startedAt = performance.now();
      await listener.drain(10_000);
      await closed;
      expect(performance.now() - startedAt).to.be.below(5_000);
    });
  });

  describe("starting", () => {
    it("says that the port is in use and names PORT", async () => {
      const { port } = await start();
      expect(await failure(start({}, { port }))).to.match(new RegExp(`Port ${port} \\(PORT\\) is in use`));
    });

    it("says that the host is not of this machine and names HOST", async () => {
      expect(await failure(start({}, { host: "192.0.2.1" }))).to.match(/Host 192\.0\.2\.1 \(HOST\) is not an address/);
    });

    it("says that the port is no port and names PORT", async () => {
      expect(await failure(start({}, { port: 70_000 }))).to.match(/Port 70000 \(PORT\) is not a port number/);
    });

    it("names TLS_CERT and TLS_KEY for what is wrong with them, and never quotes the key", async () => {
      const { cert, key } = selfSignedCertificate();
      expect(await failure(start({}, { tls: { cert: "x", key } }))).to.match(/\(TLS_CERT\) is not valid PEM/);
      expect(await failure(start({}, { tls: { cert, key: "secret" } }))).to.match(
        /^The private key \(TLS_KEY\) is not valid PEM\.$/,
      );
      const other = selfSignedCertificate();
      expect(await failure(start({}, { tls: { cert, key: other.key } }))).to.match(/\(TLS_KEY\) does not belong to/);
    });
  });

  describe("limits", () => {
    it("close connections that send nothing, or too little to tell their protocol", async () => {
      const { port } = await start({}, { limits: { firstBytesTimeoutMs: 50 } });
      for (const bytes of [Buffer.alloc(0), Buffer.from("PRI * HT")]) {
        const answer = await sendRaw(port, bytes);
        expect(answer.closed, `closed after ${JSON.stringify(bytes.toString())}`).to.equal(true);
      }
    });

    it("close connections whose HTTP/1.1 header does not come to an end", async () => {
      const { port } = await start({}, { limits: { headersTimeoutMs: 50 } });
      for (const text of ["G", "GET / HTTP/1.1\r\nHost: x\r\n"]) {
        const answer = await sendRaw(port, Buffer.from(text));
        expect(answer.closed, `closed after ${JSON.stringify(text)}`).to.equal(true);
      }
    });

    it("close idle connections of both protocols", async () => {
      const { port } = await start({}, { limits: { idleTimeoutMs: 50 } });
      const request = http1("GET /none HTTP/1.1", ["Host: x"]);
      expect((await sendRaw(port, request)).closed, "HTTP/1.1").to.equal(true);
      expect((await sendRaw(port, opening)).closed, "HTTP/2").to.equal(true);
    });

    it("drop connections beyond their number", async () => {
      const listener = await start({}, { limits: { connections: 2 } });
      const sockets = [net.connect(listener.port, "127.0.0.1"), net.connect(listener.port, "127.0.0.1")];
      try {
        await until(() => listener.load.connections === 2);
        expect((await sendRaw(listener.port, http1("GET / HTTP/1.1", ["Host: x"]))).closed).to.equal(true);
      } finally {
        for (const socket of sockets) {
          socket.destroy();
        }
      }
      await until(() => listener.load.connections === 0);
      expect((await postJson(`${listener.url}${sayPath}`, '"x"')).status).to.equal(200);
    });

    it("refuse requests beyond the number that may be in flight", async () => {
      const gate = Promise.withResolvers<void>();
      const listener = await start(
        {
          say: async () => {
            await gate.promise;
            return { value: "late" };
          },
        },
        { limits: { requests: 2 } },
      );
      const client = grpcClient(listener.url);
      const calls = [client.say({ value: "x" }), client.say({ value: "x" })];
      await until(() => listener.load.requests === 2);
      await expectCode(client.say({ value: "x" }), Code.Unavailable);
      const refused = await postJson(`${listener.url}${sayPath}`, '"x"');
      expect([refused.status, refused.headers.get("retry-after")]).to.deep.equal([503, "1"]);
      gate.resolve();
      expect((await Promise.all(calls)).map((answer) => answer.value)).to.deep.equal(["late", "late"]);
      await until(() => listener.load.requests === 0);
    });

    for (const httpVersion of ["1.1", "2"] as const) {
      it(`tell RESOURCE_EXHAUSTED for a message that is too long, over HTTP/${httpVersion}`, async () => {
        const { url } = await start({}, { limits: { readMaxBytes: 1_000 } });
        const transport = createConnectTransport({ baseUrl: url, httpVersion });
        const client = createClient(EchoServiceDescriptor, transport);
        await expectCode(client.say({ value: "a".repeat(5_000_000) }), Code.ResourceExhausted);
        expect((await client.say({ value: "short" })).value).to.equal("short");
      });
    }

    it("tell RESOURCE_EXHAUSTED for a long chunked upload of unknown length", async () => {
      const { url } = await start({}, { limits: { readMaxBytes: 1_000 } });
      const request = http.request(`${url}${sayPath}`, {
        method: "POST",
        headers: { "content-type": "application/json" },
      });
      request.on("error", () => {});
      request.write("a".repeat(200_000));
      const [answer] = (await once(request, "response")) as [http.IncomingMessage];
      expect(answer.statusCode).to.equal(429);
      answer.resume();
      request.destroy();
    });

    it("end a compressed message at the same length as one that is not", async () => {
      const { url } = await start({}, { limits: { readMaxBytes: 100_000 } });
      const bomb = gzipSync(Buffer.alloc(50_000_000));
      const answer = await fetch(`${url}${sayPath}`, {
        method: "POST",
        headers: { "content-type": "application/json", "content-encoding": "gzip" },
        body: bomb,
      });
      expect([answer.status, ((await answer.json()) as { code: string }).code]).to.deep.equal([
        429,
        "resource_exhausted",
      ]);
    });

    it("bound the request bodies that are in memory, and count them back", async () => {
      const gate = Promise.withResolvers<void>();
      const listener = await start(
        {
          save: async () => {
            await gate.promise;
            return { value: "" };
          },
        },
        { limits: { requestMemoryBytes: 100_000, readMaxBytes: 80_000 } },
      );
      const client = grpcClient(listener.url);
      const held = client.save({ value: "a".repeat(70_000) });
      await until(() => listener.load.requestBytes >= 70_000);
      await expectCode(client.save({ value: "a".repeat(70_000) }), Code.ResourceExhausted);
      gate.resolve();
      await held;
      await until(() => listener.load.requestBytes === 0);
      expect((await client.save({ value: "a".repeat(70_000) })).value).to.equal("");
    });

    it("take a declared length for nothing until bytes arrive", async () => {
      const listener = await start();
      const before = process.memoryUsage().arrayBuffers;
      const sockets = Array.from({ length: 50 }, () => {
        const socket = net.connect(listener.port, "127.0.0.1");
        socket.write(
          http1(`POST ${sayPath} HTTP/1.1`, ["Host: x", "Content-Type: application/json", "Content-Length: 6000000"]),
        );
        return socket;
      });
      try {
        await until(() => listener.load.requests === 50);
        expect(listener.load.requestBytes).to.equal(0);
        expect(process.memoryUsage().arrayBuffers - before).to.be.below(200_000_000);
      } finally {
        for (const socket of sockets) {
          socket.destroy();
        }
      }
    });

    it("tell DEADLINE_EXCEEDED when a body does not arrive in time", async () => {
      const { port, url } = await start({}, { limits: { bodyTimeoutMs: 50 } });
      const headers = ["Host: x", "Content-Type: application/json", "Content-Length: 100"];
      const answer = await sendRaw(port, http1(`POST ${sayPath} HTTP/1.1`, headers, '"half'));
      expect(answer.bytes.toString()).to.match(/deadline_exceeded/);
      expect(answer.closed).to.equal(true);
      const session = http2.connect(url);
      try {
        const stream = session.request(Object.fromEntries(grpcFields()) as http2.OutgoingHttpHeaders);
        stream.write(envelope(hello, 0, 500));
        const [trailers] = (await once(stream, "trailers")) as [http2.IncomingHttpHeaders];
        expect(trailers["grpc-status"]).to.equal(String(Code.DeadlineExceeded));
        await once(stream, "close");
      } finally {
        session.destroy();
      }
    });

    it("end an upload that goes on although it was answered long ago", async () => {
      const { port } = await start({}, { limits: { wasteTimeoutMs: 100 } });
      const headers = ["Host: x", "Content-Type: application/json", "Transfer-Encoding: chunked"];
      const answer = await sendRaw(port, http1("POST /none HTTP/1.1", headers, "3\r\nabc\r\n"));
      expect(answer.bytes.toString()).to.match(/^HTTP\/1\.1 404/);
      expect(answer.closed).to.equal(true);
    });

    it("refuse requests of too many header fields", async () => {
      const { port, url } = await start();
      const fields = Array.from({ length: 200 }, (_, i) => `X-${i}: x`);
      const answer = await sendRaw(port, http1("GET / HTTP/1.1", ["Host: x", "Connection: close", ...fields]));
      expect(answer.bytes.toString()).to.match(/^HTTP\/1\.1 431/);
      const headers = Object.fromEntries(fields.map((_, i) => [`x-${i}`, "x"]));
      const refused = await grpcClient(url)
        .say({ value: "x" }, { headers })
        .catch((error: unknown) => error);
      expect(refused).to.be.instanceOf(ConnectError);
    });

    it("end a response whose client takes no bytes, together with the RPC that makes it", async () => {
      const ended = Promise.withResolvers<void>();
      const listener = await start(
        {
          async *repeat() {
            try {
              for (;;) {
                yield { value: "a".repeat(100_000) };
              }
            } finally {
              ended.resolve();
            }
          },
        },
        { limits: { writeStallTimeoutMs: 100 } },
      );
      const session = http2.connect(listener.url);
      try {
        const stream = session.request(
          Object.fromEntries(grpcFields({ ":path": `/${echoServiceName}/Repeat` })) as http2.OutgoingHttpHeaders,
        );
        stream.on("error", () => {});
        stream.end(envelope(hello));
        await ended.promise;
        await until(() => listener.load.requests === 0);
      } finally {
        session.destroy();
      }
    });
  });

  describe("clients that go away", () => {
    for (const [name, createTransport] of Object.entries({
      "HTTP/1.1": (baseUrl: string) => createConnectTransport({ baseUrl, httpVersion: "1.1" }),
      "HTTP/2": (baseUrl: string) => createGrpcTransport({ baseUrl }),
    })) {
      it(`abort the signal of their RPC and end its stream over ${name}`, async () => {
        const ended = Promise.withResolvers<boolean>();
        const listener = await start({
          async *repeat(_request, context) {
            try {
              for (;;) {
                yield { value: "tick" };
                await delay(5);
              }
            } finally {
              ended.resolve(context.signal.aborted);
            }
          },
        });
        const client = createClient(EchoServiceDescriptor, createTransport(listener.url));
        const leaving = new AbortController();
        const answers = client.repeat({ value: "x" }, { signal: leaving.signal })[Symbol.asyncIterator]();
        expect((await answers.next()).value?.value).to.equal("tick");
        leaving.abort();
        await expectCode(answers.next(), Code.Canceled);
        expect(await ended.promise).to.equal(true);
        await until(() => listener.load.requests === 0);
      });

      it(`abort the signal of RPCs that only wait for it over ${name}`, async () => {
        const begun: string[] = [];
        const aborted: string[] = [];
        const untilAborted = async (what: string, { signal }: HandlerContext) => {
          begun.push(what);
          await once(signal, "abort");
          aborted.push(what);
        };
        const listener = await start({
          async save(_request, context) {
            await untilAborted("unary", context);
            return { value: "" };
          },
          async *repeat(_request, context) {
            yield { value: "tick" };
            await untilAborted("stream", context);
          },
        });
        const client = createClient(EchoServiceDescriptor, createTransport(listener.url));
        const leaving = new AbortController();
        const options = { signal: leaving.signal };
        const unary = client.save({ value: "x" }, options);
        const answers = client.repeat({ value: "x" }, options)[Symbol.asyncIterator]();
        expect((await answers.next()).value?.value).to.equal("tick");
        const ends = [unary, answers.next()].map((end) => expectCode(end, Code.Canceled));
        await until(() => begun.length === 2);
        leaving.abort();
        await Promise.all(ends);
        await until(() => aborted.length === 2);
        await until(() => listener.load.requests === 0);
      });
    }

    for (const code of [http2.constants.NGHTTP2_CANCEL, http2.constants.NGHTTP2_NO_ERROR]) {
      it(`never make a half-sent request look complete, reset with code ${code}`, async () => {
        const taken: string[] = [];
        const joinEnded = Promise.withResolvers<void>();
        const listener = await start({
          async join(requests) {
            try {
              for await (const request of requests) {
                taken.push(`a part: ${request.value}`);
              }
              taken.push("a complete stream");
              return { value: "" };
            } finally {
              joinEnded.resolve();
            }
          },
          save(request) {
            taken.push(`a complete message: ${request.value}`);
            return { value: "" };
          },
        });
        const reset = Buffer.alloc(4);
        reset.writeUInt32BE(code);
        const grpcStream = frame(
          FrameType.headers,
          Flag.endHeaders,
          1,
          hpack(grpcFields({ ":path": `/${echoServiceName}/Join` })),
        );
        const connectUnary = (streamId: number) =>
          frame(
            FrameType.headers,
            Flag.endHeaders,
            streamId,
            hpack(grpcFields({ ":path": `/${echoServiceName}/Save`, "content-type": "application/proto" })),
          );
        const socket = net.connect(listener.port, "127.0.0.1");
        socket.write(
          Buffer.concat([
            opening,
            grpcStream,
            frame(FrameType.data, 0, 1, envelope(hello)),
            connectUnary(3),
            frame(FrameType.data, 0, 3, hello),
          ]),
        );
        await until(() => taken.length === 1 && listener.load.requests === 2);
        socket.write(Buffer.concat([frame(FrameType.rstStream, 0, 1, reset), frame(FrameType.rstStream, 0, 3, reset)]));
        await until(() => listener.load.requests === 0);
        await joinEnded.promise;
        // When this request has got through, one that looked complete before it would have, too.
        socket.write(Buffer.concat([connectUnary(5), frame(FrameType.data, Flag.endStream, 5, messageOf("later"))]));
        await until(() => taken.includes("a complete message: later"));
        socket.destroy();
        expect(taken).to.deep.equal(["a part: hello", "a complete message: later"]);
      });
    }
  });

  describe("draining", () => {
    let clock: sinon.SinonFakeTimers | undefined;
    afterEach(() => clock?.restore());

    it("lets calls in flight end, refuses new connections and closes idle ones at once", async () => {
      const gate = Promise.withResolvers<void>();
      const listener = await start({
        say: async (request) => {
          await gate.promise;
          return { value: request.value };
        },
      });
      const agent = new http.Agent({ keepAlive: true });
      const idle = net
        .connect(listener.port, "127.0.0.1")
        .on("error", () => {})
        .resume();
      const idleClosed = once(idle, "close");
      const overGrpc = grpcClient(listener.url).say({ value: "second" });
      const overHttp1 = rawFetch(
        `${listener.url}${sayPath}`,
        "POST",
        { "content-type": "application/json" },
        '"first"',
        agent,
      );
      await until(() => listener.load.requests === 2 && listener.load.connections === 3);
      const drained = listener.drain(patienceMs);
      expect(listener.draining).to.equal(true);
      await idleClosed;
      expect(await failure(fetch(listener.url))).to.match(/fetch failed/);
      gate.resolve();
      expect((await overGrpc).value).to.equal("second");
      const answer = await overHttp1;
      expect([answer.body, answer.headers.connection]).to.deep.equal(['"first"', "close"]);
      await drained;
      expect(listener.load).to.deep.equal({ connections: 0, requests: 0, requestBytes: 0 });
      agent.destroy();
    });

    it("sends GOAWAY, so that a client takes new calls elsewhere, while older streams go on", async () => {
      const gate = Promise.withResolvers<void>();
      const listener = await start({
        say: async () => {
          await gate.promise;
          return { value: "done" };
        },
      });
      const session = http2.connect(listener.url);
      session.on("error", () => {});
      const goaway = once(session, "goaway");
      const older = session.request(Object.fromEntries(grpcFields()) as http2.OutgoingHttpHeaders);
      older.end(envelope(hello));
      const trailers = once(older, "trailers");
      older.resume();
      await until(() => listener.load.requests === 1);
      const drained = listener.drain(patienceMs);
      expect((await goaway)[0]).to.equal(http2.constants.NGHTTP2_NO_ERROR);
      const [refusal] = await once(session.request({ ":path": "/" }), "error");
      expect(refusal).to.include({ code: "ERR_HTTP2_GOAWAY_SESSION" });
      expect(listener.load.requests).to.equal(1);
      gate.resolve();
      expect(((await trailers) as [http2.IncomingHttpHeaders])[0]["grpc-status"]).to.equal("0");
      await drained;
    });

    it("tells streams at once by the signal that they find in their context", async () => {
      const listener = await start({
        async *repeat(_request, context) {
          yield { value: "started" };
          await once(context.values.get(drainSignalKey), "abort");
          yield { value: "ended by itself" };
        },
      });
      const answers: string[] = [];
      let drained: Promise<void> | undefined;
      for await (const answer of grpcClient(listener.url).repeat({ value: "x" })) {
        answers.push(answer.value);
        drained ??= listener.drain(patienceMs);
      }
      await drained;
      expect(answers).to.deep.equal(["started", "ended by itself"]);
    });

    it("aborts what is left shortly before the end of the grace period, so that clients are told UNAVAILABLE", async () => {
      const listener = await start({
        say: async (_request, context) => {
          await once(context.signal, "abort");
          throw context.signal.reason;
        },
      });
      const call = grpcClient(listener.url).say({ value: "x" });
      const refused = expectCode(call, Code.Unavailable);
      await until(() => listener.load.requests === 1);
      // The clock stands still while the client is told, however long that takes.
      clock = sinon.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"], shouldClearNativeTimers: true });
      const drained = listener.drain(10_000);
      await clock.tickAsync(9_000);
      expect(listener.load.requests).to.equal(1);
      await clock.tickAsync(999);
      await refused;
      await drained;
    });

    it("ends after the grace period even where an RPC never does", async () => {
      const listener = await start({ say: () => new Promise(() => {}) });
      const call = failure(grpcClient(listener.url).say({ value: "x" }));
      await until(() => listener.load.requests === 1);
      const startedAt = performance.now();
      await listener.drain(100);
      expect(performance.now() - startedAt).to.be.within(95, 10_000);
      expect(await call).to.not.equal("");
      expect(listener.load.connections).to.equal(0);
    });

    it("does not wait for clients that keep their side of a finished connection open", async () => {
      const listener = await start();
      const socket = net.connect({ port: listener.port, host: "127.0.0.1", allowHalfOpen: true });
      socket.on("error", () => {}).resume();
      socket.write(rawGrpcCall(sayPath));
      await once(socket, "data");
      const startedAt = performance.now();
      await listener.drain(patienceMs);
      expect(performance.now() - startedAt).to.be.below(patienceMs / 2);
      socket.destroy();
    });

    it("can be asked for twice", async () => {
      const listener = await start();
      const first = listener.drain(100);
      expect(listener.drain(patienceMs)).to.equal(first);
      await first;
    });
  });
});

function grpcClient(baseUrl: string): Client<EchoService> {
  return createClient(EchoServiceDescriptor, createGrpcTransport({ baseUrl }));
}

async function* values(...texts: string[]): AsyncGenerator<{ value: string }> {
  for (const value of texts) {
    yield { value };
  }
}

async function collect(answers: AsyncIterable<{ value: string }>): Promise<string[]> {
  const texts: string[] = [];
  for await (const { value } of answers) {
    texts.push(value);
  }
  return texts;
}

async function expectCode(call: Promise<unknown>, code: Code): Promise<void> {
  const error = await call.then(
    (answer) => new Error(`answered ${JSON.stringify(answer)} instead of ${Code[code]}`),
    (reason: unknown) => reason,
  );
  expect(ConnectError.from(error), String(error)).to.include({ code });
}

/** The message of the error that `call` must end with. */
async function failure(call: Promise<unknown>): Promise<string> {
  return call.then(
    () => "",
    (reason: unknown) => (reason instanceof Error ? reason.message : String(reason)),
  );
}

function postJson(url: string, body: string, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(url, { method: "POST", body, headers: { "content-type": "application/json", ...headers } });
}

async function fetchText(url: string): Promise<string> {
  const answer = await fetch(url);
  return `${answer.status} ${await answer.text()}`;
}

async function http2Get(session: http2.ClientHttp2Session, path: string): Promise<string> {
  const stream = session.request({ ":path": path });
  const [headers] = (await once(stream, "response")) as [http2.IncomingHttpHeaders];
  const chunks: Buffer[] = [];
  for await (const chunk of stream) {
    chunks.push(chunk as Buffer);
  }
  return `${headers[":status"]} ${Buffer.concat(chunks).toString()}`;
}

interface RawHttpAnswer {
  readonly statusCode: number | undefined;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: string;
}

/** A request by node:http, which unlike `fetch` lets a test set every header. */
async function rawFetch(
  url: string,
  method: string,
  headers: Record<string, string>,
  body = "",
  agent?: http.Agent,
): Promise<RawHttpAnswer> {
  const request = http.request(url, { method, headers, ...(agent === undefined ? {} : { agent }) });
  request.end(body);
  const [answer] = (await once(request, "response")) as [http.IncomingMessage];
  const chunks: Buffer[] = [];
  for await (const chunk of answer) {
    chunks.push(chunk as Buffer);
  }
  return { statusCode: answer.statusCode, headers: answer.headers, body: Buffer.concat(chunks).toString() };
}

function grpcJsCall(client: grpc.Client, path: string, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest<string, string>(
      path,
      messageOf,
      (bytes) => fromBinary(StringValueSchema, bytes).value,
      text,
      { deadline: Date.now() + patienceMs },
      (error, answer) => (error === null ? resolve(answer ?? "") : reject(error)),
    );
  });
}

function rawGrpcCall(path: string): Buffer {
  return Buffer.concat([
    opening,
    frame(FrameType.headers, Flag.endHeaders, 1, hpack(grpcFields({ ":path": path }))),
    frame(FrameType.data, Flag.endStream, 1, envelope(hello)),
  ]);
}

/** Waits for a condition that comes true by itself. */
async function until(condition: () => boolean): Promise<void> {
  const giveUpAt = performance.now() + patienceMs;
  while (!condition()) {
    if (performance.now() > giveUpAt) {
      throw new Error(`This did not come true within ${patienceMs} ms: ${condition}`);
    }
    await delay(5);
  }
}
