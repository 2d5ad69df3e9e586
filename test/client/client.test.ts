import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { expect } from "chai";
import sinon from "sinon";
import { CatalogService } from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { connectErrorFrom, createGrpcJsClient } from "../../src/client/grpc-js.ts";
import {
  createTradepost,
  errorInfo,
  newRequestId,
  reasonOf,
  retryDelayMs,
  type Tradepost,
  type TradepostOptions,
  violationsOf,
} from "../../src/client/index.ts";
import { refusal, StubServer } from "./stub-server.ts";

const login = { email: "ada@tradepost.example", password: "secret" };

/** The error that a call is expected to fail with. */
async function failureOf(call: Promise<unknown>): Promise<ConnectError> {
  try {
    await call;
  } catch (error) {
    return ConnectError.from(error);
  }
  throw new Error("The call succeeded, although it had to fail.");
}

describe("the client", () => {
  let server: StubServer;
  const opened: Tradepost[] = [];
  const open = (options: Partial<TradepostOptions> = {}): Tradepost => {
    const overHttp2 = options.protocol === "grpc" || options.httpVersion === "2";
    const tradepost = createTradepost({ baseUrl: overHttp2 ? server.http2Url : server.http1Url, ...options });
    opened.push(tradepost);
    return tradepost;
  };

  beforeEach(async () => {
    server = new StubServer();
    await server.start();
  });

  afterEach(async () => {
    for (const tradepost of opened.splice(0)) tradepost.close();
    await server.stop();
  });

  describe("protocols", () => {
    const ways: Partial<TradepostOptions>[] = [
      {},
      { httpVersion: "2" },
      { protocol: "grpc-web" },
      { protocol: "grpc-web", httpVersion: "2" },
      { protocol: "grpc" },
      { protocol: "connect", compression: true },
    ];
    for (const way of ways) {
      it(`answers unary and streaming calls with ${JSON.stringify(way)}`, async () => {
        const tradepost = open(way);
        const { product } = await tradepost.catalog.getProduct({ productId: "p1" });
        expect(product?.id).to.equal("p1");
        const received = [];
        for await (const event of tradepost.orders.watchOrders({})) received.push(event);
        expect(received).to.have.length(2);
      });
    }

    it("refuses options that contradict each other, naming them", () => {
      expect(() => open({ protocol: "grpc", httpVersion: "1.1" })).to.throw(TypeError, /gRPC needs HTTP\/2/);
      expect(() => open({ token: "t", login })).to.throw(TypeError, /token or a login/);
      expect(() => open({ maxRetries: -1 })).to.throw(TypeError, /maxRetries/);
      expect(() => createTradepost({ baseUrl: "localhost:8080" })).to.throw(
        TypeError,
        /baseUrl .* not "localhost:8080"/,
      );
    });

    it("ends a call at its deadline", async () => {
      server.onCall = () => new Promise((resolve) => setTimeout(resolve, 2_000).unref());
      const error = await failureOf(open({ defaultTimeoutMs: 100 }).catalog.getProduct({ productId: "p" }));
      expect(error.code).to.equal(Code.DeadlineExceeded);
    });
  });

  describe("tokens", () => {
    let started: sinon.SinonFakeTimers | undefined;
    afterEach(() => started?.restore());

    /** Makes the clock that tokens expire by stand still, but for what the test ticks. */
    function startClock(): sinon.SinonFakeTimers {
      started = sinon.useFakeTimers({ toFake: ["performance"] });
      return started;
    }

    it("sends a fixed token, one from a function, or none", async () => {
      await open({ token: "fixed" }).catalog.getProduct({ productId: "p" });
      await open({ token: async () => "fixed" }).catalog.getProduct({ productId: "p" });
      await open({ token: () => undefined }).catalog.getProduct({ productId: "p" });
      await open().catalog.getProduct({ productId: "p" });
      expect(server.authorizations).to.deep.equal(["Bearer fixed", "Bearer fixed", null, null]);
    });

    it("does not repeat a call whose fixed token is refused", async () => {
      const error = await failureOf(open({ token: "stale" }).catalog.getProduct({ productId: "p" }));
      expect(reasonOf(error)).to.equal("TOKEN_INVALID");
      expect(server.calls).to.equal(1);
    });

    it("asks a function again when its token is refused", async () => {
      const tokens = ["stale", "fixed"];
      await open({ token: () => tokens.shift() }).catalog.getProduct({ productId: "p" });
      expect(server.authorizations).to.deep.equal(["Bearer stale", "Bearer fixed"]);
    });

    it("logs in once for many calls at once", async () => {
      server.onLogin = () => new Promise((resolve) => setTimeout(resolve, 50));
      const { catalog } = open({ login });
      await Promise.all(Array.from({ length: 20 }, () => catalog.getProduct({ productId: "p" })));
      expect(server).to.include({ logins: 1, refreshes: 0, calls: 20 });
    });

    it("refreshes before the token expires, without waiting for a refusal", async () => {
      const clock = startClock();
      server.tokenLifeMs = 60_000;
      const { catalog } = open({ login });
      await catalog.getProduct({ productId: "p" });
      clock.tick(50_000);
      await catalog.getProduct({ productId: "p" });
      expect(server).to.include({ logins: 1, refreshes: 1, calls: 2 });
    });

    it("refreshes once for many calls that are refused at once, and repeats each once", async () => {
      const { catalog } = open({ login });
      await catalog.getProduct({ productId: "p" });
      server.revokeTokens();
      await Promise.all(Array.from({ length: 10 }, () => catalog.getProduct({ productId: "p" })));
      expect(server).to.include({ logins: 1, refreshes: 1 });
      expect(server.calls).to.be.at.most(21);
    });

    for (const code of [Code.Unauthenticated, Code.Unimplemented]) {
      it(`logs in again when refreshing is answered with ${Code[code]}`, async () => {
        const { catalog } = open({ login });
        await catalog.getProduct({ productId: "p" });
        server.revokeTokens();
        server.onRefresh = () => {
          throw refusal(code, "TOKEN_INVALID");
        };
        await catalog.getProduct({ productId: "p" });
        expect(server).to.include({ logins: 2, refreshes: 1 });
      });
    }

    it("gives up, never loops, when even new tokens are refused", async () => {
      server.onCall = () => server.revokeTokens();
      const error = await failureOf(open({ login }).catalog.getProduct({ productId: "p" }));
      expect(reasonOf(error)).to.equal("TOKEN_INVALID");
      expect(server).to.include({ logins: 1, refreshes: 1, calls: 2 });
    });

    it("goes on with a token that is still good when it cannot be refreshed yet", async () => {
      const clock = startClock();
      server.tokenLifeMs = 60_000;
      const { catalog } = open({ login });
      await catalog.getProduct({ productId: "p" });
      server.onRefresh = () => {
        throw refusal(Code.Unavailable, "DATABASE_UNAVAILABLE");
      };
      clock.tick(50_000);
      await catalog.getProduct({ productId: "p" });
      expect(server).to.include({ logins: 1, refreshes: 1, calls: 2 });
    });

    it("does not send wrong credentials again, which would lock the account", async () => {
      server.onLogin = () => {
        throw refusal(Code.Unauthenticated, "CREDENTIALS_INVALID");
      };
      const { catalog } = open({ login });
      for (let call = 0; call < 3; call += 1) {
        expect(reasonOf(await failureOf(catalog.getProduct({ productId: "p" })))).to.equal("CREDENTIALS_INVALID");
      }
      expect(server).to.include({ logins: 1, calls: 0 });
    });

    it("sends another token with the next call after a stream was refused", async () => {
      const { catalog, orders } = open({ login });
      const watch = async () => {
        const events = [];
        for await (const event of orders.watchOrders({})) events.push(event);
        return events;
      };
      await catalog.getProduct({ productId: "p" });
      server.revokeTokens();
      expect(reasonOf(await failureOf(watch()))).to.equal("TOKEN_INVALID");
      expect(await watch()).to.have.length(2);
      expect(server).to.include({ logins: 1, refreshes: 1 });
    });

    it("tries to log in again after the server was away", async () => {
      server.onLogin = () => {
        if (server.logins === 1) throw refusal(Code.Unavailable, "DATABASE_UNAVAILABLE");
      };
      const { users, catalog } = open({ login, maxRetries: 0 });
      expect((await failureOf(users.getProfile({}))).code).to.equal(Code.Unavailable);
      await catalog.getProduct({ productId: "p" });
      expect(server.logins).to.equal(2);
    });

    it("stops waiting for a login at the call's own deadline", async () => {
      server.onLogin = () => new Promise((resolve) => setTimeout(resolve, 2_000).unref());
      const error = await failureOf(open({ login }).catalog.getProduct({ productId: "p" }, { timeoutMs: 100 }));
      expect(error.code).to.equal(Code.DeadlineExceeded);
      expect(server.calls).to.equal(0);
    });
  });

  describe("repeating", () => {
    const failFirst = (failures: number, code: Code, retryAfterMs?: number): void => {
      server.onCall = (call) => {
        if (call <= failures)
          throw refusal(code, "DATABASE_UNAVAILABLE", retryAfterMs === undefined ? {} : { retryAfterMs });
      };
    };

    it("repeats a read that failed for a passing reason", async () => {
      failFirst(2, Code.Unavailable);
      await open().catalog.getProduct({ productId: "p" });
      expect(server.calls).to.equal(3);
    });

    it("repeats a write that has a request_id, with the same one", async () => {
      failFirst(1, Code.Unavailable);
      const requestId = newRequestId();
      const { order } = await open().orders.createOrder({ requestId });
      expect(order?.notes).to.equal(requestId);
      expect(server.calls).to.equal(2);
    });

    it("never repeats a write without one", async () => {
      failFirst(1, Code.Unavailable);
      expect((await failureOf(open().catalog.updateProduct({}))).code).to.equal(Code.Unavailable);
      expect(server.calls).to.equal(1);
    });

    it("never repeats what the server decided", async () => {
      failFirst(5, Code.FailedPrecondition);
      await failureOf(open().orders.createOrder({ requestId: newRequestId() }));
      failFirst(5, Code.Aborted);
      await failureOf(open().catalog.getProduct({ productId: "p" }));
      expect(server.calls).to.equal(2);
    });

    it("gives up after maxRetries", async () => {
      failFirst(10, Code.Unavailable);
      await failureOf(open({ maxRetries: 1 }).catalog.getProduct({ productId: "p" }));
      expect(server.calls).to.equal(2);
    });

    it("waits as long as the server asks", async () => {
      failFirst(1, Code.Unavailable, 300);
      const startMs = performance.now();
      await open().catalog.getProduct({ productId: "p" });
      expect(performance.now() - startMs).to.be.at.least(295);
    });

    it("shows interceptors of the caller one call, however often it is repeated", async () => {
      failFirst(2, Code.Unavailable);
      let seen = 0;
      const count: Interceptor = (next) => (request) => {
        seen += 1;
        return next(request);
      };
      await open({ interceptors: [count] }).catalog.getProduct({ productId: "p" });
      expect(seen).to.equal(1);
    });
  });

  describe("errors", () => {
    it("tells reason, metadata, faulty fields and delay", async () => {
      server.onCall = () => {
        throw refusal(Code.InvalidArgument, "FIELD_INVALID", { field: "items[0].quantity", retryAfterMs: 250 });
      };
      const error = await failureOf(open().catalog.getProduct({ productId: "p" }));
      expect(errorInfo(error)).to.deep.equal({ reason: "FIELD_INVALID", domain: "tradepost", metadata: { a: "1" } });
      expect(violationsOf(error)).to.deep.equal([
        { field: "items[0].quantity", description: "is wrong", reason: "WRONG" },
      ]);
      expect(retryDelayMs(error)).to.equal(250);
    });

    it("has nothing to tell of errors that are not the server's", () => {
      for (const error of [new Error("x"), undefined, "text", new ConnectError("no details", Code.Internal)]) {
        expect([errorInfo(error), reasonOf(error), retryDelayMs(error)]).to.deep.equal([
          undefined,
          undefined,
          undefined,
        ]);
        expect(violationsOf(error)).to.deep.equal([]);
      }
    });
  });

  describe("on @grpc/grpc-js", () => {
    const address = (): string => new URL(server.http2Url).host;

    it("makes unary calls with plain objects", async () => {
      const catalog = createGrpcJsClient(CatalogService, address(), credentials.createInsecure());
      const name = await new Promise((resolve, reject) => {
        catalog.getProduct({ productId: "p" }, (error, response) =>
          error ? reject(error) : resolve(response?.product?.name),
        );
      });
      catalog.close();
      expect(name).to.equal("Widget");
    });

    it("receives streams", async () => {
      const orders = createGrpcJsClient(OrderService, address(), credentials.createInsecure());
      const received = [];
      for await (const event of orders.watchOrders({})) received.push(event);
      orders.close();
      expect(received.map((event) => event.$typeName)).to.deep.equal(
        Array(2).fill("tradepost.order.v1.WatchOrdersResponse"),
      );
    });

    it("reads the details of errors", async () => {
      server.onCall = () => {
        throw refusal(Code.FailedPrecondition, "INSUFFICIENT_STOCK", { field: "items[0]" });
      };
      const catalog = createGrpcJsClient(CatalogService, address(), credentials.createInsecure());
      const failure = await new Promise<ServiceError>((resolve) => {
        catalog.getProduct({ productId: "p" }, new Metadata(), (error) => resolve(error as ServiceError));
      });
      catalog.close();
      const error = connectErrorFrom(failure);
      expect(error).to.include({ code: Code.FailedPrecondition, rawMessage: "refused: INSUFFICIENT_STOCK" });
      expect(reasonOf(error)).to.equal("INSUFFICIENT_STOCK");
      expect(violationsOf(error)).to.have.length(1);
    });
  });
});
