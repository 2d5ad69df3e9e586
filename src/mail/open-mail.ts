import { join } from "node:path";
import type { Logger } from "pino";
import type { Config } from "../config.ts";
import type { Mail } from "./mail.ts";
import { outboxMail } from "./outbox.ts";
import { smtpMail } from "./smtp.ts";

const OUTBOX = "outbox";

/** Mail as the settings want it: through SMTP_URL, otherwise into the folder `outbox` of DATA_DIR. */
export function openMail({ mail, dataDir, production }: Config, log: Logger): Mail {
  if (mail.smtpUrl !== undefined) return smtpMail({ url: mail.smtpUrl, from: mail.from });
  const dir = join(dataDir, OUTBOX);
  if (production) log.warn({ dir }, "SMTP_URL is not set: mail is written to files, and nobody gets it");
  return outboxMail({ dir, from: mail.from, log });
}
