import { execFile } from "node:child_process";
import { chmod, chown, mkdir, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { promisify } from "node:util";
import { expect } from "chai";
import pino from "pino";
import { resolveBinaries } from "../../../src/db/embedded/binaries.ts";
import { copyFolder, kill, query, useEmbedded } from "./fixture.ts";

const IS_ROOT = process.getuid?.() === 0;
const ORDINARY_USER = { uid: 65534, gid: 65534 };

// These cases are about giving rights up, which only root can do.
(IS_ROOT ? describe : describe.skip)("startEmbedded for root", function () {
  this.timeout(120_000);
  const embedded = useEmbedded((fixture) => fixture.start({ asRoot: "account" }));

  const relocationRoot = () => join(embedded.dir, "elsewhere");

  it("makes and runs the data as an unprivileged account where user namespaces are not allowed", async () => {
    embedded.useTemplate();
    const server = await embedded.start({ asRoot: "account" });
    expect(await query(server.url, "SELECT n FROM t WHERE n = 0")).to.deep.equal([{ n: 0 }]);
    expect((await stat(join(embedded.dataDir, "data"))).uid).to.not.equal(0);
    expect((await stat(`/proc/${(await embedded.family()).postmaster}`)).uid).to.not.equal(0);
    await server.stop();
    expect(await readdir(embedded.dataDir)).to.have.members(["data", "password", "postgresql.log"]);
  });

  it("runs in a folder that others cannot enter where it may, and finds the data again when it may not", async function () {
    if (!(await canUnshare())) this.skip();
    await embedded.copyTemplate();
    await chmod(embedded.dir, 0o700);
    const first = await embedded.start({ asRoot: "namespace" });
    expect((await stat(join(embedded.dataDir, "data"))).uid).to.equal(0);
    await query(first.url, `INSERT INTO t VALUES (${embedded.value})`);
    await first.stop();
    await chmod(embedded.dir, 0o755);
    const second = await embedded.start({ asRoot: "account" });
    expect((await stat(join(embedded.dataDir, "data"))).uid).to.not.equal(0);
    expect(await query(second.url, "SELECT n FROM t ORDER BY n")).to.deep.equal([{ n: 0 }, { n: embedded.value }]);
  });

  it("finds data again that were being given to the other identity when the process was killed", async () => {
    await embedded.copyTemplate();
    // What a kill leaves: the folder still belongs to its old user, a file in it to the new one, and the mark stands.
    await chown(join(embedded.dataDir, "data", "PG_VERSION"), 0, 0);
    await writeFile(join(embedded.dataDir, "data-changes-owner"), "");
    const server = await embedded.start({ asRoot: "account" });
    expect(await query(server.url, "SELECT n FROM t")).to.deep.equal([{ n: 0 }]);
    expect((await stat(join(embedded.dataDir, "data", "PG_VERSION"))).uid).to.not.equal(0);
    expect(await readdir(embedded.dataDir)).to.not.include("data-changes-owner");
  });

  it("moves to a folder elsewhere that the account can reach, and stays there", async () => {
    await embedded.copyTemplate();
    await chmod(embedded.dir, 0o700);
    const elsewhere = await mkdtemp(join(await otherFileSystem(), "tradepost-embedded-elsewhere-"));
    try {
      await chmod(elsewhere, 0o755);
      const lines: string[] = [];
      const log = pino({ level: "warn" }, { write: (line: string) => lines.push(line) });
      const first = await embedded.start({ asRoot: "account", relocationRoot: elsewhere, log });
      await query(first.url, `INSERT INTO t VALUES (${embedded.value})`);
      await first.stop();
      expect(lines.join("")).to.match(/cannot reach \S+, so its data are in /);
      expect(lines.length, lines.join("")).to.equal(1);
      expect(await readdir(embedded.dataDir)).to.not.include("data");

      const asRoot = (await canUnshare()) ? "namespace" : "account";
      const second = await embedded.start({ asRoot, relocationRoot: elsewhere });
      expect(await embedded.ownRows(second.url)).to.deep.equal([{ n: embedded.value }]);
      await second.stop();
      expect((await readdir(elsewhere)).length).to.equal(1);

      await rm(elsewhere, { recursive: true });
      expect(await embedded.failure({ asRoot: "account" })).to.match(/were moved to \S+, which is gone/);
    } finally {
      await embedded.stopServers();
      await rm(elsewhere, { recursive: true, force: true });
    }
  });

  it("takes binaries along, once, that the account cannot reach", async () => {
    await embedded.copyTemplate();
    const native = dirname(dirname((await resolveBinaries()).postgres));
    const closed = join(embedded.dir, "closed");
    await mkdir(closed, { mode: 0o700 });
    await copyFolder(dirname(native), join(closed, "package"));
    const bin = join(closed, "package", basename(native), "bin");
    const binaries = { initdb: join(bin, "initdb"), postgres: join(bin, "postgres") };
    const names = async () =>
      (await readdir(relocationRoot(), { recursive: true })).filter((name) => /^[^/]+(\/native-[^/]+)?$/.test(name));
    const server = await embedded.start({ asRoot: "account", relocationRoot: relocationRoot(), binaries });
    expect(await query(server.url, "SELECT n FROM t")).to.deep.equal([{ n: 0 }]);
    await server.stop();
    const afterFirst = await names();
    expect(afterFirst).to.have.length(2);
    await embedded.start({ asRoot: "account", binaries });
    expect(await names()).to.deep.equal(afterFirst);
  });

  it("does not move to a folder that others can write to", async () => {
    await chmod(embedded.dir, 0o700);
    await mkdir(relocationRoot());
    await chmod(relocationRoot(), 0o777);
    const sentence = await embedded.failure({ asRoot: "account", relocationRoot: relocationRoot() });
    expect(sentence).to.match(/must be a folder of root that nobody else can write to/);
  });

  it("runs for an ordinary user, who is told when the data belong to somebody else", async () => {
    await mkdir(join(embedded.dataDir, "data"), { recursive: true });
    await chmod(embedded.dataDir, 0o777);
    const refused = await embedded.startElsewhere({}, ORDINARY_USER);
    expect(refused.error).to.match(/belong to uid 0, and this is uid 65534.*sudo chown -R 65534 /);
    await kill(refused.child);
    embedded.dataDir = join(embedded.dir, "theirs", "pg");
    await mkdir(join(embedded.dir, "theirs"));
    await chown(join(embedded.dir, "theirs"), ORDINARY_USER.uid, ORDINARY_USER.gid);
    const other = await embedded.startElsewhere({}, ORDINARY_USER);
    expect(other.error).to.equal("");
    expect(await query(other.url, "SELECT 1 AS one")).to.deep.equal([{ one: 1 }]);
    expect((await stat(`/proc/${(await embedded.family()).postmaster}`)).uid).to.equal(ORDINARY_USER.uid);
  });

  it("tells an ordinary user of a folder that cannot be written to", async () => {
    const other = await embedded.startElsewhere({}, ORDINARY_USER);
    expect(other.error).to.match(/cannot be used: EACCES.*Make it writable for this user/);
  });
});

async function canUnshare(): Promise<boolean> {
  const args = ["--user", "--map-user=65534", "--map-group=65534", "true"];
  return promisify(execFile)("unshare", args).then(
    () => true,
    () => false,
  );
}

/** A folder from which files cannot be renamed into the test's folder, where there is one. */
async function otherFileSystem(): Promise<string> {
  return (await stat("/dev/shm").catch(() => undefined))?.isDirectory() ? "/dev/shm" : tmpdir();
}
