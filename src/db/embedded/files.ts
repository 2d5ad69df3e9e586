import type { Stats } from "node:fs";
import { lstat, open, readdir, readFile, rename } from "node:fs/promises";
import { dirname, join } from "node:path";

/** Replaces a file that only we may read. Either the old content survives a crash or the new. */
export async function writeDurably(path: string, content: string): Promise<void> {
  const unfinished = `${path}.unfinished`;
  const file = await open(unfinished, "w", 0o600);
  try {
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(unfinished, path);
  await sync(dirname(path));
}

/** Makes the content of a file, or the names in a folder, survive a crash of the machine. */
export async function sync(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Makes a folder with everything in it survive a crash of the machine. */
export async function syncTree(path: string): Promise<void> {
  const found = await lstat(path);
  if (found.isDirectory()) for (const name of await readdir(path)) await syncTree(join(path, name));
  if (found.isDirectory() || found.isFile()) await sync(path);
}

/** A text file's content, or undefined where there is no such file. For files that PostgreSQL or we ourselves wrote. */
export async function readIfPresent(path: string): Promise<string | undefined> {
  return unlessMissing(readFile(path, "utf8"));
}

/** What stands at a path, symbolic links not followed, or undefined where nothing does. */
export async function statIfPresent(path: string): Promise<Stats | undefined> {
  return unlessMissing(lstat(path));
}

async function unlessMissing<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
