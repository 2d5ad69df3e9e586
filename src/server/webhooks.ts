import { isAway } from "../db/database.ts";
import type { Deps } from "../deps.ts";
import { receiveWebhook } from "../payments/receive-webhook.ts";
import type { HttpHandler, NodeReq, NodeRes } from "./listener.ts";

/** Where gateways send their webhooks; the vendor's name follows. */
export const WEBHOOKS_PATH = "/webhooks/";

/** More than any webhook of a vendor. */
const MAX_BODY_BYTES = 256 * 1024;
/** Each holds its body in memory until its events are kept. Gateways send again what is refused for that. */
const MAX_AT_ONCE = 128;
const RETRY_AFTER_S = 1;
/** Adyen takes no other answer for an acknowledgement. */
const ACKNOWLEDGEMENTS: Readonly<Record<string, string>> = { adyen: "[accepted]" };

type WebhookDeps = Parameters<typeof receiveWebhook>[0] & Pick<Deps, "log">;

/** Takes webhooks by POST. Their senders are known by their signatures alone, so nothing is told to others. */
export function serveWebhooks(deps: WebhookDeps): HttpHandler {
  let underWay = 0;
  return async (req, res) => {
    const vendor = vendorIn(req);
    if (req.method !== "POST") {
      return answer(req, res, 405, "The method must be POST.", { allow: "POST" });
    }
    if (underWay >= MAX_AT_ONCE) return busy(req, res);
    underWay++;
    try {
      const body = await readBody(req);
      if (body === "gone") return;
      if (body === "too large") return answer(req, res, 413, `The body must not exceed ${MAX_BODY_BYTES} bytes.`);
      switch (await receiveWebhook(deps, vendor, { headers: req.headers, body })) {
        case "accepted":
          return answer(req, res, 200, ACKNOWLEDGEMENTS[vendor] ?? "");
        case "refused":
          return answer(req, res, 400, "The webhook was refused.");
        case "unknown":
          return answer(req, res, 404, "There is no such gateway.");
      }
    } catch (error) {
      if (!isAway(error)) throw error;
      deps.log.warn({ err: error, vendor }, "a webhook could not be kept");
      busy(req, res);
    } finally {
      underWay--;
    }
  };
}

function vendorIn({ url = "" }: NodeReq): string {
  const [path = ""] = url.split("?", 1);
  return path.slice(WEBHOOKS_PATH.length);
}

/** The exact bytes, since signatures cover them. The listener bounds the time that they may take. */
function readBody(req: NodeReq): Promise<Buffer | "too large" | "gone"> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    req.on("data", (chunk: Buffer) => {
      bytes += chunk.byteLength;
      if (bytes > MAX_BODY_BYTES) {
        chunks.length = 0;
        resolve("too large");
      } else {
        chunks.push(chunk);
      }
    });
    req.on("end", () => resolve(Buffer.concat(chunks)));
    req.on("close", () => resolve("gone"));
  });
}

function busy(req: NodeReq, res: NodeRes): void {
  answer(req, res, 503, "The webhook cannot be taken at the moment; send it again.", {
    "retry-after": String(RETRY_AFTER_S),
  });
}

function answer(
  req: NodeReq,
  res: NodeRes,
  status: number,
  text: string,
  headers: Readonly<Record<string, string>> = {},
): void {
  // What is left of the body is thrown away, so that the sender gets to read the answer.
  req.resume();
  res.statusCode = status;
  res.setHeader("content-type", "text/plain; charset=utf-8");
  res.setHeader("cache-control", "no-store");
  for (const [name, value] of Object.entries(headers)) res.setHeader(name, value);
  res.end(text);
}
