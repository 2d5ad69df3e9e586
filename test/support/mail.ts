import { once } from "node:events";
import { readdir, readFile } from "node:fs/promises";
import type { AddressInfo, Socket } from "node:net";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { SMTPServer } from "smtp-server";

/** A mail as its reader gets it. */
export interface ReceivedMail {
  /** Of the envelope. */
  readonly to: readonly string[];
  readonly headers: Readonly<Record<string, string>>;
  readonly text: string;
}

/** What a mail server does with the next messages. */
export type Behaviour =
  | "accept"
  /** 550 to the recipient: never. */
  | "refuse"
  /** 451 to the recipient: not now. */
  | "defer"
  /** Breaks the connection in the middle of the message. */
  | "drop"
  /** Takes the message and never says so. */
  | "hang";

/** A real mail server on loopback. */
export interface MailServer {
  readonly url: string;
  readonly received: readonly ReceivedMail[];
  /** How many messages it was offered, accepted or not. */
  readonly offered: number;
  behaviour: Behaviour;
  /** What came to one address, oldest first. */
  mailsTo(email: string): ReceivedMail[];
}

/** Gives the suite it is called in a mail server, from before its first test to after its last. */
export function useMailServer(): MailServer {
  const received: ReceivedMail[] = [];
  const sockets = new Set<Socket>();
  const state = { behaviour: "accept" as Behaviour, offered: 0, url: "" };
  const smtp = new SMTPServer({
    disabledCommands: ["AUTH", "STARTTLS"],
    disableReverseLookup: true,
    logger: false,
    onRcptTo(_address, _session, callback) {
      state.offered++;
      if (state.behaviour === "refuse") callback(replyOf(550, "no such mailbox"));
      else if (state.behaviour === "defer") callback(replyOf(451, "come back later"));
      else callback();
    },
    onData(stream, { envelope }, callback) {
      if (state.behaviour === "drop") {
        for (const socket of sockets) socket.destroy();
        return;
      }
      void buffer(stream).then((source) => {
        if (state.behaviour === "hang") return;
        received.push(
          parseMail(
            source.toString("utf8"),
            envelope.rcptTo.map(({ address }) => address),
          ),
        );
        callback();
      });
    },
  });
  smtp.on("error", () => {});
  smtp.server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.once("close", () => sockets.delete(socket));
  });

  before(async () => {
    smtp.listen(0, "127.0.0.1");
    await once(smtp.server, "listening");
    state.url = `smtp://127.0.0.1:${(smtp.server.address() as AddressInfo).port}`;
  });
  after(async () => {
    const closed = new Promise<void>((resolve) => smtp.close(() => resolve()));
    for (const socket of sockets) socket.destroy();
    await closed;
  });

  return {
    received,
    get url() {
      return state.url;
    },
    get offered() {
      return state.offered;
    },
    get behaviour() {
      return state.behaviour;
    },
    set behaviour(behaviour) {
      state.behaviour = behaviour;
    },
    mailsTo: (email) => received.filter(({ to }) => to.includes(email)),
  };
}

/** The mails that were written to a folder, oldest first. */
export async function readOutbox(dir: string): Promise<ReceivedMail[]> {
  const files = (await readdir(dir)).sort();
  const mails = await Promise.all(files.map((file) => readFile(join(dir, file), "utf8")));
  return mails.map((source) => parseMail(source));
}

/** The token in the link of a mail. */
export function tokenOf(mail: ReceivedMail | undefined): string {
  const token = /token=([\w-]+)/.exec(mail?.text ?? "")?.[1];
  if (token === undefined) throw new Error(`there is no token in ${JSON.stringify(mail)}`);
  return token;
}

function replyOf(responseCode: number, message: string): Error {
  return Object.assign(new Error(message), { responseCode });
}

/** Reads what the service itself writes: one text in quoted-printable or as it is. */
function parseMail(source: string, envelope?: readonly string[]): ReceivedMail {
  const end = source.indexOf("\r\n\r\n");
  const lines = source
    .slice(0, end)
    .replaceAll(/\r\n[ \t]+/g, " ")
    .split("\r\n");
  const headers = Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
  );
  const body = source.slice(end + 4);
  const encoded = headers["content-transfer-encoding"] === "quoted-printable";
  const text = (encoded ? decodeQuotedPrintable(body) : body).replaceAll("\r\n", "\n");
  return { to: envelope ?? [headers["to"] ?? ""], headers, text };
}

function decodeQuotedPrintable(body: string): string {
  const joined = body.replaceAll("=\r\n", "");
  const bytes = joined.replaceAll(/=([0-9A-F]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
  return Buffer.from(bytes, "latin1").toString("utf8");
}
