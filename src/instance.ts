import { createHash, randomUUID } from "node:crypto";
import { link, mkdir, open, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { processStartTime } from "./processes.ts";

const CLAIM_FILE = "server.json";
const CLAIM_ATTEMPTS = 50;
const SETTLE_INTERVAL_MS = 20;
const CLAIM_MAX_BYTES = 16 * 1024;

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

/** What makes one claim different from every other. */
interface Claimant {
  readonly pid: number;
  /** Distinguishes this process from a later one that was given the same pid. */
  readonly startTime: string;
  /** Distinguishes the folder that was claimed from a copy of it, which the claim's file was copied with. */
  readonly folder: string;
  /** Distinguishes two claims of one process. */
  readonly nonce: string;
}

interface ClaimRecord extends Claimant, InstanceDetails {}

/**
 * Claims `dir` (made if it is missing) for this process, so that two servers never share it. The claim is the file
 * `server.json`. Of any number of processes that try at once exactly one succeeds, also where the file was left behind
 * by a process that has ended.
 *
 * Node has no file locks, and replacing a stale file is a race between reading it and replacing it. So a stale claim is
 * not replaced but succeeded: its successor's name is derived from its content, and `link` lets only one process make
 * that name. The holder is who stands at the end of the chain that begins at `server.json`; whoever made a successor
 * looks again whether it still hangs on that chain, since the dead claim may have been succeeded and tidied up in the
 * meantime. Only then does it move to `server.json`, which makes the chain one claim long again.
 *
 * @throws InstanceRunningError if a live process, this one included, holds it
 */
export async function claimInstance(dir: string, { url }: InstanceDetails): Promise<InstanceClaim> {
  await mkdir(dir, { recursive: true });
  const path = join(dir, CLAIM_FILE);
  const claimant: Claimant = {
    pid: process.pid,
    startTime: (await processStartTime(process.pid)) ?? "",
    folder: await folderIdentity(path),
    nonce: randomUUID(),
  };
  const draft = await writeDraft(path, { ...claimant, url });
  try {
    for (let attempt = 1; attempt <= CLAIM_ATTEMPTS; attempt++) {
      const before = await walkChain(path);
      if (before.holder !== undefined) {
        // Away from `path` stands one that has yet to find out whether it holds the folder, or moves there in a moment.
        const isSettled = before.end === path || attempt === CLAIM_ATTEMPTS;
        if (isSettled) throw new InstanceRunningError(before.holder.pid, before.holder.url);
        await sleep(SETTLE_INTERVAL_MS);
        continue;
      }
      if (!(await linkIfFree(draft, before.end))) continue;
      const after = await walkChain(path);
      if (after.holder?.nonce === claimant.nonce) {
        if (after.end !== path) await rename(after.end, path);
        await removeLeftovers(path);
        return heldClaim(path, claimant);
      }
      await rm(before.end, { force: true });
    }
  } finally {
    await rm(draft, { force: true });
  }
  throw new Error(`Could not claim ${path}: it changed hands ${CLAIM_ATTEMPTS} times meanwhile.`);
}

function heldClaim(path: string, claimant: Claimant): InstanceClaim {
  let released = false;
  const isOurs = async () => parseRecord(await readIfPresent(path))?.nonce === claimant.nonce;
  return {
    async update({ url }) {
      if (released || !(await isOurs())) return;
      await rename(await writeDraft(path, { ...claimant, url }), path);
    },
    async release() {
      if (released) return;
      released = true;
      // Somebody may have removed the folder under us, and a new server may have claimed the one made since.
      if (await isOurs()) await rm(path, { force: true });
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
    if (record !== undefined && !(await isHeld(record, path))) await rm(leftover, { force: true });
  }
}

function parseRecord(content: string | undefined): ClaimRecord | undefined {
  try {
    const value: unknown = JSON.parse(content ?? "");
    if (typeof value !== "object" || value === null) return undefined;
    const { pid, startTime, folder, nonce, url } = value as Record<string, unknown>;
    if (!Number.isSafeInteger(pid) || (pid as number) <= 0) return undefined;
    if ([startTime, folder, nonce, url].some((field) => typeof field !== "string")) return undefined;
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

/** A claim gets its name only when it is complete. It need not survive the machine, since no process does. */
async function writeDraft(path: string, record: ClaimRecord): Promise<string> {
  const draft = `${path}.${randomUUID()}.draft`;
  await writeFile(draft, `${JSON.stringify(record, undefined, 2)}\n`, { flag: "wx", mode: 0o644 });
  return draft;
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
