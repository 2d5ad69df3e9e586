import { gzipSync } from "node:zlib";
import { echoServiceName } from "./echo-service.ts";
import { envelope, Flag, FrameType, frame, hpack, opening, preface, type RawOptions } from "./raw-wire.ts";

/** One odd exchange: the bytes a client writes on a fresh connection. */
export interface MalformedCase {
  readonly name: string;
  readonly bytes: Buffer;
  readonly options?: RawOptions;
}

const say = `/${echoServiceName}/Say`;
const save = `/${echoServiceName}/Save`;
const chat = `/${echoServiceName}/Chat`;
const jsonBody = '"hello"';
/** `google.protobuf.StringValue{value: "hello"}`. */
const protoMessage = Buffer.from([0x0a, 5, ...Buffer.from("hello")]);

/** An HTTP/1.1 request, its header lines as given. */
export function http1(line: string, headers: readonly string[], body: string | Buffer = ""): Buffer {
  return Buffer.concat([Buffer.from(`${[line, ...headers].join("\r\n")}\r\n\r\n`, "latin1"), Buffer.from(body)]);
}

function post(target: string, headers: readonly string[] = [], body: string | Buffer = jsonBody): Buffer {
  const standard = ["Host: x", "Content-Type: application/json", `Content-Length: ${Buffer.byteLength(body)}`];
  return http1(`POST ${target} HTTP/1.1`, [...standard, "Connection: close", ...headers], body);
}

type Field = readonly [string, string | Buffer];

/** The header fields of a well-formed gRPC request over HTTP/2, with some replaced (undefined removes one). */
export function grpcFields(changes: Record<string, string | Buffer | undefined> = {}): Field[] {
  const fields: Record<string, string | Buffer | undefined> = {
    ":method": "POST",
    ":scheme": "http",
    ":path": say,
    ":authority": "x",
    "content-type": "application/grpc",
    te: "trailers",
    ...changes,
  };
  const defined = Object.entries(fields).filter((field): field is [string, string | Buffer] => field[1] !== undefined);
  return defined.sort(([a], [b]) => Number(b.startsWith(":")) - Number(a.startsWith(":")));
}

/** A whole HTTP/2 connection with one request on stream 1. */
function http2Request(fields: readonly Field[], body: Buffer = envelope(protoMessage)): Buffer {
  return Buffer.concat([
    opening,
    frame(FrameType.headers, Flag.endHeaders, 1, hpack(fields)),
    frame(FrameType.data, Flag.endStream, 1, body),
  ]);
}

function http2HeadersOnly(fields: readonly Field[]): Buffer {
  return Buffer.concat([opening, frame(FrameType.headers, Flag.endHeaders | Flag.endStream, 1, hpack(fields))]);
}

function targets(): MalformedCase[] {
  const odd: Record<string, string> = {
    "two slashes": `/${say}`,
    "an absolute form with a broken host": `http://[${say}`,
    "an absolute form of another scheme": `ftp://x${say}`,
    "a path of another scheme": `javascript:alert(1)`,
    asterisk: "*",
    "an authority form": "x:443",
    "a broken percent escape": `${say}%zz?%zz=%`,
    "a query of percent garbage": `${save}?%ff%fe&=&&;%`,
    "a query that looks like an authority": `${say}?@[:::]//http://[`,
    "a fragment": `${say}#x`,
    "dot segments": `/../..${say}/../Say`,
    "a backslash": `\\\\x${say}`,
    "a very long path": `/${"a".repeat(12_000)}`,
    "the name of an object's prototype": "/__proto__",
    "a constructor": "/constructor",
    "raw latin-1 bytes": `${say}?\xff\xfe`,
    "an empty query": `${say}?`,
  };
  return Object.entries(odd).flatMap(([name, target]) => [
    { name: `HTTP/1.1 target: ${name}`, bytes: post(target) },
    { name: `HTTP/2 :path: ${name}`, bytes: http2Request(grpcFields({ ":path": target })) },
  ]);
}

