// Runs a program of this project on the Node.js that the project pins, installing the dependencies first where they
// are missing. It is what every npm script starts, so it depends on nothing and runs on any Node.js that npm runs on.
//
//   node scripts/run.mjs src/main.ts [arguments]      a file of the project
//   node scripts/run.mjs buf lint                     a command that a dependency brings

import { spawn } from "node:child_process";
import fs from "node:fs";
import { constants } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const oldestNode = [20, 19];
const programNodeMajor = 24;
/** One Ctrl-C arrives here from the terminal and again from npm, which passes it on; what comes this close is an echo. */
const echoWindowMs = 1_000;
const parentCheckIntervalMs = 1_000;
const stopSignals = ["SIGINT", "SIGTERM", "SIGHUP"];

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const binDir = path.join(root, "node_modules", ".bin");
// Compiled code is kept beside the packages: every later start is a good third of a second sooner.
const compileCache = path.join(root, "node_modules", ".cache", "compiled");

/** A fault that the person at the terminal can mend: its message is the whole report. */
class Refusal extends Error {}

const say = (line) => process.stderr.write(`${line}\n`);

function isAtLeast(version, wanted) {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  return major > wanted[0] || (major === wanted[0] && minor >= wanted[1]);
}

/** Whether this process itself runs on the pinned binary, which an install is about to delete and write anew. */
function runsOnPinnedNode() {
  return fs.realpathSync(process.execPath).startsWith(path.join(root, "node_modules") + path.sep);
}

function withoutBinDir(searchPath) {
  return searchPath
    .split(path.delimiter)
    .filter((dir) => dir !== "" && path.resolve(dir) !== binDir)
    .join(path.delimiter);
}

/** How to start npm: the npm that started us where there is one, on a Node.js that the install does not replace. */
function npmCommand() {
  const caller = process.env.npm_execpath ?? "";
  if (path.basename(caller) !== "npm-cli.js") return ["npm"];
  return runsOnPinnedNode() ? ["node", caller] : [process.execPath, caller];
}

/** Signals reach whichever child runs at the moment; before there is one, and between two, they end this process. */
class Relay {
  #child;
  #lastMs = new Map();
  /** The signal that asked us to stop, if any did. */
  stoppedBy;

  listen() {
    for (const signal of stopSignals) process.on(signal, () => this.#receive(signal));
    if (process.env.npm_lifecycle_event !== undefined) this.#watchParent();
  }

  /** An npm killed by SIGKILL passes nothing on; what it started would go on with nobody watching. */
  #watchParent() {
    const parent = process.ppid;
    const timer = setInterval(() => {
      if (process.ppid === parent) return;
      clearInterval(timer);
      this.#receive("SIGTERM");
    }, parentCheckIntervalMs);
    timer.unref();
  }

