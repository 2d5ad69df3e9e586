import { createCipheriv, createDecipheriv, createPublicKey, type KeyObject, randomBytes } from "node:crypto";
import {
  type CryptoKey,
  calculateJwkThumbprint,
  exportJWK,
  exportPKCS8,
  generateKeyPair,
  importPKCS8,
  type JWK,
} from "jose";
import type { Clock } from "../deps.ts";
import type { SigningKey, SigningKeyStore } from "./signing-key-store.ts";
import { ACCESS_TOKEN_LIFETIME_MS, CLOCK_TOLERANCE_MS } from "./token-lifetimes.ts";

export const ALGORITHM = "EdDSA";
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
/** At most one look into the database for unknown key ids in this time, so that forged ones cost nothing. */
const UNKNOWN_KEY_PAUSE_MS = 1_000;
/** Keys that were read longer ago are read again when they are used. */
const RELOAD_MS = 30_000;
/** Clients may keep the keys this long. */
export const JWKS_MAX_AGE_MS = 300_000;
/** A new key is published for so long before it signs that every replica and every client has read it. */
const PUBLISH_MS = JWKS_MAX_AGE_MS + 2 * RELOAD_MS;
/** Tokens of a key are good for so long after its successor signs. */
const SUPERSEDED_MS = ACCESS_TOKEN_LIFETIME_MS + CLOCK_TOLERANCE_MS;

interface Signer {
  readonly id: string;
  readonly privateKey: CryptoKey;
}

interface LoadedKey extends Signer {
  readonly publicJwk: JWK;
  readonly publicKey: KeyObject;
  readonly activatesAtMs: number;
}

/** What a rotation did. */
export interface Rotation {
  /** The new key, or one that was waiting already. */
  readonly next: Pick<SigningKey, "id" | "activateTime">;
  /** Ids of old keys, which are of no use any more. */
  readonly deleted: readonly string[];
}

/** The keys that sign and check access tokens, shared by all replicas through the database. */
export class SigningKeys {
  readonly #store: SigningKeyStore;
  readonly #clock: Clock;
  readonly #secretKey: Buffer;
  /** Those that sign last come first. */
  #keys: readonly LoadedKey[] = [];
  /** By the service's clock. */
  #loadedAtMs = Number.NEGATIVE_INFINITY;
  /** By the monotonic clock. */
  #askedAtMs = Number.NEGATIVE_INFINITY;
  #loading: Promise<void> | undefined;

  constructor(store: SigningKeyStore, clock: Clock, secretKey: Buffer) {
    this.#store = store;
    this.#clock = clock;
    this.#secretKey = secretKey;
  }

