import http from "node:http";
import http2 from "node:http2";
import type { AddressInfo, Server } from "node:net";
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { CatalogService } from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";

/** An error as the server sends it. */
export function refusal(
  code: Code,
  reason: string,
  extra: { retryAfterMs?: number; field?: string } = {},
): ConnectError {
  const error = new ConnectError(`refused: ${reason}`, code);
  error.details.push({
    desc: ErrorInfoSchema,
    value: create(ErrorInfoSchema, { reason, domain: "tradepost", metadata: { a: "1" } }),
  });
  if (extra.retryAfterMs !== undefined) {
    const nanos = extra.retryAfterMs * 1_000_000;
    error.details.push({
      desc: RetryInfoSchema,
      value: create(RetryInfoSchema, { retryDelay: { seconds: 0n, nanos } }),
    });
  }
  if (extra.field !== undefined) {
    const fieldViolations = [{ field: extra.field, description: "is wrong", reason: "WRONG" }];
    error.details.push({ desc: BadRequestSchema, value: create(BadRequestSchema, { fieldViolations }) });
  }
  return error;
}

function portOf(server: Server | undefined): number {
  return (server?.address() as AddressInfo | undefined)?.port ?? 0;
}

/**
 * A scripted server for tests of the client: it issues tokens, counts calls, and fails as it is told. The real server
 * is tried by the end-to-end tests; this one gives answers that a healthy server gives rarely.
 */
export class StubServer {
  logins = 0;
  refreshes = 0;
  calls = 0;
  readonly authorizations: (string | null)[] = [];
  /** Called before the answer of any RPC of the catalogue and of orders; it may throw or wait. */
  onCall: (call: number) => void | Promise<void> = () => {};
  onLogin: () => void | Promise<void> = () => {};
  onRefresh: () => void | Promise<void> = () => {};
  tokenLifeMs = 900_000;
  #valid = "";
  #http1: http.Server | undefined;
  #http2: http2.Http2Server | undefined;
  #sessions = new Set<http2.ServerHttp2Session>();

  async start(): Promise<void> {
    const handler = connectNodeAdapter({ routes: (router) => this.#routes(router) });
    this.#http1 = http.createServer(handler).listen(0, "127.0.0.1");
    this.#http2 = http2.createServer(handler).listen(0, "127.0.0.1");
    this.#http2.on("session", (session) => {
      this.#sessions.add(session);
      session.once("close", () => this.#sessions.delete(session));
    });
    await Promise.all(
      [this.#http1, this.#http2].map((server) => new Promise((resolve) => server.once("listening", resolve))),
    );
  }

  async stop(): Promise<void> {
    this.#http1?.closeAllConnections();
    for (const session of this.#sessions) session.destroy();
    await Promise.all([this.#http1, this.#http2].map((server) => new Promise((resolve) => server?.close(resolve))));
  }

  get http1Url(): string {
    return `http://127.0.0.1:${portOf(this.#http1)}`;
  }

  get http2Url(): string {
    return `http://127.0.0.1:${portOf(this.#http2)}`;
  }

  /** Makes the server refuse every token that it has given out. */
  revokeTokens(): void {
    this.#valid = "";
  }

  #issue(name: string) {
    this.#valid = `${name}-token`;
    return {
      accessToken: this.#valid,
      accessTokenExpireTime: timestampFromMs(Date.now() + this.tokenLifeMs),
      refreshToken: `${name}-refresh`,
      refreshTokenExpireTime: timestampFromMs(Date.now() + 86_400_000),
    };
  }

  async #answer(context: HandlerContext): Promise<void> {
    this.calls += 1;
    const authorization = context.requestHeader.get("authorization");
    this.authorizations.push(authorization);
    await this.onCall(this.calls);
    if (authorization !== null && authorization !== `Bearer ${this.#valid}` && authorization !== "Bearer fixed") {
      throw refusal(Code.Unauthenticated, "TOKEN_INVALID");
    }
  }

  async *#watch(context: HandlerContext): AsyncGenerator<object> {
    await this.#answer(context);
    yield {};
    yield {};
  }

  #routes(router: ConnectRouter): void {
    router.service(AuthService, {
      login: async () => {
        this.logins += 1;
        await this.onLogin();
        return this.#issue(`login${this.logins}`);
      },
      refreshToken: async () => {
        this.refreshes += 1;
        await this.onRefresh();
        return this.#issue(`refresh${this.refreshes}`);
      },
    });
    router.service(CatalogService, {
      getProduct: async (request, context) => {
        await this.#answer(context);
        return { product: { id: request.productId, name: "Widget" } };
      },
      updateProduct: async (_request, context) => {
        await this.#answer(context);
        return {};
      },
    });
    router.service(OrderService, {
      createOrder: async (request, context) => {
        await this.#answer(context);
        return { order: { id: "order", notes: request.requestId } };
      },
      watchOrders: (_request, context) => this.#watch(context),
    });
  }
}
