import { readdirSync, readFileSync } from "node:fs";

/** What the kernel counts processor time in, milliseconds. */
const TICK_MS = 10;

interface Times {
  readonly parent: number;
  readonly ownMs: number;
  /** Of children that have ended. */
  readonly endedMs: number;
}

/** Processor time that a process has used so far, milliseconds. Linux only: NaN elsewhere. */
export function cpuOf(pid: number): number {
  return timesOf(pid)?.ownMs ?? Number.NaN;
}

/** Processor time of the children of a process that have ended, milliseconds. Linux only: NaN elsewhere. */
export function cpuOfEndedChildren(pid: number): number {
  return timesOf(pid)?.endedMs ?? Number.NaN;
}

/** The same for a process and all of its children, those that have ended included. */
export function cpuOfFamily(pid: number): number {
  for (;;) {
    const before = timesOf(pid);
    if (before === undefined) return Number.NaN;
    const all = readdirSync("/proc").flatMap((name) => (/^\d+$/.test(name) ? (timesOf(Number(name)) ?? []) : []));
    const childrenMs = all.filter(({ parent }) => parent === pid).reduce((sum, { ownMs }) => sum + ownMs, 0);
    const after = timesOf(pid);
    // A child that ended meanwhile may have been counted twice or not at all.
    if (after?.endedMs === before.endedMs) return after.ownMs + after.endedMs + childrenMs;
  }
}

function timesOf(pid: number): Times | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined;
  }
  // The name before the last bracket may hold anything; after it: state, parent, … user and system time, own and children's.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const at = (index: number) => Number(fields[index]);
  return { parent: at(1), ownMs: (at(11) + at(12)) * TICK_MS, endedMs: (at(13) + at(14)) * TICK_MS };
}
