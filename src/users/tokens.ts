import { verify as verifySignature } from "node:crypto";
import { SignJWT } from "jose";
import type { Caller, Role } from "../call.ts";
import type { Clock } from "../deps.ts";
import { DomainError } from "../errors.ts";
import { newId } from "../ids.ts";
import type { Revocations } from "./revocations.ts";
import { ALGORITHM, type SigningKeys } from "./signing-keys.ts";
import { ACCESS_TOKEN_LIFETIME_MS, CLOCK_TOLERANCE_MS } from "./token-lifetimes.ts";

const TYPE = "at+jwt";
/** Verified tokens that are remembered: a signature costs 100 times a look-up. */
const MAX_REMEMBERED = 10_000;
const MAX_TOKEN_CHARS = 4_096;
/** Header, claims and the 64 bytes of an Ed25519 signature. */
const TOKEN = /^([\w-]+)\.([\w-]+)\.([\w-]{86})$/;
const UUID = /^[\da-f]{8}(?:-[\da-f]{4}){3}-[\da-f]{12}$/;
const ROLES: ReadonlySet<unknown> = new Set<Role>(["USER", "MODERATOR", "ADMIN"]);

export interface AccessToken {
  readonly token: string;
  readonly expireTime: Date;
}

/** Who an access token is for. */
export interface TokenSubject extends Caller {
  /** The session's generation when the token is made: see `sessions.generation`. */
  readonly generation: number;
}

interface Remembered {
  readonly caller: Caller;
  readonly generation: number;
  readonly expiresAtMs: number;
}

/**
 * Makes and checks access tokens: JWTs in the manner of RFC 9068, signed with EdDSA, checked by the rules of RFC 8725.
 *
 * They are checked here and not by jose, whose signatures are computed in the thread pool where passwords are hashed,
 * so that every call would wait for logins. As only our own tokens have to be read, everything that they do not have is
 * refused, which is simpler than what a library has to allow: see docs/decisions/0005-revocation.md.
 */
export class Tokens {
  readonly #keys: SigningKeys;
  readonly #revocations: Pick<Revocations, "refuses">;
  readonly #clock: Clock;
  readonly #issuer: string;
  readonly #audience: string;
  readonly #remembered = new Map<string, Remembered>();

  constructor(
    keys: SigningKeys,
    revocations: Pick<Revocations, "refuses">,
    clock: Clock,
    { issuer, audience }: { issuer: string; audience: string },
  ) {
    this.#keys = keys;
    this.#revocations = revocations;
    this.#clock = clock;
    this.#issuer = issuer;
    this.#audience = audience;
  }

  async issue({ userId, role, sessionId, generation }: TokenSubject): Promise<AccessToken> {
    const { id, privateKey } = await this.#keys.signer();
    const issuedAt = Math.floor(this.#clock.now().getTime() / 1000);
    const expiresAt = issuedAt + ACCESS_TOKEN_LIFETIME_MS / 1000;
    const token = await new SignJWT({ sid: sessionId, role, gen: generation })
      .setProtectedHeader({ alg: ALGORITHM, typ: TYPE, kid: id })
      .setIssuer(this.#issuer)
      .setAudience(this.#audience)
      .setSubject(userId)
      .setJti(newId())
      .setIssuedAt(issuedAt)
      .setExpirationTime(expiresAt)
      .sign(privateKey);
    return { token, expireTime: new Date(expiresAt * 1000) };
  }

  /**
   * @throws DomainError TOKEN_INVALID, which does not say more to whoever forged it; DATABASE_UNAVAILABLE where nothing
   * could be learned of revocations for more than a second.
   */
  async verify(token: string): Promise<Caller> {
    const { caller, generation, expiresAtMs } = this.#remembered.get(token) ?? (await this.#check(token));
    if (expiresAtMs <= this.#clock.now().getTime()) {
      this.#remembered.delete(token);
      throw tokenInvalid("expired");
    }
    const refused = this.#revocations.refuses(caller.sessionId, generation);
    if (refused === true || (refused !== false && (await refused))) throw tokenInvalid("revoked");
    return caller;
  }

  async #check(token: string): Promise<Remembered> {
    const [, header = "", claims = "", signature = ""] = (token.length <= MAX_TOKEN_CHARS && TOKEN.exec(token)) || [];
    const { alg, typ, kid, ...others } = objectIn(header);
    if (alg !== ALGORITHM || typ !== TYPE || typeof kid !== "string") throw tokenInvalid("header");
    // Where to find a key, or what else to understand, is not for the token to say.
    if (Object.keys(others).length > 0) throw tokenInvalid("header");
    const checked = this.#readClaims(objectIn(claims));
    const key = await this.#keys.publicKey(kid);
    if (key === undefined) throw tokenInvalid("key");
    const signed = Buffer.from(`${header}.${claims}`);
    if (!verifySignature(null, signed, key, Buffer.from(signature, "base64url"))) throw tokenInvalid("signature");
    this.#remember(token, checked);
    return checked;
  }

  #readClaims({ iss, aud, sub, sid, role, gen, iat, nbf, exp }: Readonly<Record<string, unknown>>): Remembered {
    const latest = (this.#clock.now().getTime() + CLOCK_TOLERANCE_MS) / 1000;
    if (iss !== this.#issuer || aud !== this.#audience) throw tokenInvalid("issuer or audience");
    if (!isUuid(sub) || !isUuid(sid) || !ROLES.has(role)) throw tokenInvalid("claims");
    if (!isCount(gen) || !isCount(iat) || !isCount(exp)) throw tokenInvalid("claims");
    // So that no token, whoever signed it, outlives what is remembered of revocations.
    if (exp - iat > ACCESS_TOKEN_LIFETIME_MS / 1000) throw tokenInvalid("lifetime");
    if (iat > latest || (nbf !== undefined && !(isCount(nbf) && nbf <= latest))) throw tokenInvalid("not yet valid");
    return { caller: { userId: sub, sessionId: sid, role: role as Role }, generation: gen, expiresAtMs: exp * 1000 };
  }

  #remember(token: string, checked: Remembered): void {
    if (this.#remembered.size >= MAX_REMEMBERED) {
      const [oldest] = this.#remembered.keys();
      if (oldest !== undefined) this.#remembered.delete(oldest);
    }
    this.#remembered.set(token, checked);
  }
}

/** The JSON object of one part of a token; an empty one where it is none. */
function objectIn(part: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(Buffer.from(part, "base64url").toString());
    return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : {};
  } catch {
    return {};
  }
}

function isUuid(value: unknown): value is string {
  return typeof value === "string" && UUID.test(value);
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) > 0;
}

function tokenInvalid(cause: string): DomainError {
  const message = "The access token is invalid or expired; log in again";
  return new DomainError("unauthenticated", "TOKEN_INVALID", message, { cause });
}
