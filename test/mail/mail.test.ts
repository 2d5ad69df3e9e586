import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import { expect } from "chai";
import { pino } from "pino";
import { readConfig } from "../../src/config.ts";
import { MailRefusedError } from "../../src/mail/mail.ts";
import { outboxMail } from "../../src/mail/outbox.ts";
import { smtpMail } from "../../src/mail/smtp.ts";
import { readOutbox, useMailServer } from "../support/mail.ts";
import { expectWithin } from "../support/timing.ts";

const FROM = "The Shop <shop@tradepost.example>";
const aMessage = { to: "ada@tradepost.example", subject: "Hello", text: "One line.\n\nAnd another, ünicode.\n" };
const attack = {
  to: "ada@tradepost.example\r\nBcc: eve@tradepost.example",
  subject: "Hello\r\nBcc: eve@tradepost.example\r\n\r\nAnother body",
  text: "Text\r\n.\r\nMAIL FROM:<eve@tradepost.example>\r\n",
};

async function failureOf(work: Promise<unknown>): Promise<Error> {
  try {
    await work;
  } catch (error) {
    return error as Error;
  }
  throw new Error("expected a failure");
}

describe("mail by SMTP", () => {
  const server = useMailServer();
  const open: ReturnType<typeof smtpMail>[] = [];
  const newMail = (sendTimeoutMs?: number) => {
    const mail = smtpMail({ url: server.url, from: FROM, ...(sendTimeoutMs !== undefined && { sendTimeoutMs }) });
    open.push(mail);
    return mail;
  };
  afterEach(() => {
    server.behaviour = "accept";
    for (const mail of open.splice(0)) mail.close();
  });

  it("arrives with its sender, subject and text", async () => {
    await newMail().send(aMessage);
    const [mail] = server.mailsTo(aMessage.to);
    expect(mail?.headers).to.include({
      from: FROM,
      to: aMessage.to,
      subject: "Hello",
      "auto-submitted": "auto-generated",
    });
    expect(mail?.text).to.equal(aMessage.text);
  });

  it("carries many messages over the connections it keeps", async () => {
    const mail = newMail();
    const before = server.received.length;
    await Promise.all(Array.from({ length: 20 }, () => mail.send(aMessage)));
    expect(server.received.length - before).to.equal(20);
  });

  it("lets nobody add a header, a recipient or a command", async () => {
    const before = server.received.length;
    await newMail()
      .send(attack)
      .catch(() => {});
    const mails = server.received.slice(before);
    expect(mails.flatMap(({ to }) => to)).not.to.include("eve@tradepost.example");
    for (const { headers } of mails) expect(headers).not.to.have.any.keys("bcc", "another body");
    expect(server.mailsTo("eve@tradepost.example")).to.deep.equal([]);
  });

  it("tells a recipient who is refused for good from one who is refused for now", async () => {
    server.behaviour = "refuse";
    expect(await failureOf(newMail().send(aMessage))).to.be.instanceOf(MailRefusedError);
    server.behaviour = "defer";
    expect(await failureOf(newMail().send(aMessage))).not.to.be.instanceOf(MailRefusedError);
  });

  it("fails when the server breaks off in the middle of a message, and works again after", async () => {
    const mail = newMail();
    server.behaviour = "drop";
    expect(await failureOf(mail.send(aMessage))).not.to.be.instanceOf(MailRefusedError);
    server.behaviour = "accept";
    await mail.send(aMessage);
  });

  it("gives up on a server that never answers", async () => {
    await expectWithin(5_000, async () => {
      server.behaviour = "hang";
      const startedAt = Date.now();
      await failureOf(newMail(300).send(aMessage));
      return Date.now() - startedAt;
    });
  });

  it("stops waiting when its job is ended", async () => {
    server.behaviour = "hang";
    const ending = new AbortController();
    const sending = failureOf(newMail().send(aMessage, ending.signal));
    ending.abort();
    await sending;
  });

  it("fails at once where nothing listens", async () => {
    const mail = smtpMail({ url: "smtp://127.0.0.1:1", from: FROM });
    expect((await failureOf(mail.send(aMessage))).message).to.include("ECONNREFUSED");
    mail.close();
  });
});

