import { createHmac, generateKeyPairSync, type KeyObject, randomUUID, sign, webcrypto } from "node:crypto";
import { expect } from "chai";
import { decodeJwt, type JWK } from "jose";
import { newAdmin, newCustomer, PASSWORD, type Person } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const MINUTE_S = 60;
const REFUSAL = {
  code: "Unauthenticated",
  reason: "TOKEN_INVALID",
  message: "The access token is invalid or expired; log in again",
};

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
const decode = (part = "") => JSON.parse(Buffer.from(part, "base64url").toString());

interface Parts {
  // biome-ignore lint/suspicious/noExplicitAny: an attacker writes anything.
  readonly header: Readonly<Record<string, any>>;
  // biome-ignore lint/suspicious/noExplicitAny: an attacker writes anything.
  readonly claims: Readonly<Record<string, any>>;
}

function signed({ header, claims }: Parts, key: KeyObject): string {
  const text = `${encode(header)}.${encode(claims)}`;
  return `${text}.${sign(null, Buffer.from(text), key).toString("base64url")}`;
}

/** Attacks that RFC 8725 warns of, by somebody without our private key: each makes a token from a genuine one. */
const forgeries: Record<string, (genuine: string, jwk: JWK) => string> = {
  "no algorithm": (token) => {
    const [header, payload] = token.split(".");
    return `${encode({ ...decode(header), alg: "none" })}.${payload}.`;
  },
  "no algorithm and the genuine signature": (token) => {
    const [header, payload, signature] = token.split(".");
    return `${encode({ ...decode(header), alg: "nOnE" })}.${payload}.${signature}`;
  },
  "HS256 with the public key as its secret": (token, jwk) => {
    const [header, payload] = token.split(".");
    const text = `${encode({ ...decode(header), alg: "HS256" })}.${payload}`;
    return `${text}.${createHmac("sha256", JSON.stringify(jwk)).update(text).digest("base64url")}`;
  },
  "HS512 with the bytes of the public key as its secret": (token, { x = "" }) => {
    const [header, payload] = token.split(".");
    const text = `${encode({ ...decode(header), alg: "HS512" })}.${payload}`;
    return `${text}.${createHmac("sha512", Buffer.from(x, "base64url")).update(text).digest("base64url")}`;
  },
  "a signature of HMAC under the name of our algorithm": (token, { x = "" }) => {
    const [header, payload] = token.split(".");
    const mac = createHmac("sha512", Buffer.from(x, "base64url")).update(`${header}.${payload}`).digest("base64url");
    return `${header}.${payload}.${mac}`;
  },
  "an unknown key id": (token) => {
    const [header, payload, signature] = token.split(".");
    return `${encode({ ...decode(header), kid: randomUUID() })}.${payload}.${signature}`;
  },
  "no key id": (token) => {
    const [header, payload, signature] = token.split(".");
    const { kid: _, ...rest } = decode(header);
    return `${encode(rest)}.${payload}.${signature}`;
  },
  "a key id that is no text": (token) => {
    const [header, payload, signature] = token.split(".");
    return `${encode({ ...decode(header), kid: { toString: "x" } })}.${payload}.${signature}`;
  },
  "a key of its own in the header": (token) => {
    const [header = "", claims = ""] = token.split(".");
    const { privateKey, publicKey } = generateKeyPairSync("ed25519");
    const jwk = publicKey.export({ format: "jwk" });
    return signed({ header: { ...decode(header), jwk }, claims: decode(claims) }, privateKey);
  },
  "a place to find its key in the header": (token) => {
    const [header = "", claims = ""] = token.split(".");
    const { privateKey } = generateKeyPairSync("ed25519");
    const jku = "https://attacker.example/jwks.json";
    return signed({ header: { ...decode(header), jku, x5u: jku }, claims: decode(claims) }, privateKey);
  },
  "the signature of another key": (token) => {
    const [header = "", claims = ""] = token.split(".");
    return signed({ header: decode(header), claims: decode(claims) }, generateKeyPairSync("ed25519").privateKey);
  },
  "a role it was not given": (token) => {
    const [header, payload, signature] = token.split(".");
    return `${header}.${encode({ ...decode(payload), role: "ADMIN" })}.${signature}`;
  },
  "another account's id": (token) => {
    const [header, payload, signature] = token.split(".");
    return `${header}.${encode({ ...decode(payload), sub: randomUUID() })}.${signature}`;
  },
  "a cut signature": (token) => token.slice(0, -10),
  "a signature of zeros": (token) => `${token.split(".").slice(0, 2).join(".")}.${"A".repeat(86)}`,
  "no signature": (token) => `${token.split(".").slice(0, 2).join(".")}.`,
  "one part too many": (token) => `${token}.e30`,
  "header and claims that are no objects": () => `${encode([1])}.${encode("x")}.${"A".repeat(86)}`,
  "header and claims that are no JSON": () => `e30e.W10.${"A".repeat(86)}`,
  nothing: () => "...",
  "ten thousand characters of noise": () => "x".repeat(10_000),
};

