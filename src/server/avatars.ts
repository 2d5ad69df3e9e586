import type { Logger } from "pino";
import { DomainError } from "../errors.ts";
import { type Files, isFileName } from "../files/files.ts";
import type { HttpHandler, NodeReq, NodeRes } from "./listener.ts";

/** Where pictures are served; the name of a file follows. */
export const AVATARS_PATH = "/avatars/";

/** A name is never given twice, so what has been fetched once need never be asked for again. */
const CACHE_CONTROL = "public, max-age=31536000, immutable";
/** Each holds its picture in memory until its reader has taken it. */
const MAX_AT_ONCE = 1_024;
const RETRY_AFTER_S = 1;

/** Of what comes from people, a browser is to make a picture, whatever it finds in it, and nothing else. */
const SAFETY_HEADERS: Readonly<Record<string, string>> = {
  "x-content-type-options": "nosniff",
  "content-security-policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
  "cross-origin-resource-policy": "cross-origin",
};

/** Serves pictures by GET and HEAD. Their names cannot be guessed, so whoever has one may see its picture. */
export function serveAvatars(files: Files, log: Logger): HttpHandler {
  let underWay = 0;
  return async (req, res) => {
    req.resume();
    for (const [name, value] of Object.entries(SAFETY_HEADERS)) res.setHeader(name, value);
    if (req.method !== "GET" && req.method !== "HEAD") {
      return refuse(res, 405, "The method must be one of: GET, HEAD.", { allow: "GET, HEAD" });
    }
    if (underWay >= MAX_AT_ONCE) return busy(res);
    underWay++;
    const name = nameIn(req);
    try {
      const picture = name === undefined ? undefined : await files.get(name);
      if (name === undefined || picture === undefined) return refuse(res, 404, "There is no such picture.");
      send(req, res, `"${name}"`, picture);
    } catch (error) {
      if (!(error instanceof DomainError)) throw error;
      log.warn({ err: error.details.cause ?? error, name }, "a picture could not be read");
      busy(res);
    } finally {
      // Not at the response's `close`: one that waits behind others on its connection never tells of it.
      underWay--;
    }
  };
}

function send(req: NodeReq, res: NodeRes, etag: string, picture: Uint8Array): void {
  res.setHeader("cache-control", CACHE_CONTROL);
  res.setHeader("etag", etag);
  if (matches(req.headers["if-none-match"], etag)) {
    res.statusCode = 304;
    res.end();
    return;
  }
  res.setHeader("content-type", "image/webp");
  res.setHeader("content-length", picture.byteLength);
  if (req.method === "HEAD") res.end();
  else res.end(picture);
}

/** Whether the client has what it asks for; weak and strong tags compare alike here (RFC 9110, section 13.1.2). */
function matches(ifNoneMatch: string | undefined, etag: string): boolean {
  const tags = ifNoneMatch?.split(",").map((tag) => tag.trim().replace(/^W\//, "")) ?? [];
  return tags.includes(etag) || tags.includes("*");
}

function nameIn({ url = "" }: NodeReq): string | undefined {
  const [path = ""] = url.split("?", 1);
  const name = path.slice(AVATARS_PATH.length);
  return isFileName(name) ? name : undefined;
}

function busy(res: NodeRes): void {
  refuse(res, 503, "The picture cannot be read at the moment; try again.", { "retry-after": String(RETRY_AFTER_S) });
}

function refuse(res: NodeRes, status: number, sentence: string, headers: Readonly<Record<string, string>> = {}): void {
  res.statusCode = status;
  res.setHeader("content-type", "text/plain; charset=utf-8");
  res.setHeader("cache-control", "no-store");
  for (const [name, value] of Object.entries(headers)) res.setHeader(name, value);
  res.end(`${sentence}\n`);
}
