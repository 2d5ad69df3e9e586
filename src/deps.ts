import type { Logger } from "pino";
import type { Config } from "./config.ts";
import type { Database } from "./db/database.ts";
import type { Listener } from "./db/listen.ts";
import type { PageTokens } from "./db/page.ts";
import type { Files } from "./files/files.ts";
import type { Mail } from "./mail/mail.ts";
import type { CatalogStore } from "./orders/catalog-store.ts";
import type { OrderFeed } from "./orders/order-feed.ts";
import type { OrderStore } from "./orders/store.ts";
import type { DisputeStore } from "./payments/dispute-store.ts";
import type { FraudCheck } from "./payments/fraud.ts";
import type { FraudFactStore } from "./payments/fraud-fact-store.ts";
import type { Gateways } from "./payments/gateways/gateways.ts";
import type { PaymentHistoryStore } from "./payments/payment-history-store.ts";
import type { RefundStore } from "./payments/refund-store.ts";
import type { RewardStore } from "./payments/reward-store.ts";
import type { PaymentStore } from "./payments/store.ts";
import type { WebhookStore } from "./payments/webhook-store.ts";
import type { RateLimits } from "./rate-limits.ts";
import type { Metrics } from "./telemetry/metrics.ts";
import type { SecurityLog } from "./telemetry/security-log.ts";
import type { AccountTokenStore } from "./users/account-token-store.ts";
import type { AddressStore } from "./users/address-store.ts";
import type { AvatarImages } from "./users/avatar-image.ts";
import type { AvatarStore } from "./users/avatar-store.ts";
import type { LockStore } from "./users/lock-store.ts";
import type { Passwords } from "./users/passwords.ts";
import type { RefreshTokens } from "./users/refresh-tokens.ts";
import type { Revocations } from "./users/revocations.ts";
import type { SessionStore } from "./users/session-store.ts";
import type { SigningKeys } from "./users/signing-keys.ts";
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
  readonly securityLog: SecurityLog;
  readonly clock: Clock;
  readonly db: Database;
  readonly listener: Listener;
  readonly pageTokens: PageTokens;
  readonly rateLimits: RateLimits;
  readonly users: UserStore;
  readonly addresses: AddressStore;
  readonly sessions: SessionStore;
  readonly accountTokens: AccountTokenStore;
  readonly files: Files;
  readonly avatars: AvatarStore;
  readonly images: AvatarImages;
  readonly locks: LockStore;
  readonly passwords: Passwords;
  readonly signingKeys: SigningKeys;
  readonly tokens: Tokens;
  readonly refreshTokens: RefreshTokens;
  readonly revocations: Revocations;
  readonly catalog: CatalogStore;
  readonly orders: OrderStore;
  readonly orderFeed: OrderFeed;
  readonly payments: PaymentStore;
  readonly paymentHistory: PaymentHistoryStore;
  readonly rewards: RewardStore;
  readonly fraudFacts: FraudFactStore;
  readonly refunds: RefundStore;
  readonly disputes: DisputeStore;
  readonly webhooks: WebhookStore;
  readonly gateways: Gateways;
  readonly metrics: Metrics;
  readonly fraud: FraudCheck;
  readonly mail: Mail;
}
