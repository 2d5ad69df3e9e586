import type { Logger } from "pino";
import type { Listener } from "../db/listen.ts";
import { DomainError } from "../errors.ts";
import type { Order } from "./order.ts";
import { isAfter, type OrderChange, type OrderStore, type Position } from "./store.ts";

const CHANNEL = "order_events";
/** Commits of this long share one notification: each NOTIFY makes commits wait for one another. */
const ANNOUNCE_PAUSE_MS = 100;
/** How often is looked without being woken, while somebody watches: notifications can be lost. */
const POLL_MS = 1_000;
const PAGE = 500;
/** Changes that wait for one reader. One more, and it is told to resume. */
const MAX_WAITING = 1_000;
const MAX_WATCHERS = 1_000;
/** A reader who saw nothing for so long gets a message that only moves its cursor. */
const SIGN_OF_LIFE_MS = 30_000;
const RETRY_AFTER_MS = 1_000;

/** What a watcher is told. Without an order only its position moved. */
export interface FeedMessage {
  readonly order: Order | undefined;
  readonly position: Position;
}

interface Watcher {
  readonly customerId: string | undefined;
  readonly queue: FeedMessage[];
  /** Why it ends, once it does. */
  ended: DomainError | undefined;
  wake: () => void;
}

/**
 * Tells watchers of changes of orders, each once and in one order, from one read for all of them. Changes are read by
 * transaction: only those of transactions before the oldest one that still runs, so that none can appear later before
 * what was read. A reader's position is all there is to resume from, on any replica.
 */
export class OrderFeed {
  readonly #store: OrderStore;
  readonly #listener: Listener;
  readonly #log: Logger;
  readonly #watchers = new Set<Watcher>();
  #position: Position | undefined;
  #pumping: Promise<void> | undefined;
  #again = false;
  #poll: NodeJS.Timeout | undefined;
  #announcing: NodeJS.Timeout | undefined;
  #unlisten: () => void;
  #closed = false;

  constructor({ store, listener, log }: { store: OrderStore; listener: Listener; log: Logger }) {
    this.#store = store;
    this.#listener = listener;
    this.#log = log;
    this.#unlisten = listener.listen(CHANNEL, () => this.#pump());
  }