function hosts(): MalformedCase[] {
  const odd = [
    "[",
    "[::1",
    "x y",
    "x:99999",
    "x:y",
    "user:pass@x",
    "%zz",
    "a/b",
    "x#",
    "?",
    "\\",
    "\xff\xff",
    "a".repeat(9_000),
    "",
  ];
  const named = (host: string) => JSON.stringify(host.length > 40 ? `${host.slice(0, 8)}… (${host.length})` : host);
  return odd.flatMap((host) => [
    {
      name: `HTTP/1.1 Host ${named(host)}`,
      bytes: http1(
        `POST ${say} HTTP/1.1`,
        [`Host: ${host}`, "Content-Type: application/json", "Content-Length: 7", "Connection: close"],
        jsonBody,
      ),
    },
    { name: `HTTP/2 :authority ${named(host)}`, bytes: http2Request(grpcFields({ ":authority": host })) },
  ]);
}

function methods(): MalformedCase[] {
  const names = [
    "GET",
    "HEAD",
    "PUT",
    "DELETE",
    "TRACE",
    "OPTIONS",
    "CONNECT",
    "PATCH",
    "PROPFIND",
    "QUERY",
    "BREW",
    "post",
    "P@ST",
  ];
  return names.flatMap((name) => [
    {
      name: `HTTP/1.1 method ${name}`,
      bytes: http1(`${name} ${name === "CONNECT" ? "x:1" : say} HTTP/1.1`, ["Host: x", "Connection: close"]),
    },
    { name: `HTTP/2 method ${name}`, bytes: http2HeadersOnly(grpcFields({ ":method": name })) },
    { name: `HTTP/2 method ${name} with a body`, bytes: http2Request(grpcFields({ ":method": name })) },
  ]);
}

