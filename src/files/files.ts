/** Where the service keeps the files that it serves: a folder, or a bucket of an S3-compatible store. */
export interface Files {
  /**
   * Keeps a file. It is there as a whole or not at all; one of the same name is replaced.
   * @throws DomainError FILES_UNAVAILABLE when the store does not answer.
   */
  put(name: string, bytes: Uint8Array, contentType: string): Promise<void>;
  /**
   * The file's bytes, or undefined when there is none of that name.
   * @throws DomainError FILES_UNAVAILABLE when the store does not answer.
   */
  get(name: string): Promise<Uint8Array | undefined>;
  /**
   * Removes a file, and what a `put` that was cut off left of it. Nothing happens when there is none.
   * @throws DomainError FILES_UNAVAILABLE when the store does not answer.
   */
  delete(name: string): Promise<void>;
}

/** The largest file that is kept or read, bytes. What we keep is made by ourselves and far smaller. */
export const MAX_FILE_BYTES = 4 * 1024 * 1024;

const FILE_NAME = /^[0-9a-z]{16,64}\.[0-9a-z]{1,8}$/;

/** Whether a name is one that files can have: no path, no separator, nothing that a file system takes for special. */
export function isFileName(name: string): boolean {
  return FILE_NAME.test(name);
}

/** @throws Error when the name or the size is not what files may have: a fault of the calling code. */
export function checkFile(name: string, sizeBytes = 0): void {
  if (!isFileName(name)) throw new Error(`not a name of a kept file: ${JSON.stringify(name.slice(0, 100))}`);
  if (sizeBytes > MAX_FILE_BYTES) throw new Error(`a file may have ${MAX_FILE_BYTES} bytes, not ${sizeBytes}`);
}
