import { expect } from "chai";
import { createRemoteJWKSet, decodeProtectedHeader, jwtVerify } from "jose";
import { SigningKeyStore } from "../../src/users/signing-key-store.ts";
import { SigningKeys } from "../../src/users/signing-keys.ts";
import { sql, useDatabase } from "../support/database.ts";
import { newCustomer, PASSWORD, type Person } from "../support/factories.ts";
import { usePrograms } from "../support/process.ts";
import { type TestServer, useServer } from "../support/server.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const SECRET_KEY = Buffer.alloc(32, 3).toString("base64");

async function publishedIds(server: TestServer): Promise<string[]> {
  const response = await fetch(`${server.url}/.well-known/jwks.json`);
  expect(response.headers.get("cache-control")).to.equal("public, max-age=300");
  return ((await response.json()) as { keys: { kid: string }[] }).keys.map(({ kid }) => kid);
}

async function newToken(server: TestServer, { email }: Person): Promise<string> {
  return (await server.as().auth.login({ email, password: PASSWORD })).accessToken;
}

function keyOf(token: string): string | undefined {
  return decodeProtectedHeader(token).kid;
}

describe("signing keys", () => {
  const database = useDatabase();
  const secretKey = Buffer.alloc(32);
  const server = useServer();
  const newKeys = (key = secretKey) => new SigningKeys(new SigningKeyStore(database.db), server.clock, key);

  it("are one for all replicas that start together on a new database", async () => {
    const replicas = Array.from({ length: 5 }, () => newKeys());
    await Promise.all(replicas.map((keys) => keys.load()));
    const signers = await Promise.all(replicas.map((keys) => keys.signer()));
    expect(new Set(signers.map(({ id }) => id))).to.have.property("size", 1);
  });

  it("cannot be read with another SECRET_KEY, and the error names that setting", async () => {
    await newKeys().load();
    const error = await newKeys(Buffer.alloc(32, 9))
      .load()
      .catch((reason: Error) => reason);
    expect(String(error)).to.include("SECRET_KEY");
  });

  it("are encrypted in the database, each for its own id", async () => {
    await newKeys().load();
    const rows = await sql<{ private_key: Buffer }>(database, "SELECT private_key FROM signing_keys");
    for (const { private_key } of rows) expect(private_key.toString("latin1")).not.to.include("PRIVATE KEY");
  });

  it("are found by an id that is not known yet, however many ask at once", async () => {
    const [old, other] = [newKeys(), newKeys()];
    await Promise.all([old.load(), other.load()]);
    const { next } = await other.rotate();
    const found = await Promise.all(Array.from({ length: 20 }, () => old.publicKey(next.id)));
    expect(found.every((key) => key !== undefined)).to.equal(true);
  });
});

