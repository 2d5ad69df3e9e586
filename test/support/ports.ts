import { randomInt } from "node:crypto";
import { once } from "node:events";
import net from "node:net";

/** Below those that systems give out by themselves, so that nobody else is given the port before it is used. */
const FIRST = 20_000;
const LAST = 31_999;

/** A port that is free on 127.0.0.1. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(FIRST, LAST + 1);
    const server = net.createServer().listen(port, "127.0.0.1");
    const free = await once(server, "listening").then(
      () => true,
      () => false,
    );
    if (!free) continue;
    server.close();
    await once(server, "close");
    return port;
  }
}
