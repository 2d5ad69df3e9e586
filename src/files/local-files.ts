import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { checkFile, type Files } from "./files.ts";

/** Files in a folder of this machine, which is made with the first of them. Replicas on other machines do not see them. */
export class LocalFiles implements Files {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  async put(name: string, bytes: Uint8Array): Promise<void> {
    checkFile(name, bytes.byteLength);
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    const draft = this.#draft(name);
    await writeDurably(draft, bytes);
    await rename(draft, this.#path(name));
    await this.#syncFolder();
  }

  async get(name: string): Promise<Uint8Array | undefined> {
    checkFile(name);
    try {
      return await readFile(this.#path(name));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw error;
    }
  }

  async delete(name: string): Promise<void> {
    checkFile(name);
    await rm(this.#draft(name), { force: true });
    await rm(this.#path(name), { force: true });
  }

  #path(name: string): string {
    return join(this.#folder, name);
  }

  #draft(name: string): string {
    return join(this.#folder, `${name}.part`);
  }

  /** Makes the new name survive a power cut: whoever puts a file goes on to tell the database of it. */
  async #syncFolder(): Promise<void> {
    const folder = await open(this.#folder, "r");
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
  }
}

async function writeDurably(path: string, bytes: Uint8Array): Promise<void> {
  const file = await open(path, "w", 0o600);
  try {
    await file.writeFile(bytes);
    await file.sync();
  } finally {
    await file.close();
  }
}
