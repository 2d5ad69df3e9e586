import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { expect } from "chai";
import pg from "pg";
import pino from "pino";
import {
  type EmbeddedOptions,
  type EmbeddedPostgres,
  EmbeddedPostgresError,
  startEmbedded,
} from "../../../src/db/embedded.ts";
import { processStartTime } from "../../../src/processes.ts";
import { processesNaming, processTree } from "../../support/process.ts";

const MODULE = new URL("../../../src/db/embedded.ts", import.meta.url).href;
const WAIT_TIMEOUT_MS = 60_000;
const POLL_INTERVAL_MS = 20;
const CONNECT_TIMEOUT_MS = 30_000;
const run = promisify(execFile);

/** A server of ours in another process: starts PostgreSQL, prints the URL or the error, and lives until its input ends. */
const OTHER_SERVER = `
  import { startEmbedded } from ${JSON.stringify(MODULE)};
  process.on("SIGINT", () => {});
  process.stdin.resume();
  const log = { info() {}, warn() {}, error() {} };
  try {
    const { url } = await startEmbedded({ durable: false, log, ...JSON.parse(process.argv[1]) });
    console.log(JSON.stringify({ url }));
  } catch (error) {
    console.log(JSON.stringify({ error: error.message }));
  }
`;

/** Another process that has started PostgreSQL on the test's folder, or has failed to. */
export interface OtherServer {
  readonly child: ChildProcess;
  readonly url: string;
  readonly error: string;
}

/** The processes of one PostgreSQL. */
export interface Family {
  readonly supervisor: number;
  readonly postmaster: number;
  /** Both of them, and the postmaster's children. */
  readonly all: readonly number[];
}

/** What the tests of one file share. */
export class EmbeddedFixture {
  /** A folder of this test alone, which everybody may enter. */
  dir = "";
  /** Where this test starts PostgreSQL: a folder in `dir` that is not there yet, unless the test chooses another. */
  dataDir = "";
  /** Another number in every test, to tell its rows from those of others. */
  value = 0;
  #root = "";
  readonly #running: EmbeddedPostgres[] = [];
  readonly #children: ChildProcess[] = [];

