import { Code } from "@connectrpc/connect";
import type { NodeReq, NodeRes } from "./exchange.ts";

/** An answer that the listener gives by itself, before or instead of an RPC. */
export interface Refusal {
  /** The HTTP status, for protocols that have one of their own. */
  readonly status: number;
  readonly code: Code;
  /** A sentence for the caller. Must not repeat what the caller sent. */
  readonly message: string;
  /** Further header fields, such as Allow. */
  readonly headers?: Readonly<Record<string, string>>;
}

type Form = "grpc" | "grpc-web" | "connect-stream" | "connect" | "text";

const endStreamFlag = 2;

/** Answers in the form that the client of the request's protocol understands. Must come before any other answer. */
export function refuse(req: NodeReq, res: NodeRes, refusal: Refusal): void {
  for (const [name, value] of Object.entries(refusal.headers ?? {})) {
    res.setHeader(name, value);
  }
  const contentType = req.headers["content-type"] ?? "";
  const error = { code: codeName(refusal.code), message: refusal.message };
  switch (formOf(req, contentType)) {
    // Trailers only: the status stands in the header, and the header ends the stream.
    case "grpc":
      trailersOnly(res, "application/grpc", refusal);
      break;
    case "grpc-web":
      trailersOnly(res, "application/grpc-web+proto", refusal);
      break;
    case "connect-stream":
      send(res, 200, contentType, endOfStream(JSON.stringify({ error })));
      break;
    case "connect":
      send(res, refusal.status, "application/json", Buffer.from(JSON.stringify(error)));
      break;
    case "text":
      send(res, refusal.status, "text/plain; charset=utf-8", Buffer.from(`${refusal.message}\n`));
      break;
  }
}

function formOf(req: NodeReq, contentType: string): Form {
  if (contentType.startsWith("application/grpc-web")) {
    return "grpc-web";
  }
  if (contentType.startsWith("application/grpc")) {
    return "grpc";
  }
  if (/^application\/connect\+(proto|json)$/.test(contentType)) {
    return "connect-stream";
  }
  const isConnect =
    /^application\/(proto|json)\b/.test(contentType) ||
    req.headers["connect-protocol-version"] !== undefined ||
    (req.method === "GET" && (req.url ?? "").includes("connect=v1"));
  return isConnect ? "connect" : "text";
}

function trailersOnly(res: NodeRes, contentType: string, refusal: Refusal): void {
  res.statusCode = 200;
  res.setHeader("content-type", contentType);
  res.setHeader("grpc-status", String(refusal.code));
  res.setHeader("grpc-message", encodeURIComponent(refusal.message));
  res.end();
}

function send(res: NodeRes, status: number, contentType: string, body: Buffer): void {
  res.statusCode = status;
  res.setHeader("content-type", contentType);
  res.setHeader("content-length", String(body.length));
  res.setHeader("x-content-type-options", "nosniff");
  res.end(body);
}

function endOfStream(json: string): Buffer {
  const body = Buffer.from(json);
  const head = Buffer.alloc(5);
  head.writeUInt8(endStreamFlag, 0);
  head.writeUInt32BE(body.length, 1);
  return Buffer.concat([head, body]);
}

/** The name that Connect's JSON uses, such as `resource_exhausted`. */
function codeName(code: Code): string {
  return Code[code].replace(/(?!^)[A-Z]/g, (letter) => `_${letter}`).toLowerCase();
}
