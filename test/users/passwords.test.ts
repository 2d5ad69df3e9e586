import { randomUUID } from "node:crypto";
import { expect } from "chai";
import { sql } from "../support/database.ts";
import { newCustomer, PASSWORD, type Person } from "../support/factories.ts";
import { tokenOf, useMailServer } from "../support/mail.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { useServer } from "../support/server.ts";

const HOUR_MS = 60 * 60_000;
const NEW_PASSWORD = "another password of some length";
const WRONG_PASSWORD = "nobody has this one";
const COMMON = "PASSWORD_TOO_COMMON";

describe("common passwords", () => {
  const server = useServer();

  it("are refused by Register together with all other faults, however they are written", async () => {
    for (const password of ["password", "PassWord1", "QWERTYUIOP", "1qaz2wsx"]) {
      const request = {
        email: "ada",
        password,
        firstName: "Ada",
        lastName: "M",
        dateOfBirth: { year: 1990, month: 1, day: 2 },
      };
      expect((await refusalOf(server.as().auth.register(request))).reasons).to.deep.equal({
        email: "EMAIL_INVALID",
        password: COMMON,
        last_name: "TOO_SHORT",
      });
    }
  });

  it("are refused by ResetPassword and ChangePassword before anything else is looked at", async () => {
    const { auth } = await newCustomer(server);
    const reset = await refusalOf(auth.resetPassword({ token: "made-up", newPassword: "football1" }));
    expect(reset.reasons).to.deep.equal({ new_password: COMMON });
    const change = await refusalOf(auth.changePassword({ currentPassword: "wrong", newPassword: "football1" }));
    expect(change.reasons).to.deep.equal({ new_password: COMMON });
  });

  it("are said to be too short first when they are", async () => {
    const refusal = await refusalOf(server.as().auth.resetPassword({ token: "made-up", newPassword: "123456" }));
    expect(refusal.fields).to.deep.equal({ new_password: "New password must be at least 8 characters" });
  });

  it("do not include words that merely contain one", async () => {
    const email = `${randomUUID()}@tradepost.example`;
    const dateOfBirth = { year: 1990, month: 1, day: 2 };
    const request = { email, password: "password of my own", firstName: "Ada", lastName: "Marsh", dateOfBirth };
    await server.as().auth.register(request);
  });
});

