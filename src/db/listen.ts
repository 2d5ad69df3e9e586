import { Socket } from "node:net";
import { Client } from "pg";
import type { Logger } from "pino";
import type { Statement } from "./database.ts";

const CONNECT_TIMEOUT_MS = 2_000;
/** A connection that was silent for so long is asked whether it lives. */
const HEARTBEAT_MS = 500;
/** An answer later than that counts as none: the connection is given up and made anew. */
const ANSWER_TIMEOUT_MS = 1_000;
const FIRST_PAUSE_MS = 50;
const MAX_PAUSE_MS = 2_000;
const CLOSE_TIMEOUT_MS = 500;

/** Called with the payload of each notification; undefined: listening has just begun (again), so look what there is. */
export type Wake = (payload: string | undefined) => void;

export interface ListenerOptions {
  /** With its password: never to be logged. */
  readonly url: string;
  readonly log: Logger;
}

/**
 * One connection of its own that LISTENs on any number of channels, for the whole process. It notices within two
 * seconds that the other end has gone silent, and connects again for as long as it is open. It keeps no process alive.
 *
 * Notifications wake, and are no more than that: behind a pooler in transaction mode, or while the connection is made
 * anew, they do not come. Whoever must not miss anything also looks by itself.
 */
export class Listener {
  readonly #options: ListenerOptions;
  readonly #wakes = new Map<string, Set<Wake>>();
  #connection: Connection | undefined;
  #connecting: Promise<void> | undefined;
  #retry: NodeJS.Timeout | undefined;
  #failures = 0;
  #closed = false;

  constructor(options: ListenerOptions) {
    this.#options = options;
  }

  /** Makes the first connection. Where that fails it goes on trying: it does not reject. */
  async start(): Promise<void> {
    await this.#connect();
  }

