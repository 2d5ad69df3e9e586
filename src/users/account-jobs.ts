import type { Logger } from "pino";
import { z } from "zod";
import type { Config } from "../config.ts";
import type { Clock } from "../deps.ts";
import type { Job } from "../jobs/enqueue.ts";
import type { JobHandlers } from "../jobs/worker.ts";
import { type Mail, type MailMessage, MailRefusedError } from "../mail/mail.ts";
import type { AccountTokenStore } from "./account-token-store.ts";
import { type IssuedToken, issueToken } from "./account-tokens.ts";
import { passwordChangedMail, passwordResetMail, verificationMail } from "./mails.ts";
import type { UserStore } from "./store.ts";
import type { User } from "./user.ts";

const SEND_VERIFICATION_EMAIL = "send-verification-email";
const SEND_PASSWORD_RESET = "send-password-reset";
const SEND_PASSWORD_CHANGED = "send-password-changed";

/** Mails a verification link to a new account, or to one that has a new email. */
export function verificationEmailJob(userId: string): Job {
  return { task: SEND_VERIFICATION_EMAIL, payload: { userId }, key: `${SEND_VERIFICATION_EMAIL} ${userId}` };
}

/** The same for whoever asks by an email: the job finds out whether there is an account that needs it. */
export function verificationEmailRequestJob(email: string): Job {
  return { task: SEND_VERIFICATION_EMAIL, payload: { email }, key: `${SEND_VERIFICATION_EMAIL} ${email}` };
}

/** Mails a link to set a new password, if there is an account of that email. */
export function passwordResetRequestJob(email: string): Job {
  return { task: SEND_PASSWORD_RESET, payload: { email }, key: `${SEND_PASSWORD_RESET} ${email}` };
}

/** Tells the owner of an account by the address that it had then, even if that is changed the next moment. */
export function passwordChangedJob({ email }: Pick<User, "email">, time: Date): Job {
  return { task: SEND_PASSWORD_CHANGED, payload: { email, time: time.toISOString() } };
}

const account = z.union([z.object({ userId: z.uuid() }), z.object({ email: z.string() })]);
const request = z.object({ email: z.string() });
const change = z.object({ email: z.string(), time: z.iso.datetime().transform((time) => new Date(time)) });

interface AccountJobDeps {
  readonly users: UserStore;
  readonly accountTokens: AccountTokenStore;
  readonly mail: Mail;
  readonly clock: Clock;
  readonly config: Pick<Config, "publicUrl" | "mail">;
  readonly log: Logger;
}

/**
 * The handlers of the jobs about accounts. Tokens are made here and not where jobs are enqueued, so that none ever lies in
 * the queue; a job that is tried again makes another.
 */
export function accountJobs(deps: AccountJobDeps): JobHandlers {
  const { users, mail, config, log } = deps;

  const issueTo = async (user: User | undefined, purpose: "VERIFY_EMAIL" | "RESET_PASSWORD") =>
    user && issueToken(deps, user.id, purpose);

  const deliver = async (message: MailMessage, signal: AbortSignal) => {
    try {
      await mail.send(message, signal);
    } catch (error) {
      if (!(error instanceof MailRefusedError)) throw error;
      // Whoever waits for it mistyped the address or has a full account; the same mail again would be refused again.
      log.warn({ subject: message.subject, err: error.cause }, "mail refused");
    }
  };

  return {
    async [SEND_VERIFICATION_EMAIL](payload, { signal }) {
      const asked = account.parse(payload);
      const user = "userId" in asked ? await users.find(asked.userId) : await users.findByEmail(asked.email);
      const issued = await issueTo(user, "VERIFY_EMAIL");
      if (issued !== undefined) await deliver(verificationMail(config, ...addressed(issued)), signal);
    },

    async [SEND_PASSWORD_RESET](payload, { signal }) {
      const issued = await issueTo(await users.findByEmail(request.parse(payload).email), "RESET_PASSWORD");
      if (issued !== undefined) await deliver(passwordResetMail(config, ...addressed(issued)), signal);
    },

    async [SEND_PASSWORD_CHANGED](payload, { signal }) {
      const { email, time } = change.parse(payload);
      await deliver(passwordChangedMail(email, time), signal);
    },
  };
}

function addressed({ user, token }: IssuedToken): [to: string, token: string] {
  return [user.email, token];
}