describe("a rotation of signing keys", () => {
  const database = useDatabase();
  const settings = { SECRET_KEY };
  const one = useServer({ database, settings });
  const two = useServer({ database, settings });
  const advance = (ms: number) => {
    for (const { clock } of [one, two]) clock.advance(ms);
  };

  it("publishes the new key at once, signs with it after every client has read it, and drops the old one when it is of no use", async () => {
    const person = await newCustomer(one);
    const { deps } = one;
    const before = keyOf(person.token);
    const { next, deleted } = await deps.signingKeys.rotate();
    expect(deleted).to.deep.equal([]);
    advance(31 * SECOND_MS);
    for (const server of [one, two]) {
      expect(await publishedIds(server)).to.have.members([before, next.id]);
      expect(keyOf(await newToken(server, person))).to.equal(before);
    }
    const lifeMs = next.activateTime.getTime() - one.clock.now().getTime();
    expect(lifeMs + 31 * SECOND_MS).to.be.at.least(5 * MINUTE_MS + 30 * SECOND_MS);
    advance(lifeMs + SECOND_MS);
    for (const server of [one, two]) expect(keyOf(await newToken(server, person))).to.equal(next.id);

    advance(14 * MINUTE_MS);
    const second = await deps.signingKeys.rotate();
    expect(second.deleted, "tokens of the old key may still be good").to.deep.equal([]);
    advance(10 * MINUTE_MS);
    expect((await deps.signingKeys.rotate()).deleted).to.deep.equal([before]);
    advance(31 * SECOND_MS);
    expect(await publishedIds(two)).not.to.include(before);
  });

  it("fails no request, neither on the replicas nor at a client that caches the keys for as long as it may", async () => {
    const person = await newCustomer(one);
    const { next } = await one.deps.signingKeys.rotate();
    const clientKeys = createRemoteJWKSet(new URL(`${two.url}/.well-known/jwks.json`), { cooldownDuration: 0 });
    const held: string[] = [];
    const stepMs = 20 * SECOND_MS;
    for (let passedMs = 0; passedMs < 30 * MINUTE_MS; passedMs += stepMs) {
      const server = (passedMs / stepMs) % 2 === 0 ? one : two;
      const { token } = await server.deps.tokens.issue({
        userId: person.id,
        role: "USER",
        sessionId: person.id,
        generation: 1,
      });
      held.push(token);
      // A token is good for 15 minutes, so those of the last 44 steps are.
      for (const recent of [token, held.at(-22) ?? token, held.at(-44) ?? token]) {
        expect((await one.deps.tokens.verify(recent)).userId).to.equal(person.id);
        expect((await two.deps.tokens.verify(recent)).userId).to.equal(person.id);
      }
      await jwtVerify(token, clientKeys, { issuer: "tradepost", audience: "tradepost", currentDate: one.clock.now() });
      if (passedMs % MINUTE_MS === 0) await one.deps.signingKeys.rotate();
      advance(stepMs);
    }
    expect(held.some((token) => keyOf(token) === next.id)).to.equal(true);
  });

  it("makes one key, however many rotate at once, and none while one waits", async () => {
    advance(60 * MINUTE_MS);
    const rotations = await Promise.all(
      Array.from({ length: 10 }, (_, i) => (i % 2 === 0 ? one : two).deps.signingKeys.rotate()),
    );
    expect(new Set(rotations.map(({ next }) => next.id))).to.have.property("size", 1);
    advance(MINUTE_MS);
    expect((await two.deps.signingKeys.rotate()).next.id).to.equal(rotations[0]?.next.id);
  });

  it("may be followed by withdrawing a key: replicas that only check refuse it too, within a minute of use", async () => {
    const person = await newCustomer(one);
    const kid = keyOf(person.token);
    await one.deps.signingKeys.rotate();
    const issue = () => one.deps.tokens.issue({ userId: person.id, role: "USER", sessionId: person.id, generation: 1 });
    const unseen = await issue();
    expect((await two.deps.tokens.verify((await issue()).token)).userId).to.equal(person.id);
    await sql(database, "DELETE FROM signing_keys WHERE id = $1", [kid]);
    advance(31 * SECOND_MS);
    await two.deps.tokens.verify(person.token);
    await two.deps.signingKeys.jwks();
    const refused = await two.deps.tokens.verify(unseen.token).catch((error: Error) => error.message);
    expect(refused).to.equal("The access token is invalid or expired; log in again");
  });

  it("does not keep a replica from serving its keys while the database is away", async () => {
    const known = await publishedIds(one);
    advance(31 * SECOND_MS);
    await sql(database, "ALTER TABLE signing_keys RENAME TO hidden_keys");
    try {
      expect(await publishedIds(one)).to.deep.equal(known);
    } finally {
      await sql(database, "ALTER TABLE hidden_keys RENAME TO signing_keys");
    }
  });
});

describe("npm run keys:rotate", function () {
  this.timeout(120_000);
  const programs = usePrograms();
  const database = useDatabase();
  const server = useServer({ database, settings: { SECRET_KEY } });
  const rotate = async (settings: Record<string, string> = {}, args: string[] = []) => {
    const dataDir = await programs.newFolder();
    const program = programs.start("src/commands/rotate-keys.ts", {
      args,
      settings: { DATABASE_URL: database.url, DATA_DIR: dataDir, SECRET_KEY, ...settings },
    });
    return program.ended;
  };

  it("makes the next key, tells when it signs, and shows nothing of the key but its id", async () => {
    const { code, stdout, stderr } = await rotate();
    expect({ code, stderr }).to.deep.equal({ code: 0, stderr: "" });
    const [row] = await sql<{ id: string }>(
      database,
      "SELECT id FROM signing_keys ORDER BY activate_time DESC LIMIT 1",
    );
    expect(stdout).to.match(
      /^The key \S+ is published and signs from \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z on, in the database \S+ at \S+\.\n$/,
    );
    expect(stdout).to.include(row?.id);
    server.clock.advance(31 * SECOND_MS);
    expect(await publishedIds(server)).to.include(row?.id);
  });

  it("makes no key with another SECRET_KEY than the service's, and says so", async () => {
    const keys = () => sql(database, "SELECT id FROM signing_keys ORDER BY id");
    const before = await keys();
    const { code, stdout, stderr } = await rotate({ SECRET_KEY: Buffer.alloc(32, 4).toString("base64") });
    expect({ code, stdout }).to.deep.equal({ code: 1, stdout: "" });
    expect(stderr).to.include("SECRET_KEY");
    expect(await keys()).to.deep.equal(before);
  });

  it("explains itself, and refuses what it does not know", async () => {
    const help = await rotate({}, ["--help"]);
    expect(help.stdout).to.match(/^Usage: npm run keys:rotate/);
    const unknown = await rotate({}, ["--now"]);
    expect(unknown.code).to.equal(1);
    expect(unknown.stderr).to.include("--now").and.to.include("Usage");
  });
});
