import type { Logger } from "pino";
import { databaseUnavailable } from "../db/database.ts";
import type { Listener } from "../db/listen.ts";
import type { Clock } from "../deps.ts";
import { within } from "../time-limit.ts";
import { REVOCATION_CHANNEL, type Revocation, type RevocationsRead, type SessionStore } from "./session-store.ts";
import { ACCESS_TOKEN_LIFETIME_MS, CLOCK_TOLERANCE_MS } from "./token-lifetimes.ts";

/** A revocation is of use until the last token that it may concern has expired. */
const KEEP_MS = ACCESS_TOKEN_LIFETIME_MS + CLOCK_TOLERANCE_MS;
/** Notifications come at once; this is for those that were lost. */
const POLL_INTERVAL_MS = 500;
/** What was read longer ago is not good enough to let a token pass. */
const FRESH_MS = 1_000;
/** The pool's connections have longer timeouts than anybody should wait for here. */
const POOL_ANSWER_TIMEOUT_MS = 1_500;
/** Some 30 MB. Beyond that, tokens are checked by their sessions. */
const MAX_ENTRIES = 200_000;
/** Expired entries are looked for when the map has grown by so many. */
const SWEEP_EVERY = 1_000;

interface Entry {
  /** Infinity: every token of the session is refused. */
  readonly minGeneration: number;
  readonly forgetAtMs: number;
}

interface Parts {
  readonly store: SessionStore;
  readonly listener: Listener;
  readonly clock: Clock;
  readonly log: Logger;
  readonly maxEntries?: number;
}

/**
 * Knows which access tokens are refused before they expire, without asking the database for each: what other replicas
 * revoke is read when they say so, and twice a second in case that was not heard. Where nothing could be read for a
 * second no token passes before it can be.
 */
export class Revocations {
  readonly #parts: Parts;
  readonly #maxEntries: number;
  /** In the order in which they were read, so that the oldest are first. */
  readonly #entries = new Map<string, Entry>();
  #horizon = 0n;
  /** Where the next reading begins. */
  #from = 0n;
  /** By the monotonic clock: everything that was committed before then is known. */
  #freshAsOfMs = Number.NEGATIVE_INFINITY;
  /** Until then there are revocations for which there was no room. */
  #askUntilMs = Number.NEGATIVE_INFINITY;
  #grown = 0;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #poolRead: Promise<RevocationsRead> | undefined;
  #poll: NodeJS.Timeout | undefined;
  #unlisten: () => void = () => {};

  constructor(parts: Parts) {
    this.#parts = parts;
    this.#maxEntries = parts.maxEntries ?? MAX_ENTRIES;
  }

  /** Reads what is in force. @throws Error when the database cannot be read. */
  async start(): Promise<void> {
    this.#unlisten = this.#parts.listener.listen(REVOCATION_CHANNEL, () => void this.catchUp());
    await this.#read();
    this.#poll = setInterval(() => void this.catchUp(), POLL_INTERVAL_MS).unref();
  }

  close(): void {
    clearInterval(this.#poll);
    this.#unlisten();
  }

  /**
   * Resolves once everything is known that was committed before the call. Where it cannot be read it resolves too: no
   * token passes then until it can be.
   */
  async catchUp(): Promise<void> {
    try {
      await this.#read();
    } catch (error) {
      this.#freshAsOfMs = Number.NEGATIVE_INFINITY;
      this.#parts.log.debug({ err: error }, "revocations cannot be read");
    }
  }

  /**
   * Whether an access token of that session and generation is refused. A promise only where the answer needs the
   * database.
   * @throws DomainError DATABASE_UNAVAILABLE, by the promise, when it needs the database in vain.
   */
  refuses(sessionId: string, generation: number): boolean | Promise<boolean> {
    const fresh = performance.now() - this.#freshAsOfMs < FRESH_MS;
    return fresh ? this.#refuses(sessionId, generation) : this.#refusesAfterReading(sessionId, generation);
  }

  async #refusesAfterReading(sessionId: string, generation: number): Promise<boolean> {
    await this.#read();
    return this.#refuses(sessionId, generation);
  }

