import { createTransport, type NodemailerError } from "nodemailer";
import { type Mail, MailRefusedError, toNodemailer } from "./mail.ts";

const CONNECT_TIMEOUT_MS = 10_000;
const GREETING_TIMEOUT_MS = 10_000;
/** Longest silence of the server within a conversation. */
const SOCKET_TIMEOUT_MS = 20_000;
/** For one message altogether: a server that trickles its answers is never silent. */
const SEND_TIMEOUT_MS = 45_000;
const MAX_CONNECTIONS = 2;
const MAX_RESPONSE_BYTES = 64 * 1024;

export interface SmtpOptions {
  /** smtp://user:password@host:port, or smtps:// for TLS from the start. */
  readonly url: string;
  /** The sender, "Name <address>" or just the address. */
  readonly from: string;
  /** Replaced by tests that wait for it. */
  readonly sendTimeoutMs?: number;
}

/** Sends through a mail server, over few connections that are kept. */
export function smtpMail({ url, from, sendTimeoutMs = SEND_TIMEOUT_MS }: SmtpOptions): Mail {
  const transport = createTransport({
    url,
    pool: true,
    maxConnections: MAX_CONNECTIONS,
    // A kept connection may have been closed by the server meanwhile: that is worth one more try at once.
    maxRequeues: 1,
    connectionTimeout: CONNECT_TIMEOUT_MS,
    dnsTimeout: CONNECT_TIMEOUT_MS,
    greetingTimeout: GREETING_TIMEOUT_MS,
    socketTimeout: SOCKET_TIMEOUT_MS,
    maxResponseSize: MAX_RESPONSE_BYTES,
  });
  return {
    async send(message, signal) {
      const late = AbortSignal.timeout(sendTimeoutMs);
      const either = signal === undefined ? late : AbortSignal.any([late, signal]);
      try {
        await transport.sendMail({ ...toNodemailer(from, message), signal: either });
      } catch (error) {
        throw isRefusal(error)
          ? new MailRefusedError("the mail server refuses this recipient", { cause: error })
          : error;
      }
    },
    close: () => transport.close(),
  };
}

/** A 5xx answer to RCPT TO is final (RFC 5321, 4.2.1). Any other fault may be mended: a password, a quota, a network. */
function isRefusal(error: unknown): boolean {
  const { code, command, responseCode } = error as NodemailerError & { command?: string; responseCode?: number };
  return code === "EENVELOPE" && command === "RCPT TO" && responseCode !== undefined && responseCode >= 500;
}
