import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { Writable } from "node:stream";
import { expect } from "chai";
import { sql } from "../support/database.ts";
import { newAdmin, PASSWORD, present } from "../support/factories.ts";
import { readOutbox, tokenOf, useMailServer } from "../support/mail.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

const DAY_MS = 24 * 60 * 60_000;
const INVALID = { code: "InvalidArgument", reason: "VERIFICATION_TOKEN_INVALID" };

const aRegistration = (email: string) => ({
  email,
  password: PASSWORD,
  firstName: "Ada",
  lastName: "Marsh",
  dateOfBirth: { year: 1990, month: 1, day: 2 },
});

async function newAccount(server: TestServer) {
  const email = `${randomUUID()}@tradepost.example`;
  const { user } = await server.as().auth.register(aRegistration(email));
  return { id: present(user).id, email };
}

async function signIn(server: TestServer, email: string) {
  const { accessToken, user } = await server.as().auth.login({ email, password: PASSWORD });
  return { ...server.as(accessToken), user: present(user) };
}

describe("email verification", () => {
  const mail = useMailServer();
  const log: string[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      log.push(chunk.toString());
      done();
    },
  });
  const server = useServer({
    logTo: sink,
    settings: {
      get SMTP_URL() {
        return mail.url;
      },
      MAIL_FROM: "The Shop <shop@tradepost.example>",
    },
  });
  const isVerified = async (email: string) => (await signIn(server, email)).user.emailVerified;
  const jobs = () => sql<{ attempts: number }>(server.database, "SELECT attempts FROM graphile_worker.jobs");
  const mailedToken = (email: string) => tokenOf(mail.mailsTo(email).at(-1));

  afterEach(async () => {
    mail.behaviour = "accept";
    await sql(server.database, "DELETE FROM graphile_worker._private_jobs");
  });

  it("is done with the token that Register has mailed", async () => {
    const { id, email } = await newAccount(server);
    expect(await isVerified(email)).to.equal(false);
    await server.runJobs();
    expect(mail.mailsTo(email).map(({ headers }) => headers["subject"])).to.deep.equal(["Confirm your email address"]);

    await server.as().auth.verifyEmail({ token: mailedToken(email) });
    expect(await isVerified(email)).to.equal(true);
    const events = await sql<{ type: string }>(
      server.database,
      "SELECT type FROM account_events WHERE user_id = $1 ORDER BY id",
      [id],
    );
    expect(events.map(({ type }) => type)).to.deep.equal(["REGISTERED", "EMAIL_VERIFIED"]);
  });

  it("works once for each token, also when it is sent twenty times at once", async () => {
    const { email } = await newAccount(server);
    await server.runJobs();
    const token = mailedToken(email);
    const calls = Array.from({ length: 20 }, () => server.as().auth.verifyEmail({ token }));
    expect(await tally(calls)).to.deep.equal({ ok: 1, VERIFICATION_TOKEN_INVALID: 19 });
    expect(await refusalOf(server.as().auth.verifyEmail({ token }))).to.include(INVALID);
  });

  it("refuses a token that is unknown, expired, for something else or of a deleted account, all alike", async () => {
    const [expired, reset, deleted] = await Promise.all([newAccount(server), newAccount(server), newAccount(server)]);
    await server.runJobs();
    const deletedToken = mailedToken(deleted.email);
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [deleted.id]);
    await server.as().auth.requestPasswordReset({ email: reset.email });
    await server.runJobs();
    const expiredToken = mailedToken(expired.email);
    const refusals = [
      await refusalOf(server.as().auth.verifyEmail({ token: "made-up" })),
      await refusalOf(server.as().auth.verifyEmail({ token: mailedToken(reset.email) })),
      await refusalOf(server.as().auth.verifyEmail({ token: deletedToken })),
    ];
    server.clock.advance(DAY_MS + 1_000);
    refusals.push(await refusalOf(server.as().auth.verifyEmail({ token: expiredToken })));
    server.clock.advance(-DAY_MS - 1_000);
    for (const refusal of refusals) {
      expect(refusal).to.include(INVALID);
      expect(refusal).to.deep.equal(refusals[0]);
    }
    expect(await isVerified(expired.email)).to.equal(false);
  });

  it("takes a token up to the end of its day", async () => {
    const { email } = await newAccount(server);
    await server.runJobs();
    server.clock.advance(DAY_MS - 60_000);
    await server.as().auth.verifyEmail({ token: mailedToken(email) });
    server.clock.advance(-DAY_MS + 60_000);
    expect(await isVerified(email)).to.equal(true);
  });

  it("proves nothing about an address that the account has since", async () => {
    const { email } = await newAccount(server);
    await server.runJobs();
    const old = mailedToken(email);
    const { users, user } = await signIn(server, email);
    const changed = `${randomUUID()}@tradepost.example`;
    await users.updateUser({ user: { id: user.id, email: changed }, updateMask: { paths: ["email"] } });
    expect(await refusalOf(server.as().auth.verifyEmail({ token: old }))).to.include(INVALID);

    await server.runJobs();
    await server.as().auth.verifyEmail({ token: mailedToken(changed) });
    expect(await isVerified(changed)).to.equal(true);
  });

  it("is asked for anew by ResendVerificationEmail, which answers the same for every email", async () => {
    const [unverified, verified, deleted] = await Promise.all([
      newAccount(server),
      newAccount(server),
      newAccount(server),
    ]);
    await server.runJobs();
    await server.as().auth.verifyEmail({ token: mailedToken(verified.email) });
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [deleted.id]);
    const stranger = `${randomUUID()}@tradepost.example`;
    const emails = [` ${unverified.email.toUpperCase()} `, verified.email, deleted.email, stranger];
    const before = mail.offered;
    const answers = await Promise.all(emails.map((email) => server.as().auth.resendVerificationEmail({ email })));
    for (const answer of answers) expect(answer).to.deep.equal(answers[0]);
    expect(await jobs(), "the same work is left behind for each").to.have.length(emails.length);

    await server.runJobs();
    expect(mail.offered - before).to.equal(1);
    expect(mail.mailsTo(unverified.email)).to.have.length(2);
    await server.as().auth.verifyEmail({ token: mailedToken(unverified.email) });
  });

  it("accepts the token of either mail when two were sent", async () => {
    const { email } = await newAccount(server);
    await server.runJobs();
    await server.as().auth.resendVerificationEmail({ email });
    await server.runJobs();
    await server.as().auth.verifyEmail({ token: tokenOf(mail.mailsTo(email)[0]) });
    expect(await refusalOf(server.as().auth.verifyEmail({ token: mailedToken(email) }))).to.include(INVALID);
  });

  it("keeps the newest five tokens of an account, as hashes, and none in the queue", async () => {
    const { id, email } = await newAccount(server);
    const [job] = await sql<{ payload: object }>(server.database, "SELECT payload FROM graphile_worker._private_jobs");
    expect(job?.payload).to.deep.equal({ userId: id });
    for (let i = 0; i < 7; i++) {
      await server.runJobs();
      await server.as().auth.resendVerificationEmail({ email });
    }
    const tokens = mail.mailsTo(email).map(tokenOf);
    const kept = await sql<{ n: number }>(
      server.database,
      `SELECT sent.n::int FROM account_tokens JOIN unnest($2::text[]) WITH ORDINALITY sent (token, n)
           ON token_hash = sha256(sent.token::bytea) WHERE user_id = $1 ORDER BY sent.n`,
      [id, tokens],
    );
    expect(kept.map(({ n }) => n)).to.deep.equal([3, 4, 5, 6, 7]);
  });

  it("leaves no expired tokens behind for ever", async () => {
    const old = await newAccount(server);
    await server.runJobs();
    server.clock.advance(DAY_MS + 1_000);
    await newAccount(server);
    await server.runJobs();
    server.clock.advance(-DAY_MS - 1_000);
    expect(await sql(server.database, "SELECT FROM account_tokens WHERE user_id = $1", [old.id])).to.deep.equal([]);
  });

  it("comes with the account or not at all", async () => {
    const { email } = await newAccount(server);
    expect(await jobs()).to.have.length(1);
    await refusalOf(server.as().auth.register(aRegistration(email)));
    expect(await jobs(), "after a refused registration").to.have.length(1);
  });

  it("is tried again when the mail server is busy, breaks off or is away", async () => {
    const { email } = await newAccount(server);
    let attempts = 0;
    for (const behaviour of ["defer", "drop"] as const) {
      mail.behaviour = behaviour;
      await sql(server.database, "UPDATE graphile_worker._private_jobs SET run_at = now() - interval '1 s'");
      await server.runJobs();
      expect(mail.mailsTo(email)).to.deep.equal([]);
      expect(await jobs()).to.deep.equal([{ attempts: ++attempts }]);
    }
    mail.behaviour = "accept";
    await sql(server.database, "UPDATE graphile_worker._private_jobs SET run_at = now() - interval '1 s'");
    await server.runJobs();
    expect(await jobs()).to.deep.equal([]);
    await server.as().auth.verifyEmail({ token: mailedToken(email) });
  });

  it("is not tried again where the mailbox does not exist", async () => {
    await newAccount(server);
    mail.behaviour = "refuse";
    await server.runJobs();
    expect(await jobs()).to.deep.equal([]);
    expect(log.join("")).to.include("mail refused");
  });

  it("never shows a token in the log where mail goes out", async () => {
    const { email } = await newAccount(server);
    await server.runJobs();
    const token = mailedToken(email);
    await server.as().auth.verifyEmail({ token });
    await refusalOf(server.as().auth.verifyEmail({ token }));
    const lines = log.join("");
    expect(lines).to.include('"event":"email_verified"').and.to.include('"event":"mailed_token_bad"');
    expect(lines).not.to.include(token);
    expect(lines).not.to.include(email);
  });
});

