import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, chown, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { expect } from "chai";
import pg from "pg";
import pino from "pino";
import {
  type EmbeddedOptions,
  type EmbeddedPostgres,
  EmbeddedPostgresError,
  parseProcessList,
  resolveBinaries,
  startEmbedded,
} from "../../src/db/embedded.ts";

const MODULE = new URL("../../src/db/embedded.ts", import.meta.url).href;
const PINO = import.meta.resolve("pino");
const IS_ROOT = process.getuid?.() === 0;
const run = promisify(execFile);
const log = pino({ level: "silent" });

/** A server of ours in another process: starts PostgreSQL, prints the URL or the error in one line, and lives on. */
const OTHER_SERVER = `
  import { startEmbedded } from ${JSON.stringify(MODULE)};
  import pino from ${JSON.stringify(PINO)};
  process.on("SIGINT", () => {});
  process.stdin.resume();
  process.stdin.on("end", () => process.exit());
  const options = JSON.parse(process.argv[1]);
  try {
    const { url } = await startEmbedded({ durable: false, ...options, log: pino({ level: "silent" }) });
    console.log(JSON.stringify({ url }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.message }));
  }
`;

interface OtherServer {
  readonly child: ChildProcess;
  readonly url: string;
  readonly error: string;
}

describe("startEmbedded", function () {
  this.timeout(30_000);
  let dir: string;
  /** Holds data that were started and stopped before, with a table `t`. */
  let template: string;
  let dataDir: string;
  /** Another one in every test. */
  let value = 0;
  const running: EmbeddedPostgres[] = [];
  const children: ChildProcess[] = [];

  before(async () => {
    template = await mkdtemp(join(tmpdir(), "tradepost-embedded-template-"));
    const first = await startEmbedded({ dataDir: join(template, "pg"), log, durable: false });
    await query(first.url, "CREATE TABLE t (n int)");
    await first.stop();
  });

  after(() => rm(template, { recursive: true, force: true }));

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "tradepost-embedded-"));
    await chmod(dir, 0o755);
    dataDir = join(dir, "pg");
    value++;
  });

  afterEach(async () => {
    for (const child of children.splice(0)) await kill(child);
    for (const server of running.splice(0)) await server.stop();
    await waitUntil("every PostgreSQL on the test's folder has ended", async () => {
      return (await serversUnder(dir)) + (await serversUnder(template)) === "";
    });
    await rm(dir, { recursive: true, force: true });
  });

  async function start(options: Partial<EmbeddedOptions> = {}): Promise<EmbeddedPostgres> {
    const server = await startEmbedded({ dataDir, log, durable: false, ...options });
    running.push(server);
    return server;
  }

  async function failure(options: Partial<EmbeddedOptions> = {}): Promise<string> {
    const error = await start(options).then(
      () => new Error("it started"),
      (reason: unknown) => reason,
    );
    expect(error).to.be.instanceOf(EmbeddedPostgresError);
    return (error as Error).message;
  }

  /** For tests that leave the data whole. What others have put into the table stays there. */
  const useTemplate = () => {
    dataDir = join(template, "pg");
  };

  // The tool is several times as fast as Node at a thousand small files.
  const copyTemplate = () => run("cp", ["-Rp", join(template, "pg"), dataDir]);

  async function startElsewhere(options: object = {}, identity: object = {}): Promise<OtherServer> {
    const args = ["--input-type=module", "--eval", OTHER_SERVER, JSON.stringify({ dataDir, ...options })];
    // Its own process group stands for a terminal's: what is sent to the group reaches all that did not leave it.
    const stdio: ["pipe", "pipe", "inherit"] = ["pipe", "pipe", "inherit"];
    const child = spawn(process.execPath, args, { cwd: "/", stdio, detached: true, ...identity });
    children.push(child);
    const [line] = (await once(child.stdout, "data")) as [Buffer];
    return { child, url: "", error: "", ...(JSON.parse(line.toString("utf8")) as object) };
  }

  it("makes the data at the first start and finds them again at the second", async () => {
    const first = await start();
    expect(first.created).to.equal(true);
    await query(first.url, "CREATE TABLE t AS SELECT 42 AS n");
    await first.stop();
    const second = await start();
    expect(second.created).to.equal(false);
    expect(await query(second.url, "SELECT n FROM t")).to.deep.equal([{ n: 42 }]);
  });

  it("gives a UTF-8 database with a collation that is the same everywhere, and with checksums", async () => {
    useTemplate();
    const { url } = await start();
    const [database] = await query(
      url,
      `SELECT current_user AS "user", datname, pg_encoding_to_char(encoding) AS encoding, datlocprovider, datlocale,
         current_setting('data_checksums') AS checksums, current_setting('server_version_num')::int / 10000 AS version
       FROM pg_database WHERE datname = current_database()`,
    );
    expect(database).to.deep.equal({
      user: "tradepost",
      datname: "tradepost",
      encoding: "UTF8",
      datlocprovider: "b",
      datlocale: "C.UTF-8",
      checksums: "on",
      version: 18,
    });
  });

  it("listens on the loopback address alone and lets nobody in without the password", async () => {
    useTemplate();
    const { url } = await start();
    expect(await query(url, "SHOW listen_addresses")).to.deep.equal([{ listen_addresses: "127.0.0.1" }]);
    expect(await query(url, "SHOW unix_socket_directories")).to.deep.equal([{ unix_socket_directories: "" }]);
    const stranger = new URL(url);
    stranger.password = "guess";
    const error = await query(stranger.href, "SELECT 1").catch((reason: unknown) => reason);
    expect(error).to.have.property("code", "28P01");
    expect((await stat(join(dataDir, "password"))).mode & 0o777).to.equal(0o600);
    expect(await readFile(join(dataDir, "data", "pg_hba.conf"), "utf8")).to.not.match(/^[^#\n]*\btrust\b/m);
  });

  it("is safe by default, fast on request, and lets settings override its own", async () => {
    useTemplate();
    const fast = await start({ settings: { max_connections: "17" } });
    expect(await query(fast.url, "SHOW max_connections")).to.deep.equal([{ max_connections: "17" }]);
    expect(await query(fast.url, "SHOW fsync")).to.deep.equal([{ fsync: "off" }]);
    await fast.stop();
    const safe = await startEmbedded({ dataDir, log });
    running.push(safe);
    expect(await query(safe.url, "SHOW max_connections")).to.deep.equal([{ max_connections: "100" }]);
    expect(await query(safe.url, "SHOW fsync")).to.deep.equal([{ fsync: "on" }]);
    expect(await query(safe.url, "SHOW synchronous_commit")).to.deep.equal([{ synchronous_commit: "on" }]);
  });

  it("leaves no process when it is stopped, however many clients there are, and stops once", async () => {
    useTemplate();
    const server = await start();
    const client = new pg.Client(server.url);
    client.on("error", () => {});
    await client.connect();
    await client.query("BEGIN");
    const pids = await familyOf(dataDir);
    expect(pids.length).to.be.greaterThan(4);
    const stopped = server.stop();
    expect(server.stop()).to.equal(stopped);
    await stopped;
    expect(await alive(pids)).to.deep.equal([]);
    expect(await readdir(dataDir)).to.have.members(["data", "password", "postgresql.log"]);
    await client.end().catch(() => {});
  });

  it("says that PostgreSQL ended by itself, and can still be stopped", async () => {
    useTemplate();
    const server = await start();
    process.kill(await postmasterOf(dataDir), "SIGKILL");
    const sentence = await server.exited;
    expect(sentence).to.match(/^PostgreSQL ended by itself: signal SIGKILL\./);
    await server.stop();
    const again = await start();
    expect(await query(again.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
  });

  it("does not leave PostgreSQL unwatched when its supervisor is killed", async () => {
    useTemplate();
    const server = await start();
    const pids = await familyOf(dataDir);
    process.kill(await parentOf(await postmasterOf(dataDir)), "SIGKILL");
    expect(await server.exited).to.match(/^PostgreSQL ended by itself: its supervisor ended with signal SIGKILL\./);
    expect(await alive(pids)).to.deep.equal([]);
  });

  describe("beside another process", () => {
    it("goes down by itself when its server is killed, and keeps what was committed", async () => {
      useTemplate();
      const other = await startElsewhere();
      await query(other.url, `INSERT INTO t VALUES (${value})`);
      const pids = await familyOf(dataDir);
      await kill(other.child);
      await waitUntil("PostgreSQL has ended", async () => (await alive(pids)).length === 0);
      const server = await start();
      expect(await query(server.url, `SELECT n FROM t WHERE n = ${value}`)).to.deep.equal([{ n: value }]);
    });

    it("starts at once after its server was killed, while the old PostgreSQL is still going down", async () => {
      useTemplate();
      const other = await startElsewhere();
      await query(other.url, `INSERT INTO t VALUES (${value})`);
      await kill(other.child);
      const server = await start();
      expect(await query(server.url, `SELECT n FROM t WHERE n = ${value}`)).to.deep.equal([{ n: value }]);
    });

    it("stops a PostgreSQL that was orphaned, and starts anew", async () => {
      useTemplate();
      const other = await startElsewhere();
      await query(other.url, `INSERT INTO t VALUES (${value})`);
      const orphan = await postmasterOf(dataDir);
      await killWithSupervisor(other.child, orphan);
      expect(await alive([orphan]), "the orphan").to.have.length(1);
      const server = await start();
      expect(await alive([orphan]), "the orphan").to.deep.equal([]);
      expect(await query(server.url, `SELECT n FROM t WHERE n = ${value}`)).to.deep.equal([{ n: value }]);
    });

    it("does not start over a backend that outlived its postmaster, but ends it first", async () => {
      useTemplate();
      const other = await startElsewhere({ durable: true });
      await query(other.url, `INSERT INTO t VALUES (${value})`);
      const postmaster = await postmasterOf(dataDir);
      // A backend that computes does not look whether its postmaster is still there.
      const busy = new pg.Client(other.url);
      busy.on("error", () => {});
      await busy.connect();
      const [row] = (await busy.query("SELECT pg_backend_pid() AS pid")).rows as { pid: number }[];
      const backend = row?.pid ?? 0;
      busy.query("SELECT count(*) FROM generate_series(1, 1000000000000)").catch(() => {});
      await sleep(200);
      await killWithSupervisor(other.child, postmaster);
      process.kill(postmaster, "SIGKILL");
      await sleep(200);
      expect(await alive([backend]), "the backend").to.have.length(1);
      const server = await start();
      expect(await alive([backend]), "the backend").to.deep.equal([]);
      expect(await query(server.url, `SELECT n FROM t WHERE n = ${value}`)).to.deep.equal([{ n: value }]);
      await busy.end().catch(() => {});
    });

    it("recovers when every process was killed at once", async () => {
      useTemplate();
      const other = await startElsewhere({ durable: true });
      await query(other.url, `INSERT INTO t VALUES (${value})`);
      const pids = await familyOf(dataDir);
      other.child.kill("SIGKILL");
      for (const pid of pids) process.kill(pid, "SIGKILL");
      await waitUntil("all have ended", async () => (await alive(pids)).length === 0);
      expect(await readdir(join(dataDir, "data"))).to.include("postmaster.pid");
      const server = await start();
      expect(await query(server.url, `SELECT n FROM t WHERE n = ${value}`)).to.deep.equal([{ n: value }]);
    });

    it("is not reached by a terminal's Ctrl-C", async () => {
      useTemplate();
      const other = await startElsewhere();
      process.kill(-(other.child.pid ?? 0), "SIGINT");
      process.kill(await parentOf(await postmasterOf(dataDir)), "SIGTERM");
      await sleep(300);
      expect(await query(other.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    });

    it("goes down when its server ends without stopping it", async () => {
      useTemplate();
      const other = await startElsewhere();
      const pids = await familyOf(dataDir);
      other.child.stdin?.end();
      await once(other.child, "exit");
      await waitUntil("PostgreSQL has ended", async () => (await alive(pids)).length === 0);
    });

    it("lets one of two processes that start at once win and leaves the winner alone", async () => {
      const both = await Promise.all([startElsewhere(), startElsewhere()]);
      const winner = both.find(({ url }) => url !== "");
      const loser = both.find(({ error }) => error !== "");
      expect(loser?.error).to.equal(
        `The PostgreSQL data folder ${dataDir} is in use by process ${winner?.child.pid}. ` +
          "Stop it, or use another folder.",
      );
      expect(await query(winner?.url ?? "", "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
      expect(await failure()).to.include(`is in use by process ${winner?.child.pid}`);
      expect(await query(winner?.url ?? "", "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    });

    it("begins anew after a crash in the middle of the first start", async () => {
      const args = ["--input-type=module", "--eval", OTHER_SERVER, JSON.stringify({ dataDir })];
      const child = spawn(process.execPath, args, { stdio: ["pipe", "ignore", "inherit"] });
      children.push(child);
      await waitUntil("initdb has begun", async () => {
        const names = await readdir(dataDir).catch(() => []);
        return names.some((name) => name.startsWith("initdb-"));
      });
      await kill(child);
      expect(await readdir(dataDir)).to.not.include("data");
      const server = await start();
      expect(server.created).to.equal(true);
      expect((await readdir(dataDir)).filter((name) => name.startsWith("initdb-"))).to.deep.equal([]);
    });
  });

  it("does not mistake a stranger for PostgreSQL whose pid stands in a stale pid file", async () => {
    useTemplate();
    const stranger = spawn("sleep", ["60"], { stdio: "ignore" });
    children.push(stranger);
    const lines = [stranger.pid, join(dataDir, "data"), 1, 5432, "", "127.0.0.1", "0 0", "ready"];
    await writeFile(join(dataDir, "data", "postmaster.pid"), `${lines.join("\n")}\n`);
    const server = await start();
    expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    expect(await alive([stranger.pid ?? 0]), "the stranger").to.have.length(1);
  });

  it("leaves the PostgreSQL alone whose folder was copied while it ran", async () => {
    useTemplate();
    const original = await start();
    const copy = join(dir, "copy");
    await run("cp", ["-Rp", dataDir, copy]);
    const server = await start({ dataDir: copy });
    expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    expect(await query(original.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
  });

  it("sets a log aside that has grown large", async () => {
    useTemplate();
    await writeFile(join(dataDir, "postgresql.log"), "x".repeat(17 * 1024 * 1024));
    await start();
    expect((await stat(join(dataDir, "postgresql.log"))).size).to.be.lessThan(64 * 1024);
    expect((await stat(join(dataDir, "postgresql.log.1"))).size).to.equal(17 * 1024 * 1024);
  });

  describe("refuses, in a sentence to act on,", () => {
    it("data of another version", async () => {
      await copyTemplate();
      await writeFile(join(dataDir, "data", "PG_VERSION"), "17\n");
      expect(await failure()).to.match(/were made by PostgreSQL 17, and this is PostgreSQL 18\. Dump them/);
    });

    it("a folder that holds something else", async () => {
      await mkdir(join(dataDir, "data"), { recursive: true });
      await writeFile(join(dataDir, "data", "novel.txt"), "Once upon a time");
      expect(await failure()).to.include("holds no PostgreSQL data");
      expect(await readdir(join(dataDir, "data"))).to.deep.equal(["novel.txt"]);
    });

    it("a file in the folder's place", async () => {
      await writeFile(dataDir, "");
      expect(await failure()).to.match(/data folder \S+ cannot be used: EEXIST.* Use another folder\./);
    });

    it("a password file that is missing or wrong", async () => {
      await copyTemplate();
      await rm(join(dataDir, "password"));
      expect(await failure()).to.include("password does not hold the password");
      await writeFile(join(dataDir, "password"), `${"0".repeat(48)}\n`);
      expect(await failure()).to.include("PostgreSQL does not accept the password in");
    });

    it("settings that PostgreSQL does not take, in PostgreSQL's words", async () => {
      useTemplate();
      const sentence = await failure({ settings: { max_connections: "many" } });
      expect(sentence).to.match(/^PostgreSQL did not start: exit code 1\. .*"max_connections": "many".*full log: /);
    });

    it("data that are damaged, in PostgreSQL's words", async () => {
      await copyTemplate();
      await rm(join(dataDir, "data", "global", "pg_control"));
      expect(await failure()).to.match(/could not (find|open).*pg_control|database system/);
    });

    it("a start that takes too long, and stops what it started", async () => {
      useTemplate();
      expect(await failure({ startTimeoutMs: 1 })).to.include("PostgreSQL was not ready within 0.001 s");
      expect(await serversUnder(template)).to.equal("");
      expect((await start()).created).to.equal(false);
    });

    it("programs that do not run on this machine", async () => {
      const postgres = join(dir, "postgres");
      await writeFile(postgres, "#!/bin/sh\necho 'error while loading shared libraries: libxml2.so.2' >&2\nexit 127\n");
      await chmod(postgres, 0o755);
      expect(await failure({ binaries: { initdb: postgres, postgres } })).to.match(
        /error while loading shared libraries: libxml2\.so\.2.*set DATABASE_URL/i,
      );
    });

    it("a platform for which there is no PostgreSQL", async () => {
      const error = await resolveBinaries("sunos-sparc").catch((reason: unknown) => reason);
      expect(error).to.be.instanceOf(EmbeddedPostgresError);
      expect((error as Error).message).to.match(/no PostgreSQL for sunos-sparc.*set DATABASE_URL/);
    });
  });

  describe("for root", () => {
    before(function () {
      // These cases are about giving rights up, which only root can do.
      if (!IS_ROOT) this.skip();
    });

    const relocationRoot = () => join(dir, "elsewhere");

    it("runs as an unprivileged account where user namespaces are not allowed", async () => {
      const server = await start({ asRoot: "account" });
      expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
      expect((await stat(join(dataDir, "data"))).uid).to.not.equal(0);
      expect((await stat(`/proc/${await postmasterOf(dataDir)}`)).uid).to.not.equal(0);
      await server.stop();
      expect(await readdir(dataDir)).to.have.members(["data", "password", "postgresql.log"]);
    });

    it("finds data again that were first used the other way", async function () {
      if (!(await canUnshare())) this.skip();
      await copyTemplate();
      for (const asRoot of ["namespace", "account", "namespace", "account"] as const) {
        const server = await start({ asRoot });
        await query(server.url, `INSERT INTO t VALUES (${value})`);
        await server.stop();
      }
      const server = await start();
      expect(await query(server.url, `SELECT count(*)::int FROM t WHERE n = ${value}`)).to.deep.equal([{ count: 4 }]);
    });

    it("finds data again that were being given to the other identity when the process was killed", async () => {
      await copyTemplate();
      await (await start({ asRoot: "account" })).stop();
      // What a kill leaves: the folder still belongs to its old user, a file in it to the new one, and the mark stands.
      await chown(join(dataDir, "data", "PG_VERSION"), 0, 0);
      await writeFile(join(dataDir, "data-changes-owner"), "");
      const server = await start({ asRoot: "account" });
      expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
      expect(await readdir(dataDir)).to.not.include("data-changes-owner");
    });

    it("runs in a folder that others cannot enter, where user namespaces are allowed", async function () {
      if (!(await canUnshare())) this.skip();
      await chmod(dir, 0o700);
      const server = await start({ asRoot: "namespace" });
      expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
      expect((await stat(join(dataDir, "data"))).uid).to.equal(0);
    });

    it("moves to a folder elsewhere that the account can reach, and stays there", async () => {
      await copyTemplate();
      await chmod(dir, 0o700);
      const elsewhere = await mkdtemp(join(await otherFileSystem(), "tradepost-embedded-elsewhere-"));
      try {
        await chmod(elsewhere, 0o755);
        const lines: string[] = [];
        const listening = pino({ level: "warn" }, { write: (line: string) => lines.push(line) });
        const first = await start({ asRoot: "account", relocationRoot: elsewhere, log: listening });
        await query(first.url, `INSERT INTO t VALUES (${value})`);
        await first.stop();
        expect(lines.join("")).to.match(/cannot reach \S+, so its data are in /);
        expect(lines.length, lines.join("")).to.equal(1);
        expect(await readdir(dataDir)).to.not.include("data");

        const second = await start({ asRoot: "account", relocationRoot: elsewhere });
        expect(await query(second.url, `SELECT n FROM t WHERE n = ${value}`)).to.deep.equal([{ n: value }]);
        await second.stop();
        if (await canUnshare()) {
          const third = await start({ asRoot: "namespace", relocationRoot: elsewhere });
          expect(await query(third.url, `SELECT n FROM t WHERE n = ${value}`)).to.deep.equal([{ n: value }]);
          await third.stop();
        }
        expect((await readdir(elsewhere)).length).to.equal(1);

        await rm(elsewhere, { recursive: true });
        expect(await failure({ asRoot: "account" })).to.match(/were moved to \S+, which is gone/);
      } finally {
        for (const server of running.splice(0)) await server.stop();
        await rm(elsewhere, { recursive: true, force: true });
      }
    });

    it("takes binaries along that the account cannot reach", async () => {
      await copyTemplate();
      const native = dirname(dirname((await resolveBinaries()).postgres));
      const closed = join(dir, "closed");
      await mkdir(closed, { mode: 0o700 });
      await run("cp", ["-Rp", dirname(native), join(closed, "package")]);
      const bin = join(closed, "package", basename(native), "bin");
      const binaries = { initdb: join(bin, "initdb"), postgres: join(bin, "postgres") };
      const server = await start({ asRoot: "account", relocationRoot: relocationRoot(), binaries });
      expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
      const [moved] = await readdir(relocationRoot());
      const copies = (await readdir(join(relocationRoot(), moved ?? ""))).filter((name) => name.startsWith("native-"));
      expect(copies).to.have.length(1);
      await server.stop();
      await start({ asRoot: "account", binaries });
      expect(await readdir(relocationRoot())).to.deep.equal([moved]);
    });

    it("does not move to a folder that others can write to", async () => {
      await chmod(dir, 0o700);
      await mkdir(relocationRoot());
      await chmod(relocationRoot(), 0o777);
      const sentence = await failure({ asRoot: "account", relocationRoot: relocationRoot() });
      expect(sentence).to.match(/must be a folder of root that nobody else can write to/);
    });

    it("runs for an ordinary user, who is told when the data belong to somebody else", async () => {
      await copyTemplate();
      const identity = { uid: 65534, gid: 65534 };
      await chmod(dataDir, 0o777);
      const refused = await startElsewhere({}, identity);
      expect(refused.error).to.match(/belong to uid 0, and this is uid 65534.*sudo chown -R 65534 /);
      await kill(refused.child);
      dataDir = join(dir, "theirs", "pg");
      await mkdir(join(dir, "theirs"));
      await chown(join(dir, "theirs"), identity.uid, identity.gid);
      const other = await startElsewhere({}, identity);
      expect(other.error).to.equal("");
      expect(await query(other.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
      expect((await stat(`/proc/${await postmasterOf(dataDir)}`)).uid).to.equal(identity.uid);
    });

    it("tells an ordinary user of a folder that cannot be written to", async () => {
      const other = await startElsewhere({}, { uid: 65534, gid: 65534 });
      expect(other.error).to.match(/cannot be used: EACCES.*Make it writable for this user/);
    });
  });
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

async function query(url: string, sql: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  client.on("error", () => {});
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

async function waitUntil(what: string, condition: () => Promise<boolean>, timeoutMs = 10_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`Waited ${timeoutMs} ms in vain until ${what}`);
    await sleep(20);
  }
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await once(child, "exit");
}

async function killWithSupervisor(child: ChildProcess, postmaster: number): Promise<void> {
  // Each of the two would stop PostgreSQL if it saw the other one go.
  const supervisor = await parentOf(postmaster);
  child.kill("SIGSTOP");
  process.kill(supervisor, "SIGKILL");
  child.kill("SIGKILL");
  await once(child, "exit");
}

interface ListedProcess {
  readonly pid: number;
  readonly parent: number;
  readonly state: string;
  readonly command: string;
}

async function listProcesses(): Promise<ListedProcess[]> {
  const { stdout } = await run("ps", ["-A", "-ww", "-o", "pid=,ppid=,stat=,command="]);
  return stdout.split("\n").flatMap((line) => {
    const [, pid, parent, state = "", command = ""] = /^\s*(\d+)\s+(\d+)\s+(\S+)\s+(.*)$/.exec(line) ?? [];
    return pid === undefined || state.startsWith("Z")
      ? []
      : [{ pid: Number(pid), parent: Number(parent), state, command }];
  });
}

/** The command lines of the PostgreSQL servers that run on folders below `dir`. */
async function serversUnder(dir: string): Promise<string> {
  const servers = (await listProcesses()).filter(({ command }) => command.includes(`postgres -D ${dir}/`));
  return servers.map(({ command }) => command).join("\n");
}

async function postmasterOf(dataDir: string): Promise<number> {
  return Number((await readFile(join(dataDir, "data", "postmaster.pid"), "utf8")).split("\n")[0]);
}

async function parentOf(pid: number): Promise<number> {
  return (await listProcesses()).find((one) => one.pid === pid)?.parent ?? 0;
}

/** Supervisor, postmaster and the postmaster's children. */
async function familyOf(dataDir: string): Promise<number[]> {
  const postmaster = await postmasterOf(dataDir);
  const all = await listProcesses();
  const family = all.filter(({ pid, parent }) => pid === postmaster || parent === postmaster).map(({ pid }) => pid);
  return [await parentOf(postmaster), ...family];
}

/** Of the processes, those that still run. */
async function alive(pids: readonly number[]): Promise<number[]> {
  return (await listProcesses()).map(({ pid }) => pid).filter((pid) => pids.includes(pid));
}

async function canUnshare(): Promise<boolean> {
  const args = ["--user", "--map-user=65534", "--map-group=65534", "true"];
  return run("unshare", args).then(
    () => true,
    () => false,
  );
}

/** A folder from which files cannot be renamed into the test's folder, where there is one. */
async function otherFileSystem(): Promise<string> {
  return (await stat("/dev/shm").catch(() => undefined))?.isDirectory() ? "/dev/shm" : tmpdir();
}
