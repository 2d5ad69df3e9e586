import { createHmac, createPrivateKey, generateKeyPairSync, randomUUID, sign } from "node:crypto";
import { expect } from "chai";
import type { JWK } from "jose";
import { SigningKeyStore } from "../../src/users/signing-key-store.ts";
import { newCustomer, PASSWORD, type Person } from "../support/factories.ts";
import { refusalOf } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const encode = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
const decode = (part = "") => JSON.parse(Buffer.from(part, "base64url").toString());

/** Attacks that RFC 8725 warns of: each makes a token from a genuine one. */
const forgeries: Record<string, (genuine: string, jwk: JWK) => string> = {
  "no algorithm": (token) => {
    const [header, payload] = token.split(".");
    return `${encode({ ...decode(header), alg: "none" })}.${payload}.`;
  },
  "HS256 with the public key as its secret": (token, jwk) => {
    const [header, payload] = token.split(".");
    const signed = `${encode({ ...decode(header), alg: "HS256" })}.${payload}`;
    return `${signed}.${createHmac("sha256", JSON.stringify(jwk)).update(signed).digest("base64url")}`;
  },
  "an unknown key id": (token) => {
    const [header, payload, signature] = token.split(".");
    return `${encode({ ...decode(header), kid: randomUUID() })}.${payload}.${signature}`;
  },
  "a key of its own in the header": (token) => {
    const [header, payload] = token.split(".");
    const { privateKey, publicKey } = generateKeyPairSync("ed25519");
    const signed = `${encode({ ...decode(header), jwk: publicKey.export({ format: "jwk" }) })}.${payload}`;
    return `${signed}.${sign(null, Buffer.from(signed), createPrivateKey(privateKey.export({ type: "pkcs8", format: "pem" }))).toString("base64url")}`;
  },
  "a role it was not given": (token) => {
    const [header, payload, signature] = token.split(".");
    return `${header}.${encode({ ...decode(payload), role: "ADMIN" })}.${signature}`;
  },
  "a cut signature": (token) => token.slice(0, -10),
  nothing: () => "...",
  "ten thousand characters of noise": () => "x".repeat(10_000),
};

describe("a forged access token", () => {
  const server = useServer();
  let person: Person;
  before(async () => {
    person = await newCustomer(server);
  });

  for (const [name, forge] of Object.entries(forgeries)) {
    it(`with ${name} is refused without saying why`, async () => {
      const jwks = (await (await fetch(`${server.url}/.well-known/jwks.json`)).json()) as { keys: [JWK] };
      const refusal = await refusalOf(server.as(forge(person.token, jwks.keys[0])).users.getProfile({}));
      expect(refusal).to.include({
        code: "Unauthenticated",
        reason: "TOKEN_INVALID",
        message: "The access token is invalid or expired; log in again",
      });
    });
  }

  it("of another issuer, audience or type is refused although our own key signed it", async () => {
    const { Tokens } = await import("../../src/users/tokens.ts");
    const { SigningKeys } = await import("../../src/users/signing-keys.ts");
    const { derivedKey, keptSecretKey } = await import("../../src/secret-key.ts");
    const secret = derivedKey(keptSecretKey(server.deps.config.dataDir), "signing keys");
    const keys = new SigningKeys(new SigningKeyStore(server.deps.db), server.clock, secret);
    await keys.load();
    const caller = { userId: person.id, role: "ADMIN", sessionId: randomUUID() } as const;
    for (const claims of [
      { issuer: "somebody-else", audience: "tradepost" },
      { issuer: "tradepost", audience: "somebody-else" },
    ]) {
      const { token } = await new Tokens(keys, server.clock, claims).issue(caller);
      expect((await refusalOf(server.as(token).users.getProfile({}))).reason, JSON.stringify(claims)).to.equal(
        "TOKEN_INVALID",
      );
    }
  });

  it("that is a refresh token is refused", async () => {
    const { refreshToken } = await server.as().auth.login({ email: person.email, password: PASSWORD });
    expect((await refusalOf(server.as(refreshToken).users.getProfile({}))).reason).to.equal("TOKEN_INVALID");
  });

  it("is refused also where no token is needed: its sender is not taken for nobody", async () => {
    expect((await refusalOf(server.as("nonsense").catalog.listProducts({}))).reason).to.equal("TOKEN_INVALID");
  });
});

describe("signing keys", () => {
  const server = useServer();

  it("are one for all replicas that start together on a new database", async () => {
    const { SigningKeys } = await import("../../src/users/signing-keys.ts");
    await server.database.db.sequelize.query("DELETE FROM signing_keys");
    const replicas = Array.from(
      { length: 5 },
      () => new SigningKeys(new SigningKeyStore(server.deps.db), server.clock, Buffer.alloc(32)),
    );
    await Promise.all(replicas.map((keys) => keys.load()));
    expect(new Set(replicas.map(({ signer }) => signer.id))).to.have.property("size", 1);
  });

  it("cannot be read with another SECRET_KEY, and the error names that setting", async () => {
    const { SigningKeys } = await import("../../src/users/signing-keys.ts");
    const other = new SigningKeys(new SigningKeyStore(server.deps.db), server.clock, Buffer.alloc(32, 9));
    const error = await other.load().catch((reason: Error) => reason);
    expect(String(error)).to.include("SECRET_KEY");
  });
});
