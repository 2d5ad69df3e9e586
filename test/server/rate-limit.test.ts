import { randomUUID } from "node:crypto";
import { expect } from "chai";
import sinon from "sinon";
import { Database, isAway } from "../../src/db/database.ts";
import { RateLimiter } from "../../src/db/rate-limits.ts";
import { DomainError } from "../../src/errors.ts";
import { sql, useDatabase } from "../support/database.ts";
import { newCustomer, PASSWORD } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

const settings = {
  // Replicas share the key of the database that they share.
  SECRET_KEY: Buffer.alloc(32, 1).toString("base64"),
  RATE_LIMITS: "on",
  TRUST_PROXY: "1",
  RATE_LIMIT_REGISTER: "3",
  RATE_LIMIT_LOGIN: "10",
  RATE_LIMIT_LOGIN_FAILURES: "4",
  RATE_LIMIT_RESEND_VERIFICATION: "5",
  RATE_LIMIT_PASSWORD_RESET: "5",
  RATE_LIMIT_MAILS_PER_EMAIL: "2",
};

const GUESS = "guessed by somebody";

let addresses = 0;

/** An address that no other test calls from. */
function newAddress(): string {
  addresses++;
  return `198.51.${100 + Math.floor(addresses / 250)}.${1 + (addresses % 250)}`;
}

/** Calls as if from a client address. */
function from(address: string) {
  return { headers: { "x-forwarded-for": address } };
}

function anEmail(): string {
  return `${randomUUID()}@nobody.example`;
}

function times<T>(count: number, make: (i: number) => T): T[] {
  return Array.from({ length: count }, (_, i) => make(i));
}

const aRegistration = (email = anEmail()) => ({
  email,
  password: PASSWORD,
  firstName: "Ada",
  lastName: "Marsh",
  dateOfBirth: { year: 1990, month: 1, day: 2 },
});

describe("rate limits", function () {
  this.timeout(60_000);
  const database = useDatabase();
  const [server, replica] = [useServer({ database, settings }), useServer({ database, settings })] as const;

  it("refuse what is beyond the limit of one client address, and say when to come back", async () => {
    const address = newAddress();
    const calls = times(5, () => server.as().auth.register(aRegistration(), from(address)));
    expect(await tally(calls)).to.deep.equal({ ok: 3, RATE_LIMITED: 2 });
    const refusal = await refusalOf(server.as().auth.register(aRegistration(), from(address)));
    expect(refusal).to.include({ code: "ResourceExhausted", reason: "RATE_LIMITED" });
    expect(refusal.metadata).to.deep.equal({ limit: "register", max: "3", window_seconds: "60" });
    expect(refusal.retryAfterMs).to.be.within(1, 60_000);
    expect(refusal.message).to.match(
      /^Too many accounts are being made from your network; try again in (\d+ seconds?|1 minute)$/,
    );
    await server.as().auth.register(aRegistration(), from(newAddress()));
  });

  it("are shared by replicas", async () => {
    const [address, { email }] = [newAddress(), await newCustomer(server)];
    const calls = times(15, (i) =>
      (i % 2 === 0 ? server : replica).as().auth.login({ email, password: PASSWORD }, from(address)),
    );
    expect(await tally(calls)).to.deep.equal({ ok: 10, RATE_LIMITED: 5 });
  });

  it("let a flood not reach the database", async () => {
    const address = newAddress();
    const flood = () => tally(times(10, () => server.as().auth.register(aRegistration(), from(address))));
    await flood();
    const before = await pointsOf("register", address);
    expect(await flood()).to.deep.equal({ RATE_LIMITED: 10 });
    expect(await pointsOf("register", address)).to.equal(before);
  });

  it("count all addresses of one IPv6 /64 together", async () => {
    const calls = times(5, (i) => server.as().auth.register(aRegistration(), from(`2001:db8:0:7::${i + 1}`)));
    expect(await tally(calls)).to.deep.equal({ ok: 3, RATE_LIMITED: 2 });
    await server.as().auth.register(aRegistration(), from("2001:db8:0:8::1"));
  });

  it("cannot be got round by what a client writes into X-Forwarded-For", async () => {
    const address = newAddress();
    const calls = times(5, () => server.as().auth.register(aRegistration(), from(`${newAddress()}, ${address}`)));
    expect(await tally(calls)).to.deep.equal({ ok: 3, RATE_LIMITED: 2 });
  });

  it("do not count requests that are faulty", async () => {
    const address = newAddress();
    for (let i = 0; i < 5; i++) {
      const faulty = server.as().auth.register({ ...aRegistration(), email: "ada" }, from(address));
      expect(await refusalOf(faulty)).to.include({ reason: "FIELD_INVALID" });
    }
    await server.as().auth.register(aRegistration(), from(address));
  });

  for (const [rpc, ask] of [
    ["ResendVerificationEmail", (email: string, address: string) => resend(server, email, address)],
    ["RequestPasswordReset", (email: string, address: string) => reset(server, email, address)],
  ] as const) {
    it(`allow ${rpc} for one email a few times, from wherever, with or without an account`, async () => {
      const { email } = await newCustomer(server);
      for (const asked of [email, anEmail()]) {
        const calls = times(4, (i) => ask(i % 2 === 0 ? asked : ` ${asked.toUpperCase()} `, newAddress()));
        expect(await tally(calls)).to.deep.equal({ ok: 2, RATE_LIMITED: 2 });
      }
    });

    it(`allow ${rpc} for many emails from one client address a few times`, async () => {
      const address = newAddress();
      expect(await tally(times(8, () => ask(anEmail(), address)))).to.deep.equal({ ok: 5, RATE_LIMITED: 3 });
    });
  }

  it("keep no email in the database", async () => {
    await reset(server, "plain@nobody.example", newAddress());
    const rows = await sql(database, "SELECT key FROM rate_limits WHERE key LIKE '%@%' OR key LIKE '%plain%'");
    expect(rows).to.deep.equal([]);
  });

  describe("of wrong passwords from one client address", () => {
    it("refuse all logins from there, also with the right password, and none from elsewhere", async () => {
      const [address, { email }] = [newAddress(), await newCustomer(server)];
      for (let i = 0; i < 4; i++) {
        const wrong = server.as().auth.login({ email: anEmail(), password: GUESS }, from(address));
        expect(await refusalOf(wrong)).to.include({ reason: "CREDENTIALS_INVALID" });
      }
      for (const someServer of [server, replica]) {
        const right = someServer.as().auth.login({ email, password: PASSWORD }, from(address));
        const refusal = await refusalOf(right);
        expect(refusal).to.include({ code: "ResourceExhausted", reason: "RATE_LIMITED" });
        expect(refusal.metadata).to.deep.equal({ limit: "login-failures", max: "4", window_seconds: "600" });
        expect(refusal.retryAfterMs).to.be.within(540_000, 600_000);
      }
      await server.as().auth.login({ email, password: PASSWORD }, from(newAddress()));
    });

    it("hold for guesses at once too, and those beyond lock nobody", async () => {
      const address = newAddress();
      const emails = times(10, (i) => `spray-${i}@nobody.example`);
      const calls = emails.map((email) => server.as().auth.login({ email, password: GUESS }, from(address)));
      expect(await tally(calls)).to.deep.equal({ CREDENTIALS_INVALID: 4, RATE_LIMITED: 6 });
      const counted = await sql(database, "SELECT 1 FROM login_failures WHERE email LIKE 'spray-%'");
      expect(counted).to.have.length(4);
    });

    it("do not count right ones", async () => {
      const [address, { email }] = [newAddress(), await newCustomer(server)];
      const calls = times(10, () => server.as().auth.login({ email, password: PASSWORD }, from(address)));
      expect(await tally(calls)).to.deep.equal({ ok: 10 });
    });
  });

  async function pointsOf(limit: string, address: string): Promise<number | undefined> {
    const rows = await sql<{ points: number }>(database, "SELECT points FROM rate_limits WHERE key = $1", [
      `${limit}:${address}`,
    ]);
    return rows[0]?.points;
  }
});

