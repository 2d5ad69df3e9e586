/** One mail to one person. Subject and texts are ours: what people typed appears in none of them. */
export interface MailMessage {
  /** One address, as it was checked when the account was made. */
  readonly to: string;
  readonly subject: string;
  readonly text: string;
  /** What the mail asks its reader to open. It may hold a token: it is a secret wherever mail really goes out. */
  readonly link?: string;
}

/** Where mail goes; tests replace it. */
export interface Mail {
  /**
   * Hands a message over, in a bounded time. It may arrive twice when this fails after the other side has taken it.
   * @throws MailRefusedError when trying again is of no use; any other error when it may be.
   */
  send(message: MailMessage, signal?: AbortSignal): Promise<void>;
  /** Ends connections; what is being sent fails. */
  close(): void;
}

/** The mail server will not take mail for this recipient, now or later. */
export class MailRefusedError extends Error {
  override readonly name = "MailRefusedError";
}

/** Says to other machines that nobody should answer, not even by an out-of-office note (RFC 3834). */
const headers = { "Auto-Submitted": "auto-generated" };

/**
 * A message in nodemailer's terms. The address is given in parts, so that nothing in it is read as a list of several,
 * and neither files nor URLs are ever read on its behalf.
 */
export function toNodemailer(from: string, { to, subject, text }: MailMessage) {
  const address = { name: "", address: to };
  return { from, to: address, subject, text, headers, disableFileAccess: true, disableUrlAccess: true };
}