describe("email verification without a mail server", () => {
  const log: { msg?: string; subject?: string; link?: string }[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      log.push(JSON.parse(chunk.toString()));
      done();
    },
  });
  const server = useServer({ logTo: sink, settings: { PUBLIC_URL: "https://api.shop.example/" } });

  it("writes the mail to the outbox, and its link to the log", async () => {
    const { email } = await newAccount(server);
    await server.runJobs();
    const mails = await readOutbox(join(server.deps.config.dataDir, "outbox"));
    const token = tokenOf(mails.find(({ to }) => to.includes(email)));
    expect(log.find(({ msg }) => msg === "mail written")).to.include({
      subject: "Confirm your email address",
      link: `https://api.shop.example/verify-email?token=${token}`,
    });
    await server.as().auth.verifyEmail({ token });
  });

  it("tells a command that does the same, since the shop has no page", async () => {
    const { email } = await newAccount(server);
    await server.runJobs();
    const mails = await readOutbox(join(server.deps.config.dataDir, "outbox"));
    const text = mails.find(({ to }) => to.includes(email))?.text;
    expect(text).to.include("curl https://api.shop.example/tradepost.user.v1.AuthService/VerifyEmail");
  });
});

describe("email verification with a page of the shop", () => {
  const server = useServer({ settings: { VERIFY_EMAIL_URL: "https://shop.example/welcome#token={token}" } });

  it("links to that page and tells no command", async () => {
    const admin = await newAdmin(server);
    await server.runJobs();
    const [mail] = await readOutbox(join(server.deps.config.dataDir, "outbox"));
    expect(mail?.to).to.deep.equal([admin.email]);
    expect(mail?.text)
      .to.match(/^https:\/\/shop\.example\/welcome#token=[\w-]{43}$/m)
      .and.not.include("curl");
  });
});