describe("mail into a folder", () => {
  let dir: string;
  const lines: { msg: string; subject?: string; link?: string; file?: string }[] = [];
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(JSON.parse(chunk.toString()));
      done();
    },
  });
  const newMail = () => outboxMail({ dir: join(dir, "outbox"), from: FROM, log: pino({}, sink) });

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "tradepost-mail-"));
    lines.length = 0;
  });
  afterEach(() => rm(dir, { recursive: true, force: true }));

  it("is a file that a mail program can open, and a log line with subject and link", async () => {
    const link = "https://shop.example/verify?token=abc";
    await newMail().send({ ...aMessage, link });
    const [mail] = await readOutbox(join(dir, "outbox"));
    expect(mail?.headers).to.include({ from: FROM, to: aMessage.to, subject: "Hello" });
    expect(mail?.text).to.equal(aMessage.text);
    expect(lines).to.have.length(1);
    expect(lines[0]).to.include({ msg: "mail written", subject: "Hello", link });
    expect(lines[0]?.file).to.match(/\.eml$/);
  });

  it("comes in the order in which it was sent, and many at once do not overwrite each other", async () => {
    const mail = newMail();
    for (const subject of ["first", "second", "third"]) await mail.send({ ...aMessage, subject });
    await Promise.all(Array.from({ length: 50 }, () => mail.send(aMessage)));
    const subjects = (await readOutbox(join(dir, "outbox"))).map(({ headers }) => headers["subject"]);
    expect(subjects.slice(0, 3)).to.deep.equal(["first", "second", "third"]);
    expect(subjects).to.have.length(53);
  });

  it("is kept up to a thousand messages, the newest ones", async () => {
    await mkdir(join(dir, "outbox"));
    const old = Array.from({ length: 1_002 }, (_, i) => `20200101T000000000Z-${String(i).padStart(6, "0")}-0.eml`);
    await Promise.all(old.map((name) => writeFile(join(dir, "outbox", name), "")));
    await newMail().send(aMessage);
    const kept = (await readdir(join(dir, "outbox"))).sort();
    expect(kept).to.have.length(1_000);
    expect(kept.slice(0, -1)).to.deep.equal(old.slice(3));
  });

  it("is for the eyes of its owner only, since it holds tokens", async () => {
    await newMail().send(aMessage);
    const [file = ""] = await readdir(join(dir, "outbox"));
    expect((await stat(join(dir, "outbox", file))).mode & 0o077).to.equal(0);
    expect((await stat(join(dir, "outbox"))).mode & 0o077).to.equal(0);
  });

  it("lets nobody add a header", async () => {
    await newMail().send(attack);
    const [mail] = await readOutbox(join(dir, "outbox"));
    expect(mail?.headers).not.to.have.any.keys("bcc", "another body");
  });
});

describe("settings of mail", () => {
  const refusedBy = (settings: Record<string, string>) => {
    try {
      readConfig(settings);
    } catch (error) {
      return (error as Error).message;
    }
    return undefined;
  };

  it("demand a sender where mail goes out", () => {
    expect(refusedBy({ SMTP_URL: "smtp://mail.example" })).to.match(/^MAIL_FROM: /);
    expect(refusedBy({ SMTP_URL: "smtp://mail.example", MAIL_FROM: "shop@shop.example" })).to.equal(undefined);
  });

  it("refuse what could not be used, without repeating a password", () => {
    const message = refusedBy({
      SMTP_URL: "http://user:hunter2@mail.example",
      MAIL_FROM: "Shop <shop@shop.example>\r\nBcc: eve@shop.example",
      PUBLIC_URL: "shop.example",
      VERIFY_EMAIL_URL: "https://shop.example/verify",
      RESET_PASSWORD_URL: "javascript:alert('{token}')",
    });
    const names = message?.split("\n").map((line) => line.split(":")[0]);
    expect(names).to.have.members(["SMTP_URL", "MAIL_FROM", "PUBLIC_URL", "VERIFY_EMAIL_URL", "RESET_PASSWORD_URL"]);
    expect(message).not.to.include("hunter2");
  });
});
