import { type ChildProcess, spawn } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "chai";

const root = path.resolve(import.meta.dirname, "../..");
const waitTimeoutMs = 60_000;

/** Stands for npm: notes that it ran, waits as it is told, and leaves what an install leaves. */
const fakeNpm = `#!/usr/bin/env node
import fs from "node:fs";
fs.appendFileSync("npm.log", process.argv.slice(2).join(" ") + "\\n");
const plan = JSON.parse(fs.readFileSync("npm-plan.json", "utf8"));
fs.rmSync("node_modules", { recursive: true, force: true });
fs.mkdirSync("node_modules/dep", { recursive: true });
fs.writeFileSync("node_modules/dep/package.json", "{}");
const isHeldUp = () => plan.waitsFor !== undefined && !fs.existsSync(plan.waitsFor);
while (isHeldUp()) await new Promise((resolve) => setTimeout(resolve, 20));
if (plan.error) { console.error(plan.error); process.exit(7); }
const lock = JSON.parse(fs.readFileSync("package-lock.json", "utf8"));
delete lock.packages[""];
for (const name of plan.leaveOut) delete lock.packages[name];
fs.writeFileSync("node_modules/.package-lock.json", JSON.stringify(lock));
console.log("added 1 package");
`;

const program = `
import fs from "node:fs";
import { onStopRequest } from "./parent.ts";
const note = (line: string): void => fs.appendFileSync("program.log", line + "\\n");
note(["started", ...process.argv.slice(2)].join(" "));
if (process.argv[2] === "exit") process.exit(Number(process.argv[3]));
const timer = setInterval(() => {}, 1_000);
onStopRequest((reason, times) => {
  note("stop " + reason + " " + times);
  setTimeout(() => { note("drained"); clearInterval(timer); }, 200);
});
note("ready");
console.log("out");
`;

interface Started {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  /** What has come so far. */
  readonly stderr: string;
}

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

