import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { connect as connectTcp, createServer, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "chai";
import { pino } from "pino";
import sinon from "sinon";
import { Listener } from "../../src/db/listen.ts";
import type { DomainError } from "../../src/errors.ts";
import { Revocations } from "../../src/users/revocations.ts";
import { SessionStore } from "../../src/users/session-store.ts";
import { sql, type TestDatabase, useDatabase } from "../support/database.ts";
import { newCustomer, PASSWORD, type Person } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";
import { expectWithin } from "../support/timing.ts";

/** What the service promises of every other replica. */
const PROMISE_MS = 1_000;
const MINUTE_MS = 60_000;

/** Calls until the token is refused, and gives how long that took in milliseconds. */
async function refusedAfterMs(server: TestServer, token: string): Promise<number> {
  const startedAtMs = performance.now();
  for (;;) {
    const waitedMs = performance.now() - startedAtMs;
    const outcome = await server
      .as(token)
      .users.getProfile({})
      .then(
        () => "accepted" as const,
        (error) => refusalOf(Promise.reject(error)),
      );
    if (outcome !== "accepted" && outcome.reason !== "DATABASE_UNAVAILABLE") {
      expect(outcome.message).to.include("access token is invalid");
      return waitedMs;
    }
    if (waitedMs > 20 * PROMISE_MS) throw new Error("the token is accepted for 20 seconds");
    await sleep(5);
  }
}

async function isAccepted(server: TestServer, { token, id }: Pick<Person, "token" | "id">): Promise<boolean> {
  return (await server.as(token).users.getProfile({})).user?.id === id;
}

async function refuseTokensOf({ deps }: TestServer, userId: string): Promise<void> {
  await deps.users.transaction((transaction) =>
    deps.sessions.refuseAccessTokens(userId, deps.clock.now(), transaction),
  );
  await deps.revocations.catchUp();
}

/** Whether a statement waits for a lock that another transaction holds. */
async function somebodyWaits(database: TestDatabase): Promise<boolean> {
  const waiting = await sql(
    database,
    "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
  );
  return waiting.length > 0;
}

async function killListeners(database: TestDatabase): Promise<number> {
  const killed = await sql(
    database,
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE application_name = 'tradepost listener' AND datname = current_database()`,
  );
  return killed.length;
}

describe("an access token that was revoked on one replica", () => {
  const database = useDatabase();
  const here = useServer({ database, settings: { SECRET_KEY: Buffer.alloc(32, 1).toString("base64") } });
  const there = useServer({ database, settings: { SECRET_KEY: Buffer.alloc(32, 1).toString("base64") } });

  const causes: Record<string, (person: Person) => Promise<unknown>> = {
    "a logout": (person) => person.auth.logout({}),
    RevokeSession: async (person) => {
      const { sessions } = await person.auth.listSessions({});
      await person.auth.revokeSession({ sessionId: sessions[0]?.id ?? "" });
    },
    "a change of role": (person) => refuseTokensOf(here, person.id),
    "the end of all sessions, as by a new password or a deletion": async ({ id }) => {
      const { deps } = here;
      await deps.users.transaction((transaction) => deps.sessions.endAll(id, deps.clock.now(), transaction));
      await deps.revocations.catchUp();
    },
  };
  for (const [cause, revoke] of Object.entries(causes)) {
    it(`by ${cause} is refused there on the next call, and on the other within a second`, async () => {
      await expectWithin(PROMISE_MS, async () => {
        const person = await newCustomer(here);
        expect(await isAccepted(there, person), "known to the other replica before").to.equal(true);
        await revoke(person);
        expect((await refusalOf(person.users.getProfile({}))).reason).to.equal("TOKEN_INVALID");
        return refusedAfterMs(there, person.token);
      });
    });
  }

  it("leaves one session of the account, where it is to be left", async () => {
    const person = await newCustomer(here);
    const { accessToken } = await here.as().auth.login({ email: person.email, password: PASSWORD });
    const { deps } = here;
    const { sessionId } = await deps.tokens.verify(accessToken);
    await deps.users.transaction((tx) => deps.sessions.endAll(person.id, deps.clock.now(), tx, sessionId));
    await deps.revocations.catchUp();
    expect(await isAccepted(here, { ...person, token: accessToken })).to.equal(true);
    expect((await refusalOf(person.users.getProfile({}))).reason).to.equal("TOKEN_INVALID");
  });

  it("is followed by good ones in the same millisecond, from every replica", async () => {
    await expectWithin(PROMISE_MS, async () => {
      const person = await newCustomer(here);
      const login = await here.as().auth.login({ email: person.email, password: PASSWORD });
      await refuseTokensOf(here, person.id);
      const { accessToken } = await there.as().auth.refreshToken({ refreshToken: login.refreshToken });
      for (const server of [here, there]) {
        expect(await isAccepted(server, { ...person, token: accessToken })).to.equal(true);
      }
      return refusedAfterMs(there, login.accessToken);
    });
  });

  describe("that is refreshed while the role changes", () => {
    /** Changes the role as UpdateUser does, with `meanwhile` before the sessions' tokens are refused, `before` the commit. */
    async function changeRole(
      { id }: Person,
      steps: { readonly meanwhile?: () => Promise<unknown>; readonly beforeCommit?: () => Promise<unknown> },
    ): Promise<void> {
      const { users, sessions, db, revocations, clock } = here.deps;
      await users.transaction(async (transaction) => {
        const text = "UPDATE users SET role = 'MODERATOR' WHERE id = $1";
        await db.query({ name: "change-role", text }, [id], transaction);
        await steps.meanwhile?.();
        await sessions.refuseAccessTokens(id, clock.now(), transaction);
        await steps.beforeCommit?.();
      });
      await revocations.catchUp();
    }

    it("has the old role and is refused, when the refresh comes first", async () => {
      const person = await newCustomer(here);
      const { refreshToken } = await here.as().auth.login({ email: person.email, password: PASSWORD });
      let accessToken = "";
      await changeRole(person, {
        async meanwhile() {
          accessToken = (await there.as().auth.refreshToken({ refreshToken })).accessToken;
          expect((await here.deps.tokens.verify(accessToken)).role).to.equal("USER");
        },
      });
      expect((await refusalOf(here.as(accessToken).users.getProfile({}))).reason).to.equal("TOKEN_INVALID");
    });

    it("has the new role and is good, when the refresh has to wait for the change", async () => {
      const person = await newCustomer(here);
      const { refreshToken } = await here.as().auth.login({ email: person.email, password: PASSWORD });
      let refreshing = Promise.resolve({ accessToken: "" });
      await changeRole(person, {
        async beforeCommit() {
          refreshing = there.as().auth.refreshToken({ refreshToken });
          await eventually(() => somebodyWaits(database));
        },
      });
      const { accessToken } = await refreshing;
      for (const server of [here, there]) {
        await server.deps.revocations.catchUp();
        expect((await server.deps.tokens.verify(accessToken)).role).to.equal("MODERATOR");
      }
    });
  });

  it("is refused when its revocation commits after one that was written later", async () => {
    await expectWithin(PROMISE_MS, async () => {
      const [early, late] = await Promise.all([newCustomer(here), newCustomer(here)]);
      let lateMs = 0;
      await here.deps.users.transaction(async (transaction) => {
        await here.deps.sessions.endAll(early.id, here.clock.now(), transaction);
        await late.auth.logout({});
        lateMs = await refusedAfterMs(there, late.token);
        expect(await isAccepted(there, early), "not committed yet").to.equal(true);
      });
      return Math.max(lateMs, await refusedAfterMs(there, early.token));
    });
  });

  it("is refused by a replica that starts afterwards", async () => {
    const person = await newCustomer(here);
    const { sessionId } = await here.deps.tokens.verify(person.token);
    await person.auth.logout({});
    const { db, log, clock, listener } = here.deps;
    const starting = new Revocations({ store: new SessionStore(db), listener, clock, log });
    await starting.start();
    expect(await starting.refuses(sessionId, 1)).to.equal(true);
    starting.close();
  });

  it("is refused without asking the database for each call", async () => {
    const person = await newCustomer(there);
    await isAccepted(there, person);
    const queries = sinon.spy(there.deps.db, "query");
    const asked = sinon.spy(there.deps.listener, "query");
    try {
      const startedAtMs = performance.now();
      for (let i = 0; i < 500; i++) await there.deps.tokens.verify(person.token);
      const mostReadings = 2 + (performance.now() - startedAtMs) / 250;
      expect(queries.callCount, "by the pool").to.equal(0);
      expect(asked.callCount, "by the listener").to.be.below(mostReadings);
    } finally {
      queries.restore();
      asked.restore();
    }
  });

  it("is refused within a second also when the listeners are killed just before", async () => {
    await expectWithin(PROMISE_MS, async () => {
      const person = await newCustomer(here);
      await isAccepted(there, person);
      await eventually(async () => (await killListeners(database)) >= 2);
      await person.auth.logout({});
      return refusedAfterMs(there, person.token);
    });
  });

  it("is refused although its revocation has a number that a database gave out again after a crash", async () => {
    await expectWithin(PROMISE_MS, async () => {
      const person = await newCustomer(here);
      const { sessionId } = await there.deps.tokens.verify(person.token);
      const [given] = await sql<{ number: string }>(database, "SELECT pg_current_xact_id()::text AS number");
      // Now that number is behind what was read. Of a transaction that wrote nothing a crash leaves no trace.
      await there.deps.revocations.catchUp();
      await sql(
        database,
        "INSERT INTO session_revocations (session_id, create_time, transaction_id) VALUES ($1, now(), $2::xid8)",
        [sessionId, given?.number],
      );
      return refusedAfterMs(there, person.token);
    });
  });

  it("is refused within a second where no listener can connect, by looking", async () => {
    const person = await newCustomer(here);
    const { sessionId } = await here.deps.tokens.verify(person.token);
    const nowhere = new StallingProxy(database.url);
    const listener = new Listener({ url: await nowhere.start(), log: here.deps.log });
    nowhere.stop();
    const { db, log, clock } = here.deps;
    const revocations = new Revocations({ store: new SessionStore(db), listener, clock, log });
    try {
      await Promise.all([listener.start(), revocations.start()]);
      await person.auth.logout({});
      await sleep(PROMISE_MS);
      expect(await revocations.refuses(sessionId, 1)).to.equal(true);
    } finally {
      revocations.close();
      await listener.close();
    }
  });
});

/** Stands between a server and its database, and can hold back every byte without closing anything. */
class StallingProxy {
  readonly #server = createServer((inner) => this.#join(inner));
  readonly #sockets = new Set<Socket>();
  readonly #target: URL;
  #stalled = false;

  constructor(target: string) {
    this.#target = new URL(target);
  }

  async start(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    const url = new URL(this.#target);
    url.host = `127.0.0.1:${(this.#server.address() as { port: number }).port}`;
    return url.href;
  }

  set stalled(stalled: boolean) {
    this.#stalled = stalled;
    for (const socket of this.#sockets) stalled ? socket.pause() : socket.resume();
  }

  stop(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #join(inner: Socket): void {
    const outer = connectTcp(Number(this.#target.port), this.#target.hostname);
    for (const [from, to] of [
      [inner, outer],
      [outer, inner],
    ] as const) {
      this.#sockets.add(from);
      from.on("data", (data) => to.write(data));
      from.on("error", () => {});
      from.on("close", () => {
        this.#sockets.delete(from);
        to.destroy();
      });
      if (this.#stalled) from.pause();
    }
  }
}

describe("a replica whose database has gone silent", () => {
  const database = useDatabase();
  let proxy: StallingProxy;
  let url = "";
  before(async () => {
    proxy = new StallingProxy(database.url);
    url = await proxy.start();
  });
  const behind: TestDatabase = {
    get url() {
      return url;
    },
    get db() {
      return database.db;
    },
    drop: async () => {},
  };
  const server = useServer({ database: behind });
  after(() => proxy.stop());

  it("lets no token pass that might be revoked, and every good one once it hears of it again", async () => {
    const person = await newCustomer(server);
    await isAccepted(server, person);
    proxy.stalled = true;
    // Within the second of the promise nothing else is known; from then on nothing passes.
    await sleep(PROMISE_MS);
    const refusal = await server.deps.tokens.verify(person.token).catch((error: DomainError) => error.reason);
    expect(refusal).to.equal("DATABASE_UNAVAILABLE");
    expect(await refusalOf(server.as(person.token).catalog.listProducts({}))).to.include({
      code: "Unavailable",
      reason: "DATABASE_UNAVAILABLE",
    });
    proxy.stalled = false;
    await eventually(() => isAccepted(server, person).catch(() => false));
  }).timeout(40_000);
});

async function eventually(holds: () => Promise<boolean>): Promise<void> {
  const deadlineMs = performance.now() + 20_000;
  while (!(await holds())) {
    if (performance.now() > deadlineMs) throw new Error("it does not hold after 20 seconds");
    await sleep(50);
  }
}

describe("what is remembered of revocations", () => {
  const server = useServer();
  const made: Revocations[] = [];
  afterEach(() => {
    for (const revocations of made.splice(0)) revocations.close();
  });

  async function newRevocations(maxEntries?: number): Promise<Revocations> {
    const { db, log, clock, listener } = server.deps;
    const bound = maxEntries === undefined ? {} : { maxEntries };
    const revocations = new Revocations({ store: new SessionStore(db), listener, clock, log, ...bound });
    made.push(revocations);
    await revocations.start();
    return revocations;
  }

  it("has a bound; beyond it sessions are asked for, and every answer stays right", async () => {
    const people = await Promise.all(Array.from({ length: 6 }, () => newCustomer(server)));
    const ids: string[] = [];
    for (const { token } of people) ids.push((await server.deps.tokens.verify(token)).sessionId);
    const revocations = await newRevocations(2);
    for (const person of people.slice(0, 5)) await person.auth.logout({});
    await revocations.catchUp();
    const refused = await Promise.all(ids.map(async (id) => revocations.refuses(id, 1)));
    expect(refused).to.deep.equal([true, true, true, true, true, false]);
  });

  it("is forgotten when the last token that it concerns has expired", async () => {
    // Older than what the other tests have left.
    server.clock.advance(21 * MINUTE_MS);
    const revocations = await newRevocations(2);
    for (let round = 0; round < 4; round++) {
      const people = await Promise.all([newCustomer(server), newCustomer(server)]);
      const ids: string[] = [];
      for (const { token } of people) ids.push((await server.deps.tokens.verify(token)).sessionId);
      await Promise.all(people.map((person) => person.auth.logout({})));
      // An answer at once, and no promise: there was room.
      await eventually(async () => {
        await revocations.catchUp();
        return ids.every((id) => revocations.refuses(id, 1) === true);
      });
      server.clock.advance(21 * MINUTE_MS);
    }
  });

  it("holds what was committed before it is asked for, whatever readings are under way", async () => {
    const revocations = await newRevocations();
    let done = false;
    const reading = (async () => {
      while (!done) await revocations.catchUp();
    })();
    const { users, sessions, clock } = server.deps;
    const { id: userId } = await newCustomer(server);
    const other = { clientAddress: "", userAgent: "", generation: 1 };
    for (let round = 0; round < 25; round++) {
      const now = clock.now();
      const session = { ...other, id: randomUUID(), userId, createTime: now, lastUseTime: now, expireTime: now };
      const token = { tokenHash: randomBytes(32), createTime: now, expireTime: now, rotateTime: null };
      const { id: sessionId } = session;
      await users.transaction((transaction) => sessions.open(session, { ...token, sessionId }, transaction));
      await users.transaction((transaction) => sessions.end(sessionId, userId, now, transaction));
      await revocations.catchUp();
      expect(await revocations.refuses(sessionId, 1), `round ${round}`).to.equal(true);
    }
    done = true;
    await reading;
  });

  it("costs no connection of the pool when every one of them is busy", async () => {
    const revocations = await newRevocations();
    const person = await newCustomer(server);
    const { sessionId } = await server.deps.tokens.verify(person.token);
    const busyBackends =
      "pid FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT pg_sleep(15)' AND state = 'active'";
    const connections = 8;
    const busy = Promise.allSettled(
      Array.from({ length: connections }, () =>
        server.deps.db.query({ name: "busy", text: "SELECT pg_sleep(15)" }, []),
      ),
    );
    await eventually(async () => (await sql(server.database, `SELECT ${busyBackends}`)).length === connections);
    await server.database.db.query(
      { name: "end", text: "INSERT INTO session_revocations (session_id, create_time) VALUES ($1, $2)" },
      [sessionId, server.clock.now()],
    );
    await revocations.catchUp();
    expect(await revocations.refuses(sessionId, 1)).to.equal(true);
    const freed = await sql(server.database, `SELECT pg_cancel_backend(pid) FROM (SELECT ${busyBackends}) busy`);
    expect(freed, "connections that were busy to the end").to.have.length(connections);
    await busy;
  });
});

describe("a listener", () => {
  const database = useDatabase();
  const open: Listener[] = [];
  afterEach(async () => {
    await Promise.all(open.splice(0).map((listener) => listener.close()));
  });

  async function newListener(url = database.url): Promise<Listener> {
    const listener = new Listener({ url, log: pino({ level: "silent" }) });
    open.push(listener);
    await listener.start();
    return listener;
  }

  function heardOn(listener: Listener, channel: string): (string | undefined)[] {
    const heard: (string | undefined)[] = [];
    listener.listen(channel, (payload) => heard.push(payload));
    return heard;
  }

  const notify = (channel: string, payload: string) => sql(database, "SELECT pg_notify($1, $2)", [channel, payload]);

  it("passes on what is sent on each of its channels, and nothing of others", async () => {
    const listener = await newListener();
    const [one, two] = [heardOn(listener, "one"), heardOn(listener, "Two; --")];
    await eventually(async () => one.length === 1 && two.length === 1);
    await notify("one", "a");
    await notify("Two; --", "b");
    await notify("three", "c");
    await eventually(async () => one.length === 2 && two.length === 2);
    expect([one, two]).to.deep.equal([
      [undefined, "a"],
      [undefined, "b"],
    ]);
  });

  it("connects anew when its connection is cut, and says that something may have been missed", async () => {
    const listener = await newListener();
    const heard = heardOn(listener, "one");
    await eventually(async () => heard.length === 1);
    await killListeners(database);
    await eventually(async () => heard.length === 2);
    await notify("one", "again");
    await eventually(async () => heard.length === 3);
    expect(heard).to.deep.equal([undefined, undefined, "again"]);
  });

  it("notices a connection that is silent without being closed", async () => {
    await expectWithin(3 * PROMISE_MS, async () => {
      const proxy = new StallingProxy(database.url);
      try {
        const listener = await newListener(await proxy.start());
        const heard = heardOn(listener, "one");
        await eventually(async () => heard.length === 1);
        proxy.stalled = true;
        const startedAtMs = performance.now();
        const error = await listener.query({ name: "any", text: "SELECT 1" }, []).catch((reason: Error) => reason);
        const tookMs = performance.now() - startedAtMs;
        expect(error).to.be.an("error");
        proxy.stalled = false;
        await eventually(async () => heard.length === 2);
        return tookMs;
      } finally {
        proxy.stop();
      }
    });
  });

  it("starts where there is no database yet, and connects when there is one", async () => {
    const proxy = new StallingProxy(database.url);
    const url = await proxy.start();
    proxy.stop();
    const listener = await newListener(url);
    const error = await listener.query({ name: "any", text: "SELECT 1" }, []).catch((reason: Error) => reason);
    expect(error).to.be.an("error");
  });

  it("is silent after it was closed, and lets a call under way fail", async () => {
    const listener = await newListener();
    const heard = heardOn(listener, "one");
    await eventually(async () => heard.length === 1);
    await listener.close();
    await notify("one", "late");
    expect(await listener.query({ name: "any", text: "SELECT 1" }, []).catch(() => "refused")).to.equal("refused");
    expect(heard).to.deep.equal([undefined]);
  });
});
