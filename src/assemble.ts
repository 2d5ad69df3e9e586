import { metrics as openTelemetry } from "@opentelemetry/api";
import type { Logger } from "pino";
import type { Config } from "./config.ts";
import { Database } from "./db/database.ts";
import { Listener } from "./db/listen.ts";
import { PageTokens } from "./db/page.ts";
import type { Clock, Deps } from "./deps.ts";
import { openFiles } from "./files/open-files.ts";
import type { startSweep } from "./jobs/sweep.ts";
import type { JobHandlers } from "./jobs/worker.ts";
import type { Mail } from "./mail/mail.ts";
import { openMail } from "./mail/open-mail.ts";
import { CatalogStore } from "./orders/catalog-store.ts";
import { expireOrders } from "./orders/expire-orders.ts";
import { OrderFeed } from "./orders/order-feed.ts";
import { OrderStore } from "./orders/store.ts";
import { DisputeStore } from "./payments/dispute-store.ts";
import type { FraudCheck } from "./payments/fraud.ts";
import { FraudFactStore } from "./payments/fraud-fact-store.ts";
import { fraudRules } from "./payments/fraud-rules.ts";
import { remoteFraudCheck } from "./payments/fraud-service.ts";
import type { Gateways } from "./payments/gateways/gateways.ts";
import { PaymentHistoryStore } from "./payments/payment-history-store.ts";
import { paymentJobs } from "./payments/payment-jobs.ts";
import { webhookJobs } from "./payments/process-webhook.ts";
import { forgetWebhooks } from "./payments/receive-webhook.ts";
import { reconcilePayments } from "./payments/reconcile-payments.ts";
import { reconcileRefunds } from "./payments/reconcile-refunds.ts";
import { refundJobs } from "./payments/refund-jobs.ts";
import { RefundStore } from "./payments/refund-store.ts";
import { reverseCharges } from "./payments/reverse-charges.ts";
import { RewardStore } from "./payments/reward-store.ts";
import { PaymentStore } from "./payments/store.ts";
import { WebhookStore } from "./payments/webhook-store.ts";
import { rateLimits } from "./rate-limits.ts";
import { derivedKey, keptSecretKey } from "./secret-key.ts";
import { Metrics } from "./telemetry/metrics.ts";
import { SecurityLog } from "./telemetry/security-log.ts";
import { accountJobs } from "./users/account-jobs.ts";
import { AccountTokenStore } from "./users/account-token-store.ts";
import { AddressStore } from "./users/address-store.ts";
import { AvatarImages } from "./users/avatar-image.ts";
import { avatarJobs } from "./users/avatar-jobs.ts";
import { AvatarStore } from "./users/avatar-store.ts";
import { LockStore } from "./users/lock-store.ts";
import { LOCK_RULE } from "./users/locks.ts";
import { Passwords } from "./users/passwords.ts";
import { RefreshTokens } from "./users/refresh-tokens.ts";
import { Revocations } from "./users/revocations.ts";
import { cleanUpSessions } from "./users/session-cleanup.ts";
import { SessionStore } from "./users/session-store.ts";
import { SigningKeyStore } from "./users/signing-key-store.ts";
import { SigningKeys } from "./users/signing-keys.ts";
import { UserStore } from "./users/store.ts";
import { Tokens } from "./users/tokens.ts";

interface Parts {
  readonly config: Config;
  readonly log: Logger;
  readonly databaseUrl: string;
  readonly gateways: Gateways;
  readonly metrics?: Metrics;
  /** Not given: as the settings want it. */
  readonly fraud?: FraudCheck;
  /** Not given: as the settings want it. */
  readonly mail?: Mail;
  readonly clock?: Clock;
}

export const systemClock: Clock = { now: () => new Date() };

/** The fraud check as the settings want it: the service of FRAUD_URL, otherwise our own rules. */
function openFraudCheck({ fraud: { url, rules, ...rest } }: Config): FraudCheck {
  return url === undefined ? fraudRules(rules) : remoteFraudCheck({ url, ...rest });
}

export function openDatabase({ database }: Config, url: string): Database {
  return new Database({ url, poolMax: database.poolMax, prepared: database.prepared });
}

