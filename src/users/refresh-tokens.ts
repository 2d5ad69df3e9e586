import { createHash, createHmac, randomBytes } from "node:crypto";

const TOKEN_BYTES = 32;
const TOKEN = /^[\w-]{43}$/;

/**
 * Makes refresh tokens: 256 bits that mean nothing. The first one of a session is random. Each further one follows from
 * the one before and a secret key, so that the same use of the same token can be answered with the same successor though
 * only hashes are stored. Without the key nobody can go from one to the next.
 */
export class RefreshTokens {
  readonly #key: Buffer;
  readonly #exchanges = new Map<string, Promise<unknown>>();

  constructor(key: Buffer) {
    this.#key = key;
  }

  first(): string {
    return randomBytes(TOKEN_BYTES).toString("base64url");
  }

  successorOf(token: string): string {
    return createHmac("sha256", this.#key).update(token).digest("base64url");
  }

  /**
   * Exchanges a token once for all who present it at the same time on this replica. Each exchange waits for the session
   * with a connection in its hand: a hundred of one session would take every connection from everybody else.
   */
  exchangeOnce<T>(token: string, exchange: () => Promise<T>): Promise<T> {
    const underWay = this.#exchanges.get(token) as Promise<T> | undefined;
    if (underWay !== undefined) return underWay;
    const started = exchange().finally(() => this.#exchanges.delete(token));
    this.#exchanges.set(token, started);
    return started;
  }
}

/** Whether it could be one of ours, so that what cannot be costs no look-up. */
export function isRefreshToken(text: string): boolean {
  return TOKEN.test(text);
}

/** What is stored of a token. Fast, since 256 random bits cannot be guessed as a password can. */
export function hashOfToken(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
