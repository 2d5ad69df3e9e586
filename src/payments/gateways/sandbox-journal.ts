/** The sandbox's durable memory: an append-only file of JSON lines, each one atomic transition. */
import { randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, link, mkdir, open, readFile, rename, rm, truncate, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";

/** The sandbox cannot start or go on with this folder; the message is a sentence for the person who runs it. */
export class SandboxJournalError extends Error {
  override readonly name = "SandboxJournalError";
}

const journalFileName = "sandbox.jsonl";
const lockFileName = "sandbox.lock";
const maxLineBytes = 64 * 1024;
const compactionChunkLines = 1_000;
const newline = 0x0a;

/** A line of the journal as it is read back. `endOffset` is where the next line begins. */
interface JournalLine {
  readonly text: string;
  readonly startOffset: number;
  readonly endOffset: number;
}

/**
 * Appends transitions and makes them durable in groups: whoever waits while a group is being written shares the next
 * one, so that a busy sandbox pays one sync for many charges.
 */
export class SandboxJournal {
  readonly #file: FileHandle;
  readonly #lockPath: string;
  #waiting: string[] = [];
  #current: Promise<void> = Promise.resolve();
  #next: Promise<void> | undefined;
  #failure: SandboxJournalError | undefined;

  private constructor(file: FileHandle, lockPath: string) {
    this.#file = file;
    this.#lockPath = lockPath;
  }

  /**
   * Opens the journal in a folder of its own, creating both when they are missing. Each line goes to `replay`, which
   * answers whether it could use it; a torn end (a crash in the middle of a write, never acknowledged) is cut off.
   * `snapshot` is then asked for the lines that say the same in fewer, or undefined to keep the file as it is.
   *
   * Rejects with SandboxJournalError when another sandbox uses the folder or the file is damaged before its end.
   */
  static async open(
    dataDir: string,
    replay: (line: string) => boolean,
    snapshot: (replayedLines: number) => Iterable<string> | undefined,
  ): Promise<SandboxJournal> {
    await mkdir(dataDir, { recursive: true, mode: 0o700 });
    const lockPath = resolve(dataDir, lockFileName);
    await acquireLock(lockPath, dataDir);
    try {
      const path = join(dataDir, journalFileName);
      const compacted = snapshot(await replayFile(path, replay));
      if (compacted !== undefined) await rewrite(path, dataDir, compacted);
      const file = await open(path, "a", 0o600);
      await syncFolder(dataDir);
      return new SandboxJournal(file, lockPath);
    } catch (error) {
      await releaseLock(lockPath);
      throw error;
    }
  }

  /** Takes one transition. It counts only once `flushed` has resolved. Throws when an earlier write failed. */
  append(line: string): void {
    if (this.#failure !== undefined) throw this.#failure;
    this.#waiting.push(line);
  }

  /** Resolves when everything appended so far is on disk; rejects, for good, once a write has failed. */
  flushed(): Promise<void> {
    if (this.#waiting.length === 0) return this.#next ?? this.#current;
    if (this.#next === undefined) {
      this.#next = this.#current.then(() => this.#writeWaiting());
      // Whoever appended may not be waiting; the failure is kept and told to everybody who asks later.
      this.#next.catch(() => undefined);
    }
    return this.#next;
  }

  /** Writes what is waiting, closes the file and lets another sandbox use the folder. */
  async close(): Promise<void> {
    await this.flushed().catch(() => undefined);
    await this.#file.close();
    await releaseLock(this.#lockPath);
  }

  async #writeWaiting(): Promise<void> {
    if (this.#next !== undefined) this.#current = this.#next;
    this.#next = undefined;
    const lines = this.#waiting;
    this.#waiting = [];
    try {
      await this.#file.appendFile(`${lines.join("\n")}\n`);
      await this.#file.datasync();
    } catch (error) {
      // After a failed sync nobody knows what the disk holds, so nothing may be appended behind it.
      this.#failure = new SandboxJournalError(`The sandbox's journal cannot be written: ${messageOf(error)}`);
      throw this.#failure;
    }
  }
}

async function replayFile(path: string, replay: (line: string) => boolean): Promise<number> {
  let lines = 0;
  let tornOffset: number | undefined;
  let endOffset = 0;
  for await (const line of readLines(path)) {
    endOffset = line.endOffset;
    if (!replay(line.text)) {
      tornOffset ??= line.startOffset;
    } else if (tornOffset !== undefined) {
      throw new SandboxJournalError(
        `The sandbox's journal ${path} is damaged at byte ${tornOffset}, before its end: restore it, or delete it to begin with no charges.`,
      );
    } else {
      lines += 1;
    }
  }
  if (tornOffset !== undefined && tornOffset < endOffset) await truncate(path, tornOffset);
  return lines;
}

/** Yields the lines of a file, also the last one without its newline (as text that no reader can parse). */
async function* readLines(path: string): AsyncGenerator<JournalLine> {
  let rest: Buffer = Buffer.alloc(0);
  let offset = 0;
  try {
    for await (const chunk of createReadStream(path)) {
      const bytes: Buffer = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
      let start = 0;
      for (let end = bytes.indexOf(newline); end !== -1; end = bytes.indexOf(newline, start)) {
        yield { text: bytes.toString("utf8", start, end), startOffset: offset + start, endOffset: offset + end + 1 };
        start = end + 1;
      }
      rest = bytes.subarray(start);
      offset += start;
      if (rest.length > maxLineBytes) {
        throw new SandboxJournalError(`The sandbox's journal ${path} is damaged at byte ${offset}: a line has no end.`);
      }
    }
  } catch (error) {
    if (isErrno(error, "ENOENT")) return;
    throw error;
  }
  // A line without its newline was never acknowledged, even where what is there of it happens to parse.
  if (rest.length > 0) yield { text: "", startOffset: offset, endOffset: offset + rest.length };
}

/** Replaces the file as a whole: a crash leaves either the old one or the new one. */
async function rewrite(path: string, dataDir: string, lines: Iterable<string>): Promise<void> {
  const draftPath = `${path}.new`;
  const draft = await open(draftPath, "w", 0o600);
  try {
    let chunk: string[] = [];
    const write = async (): Promise<void> => {
      if (chunk.length > 0) await draft.appendFile(`${chunk.join("\n")}\n`);
      chunk = [];
    };
    for (const line of lines) {
      chunk.push(line);
      if (chunk.length === compactionChunkLines) await write();
    }
    await write();
    await draft.sync();
  } finally {
    await draft.close();
  }
  await rename(draftPath, path);
  await syncFolder(dataDir);
}

/** Makes a created or renamed file survive a power cut. Windows cannot open folders, and orders these by itself. */
async function syncFolder(dataDir: string): Promise<void> {
  if (process.platform === "win32") return;
  const folder = await open(dataDir, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/** Locks held by this process, to tell them from those that an earlier process of the same id left behind. */
const ownLocks = new Set<string>();

/**
 * Two writers would tear the journal apart, so the folder is held by a lock file that names its process. A lock whose
 * process is gone (it was killed) is taken over.
 */
async function acquireLock(lockPath: string, dataDir: string): Promise<void> {
  const maxAttempts = 3;
  const draftPath = `${lockPath}.${randomUUID()}`;
  await writeFile(draftPath, await processIdentity(process.pid), { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < maxAttempts; attempt += 1) {
      // Linking, other than creating and writing, never shows a lock that does not name its process yet.
      if (await linkIfFree(draftPath, lockPath)) {
        ownLocks.add(lockPath);
        return;
      }
      const holder = await readFile(lockPath, "utf8").catch(() => "");
      if ((await isHeld(lockPath, holder)) || !(await removeStaleLock(lockPath, holder))) break;
    }
  } finally {
    await rm(draftPath, { force: true });
  }
  throw new SandboxJournalError(
    `Another sandbox uses the folder ${dataDir}: stop it, or name another folder (if none runs, delete ${lockPath}).`,
  );
}

async function linkIfFree(draftPath: string, lockPath: string): Promise<boolean> {
  try {
    await link(draftPath, lockPath);
    return true;
  } catch (error) {
    if (isErrno(error, "EEXIST")) return false;
    throw error;
  }
}

/** Removes a lock whose process is gone; false when somebody else took it over first. */
async function removeStaleLock(lockPath: string, holder: string): Promise<boolean> {
  // Moving the file away first shows whether it is still the stale one, and lets one of several starters have it.
  const movedPath = `${lockPath}.${randomUUID()}`;
  try {
    await rename(lockPath, movedPath);
  } catch (error) {
    if (isErrno(error, "ENOENT")) return true;
    throw error;
  }
  const isStale = (await readFile(movedPath, "utf8").catch(() => "")) === holder;
  if (!isStale) await linkIfFree(movedPath, lockPath);
  await rm(movedPath, { force: true });
  return isStale;
}

async function releaseLock(lockPath: string): Promise<void> {
  ownLocks.delete(lockPath);
  await rm(lockPath, { force: true });
}

async function isHeld(lockPath: string, holder: string): Promise<boolean> {
  const pid = Number.parseInt(holder, 10);
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  if (pid === process.pid) return ownLocks.has(lockPath);
  try {
    process.kill(pid, 0);
  } catch (error) {
    return isErrno(error, "EPERM");
  }
  return (await processIdentity(pid)) === holder;
}

/** A process id with its start time where the system tells it, since ids are used again, above all in containers. */
async function processIdentity(pid: number): Promise<string> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const startTicks = fields[19] ?? "";
  const bootId = await readFile("/proc/sys/kernel/random/boot_id", "utf8").catch(() => "");
  return `${pid} ${startTicks} ${bootId.trim()}`.trim();
}

function isErrno(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