  /** Data that were started and stopped before, with a table `t` that holds the number 0. */
  get template(): string {
    return join(this.#root, "template", "pg");
  }

  async makeTemplate(start: (fixture: EmbeddedFixture) => Promise<EmbeddedPostgres>): Promise<void> {
    this.#root = await mkdtemp(join(tmpdir(), "tradepost-embedded-"));
    await chmod(this.#root, 0o755);
    this.dir = join(this.#root, "template");
    this.dataDir = this.template;
    await mkdir(this.dir);
    const server = await start(this);
    await query(server.url, "CREATE TABLE t AS SELECT 0 AS n");
    await server.stop();
  }

  async beginTest(): Promise<void> {
    this.value++;
    this.dir = join(this.#root, String(this.value));
    this.dataDir = join(this.dir, "pg");
    await mkdir(this.dir);
  }

  /** Ends every process of the test, and fails if a PostgreSQL stays. */
  async endTest(): Promise<void> {
    for (const child of this.#children.splice(0)) await kill(child);
    await this.stopServers();
    await waitUntil("every PostgreSQL of the test has ended", async () => (await this.servers()).length === 0);
    await rm(this.dir, { recursive: true, force: true });
  }

  /** Stops what this process started. */
  async stopServers(): Promise<void> {
    for (const server of this.#running.splice(0)) await server.stop();
  }

  async removeAll(): Promise<void> {
    await rm(this.#root, { recursive: true, force: true });
  }

  /** For tests that leave the data whole. What others have put into the table stays there. */
  useTemplate(): void {
    this.dataDir = this.template;
  }

  /** For tests that spoil the data. */
  async copyTemplate(): Promise<void> {
    await copyFolder(this.template, this.dataDir);
  }

  async start(options: Partial<EmbeddedOptions> = {}): Promise<EmbeddedPostgres> {
    return this.startPlain({ durable: false, ...options });
  }

  /** Starts with the options that are given and no others. */
  async startPlain(options: Partial<EmbeddedOptions> = {}): Promise<EmbeddedPostgres> {
    const server = await startEmbedded({ dataDir: this.dataDir, log: pino({ level: "silent" }), ...options });
    this.#running.push(server);
    return server;
  }

  /** The message with which a start is refused. */
  async failure(options: Partial<EmbeddedOptions> = {}): Promise<string> {
    const error = await this.start(options).then(
      () => new Error("it started"),
      (reason: unknown) => reason,
    );
    expect(error).to.be.instanceOf(EmbeddedPostgresError);
    return (error as Error).message;
  }

  /** Starts in another process, as the account that `identity` names. */
  async startElsewhere(options: object = {}, identity: { uid?: number; gid?: number } = {}): Promise<OtherServer> {
    const child = this.spawnElsewhere(options, identity);
    const [line] = (await once(child.stdout ?? child, "data")) as [Buffer];
    return { child, url: "", error: "", ...(JSON.parse(line.toString("utf8")) as object) };
  }

  /** As `startElsewhere`, but does not wait. */
  spawnElsewhere(options: object = {}, identity: { uid?: number; gid?: number } = {}): ChildProcess {
    const args = ["--input-type=module", "--eval", OTHER_SERVER, JSON.stringify({ dataDir: this.dataDir, ...options })];
    // Its own process group stands for a terminal's: what is sent to the group reaches all that did not leave it.
    const child = spawn(process.execPath, args, {
      cwd: "/",
      stdio: ["pipe", "pipe", "inherit"],
      detached: true,
      ...identity,
    });
    return this.keep(child);
  }

  /** Ends the process with the test. */
  keep(child: ChildProcess): ChildProcess {
    this.#children.push(child);
    return child;
  }

  /** The processes of the PostgreSQL that runs on the test's folder. */
  async family(): Promise<Family> {
    const postmaster = Number((await readFile(join(this.dataDir, "data", "postmaster.pid"), "utf8")).split("\n")[0]);
    const supervisor = (await processesNaming(`postgres -D ${this.dataDir}/data `)).find(
      ({ pid }) => pid === postmaster,
    )?.parentPid;
    if (supervisor === undefined) throw new Error(`No PostgreSQL runs on ${this.dataDir}`);
    return { supervisor, postmaster, all: (await processTree(supervisor)).map(({ pid }) => pid) };
  }

  /** The command lines of all PostgreSQL servers that run for this file's tests. */
  async servers(): Promise<string[]> {
    return (await processesNaming(`postgres -D ${this.#root}/`)).map(({ command }) => command);
  }

  /** The numbers in the table that are this test's own. */
  async ownRows(url: string): Promise<unknown[]> {
    return query(url, `SELECT n FROM t WHERE n = ${this.value}`);
  }
}

/**
 * Gives the suite it is called in folders and data to start PostgreSQL on. `makeTemplate` makes the data that tests
 * begin with, once per file.
 */
export function useEmbedded(
  makeTemplate: (fixture: EmbeddedFixture) => Promise<EmbeddedPostgres> = (fixture) => fixture.start(),
): EmbeddedFixture {
  const fixture = new EmbeddedFixture();
  before(() => fixture.makeTemplate(makeTemplate));
  beforeEach(() => fixture.beginTest());
  afterEach(() => fixture.endTest());
  after(() => fixture.removeAll());
  return fixture;
}

// The tool is several times as fast as Node at a thousand small files.
export async function copyFolder(from: string, to: string): Promise<void> {
  await run("cp", ["-Rp", from, to]);
}

export async function query(url: string, sql: string): Promise<unknown[]> {
  const client = await connect(url);
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

/** A connection that does not mind if the server breaks it. */
export async function connect(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: CONNECT_TIMEOUT_MS });
  client.on("error", () => {});
  await client.connect();
  return client;
}

export async function waitUntil(what: string, condition: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + WAIT_TIMEOUT_MS;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`Waited ${WAIT_TIMEOUT_MS} ms in vain until ${what}`);
    await sleep(POLL_INTERVAL_MS);
  }
}

export async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await once(child, "exit");
}

/** Of the processes, those that still run. */
export async function alive(pids: readonly number[]): Promise<number[]> {
  const states = await Promise.all(pids.map(async (pid) => ((await processStartTime(pid)) === undefined ? [] : [pid])));
  return states.flat();
}
