import { join } from "node:path";
import type { Logger } from "pino";
import type { Config } from "../config.ts";
import type { Mail } from "./mail.ts";
import { outboxMail } from "./outbox.ts";

const OUTBOX = "outbox";

/** Mail as the settings want it: through SMTP_URL, otherwise into the folder `outbox` of DATA_DIR. */
export async function openMail({ mail, dataDir, production }: Config, log: Logger): Promise<Mail> {
  if (mail.smtpUrl !== undefined) {
    const { smtpMail } = await import("./smtp.ts");
    return smtpMail({ url: mail.smtpUrl, from: mail.from });
  }
  const dir = join(dataDir, OUTBOX);
  if (production) log.warn({ dir }, "SMTP_URL is not set: mail is written to files, and nobody gets it");
  return outboxMail({ dir, from: mail.from, log });
}
