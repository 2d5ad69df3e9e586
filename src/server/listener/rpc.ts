import type { ConnectRouter, ContextValues } from "@connectrpc/connect";
import { type Exchange, isHttp2 } from "./exchange.ts";
import { type OutgoingFields, responseHeader } from "./headers.ts";
import type { RequestBody } from "./request-body.ts";
import type { Target } from "./target.ts";

/** What the router makes of one RPC. */
export type RpcHandler = ConnectRouter["handlers"][number];
type UniversalRequest = Parameters<RpcHandler>[0];
type UniversalResponse = Awaited<ReturnType<RpcHandler>>;

/** A request that is for an RPC. */
export interface RpcRequest {
  readonly exchange: Exchange;
  readonly target: Target;
  readonly header: Headers;
  readonly contextValues: ContextValues;
  readonly body: RequestBody;
}

/**
 * Hands one request to its RPC and writes the answer. Rejects only with a fault of ours: what clients do wrong, and
 * their going away, ends in an answer or in silence.
 * @param body the request's bytes, where some were taken from its own body already
 */
export async function serveRpc(
  handler: RpcHandler,
  { exchange, target, header, contextValues, body: own }: RpcRequest,
  body: AsyncIterable<Uint8Array> = own,
): Promise<void> {
  const request: UniversalRequest = {
    httpVersion: exchange.stream === undefined ? exchange.req.httpVersion : "2.0",
    method: exchange.method,
    url: target.url,
    header,
    body,
    signal: exchange.signal,
    contextValues,
  };
  await writeResponse(exchange, await handler(request));
}

async function writeResponse(exchange: Exchange, response: UniversalResponse): Promise<void> {
  const body = response.body?.[Symbol.asyncIterator]();
  const { res } = exchange;
  try {
    // The header waits for the first chunk, because until then the RPC may still change it.
    let chunk = await body?.next();
    if (exchange.closed) {
      return;
    }
    writeHead(exchange, response.status, responseHeader(response.header));
    for (; chunk !== undefined && chunk.done !== true && !exchange.closed; chunk = await body?.next()) {
      if (!write(exchange, chunk.value)) {
        await exchange.drained();
      }
    }
    if (exchange.closed) {
      return;
    }
    if (response.trailer !== undefined) {
      res.addTrailers(responseHeader(response.trailer));
    }
    res.end();
  } finally {
    // Runs the `finally` blocks of an RPC whose client went away. It must not be awaited: an RPC that waits for
    // something else may take its time.
    body?.return?.().catch(() => {});
  }
}

// The two kinds of response declare their methods in ways that no single call satisfies.
function writeHead({ res }: Exchange, status: number, header: OutgoingFields): void {
  if (isHttp2(res)) {
    res.writeHead(status, header);
  } else {
    res.writeHead(status, header);
  }
}

function write({ res }: Exchange, chunk: Uint8Array): boolean {
  return isHttp2(res) ? res.write(chunk) : res.write(chunk);
}