describe("passwords", () => {
  const mail = useMailServer();
  const server = useServer({
    settings: {
      get SMTP_URL() {
        return mail.url;
      },
      MAIL_FROM: "shop@tradepost.example",
    },
  });
  const subjects = (email: string) => mail.mailsTo(email).map(({ headers }) => headers["subject"]);
  const logIn = (email: string, password: string) => server.as().auth.login({ email, password });
  const eventsOf = async ({ id }: Person) => {
    const text = "SELECT type, actor_id AS actor FROM account_events WHERE user_id = $1 ORDER BY id";
    return sql<{ type: string; actor: string | null }>(server.database, text, [id]);
  };
  const lock = async (email: string) => {
    for (let i = 0; i < 5; i++) await refusalOf(logIn(email, WRONG_PASSWORD));
    expect(await refusalOf(logIn(email, PASSWORD))).to.include({ reason: "ACCOUNT_LOCKED" });
  };
  /** Asks for a reset, and gives the token that comes by mail. */
  const resetTokenOf = async ({ email }: Pick<Person, "email">): Promise<string> => {
    await server.as().auth.requestPasswordReset({ email });
    await server.runJobs();
    const resets = mail.mailsTo(email).filter(({ headers }) => headers["subject"] === "Set a new password");
    return tokenOf(resets.at(-1));
  };

  afterEach(() => sql(server.database, "DELETE FROM graphile_worker._private_jobs"));

  describe("reset by mail", () => {
    const INVALID = { code: "InvalidArgument", reason: "RESET_TOKEN_INVALID" };
    const reset = (token: string, newPassword = NEW_PASSWORD) => server.as().auth.resetPassword({ token, newPassword });

    it("count from then on, and the old ones no more", async () => {
      const customer = await newCustomer(server);
      await reset(await resetTokenOf(customer));
      await logIn(customer.email, NEW_PASSWORD);
      expect(await refusalOf(logIn(customer.email, PASSWORD))).to.include({ reason: "CREDENTIALS_INVALID" });
    });

    it("end every session, and are noted and told by mail", async () => {
      const customer = await newCustomer(server);
      const { accessToken } = await logIn(customer.email, PASSWORD);
      await reset(await resetTokenOf(customer));
      for (const token of [customer.token, accessToken]) {
        expect(await refusalOf(server.as(token).users.getProfile({}))).to.include({
          code: "Unauthenticated",
          reason: "TOKEN_INVALID",
        });
      }
      expect(await sql(server.database, "SELECT FROM sessions WHERE user_id = $1", [customer.id])).to.deep.equal([]);
      expect((await eventsOf(customer)).slice(1)).to.deep.equal([
        { type: "PASSWORD_RESET", actor: null },
        { type: "EMAIL_VERIFIED", actor: null },
      ]);
      await server.runJobs();
      expect(subjects(customer.email).at(-1)).to.equal("Your password was changed");
    });

    it("verify the email, since its mail was read", async () => {
      const { email } = await newCustomer(server);
      await reset(await resetTokenOf({ email }));
      expect((await logIn(email, NEW_PASSWORD)).user?.emailVerified).to.equal(true);
    });

    it("end a lock", async () => {
      const { email } = await newCustomer(server);
      await lock(email);
      await reset(await resetTokenOf({ email }));
      await logIn(email, NEW_PASSWORD);
    });

    it("are set by one of twenty who use the same token at once", async () => {
      const customer = await newCustomer(server);
      const token = await resetTokenOf(customer);
      const calls = Array.from({ length: 20 }, (_, i) => reset(token, `${NEW_PASSWORD} ${i}`));
      expect(await tally(calls)).to.deep.equal({ ok: 1, RESET_TOKEN_INVALID: 19 });
      expect(await refusalOf(reset(token))).to.include(INVALID);
    });

    it("make every other token of the account useless", async () => {
      const customer = await newCustomer(server);
      const first = await resetTokenOf(customer);
      const second = await resetTokenOf(customer);
      await reset(first);
      expect(await refusalOf(reset(second))).to.include(INVALID);
    });

    it("need a token that is known, not expired, meant for it and mailed to the email of now", async () => {
      const [expired, moved, deleted, fresh] = await Promise.all(Array.from({ length: 4 }, () => newCustomer(server)));
      if (!expired || !moved || !deleted || !fresh) throw new Error("four customers were made");
      const expiredToken = await resetTokenOf(expired);
      const movedToken = await resetTokenOf(moved);
      const deletedToken = await resetTokenOf(deleted);
      const email = `${randomUUID()}@tradepost.example`;
      await moved.users.updateUser({ user: { id: moved.id, email }, updateMask: { paths: ["email"] } });
      await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [deleted.id]);
      const verification = mail.mailsTo(fresh.email).find(({ headers }) => headers["subject"]?.startsWith("Confirm"));
      const refusals = [
        await refusalOf(reset("made-up")),
        await refusalOf(reset(tokenOf(verification))),
        await refusalOf(reset(movedToken)),
        await refusalOf(reset(deletedToken)),
      ];
      server.clock.advance(HOUR_MS + 1_000);
      refusals.push(await refusalOf(reset(expiredToken)));
      server.clock.advance(-HOUR_MS - 1_000);
      for (const refusal of refusals) {
        expect(refusal).to.include(INVALID);
        expect(refusal).to.deep.equal(refusals[0]);
      }
      await logIn(email, PASSWORD);
    });

    it("leave a lock alone when the token is no good", async () => {
      const customer = await newCustomer(server);
      const token = await resetTokenOf(customer);
      await reset(token);
      await lock(customer.email);
      expect(await refusalOf(reset(token))).to.include(INVALID);
      expect(await refusalOf(logIn(customer.email, NEW_PASSWORD))).to.include({ reason: "ACCOUNT_LOCKED" });
    });

    it("are asked for with the same answer and the same work, whoever has that email", async () => {
      const [known, deleted] = await Promise.all([newCustomer(server), newCustomer(server)]);
      await server.runJobs();
      await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [deleted.id]);
      const stranger = `${randomUUID()}@tradepost.example`;
      const emails = [known.email, deleted.email, stranger];
      const answers = await Promise.all(emails.map((email) => server.as().auth.requestPasswordReset({ email })));
      for (const answer of answers) expect(answer).to.deep.equal(answers[0]);
      const jobs = await sql<{ email: string }>(
        server.database,
        "SELECT payload->>'email' AS email FROM graphile_worker._private_jobs",
      );
      expect(jobs.map(({ email }) => email)).to.have.members(emails);
      const before = mail.offered;
      await server.runJobs();
      expect(mail.offered - before).to.equal(1);
    });

    it("are kept as hashes of tokens, never as tokens", async () => {
      const customer = await newCustomer(server);
      const token = await resetTokenOf(customer);
      const rows = await sql<{ purpose: string; minutes: number }>(
        server.database,
        `SELECT purpose, extract(epoch FROM expire_time - create_time)::int / 60 AS minutes
           FROM account_tokens WHERE token_hash = sha256($1::text::bytea)`,
        [token],
      );
      expect(rows).to.deep.equal([{ purpose: "RESET_PASSWORD", minutes: 60 }]);
    });
  });

  describe("changed by their owner", () => {
    const change = ({ auth }: Person, currentPassword = PASSWORD, newPassword = NEW_PASSWORD) =>
      auth.changePassword({ currentPassword, newPassword });

    it("count from then on, and end all sessions but the one they were changed in", async () => {
      const customer = await newCustomer(server);
      const other = await logIn(customer.email, PASSWORD);
      await change(customer);
      await customer.users.getProfile({});
      expect(await refusalOf(server.as(other.accessToken).users.getProfile({}))).to.include({
        reason: "TOKEN_INVALID",
      });
      await logIn(customer.email, NEW_PASSWORD);
      expect(await refusalOf(logIn(customer.email, PASSWORD))).to.include({ reason: "CREDENTIALS_INVALID" });
    });

    it("are noted with who did it, and told by mail", async () => {
      const customer = await newCustomer(server);
      await change(customer);
      expect((await eventsOf(customer)).at(-1)).to.deep.equal({ type: "PASSWORD_CHANGED", actor: customer.id });
      await server.runJobs();
      expect(subjects(customer.email)).to.include("Your password was changed");
    });

    it("need the one so far", async () => {
      const customer = await newCustomer(server);
      expect(await refusalOf(change(customer, WRONG_PASSWORD))).to.include({
        code: "Unauthenticated",
        reason: "CREDENTIALS_INVALID",
        message: "The current password is wrong",
      });
      await logIn(customer.email, PASSWORD);
    });

    it("cannot be guessed with a stolen token: wrong ones lock as they do at a login", async () => {
      const customer = await newCustomer(server);
      for (let i = 0; i < 5; i++) await refusalOf(change(customer, `${WRONG_PASSWORD} ${i}`));
      const refusal = await refusalOf(change(customer));
      expect(refusal).to.include({ code: "ResourceExhausted", reason: "ACCOUNT_LOCKED" });
      expect(refusal.metadata).to.have.property("unlock_time");
      expect(await refusalOf(logIn(customer.email, PASSWORD))).to.include({ reason: "ACCOUNT_LOCKED" });
    });

    it("are changed by one of several who do it at once from the same password", async () => {
      const customer = await newCustomer(server);
      const calls = Array.from({ length: 4 }, (_, i) => change(customer, PASSWORD, `${NEW_PASSWORD} ${i}`));
      expect(await tally(calls)).to.deep.equal({ ok: 1, CREDENTIALS_INVALID: 3 });
    });

    it("make the links of resets useless that were asked for before", async () => {
      const customer = await newCustomer(server);
      const token = await resetTokenOf(customer);
      await change(customer);
      const call = server.as().auth.resetPassword({ token, newPassword: PASSWORD });
      expect(await refusalOf(call)).to.include({ reason: "RESET_TOKEN_INVALID" });
    });

    it("need a token", async () => {
      const call = server.as().auth.changePassword({ currentPassword: PASSWORD, newPassword: NEW_PASSWORD });
      expect(await refusalOf(call)).to.include({ reason: "TOKEN_MISSING" });
    });
  });
});
