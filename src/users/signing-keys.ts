import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto";
import {
  type CryptoKey,
  calculateJwkThumbprint,
  exportJWK,
  exportPKCS8,
  generateKeyPair,
  importJWK,
  importPKCS8,
  type JWK,
} from "jose";
import type { Clock } from "../deps.ts";
import type { SigningKey, SigningKeyStore } from "./signing-key-store.ts";

export const ALGORITHM = "EdDSA";
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
/** At most one look into the database for unknown key ids in this time, so that forged ones cost nothing. */
const RELOAD_PAUSE_MS = 1_000;

interface LoadedKey {
  readonly id: string;
  readonly publicJwk: JWK;
  readonly publicKey: CryptoKey;
  readonly row: SigningKey;
}

/** The keys that sign and check access tokens, shared by all replicas through the database. */
export class SigningKeys {
  readonly #store: SigningKeyStore;
  readonly #clock: Clock;
  readonly #secretKey: Buffer;
  #keys: readonly LoadedKey[] = [];
  #signer: { readonly id: string; readonly privateKey: CryptoKey } | undefined;
  #reloadedAt = 0;

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
    if ((await this.#store.list()).length === 0) await this.#store.createFirst(await this.#generate());
    await this.#reload();
  }

  /** The newest key, which signs. */
  get signer(): { readonly id: string; readonly privateKey: CryptoKey } {
    if (this.#signer === undefined) throw new Error("the signing keys are not loaded");
    return this.#signer;
  }

  /** RFC 7517 */
  get jwks(): { readonly keys: readonly JWK[] } {
    return { keys: this.#keys.map(({ publicJwk }) => publicJwk) };
  }

  /** The public key of that id, also one that another replica has just made; undefined when there is none. */
  async publicKey(id: string): Promise<CryptoKey | undefined> {
    const known = this.#keys.find((key) => key.id === id);
    if (known !== undefined) return known.publicKey;
    if (Date.now() - this.#reloadedAt < RELOAD_PAUSE_MS) return undefined;
    await this.#reload();
    return this.#keys.find((key) => key.id === id)?.publicKey;
  }

  async #reload(): Promise<void> {
    this.#reloadedAt = Date.now();
    const rows = await this.#store.list();
    this.#keys = await Promise.all(rows.map(loadPublic));
    const newest = rows[0];
    if (newest === undefined || newest.id === this.#signer?.id) return;
    const pkcs8 = this.#decrypt(newest);
    this.#signer = { id: newest.id, privateKey: await importPKCS8(pkcs8, ALGORITHM) };
  }

  async #generate(): Promise<SigningKey> {
    const { publicKey, privateKey } = await generateKeyPair(ALGORITHM, { crv: "Ed25519", extractable: true });
    const jwk = await exportJWK(publicKey);
    const now = this.#clock.now();
    const id = await calculateJwkThumbprint(jwk);
    return {
      id,
      publicKey: { ...jwk, kid: id, alg: ALGORITHM, use: "sig" },
      privateKey: this.#encrypt(await exportPKCS8(privateKey), id),
      createTime: now,
      activateTime: now,
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

async function loadPublic(row: SigningKey): Promise<LoadedKey> {
  const publicJwk = row.publicKey as JWK;
  const publicKey = (await importJWK(publicJwk, ALGORITHM)) as CryptoKey;
  return { id: row.id, publicJwk, publicKey, row };
}
