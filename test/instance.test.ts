import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "chai";
import { ClaimHeldError, claimFile, claimInstance, InstanceRunningError, processStartTime } from "../src/instance.ts";

const MODULE = new URL("../src/instance.ts", import.meta.url).href;
const CONTENDERS = 8;

/** Claims the folder, says how that went in one line, and stays alive until it is killed or its input ends. */
const CONTENDER = `
  import { claimInstance } from ${JSON.stringify(MODULE)};
  const [dir, url] = process.argv.slice(1);
  try {
    await claimInstance(dir, { url });
    console.log("won");
  } catch (error) {
    console.log(error.message);
  }
  process.stdin.resume();
`;

describe("claimInstance", () => {
  let dir: string;
  const children = new Set<ReturnType<typeof spawn>>();

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "tradepost-instance-"));
  });

  afterEach(async () => {
    for (const child of children) await kill(child);
    children.clear();
    await rm(dir, { recursive: true, force: true });
  });

  async function contend(url: string): Promise<{ child: ReturnType<typeof spawn>; outcome: string }> {
    const args = ["--input-type=module", "--eval", CONTENDER, dir, url];
    const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
    children.add(child);
    const [line] = (await once(child.stdout, "data")) as [Buffer];
    return { child, outcome: line.toString("utf8").trim() };
  }

  async function kill(child: ReturnType<typeof spawn>): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  }

  async function folderIdentity(): Promise<string> {
    const { dev, ino } = await stat(dir, { bigint: true });
    return `${dev}:${ino}`;
  }

  const record = async () => JSON.parse(await readFile(join(dir, "server.json"), "utf8")) as Record<string, unknown>;

  it("writes pid, start time and url to server.json and removes it when released", async () => {
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:8080" });
    expect(await record()).to.include({
      pid: process.pid,
      startTime: await processStartTime(process.pid),
      url: "http://127.0.0.1:8080",
    });
    await claim.release();
    await claim.release();
    expect(await readdir(dir)).to.deep.equal([]);
  });

  it("makes a folder that is missing", async () => {
    const claim = await claimInstance(join(dir, "a", "b"), { url: "http://127.0.0.1:1" });
    expect(await readdir(join(dir, "a", "b"))).to.deep.equal(["server.json"]);
    await claim.release();
  });

  it("tells who holds the folder, and where that one can be reached", async () => {
    const { child } = await contend("http://127.0.0.1:8080");
    const error = await claimInstance(dir, { url: "http://127.0.0.1:9" }).catch((reason: unknown) => reason);
    expect(error).to.be.instanceOf(InstanceRunningError);
    expect(error).to.include({ pid: child.pid, url: "http://127.0.0.1:8080" });
    expect((error as Error).message).to.equal(`Tradepost already runs here: pid ${child.pid}, http://127.0.0.1:8080`);
  });

  it("refuses a second claim of the same process", async () => {
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:8080" });
    const error = await claimInstance(dir, { url: "http://127.0.0.1:9" }).catch((reason: unknown) => reason);
    expect(error).to.be.instanceOf(InstanceRunningError);
    await claim.release();
  });

  it("shows others the updated url", async () => {
    const claim = await claimInstance(dir, { url: "starting" });
    await claim.update({ url: "http://127.0.0.1:4711" });
    expect(await contend("x")).to.have.property(
      "outcome",
      `Tradepost already runs here: pid ${process.pid}, http://127.0.0.1:4711`,
    );
    await claim.release();
    await claim.update({ url: "too late" });
    expect(await readdir(dir)).to.deep.equal([]);
  });

  it("takes over from a process that was killed, and leaves only its own file", async () => {
    const { child } = await contend("http://127.0.0.1:8080");
    await kill(child);
    expect(await record()).to.have.property("pid", child.pid);
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:9" });
    expect(await record()).to.include({ pid: process.pid, url: "http://127.0.0.1:9" });
    expect(await readdir(dir)).to.deep.equal(["server.json"]);
    await claim.release();
    expect(await readdir(dir)).to.deep.equal([]);
  });

  it("is not fooled by a pid that was given to another process", async () => {
    const folder = await folderIdentity();
    const stale = { pid: process.pid, startTime: "a boot ago/1", folder, nonce: "n", url: "http://127.0.0.1:8080" };
    await writeFile(join(dir, "server.json"), JSON.stringify(stale));
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:9" });
    expect(await record()).to.have.property("url", "http://127.0.0.1:9");
    await claim.release();
  });

  for (const [what, content] of [
    ["empty", ""],
    ["no JSON", "\u0000\u0000"],
    ["of another shape", '{"pid":"1"}'],
    ["huge", "x".repeat(1_000_000)],
  ] as const) {
    it(`takes over a file that is ${what}`, async () => {
      await writeFile(join(dir, "server.json"), content);
      const claim = await claimInstance(dir, { url: "http://127.0.0.1:9" });
      expect(await record()).to.have.property("pid", process.pid);
      await claim.release();
      expect(await readdir(dir)).to.deep.equal([]);
    });
  }

  it("continues a takeover whose process was killed half way", async () => {
    const folder = await folderIdentity();
    const dead = (nonce: string) => `${JSON.stringify({ pid: process.pid, startTime: "earlier", folder, nonce })}\n`;
    await writeFile(join(dir, "server.json"), dead("first"));
    // A successor is named for the content of the claim that it succeeds.
    const digest = createHash("sha256").update(dead("first")).digest("hex").slice(0, 32);
    await writeFile(join(dir, `server.json.${digest}`), dead("second"));
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:9" });
    expect(await readdir(dir)).to.deep.equal(["server.json"]);
    expect(await record()).to.have.property("pid", process.pid);
    await claim.release();
  });

  it("is not held back by a folder whose copy this is", async () => {
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:8080" });
    const copy = join(dir, "copy");
    await mkdir(copy);
    await copyFile(join(dir, "server.json"), join(copy, "server.json"));
    const second = await claimInstance(copy, { url: "http://127.0.0.1:9" });
    await second.release();
    await claim.release();
  });

  it("says so if the claim file's place is taken by a folder", async () => {
    await mkdir(join(dir, "server.json"));
    const error = await claimInstance(dir, { url: "http://127.0.0.1:9" }).catch((reason: unknown) => reason);
    expect(error).to.have.property("code", "EISDIR");
  });

  it("does not remove a claim that another process made after the folder was removed", async () => {
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:8080" });
    await rm(join(dir, "server.json"));
    const { child } = await contend("http://127.0.0.1:9");
    await claim.release();
    expect(await record()).to.have.property("pid", child.pid);
  });

  for (const [situation, prepare] of [
    ["an empty folder", async () => {}],
    ["a folder whose owner was killed", async () => kill((await contend("http://127.0.0.1:8080")).child)],
  ] as const) {
    it(`lets exactly one of ${CONTENDERS} processes win ${situation}`, async function () {
      this.timeout(30_000);
      await prepare();
      const urls = Array.from({ length: CONTENDERS }, (_, index) => `http://127.0.0.1:${index + 1}`);
      const outcomes = await Promise.all(urls.map(contend));
      const winners = outcomes.filter(({ outcome }) => outcome === "won");
      expect(winners.length, outcomes.map(({ outcome }) => outcome).join("\n")).to.equal(1);
      expect(await record()).to.have.property("pid", winners[0]?.child.pid);
      for (const { outcome } of outcomes.filter((one) => one !== winners[0])) {
        expect(outcome).to.match(new RegExp(`^Tradepost already runs here: pid ${winners[0]?.child.pid}, http://`));
      }
    });
  }

  it("lets exactly one win, round after round, when many claims of one process race for a stale file", async function () {
    this.timeout(30_000);
    const path = join(dir, "claim");
    const folder = await folderIdentity();
    for (let round = 0; round < 30; round++) {
      const stale = { pid: process.pid, startTime: "earlier", folder, nonce: String(round) };
      if (round % 3 !== 0) await writeFile(path, JSON.stringify(stale));
      const results = await Promise.allSettled(Array.from({ length: 16 }, (_, index) => claimFile(path, { index })));
      const won = results.filter((result) => result.status === "fulfilled");
      const lost = results.filter((result) => result.status === "rejected");
      expect(won.length, `winners of round ${round}`).to.equal(1);
      for (const { reason } of lost) expect(reason).to.be.instanceOf(ClaimHeldError);
      await won[0]?.value.release();
      expect(await readdir(dir), `left after round ${round}`).to.deep.equal([]);
    }
  });
});

describe("processStartTime", () => {
  it("is the same for one process at any time and undefined for one that has ended", async () => {
    const child = spawn(process.execPath, ["--eval", "process.stdin.resume()"], {
      stdio: ["pipe", "ignore", "ignore"],
    });
    const pid = child.pid ?? 0;
    await once(child, "spawn");
    const first = await processStartTime(pid);
    expect(first).to.be.a("string").that.is.not.equal("");
    expect(await processStartTime(pid)).to.equal(first);
    child.kill("SIGKILL");
    await once(child, "exit");
    expect(await processStartTime(pid)).to.equal(undefined);
  });
});
