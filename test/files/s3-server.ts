import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** One request as it arrived. */
interface Received {
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
}

/** Speaks as much of S3 as storing, reading and removing one object takes, by paths that begin with the bucket. */
export interface S3Server {
  readonly url: string;
  readonly received: Received[];
  readonly objects: Map<string, { readonly bytes: Buffer; readonly contentType: string }>;
  /** Answers the next requests with these statuses instead. */
  readonly failures: number[];
  close(): Promise<void>;
}

export async function startS3Server(): Promise<S3Server> {
  const received: Received[] = [];
  const objects: S3Server["objects"] = new Map();
  const failures: number[] = [];

  const answer = async (req: IncomingMessage, res: ServerResponse) => {
    const { method = "", url = "", headers } = req;
    const path = url.split("?", 1)[0] ?? "";
    received.push({ method, path, headers });
    const chunks: Buffer[] = [];
    for await (const chunk of req as AsyncIterable<Buffer>) chunks.push(chunk);
    const bytes = Buffer.concat(chunks);
    const failure = failures.shift();
    if (failure !== undefined) return refuse(res, failure, failure === 403 ? "AccessDenied" : "SlowDown");
    if (method === "PUT") {
      objects.set(path, { bytes, contentType: headers["content-type"] ?? "" });
      res.setHeader("etag", '"1"').end();
    } else if (method === "DELETE") {
      objects.delete(path);
      res.writeHead(204).end();
    } else {
      const found = objects.get(path);
      if (found === undefined) return refuse(res, 404, "NoSuchKey");
      res.setHeader("content-type", found.contentType).setHeader("content-length", found.bytes.length).end(found.bytes);
    }
  };

  const server = createServer((req, res) => void answer(req, res));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    received,
    objects,
    failures,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

function refuse(res: ServerResponse, status: number, code: string): void {
  res.writeHead(status, { "content-type": "application/xml" });
  res.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>refused</Message></Error>`);
}
