import { lchown, lstat, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { EmbeddedPostgresError } from "./error.ts";
import { readIfPresent, statIfPresent, writeDurably } from "./files.ts";
import type { Command } from "./program.ts";

/**
 * Whom PostgreSQL's processes run as: as we do, in a user namespace where root looks like the account `uid` while its
 * files stay root's, or as that account.
 */
export interface Identity {
  readonly kind: "self" | "namespace" | "account";
  readonly uid: number;
  readonly gid: number;
}

/** The identity of this process. */
export function ownIdentity(): Identity {
  return { kind: "self", uid: process.getuid?.() ?? -1, gid: process.getgid?.() ?? -1 };
}

/** How a program is run as somebody. */
export function commandAs({ kind, uid, gid }: Identity, command: string, args: readonly string[]): Command {
  if (kind === "self") return { command, args };
  if (kind === "account") return { command, args, uid, gid };
  return { command: "unshare", args: ["--user", `--map-user=${uid}`, `--map-group=${gid}`, "--", command, ...args] };
}

/** An account without rights. It must stand in the passwd file: initdb looks its own name up. */
export async function unprivilegedAccount(): Promise<{ uid: number; gid: number }> {
  const accounts = (await readIfPresent("/etc/passwd"))
    ?.split("\n")
    .map((line) => line.split(":"))
    .map(([name, , uid, gid]) => ({ name, uid: Number(uid), gid: Number(gid) }))
    .filter(({ uid, gid }) => Number.isInteger(uid) && Number.isInteger(gid) && uid > 0 && gid > 0);
  const { uid, gid } = accounts?.find(({ name }) => name === "nobody") ?? accounts?.[0] ?? { uid: 65534, gid: 65534 };
  return { uid, gid };
}

/** Gives the data to those whom an identity's files belong to, unless they are theirs already. */
export async function giveData(data: string, identity: Identity): Promise<void> {
  if (identity.kind === "self") return;
  const { uid, gid } = identity.kind === "account" ? identity : { uid: 0, gid: 0 };
  const found = await statIfPresent(data);
  // A start that was killed half way leaves this mark, and the folder's own owner then says nothing about the rest.
  const mark = `${data}-changes-owner`;
  const isHalfDone = (await statIfPresent(mark)) !== undefined;
  if (found === undefined || (found.uid === uid && found.gid === gid && !isHalfDone)) return;
  await writeDurably(mark, "");
  await giveTree(data, uid, gid);
  await rm(mark);
}

/** Gives a folder away, itself last: until then its new owner cannot enter it and put other files into our way. */
export async function giveTree(path: string, uid: number, gid: number): Promise<void> {
  const found = await lstat(path);
  if (found.isDirectory()) {
    for (const name of await readdir(path)) await giveTree(join(path, name), uid, gid);
  }
  if (found.uid === uid && found.gid === gid) return;
  // A second name of a file may be a file that somebody else wants us, who are root, to give away.
  if (found.isFile() && found.nlink > 1) throw new EmbeddedPostgresError(`${path} has a second hard link. Remove one.`);
  await lchown(path, uid, gid);
}
