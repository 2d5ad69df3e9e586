import { Writable } from "node:stream";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type ConnectRouter,
  createClient,
  createContextValues,
  createRouterTransport,
  type Interceptor,
} from "@connectrpc/connect";
import { expect } from "chai";
import { pino } from "pino";
import { ConnectionRefusedError } from "sequelize";
import sinon from "sinon";
import { RequestInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { OrderService, WatchOrdersResponseSchema } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { UserService } from "../../gen/tradepost/user/v1/user_service_pb.js";
import { type Call, callOf, setCall } from "../../src/call.ts";
import { DomainError, type ErrorKind, fieldsInvalid, notFound } from "../../src/errors.ts";
import { deadline } from "../../src/server/interceptors/deadline.ts";
import { errors } from "../../src/server/interceptors/errors.ts";
import { logging } from "../../src/server/interceptors/logging.ts";
import { newCustomer } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const aCall = (): Call => ({
  requestId: "req-1",
  clientAddress: "192.0.2.1",
  clientNetwork: "192.0.2.1",
  userAgent: "",
  deadline: Number.POSITIVE_INFINITY,
});

/** A client of services under the given interceptors, without a network between them. */
function under(interceptors: Interceptor[], routes: (router: ConnectRouter) => void, call = aCall()) {
  const describe: Interceptor = (next) => (req) => {
    setCall(req.contextValues, call);
    return next(req);
  };
  return createRouterTransport(routes, { router: { interceptors: [describe, ...interceptors] } });
}

const failing = (error: unknown) => {
  const routes = (router: ConnectRouter) => {
    router.service(UserService, {
      getProfile() {
        throw error;
      },
    });
  };
  return createClient(UserService, under([errors()], routes));
};

describe("errors on the wire", () => {
  const codes: Record<ErrorKind, string> = {
    invalid: "InvalidArgument",
    unauthenticated: "Unauthenticated",
    forbidden: "PermissionDenied",
    "not-found": "NotFound",
    "already-exists": "AlreadyExists",
    precondition: "FailedPrecondition",
    conflict: "Aborted",
    exhausted: "ResourceExhausted",
    unavailable: "Unavailable",
    deadline: "DeadlineExceeded",
  };
  for (const [kind, code] of Object.entries(codes)) {
    it(`have the code ${code} for a domain error of the kind "${kind}"`, async () => {
      const error = new DomainError(kind as ErrorKind, "SOME_REASON", "A sentence.", {
        metadata: { a: "1" },
        retryAfterMs: 1_500,
      });
      expect(await refusalOf(failing(error).getProfile({}))).to.deep.include({
        code,
        reason: "SOME_REASON",
        message: "A sentence.",
        metadata: { a: "1" },
        retryAfterMs: 1_500,
      });
    });
  }

  it("name each faulty field with its own reason", async () => {
    const error = fieldsInvalid([
      { field: "a", description: "A is wrong", reason: "WRONG" },
      { field: "b[0].c", description: "C is required", reason: "REQUIRED" },
    ]);
    expect(await refusalOf(failing(error).getProfile({}))).to.deep.include({
      message: "A is wrong; C is required",
      fields: { a: "A is wrong", "b[0].c": "C is required" },
      reasons: { a: "WRONG", "b[0].c": "REQUIRED" },
    });
  });

  it("name what was not found", async () => {
    expect(await refusalOf(failing(notFound("Order", "42")).getProfile({}))).to.include({
      reason: "ORDER_NOT_FOUND",
      resource: "Order 42",
    });
  });

  it("say nothing of an unknown fault but a request id to ask about", async () => {
    const error = await failing(new Error("password of the database is hunter2"))
      .getProfile({})
      .catch(ConnectError.from);
    expect(await refusalOf(Promise.reject(error))).to.include({
      code: "Internal",
      reason: "INTERNAL",
      message: "internal error",
    });
    expect((error as ConnectError).findDetails(RequestInfoSchema)[0]?.requestId).to.equal("req-1");
    expect(JSON.stringify(error)).not.to.include("hunter2");
  });

  it("tell a database that is away from a fault, and when to come back", async () => {
    const away = new ConnectionRefusedError(Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" }));
    expect(await refusalOf(failing(away).getProfile({}))).to.include({
      code: "Unavailable",
      reason: "DATABASE_UNAVAILABLE",
      retryAfterMs: 1_000,
    });
  });

  it("keep the code of the RPC library's own errors, and give them a reason", async () => {
    const error = new ConnectError("no such thing", Code.Unimplemented);
    expect(await refusalOf(failing(error).getProfile({}))).to.include({
      code: "Unimplemented",
      reason: "UNIMPLEMENTED",
    });
  });

  it("are translated in the middle of a stream too", async () => {
    const routes = (router: ConnectRouter) => {
      router.service(OrderService, {
        async *watchOrders() {
          yield create(WatchOrdersResponseSchema);
          throw new Error("secret");
        },
      });
    };
    const read = async () => {
      for await (const _ of createClient(OrderService, under([errors()], routes)).watchOrders({})) {
      }
    };
    expect(await refusalOf(read())).to.include({ code: "Internal", message: "internal error" });
  });
});

describe("the deadline", () => {
  const waiting = (onCall: (call: Call) => void = () => {}) => {
    const routes = (router: ConnectRouter) => {
      router.service(UserService, {
        getProfile: (_, context) => {
          onCall(callOf(context));
          return new Promise<MessageInitShape<typeof UserService.method.getProfile.output>>(() => {});
        },
      });
    };
    return createClient(UserService, under([errors(), deadline()], routes));
  };
  let clock: sinon.SinonFakeTimers | undefined;
  afterEach(() => clock?.restore());

  it("is 15 s where the client sets none", async () => {
    clock = sinon.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
    const given = Promise.withResolvers<number>();
    const refusal = refusalOf(waiting((call) => given.resolve(call.deadline - Date.now())).getProfile({}));
    expect(await given.promise).to.equal(15_000);
    await clock.tickAsync(15_001);
    expect(await refusal).to.include({ code: "DeadlineExceeded", reason: "DEADLINE_EXCEEDED" });
  });

  it("is the client's own, up to 60 s, by either protocol's header", async () => {
    const given: number[] = [];
    clock = sinon.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date"] });
    for (const headers of [
      { "connect-timeout-ms": "2500" },
      { "grpc-timeout": "3S" },
      { "grpc-timeout": "500000u" },
      { "grpc-timeout": "9H" },
    ]) {
      const reached = Promise.withResolvers<number>();
      waiting((call) => reached.resolve(call.deadline - Date.now()))
        .getProfile({}, { headers })
        .catch(() => {});
      given.push(await reached.promise);
    }
    await clock.tickAsync(60_001);
    expect(given).to.deep.equal([2_500, 3_000, 500, 60_000]);
  });
});

describe("the log of a call", () => {
  const lines: Record<string, unknown>[] = [];
  const sink = new Writable({
    write(chunk, _, done) {
      lines.push(JSON.parse(String(chunk)));
      done();
    },
  });
  const log = pino({ base: null }, sink);
  beforeEach(() => {
    lines.length = 0;
  });

  it("is one line with method, code, duration, caller and request id", async () => {
    const call = { ...aCall(), caller: { userId: "u1", role: "USER" as const, sessionId: "s1" } };
    const routes = (router: ConnectRouter) => router.service(UserService, { getProfile: () => ({}) });
    await createClient(
      UserService,
      under([logging(log), errors()], routes as (router: ConnectRouter) => void, call),
    ).getProfile({});
    expect(lines).to.have.length(1);
    expect(lines[0]).to.include({
      method: "tradepost.user.v1.UserService/GetProfile",
      code: "ok",
      userId: "u1",
      requestId: "req-1",
    });
    expect(lines[0]?.["durationMs"]).to.be.a("number");
  });

  it("has the cause of a fault of our own, with its stack", async () => {
    const routes = (router: ConnectRouter) => {
      router.service(UserService, {
        getProfile() {
          throw new Error("the cause");
        },
      });
    };
    await createClient(UserService, under([logging(log), errors()], routes))
      .getProfile({})
      .catch(() => {});
    expect(lines[0]).to.include({ code: "internal", level: 50 });
    expect(lines[0]?.["err"]).to.include({ message: "the cause" });
    expect(JSON.stringify(lines[0]?.["err"])).to.include("interceptors.test");
  });

  it("of a stream comes when the stream has ended", async () => {
    const routes = (router: ConnectRouter) => {
      router.service(OrderService, {
        async *watchOrders() {
          yield create(WatchOrdersResponseSchema);
          expect(lines).to.have.length(0);
          yield create(WatchOrdersResponseSchema);
        },
      });
    };
    for await (const _ of createClient(OrderService, under([logging(log), errors()], routes)).watchOrders({})) {
    }
    expect(lines.map(({ method, code }) => [method, code])).to.deep.equal([
      ["tradepost.order.v1.OrderService/WatchOrders", "ok"],
    ]);
  });
});

describe("request ids", () => {
  const server = useServer();
  const call = async (headers: Record<string, string>) => {
    let seen: string | null = null;
    const { users } = await newCustomer(server);
    await users.getProfile(
      {},
      {
        headers,
        onHeader: (header) => {
          seen = header.get("x-request-id");
        },
      },
    );
    return seen;
  };

  it("are the client's, where they are sound", async () => {
    expect(await call({ "x-request-id": "trace-7" })).to.equal("trace-7");
  });

  it("are made up otherwise", async () => {
    expect(await call({})).to.match(/^[0-9a-f-]{36}$/);
    expect(await call({ "x-request-id": "with spaces and so on" })).to.match(/^[0-9a-f-]{36}$/);
  });
});

describe("context", () => {
  it("is missed loudly by a service whose interceptors did not run", () => {
    expect(() => callOf({ values: createContextValues() })).to.throw("the interceptors did not run");
  });
});
