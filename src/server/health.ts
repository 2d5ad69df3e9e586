import { Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import type { Logger } from "pino";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { HealthCheckResponse_ServingStatus, type Health as HealthService } from "../../gen/grpc/health/v1/health_pb.js";

const { SERVING, NOT_SERVING, SERVICE_UNKNOWN } = HealthCheckResponse_ServingStatus;

/** How long a result of the probe is good for, and the pause between probes while somebody watches. */
const defaultFreshMs = 1_000;
/** How long the probe may take before the database counts as away. */
const defaultProbeTimeoutMs = 1_000;
/** How long to leave a probe alone that ignores its deadline, before another is started beside it. */
const defaultStuckProbeMs = 10_000;
/** How many Watch calls may be open at once. */
const defaultMaxWatchers = 1_000;
/** How long one Watch call may last. It then ends with OK, and its client calls again, as the protocol tells it to. */
const defaultMaxWatchMs = 3_600_000;

/** How much of a service name that is not known is repeated in the error. */
const maxEchoedChars = 200;

/** What {@link createHealth} needs. */
export interface HealthOptions {
  /** Full names of the services that can be asked about. The server as a whole, "", is always one of them. */
  readonly services: readonly string[];
  /**
   * Resolves when the database answers and rejects when it does not. It is called once at a time, at most about twice
   * a second. The signal is aborted when its time is up: the probe should then let go of what it holds.
   */
  readonly probe: (signal: AbortSignal) => Promise<unknown>;
  /** Where changes of the database's health are logged. */
  readonly log: Logger;
  /** Age up to which a result of the probe is used again, and the pause between probes while somebody watches. */
  readonly freshMs?: number;
  /** Time that one probe may take. */
  readonly probeTimeoutMs?: number;
  /** Age at which a probe that ignores its deadline is given up, so that another one may start beside it. */
  readonly stuckProbeMs?: number;
  /** Number of open Watch calls beyond which another is refused with RESOURCE_EXHAUSTED. */
  readonly maxWatchers?: number;
  /** Time after which a Watch call is ended. */
  readonly maxWatchMs?: number;
}

/** The health of this server: whether the database answers and new calls are welcome. */
export interface Health {
  /** Implements grpc.health.v1.Health for connect's router. */
  readonly service: ServiceImpl<typeof HealthService>;
  /** Whether the database has answered lately and the server is not draining. Never rejects; takes one probe at most. */
  check(): Promise<boolean>;
  /**
   * From now on everything is NOT_SERVING: whoever watches is told so, and their calls end. Call it before the calls
   * under way are aborted, or nobody hears of it. Cannot be undone.
   */
  setDraining(): void;
  /** Drains, and gives up the probe under way. */
  close(): void;
}

/** Makes the health service. It sends no probe and keeps no timer until somebody asks. */
export function createHealth(options: HealthOptions): Health {
  const known = new Set(["", ...options.services]);
  const database = new DatabaseProbe(options, () => watchers.wakeAll());
  const watchers = new Watchers(options, () => database.refresh());
  let draining = false;

  const status = () => (!draining && database.up ? SERVING : NOT_SERVING);

  async function refreshedStatus() {
    if (!draining) await database.refresh();
    return status();
  }

  async function* watchKnown(watcher: Watcher) {
    let told = await refreshedStatus();
    yield { status: told };
    while (!watcher.ended) {
      if (status() !== told) {
        told = status();
        yield { status: told };
      } else if (draining) {
        return;
      } else {
        await watcher.woken();
      }
    }
  }

  async function* watchUnknown(watcher: Watcher) {
    yield { status: SERVICE_UNKNOWN };
    while (!watcher.ended && !draining) await watcher.woken();
  }

  function setDraining() {
    draining = true;
    watchers.wakeAll();
  }

  return {
    service: {
      async check({ service }) {
        if (!known.has(service)) throw unknownService(service);
        return { status: await refreshedStatus() };
      },
      async list() {
        const current = { status: await refreshedStatus() };
        return { statuses: Object.fromEntries([...known].map((service) => [service, current])) };
      },
      async *watch({ service }, context) {
        const watcher = watchers.add(context);
        try {
          yield* known.has(service) ? watchKnown(watcher) : watchUnknown(watcher);
        } finally {
          watchers.remove(watcher);
        }
        // A call that ends because its deadline has passed must not look like one that ended well.
        if (context.signal.reason instanceof ConnectError) throw context.signal.reason;
      },
    },
    check: async () => (await refreshedStatus()) === SERVING,
    setDraining,
    close() {
      setDraining();
      database.close();
    },
  };
}

/** Remembers whether the database answers, and asks it again when that is not fresh. */
class DatabaseProbe {
  readonly #options: HealthOptions;
  readonly #onChange: () => void;
  #closed = false;
  #up: boolean | undefined;
  #checkedAtMs = Number.NEGATIVE_INFINITY;
  #refreshing: Promise<void> | undefined;
  /** The latest probe for as long as it has not settled, which may be long after its deadline. */
  #unsettled: { readonly startedAtMs: number; readonly controller: AbortController } | undefined;

  constructor(options: HealthOptions, onChange: () => void) {
    this.#options = options;
    this.#onChange = onChange;
  }

  get up(): boolean {
    return this.#up === true;
  }

  /** Resolves once {@link up} is fresh. Callers at the same time share one probe. */
  refresh(): Promise<void> {
    const { freshMs = defaultFreshMs, stuckProbeMs = defaultStuckProbeMs } = this.#options;
    if (this.#refreshing !== undefined) return this.#refreshing;
    const nowMs = performance.now();
    const fresh = nowMs - this.#checkedAtMs < freshMs;
    // A probe that hangs holds a connection. Sending one more after it every second would take the whole pool.
    const stuck = this.#unsettled !== undefined && nowMs - this.#unsettled.startedAtMs < stuckProbeMs;
    if (fresh || stuck || this.#closed) return Promise.resolve();
    this.#refreshing = this.#probe(nowMs).finally(() => {
      this.#refreshing = undefined;
    });
    return this.#refreshing;
  }

  close(): void {
    this.#closed = true;
    this.#unsettled?.controller.abort(new Error("the server is closing"));
  }

  async #probe(startedAtMs: number): Promise<void> {
    const { probe, probeTimeoutMs = defaultProbeTimeoutMs } = this.#options;
    const controller = new AbortController();
    const { signal } = controller;
    const timer = setTimeout(() => {
      controller.abort(new Error(`the database has not answered within ${probeTimeoutMs} ms`));
    }, probeTimeoutMs);
    const attempt = { startedAtMs, controller };
    this.#unsettled = attempt;
    const answer = (async () => probe(signal))().finally(() => {
      if (this.#unsettled !== attempt) return;
      this.#unsettled = undefined;
      // Whatever a late answer says, the next question deserves a new probe.
      if (signal.aborted) this.#checkedAtMs = Number.NEGATIVE_INFINITY;
    });
    try {
      await Promise.race([answer, rejection(signal)]);
      this.#conclude(true);
    } catch (err) {
      this.#conclude(false, err);
    } finally {
      clearTimeout(timer);
    }
  }

  #conclude(up: boolean, err?: unknown): void {
    const before = this.#up;
    this.#up = up;
    this.#checkedAtMs = performance.now();
    if (up === before || this.#closed) return;
    if (up) this.#options.log.info("the database answers: health is SERVING");
    else this.#options.log.warn({ err }, "the database does not answer: health is NOT_SERVING");
    this.#onChange();
  }
}

/** One Watch call. */
class Watcher {
  ended = false;
  #resolve: (() => void) | undefined;

  /** Resolves at the next {@link wake} or {@link end}. */
  woken(): Promise<void> {
    return new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  wake(): void {
    this.#resolve?.();
  }

  end(): void {
    this.ended = true;
    this.wake();
  }
}

/**
 * The Watch calls that are open, and the timer that looks after the database for them. Nothing is queued: a watcher
 * that is woken looks at the state as it is, so a slow reader misses what has passed, and costs no memory.
 */
class Watchers {
  readonly #options: HealthOptions;
  readonly #refresh: () => Promise<void>;
  readonly #open = new Map<Watcher, () => void>();
  #timer: NodeJS.Timeout | undefined;

  constructor(options: HealthOptions, refresh: () => Promise<void>) {
    this.#options = options;
    this.#refresh = refresh;
  }

  /** Throws RESOURCE_EXHAUSTED when there are as many as allowed. Every watcher added must be removed. */
  add({ signal }: Pick<HandlerContext, "signal">): Watcher {
    const { maxWatchers = defaultMaxWatchers, maxWatchMs = defaultMaxWatchMs } = this.#options;
    if (this.#open.size >= maxWatchers) throw tooManyWatchers(maxWatchers);
    const watcher = new Watcher();
    const end = () => watcher.end();
    const timer = setTimeout(end, maxWatchMs).unref();
    signal.addEventListener("abort", end, { once: true });
    if (signal.aborted) watcher.end();
    this.#open.set(watcher, () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
    });
    this.#timer ??= this.#nextPoll();
    return watcher;
  }

  remove(watcher: Watcher): void {
    this.#open.get(watcher)?.();
    this.#open.delete(watcher);
    if (this.#open.size > 0) return;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  wakeAll(): void {
    for (const watcher of this.#open.keys()) watcher.wake();
  }

  #nextPoll(): NodeJS.Timeout {
    const timer = setTimeout(
      async () => {
        await this.#refresh();
        // The last watcher may have left, and another may have come with a timer of its own.
        if (this.#timer === timer) this.#timer = this.#nextPoll();
        // A timer may fire a little early, when the last result would still count as fresh.
      },
      (this.#options.freshMs ?? defaultFreshMs) + 1,
    );
    return timer.unref();
  }
}

/** Rejects with the signal's reason once it is aborted. */
function rejection(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

function unknownService(asked: string): ConnectError {
  // What was asked for comes back in HTTP headers, which have a limit.
  const service = asked.slice(0, maxEchoedChars).toWellFormed();
  const value = { reason: "SERVICE_NOT_FOUND", domain: "tradepost", metadata: { service } };
  const detail = { desc: ErrorInfoSchema, value };
  return new ConnectError(`Service ${JSON.stringify(service)} is not served here`, Code.NotFound, undefined, [detail]);
}

function tooManyWatchers(maxWatchers: number): ConnectError {
  const value = { reason: "TOO_MANY_WATCHERS", domain: "tradepost", metadata: { max_watchers: String(maxWatchers) } };
  const message = `No more than ${maxWatchers} Watch calls may be open at once`;
  return new ConnectError(message, Code.ResourceExhausted, undefined, [{ desc: ErrorInfoSchema, value }]);
}
