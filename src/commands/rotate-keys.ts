/** The program behind `npm run keys:rotate`: makes the next key that signs access tokens. */
import { parseArgs } from "node:util";
import { type Logger, pino } from "pino";
import { systemClock } from "../assemble.ts";
import { type Config, readConfig } from "../config.ts";
import { sentenceOf } from "../faults.ts";
import { onStopRequest } from "../parent.ts";
import { derivedKey, keptSecretKey } from "../secret-key.ts";
import { withDatabase } from "../service-database.ts";
import { SigningKeyStore } from "../users/signing-key-store.ts";
import { SigningKeys } from "../users/signing-keys.ts";

const PROGRAM = "npm run keys:rotate";

const USAGE = `Usage: ${PROGRAM}

Makes a new key for access tokens, on the database of DATABASE_URL or, without it, on the embedded one in DATA_DIR,
whether or not the service runs. SECRET_KEY (or the one kept in DATA_DIR) must be the service's own. The database is
migrated first.

The key is published at /.well-known/jwks.json within half a minute, and signs six minutes later, when every replica and
every client has read it: no call fails meanwhile. While it waits another run makes no further key. Keys whose last token
has expired are deleted by the next run.

  --help    this text
`;

/** @throws Error for arguments that are wrong. @returns whether help was asked for. */
function wantsHelp(args: readonly string[]): boolean {
  try {
    return parseArgs({ args: [...args], options: { help: { type: "boolean", default: false } } }).values.help;
  } catch (error) {
    throw new Error(`${(error as Error).message}\n\n${USAGE.trimEnd()}`);
  }
}

async function rotate(config: Config, log: Logger): Promise<string> {
  return withDatabase({ config, log, program: PROGRAM, migrate: true }, async ({ db, name }) => {
    const secretKey = derivedKey(config.secretKey ?? keptSecretKey(config.dataDir), "signing keys");
    const keys = new SigningKeys(new SigningKeyStore(db), systemClock, secretKey);
    // Reads the keys there are, so that a wrong SECRET_KEY makes no key that the service could not read.
    await keys.load();
    const { next, deleted } = await keys.rotate();
    const made = `The key ${next.id} is published and signs from ${next.activateTime.toISOString()} on, in ${name}.`;
    return [made, ...deleted.map((id) => `Deleted the old key ${id}.`)].join("\n");
  });
}

async function main(): Promise<void> {
  let working = false;
  // A stop waits for the end of the work, which a second one cuts short.
  onStopRequest((_reason, times) => {
    if (!working || times > 1) process.exit(1);
  });
  if (wantsHelp(process.argv.slice(2))) {
    process.stdout.write(USAGE);
    return;
  }
  const config = readConfig();
  // Standard output is for the result.
  const level = config.log.level === "info" ? "warn" : config.log.level;
  const log = pino({ level, base: null }, pino.destination({ fd: 2, sync: true }));
  working = true;
  process.stdout.write(`${await rotate(config, log)}\n`);
}

try {
  await main();
  process.exit(0);
} catch (error) {
  process.stderr.write(`${sentenceOf(error)}\n`);
  process.exit(1);
}
