import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "chai";
import { claimInstance, InstanceRunningError } from "../src/instance.ts";
import { processStartTime } from "../src/processes.ts";

const MODULE = new URL("../src/instance.ts", import.meta.url).href;
const CONTENDERS = 4;
const ROUNDS = 20;

/** Claims each folder that it reads, tells how that went in one line, and lives until its input ends. */
const CONTENDER = `
  import { createInterface } from "node:readline";
  import { claimInstance } from ${JSON.stringify(MODULE)};
  for await (const dir of createInterface({ input: process.stdin })) {
    const outcome = await claimInstance(dir, { url: process.argv[1] }).then(() => "won", (error) => error.message);
    console.log(outcome);
  }
`;

interface Contender {
  readonly child: ChildProcess;
  claim(dir: string): Promise<string>;
}

describe("claimInstance", function () {
  this.timeout(120_000);
  let dir: string;
  const children: ChildProcess[] = [];

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "tradepost-instance-"));
  });

  afterEach(async () => {
    for (const child of children.splice(0)) await kill(child);
    await rm(dir, { recursive: true, force: true });
  });

  function startContender(url: string): Contender {
    const args = ["--input-type=module", "--eval", CONTENDER, url];
    const child = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
    children.push(child);
    return {
      child,
      async claim(claimed) {
        child.stdin.write(`${claimed}\n`);
        const [line] = (await once(child.stdout, "data")) as [Buffer];
        return line.toString("utf8").trim();
      },
    };
  }

  /** Another process that holds the folder. */
  async function startHolder(url: string): Promise<ChildProcess> {
    const { child, claim } = startContender(url);
    expect(await claim(dir)).to.equal("won");
    return child;
  }

  async function kill(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  }

  /** What a process leaves that was killed while it held `claimed`. */
  async function deadClaim(nonce: string, claimed = dir): Promise<string> {
    const { dev, ino } = await stat(claimed, { bigint: true });
    const url = "http://127.0.0.1:8080";
    // The pid is in use again, as pids are after a while, by a process that started at another time.
    return JSON.stringify({ pid: process.pid, startTime: "a boot ago/1", folder: `${dev}:${ino}`, nonce, url });
  }

  const record = async (claimed = dir) =>
    JSON.parse(await readFile(join(claimed, "server.json"), "utf8")) as Record<string, unknown>;

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
    const child = await startHolder("http://127.0.0.1:8080");
    const error = await claimInstance(dir, { url: "http://127.0.0.1:9" }).catch((reason: unknown) => reason);
    expect(error).to.be.instanceOf(InstanceRunningError);
    expect(error).to.include({ pid: child.pid, url: "http://127.0.0.1:8080" });
    expect((error as Error).message).to.equal(`Tradepost already runs here: pid ${child.pid}, http://127.0.0.1:8080`);
  });

  it("refuses a second claim of the same process, and tells the updated url until it is released", async () => {
    const claim = await claimInstance(dir, { url: "starting" });
    await claim.update({ url: "http://127.0.0.1:4711" });
    const error = await claimInstance(dir, { url: "http://127.0.0.1:9" }).catch((reason: unknown) => reason);
    expect(error).to.be.instanceOf(InstanceRunningError);
    expect(error).to.include({ pid: process.pid, url: "http://127.0.0.1:4711" });
    await claim.release();
    await claim.update({ url: "too late" });
    expect(await readdir(dir)).to.deep.equal([]);
  });

  it("takes over from a process that was killed, and leaves only its own file", async () => {
    const child = await startHolder("http://127.0.0.1:8080");
    await kill(child);
    expect(await record()).to.have.property("pid", child.pid);
    const claim = await claimInstance(dir, { url: "http://127.0.0.1:9" });
    expect(await record()).to.include({ pid: process.pid, url: "http://127.0.0.1:9" });
    expect(await readdir(dir)).to.deep.equal(["server.json"]);
    await claim.release();
    expect(await readdir(dir)).to.deep.equal([]);
  });

  it("is not fooled by a pid that was given to another process", async () => {
    await writeFile(join(dir, "server.json"), await deadClaim("n"));
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
    const first = await deadClaim("first");
    await writeFile(join(dir, "server.json"), first);
    // A successor is named for the content of the claim that it succeeds.
    const digest = createHash("sha256").update(first).digest("hex").slice(0, 32);
    await writeFile(join(dir, `server.json.${digest}`), await deadClaim("second"));
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
    const child = await startHolder("http://127.0.0.1:9");
    await claim.release();
    expect(await record()).to.have.property("pid", child.pid);
  });

  it("lets exactly one of several processes win, whether the folder is empty or its owner was killed", async () => {
    const urls = Array.from({ length: CONTENDERS }, (_, index) => `http://127.0.0.1:${index + 1}`);
    const contenders = urls.map(startContender);
    for (let round = 0; round < ROUNDS; round++) {
      const contested = join(dir, String(round));
      await mkdir(contested);
      if (round % 2 === 1) await writeFile(join(contested, "server.json"), await deadClaim("n", contested));
      const outcomes = await Promise.all(contenders.map(({ claim }) => claim(contested)));
      const winner = contenders[outcomes.indexOf("won")]?.child.pid;
      const lost = outcomes.filter((outcome) => outcome !== "won");
      expect(lost.length, `losers of round ${round}: ${outcomes.join("; ")}`).to.equal(CONTENDERS - 1);
      for (const outcome of lost) {
        expect(outcome).to.match(new RegExp(`^Tradepost already runs here: pid ${winner}, http://`));
      }
      expect(await record(contested)).to.have.property("pid", winner);
      expect(await readdir(contested), `left by round ${round}`).to.deep.equal(["server.json"]);
    }
  });

  it("lets exactly one win, round after round, when many claims of one process race for a stale file", async () => {
    for (let round = 0; round < ROUNDS; round++) {
      if (round % 3 !== 0) await writeFile(join(dir, "server.json"), await deadClaim(String(round)));
      const claims = Array.from({ length: 16 }, (_, index) => claimInstance(dir, { url: `http://127.0.0.1:${index}` }));
      const results = await Promise.allSettled(claims);
      const won = results.filter((result) => result.status === "fulfilled");
      const lost = results.filter((result) => result.status === "rejected");
      expect(won.length, `winners of round ${round}`).to.equal(1);
      for (const { reason } of lost) expect(reason).to.be.instanceOf(InstanceRunningError);
      await won[0]?.value.release();
      expect(await readdir(dir), `left after round ${round}`).to.deep.equal([]);
    }
  });
});

describe("processStartTime", function () {
  this.timeout(60_000);
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
