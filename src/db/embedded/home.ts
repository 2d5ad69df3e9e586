import { chmod } from "node:fs/promises";
import { join } from "node:path";
import type { EmbeddedOptions } from "../embedded.ts";
import type { Binaries } from "./binaries.ts";
import { EmbeddedPostgresError } from "./error.ts";
import { statIfPresent } from "./files.ts";
import { commandAs, giveData, type Identity, ownIdentity, unprivilegedAccount } from "./identity.ts";
import { clearLeftovers } from "./leftovers.ts";
import { lastLines, type Outcome, run } from "./program.ts";
import { copyBinaries, findBase, finishRelocation, relocateData } from "./relocation.ts";

const PROBE_TIMEOUT_MS = 15_000;
const RELOCATION_ROOT = "/var/lib/tradepost";

/** Everything that depends on whom PostgreSQL runs as. */
export interface Home {
  readonly identity: Identity;
  /** The folder that holds `data` and, while it is being made, its unfinished form. */
  readonly base: string;
  readonly data: string;
  readonly binaries: Binaries;
  /** The major version of the binaries: "18". */
  readonly version: string;
}

/**
 * Finds out as whom and where PostgreSQL can run on the data of `folder`, when nothing uses them any more, and gives them
 * to that identity.
 *
 * @throws EmbeddedPostgresError if it cannot run, or if the data are somebody else's
 */
export async function chooseHome(folder: string, binaries: Binaries, options: EmbeddedOptions): Promise<Home> {
  const base = await findBase(folder);
  const isRoot = process.getuid?.() === 0;
  if (!isRoot) await refuseForeignData(base);
  // Before anything changes owners or moves, nobody may be using it.
  await clearLeftovers(join(folder, "data"), options.log);
  if (base !== folder) await clearLeftovers(join(base, "data"), options.log);
  await finishRelocation(folder, base);
  return isRoot ? homeForRoot(folder, base, binaries, options) : homeOfOurs(base, binaries);
}

async function refuseForeignData(base: string): Promise<void> {
  const data = join(base, "data");
  const uid = process.getuid?.();
  const owner = (await statIfPresent(data))?.uid;
  if (owner === undefined || owner === uid) return;
  throw new EmbeddedPostgresError(
    `The PostgreSQL data in ${data} belong to uid ${owner}, and this is uid ${uid}. ` +
      `Start Tradepost as their owner, or give them away: sudo chown -R ${uid} ${base}`,
  );
}

async function homeOfOurs(base: string, binaries: Binaries): Promise<Home> {
  const home = await tryHome(ownIdentity(), base, binaries);
  if (typeof home !== "string") return home;
  throw new EmbeddedPostgresError(
    `PostgreSQL (${binaries.postgres}) does not run on this machine: ${home}. ` +
      "On Linux it needs the GNU C library. Set DATABASE_URL to use a PostgreSQL of your own.",
  );
}

/** PostgreSQL refuses to be root, so root runs it in a namespace, or as an account, elsewhere if it must be. */
async function homeForRoot(folder: string, base: string, binaries: Binaries, options: EmbeddedOptions): Promise<Home> {
  const account = await unprivilegedAccount();
  const refusals: string[] = [];
  if (process.platform === "linux" && options.asRoot !== "account") {
    const home = await tryHome({ kind: "namespace", ...account }, base, binaries);
    if (typeof home !== "string") return home;
    refusals.push(`in a user namespace: ${home}`);
  }
  // Where not even we can run it, no other account and no other place would help.
  await homeOfOurs(base, binaries);
  if (options.asRoot !== "namespace") {
    const identity: Identity = { kind: "account", ...account };
    await chmod(base, 0o711);
    const home = await tryHome(identity, base, binaries);
    if (typeof home !== "string") return home;
    refusals.push(`as uid ${account.uid}: ${home}`);
    const moved = await moveWithinReach(identity, folder, base, binaries, options);
    const second = await tryHome(identity, moved.base, moved.binaries);
    if (typeof second !== "string") return second;
    refusals.push(`as uid ${account.uid} from ${moved.base}: ${second}`);
  }
  throw new EmbeddedPostgresError(
    `PostgreSQL does not run as root, and it could not be run otherwise (${refusals.join("; ")}). ` +
      "Start Tradepost as an ordinary user, or set DATABASE_URL to a PostgreSQL of your own.",
  );
}

/** The home of an identity that can enter the folder and run PostgreSQL there; otherwise what stands against it. */
async function tryHome(identity: Identity, base: string, binaries: Binaries): Promise<Home | string> {
  const { ok, output } = await probe(identity, base, binaries);
  if (!ok) return lastLines(output);
  const data = join(base, "data");
  await giveData(data, identity);
  return { identity, base, data, binaries, version: /\) (\d+)/.exec(output)?.[1] ?? "" };
}

/** Tries whether an identity can enter a folder and run PostgreSQL, which then tells its version. */
async function probe(identity: Identity, folder: string, binaries: Binaries): Promise<Outcome> {
  const args = ["-c", 'cd "$1" && exec "$2" -V', "sh", folder, binaries.postgres];
  return run(commandAs(identity, "/bin/sh", args), { timeoutMs: PROBE_TIMEOUT_MS });
}

/** Moves the data, and copies the binaries if need be, to where the account can reach them. Says so in one line. */
async function moveWithinReach(
  identity: Identity,
  folder: string,
  base: string,
  binaries: Binaries,
  { log, relocationRoot = RELOCATION_ROOT }: EmbeddedOptions,
): Promise<{ base: string; binaries: Binaries }> {
  const home = base === folder ? await relocateData(folder, relocationRoot) : base;
  log.warn(
    { folder, home },
    `PostgreSQL may not run as root and uid ${identity.uid} cannot reach ${folder}, so its data are in ${home}`,
  );
  const reachable = (await probe(identity, "/", binaries)).ok;
  return { base: home, binaries: reachable ? binaries : await copyBinaries(binaries, home) };
}
