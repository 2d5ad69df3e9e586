import { type CryptoKey, errors, type JWTHeaderParameters, jwtVerify, SignJWT } from "jose";
import type { Caller, Role } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError } from "../errors.ts";
import { ALGORITHM, type SigningKeys } from "./signing-keys.ts";

const ACCESS_TOKEN_LIFETIME_S = 15 * 60;
const TYPE = "at+jwt";
/** Verified tokens that are remembered: a signature costs 100 times a look-up. */
const MAX_REMEMBERED = 10_000;
const MAX_TOKEN_CHARS = 4_096;
const ROLES: ReadonlySet<string> = new Set<Role>(["USER", "MODERATOR", "ADMIN"]);

export interface AccessToken {
  readonly token: string;
  readonly expireTime: Date;
}

interface Remembered {
  readonly caller: Caller;
  readonly expiresAtMs: number;
}

/** Makes and checks access tokens: JWTs by RFC 9068, signed with EdDSA, checked by the rules of RFC 8725. */
export class Tokens {
  readonly #keys: SigningKeys;
  readonly #clock: Clock;
  readonly #issuer: string;
  readonly #audience: string;
  readonly #remembered = new Map<string, Remembered>();

  constructor(keys: SigningKeys, clock: Clock, { issuer, audience }: { issuer: string; audience: string }) {
    this.#keys = keys;
    this.#clock = clock;
    this.#issuer = issuer;
    this.#audience = audience;
  }

  /** The public keys, for `/.well-known/jwks.json`. */
  get jwks(): object {
    return this.#keys.jwks;
  }

  async issue({ userId, role, sessionId }: Caller): Promise<AccessToken> {
    const { id, privateKey } = this.#keys.signer;
    const issuedAt = Math.floor(this.#clock.now().getTime() / 1000);
    const expiresAt = issuedAt + ACCESS_TOKEN_LIFETIME_S;
    const token = await new SignJWT({ sid: sessionId, role })
      .setProtectedHeader({ alg: ALGORITHM, typ: TYPE, kid: id })
      .setIssuer(this.#issuer)
      .setAudience(this.#audience)
      .setSubject(userId)
      .setIssuedAt(issuedAt)
      .setExpirationTime(expiresAt)
      .sign(privateKey);
    return { token, expireTime: new Date(expiresAt * 1000) };
  }

  /** @throws DomainError TOKEN_INVALID, which does not say more to whoever forged it. */
  async verify(token: string): Promise<Caller> {
    const nowMs = this.#clock.now().getTime();
    const known = this.#remembered.get(token);
    if (known !== undefined) {
      if (known.expiresAtMs > nowMs) return known.caller;
      this.#remembered.delete(token);
    }
    const verified = await this.#verifySignature(token);
    if (this.#remembered.size >= MAX_REMEMBERED) {
      const [oldest] = this.#remembered.keys();
      if (oldest !== undefined) this.#remembered.delete(oldest);
    }
    this.#remembered.set(token, verified);
    return verified.caller;
  }

  async #verifySignature(token: string): Promise<Remembered> {
    if (token.length > MAX_TOKEN_CHARS) throw tokenInvalid();
    try {
      const { payload } = await jwtVerify(token, (header) => this.#keyFor(header), {
        algorithms: [ALGORITHM],
        typ: TYPE,
        issuer: this.#issuer,
        audience: this.#audience,
        requiredClaims: ["sub", "exp", "iat", "sid", "role"],
        currentDate: this.#clock.now(),
      });
      const { sub, sid, role, exp } = payload;
      if (typeof sub !== "string" || typeof sid !== "string" || typeof role !== "string" || !ROLES.has(role))
        throw tokenInvalid();
      return { caller: { userId: sub, sessionId: sid, role: role as Role }, expiresAtMs: (exp ?? 0) * 1000 };
    } catch (error) {
      // Only what jose says of the token is the token's fault: a database that is away must not read as a bad token.
      if (error instanceof errors.JOSEError || error instanceof TypeError) throw tokenInvalid(error);
      throw error;
    }
  }

  async #keyFor({ kid }: JWTHeaderParameters): Promise<CryptoKey> {
    const key = typeof kid === "string" ? await this.#keys.publicKey(kid) : undefined;
    if (key === undefined) throw tokenInvalid();
    return key;
  }
}

function tokenInvalid(cause?: unknown): DomainError {
  const message = "The access token is invalid or expired; log in again";
  return new DomainError("unauthenticated", "TOKEN_INVALID", message, { cause });
}
