import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { sql } from "../support/database.ts";
import { newCustomer, PASSWORD, type Person } from "../support/factories.ts";
import { until } from "../support/process.ts";
import { type Refusal, refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;
const WRONG = "guessed by somebody";
/** Fewer than may wait for a hash at once, so that none is shed. */
const WAVE = 50;
/** For so many hashes, beside whatever else the machine does. */
const WAVE_TIMEOUT_MS = 60_000;

function logIn(server: TestServer, email: string, password: string) {
  return server.as().auth.login({ email, password }, { timeoutMs: WAVE_TIMEOUT_MS });
}

/** Guesses wrong, one after another, until the email is locked by the last one. */
async function lock(server: TestServer, email: string): Promise<void> {
  for (let i = 0; i < 5; i++) {
    expect(await refusalOf(logIn(server, email, WRONG))).to.include({ reason: "CREDENTIALS_INVALID" });
  }
}

/** What the next login is told, and for how long the lock is said to go on. */
async function lockMinutes(server: TestServer, email: string): Promise<number> {
  const { reason, retryAfterMs = 0 } = await refusalOf(logIn(server, email, PASSWORD));
  expect(reason).to.equal("ACCOUNT_LOCKED");
  return Math.ceil(retryAfterMs / MINUTE_MS);
}

async function failuresOf(server: TestServer, email: string) {
  return sql<{ attempts: number; locks: number }>(
    server.database,
    "SELECT attempts, locks FROM login_failures WHERE email = $1",
    [email],
  );
}

async function newEmail(): Promise<string> {
  return `${randomUUID()}@nobody.example`;
}

describe("login lock", function () {
  this.timeout(WAVE_TIMEOUT_MS);
  const server = useServer();

  describe("after five wrong passwords in a row", () => {
    it("refuses for 15 minutes, and says until when", async () => {
      const { email } = await newCustomer(server);
      await lock(server, email);
      const refusal = await refusalOf(logIn(server, email, WRONG));
      expect(refusal).to.include({ code: "ResourceExhausted", reason: "ACCOUNT_LOCKED" });
      const unlockTime = new Date(refusal.metadata["unlock_time"] ?? "");
      expect(unlockTime.toISOString()).to.equal(refusal.metadata["unlock_time"]);
      const restMs = unlockTime.getTime() - server.clock.now().getTime();
      expect(restMs).to.be.within(14 * MINUTE_MS, 15 * MINUTE_MS);
      expect(refusal.retryAfterMs).to.be.within(14 * MINUTE_MS, 15 * MINUTE_MS);
      expect(refusal.message).to.equal(
        `Too many wrong passwords in a row. Try again after ${unlockTime.toISOString()}, or reset the password by mail`,
      );
    });

    it("refuses the right password as it refuses a wrong one", async () => {
      const { email } = await newCustomer(server);
      await lock(server, email);
      const [right, wrong] = [
        await refusalOf(logIn(server, email, PASSWORD)),
        await refusalOf(logIn(server, email, WRONG)),
      ];
      expect(withoutTime(right)).to.deep.equal(withoutTime(wrong));
    });

    it("leaves open sessions alone", async () => {
      const { email, users } = await newCustomer(server);
      await lock(server, email);
      expect((await users.getProfile({})).user?.email).to.equal(email);
    });

    it("notes the lock in the account's events", async () => {
      const { email, id } = await newCustomer(server);
      await lock(server, email);
      const { metadata } = await refusalOf(logIn(server, email, WRONG));
      const events = await sql(
        server.database,
        "SELECT actor_id, details FROM account_events WHERE user_id = $1 AND type = 'LOCKED'",
        [id],
      );
      expect(events).to.deep.equal([{ actor_id: null, details: { unlock_time: metadata["unlock_time"] } }]);
    });

    it("locks the email however it is written", async () => {
      const { email } = await newCustomer(server);
      for (let i = 0; i < 5; i++)
        await refusalOf(logIn(server, i % 2 === 0 ? ` ${email.toUpperCase()} ` : email, WRONG));
      expect(await refusalOf(logIn(server, email, PASSWORD))).to.include({ reason: "ACCOUNT_LOCKED" });
    });

    it("locks an email that no account has, and that of a deleted account, in just the same way", async () => {
      const known = await newCustomer(server);
      const deleted = await newCustomer(server);
      await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [deleted.id]);
      const stories = await Promise.all(
        [known.email, await newEmail(), deleted.email].map(async (email) => {
          const told: Refusal[] = [];
          for (let i = 0; i < 7; i++) told.push(withoutTime(await refusalOf(logIn(server, email, WRONG))));
          return { told, failures: await failuresOf(server, email) };
        }),
      );
      expect(stories[1]).to.deep.equal(stories[0]);
      expect(stories[2]).to.deep.equal(stories[0]);
      expect(stories[0]?.told.map(({ reason }) => reason)).to.deep.equal([
        ...Array.from({ length: 5 }, () => "CREDENTIALS_INVALID"),
        ...Array.from({ length: 2 }, () => "ACCOUNT_LOCKED"),
      ]);
    });
  });

  describe("in the course of time", () => {
    // Its own server, since these put the clock forward by days.
    const patient = useServer();

    it("ends by itself, and a good login then forgets all that was before", async () => {
      const { email } = await newCustomer(patient);
      await lock(patient, email);
      patient.clock.advance(15 * MINUTE_MS);
      await logIn(patient, email, PASSWORD);
      expect(await failuresOf(patient, email)).to.deep.equal([]);
      await lock(patient, email);
      expect(await lockMinutes(patient, email)).to.equal(15);
    });

    it("is twice as long each time it is repeated, up to a day", async () => {
      const email = await newEmail();
      const minutes: number[] = [];
      for (let i = 0; i < 9; i++) {
        await lock(patient, email);
        minutes.push(await lockMinutes(patient, email));
        patient.clock.advance((minutes.at(-1) ?? 0) * MINUTE_MS);
      }
      expect(minutes).to.deep.equal([15, 30, 60, 120, 240, 480, 960, 1440, 1440]);
    });

    it("forgets wrong passwords after a day without another, and locks after a week", async () => {
      const [few, locked] = [await newEmail(), await newEmail()];
      for (let i = 0; i < 4; i++) await refusalOf(logIn(patient, few, WRONG));
      await lock(patient, locked);
      patient.clock.advance(DAY_MS);
      await lock(patient, few);
      await lock(patient, locked);
      expect([await lockMinutes(patient, few), await lockMinutes(patient, locked)]).to.deep.equal([15, 30]);
      patient.clock.advance(7 * DAY_MS);
      await lock(patient, locked);
      expect(await lockMinutes(patient, locked)).to.equal(15);
    });

    it("deletes what is forgotten, so that random emails do not fill the database", async () => {
      await sql(
        patient.database,
        `INSERT INTO login_failures (email, attempts, forget_time)
         SELECT 'old-' || i || '@nobody.example', 1, $1::timestamptz - interval '1 s' FROM generate_series(1, 300) i`,
        [patient.clock.now()],
      );
      await tally(Array.from({ length: WAVE }, async () => logIn(patient, await newEmail(), WRONG)));
      const old = await sql(patient.database, "SELECT 1 FROM login_failures WHERE email LIKE 'old-%'");
      expect(old).to.deep.equal([]);
    });
  });

  describe("under many guesses at once", () => {
    for (const [whose, emailOf] of [
      ["an account", async () => (await newCustomer(server)).email],
      ["nobody", newEmail],
    ] as const) {
      it(`tries no more than five of 300 guesses for the email of ${whose}`, async () => {
        const email = await emailOf();
        const outcomes: Record<string, number> = {};
        for (let sent = 0; sent < 300; sent += WAVE) {
          const wave = await tally(Array.from({ length: WAVE }, () => logIn(server, email, WRONG)));
          for (const [reason, count] of Object.entries(wave)) outcomes[reason] = (outcomes[reason] ?? 0) + count;
        }
        expect(outcomes).to.deep.equal({ CREDENTIALS_INVALID: 5, ACCOUNT_LOCKED: 295 });
        expect(await failuresOf(server, email)).to.deep.equal([{ attempts: 5, locks: 1 }]);
      });
    }

    it("does not tell that one of them was right, when it comes after the fifth wrong one", async () => {
      const { email } = await newCustomer(server);
      const wrong = Array.from({ length: WAVE }, () => logIn(server, email, WRONG));
      // Passwords are checked in the order in which they come, so this one is checked while the lock is being set.
      const outcomes = await tally([...wrong, logIn(server, email, PASSWORD)]);
      expect(outcomes).to.deep.equal({ CREDENTIALS_INVALID: 5, ACCOUNT_LOCKED: WAVE - 4 });
    });

    it("lets any number of good logins in", async () => {
      const { email } = await newCustomer(server);
      const calls = Array.from({ length: WAVE }, () => logIn(server, email, PASSWORD));
      expect(await tally(calls)).to.deep.equal({ ok: WAVE });
    });
  });
});

