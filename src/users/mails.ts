import type { Config } from "../config.ts";
import type { MailMessage } from "../mail/mail.ts";

type MailSettings = Pick<Config, "publicUrl"> & {
  readonly mail: Pick<Config["mail"], "verifyEmailUrl" | "resetPasswordUrl">;
};

/** Asks whoever reads mail at `to` to say so. */
export function verificationMail({ publicUrl, mail }: MailSettings, to: string, token: string): MailMessage {
  const link = linkTo(mail.verifyEmailUrl ?? `${publicUrl}/verify-email?token={token}`, token);
  const command = mail.verifyEmailUrl === undefined ? commandOf(publicUrl, "VerifyEmail", { token }) : [];
  const text = [
    "Somebody made an account with this email address. If it was you, confirm the address within 24 hours:",
    link,
    ...command,
    "If it was not you, do nothing: without the confirmation the address counts as nobody's.",
  ];
  return { to, subject: "Confirm your email address", text: paragraphs(text), link };
}

/** Lets whoever reads mail at `to` set a new password. */
export function passwordResetMail({ publicUrl, mail }: MailSettings, to: string, token: string): MailMessage {
  const link = linkTo(mail.resetPasswordUrl ?? `${publicUrl}/reset-password?token={token}`, token);
  const request = { token, newPassword: "a new password" };
  const command = mail.resetPasswordUrl === undefined ? commandOf(publicUrl, "ResetPassword", request) : [];
  const text = [
    "Somebody, probably you, wants to set a new password for your account. The link is good for one hour and for once:",
    link,
    ...command,
    "A new password signs you out everywhere. If you did not ask for this, do nothing: your password stays as it is.",
  ];
  return { to, subject: "Set a new password", text: paragraphs(text), link };
}

/** Tells the owner of an account that it has another password, in case it was not them. */
export function passwordChangedMail(to: string, time: Date): MailMessage {
  const text = [
    `The password of your account was changed on ${time.toUTCString()}.`,
    "If it was you, there is nothing to do. If not, set a new one now: ask for a password reset with this address.",
  ];
  return { to, subject: "Your password was changed", text: paragraphs(text) };
}

function linkTo(template: string, token: string): string {
  return template.replaceAll("{token}", token);
}

/** For installations that have told no page of their shop: what such a page would do. */
function commandOf(publicUrl: string, rpc: string, request: object): string[] {
  const url = `${publicUrl}/tradepost.user.v1.AuthService/${rpc}`;
  const curl = `curl ${url} -H 'content-type: application/json' -d '${JSON.stringify(request)}'`;
  return ["This shop has not told Tradepost its page for this yet. Until it has one, a command does the same:", curl];
}

function paragraphs(parts: readonly string[]): string {
  return `${parts.join("\n\n")}\n`;
}