  /** Orders of this process have changed: wakes watchers here at once, and those of other replicas soon. */
  announce(): void {
    this.#pump();
    if (this.#announcing !== undefined || this.#closed) return;
    this.#announcing = setTimeout(() => {
      this.#announcing = undefined;
      // Lost where there is no connection at the moment; then the other replicas' polling finds the change.
      this.#listener.query({ name: "announce", text: `SELECT pg_notify('${CHANNEL}', '')` }, []).catch(() => {});
    }, ANNOUNCE_PAUSE_MS).unref();
  }

  /**
   * Changes after `after`, or from now on; of one customer's orders, or of all.
   * @throws DomainError STREAM_TOO_SLOW, SERVER_DRAINING, TOO_MANY_WATCHERS
   */
  async *watch(
    customerId: string | undefined,
    after: Position | undefined,
    signal: AbortSignal,
  ): AsyncGenerator<FeedMessage> {
    const found = this.#position ?? (await this.#store.feedPosition());
    // Meanwhile the server may have been told to stop, and another have begun and been told of what is before `found`.
    if (this.#closed) throw draining();
    if (this.#watchers.size >= MAX_WATCHERS) throw tooMany();
    this.#position ??= found;
    const watcher: Watcher = { customerId, queue: [], ended: undefined, wake: () => {} };
    const joined = this.#position;
    this.#watchers.add(watcher);
    const wake = () => watcher.wake();
    signal.addEventListener("abort", wake);
    this.#pump();
    try {
      // What happened before this watcher joined is read by itself, what happens since waits in its queue.
      if (after !== undefined) yield* this.#catchUp(watcher, after, joined, signal);
      yield* this.#follow(watcher, after ?? joined, signal);
    } finally {
      signal.removeEventListener("abort", wake);
      this.#watchers.delete(watcher);
      if (this.#watchers.size === 0) this.#rest();
    }
  }

  /** Ends every watch, so that a server that drains does not wait for them. */
  close(): void {
    this.#closed = true;
    this.#unlisten();
    clearTimeout(this.#announcing);
    for (const watcher of this.#watchers) end(watcher, draining());
    this.#rest();
  }

  async *#catchUp(
    { customerId }: Watcher,
    after: Position,
    upTo: Position,
    signal: AbortSignal,
  ): AsyncGenerator<FeedMessage> {
    let position = after;
    while (!signal.aborted && isAfter(upTo, position)) {
      const changes = await this.#store.readChanges(position, PAGE, customerId);
      const messages = await this.#toMessages(changes);
      for (const message of messages) {
        if (isAfter(message.position, upTo)) return;
        yield message;
      }
      const last = messages.at(-1);
      if (last === undefined || changes.length < PAGE) return;
      position = last.position;
    }
  }

  async *#follow(watcher: Watcher, after: Position, signal: AbortSignal): AsyncGenerator<FeedMessage> {
    let position = after;
    while (!signal.aborted) {
      const message = watcher.queue.shift();
      if (message !== undefined) {
        // A reader may be ahead of this replica's own reading, where another replica was quicker.
        if (!isAfter(message.position, position)) continue;
        position = message.position;
        yield message;
      } else if (watcher.ended !== undefined) {
        throw watcher.ended;
      } else if (!(await this.#woken(watcher, signal)) && this.#position !== undefined) {
        if (isAfter(this.#position, position)) position = this.#position;
        yield { order: undefined, position };
      }
    }
  }

  /** Waits until something is there to do; false: nothing was for a long time. */
  #woken(watcher: Watcher, signal: AbortSignal): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), SIGN_OF_LIFE_MS);
      watcher.wake = () => {
        clearTimeout(timer);
        resolve(true);
      };
      if (watcher.queue.length > 0 || watcher.ended !== undefined || signal.aborted) watcher.wake();
    });
  }

  /** Reads on, unless a reading is under way: then that one looks once more. */
  #pump(): void {
    if (this.#watchers.size === 0 || this.#closed) return;
    this.#again = true;
    this.#pumping ??= this.#read().finally(() => {
      this.#pumping = undefined;
      this.#pollLater();
      if (this.#again) this.#pump();
    });
  }

  async #read(): Promise<void> {
    try {
      while (this.#again && this.#position !== undefined && !this.#closed) {
        this.#again = false;
        const changes = await this.#store.readChanges(this.#position, PAGE, undefined);
        const messages = await this.#toMessages(changes);
        for (const message of messages) this.#tell(message);
        this.#position = messages.at(-1)?.position ?? this.#position;
        if (changes.length === PAGE) this.#again = true;
      }
    } catch (error) {
      this.#again = false;
      this.#log.warn({ err: error }, "changes of orders cannot be read at the moment");
    }
  }

  #tell(message: FeedMessage): void {
    for (const watcher of this.#watchers) {
      if (watcher.customerId !== undefined && watcher.customerId !== message.order?.customerId) continue;
      if (watcher.ended !== undefined) continue;
      if (watcher.queue.length >= MAX_WAITING) {
        // What waits is given up: the reader resumes after what it has read.
        watcher.queue.length = 0;
        end(watcher, tooSlow());
        continue;
      }
      watcher.queue.push(message);
      watcher.wake();
    }
  }

  async #toMessages(changes: readonly OrderChange[]): Promise<FeedMessage[]> {
    if (changes.length === 0) return [];
    const orders = await this.#store.findOrders(changes.map(({ orderId }) => orderId));
    return changes.map(({ position }, i) => ({ order: orders[i], position }));
  }

  #pollLater(): void {
    clearTimeout(this.#poll);
    if (this.#watchers.size === 0 || this.#closed) return;
    this.#poll = setTimeout(() => this.#pump(), POLL_MS).unref();
  }

  /** Nobody watches: nothing is read, and the next one to come begins at the present. */
  #rest(): void {
    clearTimeout(this.#poll);
    this.#position = undefined;
  }
}

function end(watcher: Watcher, why: DomainError): void {
  watcher.ended = why;
  watcher.wake();
}

function tooSlow(): DomainError {
  const message = `More than ${MAX_WAITING} changes waited to be read; resume with the last cursor`;
  return new DomainError("exhausted", "STREAM_TOO_SLOW", message, { retryAfterMs: RETRY_AFTER_MS });
}

function draining(): DomainError {
  const message = "The server is stopping; resume with the last cursor";
  return new DomainError("unavailable", "SERVER_DRAINING", message, { retryAfterMs: RETRY_AFTER_MS });
}

function tooMany(): DomainError {
  const message = `At most ${MAX_WATCHERS} calls may watch one server at once; try again shortly`;
  return new DomainError("exhausted", "TOO_MANY_WATCHERS", message, { retryAfterMs: RETRY_AFTER_MS });
}