function http1Framing(): MalformedCase[] {
  const line = `POST ${say} HTTP/1.1`;
  const base = ["Host: x", "Content-Type: application/json"];
  const chunked = [...base, "Transfer-Encoding: chunked"];
  return [
    { name: "no bytes and a FIN", bytes: Buffer.alloc(0), options: { end: true } },
    {
      name: "an HTTP/1.0 request without Host",
      bytes: http1(`POST ${say} HTTP/1.0`, ["Content-Type: application/json", "Content-Length: 7"], jsonBody),
    },
    {
      name: "an HTTP/1.1 request without Host",
      bytes: http1(line, ["Content-Type: application/json", "Content-Length: 7"], jsonBody),
    },
    {
      name: "two Host headers",
      bytes: http1(line, [...base, "Host: [", "Content-Length: 7", "Connection: close"], jsonBody),
    },
    { name: "HTTP/9.9", bytes: http1("GET / HTTP/9.9", ["Host: x"]) },
    {
      name: "a TLS client hello on a cleartext port",
      bytes: Buffer.from([0x16, 0x03, 0x01, 0x02, 0, 1, 0, 1, 0xfc, 3, 3]),
    },
    {
      name: "Content-Length and Transfer-Encoding",
      bytes: http1(line, [...chunked, "Content-Length: 4"], "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"),
    },
    { name: "two Content-Lengths", bytes: http1(line, [...base, "Content-Length: 7", "Content-Length: 0"], jsonBody) },
    { name: "a negative Content-Length", bytes: http1(line, [...base, "Content-Length: -1"], jsonBody) },
    {
      name: "an enormous Content-Length",
      bytes: http1(line, [...base, "Content-Length: 99999999999999999999"], jsonBody),
    },
    {
      name: "a large Content-Length and no body",
      bytes: http1(line, [...base, "Content-Length: 4194304"]),
      options: { reset: true },
    },
    { name: "a Transfer-Encoding nobody knows", bytes: http1(line, [...base, "Transfer-Encoding: sparkle"], jsonBody) },
    {
      name: "Transfer-Encoding: chunked, identity",
      bytes: http1(line, [...base, "Transfer-Encoding: chunked, identity"], jsonBody),
    },
    {
      name: "Transfer-Encoding with a tab",
      bytes: http1(line, [...base, "Transfer-Encoding:\tchunked\x0b"], jsonBody),
    },
    { name: "chunk size garbage", bytes: http1(line, chunked, "zz\r\nhello\r\n0\r\n\r\n") },
    { name: "a chunk size beyond 64 bits", bytes: http1(line, chunked, "fffffffffffffffff\r\nhello") },
    { name: "a chunk without its line end", bytes: http1(line, chunked, "3\r\nabcdef") },
    { name: "a chunk extension of 40 KB", bytes: http1(line, chunked, `1;${"x".repeat(40_000)}\r\na\r\n0\r\n\r\n`) },
    {
      name: "trailers of every kind",
      bytes: http1(
        line,
        [...chunked, "Connection: close"],
        `7\r\n${jsonBody}\r\n0\r\n:status: 1\r\nContent-Length: 9\r\n\x00: x\r\n\r\n`,
      ),
    },
    {
      name: "a bare line feed as line end",
      bytes: Buffer.from(`POST ${say} HTTP/1.1\nHost: x\nContent-Length: 7\n\n${jsonBody}`),
    },
    {
      name: "an obsolete folded header",
      bytes: http1(line, ["Host: x", "X-A: 1", " folded", "Content-Length: 7"], jsonBody),
    },
    { name: "a NUL in a header", bytes: http1(line, [...base, "X-A: a\0b", "Content-Length: 7"], jsonBody) },
    { name: "a header without a name", bytes: http1(line, [...base, ": x", "Content-Length: 7"], jsonBody) },
    { name: "a header without a colon", bytes: http1(line, [...base, "nothing", "Content-Length: 7"], jsonBody) },
    { name: "a space before the colon", bytes: http1(line, [...base, "X-A : b", "Content-Length: 7"], jsonBody) },
    { name: "latin-1 header values", bytes: post(say, ["X-A: \xe9\xff\x80"]) },
    { name: "a header named __proto__", bytes: post(say, ["__proto__: 1", "constructor: 2", "toString: 3"]) },
    {
      name: "ten thousand headers",
      bytes: post(
        say,
        Array.from({ length: 10_000 }, (_, i) => `a${i}: b`),
      ),
    },
    {
      name: "two thousand short headers",
      bytes: post(
        say,
        Array.from({ length: 2_000 }, () => "a:"),
      ),
    },
    { name: "one header of a megabyte", bytes: post(say, [`X-A: ${"a".repeat(1_000_000)}`]) },
    {
      name: "Expect: 100-continue and no body",
      bytes: http1(line, [...base, "Content-Length: 7", "Expect: 100-continue"]),
      options: { end: true },
    },
    { name: "an Expect nobody knows", bytes: post(say, ["Expect: miracles"]) },
    {
      name: "Upgrade: websocket",
      bytes: http1(`GET ${say} HTTP/1.1`, [
        "Host: x",
        "Connection: Upgrade, close",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: x",
      ]),
    },
    {
      name: "Upgrade: h2c",
      bytes: http1(
        line,
        [
          ...base,
          "Connection: Upgrade, HTTP2-Settings, close",
          "Upgrade: h2c",
          "HTTP2-Settings: AAMAAABk",
          "Content-Length: 7",
        ],
        jsonBody,
      ),
    },
    {
      name: "two hundred pipelined requests, then a reset",
      bytes: Buffer.concat(Array.from({ length: 200 }, () => http1(line, [...base, "Content-Length: 7"], jsonBody))),
      options: { reset: true },
    },
    { name: "a request and garbage behind it", bytes: Buffer.concat([post(say), randomBytes(4_000)]) },
    { name: "half a request and a reset", bytes: post(say).subarray(0, 60), options: { reset: true } },
    {
      name: "half a body and a FIN",
      bytes: http1(line, [...base, "Content-Length: 70"], jsonBody),
      options: { end: true },
    },
    {
      name: "half a body and a reset",
      bytes: http1(line, [...base, "Content-Length: 70"], jsonBody),
      options: { reset: true },
    },
    { name: "a request byte by byte", bytes: post(say), options: { oneByteAtATime: true } },
    { name: "a request and an immediate reset", bytes: post(say), options: { reset: true } },
    { name: "half an HTTP/2 preface and then HTTP/1", bytes: Buffer.concat([preface.subarray(0, 18), post(say)]) },
    { name: "random bytes", bytes: randomBytes(2_000) },
  ];
}

