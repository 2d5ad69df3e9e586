import { hkdfSync, randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const KEY_BYTES = 32;
const FILE = "secret.key";

/**
 * The secret key of a service that was given none: made once and kept in the data folder, readable by its owner only.
 * @throws Error naming SECRET_KEY when the file is not such a key.
 */
export function keptSecretKey(dataDir: string): Buffer {
  const file = join(dataDir, FILE);
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  try {
    writeFileSync(file, `${randomBytes(KEY_BYTES).toString("base64")}\n`, { flag: "wx", mode: 0o600 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
  const key = Buffer.from(readFileSync(file, "utf8"), "base64");
  if (key.length !== KEY_BYTES)
    throw new Error(`${file} is not a key of ${KEY_BYTES} bytes: restore it or set SECRET_KEY`);
  return key;
}

/** A key for one purpose, so that no two uses share one. */
export function derivedKey(secretKey: Buffer, purpose: string): Buffer {
  return Buffer.from(hkdfSync("sha256", secretKey, "", `tradepost ${purpose}`, KEY_BYTES));
}
