import { constants, copyFile, open, stat, truncate } from "node:fs/promises";

const LOG_MAX_BYTES = 16 * 1024 * 1024;
const TAIL_MAX_BYTES = 4 * 1024;

/**
 * Sets a log aside, as `<file>.1`, that has grown larger than 16 MiB. PostgreSQL appends to a file it has inherited, so
 * the log is emptied in place after its content was copied; lines that are written in between are lost.
 */
export async function boundLog(file: string): Promise<void> {
  if ((await stat(file)).size <= LOG_MAX_BYTES) return;
  await copyFile(file, `${file}.1`, constants.COPYFILE_FICLONE);
  await truncate(file, 0);
}

/** What was written to a log since it was `position` bytes long, at most the last 4 KiB. */
export async function readLogSince(file: string, position: number): Promise<string> {
  const log = await open(file, "r");
  try {
    const { size } = await log.stat();
    const start = Math.max(position <= size ? position : 0, size - TAIL_MAX_BYTES);
    const { bytesRead, buffer } = await log.read(Buffer.alloc(TAIL_MAX_BYTES), 0, TAIL_MAX_BYTES, start);
    return buffer.toString("utf8", 0, bytesRead);
  } finally {
    await log.close();
  }
}