  /** @returns a function that ends it. `wake` must not throw, and may be called more often than there is something new. */
  listen(channel: string, wake: Wake): () => void {
    const wakes = this.#wakes.get(channel) ?? new Set();
    const isNew = wakes.size === 0;
    this.#wakes.set(channel, wakes.add(wake));
    if (isNew) void this.#connection?.listen([channel]).then(() => this.#wake(channel, undefined), ignore);
    return () => {
      wakes.delete(wake);
      if (wakes.size > 0 || this.#wakes.get(channel) !== wakes) return;
      this.#wakes.delete(channel);
      this.#connection?.unlisten(channel).catch(ignore);
    };
  }

  /**
   * Runs a short statement on this connection, for which nobody waits but those who listen.
   * @throws Error when there is no connection, or no answer within a second: the connection is then made anew.
   */
  async query<Row extends object>(statement: Statement, values: readonly unknown[]): Promise<Row[]> {
    if (this.#connection === undefined) throw new Error("Connection terminated: the listener is connecting anew");
    return this.#connection.query<Row>(statement.text, values);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    await this.#connecting;
    await this.#connection?.close();
  }

  #connect(): Promise<void> {
    this.#connecting ??= this.#open().finally(() => {
      this.#connecting = undefined;
    });
    return this.#connecting;
  }

  async #open(): Promise<void> {
    const { url, log } = this.#options;
    const wake = (channel: string, payload: string) => this.#wake(channel, payload);
    const connection = new Connection(url, wake, (error) => this.#lost(connection, error));
    try {
      await connection.open();
      // From here on `listen` knows the connection, so no channel is forgotten between the two.
      this.#connection = connection;
      await connection.listen([...this.#wakes.keys()]);
    } catch (error) {
      this.#connection = undefined;
      connection.destroy();
      this.#reconnectLater(error);
      return;
    }
    if (this.#closed) return;
    if (this.#failures > 0) log.info("listening for the database's notifications again");
    this.#failures = 0;
    for (const channel of this.#wakes.keys()) this.#wake(channel, undefined);
  }

  #wake(channel: string, payload: string | undefined): void {
    for (const wake of this.#wakes.get(channel) ?? []) wake(payload);
  }

  #lost(connection: Connection, error: unknown): void {
    if (this.#connection !== connection) return;
    this.#connection = undefined;
    this.#reconnectLater(error);
  }

  #reconnectLater(error: unknown): void {
    if (this.#closed) return;
    const pauseMs = Math.min(FIRST_PAUSE_MS * 2 ** this.#failures, MAX_PAUSE_MS) * (0.5 + Math.random() / 2);
    // An outage is one line, however often it is tried.
    if (this.#failures === 0) this.#options.log.warn({ err: error }, "no connection for the database's notifications");
    this.#failures += 1;
    this.#retry = setTimeout(() => void this.#connect(), pauseMs).unref();
  }
}

/** One connection from its making to its end, which it tells once. */
class Connection {
  readonly #client: Client;
  readonly #socket = new Socket();
  readonly #onEnd: (error: unknown) => void;
  #heartbeat: NodeJS.Timeout | undefined;
  /** The statement that was asked last: the protocol has one at a time. */
  #last: Promise<unknown> = Promise.resolve();
  #waiting = 0;
  #answeredAtMs = 0;
  #ended = false;

  constructor(url: string, wake: (channel: string, payload: string) => void, onEnd: (error: unknown) => void) {
    this.#onEnd = onEnd;
    // Our own socket, since a client can only be asked to end politely, which a dead peer does not answer.
    this.#client = new Client({
      connectionString: url,
      application_name: "tradepost listener",
      connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
      stream: () => this.#socket,
    });
    this.#client.on("notification", ({ channel, payload }) => wake(channel, payload ?? ""));
    this.#client.on("error", (error) => this.destroy(error));
    this.#client.on("end", () => this.destroy(new Error("Connection terminated by the database")));
  }

  async open(): Promise<void> {
    await this.#client.connect();
    this.#socket.unref();
    this.#heartbeat = setInterval(() => this.#beat(), HEARTBEAT_MS).unref();
  }

  async listen(channels: readonly string[]): Promise<void> {
    for (const channel of channels) await this.query(`LISTEN ${this.#client.escapeIdentifier(channel)}`);
  }

  async unlisten(channel: string): Promise<void> {
    await this.query(`UNLISTEN ${this.#client.escapeIdentifier(channel)}`);
  }

  async query<Row extends object>(text: string, values: readonly unknown[] = []): Promise<Row[]> {
    this.#waiting += 1;
    const answer = this.#last.then(() => this.#ask<Row>(text, values));
    this.#last = answer.catch(ignore);
    try {
      return await answer;
    } finally {
      this.#waiting -= 1;
    }
  }

  async #ask<Row extends object>(text: string, values: readonly unknown[]): Promise<Row[]> {
    if (this.#ended) throw new Error("Connection terminated");
    const timer = setTimeout(() => {
      // After a stall of our own the answer may be there and just not read: one turn of the loop reads it.
      setImmediate(() => answered || this.destroy(new Error(`no answer within ${ANSWER_TIMEOUT_MS} ms`)));
    }, ANSWER_TIMEOUT_MS).unref();
    let answered = false;
    try {
      const { rows } = await this.#client.query<Row>(text, [...values]);
      this.#answeredAtMs = performance.now();
      return rows;
    } finally {
      answered = true;
      clearTimeout(timer);
    }
  }

  /** Ends it at once, and with it whatever waits for an answer. */
  destroy(error?: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#heartbeat);
    this.#socket.destroy();
    this.#onEnd(error);
  }

  async close(): Promise<void> {
    clearInterval(this.#heartbeat);
    const cut = setTimeout(() => this.#socket.destroy(), CLOSE_TIMEOUT_MS);
    await this.#client.end().catch(ignore);
    clearTimeout(cut);
  }

  #beat(): void {
    if (this.#waiting > 0 || performance.now() - this.#answeredAtMs < HEARTBEAT_MS) return;
    this.query("SELECT 1").catch((error: unknown) => this.destroy(error));
  }
}

/** Whatever goes wrong on a connection ends it, and is told there. */
function ignore(): void {}
