import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ConfigError } from "./config.ts";
import { sentenceOf } from "./faults.ts";
import { claimInstance, type InstanceClaim, InstanceRunningError } from "./instance.ts";

/**
 * Makes the data folder where it is missing.
 * @throws ConfigError naming DATA_DIR when nothing can be written there.
 */
export function prepareDataDir(dataDir: string): void {
  try {
    // The account that root hands the embedded PostgreSQL to has to pass through, but nobody needs to look around.
    mkdirSync(dataDir, { recursive: true, mode: 0o711 });
    const trial = join(dataDir, `trial-${process.pid}`);
    writeFileSync(trial, "");
    rmSync(trial);
  } catch (error) {
    throw unusable(dataDir, error);
  }
}

/**
 * Claims the data folder and its database for this process; `url` is what others are told of it.
 * @throws InstanceRunningError when a live process has it, ConfigError naming DATA_DIR when it cannot be claimed.
 */
export async function claimDataDir(dataDir: string, url: string): Promise<InstanceClaim> {
  try {
    return await claimInstance(dataDir, { url });
  } catch (error) {
    throw error instanceof InstanceRunningError ? error : unusable(dataDir, error);
  }
}

function unusable(dataDir: string, cause: unknown): ConfigError {
  const advice = "Make it a folder that this user can write to, or set DATA_DIR to another one.";
  return new ConfigError(`DATA_DIR: ${dataDir} cannot be used: ${sentenceOf(cause)}. ${advice}`, { cause });
}