function resend(server: TestServer, email: string, address: string) {
  return server.as().auth.resendVerificationEmail({ email }, from(address));
}

function reset(server: TestServer, email: string, address: string) {
  return server.as().auth.requestPasswordReset({ email }, from(address));
}

describe("a rate limiter", () => {
  const database = useDatabase();
  const limit = { on: true, points: 2, windowS: 60, message: "Too many" } as const;

  let clock: sinon.SinonFakeTimers | undefined;
  afterEach(() => clock?.restore());

  it("begins anew when its window is over, which is never prolonged", async () => {
    const limiter = new RateLimiter(database.db, { ...limit, name: "anew" });
    const other = new RateLimiter(database.db, { ...limit, name: "anew" });
    clock = sinon.useFakeTimers({ toFake: ["Date"], now: Date.now() });
    for (let point = 0; point < limit.points; point++) await limiter.take("somebody");
    clock.tick(limit.windowS * 1_000 - 1);
    // The first remembers that all is spent, the other asks the database.
    for (const spent of [limiter, other]) {
      const refusal = await spent.take("somebody").catch((error: unknown) => error);
      expect(refusal).to.be.instanceOf(DomainError).and.include({ kind: "exhausted", reason: "RATE_LIMITED" });
    }
    clock.tick(1);
    for (const anew of [limiter, other]) await anew.take("somebody");
  });

  it("looks without counting", async () => {
    const limiter = new RateLimiter(database.db, { ...limit, name: "looks" });
    for (let i = 0; i < 5; i++) await limiter.refuseIfSpent("somebody");
    await limiter.take("somebody");
    await limiter.refuseIfSpent("somebody");
    await limiter.take("somebody");
    const other = new RateLimiter(database.db, { ...limit, name: "looks" });
    for (const looking of [limiter, other]) {
      const refusal = await looking.refuseIfSpent("somebody").catch((error: unknown) => error);
      expect(refusal).to.include({ reason: "RATE_LIMITED" });
    }
  });

  it("deletes rows whose window is over, some with every few calls", async () => {
    await sql(
      database,
      "INSERT INTO rate_limits (key, points, expire) SELECT 'old:' || i, 1, 1 FROM generate_series(1, 500) i",
    );
    await new RateLimiter(database.db, { ...limit, name: "sweeps" }).take("somebody");
    expect(await sql(database, "SELECT 1 FROM rate_limits WHERE key LIKE 'old:%'")).to.deep.equal([]);
  });

  it("lets nothing through while the database is away", async () => {
    const away = new Database({ url: "postgres://nobody@127.0.0.1:1/none", poolMax: 2, prepared: true });
    const limiter = new RateLimiter(away, { ...limit, name: "away" });
    try {
      for (const call of [limiter.take("somebody"), limiter.refuseIfSpent("somebody")]) {
        const fault = await call.catch((error: unknown) => error);
        expect(isAway(fault), String(fault)).to.equal(true);
      }
    } finally {
      await away.close();
    }
  });
});
