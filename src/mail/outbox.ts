import { randomBytes } from "node:crypto";
import { mkdir, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Logger } from "pino";
import { type Mail, toNodemailer } from "./mail.ts";

/** The oldest go when there are more, so that a forgotten folder does not fill the disk. */
const MAX_MESSAGES = 1_000;
const ENDING = ".eml";

export interface OutboxOptions {
  readonly dir: string;
  readonly from: string;
  readonly log: Logger;
}

/**
 * Mail for machines without a mail server: each message becomes a file that mail programs open, named so that the
 * newest comes last, and its subject and link are logged, because there they can be used at once.
 */
export function outboxMail({ dir, from, log }: OutboxOptions): Mail {
  let written = 0;
  return {
    async send(message) {
      // Loaded with the first message, since a service starts sooner without it.
      const { createTransport } = await import("nodemailer");
      const composer = createTransport({ streamTransport: true, buffer: true });
      const { message: source } = await composer.sendMail(toNodemailer(from, message));
      // The messages hold tokens, so they are for nobody but the service's own user.
      await mkdir(dir, { recursive: true, mode: 0o700 });
      const time = new Date().toISOString().replaceAll(/[-:.]/g, "");
      // Several in one millisecond keep their order, and those of several processes their names.
      const name = `${time}-${String(written++).padStart(6, "0")}-${randomBytes(4).toString("hex")}`;
      const draft = join(dir, `${name}.draft`);
      const file = join(dir, name + ENDING);
      await writeFile(draft, source as Buffer, { mode: 0o600 });
      await rename(draft, file);
      log.info({ subject: message.subject, link: message.link, file }, "mail written");
      await removeOldest(dir);
    },
    close() {},
  };
}

async function removeOldest(dir: string): Promise<void> {
  const files = (await readdir(dir)).filter((name) => name.endsWith(ENDING)).sort();
  for (const name of files.slice(0, -MAX_MESSAGES)) await rm(join(dir, name), { force: true });
}
