import http2 from "node:http2";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, createHandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { expect } from "chai";
import { pino } from "pino";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import {
  HealthCheckRequestSchema,
  HealthCheckResponse_ServingStatus,
  Health as HealthService,
} from "../../gen/grpc/health/v1/health_pb.js";
import { createHealth, type Health, type HealthOptions } from "../../src/server/health.ts";

const { SERVING, NOT_SERVING, SERVICE_UNKNOWN } = HealthCheckResponse_ServingStatus;
const orders = "tradepost.order.v1.OrderService";

/** Longer than any of these tests takes. */
const neverMs = 600_000;
/** Far longer than anything that a test waits for should take, however busy the machine. */
const patienceMs = 15_000;

describe("health", function () {
  this.timeout(2 * patienceMs);

  const cleanups: (() => Promise<void> | void)[] = [];

  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  });

  /** A health service behind a real server, over a database that the test switches off and on. */
  async function start(options: Partial<HealthOptions> = {}) {
    const database = new Database();
    const logged: { level: number; msg: string; err?: { message: string } }[] = [];
    const log = pino({}, { write: (line) => logged.push(JSON.parse(line)) });
    const health = createHealth({ services: [orders], probe: database.probe, log, freshMs: 10, ...options });
    const client = await serve(health);
    cleanups.push(
      () => health.close(),
      () => database.releaseAll(),
    );
    return { health, client, database, logged };
  }

  async function serve(health: Health): Promise<Client<typeof HealthService>> {
    const routes = connectNodeAdapter({ routes: (router) => void router.service(HealthService, health.service) });
    const server = http2.createServer(routes);
    const sessions = new Set<http2.ServerHttp2Session>();
    server.on("session", (session) => sessions.add(session));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const sessionManager = new Http2SessionManager(baseUrl);
    cleanups.push(async () => {
      sessionManager.abort();
      for (const session of sessions) session.destroy();
      await new Promise((resolve) => server.close(resolve));
    });
    return createClient(HealthService, createGrpcTransport({ baseUrl, sessionManager }));
  }

  describe("Check", () => {
    it("is SERVING for the server and for each service while the database answers", async () => {
      const { client } = await start();
      expect(await client.check({})).to.include({ status: SERVING });
      expect(await client.check({ service: orders })).to.include({ status: SERVING });
    });

    it("is NOT_SERVING while the database is away, and SERVING again when it is back", async () => {
      const { client, database } = await start({ freshMs: 0 });
      database.state = "away";
      expect(await client.check({})).to.include({ status: NOT_SERVING });
      database.state = "up";
      expect(await client.check({})).to.include({ status: SERVING });
    });

    it("is NOT_SERVING when the probe throws before it returns a promise", async () => {
      const { client } = await start({
        probe: () => {
          throw new Error("no pool");
        },
      });
      expect(await client.check({})).to.include({ status: NOT_SERVING });
    });

    it("is NOT_SERVING in time when the database hangs, and tells the probe to give up", async () => {
      const { client, database } = await start({ probeTimeoutMs: 20 });
      database.state = "hanging";
      expect(await client.check({})).to.include({ status: NOT_SERVING });
      expect(database.signals.map(({ aborted }) => aborted)).to.deep.equal([true]);
    });

    it("answers NOT_FOUND for a service that the server does not have", async () => {
      const { client } = await start();
      const error = await rejectionOf(client.check({ service: "no.Such" }));
      expect(error.code, error.message).to.equal(Code.NotFound);
      expect(error.findDetails(ErrorInfoSchema)[0]).to.deep.include({
        reason: "SERVICE_NOT_FOUND",
        domain: "tradepost",
        metadata: { service: "no.Such" },
      });
    });

    it("repeats little of an absurdly long name, so that the error fits its headers", async () => {
      const { client } = await start();
      const error = await rejectionOf(client.check({ service: "\u{1F4A5}".repeat(500_000) }));
      expect(error.code, error.message).to.equal(Code.NotFound);
      expect(error.message.length).to.be.below(500);
      expect(await client.check({})).to.include({ status: SERVING });
    });

    it("sends one probe for a hundred questions at once, and none while the answer is fresh", async () => {
      const { client, database } = await start({ freshMs: neverMs });
      const answers = await Promise.all(Array.from({ length: 100 }, () => client.check({})));
      expect(new Set(answers.map(({ status }) => status))).to.deep.equal(new Set([SERVING]));
      await client.check({ service: orders });
      await client.list({});
      expect(database.probes).to.equal(1);
    });
  });

  it("makes everybody who asks while a probe is under way wait for its result", async () => {
    const { health, database } = await start({ probeTimeoutMs: neverMs });
    database.state = "hanging";
    const answers = Array.from({ length: 10 }, () => health.check());
    database.releaseAll();
    expect(await Promise.all(answers)).to.deep.equal(answers.map(() => true));
    expect(database.probes).to.equal(1);
  });

  describe("a probe that ignores its deadline", () => {
    it("is left alone: no other is sent after it", async () => {
      const { health, database } = await start({ freshMs: 0, probeTimeoutMs: 5 });
      database.state = "hanging";
      for (let i = 0; i < 10; i++) expect(await health.check()).to.equal(false);
      expect(database.probes).to.equal(1);
    });

    it("is followed by another at once when it settles after all", async () => {
      const { health, database } = await start({ freshMs: neverMs, probeTimeoutMs: 5 });
      database.state = "hanging";
      expect(await health.check()).to.equal(false);
      database.state = "up";
      expect(await health.check(), "while the first probe still hangs").to.equal(false);
      database.releaseAll();
      await sleep(1);
      expect(await health.check(), "after it has settled").to.equal(true);
      expect(database.probes).to.equal(2);
    });

    it("is given up in the end, so that one lost connection does not mark the server for ever", async () => {
      const { health, database } = await start({ freshMs: 0, probeTimeoutMs: 5, stuckProbeMs: 50 });
      database.state = "hanging";
      expect(await health.check()).to.equal(false);
      database.state = "up";
      await eventually(async () => expect(await health.check()).to.equal(true));
      expect(database.probes).to.equal(2);
    });
  });

  it("lists the server and each service", async () => {
    const { client, database } = await start();
    const { statuses } = await client.list({});
    expect(Object.keys(statuses)).to.have.members(["", orders]);
    expect(Object.values(statuses).map(({ status }) => status)).to.deep.equal([SERVING, SERVING]);
    expect(database.probes).to.equal(1);
  });

  it("is NOT_SERVING while draining, without asking the database", async () => {
    const { client, health, database } = await start();
    health.setDraining();
    expect(await client.check({})).to.include({ status: NOT_SERVING });
    expect((await client.list({})).statuses[orders]).to.include({ status: NOT_SERVING });
    expect(await health.check()).to.equal(false);
    expect((await rejectionOf(client.check({ service: "no.Such" }))).code).to.equal(Code.NotFound);
    expect(database.probes).to.equal(0);
  });

  it("gives up the probe under way when it closes", async () => {
    const { health, database } = await start({ probeTimeoutMs: neverMs });
    database.state = "hanging";
    const answer = health.check();
    health.close();
    expect(await answer).to.equal(false);
    expect(database.signals.map(({ aborted }) => aborted)).to.deep.equal([true]);
  });

  it("logs each change once, with its cause", async () => {
    const { health, database, logged } = await start({ freshMs: 0 });
    await health.check();
    database.state = "away";
    for (let i = 0; i < 3; i++) await health.check();
    database.state = "up";
    for (let i = 0; i < 3; i++) await health.check();
    expect(logged.map(({ msg, err }) => [msg, err?.message])).to.deep.equal([
      ["the database answers: health is SERVING", undefined],
      ["the database does not answer: health is NOT_SERVING", "connection refused"],
      ["the database answers: health is SERVING", undefined],
    ]);
  });

  describe("Watch", () => {
    /** Watches until the test ends, noting what is told. */
    function watch(client: Client<typeof HealthService>, service = "", timeoutMs?: number) {
      const told: HealthCheckResponse_ServingStatus[] = [];
      const controller = new AbortController();
      const call = client.watch({ service }, { signal: controller.signal, ...(timeoutMs && { timeoutMs }) });
      const ended = (async () => {
        for await (const { status } of call) told.push(status);
      })();
      ended.catch(() => {}); // A test that expects an error awaits `ended` itself.
      cleanups.push(() => controller.abort());
      return { told, ended, leave: () => controller.abort() };
    }

    it("tells the state at once and then every change, each only once", async () => {
      const { client, database } = await start();
      const { told } = watch(client, orders);
      await eventually(() => expect(told).to.deep.equal([SERVING]));
      await database.probed(3);
      database.state = "away";
      await eventually(() => expect(told).to.deep.equal([SERVING, NOT_SERVING]));
      await database.probed(3);
      database.state = "up";
      await eventually(() => expect(told).to.deep.equal([SERVING, NOT_SERVING, SERVING]));
    });

    it("tells a change to every watcher with one probe for all", async () => {
      const { client, database } = await start({ freshMs: 50 });
      const watchers = Array.from({ length: 20 }, () => watch(client));
      await eventually(() => expect(watchers.map(({ told }) => told)).to.deep.equal(watchers.map(() => [SERVING])));
      const before = database.probes;
      database.state = "away";
      await eventually(() => {
        expect(watchers.map(({ told }) => told)).to.deep.equal(watchers.map(() => [SERVING, NOT_SERVING]));
      });
      expect(database.probes - before).to.be.below(watchers.length);
    });

    it("tells NOT_SERVING and ends when the server drains", async () => {
      const { client, health } = await start({ freshMs: neverMs });
      const { told, ended } = watch(client);
      await eventually(() => expect(told).to.deep.equal([SERVING]));
      health.setDraining();
      await ended;
      expect(told).to.deep.equal([SERVING, NOT_SERVING]);
    });

    it("tells NOT_SERVING and ends when it is called while the server drains", async () => {
      const { client, health } = await start();
      health.setDraining();
      const { told, ended } = watch(client);
      await ended;
      expect(told).to.deep.equal([NOT_SERVING]);
    });

    it("tells SERVICE_UNKNOWN for a service that the server does not have, and goes on until it drains", async () => {
      const { client, health, database } = await start();
      const { told, ended } = watch(client, "no.Such");
      await eventually(() => expect(told).to.deep.equal([SERVICE_UNKNOWN]));
      await database.probed(3);
      const state = await Promise.race([ended.then(() => "ended"), sleep(20, "open")]);
      expect(state).to.equal("open");
      health.setDraining();
      await ended;
      expect(told).to.deep.equal([SERVICE_UNKNOWN]);
    });

    it("asks the database only while somebody watches", async () => {
      const { client, database } = await start();
      await sleep(50);
      expect(database.probes, "before anybody watches").to.equal(0);
      const first = watch(client);
      const second = watch(client);
      await database.probed(5);
      first.leave();
      await database.probed(5);
      second.leave();
      await eventually(async () => {
        const before = database.probes;
        await sleep(50);
        expect(database.probes, "after the last has left").to.equal(before);
      });
    });

    it("refuses one watcher too many, and welcomes the next when another has left", async () => {
      const { client } = await start({ maxWatchers: 2 });
      const first = watch(client);
      const second = watch(client, "no.Such");
      await eventually(() => expect([...first.told, ...second.told]).to.deep.equal([SERVING, SERVICE_UNKNOWN]));
      const error = await rejectionOf(watch(client).ended);
      expect(error.code, error.message).to.equal(Code.ResourceExhausted);
      second.leave();
      await eventually(async () => {
        const third = watch(client);
        await Promise.race([third.ended, eventually(() => expect(third.told).to.deep.equal([SERVING]))]);
      });
    });

    it("ends a call that has lasted as long as one may", async () => {
      const { client } = await start({ maxWatchMs: 50 });
      const known = watch(client);
      const unknown = watch(client, "no.Such");
      await Promise.all([known.ended, unknown.ended]);
      expect([known.told, unknown.told]).to.deep.equal([[SERVING], [SERVICE_UNKNOWN]]);
    });

    it("ends with DEADLINE_EXCEEDED at the client's deadline", async () => {
      const { client, health } = await start();
      const error = await rejectionOf(watch(client, "", 50).ended);
      expect(error.code, error.message).to.equal(Code.DeadlineExceeded);

      // The client's own clock may have ended that call. On the server it must end in the same way.
      const method = HealthService.method.watch;
      const init = {
        service: HealthService,
        method,
        protocolName: "grpc",
        requestMethod: "POST",
        url: "",
        timeoutMs: 20,
      };
      const responses = health.service.watch(create(HealthCheckRequestSchema), createHandlerContext(init));
      const onServer = await rejectionOf(drained(responses));
      expect(onServer.code, onServer.message).to.equal(Code.DeadlineExceeded);
    });
  });
});