function protocolContents(): MalformedCase[] {
  const bomb = gzipSync(Buffer.alloc(64 * 1024 * 1024));
  const gzipHeaders = ["Content-Encoding: gzip"];
  const get = (query: string) => http1(`GET ${say}?${query} HTTP/1.1`, ["Host: x", "Connection: close"]);
  const timeouts = ["-1", "", "1e9", "99999999999999999999", "9999999999", "5s", "\xff"];
  const grpcTimeouts = ["1", "S", "-1S", "99999999H", "999999999S", "0n", "1X", ""];
  const queries: Record<string, string> = {
    empty: "",
    "no message": "connect=v1&encoding=json",
    "bad JSON": "connect=v1&encoding=json&message={",
    "bad base64": "connect=v1&encoding=proto&base64=1&message=!!!!",
    "bad proto": "connect=v1&encoding=proto&base64=1&message=________",
    "an unknown encoding": "connect=v1&encoding=xml&message=x",
    "an unknown compression": "connect=v1&encoding=json&compression=zip&message=x",
    "gzip garbage": "connect=v1&encoding=json&compression=gzip&base64=1&message=AAAA",
    "a gzip bomb": `connect=v1&encoding=json&compression=gzip&base64=1&message=${gzipSync(Buffer.alloc(7_000_000)).toString("base64url")}`,
    "a hundred messages": Array.from({ length: 100 }, () => "message=1").join("&"),
  };
  return [
    ...timeouts.map((value) => ({
      name: `connect-timeout-ms ${JSON.stringify(value)}`,
      bytes: post(say, [`Connect-Timeout-Ms: ${value}`]),
    })),
    ...grpcTimeouts.map((value) => ({
      name: `grpc-timeout ${JSON.stringify(value)}`,
      bytes: http2Request(grpcFields({ "grpc-timeout": value })),
    })),
    ...Object.entries(queries).map(([name, query]) => ({ name: `GET with ${name}`, bytes: get(query) })),
    { name: "a body that is not gzip", bytes: post(say, gzipHeaders, "garbage") },
    { name: "a gzip body cut short", bytes: post(say, gzipHeaders, gzipSync(jsonBody).subarray(0, 12)) },
    { name: "a gzip bomb", bytes: post(say, gzipHeaders, bomb) },
    { name: "an encoding nobody knows", bytes: post(say, ["Content-Encoding: middle-out"]) },
    { name: "a body of random bytes", bytes: post(say, [], randomBytes(512)) },
    { name: "deeply nested JSON", bytes: post(say, [], "[".repeat(100_000)) },
    {
      name: "a Connect stream content type on a unary method",
      bytes: http1(`POST ${say} HTTP/1.1`, [
        "Host: x",
        "Content-Type: application/connect+json",
        "Content-Length: 0",
        "Connection: close",
      ]),
    },
    {
      name: "no content type",
      bytes: http1(`POST ${say} HTTP/1.1`, ["Host: x", "Content-Length: 0", "Connection: close"]),
    },
    {
      name: "a bidirectional stream over HTTP/1.1",
      bytes: http1(`POST ${chat} HTTP/1.1`, ["Host: x", "Content-Type: application/connect+json", "Content-Length: 0"]),
    },
    {
      name: "gRPC over HTTP/1.1",
      bytes: http1(
        `POST ${say} HTTP/1.1`,
        ["Host: x", "Content-Type: application/grpc", "Content-Length: 5", "Connection: close"],
        "\0\0\0\0\0",
      ),
    },
    { name: "a bad -bin header", bytes: http2Request(grpcFields({ "x-data-bin": "!!!" })) },
    {
      name: "a bad grpc-status in a request",
      bytes: http2Request(grpcFields({ "grpc-status": "99", "grpc-message": "%zz" })),
    },
    { name: "gRPC with an encoding nobody knows", bytes: http2Request(grpcFields({ "grpc-encoding": "middle-out" })) },
    {
      name: "gRPC with gzip garbage",
      bytes: http2Request(grpcFields({ "grpc-encoding": "gzip" }), envelope(Buffer.from("garbage"), 1)),
    },
    {
      name: "gRPC compressed without an encoding",
      bytes: http2Request(grpcFields(), envelope(Buffer.from("garbage"), 1)),
    },
    { name: "gRPC with reserved envelope flags", bytes: http2Request(grpcFields(), envelope(protoMessage, 0xfe)) },
    { name: "a gRPC envelope of 4 GiB", bytes: http2Request(grpcFields(), envelope(protoMessage, 0, 0xffff_ffff)) },
    {
      name: "a gRPC envelope that is longer than its message",
      bytes: http2Request(grpcFields(), envelope(protoMessage, 0, 500)),
    },
    { name: "a gRPC message that is no Protobuf", bytes: http2Request(grpcFields(), envelope(Buffer.alloc(40, 0xff))) },
    {
      name: "two messages for a unary method",
      bytes: http2Request(grpcFields(), Buffer.concat([envelope(protoMessage), envelope(protoMessage)])),
    },
    { name: "a thousand empty messages for a unary method", bytes: http2Request(grpcFields(), Buffer.alloc(5_000)) },
    { name: "no message for a unary method", bytes: http2HeadersOnly(grpcFields()) },
    { name: "gRPC-Web text", bytes: http2Request(grpcFields({ "content-type": "application/grpc-web-text" })) },
    { name: "a content type of garbage", bytes: http2Request(grpcFields({ "content-type": ';;;=,"' })) },
    {
      name: "an accepted encoding of garbage",
      bytes: http2Request(grpcFields({ "grpc-accept-encoding": ',,,;q=;"' })),
    },
  ];
}