describe("password hashes", function () {
  this.timeout(WAVE_TIMEOUT_MS);
  const stronger = useServer({ settings: { PASSWORD_HASH_PASSES: "3" } });
  const weaker = useServer();

  async function hashOf(server: TestServer, { id }: Person): Promise<string> {
    const [row] = await sql<{ hash: string }>(
      server.database,
      "SELECT password_hash AS hash FROM users WHERE id = $1",
      [id],
    );
    return row?.hash ?? "";
  }

  /** An account whose hash was made with two passes. */
  async function weakAccount(): Promise<Person> {
    const person = await newCustomer(stronger);
    const weak = await hashOf(weaker, await newCustomer(weaker));
    await sql(stronger.database, "UPDATE users SET password_hash = $2 WHERE id = $1", [person.id, weak]);
    return person;
  }

  async function upgraded(person: Person): Promise<string> {
    return until("the hash is upgraded", async () => {
      const hash = await hashOf(stronger, person);
      return hash.includes("t=3") ? hash : undefined;
    });
  }

  it("are made anew at the next login once the settings have grown, and go on being right", async () => {
    const person = await weakAccount();
    await logIn(stronger, person.email, PASSWORD);
    expect(await upgraded(person)).to.match(/^\$argon2id\$v=19\$m=19456,/);
    await logIn(stronger, person.email, PASSWORD);
  });

  it("may be upgraded by one of many logins at once, and none of them is refused for that", async () => {
    const person = await weakAccount();
    const calls = Array.from({ length: 30 }, () => logIn(stronger, person.email, PASSWORD));
    expect(await tally(calls)).to.deep.equal({ ok: 30 });
    await upgraded(person);
  });

  it("are left alone by a login while they are as strong as the settings ask for", async () => {
    const person = await newCustomer(stronger);
    const before = await hashOf(stronger, person);
    await logIn(stronger, person.email, PASSWORD);
    await logIn(stronger, person.email, PASSWORD);
    expect(await hashOf(stronger, person)).to.equal(before);
  });
});

/** A refusal without what differs from one moment to the next. */
function withoutTime(refusal: Refusal): Refusal {
  const { unlock_time: time, ...metadata } = refusal.metadata;
  const message = time === undefined ? refusal.message : refusal.message.replace(time, "…");
  return { ...refusal, message, metadata, retryAfterMs: refusal.retryAfterMs === undefined ? undefined : 0 };
}
