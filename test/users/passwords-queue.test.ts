import { expect } from "chai";
import { Passwords } from "../../src/users/passwords.ts";
import { sql } from "../support/database.ts";
import { newCustomer, PASSWORD } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

/** A hundred hashes take a second or two by themselves, and many times that beside other suites. */
const BURST_TIMEOUT_MS = 60_000;

describe("a burst of logins", () => {
  const server = useServer();

  it("of 500 is shed beyond the queue, and does not stall other calls", async function () {
    this.timeout(BURST_TIMEOUT_MS);
    const { email, users } = await newCustomer(server);
    const ended: string[] = [];
    const noting = async (what: string, call: Promise<unknown>) => {
      await call.finally(() => ended.push(what));
    };
    const logins = Array.from({ length: 500 }, () =>
      server.as().auth.login({ email, password: PASSWORD }, { timeoutMs: BURST_TIMEOUT_MS }),
    );
    const profiles = Array.from({ length: 50 }, () => noting("profile", users.getProfile({})));
    const [loginOutcomes, profileOutcomes, shed] = await Promise.all([
      tally(logins.map((login) => noting("login", login))),
      tally(profiles),
      Promise.any(logins.map((login) => refusalOf(login))),
    ]);
    expect(profileOutcomes).to.deep.equal({ ok: 50 });
    expect(loginOutcomes).to.have.all.keys("ok", "OVERLOADED");
    expect(loginOutcomes["ok"]).to.be.at.least(100);
    expect(shed).to.include({ code: "ResourceExhausted", reason: "OVERLOADED", retryAfterMs: 2000 });
    // Every profile was there while logins that had been sent before were still waiting for their hash.
    const loginsAfter = ended.slice(ended.lastIndexOf("profile")).filter((what) => what === "login");
    expect(loginsAfter.length).to.be.at.least(50);
  });

  it("does not count as wrong what was shed", async function () {
    this.timeout(BURST_TIMEOUT_MS);
    const calls = Array.from({ length: 160 }, (_, i) =>
      server
        .as()
        .auth.login(
          { email: `shed-${i}@nobody.example`, password: "guessed by somebody" },
          { timeoutMs: BURST_TIMEOUT_MS },
        ),
    );
    const outcomes = await tally(calls);
    expect(outcomes).to.have.all.keys("CREDENTIALS_INVALID", "OVERLOADED");
    const counted = await sql(server.database, "SELECT 1 FROM login_failures WHERE email LIKE 'shed-%'");
    expect(counted).to.have.length(outcomes["CREDENTIALS_INVALID"] ?? 0);
  });
});

describe("the queue for password hashes", () => {
  const options = { memoryKib: 19_456, passes: 2, lanes: 1 };

  it("drops what nobody waits for any more, before it is hashed", async () => {
    const passwords = new Passwords(options);
    const hash = await passwords.hash(PASSWORD);
    const late = Array.from({ length: 20 }, () => passwords.matches(hash, PASSWORD, Date.now() - 1));
    const outcomes = await Promise.allSettled(late);
    for (const outcome of outcomes) {
      expect(outcome).to.deep.include({ status: "rejected" });
      expect((outcome as PromiseRejectedResult).reason).to.include({ kind: "deadline", reason: "DEADLINE_EXCEEDED" });
    }
  });

  it("holds 100 that wait, and refuses the next", async () => {
    const passwords = new Passwords(options);
    await passwords.hash(PASSWORD);
    const soon = Date.now() + 150;
    const outcomes = await Promise.allSettled(Array.from({ length: 102 }, () => passwords.hash(PASSWORD, soon)));
    const reasons = outcomes.map((outcome) => (outcome.status === "fulfilled" ? "ok" : outcome.reason.reason));
    expect(reasons.filter((reason) => reason === "OVERLOADED")).to.have.length(1);
    expect(reasons.at(-1)).to.equal("OVERLOADED");
    expect(reasons[0]).to.equal("ok");
  });

  it("works as hard without an account as with one, and then says no", async () => {
    const passwords = new Passwords(options);
    expect(await passwords.matches(undefined, PASSWORD)).to.equal(false);
    expect(await passwords.matches(await passwords.hash(PASSWORD), PASSWORD)).to.equal(true);
  });

  it("knows a hash that is weaker than the settings ask for, by memory or by passes", async () => {
    const hash = await new Passwords(options).hash(PASSWORD);
    const isWeakFor = (changed: Partial<typeof options>) => new Passwords({ ...options, ...changed }).isWeak(hash);
    expect(isWeakFor({})).to.equal(false);
    expect(isWeakFor({ passes: 3 })).to.equal(true);
    expect(isWeakFor({ memoryKib: 20_000 })).to.equal(true);
    expect(isWeakFor({ passes: 1, memoryKib: 10_000 })).to.equal(false);
  });
});