function http2Frames(): MalformedCase[] {
  const headers = frame(FrameType.headers, Flag.endHeaders, 1, hpack(grpcFields()));
  const ended = frame(FrameType.data, Flag.endStream, 1, envelope(protoMessage));
  const u32 = (value: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32BE(value >>> 0);
    return bytes;
  };
  const rst = (id: number, code = 8) => frame(FrameType.rstStream, 0, id, u32(code));
  const many = (count: number, make: (i: number) => Buffer) =>
    Buffer.concat(Array.from({ length: count }, (_, i) => make(i)));
  const on = (...frames: Buffer[]) => Buffer.concat([opening, ...frames]);
  const expect = frame(FrameType.headers, Flag.endHeaders, 1, hpack(grpcFields({ expect: "100-continue" })));
  const setting = (id: number, value: number) => Buffer.concat([Buffer.from([0, id]), u32(value)]);
  return [
    { name: "the preface alone", bytes: preface, options: { end: true } },
    {
      name: "the preface byte by byte, then a request",
      bytes: on(headers, ended),
      options: { oneByteAtATime: true },
    },
    { name: "a frame beyond the frame size", bytes: on(frame(FrameType.data, 0, 1, Buffer.alloc(100), 0xffffff)) },
    { name: "DATA on stream 0", bytes: on(frame(FrameType.data, 0, 0, Buffer.alloc(10))) },
    { name: "DATA on an idle stream", bytes: on(frame(FrameType.data, 0, 5, Buffer.alloc(10))) },
    { name: "HEADERS on an even stream", bytes: on(frame(FrameType.headers, Flag.endHeaders, 2, hpack(grpcFields()))) },
    { name: "a broken header block", bytes: on(frame(FrameType.headers, Flag.endHeaders, 1, Buffer.alloc(30, 0xff))) },
    {
      name: "a DATA frame between HEADERS and CONTINUATION",
      bytes: on(frame(FrameType.headers, 0, 1, hpack(grpcFields())), ended),
    },
    {
      name: "ten thousand CONTINUATIONs",
      bytes: on(
        frame(FrameType.headers, 0, 1, hpack(grpcFields())),
        many(10_000, () => frame(FrameType.continuation, 0, 1, hpack([["a", "b"]]))),
      ),
    },
    {
      name: "a header block of 300 KB",
      bytes: on(
        frame(FrameType.headers, 0, 1, hpack(grpcFields())),
        many(20, (i) =>
          frame(FrameType.continuation, i === 19 ? Flag.endHeaders : 0, 1, hpack([["x-a", "a".repeat(15_000)]])),
        ),
      ),
    },
    {
      name: "a push promise from a client",
      bytes: on(frame(FrameType.pushPromise, Flag.endHeaders, 1, Buffer.concat([u32(2), hpack(grpcFields())]))),
    },
    { name: "a reset of an idle stream", bytes: on(rst(9)) },
    { name: "a request and its reset in one packet", bytes: on(headers, ended, rst(1)) },
    { name: "a request reset before its body", bytes: on(headers, rst(1)) },
    { name: "Expect: 100-continue and its reset in one packet", bytes: on(expect, rst(1)) },
    { name: "Expect: 100-continue and a lost connection", bytes: on(expect), options: { reset: true } },
    { name: "an Expect nobody knows over HTTP/2", bytes: http2Request(grpcFields({ expect: "miracles" })) },
    {
      name: "an Expect nobody knows and its reset in one packet",
      bytes: on(frame(FrameType.headers, Flag.endHeaders, 1, hpack(grpcFields({ expect: "miracles" }))), rst(1)),
    },
    {
      name: "CONNECT and its reset in one packet",
      bytes: on(
        frame(
          FrameType.headers,
          Flag.endHeaders,
          1,
          hpack([
            [":method", "CONNECT"],
            [":authority", "x:1"],
          ]),
        ),
        rst(1),
      ),
    },
    {
      name: "CONNECT over HTTP/2",
      bytes: http2HeadersOnly([
        [":method", "CONNECT"],
        [":authority", "x:1"],
      ]),
    },
    {
      name: "extended CONNECT",
      bytes: http2HeadersOnly(grpcFields({ ":method": "CONNECT", ":protocol": "websocket" })),
    },
    {
      name: "HEAD and its reset in one packet",
      bytes: on(
        frame(
          FrameType.headers,
          Flag.endHeaders | Flag.endStream,
          1,
          hpack(grpcFields({ ":method": "HEAD", ":path": "/none" })),
        ),
        rst(1),
      ),
    },
    { name: "no :authority and no host", bytes: http2Request(grpcFields({ ":authority": undefined })) },
    { name: "no :path", bytes: http2Request(grpcFields({ ":path": undefined })) },
    { name: "an empty :path", bytes: http2Request(grpcFields({ ":path": "" })) },
    { name: "no :method", bytes: http2Request(grpcFields({ ":method": undefined })) },
    { name: "no :scheme", bytes: http2Request(grpcFields({ ":scheme": undefined })) },
    { name: "a :scheme of garbage", bytes: http2Request(grpcFields({ ":scheme": "\xff://" })) },
    { name: "two :paths", bytes: http2Request([[":path", "/"], ...grpcFields()]) },
    { name: "a pseudo header after a header", bytes: http2Request([["a", "b"], ...grpcFields()]) },
    { name: "an unknown pseudo header", bytes: http2Request([[":sparkle", "1"], ...grpcFields()]) },
    { name: ":status in a request", bytes: http2Request([[":status", "200"], ...grpcFields()]) },
    { name: "a header name in capitals", bytes: http2Request(grpcFields({ "X-Capital": "1" })) },
    { name: "a header name with a space", bytes: http2Request(grpcFields({ "x y": "1" })) },
    { name: "a header without a name over HTTP/2", bytes: http2Request(grpcFields({ "": "1" })) },
    { name: "a header value with a NUL", bytes: http2Request(grpcFields({ "x-a": "a\0b" })) },
    { name: "a header value with a line end", bytes: http2Request(grpcFields({ "x-a": "a\r\nb: c" })) },
    { name: "a header value in UTF-8", bytes: http2Request(grpcFields({ "x-a": Buffer.from("日本語 ✓") })) },
    { name: "a header value in latin-1", bytes: http2Request(grpcFields({ "x-a": Buffer.from([0xe9, 0xff, 0x80]) })) },
    { name: "a connection header over HTTP/2", bytes: http2Request(grpcFields({ connection: "close" })) },
    { name: "transfer-encoding over HTTP/2", bytes: http2Request(grpcFields({ "transfer-encoding": "chunked" })) },
    { name: "a content-length that is wrong over HTTP/2", bytes: http2Request(grpcFields({ "content-length": "3" })) },
    {
      name: "two content-lengths over HTTP/2",
      bytes: http2Request([...grpcFields({ "content-length": "15" }), ["content-length", "16"]]),
    },
    { name: "a host beside another :authority", bytes: http2Request(grpcFields({ host: "[" })) },
    {
      name: "a thousand cookies",
      bytes: http2Request([...grpcFields(), ...Array.from({ length: 1_000 }, (): Field => ["cookie", "a"])]),
    },
    {
      name: "trailers with pseudo headers",
      bytes: on(
        headers,
        frame(FrameType.data, 0, 1, envelope(protoMessage)),
        frame(FrameType.headers, Flag.endHeaders | Flag.endStream, 1, hpack([[":path", "/"]])),
      ),
    },
    {
      name: "trailers in the middle of a message",
      bytes: on(
        headers,
        frame(FrameType.data, 0, 1, envelope(protoMessage, 0, 90)),
        frame(FrameType.headers, Flag.endHeaders | Flag.endStream, 1, hpack([["x-t", "1"]])),
      ),
    },
    { name: "HEADERS twice without the end", bytes: on(headers, headers) },
    {
      name: "a stream that depends on itself",
      bytes: on(frame(FrameType.priority, 0, 1, Buffer.concat([u32(1), Buffer.from([1])])), headers, ended),
    },
    {
      name: "padding longer than the frame",
      bytes: on(headers, frame(FrameType.data, Flag.padded, 1, Buffer.from([255, 1]))),
    },
    {
      name: "SETTINGS with an odd length",
      bytes: Buffer.concat([preface, frame(FrameType.settings, 0, 0, Buffer.alloc(5))]),
    },
    {
      name: "SETTINGS of garbage values",
      bytes: on(
        frame(FrameType.settings, 0, 0, Buffer.concat([setting(2, 7), setting(4, 0xffff_ffff), setting(5, 1)])),
      ),
    },
    {
      name: "an initial window of zero",
      bytes: on(frame(FrameType.settings, 0, 0, setting(4, 0)), headers, ended),
    },
    { name: "a window update of zero", bytes: on(frame(FrameType.windowUpdate, 0, 0, u32(0))) },
    {
      name: "a window that overflows",
      bytes: on(headers, frame(FrameType.windowUpdate, 0, 1, u32(0x7fff_ffff)), ended),
    },
    { name: "a flood of SETTINGS", bytes: on(many(5_000, () => frame(FrameType.settings, 0, 0, Buffer.alloc(0)))) },
    { name: "a flood of PINGs", bytes: on(many(5_000, () => frame(FrameType.ping, 0, 0, Buffer.alloc(8)))) },
    { name: "a PING of the wrong length", bytes: on(frame(FrameType.ping, 0, 0, Buffer.alloc(7))) },
    {
      name: "a rapid reset of 3,000 streams",
      bytes: on(
        many(3_000, (i) =>
          Buffer.concat([frame(FrameType.headers, Flag.endHeaders, 1 + 2 * i, hpack(grpcFields())), rst(1 + 2 * i)]),
        ),
      ),
    },
    {
      name: "600 streams that never end",
      bytes: on(
        many(600, (i) => frame(FrameType.headers, Flag.endHeaders, 1 + 2 * i, hpack(grpcFields({ ":path": chat })))),
      ),
      options: { reset: true },
    },
    {
      name: "100,000 empty DATA frames",
      bytes: on(
        headers,
        many(100_000, () => frame(FrameType.data, 0, 1, Buffer.alloc(0))),
      ),
    },
    {
      name: "GOAWAY and then a request",
      bytes: on(frame(FrameType.goaway, 0, 0, Buffer.alloc(8)), headers, ended),
    },
    { name: "a request and then GOAWAY", bytes: on(headers, ended, frame(FrameType.goaway, 0, 0, Buffer.alloc(8))) },
    { name: "a GOAWAY of the wrong length", bytes: on(frame(FrameType.goaway, 0, 0, Buffer.alloc(3))) },
    {
      name: "frames of unknown types",
      bytes: on(many(200, (i) => frame(0x40 + (i % 100), 0xff, i, Buffer.alloc(8)))),
    },
    { name: "a request and a lost connection", bytes: on(headers, ended), options: { reset: true } },
    {
      name: "a stream method and a lost connection",
      bytes: on(
        frame(FrameType.headers, Flag.endHeaders, 1, hpack(grpcFields({ ":path": chat }))),
        frame(FrameType.data, 0, 1, envelope(protoMessage)),
      ),
      options: { reset: true },
    },
    { name: "a request and a FIN", bytes: on(headers, ended), options: { end: true } },
    { name: "random frames", bytes: on(randomBytes(3_000)) },
    { name: "an HTTP/1 request after the preface", bytes: Buffer.concat([opening, post(say)]) },
  ];
}

/** A small random number generator, from 0 to 1, that gives the same numbers for the same seed. */
export function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Bytes that look random and are always the same, so that a failing case fails again. */
function randomBytes(length: number): Buffer {
  const random = seededRandom(length);
  return Buffer.from(Array.from({ length }, () => Math.floor(random() * 256)));
}

/** Every malformed or merely odd exchange that the listener must survive. */
export function malformedCases(): MalformedCase[] {
  return [...targets(), ...hosts(), ...methods(), ...http1Framing(), ...protocolContents(), ...http2Frames()];
}
