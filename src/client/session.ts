import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import type { AuthService, LoginResponse, RefreshTokenResponse } from "../../gen/tradepost/user/v1/auth_service_pb.js";
import { reasonOf, retryDelayMs } from "./errors.ts";

/** Tokens are renewed this long before they expire, or after three quarters of their life if that is later. */
const renewBeforeExpiryMs = 60_000;
const clockToleranceMs = 2_500;

/** Whom to log in as. */
export interface Credentials {
  readonly email: string;
  readonly password: string;
}

/** Where calls get their access token from. */
export interface TokenSource {
  /** The token to send now; undefined sends none. */
  token(): string | undefined | Promise<string | undefined>;
  /** A token in place of one that the server refused; a call is repeated once if it differs from `rejected`. */
  renew(rejected: string): string | undefined | Promise<string | undefined>;
}

/** A {@link TokenSource} that logs in when first asked and keeps itself logged in. */
export interface Session extends TokenSource {
  token(): Promise<string>;
  renew(rejected: string): Promise<string>;
  /** Ends the session on the server and forgets its tokens; the next call logs in anew. */
  logOut(): Promise<void>;
}

type Tokens = LoginResponse | RefreshTokenResponse;

interface Grant {
  readonly accessToken: string;
  readonly refreshToken: string;
  /** By this process's monotonic clock, so that a wrong or jumping wall clock does no harm. */
  readonly renewAtMs: number;
  readonly expireAtMs: number;
  readonly refreshExpireAtMs: number;
}

/** The server's time of an answer, by its date header, which counts whole seconds: a small difference says nothing. */
function serverTimeMs(headers: Headers): number {
  const nowMs = Date.now();
  const saidMs = Date.parse(headers.get("date") ?? "");
  return Math.abs(saidMs - nowMs) > clockToleranceMs ? saidMs : nowMs;
}

/** Turns the server's expiry times into spans of our own clock, by the time that the server says it is. */
function grantOf(tokens: Tokens, headers: Headers): Grant {
  const serverNowMs = serverTimeMs(headers);
  const nowMs = performance.now();
  const lifeOf = (expiry: Tokens["accessTokenExpireTime"]): number =>
    expiry === undefined ? 0 : Math.max(0, timestampMs(expiry) - serverNowMs);
  const lifeMs = lifeOf(tokens.accessTokenExpireTime);
  return {
    accessToken: tokens.accessToken,
    refreshToken: tokens.refreshToken,
    renewAtMs: nowMs + Math.max(lifeMs - renewBeforeExpiryMs, lifeMs * 0.75),
    expireAtMs: nowMs + lifeMs,
    refreshExpireAtMs: nowMs + lifeOf(tokens.refreshTokenExpireTime),
  };
}

class LoginSession implements Session {
  readonly #auth: Client<typeof AuthService>;
  readonly #credentials: Credentials;
  #grant: Grant | undefined;
  /** Logging in or refreshing: whoever needs a token meanwhile waits for this one. */
  #renewal: Promise<string> | undefined;
  /** The server's refusal of our credentials, and until when asking again can only do harm. */
  #refusal: { error: ConnectError; untilMs: number } | undefined;

  constructor(auth: Client<typeof AuthService>, credentials: Credentials) {
    this.#auth = auth;
    this.#credentials = credentials;
  }

  async token(): Promise<string> {
    if (this.#grant !== undefined && performance.now() < this.#grant.renewAtMs) return this.#grant.accessToken;
    return this.#renewOnce();
  }

  async renew(rejected: string): Promise<string> {
    // Of many calls refused at once, only the first renews; the others find its token here.
    if (this.#grant !== undefined && this.#grant.accessToken !== rejected) return this.#grant.accessToken;
    if (this.#grant !== undefined) this.#grant = { ...this.#grant, renewAtMs: 0, expireAtMs: 0 };
    return this.#renewOnce();
  }

  async logOut(): Promise<void> {
    const grant = this.#grant;
    this.#grant = undefined;
    if (grant === undefined) return;
    await this.#auth.logout({}, { headers: { authorization: `Bearer ${grant.accessToken}` } });
  }

  #renewOnce(): Promise<string> {
    this.#renewal ??= this.#obtain().finally(() => {
      this.#renewal = undefined;
    });
    return this.#renewal;
  }

  async #obtain(): Promise<string> {
    const grant = this.#grant;
    if (grant !== undefined && performance.now() < grant.refreshExpireAtMs) {
      try {
        return await this.#refresh(grant.refreshToken);
      } catch (error) {
        const { code } = ConnectError.from(error);
        const isRefused = code === Code.Unauthenticated || code === Code.Unimplemented;
        // A server that cannot answer now is no reason to give up a token that is still good.
        if (!isRefused && performance.now() < grant.expireAtMs) return grant.accessToken;
        if (!isRefused) throw error;
      }
    }
    return this.#logIn();
  }

  async #refresh(refreshToken: string): Promise<string> {
    let headers = new Headers();
    const tokens = await this.#auth.refreshToken({ refreshToken }, { onHeader: (received) => (headers = received) });
    return this.#accept(grantOf(tokens, headers));
  }

  async #logIn(): Promise<string> {
    if (this.#refusal !== undefined && performance.now() < this.#refusal.untilMs) throw this.#refusal.error;
    let headers = new Headers();
    try {
      const tokens = await this.#auth.login({ ...this.#credentials }, { onHeader: (received) => (headers = received) });
      return this.#accept(grantOf(tokens, headers));
    } catch (error) {
      this.#remember(ConnectError.from(error));
      throw error;
    }
  }

  #accept(grant: Grant): string {
    this.#grant = grant;
    this.#refusal = undefined;
    return grant.accessToken;
  }

  /** Wrong credentials do not get better by trying, and a few more tries lock the account. */
  #remember(error: ConnectError): void {
    const reason = reasonOf(error);
    if (reason === "CREDENTIALS_INVALID") this.#refusal = { error, untilMs: Number.POSITIVE_INFINITY };
    if (reason === "ACCOUNT_LOCKED") this.#refusal = { error, untilMs: performance.now() + (retryDelayMs(error) ?? 0) };
  }
}

/**
 * Makes a session that logs in with `credentials` when a token is first needed, refreshes shortly before the token
 * expires or when the server refuses it, and logs in again where refreshing is refused. However many calls ask at
 * once, one request is made. Credentials that the server calls wrong are not sent again by this session.
 *
 * @param auth a client without a token of its own: `createTradepost({ baseUrl }).auth`
 */
export function createSession(auth: Client<typeof AuthService>, credentials: Credentials): Session {
  return new LoginSession(auth, credentials);
}