/** Makes everything that the services need, on a migrated database. Whoever calls disconnects, and closes the gateways and `mail`. */
export async function assemble({
  config,
  log,
  databaseUrl,
  gateways,
  metrics = new Metrics(openTelemetry.getMeter("tradepost")),
  fraud = openFraudCheck(config),
  mail: givenMail,
  clock = systemClock,
}: Parts): Promise<Deps> {
  const mail = givenMail ?? (await openMail(config, log));
  const files = await openFiles({ dataDir: config.dataDir, ...config.avatars });
  const db = openDatabase(config, databaseUrl);
  const secretKey = config.secretKey ?? keptSecretKey(config.dataDir);
  const users = new UserStore(db);
  const orders = new OrderStore(db);
  const addresses = new AddressStore(db);
  const sessions = new SessionStore(db);
  const signingKeys = new SigningKeys(new SigningKeyStore(db), clock, derivedKey(secretKey, "signing keys"));
  const listener = new Listener({ url: databaseUrl, log });
  const revocations = new Revocations({ store: sessions, listener, clock, log });
  try {
    await Promise.all([signingKeys.load(), listener.start(), revocations.start()]);
  } catch (error) {
    await disconnect({ db, listener, revocations });
    throw error;
  }
  const orderFeed = new OrderFeed({ store: orders, listener, log });
  orders.onChange = () => orderFeed.announce();
  return {
    config,
    log,
    securityLog: new SecurityLog(log, derivedKey(secretKey, "emails in logs")),
    clock,
    db,
    listener,
    pageTokens: new PageTokens(derivedKey(secretKey, "page tokens")),
    rateLimits: rateLimits(db, config.rateLimits),
    users,
    addresses,
    sessions,
    accountTokens: new AccountTokenStore(db),
    files,
    avatars: new AvatarStore(db),
    images: new AvatarImages(),
    locks: new LockStore(db, LOCK_RULE),
    passwords: new Passwords(config.passwords),
    signingKeys,
    tokens: new Tokens(signingKeys, revocations, clock, config.tokens),
    refreshTokens: new RefreshTokens(derivedKey(secretKey, "refresh tokens")),
    revocations,
    catalog: new CatalogStore(db),
    orders,
    orderFeed,
    payments: new PaymentStore(db),
    paymentHistory: new PaymentHistoryStore(db),
    rewards: new RewardStore(db),
    fraudFacts: new FraudFactStore(db, config.fraud.rules),
    refunds: new RefundStore(db),
    disputes: new DisputeStore(db),
    webhooks: new WebhookStore(db),
    gateways,
    metrics,
    fraud,
    mail,
  };
}

/** Closes every connection to the database that {@link assemble} has opened. */
export async function disconnect({
  db,
  listener,
  revocations,
}: Pick<Deps, "db" | "listener" | "revocations">): Promise<void> {
  revocations.close();
  await listener.close();
  await db.close();
}

/** The handlers of every job that a feature enqueues. */
export function jobHandlers(deps: Deps): JobHandlers {
  return { ...accountJobs(deps), ...avatarJobs(deps), ...paymentJobs(deps), ...refundJobs(deps), ...webhookJobs(deps) };
}

const MINUTE_MS = 60_000;

/** What every feature looks for again and again, because it must happen in time. */
export function sweeps(deps: Deps): readonly Omit<Parameters<typeof startSweep>[0], "log">[] {
  return [
    { name: "expire-orders", intervalMs: 1_000, run: () => expireOrders(deps) },
    { name: "reconcile-payments", intervalMs: 1_000, run: () => reconcilePayments(deps) },
    { name: "reverse-charges", intervalMs: 1_000, run: () => reverseCharges(deps) },
    { name: "reconcile-refunds", intervalMs: 1_000, run: () => reconcileRefunds(deps) },
    { name: "forget-webhooks", intervalMs: 10 * MINUTE_MS, run: () => forgetWebhooks(deps) },
    { name: "clean-up-sessions", intervalMs: 10 * MINUTE_MS, run: () => cleanUpSessions(deps) },
  ];
}
