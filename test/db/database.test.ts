import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { expect } from "chai";
import { Database, isAway } from "../../src/db/database.ts";
import { useDatabase } from "../support/database.ts";

/** ReadyForQuery, idle: what PostgreSQL sends when a connection has been made and after each statement. */
const READY = Buffer.from("5a0000000549", "hex");
/** What pg_terminate_backend makes PostgreSQL say last. */
const TERMINATED = errorResponse({ S: "FATAL", C: "57P01", M: "terminating connection due to administrator command" });

describe("a connection that PostgreSQL ends", () => {
  const database = useDatabase();
  let relay: Relay;
  let db: Database;
  beforeEach(async () => {
    relay = await Relay.start(database.url);
    db = new Database({ url: relay.url, poolMax: 1, prepared: true });
  });
  afterEach(async () => {
    await db.close();
    await relay.close();
  });

  for (const [when, count] of [
    ["in the breath in which it has been made", 1],
    ["in the breath in which it has been set up", 2],
    ["in the breath in which it has answered", 4],
  ] as const) {
    it(`fails no more than a call, when it ends ${when}`, async () => {
      relay.endAfterReady = count;
      const answers = await Promise.allSettled([db.ping(), db.ping(), db.ping()]);
      for (const answer of answers) if (answer.status === "rejected") expect(isAway(answer.reason)).to.equal(true);
      expect(relay.ended).to.equal(1);
      await db.ping();
    });
  }
});

/** A relay to PostgreSQL that can end the first connection as PostgreSQL does, in one breath with an answer. */
class Relay {
  readonly #server: Server;
  readonly url: string;
  /** After how many times ReadyForQuery. */
  endAfterReady = Number.POSITIVE_INFINITY;
  ended = 0;

  private constructor(server: Server, url: string) {
    this.#server = server;
    this.url = url;
  }

  static async start(url: string): Promise<Relay> {
    const target = new URL(url);
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    const own = new URL(url);
    own.searchParams.delete("host");
    own.hostname = "127.0.0.1";
    own.port = String((server.address() as AddressInfo).port);
    const relay = new Relay(server, own.href);
    server.on("connection", (client) => {
      const postgres = connect(Number(target.port), target.hostname);
      let ready = 0;
      client.pipe(postgres);
      postgres.on("data", (data) => {
        if (data.subarray(-READY.length).equals(READY)) ready += 1;
        if (relay.ended === 0 && ready === relay.endAfterReady) {
          relay.ended += 1;
          client.end(Buffer.concat([data, TERMINATED]));
          postgres.destroy();
        } else client.write(data);
      });
      for (const [one, other] of [
        [client, postgres],
        [postgres, client],
      ] as const) {
        one.on("close", () => other.destroy());
        one.on("error", () => other.destroy());
      }
    });
    return relay;
  }

  async close(): Promise<void> {
    this.#server.close();
    await once(this.#server, "close");
  }
}

function errorResponse(fields: Record<string, string>): Buffer {
  const body = Buffer.from(
    `${Object.entries(fields)
      .map(([type, value]) => `${type}${value}\0`)
      .join("")}\0`,
  );
  const head = Buffer.alloc(5);
  head.write("E");
  head.writeInt32BE(4 + body.length, 1);
  return Buffer.concat([head, body]);
}
