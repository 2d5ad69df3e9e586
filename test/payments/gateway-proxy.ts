import { once } from "node:events";
import { Agent, createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";

/** What the proxy does with a charge, by its amount in minor units. */
export interface Holds {
  /** Charges that never reach the gateway until the hold is over. */
  readonly requests: ReadonlySet<number>;
  /** Charges that the gateway carries out, and whose answers do not come back. */
  readonly answers: ReadonlySet<number>;
  /** Charges that wait for `pass`, and then go through. */
  readonly doors: ReadonlyMap<number, Promise<void>>;
}

/** A proxy before the sandbox that stops charges where a test wants it. */
export interface GatewayProxy {
  readonly port: number;
  /** Charges whose requests or answers it holds, by their amounts. */
  readonly held: ReadonlySet<number>;
  /** From then on everything goes through; what is held stays held for ever. */
  release(): void;
  close(): void;
}

/** Stands between the service and `target`, the address of a sandbox. */
export async function startGatewayProxy(target: string, holds: Holds): Promise<GatewayProxy> {
  const agent = new Agent({ keepAlive: true });
  const held = new Set<number>();
  let holding = true;

  const pass = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    const body = await buffer(incoming);
    const minor = holding ? amountOf(incoming, body) : undefined;
    if (minor !== undefined) {
      await holds.doors.get(minor);
      if (holds.requests.has(minor)) return void held.add(minor);
    }
    const { method, headers, url = "/" } = incoming;
    const forwarded = request(new URL(url, target), { ...{ agent, headers }, ...(method !== undefined && { method }) });
    forwarded.end(body);
    const [answer] = (await once(forwarded, "response")) as [IncomingMessage];
    const content = await buffer(answer);
    if (minor !== undefined && holds.answers.has(minor)) return void held.add(minor);
    outgoing.writeHead(answer.statusCode ?? 502, answer.headers).end(content);
  };
  const server: Server = createServer((incoming, outgoing) => {
    // A client that was killed is gone in the middle of anything.
    pass(incoming, outgoing).catch(() => outgoing.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    port: (server.address() as AddressInfo).port,
    held,
    release() {
      holding = false;
    },
    close() {
      server.closeAllConnections();
      server.close();
      agent.destroy();
    },
  };
}

function amountOf({ method, url }: IncomingMessage, body: Buffer): number | undefined {
  if (method !== "POST" || url === undefined || !url.endsWith("/charges")) return undefined;
  const { amount_minor: minor } = JSON.parse(body.toString()) as { amount_minor?: number };
  return minor;
}