/** Stands in for the database: answers, refuses or hangs. */
class Database {
  state: "up" | "away" | "hanging" = "up";
  probes = 0;
  readonly signals: AbortSignal[] = [];
  readonly #hanging: (() => void)[] = [];

  readonly probe = async (signal: AbortSignal): Promise<void> => {
    this.probes++;
    this.signals.push(signal);
    if (this.state === "away") throw new Error("connection refused");
    // Deaf to the signal on purpose: health must cope with that.
    if (this.state === "hanging") await new Promise<void>((resolve) => this.#hanging.push(resolve));
  };

  /** Lets the probes that hang come to an end. */
  releaseAll(): void {
    for (const release of this.#hanging.splice(0)) release();
  }

  /** Resolves when so many more probes have come. */
  async probed(count: number): Promise<void> {
    const target = this.probes + count;
    await eventually(() => expect(this.probes, "number of probes").to.be.at.least(target));
  }
}

/** Tries until it holds, and fails with what was wrong at the last try. */
async function eventually(assertion: () => unknown): Promise<void> {
  for (const endsAtMs = performance.now() + patienceMs; ; await sleep(5)) {
    try {
      await assertion();
      return;
    } catch (error) {
      if (performance.now() > endsAtMs) throw error;
    }
  }
}

async function drained(responses: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of responses);
}

async function rejectionOf(promise: Promise<unknown>): Promise<ConnectError> {
  try {
    await promise;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("Expected the call to fail, but it ended well");
}
