import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { expect } from "chai";

const module = new URL("../../scripts/install-lock.mjs", import.meta.url).href;
const contenders = 6;

/**
 * Takes the lock, finds out whether another holds it too (a directory can be made once only), and gives it back. Tells
 * every look that found the lock held.
 */
const contender = `
import fs from "node:fs";
import { InstallLock } from ${JSON.stringify(module)};
const [dir, inside] = process.argv.slice(1);
const lock = new InstallLock(dir);
const isStopping = () => console.log("waits");
const isHeld = await lock.acquire({ timeoutMs: 60_000, waiting: () => {}, isStopping });
fs.mkdirSync(inside);
await new Promise((resolve) => setTimeout(resolve, 30));
fs.rmdirSync(inside);
lock.release();
console.log(isHeld ? "held" : "gave up");
`;

/** Leaves a lock the way a killed process does, and gives the holder's file name. */
const dyingHolder = `
import { InstallLock } from ${JSON.stringify(module)};
const lock = new InstallLock(process.argv[1]);
await lock.acquire({ timeoutMs: 1_000, waiting: () => {}, isStopping: () => false });
process.kill(process.pid, "SIGKILL");
`;

describe("the install lock", function () {
  this.timeout(120_000);
  let folder: string;
  const dir = (): string => path.join(folder, "install.lock");
  const evaluate = (source: string): string[] => [
    "--input-type=module",
    "--eval",
    source,
    dir(),
    path.join(folder, "inside"),
  ];
  /** Starts a contender, and gives what it prints, line by line. */
  const contend = (): AsyncIterator<string> => {
    const { stdout } = spawn(process.execPath, evaluate(contender), { stdio: ["ignore", "pipe", "inherit"] });
    return createInterface({ input: stdout })[Symbol.asyncIterator]();
  };
  const hasLooked = async (printed: AsyncIterator<string>, times: number): Promise<void> => {
    for (let look = 1; look <= times; look++) expect((await printed.next()).value, `look ${look}`).to.equal("waits");
  };
  const outcome = async (printed: AsyncIterator<string>): Promise<string> => {
    for (;;) {
      const { value } = await printed.next();
      if (value !== "waits") return value;
    }
  };

  beforeEach(() => {
    folder = mkdtempSync(path.join(tmpdir(), "tradepost-lock-"));
  });

  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it("is held by one process at a time, also when its last holder was killed", async () => {
    spawnSync(process.execPath, evaluate(dyingHolder));
    expect(readdirSync(dir()), "the killed holder's file").to.have.length(1);
    const outcomes = await Promise.all(Array.from({ length: contenders }, () => outcome(contend())));
    expect(outcomes).to.deep.equal(Array(contenders).fill("held"));
    expect(readdirSync(folder)).to.deep.equal([]);
  });

  it("is respected while the install that a killed holder started still runs", async () => {
    spawnSync(process.execPath, evaluate(dyingHolder));
    const [holder = ""] = readdirSync(dir());
    const file = path.join(dir(), holder);
    writeFileSync(file, `${process.pid}\n`);
    const waiting = contend();
    await hasLooked(waiting, 3);
    expect(readFileSync(file, "utf8")).to.equal(`${process.pid}\n`);
    writeFileSync(file, "");
    expect(await outcome(waiting)).to.equal("held");
  });

  it("is respected for a while when its holder is on another machine", async () => {
    mkdirSync(dir());
    writeFileSync(path.join(dir(), "1.elsewhere.1"), "");
    const waiting = contend();
    await hasLooked(waiting, 3);
    rmSync(dir(), { recursive: true });
    expect(await outcome(waiting)).to.equal("held");
  });
});