describe("scripts/run.mjs", function () {
  this.timeout(120_000);
  let project: string;
  let children: ChildProcess[];

  const write = (file: string, content: string): void => {
    mkdirSync(path.dirname(path.join(project, file)), { recursive: true });
    writeFileSync(path.join(project, file), content, { mode: 0o755 });
  };
  const lines = (file: string): string[] =>
    existsSync(path.join(project, file)) ? readFileSync(path.join(project, file), "utf8").trimEnd().split("\n") : [];
  const plan = (change: { waitsFor?: string; error?: string; leaveOut?: string[] }): void =>
    write("npm-plan.json", JSON.stringify({ leaveOut: [], ...change }));
  const locks = (): string[] =>
    existsSync(path.join(project, ".tradepost")) ? readdirSync(path.join(project, ".tradepost")) : [];

  /** Starts run.mjs in a process group of its own, as a terminal does. */
  function start(args: string[], nodeFlags: string[] = []): Started {
    const env = { PATH: `${path.join(project, "bin")}:${path.dirname(process.execPath)}:/usr/bin:/bin` };
    const command = [...nodeFlags, path.join(project, "scripts/run.mjs"), ...args];
    const child = spawn(process.execPath, command, { cwd: project, env, detached: true });
    children.push(child);
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (chunk) => (stdout += chunk));
    child.stderr.on("data", (chunk) => (stderr += chunk));
    const ended = new Promise<Ended>((resolve) => {
      child.once("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
    });
    return {
      child,
      ended,
      get stderr() {
        return stderr;
      },
    };
  }

  async function until(what: string, condition: () => boolean): Promise<void> {
    const deadline = performance.now() + waitTimeoutMs;
    while (!condition()) {
      if (performance.now() > deadline)
        throw new Error(`Not so after ${waitTimeoutMs} ms: ${what}. Log: ${lines("program.log")}`);
      await sleep(20);
    }
  }
  const untilReady = (): Promise<void> => until("the program is ready", () => lines("program.log").includes("ready"));

  beforeEach(() => {
    project = mkdtempSync(path.join(tmpdir(), "tradepost-run-"));
    children = [];
    cpSync(path.join(root, "scripts"), path.join(project, "scripts"), { recursive: true });
    cpSync(path.join(root, "src/parent.ts"), path.join(project, "src/parent.ts"));
    write("package.json", JSON.stringify({ name: "planted", type: "module" }));
    write(
      "deploy/runtime/package.json",
      JSON.stringify({ optionalDependencies: { "node-here": "24.0.0", "node-elsewhere": "24.0.0" } }),
    );
    write("src/program.ts", program);
    write("bin/package.json", JSON.stringify({ type: "module" }));
    write("bin/npm", fakeNpm);
    const packages = {
      "": { name: "planted" },
      "node_modules/dep": { version: "1.0.0", integrity: "sha512-1" },
      "node_modules/here": { version: "1.0.0", optional: true, os: [process.platform], cpu: [process.arch] },
      "node_modules/elsewhere": { version: "1.0.0", optional: true, os: ["plan9"], cpu: [process.arch] },
    };
    write("package-lock.json", JSON.stringify({ lockfileVersion: 3, packages }));
    plan({ leaveOut: ["node_modules/elsewhere"] });
  });

  afterEach(() => {
    for (const { pid } of children) {
      try {
        if (pid !== undefined) process.kill(-pid, "SIGKILL");
      } catch {
        // The group has ended by itself, as it should.
      }
    }
    rmSync(project, { recursive: true, force: true });
  });

  it("installs what is missing, runs the program with its arguments and passes its exit code on", async () => {
    const { code, stdout, stderr } = await start(["src/program.ts", "exit", "5"]).ended;
    expect(code, stderr).to.equal(5);
    expect(stdout).to.equal("");
    expect(stderr).to.match(/^Installing the dependencies \(npm ci\).*\nInstalled in \d+ s\.\n$/);
    expect(lines("npm.log"))
      .to.have.length(1)
      .and.to.match(/^ci --include=dev/);
    expect(lines("program.log")).to.deep.equal(["started exit 5"]);
  });

  it("installs nothing, and says nothing, where all is there", async () => {
    await start(["src/program.ts", "exit", "0"]).ended;
    const { code, stderr } = await start(["src/program.ts", "exit", "0"]).ended;
    expect({ code, stderr }).to.deep.equal({ code: 0, stderr: "" });
    expect(lines("npm.log")).to.have.length(1);
  });

  it("installs again when the lock file names another version", async () => {
    await start(["src/program.ts", "exit", "0"]).ended;
    write(
      "package-lock.json",
      readFileSync(path.join(project, "package-lock.json"), "utf8").replace("sha512-1", "sha512-2"),
    );
    await start(["src/program.ts", "exit", "0"]).ended;
    expect(lines("npm.log")).to.have.length(2);
  });

  it("runs one install when two start at once in a fresh checkout", async () => {
    plan({ waitsFor: "go", leaveOut: ["node_modules/elsewhere"] });
    const both = [1, 2].map(() => start(["src/program.ts", "exit", "0"]));
    const waits = /Another process \(\d+\) is installing/;
    await until("one waits for the other", () => both.some(({ stderr }) => waits.test(stderr)));
    write("go", "");
    const codes = await Promise.all(both.map(async ({ ended }) => (await ended).code));
    expect(codes, both.map(({ stderr }) => stderr).join("")).to.deep.equal([0, 0]);
    expect(lines("npm.log")).to.have.length(1);
    expect(locks()).to.deep.equal([]);
  });

  it("does an install again that was killed half way, and takes the lock over", async () => {
    plan({ waitsFor: "nothing that comes" });
    const first = start(["src/program.ts", "exit", "0"]);
    await until("npm runs", () => lines("npm.log").length === 1 && locks().length === 1);
    process.kill(-(first.child.pid ?? 0), "SIGKILL");
    await first.ended;
    plan({ leaveOut: ["node_modules/elsewhere"] });
    const { code, stderr } = await start(["src/program.ts", "exit", "0"]).ended;
    expect(code, stderr).to.equal(0);
    expect(lines("npm.log")).to.have.length(2);
    expect(locks()).to.deep.equal([]);
  });

  it("stops an install that is interrupted, and gives the lock back", async () => {
    plan({ waitsFor: "nothing that comes" });
    const { child, ended } = start(["src/program.ts", "exit", "0"]);
    await until("npm runs", () => lines("npm.log").length === 1);
    process.kill(child.pid ?? 0, "SIGTERM");
    expect(await ended).to.include({ signal: "SIGTERM" });
    expect(locks()).to.deep.equal([]);
    expect(lines("program.log")).to.deep.equal([]);
  });

  it("shows npm's own error where the install fails", async () => {
    plan({ error: "npm error network ENOTFOUND" });
    const { code, stderr } = await start(["src/program.ts"]).ended;
    expect(code).to.equal(1);
    expect(stderr).to.match(/npm error network ENOTFOUND\nnpm ci failed \(exit code 7\); its report stands above\.\n$/);
    expect(locks()).to.deep.equal([]);
  });

  it("says so when npm leaves out a package for this platform, as it does when a download fails", async () => {
    plan({ leaveOut: ["node_modules/here", "node_modules/elsewhere"] });
    const { code, stderr } = await start(["src/program.ts"]).ended;
    expect(code).to.equal(1);
    expect(stderr).to.contain("npm ci ended well but left out here; optional packages are skipped");
  });

  for (const [version, message] of [
    ["18.20.4", "Tradepost needs Node.js 20.19 or newer; this is 18.20.4.\n"],
    ["20.19.1", "Tradepost runs on Node.js 24, but no package brings one for "],
  ] as const) {
    it(`explains in one sentence why Node.js ${version} alone is not enough`, async () => {
      await start(["src/program.ts", "exit", "0"]).ended;
      const pretend = `Object.defineProperty(process, "versions", { value: { ...process.versions, node: "${version}" } })`;
      const { code, stderr } = await start(["src/program.ts"], ["--import", `data:text/javascript,${pretend}`]).ended;
      expect(code).to.equal(1);
      expect(stderr)
        .to.match(/^[^\n]+\n$/)
        .and.to.contain(message);
    });
  }

  it("runs the program, and what it starts, on the Node.js that a package brings", async () => {
    const which =
      'import { execSync } from "node:child_process"; console.log(process.env.PINNED, execSync("command -v node") + "");';
    write("src/program.ts", which);
    await start(["src/program.ts"]).ended;
    const pinned = path.join(project, "node_modules/node-here/bin/node");
    write("node_modules/node-here/bin/node", `#!/bin/sh\nPINNED=yes exec ${process.execPath} "$@"\n`);
    expect(await start(["src/program.ts"]).ended).to.deep.include({ code: 0, stdout: `yes ${pinned}\n\n` });
  });

  it("falls back to its own Node.js, if that is new enough, where the package's cannot be started", async () => {
    await start(["src/program.ts", "exit", "0"]).ended;
    write("node_modules/node-here/bin/node", "#!/no/such/loader\n");
    expect(await start(["src/program.ts", "exit", "4"]).ended).to.include({ code: 4 });
  });

  it("names a program that is not there", async () => {
    expect((await start(["src/nothing.ts"]).ended).stderr).to.contain("There is no file src/nothing.ts in ");
    expect((await start(["nothing"]).ended).stderr).to.contain('No dependency brings a command "nothing".');
  });

  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    it(`asks the program to stop once when its whole group gets ${signal}, and waits for it`, async () => {
      const { child, ended } = start(["src/program.ts"]);
      await untilReady();
      process.kill(-(child.pid ?? 0), signal);
      expect(await ended).to.include({ code: 0, signal: null, stdout: "out\n" });
      expect(lines("program.log")).to.deep.equal(["started", "ready", `stop ${signal} 1`, "drained"]);
    });
  }

  it("passes a signal on that only it gets", async () => {
    const { child, ended } = start(["src/program.ts"]);
    await untilReady();
    child.kill("SIGTERM");
    expect(await ended).to.include({ code: 0 });
    expect(lines("program.log")).to.include("stop SIGTERM 1");
  });

  it("leaves no program behind when it is killed itself", async () => {
    const { child } = start(["src/program.ts"]);
    await untilReady();
    child.kill("SIGKILL");
    await until("the program has stopped", () => lines("program.log").includes("drained"));
    expect(lines("program.log")).to.include("stop parent gone 1");
  });

  it("ends by the signal that ended the program", async () => {
    write("src/program.ts", 'process.kill(process.pid, "SIGKILL");');
    expect(await start(["src/program.ts"]).ended).to.include({ code: null, signal: "SIGKILL" });
  });
});