  #receive(signal) {
    const nowMs = performance.now();
    if (nowMs - (this.#lastMs.get(signal) ?? Number.NEGATIVE_INFINITY) < echoWindowMs) return;
    this.#lastMs.set(signal, nowMs);
    this.stoppedBy = signal;
    this.#child?.kill(signal);
  }

  /** Starts a child and resolves with how it ended; rejects where it could not be started. */
  run(command, args, options) {
    return new Promise((resolve, reject) => {
      const child = spawn(command, args, options);
      this.#child = child;
      options.started?.(child);
      child.once("error", (error) => {
        if (child.pid === undefined) reject(error);
      });
      child.once("exit", (code, signal) => {
        this.#child = undefined;
        resolve({ code, signal });
      });
    });
  }
}

async function install(relay) {
  const { ensureInstalled } = await import("./install.mjs");
  const [command, ...args] = npmCommand();
  const env = { ...process.env, PATH: withoutBinDir(process.env.PATH ?? "") };
  await ensureInstalled({
    root,
    say,
    isStopping: () => relay.stoppedBy !== undefined,
    runNpm: async (npmArgs, { started }) => {
      try {
        // Standard output belongs to the program, so nothing of the install goes there.
        const stdio = ["ignore", "ignore", "inherit"];
        return await relay.run(command, [...args, ...npmArgs], { cwd: root, env, stdio, started });
      } catch (error) {
        throw new Refusal(`The dependencies are not installed and npm cannot be started: ${error.message}`);
      }
    },
  });
}

/** The file behind a command of node_modules/.bin, or the file itself, which may be given relative to the project. */
function resolveProgram(target) {
  const isFile = /\.[cm]?[jt]s$/.test(target);
  const file = isFile ? path.resolve(root, target) : path.join(binDir, target);
  if (!fs.existsSync(file)) {
    throw new Refusal(
      isFile ? `There is no file ${target} in ${root}.` : `No dependency brings a command "${target}".`,
    );
  }
  return fs.realpathSync(file);
}

/**
 * The Node.js that the project pins: of the packages that deploy/runtime names, npm installs the one for this platform.
 * It is looked up by package, since npm 10 links no command named `node` into node_modules/.bin, and npm 11 does.
 */
function pinnedNode() {
  const runtime = JSON.parse(fs.readFileSync(path.join(root, "deploy", "runtime", "package.json"), "utf8"));
  return Object.keys(runtime.optionalDependencies)
    .filter((name) => name.startsWith("node-"))
    .map((name) => path.join(root, "node_modules", name, "bin", "node"))
    .find((file) => fs.existsSync(file));
}

/** The Node.js binaries to try, best first: the pinned one, then the one that runs this file. */
function programNodes() {
  const pinned = pinnedNode();
  const nodes = pinned === undefined ? [] : [pinned];
  if (isAtLeast(process.versions.node, [programNodeMajor, 0])) nodes.push(process.execPath);
  return nodes;
}

async function runProgram(relay, target, args) {
  const program = resolveProgram(target);
  // The channel carries nothing: its closing tells the program that this process is gone, even by SIGKILL.
  const options = { cwd: root, stdio: ["inherit", "inherit", "inherit", "ipc"] };
  // The first releases of Node.js 24 call type stripping experimental at every start, and one platform is pinned to them.
  const flags = ["--disable-warning=ExperimentalWarning"];
  let failure = `no package brings one for ${process.platform} on ${process.arch}`;
  for (const node of programNodes()) {
    // What the program starts by the name of `node`, or of a dependency's command, runs on the same Node.js.
    const searchPath = [binDir, path.dirname(node), withoutBinDir(process.env.PATH ?? "")].join(path.delimiter);
    try {
      return await relay.run(node, [...flags, program, ...args], {
        ...options,
        env: { NODE_COMPILE_CACHE: compileCache, ...process.env, PATH: searchPath },
      });
    } catch (error) {
      // A binary made for another C library reports ENOENT or ENOEXEC although the file is there.
      failure = `${node} cannot be started (${error.code ?? error.message})`;
    }
  }
  throw new Refusal(
    `Tradepost runs on Node.js ${programNodeMajor}, but ${failure}, and this is Node.js ${process.versions.node}. ` +
      `Install Node.js ${programNodeMajor} or newer and try again.`,
  );
}

/** Ends this process the way the child ended, so that a shell or npm draws the right conclusion. */
function endLike({ code, signal }) {
  if (signal === null) {
    process.exitCode = code;
    return;
  }
  process.exitCode = 128 + (constants.signals[signal] ?? 0);
  process.removeAllListeners(signal);
  process.kill(process.pid, signal);
}

async function main([target, ...args]) {
  if (!isAtLeast(process.versions.node, oldestNode)) {
    throw new Refusal(`Tradepost needs Node.js ${oldestNode.join(".")} or newer; this is ${process.versions.node}.`);
  }
  if (target === undefined) throw new Refusal("Usage: node scripts/run.mjs <file or command> [arguments]");
  const relay = new Relay();
  relay.listen();
  await install(relay);
  if (relay.stoppedBy !== undefined) return endLike({ code: null, signal: relay.stoppedBy });
  endLike(await runProgram(relay, target, args));
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  say(error instanceof Refusal || error.name === "InstallError" ? error.message : error.stack);
  process.exitCode = 1;
}
