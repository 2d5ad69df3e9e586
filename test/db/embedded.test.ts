import { spawn } from "node:child_process";
import { chmod, mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "chai";
import { resolveBinaries } from "../../src/db/embedded/binaries.ts";
import { EmbeddedPostgresError } from "../../src/db/embedded.ts";
import { alive, connect, copyFolder, query, useEmbedded } from "./embedded/fixture.ts";

const LARGE_LOG_BYTES = 17 * 1024 * 1024;

describe("startEmbedded", function () {
  this.timeout(120_000);
  let wasCreated = false;
  const embedded = useEmbedded(async (fixture) => {
    // Nobody else, not even the account that root could use, gets to data below such a folder.
    await chmod(fixture.dir, 0o700);
    const server = await fixture.start();
    wasCreated = server.created;
    return server;
  });

  it("makes the data at the first start and finds them again at the second, with fsync on unless it is told", async () => {
    embedded.useTemplate();
    const server = await embedded.startPlain();
    expect([wasCreated, server.created], "created").to.deep.equal([true, false]);
    expect(await query(server.url, "SELECT n FROM t WHERE n = 0")).to.deep.equal([{ n: 0 }]);
    expect(await query(server.url, "SHOW fsync")).to.deep.equal([{ fsync: "on" }]);
    expect(await query(server.url, "SHOW synchronous_commit")).to.deep.equal([{ synchronous_commit: "on" }]);
    expect(await query(server.url, "SHOW max_connections")).to.deep.equal([{ max_connections: "100" }]);
  });

  it("gives a UTF-8 database with checksums and the same collation everywhere, and takes settings", async () => {
    embedded.useTemplate();
    const { url } = await embedded.start({ settings: { max_connections: "17" } });
    const [database] = await query(
      url,
      `SELECT current_user AS "user", datname, pg_encoding_to_char(encoding) AS encoding, datlocprovider, datlocale,
         current_setting('data_checksums') AS checksums, current_setting('server_version_num')::int / 10000 AS version,
         current_setting('max_connections') AS max_connections, current_setting('fsync') AS fsync
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
      max_connections: "17",
      fsync: "off",
    });
  });

  it("listens on the loopback address alone and lets nobody in without the password", async () => {
    embedded.useTemplate();
    const { url } = await embedded.start();
    expect(await query(url, "SHOW listen_addresses")).to.deep.equal([{ listen_addresses: "127.0.0.1" }]);
    expect(await query(url, "SHOW unix_socket_directories")).to.deep.equal([{ unix_socket_directories: "" }]);
    const stranger = new URL(url);
    stranger.password = "guess";
    const error = await query(stranger.href, "SELECT 1").catch((reason: unknown) => reason);
    expect(error).to.have.property("code", "28P01");
    expect((await stat(join(embedded.dataDir, "password"))).mode & 0o777).to.equal(0o600);
    expect(await readFile(join(embedded.dataDir, "server.json"), "utf8")).to.not.include(new URL(url).password);
    expect(await readFile(join(embedded.dataDir, "data", "pg_hba.conf"), "utf8")).to.not.match(/^[^#\n]*\btrust\b/m);
  });

  it("leaves no process when it is stopped, however many clients there are, and stops once", async () => {
    embedded.useTemplate();
    const server = await embedded.start();
    const client = await connect(server.url);
    await client.query("BEGIN");
    const { all } = await embedded.family();
    expect(all.length).to.be.greaterThan(4);
    const stopped = server.stop();
    expect(server.stop()).to.equal(stopped);
    await stopped;
    expect(await alive(all)).to.deep.equal([]);
    expect(await readdir(embedded.dataDir)).to.have.members(["data", "password", "postgresql.log"]);
    await client.end().catch(() => {});
  });

  it("says that PostgreSQL ended by itself, and can still be stopped and started again", async () => {
    embedded.useTemplate();
    const server = await embedded.start();
    process.kill((await embedded.family()).postmaster, "SIGKILL");
    expect(await server.exited).to.match(/^PostgreSQL ended by itself: signal SIGKILL\./);
    await server.stop();
    const again = await embedded.start();
    expect(await query(again.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
  });

  it("does not leave PostgreSQL unwatched when its supervisor is killed", async () => {
    embedded.useTemplate();
    const server = await embedded.start();
    const { all, supervisor } = await embedded.family();
    process.kill(supervisor, "SIGKILL");
    expect(await server.exited).to.match(/^PostgreSQL ended by itself: its supervisor ended with signal SIGKILL\./);
    expect(await alive(all)).to.deep.equal([]);
  });

  it("does not mistake a stranger for PostgreSQL whose pid stands in a stale pid file", async () => {
    embedded.useTemplate();
    const stranger = embedded.keep(spawn("sleep", ["600"], { stdio: "ignore" }));
    const data = join(embedded.dataDir, "data");
    const lines = [stranger.pid, data, 1, 5432, "", "127.0.0.1", "0 0", "ready"];
    await writeFile(join(data, "postmaster.pid"), `${lines.join("\n")}\n`);
    const server = await embedded.start();
    expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    expect(await alive([stranger.pid ?? 0]), "the stranger").to.have.length(1);
  });

  it("leaves the PostgreSQL alone whose folder was copied while it ran, and sets a large log aside", async () => {
    embedded.useTemplate();
    const original = await embedded.start();
    const copy = join(embedded.dir, "copy");
    await copyFolder(embedded.dataDir, copy);
    await writeFile(join(copy, "postgresql.log"), "x".repeat(LARGE_LOG_BYTES));
    const server = await embedded.start({ dataDir: copy });
    expect(await query(server.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    expect(await query(original.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    expect((await stat(join(copy, "postgresql.log"))).size).to.be.lessThan(64 * 1024);
    expect((await stat(join(copy, "postgresql.log.1"))).size).to.equal(LARGE_LOG_BYTES);
  });

  describe("refuses, in a sentence to act on,", () => {
    it("data of another version", async () => {
      await mkdir(join(embedded.dataDir, "data"), { recursive: true });
      await writeFile(join(embedded.dataDir, "data", "PG_VERSION"), "17\n");
      expect(await embedded.failure()).to.match(/were made by PostgreSQL 17, and this is PostgreSQL 18\. Dump them/);
    });

    it("a folder that holds something else", async () => {
      await mkdir(join(embedded.dataDir, "data"), { recursive: true });
      await writeFile(join(embedded.dataDir, "data", "novel.txt"), "Once upon a time");
      expect(await embedded.failure()).to.include("holds no PostgreSQL data");
      expect(await readdir(join(embedded.dataDir, "data"))).to.deep.equal(["novel.txt"]);
    });

    it("a file in the folder's place", async () => {
      await writeFile(embedded.dataDir, "");
      expect(await embedded.failure()).to.match(/data folder \S+ cannot be used: EEXIST.* Use another folder\./);
    });

    it("a password file that is missing or wrong", async () => {
      await embedded.copyTemplate();
      await rm(join(embedded.dataDir, "password"));
      expect(await embedded.failure()).to.include("password does not hold the password");
      await writeFile(join(embedded.dataDir, "password"), `${"0".repeat(48)}\n`);
      expect(await embedded.failure()).to.include("PostgreSQL does not accept the password in");
    });

    it("settings that PostgreSQL does not take, in PostgreSQL's words", async () => {
      embedded.useTemplate();
      const sentence = await embedded.failure({ settings: { max_connections: "many" } });
      expect(sentence).to.match(/^PostgreSQL did not start: exit code 1\. .*"max_connections": "many".*full log: /);
    });

    it("data that are damaged, in PostgreSQL's words", async () => {
      await embedded.copyTemplate();
      await rm(join(embedded.dataDir, "data", "global", "pg_control"));
      expect(await embedded.failure()).to.match(/could not (find|open).*pg_control|database system/);
    });

    it("a start that takes too long, and stops what it started", async () => {
      embedded.useTemplate();
      expect(await embedded.failure({ startTimeoutMs: 1 })).to.include("PostgreSQL was not ready within 0.001 s");
      expect(await embedded.servers()).to.deep.equal([]);
      expect((await embedded.start()).created).to.equal(false);
    });

    it("programs that do not run on this machine", async () => {
      const postgres = join(embedded.dir, "postgres");
      await writeFile(postgres, "#!/bin/sh\necho 'error while loading shared libraries: libxml2.so.2' >&2\nexit 127\n");
      await chmod(postgres, 0o755);
      expect(await embedded.failure({ binaries: { initdb: postgres, postgres } })).to.match(
        /error while loading shared libraries: libxml2\.so\.2.*set DATABASE_URL/i,
      );
    });

    it("a platform for which there is no PostgreSQL", async () => {
      const error = await resolveBinaries("sunos-sparc").catch((reason: unknown) => reason);
      expect(error).to.be.instanceOf(EmbeddedPostgresError);
      expect((error as Error).message).to.match(/no PostgreSQL for sunos-sparc.*set DATABASE_URL/);
    });
  });
});
