// Brings node_modules to what package-lock.json says, by one `npm ci`, and only where it is not so already.

import fs from "node:fs";
import path from "node:path";
import { InstallLock } from "./install-lock.mjs";

/** A cold install takes 20 to 60 seconds; a very slow line gets this long before the install is given up. */
const installTimeoutMs = 15 * 60_000;
/** Others wait a little longer than the install may take, so that they report its end rather than their own. */
const lockTimeoutMs = installTimeoutMs + 60_000;
const progressIntervalMs = 5_000;
/** How long npm may take to clean up after it was told to stop. */
const npmGraceMs = 10_000;

/** An install that cannot be done; the message says why and what to do. */
class InstallError extends Error {
  name = "InstallError";
}

function readPackages(file) {
  try {
    return JSON.parse(fs.readFileSync(file, "utf8")).packages ?? {};
  } catch (error) {
    if (error.code === "ENOENT" || error instanceof SyntaxError) return undefined;
    throw error;
  }
}

function isFor(values, value) {
  if (values === undefined) return false;
  const list = Array.isArray(values) ? values : [values];
  return list.includes(value) || list.includes("any");
}

/**
 * Whether an install is faulty without this package. npm goes on without an optional package that it could not
 * download, so those made for this platform are asked for; where there is one per C library, npm's choice is trusted.
 */
function isNeeded(entry) {
  if (entry.optional !== true && entry.devOptional !== true) return true;
  return isFor(entry.os, process.platform) && isFor(entry.cpu, process.arch) && entry.libc === undefined;
}

/**
 * The names of packages that node_modules lacks, or has in another version than package-lock.json says. npm writes
 * its own record of node_modules (.package-lock.json) as the last step of an install, so an interrupted one has none,
 * and a developer's own `npm install` counts as well as ours.
 *
 * @returns {string[]} empty where the install is complete
 */
function missingPackages(root) {
  const wanted = readPackages(path.join(root, "package-lock.json"));
  if (wanted === undefined) throw new InstallError(`${root} has no readable package-lock.json; check it out again.`);
  const found = readPackages(path.join(root, "node_modules", ".package-lock.json")) ?? {};
  return Object.entries(wanted)
    .filter(([location, entry]) => {
      if (location === "") return false;
      const present = found[location];
      if (present === undefined) return isNeeded(entry);
      return present.version !== entry.version || present.integrity !== entry.integrity;
    })
    .map(([location]) => location.replace(/^.*node_modules\//, ""));
}

/** Tells every few seconds how many packages are in place; the returned function ends it. */
function reportProgress(root, say, startMs) {
  const wanted = Object.keys(readPackages(path.join(root, "package-lock.json")) ?? {});
  const locations = wanted.filter((location) => location.includes("node_modules/"));
  const timer = setInterval(() => {
    const count = locations.filter((location) => fs.existsSync(path.join(root, location, "package.json"))).length;
    say(`  ${Math.round((performance.now() - startMs) / 1_000)} s: ${count} packages in place`);
  }, progressIntervalMs);
  return () => clearInterval(timer);
}

/** Runs npm and ends it where it outlives the deadline. */
async function runBounded(runNpm, args, lock) {
  let isLate = false;
  const timers = [];
  const started = (child) => {
    if (child.pid !== undefined) lock.setInstaller(child.pid);
    timers.push(
      setTimeout(() => {
        isLate = true;
        child.kill("SIGTERM");
        timers.push(setTimeout(() => child.kill("SIGKILL"), npmGraceMs));
      }, installTimeoutMs),
    );
  };
  try {
    return { ...(await runNpm(args, { started })), isLate };
  } finally {
    for (const timer of timers) clearTimeout(timer);
  }
}

async function installHoldingLock({ root, say, runNpm, isStopping }, lock) {
  say("Installing the dependencies (npm ci); this is done once and takes about a minute.");
  // The record goes first: whatever interrupts the install from here on, the next start sees that it is unfinished.
  fs.rmSync(path.join(root, "node_modules", ".package-lock.json"), { force: true });
  const startMs = performance.now();
  const stopReporting = reportProgress(root, say, startMs);
  // A NODE_ENV=production in the environment would leave out what the server runs on (docs/decisions/0001-package.md).
  const args = ["ci", "--include=dev", "--include=optional", "--no-audit", "--no-fund", "--no-progress"];
  const { code, signal, isLate } = await runBounded(runNpm, args, lock).finally(stopReporting);
  if (isStopping()) return;
  if (isLate) throw new InstallError(`npm ci was stopped: it did not finish in ${installTimeoutMs / 60_000} minutes.`);
  if (code !== 0) throw new InstallError(`npm ci failed (${signal ?? `exit code ${code}`}); its report stands above.`);
  const missing = missingPackages(root);
  if (missing.length > 0) {
    throw new InstallError(
      `npm ci ended well but left out ${missing.slice(0, 5).join(", ")}; optional packages are skipped when their ` +
        "download fails. Run the command again, or `npm ci` to see more.",
    );
  }
  say(`Installed in ${Math.round((performance.now() - startMs) / 1_000)} s.`);
}

/**
 * Installs the dependencies unless they are there. At most one install runs in a checkout at a time: a second caller
 * waits for the first and then finds the work done.
 *
 * @param {{root: string, say: (line: string) => void, isStopping: () => boolean, runNpm: Function}} options
 * @throws {InstallError} where npm fails, takes too long, or another install never ends
 */
export async function ensureInstalled(options) {
  const { root, say, isStopping } = options;
  if (missingPackages(root).length === 0) return;
  const lock = new InstallLock(path.join(root, ".tradepost", "install.lock"));
  const waiting = (holder) => say(`Another process (${holder}) is installing the dependencies; waiting for it.`);
  const isHeld = await lock.acquire({ timeoutMs: lockTimeoutMs, waiting, isStopping }).catch((error) => {
    throw new InstallError(`The dependencies cannot be installed in ${root}: ${error.message}`);
  });
  if (isStopping()) return lock.release();
  if (!isHeld) {
    throw new InstallError(
      `Another install did not end in ${lockTimeoutMs / 60_000} minutes. If no npm is running here, remove ${lock.dir}.`,
    );
  }
  try {
    if (missingPackages(root).length > 0) await installHoldingLock(options, lock);
  } finally {
    lock.release();
  }
}
