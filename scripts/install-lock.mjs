// A lock between processes that share a folder, made of nothing but atomic renames.
//
// The lock is a directory with one file in it, named for its holder. Taking it is renaming a prepared directory onto
// its name, which fails while the other is not empty. Taking it over from a dead holder is renaming the holder's file
// to our own name: only one of several takers finds it, and none can hit a newer holder by mistake.

import { createHash, randomUUID } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";

const pollIntervalMs = 250;
const heartbeatIntervalMs = 5_000;
/** A holder on another machine (a shared folder, a container) is taken for dead when its file rests for this long. */
const staleAfterMs = 30_000;

function readText(read) {
  try {
    return read().trim();
  } catch {
    return "";
  }
}

/** Names the space in which a process id means something: machine, boot and (Linux) process namespace. */
function processSpace() {
  const boot = readText(() => fs.readFileSync("/proc/sys/kernel/random/boot_id", "utf8"));
  const namespace = readText(() => fs.readlinkSync("/proc/self/ns/pid"));
  return createHash("sha256").update(`${os.hostname()} ${boot} ${namespace}`).digest("hex").slice(0, 12);
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

/** Swallows the errors of a race that somebody else has won. */
function attempt(action, ...expected) {
  try {
    action();
    return true;
  } catch (error) {
    if (expected.includes(error.code)) return false;
    throw error;
  }
}

export class InstallLock {
  #space = processSpace();
  #name = `${process.pid}.${this.#space}.${randomUUID().slice(0, 8)}`;
  #heartbeat;
  #rest = { name: "", sinceMs: 0, mtimeMs: 0 };

  /** @param {string} dir the lock's directory; its parent is made where it is missing */
  constructor(dir) {
    this.dir = dir;
  }

  get #ownFile() {
    return path.join(this.dir, this.#name);
  }

  /**
   * Waits for the lock.
   *
   * @returns {Promise<boolean>} false when the time is up or `isStopping` says so
   */
  async acquire({ timeoutMs, waiting, isStopping }) {
    const deadlineMs = performance.now() + timeoutMs;
    let hasTold = false;
    for (;;) {
      const holder = this.#holder();
      if (holder === undefined ? this.#take() : this.#isDead(holder) && this.#takeOver(holder)) break;
      if (performance.now() > deadlineMs || isStopping()) return false;
      if (holder !== undefined && !hasTold) waiting(holder.split(".")[0]);
      hasTold ||= holder !== undefined;
      await new Promise((resolve) => setTimeout(resolve, pollIntervalMs));
    }
    this.#heartbeat = setInterval(() => this.#beat(), heartbeatIntervalMs);
    this.#heartbeat.unref();
    return true;
  }

  /** Notes the process that does the work, so that the lock outlives its holder for as long as that one runs. */
  setInstaller(pid) {
    fs.writeFileSync(this.#ownFile, `${pid}\n`);
  }

  /** Gives the lock back; without effect where it is not held. */
  release() {
    clearInterval(this.#heartbeat);
    attempt(() => fs.unlinkSync(this.#ownFile), "ENOENT", "ENOTDIR");
    attempt(() => fs.rmdirSync(this.dir), "ENOENT", "ENOTEMPTY", "EEXIST");
  }

  #take() {
    fs.mkdirSync(path.dirname(this.dir), { recursive: true });
    const prepared = `${this.dir}.${this.#name}`;
    fs.mkdirSync(prepared);
    fs.writeFileSync(path.join(prepared, this.#name), "");
    const isTaken = attempt(() => fs.renameSync(prepared, this.dir), "ENOTEMPTY", "EEXIST");
    if (!isTaken) fs.rmSync(prepared, { recursive: true, force: true });
    return isTaken;
  }

  #holder() {
    try {
      return fs.readdirSync(this.dir)[0];
    } catch (error) {
      if (error.code === "ENOENT") return undefined;
      throw error;
    }
  }

  #takeOver(holder) {
    const isTaken = attempt(() => fs.renameSync(path.join(this.dir, holder), this.#ownFile), "ENOENT");
    if (isTaken) fs.writeFileSync(this.#ownFile, "");
    return isTaken;
  }

  #isDead(holder) {
    const [pid, space] = holder.split(".");
    if (space === this.#space) {
      const installer = Number(readText(() => fs.readFileSync(path.join(this.dir, holder), "utf8")));
      return !isAlive(Number(pid)) && !(installer > 0 && isAlive(installer));
    }
    return this.#restMs(holder) > staleAfterMs;
  }

  /** For how long, by our own clock, the holder's file has not changed: clocks of two machines need not agree. */
  #restMs(holder) {
    const mtimeMs = fs.statSync(path.join(this.dir, holder), { throwIfNoEntry: false })?.mtimeMs ?? 0;
    const nowMs = performance.now();
    if (this.#rest.name !== holder || this.#rest.mtimeMs !== mtimeMs)
      this.#rest = { name: holder, sinceMs: nowMs, mtimeMs };
    return nowMs - this.#rest.sinceMs;
  }

  #beat() {
    const now = new Date();
    attempt(() => fs.utimesSync(this.#ownFile, now, now), "ENOENT", "ENOTDIR");
  }
}
