import type { Logger } from "pino";
import type { Config } from "./config.ts";
import { Database } from "./db/database.ts";
import { PageTokens } from "./db/page.ts";
import type { Clock, Deps } from "./deps.ts";
import { CatalogStore } from "./orders/catalog-store.ts";
import { OrderStore } from "./orders/store.ts";
import type { Gateway } from "./payments/gateways/gateway.ts";
import { type FraudCheck, noFraudRules } from "./payments/screen.ts";
import { PaymentStore } from "./payments/store.ts";
import { derivedKey, keptSecretKey } from "./secret-key.ts";
import { AddressStore } from "./users/address-store.ts";
import { Passwords } from "./users/passwords.ts";
import { SessionStore } from "./users/session-store.ts";
import { SigningKeyStore } from "./users/signing-key-store.ts";
import { SigningKeys } from "./users/signing-keys.ts";
import { UserStore } from "./users/store.ts";
import { Tokens } from "./users/tokens.ts";

interface Parts {
  readonly config: Config;
  readonly log: Logger;
  readonly databaseUrl: string;
  readonly gateway: Gateway;
  readonly fraud?: FraudCheck;
  readonly clock?: Clock;
}

export const systemClock: Clock = { now: () => new Date() };

export function openDatabase({ database }: Config, url: string): Database {
  return new Database({ url, poolMax: database.poolMax, prepared: database.prepared });
}

/** Makes everything that the services need, on a migrated database. Whoever calls closes `db` and `gateway`. */
export async function assemble({
  config,
  log,
  databaseUrl,
  gateway,
  fraud = noFraudRules,
  clock = systemClock,
}: Parts): Promise<Deps> {
  const db = openDatabase(config, databaseUrl);
  const secretKey = config.secretKey ?? keptSecretKey(config.dataDir);
  const users = new UserStore(db);
  const orders = new OrderStore(db);
  const addresses = new AddressStore(db);
  const sessions = new SessionStore(db);
  const signingKeys = new SigningKeys(new SigningKeyStore(db), clock, derivedKey(secretKey, "signing keys"));
  try {
    await signingKeys.load();
  } catch (error) {
    await db.close();
    throw error;
  }
  return {
    config,
    log,
    clock,
    db,
    pageTokens: new PageTokens(derivedKey(secretKey, "page tokens")),
    users,
    addresses,
    sessions,
    passwords: new Passwords(config.passwords),
    tokens: new Tokens(signingKeys, clock, config.tokens),
    catalog: new CatalogStore(db),
    orders,
    payments: new PaymentStore(db, orders),
    gateway,
    fraud,
  };
}
