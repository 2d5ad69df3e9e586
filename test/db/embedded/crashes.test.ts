import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "chai";
import pino from "pino";
import { parseProcessList } from "../../../src/db/embedded/leftovers.ts";
import { signalProcess } from "../../../src/db/embedded/program.ts";
import type { EmbeddedOptions } from "../../../src/db/embedded.ts";
import { alive, connect, type Family, kill, type OtherServer, query, useEmbedded, waitUntil } from "./fixture.ts";

describe("startEmbedded beside another process", function () {
  this.timeout(120_000);
  /** What a process left that was killed during its first start, and what the start after it made of that. */
  const firstStart = { leftBehind: [""], created: false, found: [""] };
  const embedded = useEmbedded(async (fixture) => {
    const child = fixture.spawnElsewhere();
    const names = () => readdir(fixture.dataDir).catch(() => []);
    await waitUntil("initdb has begun", async () => (await names()).some((name) => name.startsWith("initdb-")));
    await kill(child);
    firstStart.leftBehind = await names();
    const server = await fixture.start();
    firstStart.created = server.created;
    firstStart.found = await names();
    return server;
  });

  /** Lets another process start on data that others use as well, and commit a row. */
  async function startOther(options: object = {}): Promise<OtherServer & { family: Family }> {
    embedded.useTemplate();
    const other = await embedded.startElsewhere(options);
    await query(other.url, `INSERT INTO t VALUES (${embedded.value})`);
    return { ...other, family: await embedded.family() };
  }

  async function expectRowAfterStart(options: Partial<EmbeddedOptions> = {}): Promise<void> {
    const server = await embedded.start(options);
    expect(await embedded.ownRows(server.url), "what was committed").to.deep.equal([{ n: embedded.value }]);
  }

  it("begins anew after a crash in the middle of the first start", () => {
    expect(firstStart.leftBehind).to.not.include("data");
    expect(firstStart.created).to.equal(true);
    expect(firstStart.found).to.have.members(["data", "password", "postgresql.log", "server.json"]);
  });

  it("goes down by itself when its server is killed, and keeps what was committed", async () => {
    const other = await startOther();
    await kill(other.child);
    await waitUntil("PostgreSQL has ended", async () => (await alive(other.family.all)).length === 0);
    await expectRowAfterStart();
  });

  it("starts at once after its server was killed, while the old PostgreSQL is still going down", async () => {
    const other = await startOther();
    const { postmaster } = other.family;
    // Held, it does not go down before the start has come upon it.
    process.kill(postmaster, "SIGSTOP");
    await kill(other.child);
    const met: string[] = [];
    const release = (line: string) => {
      met.push(line);
      process.kill(postmaster, "SIGCONT");
    };
    await expectRowAfterStart({ log: pino({ level: "warn" }, { write: release }) });
    expect(met.join("")).to.contain("an earlier run left behind").and.contain(String(postmaster));
  });

  it("stops a PostgreSQL that was orphaned, and starts anew", async () => {
    const other = await startOther();
    await killWithSupervisor(other);
    const { postmaster } = other.family;
    expect(await alive([postmaster]), "the orphan").to.deep.equal([postmaster]);
    await expectRowAfterStart();
    expect(await alive([postmaster]), "the orphan").to.deep.equal([]);
  });

  it("does not start over a backend that outlived its postmaster, but ends it first", async () => {
    const other = await startOther({ durable: true });
    // A backend that computes does not look whether its postmaster is still there.
    const busy = await connect(other.url);
    const [row] = (await busy.query("SELECT pg_backend_pid() AS pid")).rows as { pid: number }[];
    const backend = row?.pid ?? 0;
    busy.query("SELECT count(*) FROM generate_series(1, 1000000000000)").catch(() => {});
    const isBusy = `SELECT FROM pg_stat_activity WHERE pid = ${backend} AND state = 'active' AND query ~ 'generate_series'`;
    await waitUntil("the backend computes", async () => (await query(other.url, isBusy)).length === 1);
    await killWithSupervisor(other);
    process.kill(other.family.postmaster, "SIGKILL");
    await waitUntil("the others have ended", async () => (await alive(other.family.all)).length === 0);
    expect(await alive([backend]), "the backend").to.deep.equal([backend]);
    await expectRowAfterStart();
    expect(await alive([backend]), "the backend").to.deep.equal([]);
    await busy.end().catch(() => {});
  });

  it("recovers when every process was killed at once", async () => {
    const other = await startOther({ durable: true });
    other.child.kill("SIGKILL");
    // A child may leave by itself as soon as its postmaster is gone.
    for (const pid of other.family.all) signalProcess(pid, "SIGKILL");
    await waitUntil("all have ended", async () => (await alive(other.family.all)).length === 0);
    expect(await readdir(join(embedded.dataDir, "data"))).to.include("postmaster.pid");
    await expectRowAfterStart();
  });

  it("is not reached by a terminal's Ctrl-C, and goes down when its server ends without stopping it", async () => {
    const other = await startOther();
    process.kill(-(other.child.pid ?? 0), "SIGINT");
    process.kill(other.family.supervisor, "SIGTERM");
    await sleep(300);
    expect(await embedded.ownRows(other.url)).to.deep.equal([{ n: embedded.value }]);
    // It has nothing to do any more, and a PostgreSQL that it forgot does not keep it alive.
    other.child.stdin?.end();
    await once(other.child, "exit");
    await waitUntil("PostgreSQL has ended", async () => (await alive(other.family.all)).length === 0);
  });

  it("lets one of two processes that start at once win and leaves the winner alone", async () => {
    embedded.useTemplate();
    const both = await Promise.all([embedded.startElsewhere(), embedded.startElsewhere()]);
    const winner = both.find(({ url }) => url !== "");
    const loser = both.find(({ error }) => error !== "");
    const refusal =
      `The PostgreSQL data folder ${embedded.dataDir} is in use by process ${winner?.child.pid}. ` +
      "Stop it, or use another folder.";
    expect(loser?.error).to.equal(refusal);
    expect(await embedded.failure()).to.equal(refusal);
    expect(await query(winner?.url ?? "", "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
  });

  async function killWithSupervisor({ child, family }: { child: OtherServer["child"]; family: Family }): Promise<void> {
    // Each of the two would stop PostgreSQL if it saw the other one go.
    child.kill("SIGSTOP");
    process.kill(family.supervisor, "SIGKILL");
    await kill(child);
  }
});

describe("parseProcessList", () => {
  it("finds a server by its folder, and its children, and nobody else", () => {
    const output = `    1     0 /sbin/launchd
  100     1 /x/bin/postgres -D /home/a b/pg/data -c port=1
  101   100 postgres: tradepost: checkpointer
  102   100 postgres: tradepost: io worker 0
  200     1 /x/bin/postgres -D /home/a b/pg/data-old -c port=2
  201   200 postgres: tradepost: checkpointer
  300     1 tail -f /home/a b/pg/data/postgresql.log -D /home/a b/pg/data
`;
    expect(parseProcessList(output, "/home/a b/pg/data")).to.deep.equal([100, 101, 102]);
  });

  it("finds nothing in nothing", () => {
    expect(parseProcessList("", "/data")).to.deep.equal([]);
  });
});
