// What the client is made of, without Node.js: for browsers and other platforms, which bring their own transport.

import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { Health } from "../../gen/grpc/health/v1/health_pb.js";
import { CatalogService } from "../../gen/tradepost/order/v1/catalog_service_pb.js";
import { OrderService } from "../../gen/tradepost/order/v1/order_service_pb.js";
import { PaymentService } from "../../gen/tradepost/payment/v1/payment_service_pb.js";
import { AuthService } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { UserService } from "../../gen/tradepost/user/v1/user_service_pb.js";
import { bearerToken, retry } from "./interceptors.ts";
import { type Credentials, createSession, type Session, type TokenSource } from "./session.ts";

export {
  errorInfo,
  type FieldViolation,
  reasonOf,
  retryDelayMs,
  type TradepostErrorInfo,
  violationsOf,
} from "./errors.ts";
export { type Credentials, createSession, type Session, type TokenSource } from "./session.ts";

const defaultMaxRetries = 2;

/** How the clients identify themselves and behave. */
export interface ClientOptions {
  /** The access token to send: itself, a function that gives it, or a source such as a {@link Session}. */
  readonly token?: string | (() => string | undefined | Promise<string | undefined>) | TokenSource | undefined;
  /** Logs in as this account and stays logged in; takes the place of `token`. */
  readonly login?: Credentials | undefined;
  /**
   * How often a call is repeated that failed for a passing reason and is safe to repeat: those that only read, and
   * those with a `request_id`. Default 2; 0 never repeats.
   */
  readonly maxRetries?: number | undefined;
  /** Interceptors around every call; they see a repeated call once. */
  readonly interceptors?: readonly Interceptor[] | undefined;
}

/** A typed client for each service. */
export interface TradepostClients {
  readonly auth: Client<typeof AuthService>;
  readonly users: Client<typeof UserService>;
  readonly catalog: Client<typeof CatalogService>;
  readonly orders: Client<typeof OrderService>;
  readonly payments: Client<typeof PaymentService>;
  readonly health: Client<typeof Health>;
  /** The session of `login`; undefined without it. */
  readonly session: Session | undefined;
  /** A client for any other service behind the same address. */
  client<S extends DescService>(service: S): Client<S>;
}

/** A new value for the `request_id` of one intended change; keep it to repeat that very request. */
export function newRequestId(): string {
  return crypto.randomUUID();
}

function tokenSource(token: ClientOptions["token"]): TokenSource | undefined {
  if (typeof token === "string") return { token: () => token, renew: () => token };
  // A function may well know a newer token by the time the old one is refused.
  if (typeof token === "function") return { token, renew: token };
  return token;
}

/**
 * Makes the typed clients over a transport of your own.
 *
 * @param makeTransport makes a transport with the given interceptors; called twice at most
 * @throws TypeError where both `token` and `login` are given, or `maxRetries` is not a whole number from 0 to 10
 */
export function createClients(
  makeTransport: (interceptors: Interceptor[]) => Transport,
  options: ClientOptions = {},
): TradepostClients {
  const { token, login, maxRetries = defaultMaxRetries, interceptors = [] } = options;
  if (token !== undefined && login !== undefined) throw new TypeError("Give either a token or a login, not both.");
  if (!Number.isInteger(maxRetries) || maxRetries < 0 || maxRetries > 10) {
    throw new TypeError(`maxRetries is a whole number from 0 to 10, not ${maxRetries}.`);
  }
  // The session's own calls go without the token that they are to obtain.
  const session = login && createSession(createClient(AuthService, makeTransport([...interceptors])), login);
  const source = session ?? tokenSource(token);
  const chain = [...interceptors, retry(maxRetries), ...(source === undefined ? [] : [bearerToken(source)])];
  const transport = makeTransport(chain);
  return {
    auth: createClient(AuthService, transport),
    users: createClient(UserService, transport),
    catalog: createClient(CatalogService, transport),
    orders: createClient(OrderService, transport),
    payments: createClient(PaymentService, transport),
    health: createClient(Health, transport),
    session,
    client: (service) => createClient(service, transport),
  };
}
