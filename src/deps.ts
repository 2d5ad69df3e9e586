import type { Logger } from "pino";
import type { Config } from "./config.ts";
import type { Database } from "./db/database.ts";
import type { PageTokens } from "./db/page.ts";
import type { CatalogStore } from "./orders/catalog-store.ts";
import type { OrderStore } from "./orders/store.ts";
import type { Gateway } from "./payments/gateways/gateway.ts";
import type { FraudCheck } from "./payments/screen.ts";
import type { PaymentStore } from "./payments/store.ts";
import type { AddressStore } from "./users/address-store.ts";
import type { Passwords } from "./users/passwords.ts";
import type { SessionStore } from "./users/session-store.ts";
import type { UserStore } from "./users/store.ts";
import type { Tokens } from "./users/tokens.ts";

/** Where the time comes from; tests replace it. */
export interface Clock {
  now(): Date;
}

/** Everything that a service needs from outside itself, made once at start. Functions take the part they use. */
export interface Deps {
  readonly config: Config;
  readonly log: Logger;
  readonly clock: Clock;
  readonly db: Database;
  readonly pageTokens: PageTokens;
  readonly users: UserStore;
  readonly addresses: AddressStore;
  readonly sessions: SessionStore;
  readonly passwords: Passwords;
  readonly tokens: Tokens;
  readonly catalog: CatalogStore;
  readonly orders: OrderStore;
  readonly payments: PaymentStore;
  readonly gateway: Gateway;
  readonly fraud: FraudCheck;
}