/** What is wrong although our own key has signed it: each changes a genuine token's parts. */
const wrongs: Record<string, (parts: Parts, nowS: number) => Parts> = {
  "another issuer": ({ header, claims }) => ({ header, claims: { ...claims, iss: "somebody-else" } }),
  "another audience": ({ header, claims }) => ({ header, claims: { ...claims, aud: "somebody-else" } }),
  "our audience among others": ({ header, claims }) => ({ header, claims: { ...claims, aud: ["tradepost", "other"] } }),
  "no audience": ({ header, claims: { aud: _, ...claims } }) => ({ header, claims }),
  "no issuer": ({ header, claims: { iss: _, ...claims } }) => ({ header, claims }),
  "another type": ({ header, claims }) => ({ header: { ...header, typ: "JWT" }, claims }),
  "no type": ({ header: { typ: _, ...header }, claims }) => ({ header, claims }),
  "another algorithm's name": ({ header, claims }) => ({ header: { ...header, alg: "ES256" }, claims }),
  "something critical that nobody knows": ({ header, claims }) => ({
    header: { ...header, crit: ["b64"], b64: false },
    claims,
  }),
  "an end that has come": ({ header, claims }, nowS) => ({ header, claims: { ...claims, exp: nowS - 1 } }),
  "a longer life than we give": ({ header, claims }) => ({
    header,
    claims: { ...claims, exp: claims["iat"] + 16 * MINUTE_S },
  }),
  "no end": ({ header, claims: { exp: _, ...claims } }) => ({ header, claims }),
  "an end that is no number": ({ header, claims }) => ({ header, claims: { ...claims, exp: "never" } }),
  "a beginning that is to come": ({ header, claims }, nowS) => ({
    header,
    claims: { ...claims, nbf: nowS + 6 * MINUTE_S },
  }),
  "an issue that is to come": ({ header, claims }, nowS) => ({
    header,
    claims: { ...claims, iat: nowS + 6 * MINUTE_S, exp: nowS + 20 * MINUTE_S },
  }),
  "no session": ({ header, claims: { sid: _, ...claims } }) => ({ header, claims }),
  "no generation": ({ header, claims: { gen: _, ...claims } }) => ({ header, claims }),
  "a role that there is not": ({ header, claims }) => ({ header, claims: { ...claims, role: "ROOT" } }),
  "a subject that is no id": ({ header, claims }) => ({ header, claims: { ...claims, sub: "' OR 1=1" } }),
};

