import process from "node:process";

/** Why the process is asked to stop: a signal, or the process that started it is gone. */
export type StopReason = "SIGINT" | "SIGTERM" | "SIGHUP" | "parent gone";

const stopSignals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** One Ctrl-C arrives from the terminal and again from every process in between that passes it on. */
const echoWindowMs = 1_000;

/**
 * Calls `stop` when the process is asked to end: by SIGINT, SIGTERM or SIGHUP, or because scripts/run.mjs, which
 * started it, is gone (even by SIGKILL), so that no server stays behind that nobody watches.
 *
 * What comes within a second of the last request is taken for its echo and dropped. A later request calls `stop`
 * again, with `times` 2 or more: somebody is losing patience.
 *
 * @returns a function that gives the signals their default meaning back
 */
export function onStopRequest(stop: (reason: StopReason, times: number) => void): () => void {
  let times = 0;
  let lastMs = Number.NEGATIVE_INFINITY;
  const request = (reason: StopReason): void => {
    const nowMs = performance.now();
    if (nowMs - lastMs < echoWindowMs) return;
    lastMs = nowMs;
    times += 1;
    stop(reason, times);
  };
  const onDisconnect = (): void => request("parent gone");
  for (const signal of stopSignals) process.on(signal, request);
  process.on("disconnect", onDisconnect);
  if (process.connected === false) queueMicrotask(onDisconnect);
  // Listening must not keep a process alive whose work is done.
  process.channel?.unref();
  return () => {
    for (const signal of stopSignals) process.off(signal, request);
    process.off("disconnect", onDisconnect);
  };
}