  /**
   * Loads the keys, and makes the first one on a new database.
   * @throws Error naming SECRET_KEY when the keys were encrypted with another one.
   */
  async load(): Promise<void> {
    if ((await this.#store.list()).length === 0) {
      await this.#store.createFirst(await this.#generate(this.#clock.now(), 0));
    }
    await this.#reload();
  }

  /**
   * The key that signs now: of those whose time has come the newest.
   * @throws Error when the keys are due to be read again and the database cannot be read.
   */
  async signer(): Promise<Signer> {
    if (this.#isDue) await this.#reload();
    const nowMs = this.#clock.now().getTime();
    // With a clock that is far behind, none has come: the first one is known to everybody.
    const signer = this.#keys.find(({ activatesAtMs }) => activatesAtMs <= nowMs) ?? this.#keys.at(-1);
    if (signer === undefined) throw new Error("the signing keys are not loaded");
    return signer;
  }

  /** RFC 7517. Where the database cannot be read, the keys as they were. */
  async jwks(): Promise<{ readonly keys: readonly JWK[] }> {
    if (this.#isDue) await this.#reload().catch(() => {});
    return { keys: this.#keys.map(({ publicJwk }) => publicJwk) };
  }

  /**
   * The public key of that id, also one that another replica has just made; undefined when there is none.
   * @throws Error when the database had to be asked and cannot be.
   */
  async publicKey(id: string): Promise<KeyObject | undefined> {
    // A replica that only checks has to learn too that a key is gone; no call waits for that.
    if (this.#isDue) this.#reload().catch(() => {});
    const known = this.#find(id);
    if (known !== undefined) return known;
    // Whoever comes while it is read waits for that, so that no token of a new key is refused by its coming second.
    if (this.#loading === undefined && performance.now() - this.#askedAtMs < UNKNOWN_KEY_PAUSE_MS) return undefined;
    this.#askedAtMs = performance.now();
    await this.#reload();
    return this.#find(id);
  }

  /**
   * Makes a key that is published at once and signs once everybody has had the time to read it, and deletes those whose
   * tokens have all expired. While a new key waits for its time no other one is made.
   */
  async rotate(): Promise<Rotation> {
    const now = this.#clock.now();
    const next = await this.#store.createNext(await this.#generate(now, PUBLISH_MS));
    const deleted = await this.#store.deleteSuperseded(new Date(now.getTime() - SUPERSEDED_MS));
    return { next, deleted };
  }

  get #isDue(): boolean {
    return this.#clock.now().getTime() - this.#loadedAtMs >= RELOAD_MS;
  }

  #find(id: string): KeyObject | undefined {
    return this.#keys.find((key) => key.id === id)?.publicKey;
  }

  #reload(): Promise<void> {
    this.#loading ??= this.#readKeys().finally(() => {
      this.#loading = undefined;
    });
    return this.#loading;
  }

  async #readKeys(): Promise<void> {
    const readAtMs = this.#clock.now().getTime();
    const rows = await this.#store.list();
    this.#keys = await Promise.all(rows.map((row) => this.#keys.find(({ id }) => id === row.id) ?? this.#loadKey(row)));
    this.#loadedAtMs = readAtMs;
  }

  async #loadKey(row: SigningKey): Promise<LoadedKey> {
    const publicJwk = row.publicKey as JWK;
    return {
      id: row.id,
      publicJwk,
      publicKey: createPublicKey({ key: { ...publicJwk }, format: "jwk" }),
      privateKey: await importPKCS8(this.#decrypt(row), ALGORITHM),
      activatesAtMs: row.activateTime.getTime(),
    };
  }

  async #generate(now: Date, publishMs: number): Promise<SigningKey> {
    const { publicKey, privateKey } = await generateKeyPair(ALGORITHM, { crv: "Ed25519", extractable: true });
    const jwk = await exportJWK(publicKey);
    const id = await calculateJwkThumbprint(jwk);
    return {
      id,
      publicKey: { ...jwk, kid: id, alg: ALGORITHM, use: "sig" },
      privateKey: this.#encrypt(await exportPKCS8(privateKey), id),
      createTime: now,
      activateTime: new Date(now.getTime() + publishMs),
    };
  }

  #encrypt(plain: string, keyId: string): Buffer {
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv("aes-256-gcm", this.#secretKey, nonce).setAAD(Buffer.from(keyId));
    const ciphertext = Buffer.concat([cipher.update(plain, "utf8"), cipher.final()]);
    return Buffer.concat([nonce, cipher.getAuthTag(), ciphertext]);
  }

  #decrypt({ id, privateKey }: SigningKey): string {
    const nonce = privateKey.subarray(0, NONCE_BYTES);
    const tag = privateKey.subarray(NONCE_BYTES, NONCE_BYTES + TAG_BYTES);
    try {
      const decipher = createDecipheriv("aes-256-gcm", this.#secretKey, nonce, { authTagLength: TAG_BYTES })
        .setAAD(Buffer.from(id))
        .setAuthTag(tag);
      const ciphertext = privateKey.subarray(NONCE_BYTES + TAG_BYTES);
      return Buffer.concat([decipher.update(ciphertext), decipher.final()]).toString("utf8");
    } catch (cause) {
      throw new Error("SECRET_KEY is not the one that this database's signing keys were encrypted with", { cause });
    }
  }
}