describe("an access token", () => {
  const server = useServer();
  let person: Person;
  before(async () => {
    person = await newCustomer(server);
  });

  /** Signed with the key of the service itself, which is not to be had out of its keeping. */
  async function signedByUs({ header, claims }: Parts): Promise<string> {
    const { privateKey } = await server.deps.signingKeys.signer();
    const text = `${encode(header)}.${encode(claims)}`;
    const signature = await webcrypto.subtle.sign("Ed25519", privateKey, Buffer.from(text));
    return `${text}.${Buffer.from(signature).toString("base64url")}`;
  }

  function partsOf(token: string): Parts {
    const [header, claims] = token.split(".");
    return { header: decode(header), claims: decode(claims) };
  }

  for (const [name, forge] of Object.entries(forgeries)) {
    it(`that is forged with ${name} is refused without saying why`, async () => {
      const jwks = (await (await fetch(`${server.url}/.well-known/jwks.json`)).json()) as { keys: [JWK] };
      const refusal = await refusalOf(server.as(forge(person.token, jwks.keys[0])).users.getProfile({}));
      expect(refusal).to.include(REFUSAL);
    });
  }

  for (const [name, change] of Object.entries(wrongs)) {
    it(`with ${name} is refused although our own key signed it`, async () => {
      const nowS = Math.floor(server.clock.now().getTime() / 1000);
      const token = await signedByUs(change(partsOf(person.token), nowS));
      expect(await refusalOf(server.as(token).users.getProfile({}))).to.include(REFUSAL);
    });
  }

  it("is good when nothing is wrong with it, also by a clock that is a little ahead of ours", async () => {
    const { header, claims } = partsOf(person.token);
    const nowS = Math.floor(server.clock.now().getTime() / 1000);
    const token = await signedByUs({
      header,
      claims: { ...claims, iat: nowS + MINUTE_S, nbf: nowS + MINUTE_S, exp: nowS + 16 * MINUTE_S },
    });
    expect((await server.as(token).users.getProfile({})).user?.id).to.equal(person.id);
  });

  it("is refused from the moment it expires, also when it has been seen before", async () => {
    const { accessToken, accessTokenExpireTime } = await server
      .as()
      .auth.login({ email: person.email, password: PASSWORD });
    await server.as(accessToken).users.getProfile({});
    const { iat = 0, exp = 0 } = decodeJwt(accessToken);
    expect(exp - iat).to.equal(15 * MINUTE_S);
    expect(accessTokenExpireTime?.seconds).to.equal(BigInt(exp));
    const leftMs = exp * 1000 - server.clock.now().getTime();
    server.clock.advance(leftMs);
    expect(await refusalOf(server.as(accessToken).users.getProfile({}))).to.include(REFUSAL);
    server.clock.advance(-leftMs);
  });

  it("is not the same as a refresh token", async () => {
    const { refreshToken } = await server.as().auth.login({ email: person.email, password: PASSWORD });
    expect(await refusalOf(server.as(refreshToken).users.getProfile({}))).to.include(REFUSAL);
  });

  it("is refused also where none is needed: its sender is not taken for nobody", async () => {
    expect(await refusalOf(server.as("nonsense").catalog.listProducts({}))).to.include(REFUSAL);
  });

  it("says who is meant, by which session and key, and nothing else", async () => {
    const { header, claims } = partsOf(person.token);
    expect(header).to.have.all.keys("alg", "typ", "kid");
    expect(header).to.include({ alg: "EdDSA", typ: "at+jwt" });
    expect(claims).to.have.all.keys("iss", "aud", "sub", "sid", "role", "gen", "jti", "iat", "exp");
    expect(claims).to.include({ iss: "tradepost", aud: "tradepost", sub: person.id, role: "USER" });
  });
});

describe("who calls", () => {
  const server = useServer();

  it("is told by the token alone: an id or a role in a body grants nothing", async () => {
    const [person, admin] = await Promise.all([newCustomer(server), newAdmin(server)]);
    const registered = await fetch(`${server.url}/tradepost.user.v1.AuthService/Register`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        email: `${randomUUID()}@tradepost.example`,
        password: PASSWORD,
        firstName: "Mallory",
        lastName: "Jones",
        dateOfBirth: { year: 1990, month: 1, day: 2 },
        role: "ROLE_ADMIN",
        emailVerified: true,
        user: { role: "ROLE_ADMIN", emailVerified: true },
      }),
    });
    // A field that Register does not have is refused or does nothing.
    const answer = (await registered.json()) as { user?: { role: string; emailVerified?: boolean } };
    expect(answer.user?.role ?? "ROLE_USER").to.equal("ROLE_USER");
    expect(answer.user?.emailVerified ?? false).to.equal(false);

    const refusal = await refusalOf(
      person.orders.createOrder({
        requestId: randomUUID(),
        customerId: admin.id,
        items: [{ productId: randomUUID(), quantity: 1 }],
      }),
    );
    expect(refusal).to.include({ code: "PermissionDenied" });
    const profile = await fetch(`${server.url}/tradepost.user.v1.UserService/GetProfile`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${person.token}`, "x-user-id": admin.id },
      body: JSON.stringify({ userId: admin.id, role: "ROLE_ADMIN" }),
    });
    const shown = (await profile.json()) as { user?: { id: string; role: string } };
    expect(shown.user?.id ?? person.id).to.equal(person.id);
    expect(shown.user?.role ?? "ROLE_USER").to.equal("ROLE_USER");
  });
});
