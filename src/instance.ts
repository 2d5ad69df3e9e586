import { execFile } from "node:child_process";
import { createHash, randomUUID } from "node:crypto";
import { link, mkdir, open, readdir, readFile, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

const CLAIM_FILE = "server.json";
const CLAIM_ATTEMPTS = 50;
const CLAIM_MAX_BYTES = 16 * 1024;
const PS_TIMEOUT_MS = 5_000;

/** What a running server tells the one that finds the folder taken. */
export interface InstanceDetails {
  /** Where the server can be reached. */
  readonly url: string;
}

/** The hold on a folder. It ends with `release` or with the process, whichever comes first. */
export interface InstanceClaim {
  /** Replaces what others are told. */
  update(about: InstanceDetails): Promise<void>;
  /** Gives the folder up and removes its file. Calling it again does nothing. */
  release(): Promise<void>;
}

/** Another live process of ours holds the folder. */
export class InstanceRunningError extends Error {
  override readonly name = "InstanceRunningError";
  readonly pid: number;
  readonly url: string;

  constructor(pid: number, url: string) {
    super(`Tradepost already runs here: pid ${pid}, ${url}`);
    this.pid = pid;
    this.url = url;
  }
}

/** Another live process holds the claim file. `details` is what it wrote there. */
export class ClaimHeldError extends Error {
  override readonly name = "ClaimHeldError";
  readonly pid: number;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(path: string, pid: number, details: Readonly<Record<string, unknown>>) {
    super(`${path} is held by process ${pid}`);
    this.pid = pid;
    this.details = details;
  }
}

/**
 * Claims `dir` (made if it is missing) for this process, so that two servers never share it. The claim is the file
 * `server.json` with `pid`, `startTime` and `url`.
 *
 * @throws InstanceRunningError if a live process holds it. A claim whose process has ended is taken over.
 */
export async function claimInstance(dir: string, about: InstanceDetails): Promise<InstanceClaim> {
  await mkdir(dir, { recursive: true });
  try {
    const claim = await claimFile(join(dir, CLAIM_FILE), { url: about.url });
    return { update: ({ url }) => claim.update({ url }), release: () => claim.release() };
  } catch (error) {
    if (!(error instanceof ClaimHeldError)) throw error;
    throw new InstanceRunningError(error.pid, String(error.details["url"] ?? "address unknown"));
  }
}

/** The hold on one claim file. */
export interface FileClaim {
  update(details: Readonly<Record<string, unknown>>): Promise<void>;
  release(): Promise<void>;
}

interface ClaimRecord {
  readonly pid: number;
  /** Distinguishes this process from a later one that was given the same pid. */
  readonly startTime: string;
  /** Distinguishes the folder that was claimed from a copy of it, which the claim's file was copied with. */
  readonly folder: string;
  /** Distinguishes two claims of one process. */
  readonly nonce: string;
  readonly [detail: string]: unknown;
}

/**
 * Claims `path` for this process. Of any number of processes that try at once exactly one succeeds, also where the file
 * was left behind by a process that has ended.
 *
 * Node has no file locks, and replacing a stale file is a race between reading it and replacing it. So a stale claim is
 * not replaced but succeeded: its successor's name is derived from its content, and `link` lets only one process make
 * that name. The holder is who stands at the end of the chain that begins at `path`; whoever made a successor looks again
 * whether it still hangs on that chain, since the dead claim may have been succeeded and tidied up in the meantime. Only
 * then does it move to `path`, which makes the chain one claim long again.
 *
 * @throws ClaimHeldError if a live process, this one included, holds it.
 */
export async function claimFile(path: string, details: Readonly<Record<string, unknown>>): Promise<FileClaim> {
  const identity = {
    pid: process.pid,
    startTime: (await processStartTime(process.pid)) ?? "",
    folder: await folderIdentity(path),
    nonce: randomUUID(),
  };
  const draft = `${path}.${identity.nonce}.draft`;
  await writeDurably(draft, { ...details, ...identity });
  try {
    for (let attempt = 0; attempt < CLAIM_ATTEMPTS; attempt++) {
      const before = await walkChain(path);
      if (before.holder !== undefined) throw new ClaimHeldError(path, before.holder.pid, before.holder);
      if (!(await linkIfFree(draft, before.end))) continue;
      const after = await walkChain(path);
      if (after.holder?.nonce === identity.nonce) {
        if (after.end !== path) await rename(after.end, path);
        await removeLeftovers(path);
        return heldClaim(path, identity);
      }
      await unlinkIfPresent(before.end);
    }
  } finally {
    await unlinkIfPresent(draft);
  }
  throw new Error(`Could not claim ${path}: it changed hands ${CLAIM_ATTEMPTS} times meanwhile.`);
}

function heldClaim(path: string, identity: ClaimRecord): FileClaim {
  let released = false;
  const isOurs = async () => parseRecord(await readIfPresent(path))?.nonce === identity.nonce;
  return {
    async update(details) {
      if (released || !(await isOurs())) return;
      const draft = `${path}.${randomUUID()}.draft`;
      await writeDurably(draft, { ...details, ...identity });
      await rename(draft, path);
    },
    async release() {
      if (released) return;
      released = true;
      // Somebody may have removed the folder under us, and a new server may have claimed the one made since.
      if (await isOurs()) await unlinkIfPresent(path);
    },
  };
}

/** Follows the claims from `path` on: to the live one, or to the name that the next claim has to take. */
async function walkChain(path: string): Promise<{ end: string; holder?: ClaimRecord }> {
  let end = path;
  for (;;) {
    const content = await readIfPresent(end);
    if (content === undefined) return { end };
    const record = parseRecord(content);
    if (record !== undefined && (await isHeld(record, path))) return { end, holder: record };
    end = `${path}.${createHash("sha256").update(content).digest("hex").slice(0, 32)}`;
  }
}

/** Removes what dead processes left beside our claim. Nothing there can be on the chain, which ends with us. */
async function removeLeftovers(path: string): Promise<void> {
  const prefix = `${basename(path)}.`;
  for (const name of await readdir(dirname(path))) {
    if (!name.startsWith(prefix)) continue;
    const leftover = join(dirname(path), name);
    const record = parseRecord(await readIfPresent(leftover));
    if (record !== undefined && !(await isHeld(record, path))) await unlinkIfPresent(leftover);
  }
}

function parseRecord(content: string | undefined): ClaimRecord | undefined {
  try {
    const value: unknown = JSON.parse(content ?? "");
    if (typeof value !== "object" || value === null) return undefined;
    const { pid, startTime, folder, nonce } = value as Record<string, unknown>;
    if (!Number.isSafeInteger(pid) || (pid as number) <= 0) return undefined;
    if ([startTime, folder, nonce].some((field) => typeof field !== "string")) return undefined;
    return value as ClaimRecord;
  } catch {
    return undefined;
  }
}

async function isHeld(record: ClaimRecord, path: string): Promise<boolean> {
  return record.folder === (await folderIdentity(path)) && (await processStartTime(record.pid)) === record.startTime;
}

/** Stays the same when the folder is moved, and is another one for a copy. */
async function folderIdentity(path: string): Promise<string> {
  const { dev, ino } = await stat(dirname(path), { bigint: true });
  return `${dev}:${ino}`;
}

/** One process as Linux describes it. */
export interface LinuxProcess {
  readonly pid: number;
  readonly parentPid: number;
  /** The program's name, at most 15 characters. */
  readonly command: string;
  /** In clock ticks since the machine started. */
  readonly startTicks: string;
}

/** Reads `/proc`. Undefined if there is no such process, or if it has ended and nobody has taken note of that yet. */
export async function readLinuxProcess(pid: number): Promise<LinuxProcess | undefined> {
  let stat: string;
  try {
    stat = await readFile(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The name stands in parentheses and may itself contain spaces and parentheses, so the last one ends it.
  const nameEnd = stat.lastIndexOf(")");
  const fields = stat.slice(nameEnd + 2).split(" ");
  const state = fields[0];
  if (state === "Z" || state === "X") return undefined;
  return {
    pid,
    parentPid: Number(fields[1]),
    command: stat.slice(stat.indexOf("(") + 1, nameEnd),
    startTicks: fields[19] ?? "",
  };
}

/**
 * When a process started, in a form that is only good for comparing: no two processes that ever had this pid share it.
 * Undefined if there is no such process.
 */
export async function processStartTime(pid: number): Promise<string | undefined> {
  if (process.platform === "linux") {
    const found = await readLinuxProcess(pid);
    return found === undefined ? undefined : `${await linuxBootId()}/${found.startTicks}`;
  }
  return new Promise((resolve) => {
    const options = { timeout: PS_TIMEOUT_MS, env: { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" } };
    execFile("ps", ["-o", "lstart=", "-p", String(pid)], options, (_error, stdout) => {
      resolve(stdout.trim() === "" ? undefined : stdout.trim());
    });
  });
}

/** Ticks begin at zero with every start of the machine, and the first processes get much the same pids each time. */
async function linuxBootId(): Promise<string> {
  return (await readIfPresent("/proc/sys/kernel/random/boot_id"))?.trim() ?? "";
}

async function writeDurably(path: string, record: Readonly<Record<string, unknown>>): Promise<void> {
  const file = await open(path, "wx", 0o644);
  try {
    await file.writeFile(`${JSON.stringify(record, undefined, 2)}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
}

async function readIfPresent(path: string): Promise<string | undefined> {
  try {
    const file = await open(path, "r");
    try {
      const { bytesRead, buffer } = await file.read(Buffer.alloc(CLAIM_MAX_BYTES), 0, CLAIM_MAX_BYTES, 0);
      return buffer.toString("utf8", 0, bytesRead);
    } finally {
      await file.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

async function linkIfFree(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

async function unlinkIfPresent(path: string): Promise<void> {
  try {
    await unlink(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
}
