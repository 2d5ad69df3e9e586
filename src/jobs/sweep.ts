import type { Logger } from "pino";

interface SweepOptions {
  /** For the log. */
  readonly name: string;
  /** Pause between two runs, milliseconds. */
  readonly intervalMs: number;
  /** Does a bounded piece of work; true: more is waiting, so go on at once. */
  readonly run: () => Promise<boolean>;
  readonly log: Logger;
}

/** Work that is done again and again until it is stopped. */
export interface Sweep {
  /** Resolves when the run under way has ended. */
  stop(): Promise<void>;
}

/**
 * Looks again and again for what is due. What must happen in time is found so and not by a job: the job of a worker that
 * was killed stays locked for hours, whereas rows that are due are seen by the next run of any replica. One run at a
 * time; one that fails is logged, and tried again after the usual pause.
 */
export function startSweep({ name, intervalMs, run, log }: SweepOptions): Sweep {
  let stopped = false;
  let failing = false;
  let timer: NodeJS.Timeout | undefined;
  let running = Promise.resolve();

  const sweep = async (): Promise<void> => {
    let more = false;
    try {
      more = await run();
      if (failing) log.info({ sweep: name }, "sweep works again");
      failing = false;
    } catch (error) {
      // An outage is one line, however often it is tried.
      if (!stopped) log[failing ? "debug" : "error"]({ err: error, sweep: name }, "sweep failed");
      failing = true;
    }
    if (!stopped) schedule(more ? 0 : intervalMs);
  };
  const schedule = (delayMs: number): void => {
    timer = setTimeout(() => {
      running = sweep();
    }, delayMs);
  };
  schedule(0);

  return {
    stop() {
      stopped = true;
      clearTimeout(timer);
      return running;
    },
  };
}
