import { cors as connectHeaders } from "@connectrpc/connect";
import type { NodeReq, NodeRes } from "./exchange.ts";

/** Which web pages may call the server from a browser. */
export interface CorsOptions {
  /** Origins such as `https://shop.example`, compared exactly; `*` allows every origin. */
  readonly origins: readonly string[];
}

/** Browsers do not remember a preflight for longer than this, whatever they are told. */
const preflightMaxAgeSeconds = 7_200;

/**
 * Adds the headers that let a browser hand the response to the calling page.
 *
 * @returns whether the request was a preflight, which is then answered and needs nothing else
 */
export function applyCors(options: CorsOptions, req: NodeReq, res: NodeRes): boolean {
  const origin = req.headers.origin;
  if (origin === undefined) {
    return false;
  }
  const allowed = options.origins.includes("*") || options.origins.includes(origin);
  res.setHeader("vary", "origin");
  if (allowed) {
    res.setHeader("access-control-allow-origin", origin);
    res.setHeader("access-control-expose-headers", connectHeaders.exposedHeaders.join(", "));
  }
  if (req.method !== "OPTIONS" || req.headers["access-control-request-method"] === undefined) {
    return false;
  }
  if (allowed) {
    res.setHeader("access-control-allow-methods", connectHeaders.allowedMethods.join(", "));
    res.setHeader("access-control-allow-headers", [...connectHeaders.allowedHeaders, "Authorization"].join(", "));
    res.setHeader("access-control-max-age", String(preflightMaxAgeSeconds));
  }
  res.statusCode = 204;
  res.end();
  return true;
}