  #refuses(sessionId: string, generation: number): boolean | Promise<boolean> {
    const entry = this.#entries.get(sessionId);
    if (entry !== undefined && generation < entry.minGeneration) return true;
    if (this.#askUntilMs <= this.#nowMs()) return false;
    return this.#parts.store.accepts(sessionId, generation).then((accepted) => !accepted);
  }

  /** Calls at the same time share a reading that begins after all of them: one that runs may have looked too early. */
  #read(): Promise<void> {
    if (this.#next !== undefined) return this.#next;
    if (this.#running === undefined) return this.#run();
    const again = () => {
      this.#next = undefined;
      return this.#run();
    };
    this.#next = this.#running.then(again, again);
    return this.#next;
  }

  #run(): Promise<void> {
    this.#running = this.#readNow().finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #readNow(): Promise<void> {
    const startedAtMs = performance.now();
    let read = this.#horizon === 0n ? await this.#byPool() : await this.#readNews();
    // Numbers that go back are another server's, which took the place of the one that we knew.
    if (read.horizon < this.#horizon) {
      this.#from = 0n;
      read = await this.#byPool();
    }
    for (const revocation of read.revocations) this.#note(revocation);
    if (read.revocations.length > this.#maxEntries) this.#askForAll();
    this.#horizon = read.horizon;
    if (read.newest > this.#from) this.#from = read.newest;
    this.#freshAsOfMs = startedAtMs;
  }

  /** By the connection that listens, so that a pool whose connections are all busy delays nobody; by the pool without. */
  async #readNews(): Promise<RevocationsRead> {
    const { store, listener } = this.#parts;
    try {
      return await store.readRevocations(this.#from, this.#since(), this.#maxEntries + 1, listener);
    } catch {
      return this.#byPool();
    }
  }

  #since(): Date {
    return new Date(this.#nowMs() - KEEP_MS);
  }

  /** One reading by the pool at a time, also when it hangs: each takes a connection. */
  async #byPool(): Promise<RevocationsRead> {
    if (this.#poolRead !== undefined) throw databaseUnavailable(new Error("a reading by the pool still hangs"));
    const reading = this.#parts.store.readRevocations(this.#from, this.#since(), this.#maxEntries + 1);
    this.#poolRead = reading;
    const end = () => {
      this.#poolRead = undefined;
    };
    reading.then(end, end);
    return within(reading, POOL_ANSWER_TIMEOUT_MS).catch((error: unknown) => {
      throw databaseUnavailable(error);
    });
  }

  #note({ sessionId, minGeneration }: Revocation): void {
    const known = this.#entries.get(sessionId);
    const entry = {
      minGeneration: Math.max(minGeneration ?? Number.POSITIVE_INFINITY, known?.minGeneration ?? 0),
      forgetAtMs: this.#nowMs() + KEEP_MS,
    };
    // Transactions of the last moment are read again and again: only news may put an entry's end off.
    if (known?.minGeneration === entry.minGeneration) return;
    this.#entries.delete(sessionId);
    if (this.#grown++ % SWEEP_EVERY === 0 || this.#entries.size >= this.#maxEntries) this.#forgetOld();
    if (this.#entries.size >= this.#maxEntries) this.#askForAll();
    else this.#entries.set(sessionId, entry);
  }

  #forgetOld(): void {
    const nowMs = this.#nowMs();
    for (const [sessionId, { forgetAtMs }] of this.#entries) {
      if (forgetAtMs > nowMs) return;
      this.#entries.delete(sessionId);
    }
  }

  #askForAll(): void {
    this.#askUntilMs = this.#nowMs() + KEEP_MS;
  }

  #nowMs(): number {
    return this.#parts.clock.now().getTime();
  }
}
