import { randomUUID } from "node:crypto";
import { chmod, cp, lstat, mkdir, mkdtemp, readdir, readFile, realpath, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { Binaries } from "./binaries.ts";
import { EmbeddedPostgresError } from "./error.ts";
import { readIfPresent, statIfPresent, sync, syncTree, writeDurably } from "./files.ts";

/** The file, in the folder that a person knows of, that says where its data are. */
const POINTER = "relocated-to";

/**
 * Where the data of `folder` are: there, or in the folder elsewhere that an earlier start moved them to.
 *
 * @throws EmbeddedPostgresError if that has gone
 */
export async function findBase(folder: string): Promise<string> {
  const base = (await readIfPresent(join(folder, POINTER)))?.trim();
  if (base === undefined) return folder;
  if ((await statIfPresent(base))?.isDirectory()) return base;
  throw new EmbeddedPostgresError(
    `The PostgreSQL data of ${folder} were moved to ${base}, which is gone. ` +
      `Restore it, or begin anew by removing ${folder}.`,
  );
}

/** Moves the data of `folder` to a new folder below `root`, and gives its path. */
export async function relocateData(folder: string, root: string): Promise<string> {
  const base = join(await trustedRoot(root), randomUUID());
  await mkdir(base, { mode: 0o711 });
  // Whatever our umask is, the account has to pass through.
  await chmod(base, 0o711);
  // The pointer comes before the data: a crash in between must not lose them.
  await writeDurably(join(folder, POINTER), `${base}\n`);
  await finishRelocation(folder, base);
  return base;
}

/** A folder that only root can have made: another's could hold anything. */
async function trustedRoot(root: string): Promise<string> {
  await mkdir(root, { recursive: true, mode: 0o755 });
  const found = await lstat(root);
  if (!found.isDirectory() || found.uid !== 0 || (found.mode & 0o022) !== 0) {
    throw new EmbeddedPostgresError(`${root} must be a folder of root that nobody else can write to.`);
  }
  return realpath(root);
}

/** Moves the data if they are still in `folder` although the pointer names `base`. Call it when nobody uses them. */
export async function finishRelocation(folder: string, base: string): Promise<void> {
  const from = join(folder, "data");
  const to = join(base, "data");
  if (base === folder || (await statIfPresent(from)) === undefined || (await statIfPresent(to)) !== undefined) return;
  try {
    await rename(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EXDEV") throw error;
    const unfinished = join(base, "data-unfinished");
    await rm(unfinished, { recursive: true, force: true });
    await cp(from, unfinished, { recursive: true, verbatimSymlinks: true, preserveTimestamps: true });
    await syncTree(unfinished);
    await rename(unfinished, to);
    await sync(base);
    await rm(from, { recursive: true, force: true });
  }
}

/** Copies the package's native folder to `base`, once per version, and lets everybody read it. */
export async function copyBinaries(binaries: Binaries, base: string): Promise<Binaries> {
  const source = dirname(dirname(binaries.postgres));
  const { version } = JSON.parse(await readFile(join(dirname(source), "package.json"), "utf8")) as { version: string };
  const target = join(base, `native-${version}`);
  if ((await statIfPresent(target)) === undefined) {
    const unfinished = await mkdtemp(join(base, "native-unfinished-"));
    await cp(source, unfinished, { recursive: true, verbatimSymlinks: true });
    await makeReadable(unfinished);
    await rename(unfinished, target);
  }
  return {
    initdb: join(target, "bin", basename(binaries.initdb)),
    postgres: join(target, "bin", basename(binaries.postgres)),
  };
}

async function makeReadable(path: string): Promise<void> {
  const found = await lstat(path);
  if (found.isDirectory()) {
    await chmod(path, 0o755);
    for (const name of await readdir(path)) await makeReadable(join(path, name));
  } else if (found.isFile()) {
    await chmod(path, found.mode & 0o100 ? 0o755 : 0o644);
  }
}
