/** The program behind `npm run admin:create`: makes an account that may do everything, on any database. */
import { realpathSync } from "node:fs";
import { createInterface } from "node:readline";
import { Writable } from "node:stream";
import { parseArgs } from "node:util";
import { create } from "@bufbuild/protobuf";
import { type Logger, pino } from "pino";
import { systemClock } from "../assemble.ts";
import { type Config, readConfig } from "../config.ts";
import { DomainError } from "../errors.ts";
import { sentenceOf } from "../faults.ts";
import { onStopRequest } from "../parent.ts";
import { validate } from "../server/interceptors/validate.ts";
import { services } from "../server/routes.ts";
import { withDatabase } from "../service-database.ts";
import { authRules } from "../users/auth-service.ts";
import { Passwords } from "../users/passwords.ts";
import { register } from "../users/register.ts";
import { UserStore } from "../users/store.ts";

const PROGRAM = "npm run admin:create";
const INPUT_TIMEOUT_MS = 10 * 60_000;
const INPUT_MAX_CHARS = 4_096;

const USAGE = `Usage: ${PROGRAM} -- --email <email> [options]

Makes an admin, on the database of DATABASE_URL or, without it, on the embedded one in DATA_DIR, whether or not the
service runs. The database is migrated first. The password, 8 to 128 characters, is asked for, or read from standard
input (one line) where that is no terminal.

  --email <email>           to log in with
  --first-name <name>       default "Tradepost"
  --last-name <name>        default "Admin"
  --date-of-birth <date>    YYYY-MM-DD, default 1970-01-01
  --help                    this text
`;

/** What the person who runs the program can mend. The message is all that is shown. */
class Refusal extends Error {
  override readonly name = "Refusal";
}

interface Person {
  readonly email: string;
  readonly firstName: string;
  readonly lastName: string;
  /** YYYY-MM-DD */
  readonly dateOfBirth: string;
}

/** @throws Refusal for arguments that are wrong; undefined: help was asked for. */
function parsePerson(args: readonly string[]): Person | undefined {
  try {
    const { values } = parseArgs({
      args: [...args],
      options: {
        email: { type: "string" },
        "first-name": { type: "string", default: "Tradepost" },
        "last-name": { type: "string", default: "Admin" },
        "date-of-birth": { type: "string", default: "1970-01-01" },
        help: { type: "boolean", default: false },
      },
    });
    if (values.help) return undefined;
    if (values.email === undefined) throw new Error("--email is missing");
    const { email, "first-name": firstName, "last-name": lastName, "date-of-birth": dateOfBirth } = values;
    return { email, firstName, lastName, dateOfBirth };
  } catch (error) {
    throw new Refusal(`${(error as Error).message}\n\n${USAGE.trimEnd()}`);
  }
}

const OPTION_OF: Readonly<Record<string, string>> = {
  email: "--email",
  first_name: "--first-name",
  last_name: "--last-name",
  date_of_birth: "--date-of-birth",
};
const STAND_IN_PASSWORD = "a password that is not known yet";

/**
 * Checks the account by the very rules of Register, and gives it in its normal form.
 * @throws Refusal with every fault, a line each.
 */
async function checked(person: Person, password: string): Promise<Person & { readonly password: string }> {
  const [{ method }] = services;
  const [, year, month, day] = /^(\d{4})-(\d\d)-(\d\d)$/.exec(person.dateOfBirth) ?? [];
  const dateOfBirth = { year: Number(year ?? 0), month: Number(month ?? 0), day: Number(day ?? 0) };
  const message = create(method.register.input, { ...person, password, dateOfBirth });
  const rules = validate({ services: [services[0]], rules: authRules, clock: systemClock });
  type Next = Parameters<typeof rules>[0];
  const check = rules((async () => ({ stream: false })) as unknown as Next);
  try {
    await check({ stream: false, method: method.register, message } as unknown as Parameters<Next>[0]);
  } catch (error) {
    const violations = error instanceof DomainError ? error.details.violations : undefined;
    if (violations === undefined) throw error;
    const lines = violations.map(({ field, description }) => {
      const option = OPTION_OF[field.split(".")[0] ?? ""];
      return option === undefined ? description : `${option}: ${description}`;
    });
    throw new Refusal(lines.join("\n"));
  }
  const { email, firstName, lastName } = message;
  return { email, firstName, lastName, dateOfBirth: person.dateOfBirth, password };
}

/**
 * Asks twice without showing what is typed, or takes the first line of an input that is no terminal.
 * @throws Refusal when the input ends, is too long or takes too long, or the two answers differ.
 */
export async function readPassword(input: NodeJS.ReadStream, prompts: NodeJS.WritableStream): Promise<string> {
  const isTerminal = input.isTTY === true;
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const lines = createInterface({ input, output: silent, terminal: isTerminal, historySize: 0 });
  const typed = lines[Symbol.asyncIterator]();
  let length = 0;
  // A line without end must not fill the memory.
  const count = (chunk: Buffer | string): void => {
    length += chunk.length;
    if (length > INPUT_MAX_CHARS) lines.close();
  };
  const ask = async (prompt: string): Promise<string> => {
    if (isTerminal) prompts.write(prompt);
    const { done, value } = await typed.next();
    if (isTerminal) prompts.write("\n");
    if (length > INPUT_MAX_CHARS) throw new Refusal("The password is too long: it may have 128 characters.");
    if (done === true) throw new Refusal("No password was given, so no account was made.");
    return value;
  };
  const tooLate = setTimeout(() => lines.close(), INPUT_TIMEOUT_MS);
  lines.once("SIGINT", () => lines.close());
  input.on("data", count);
  try {
    const password = await ask("Password (8 to 128 characters): ");
    if (isTerminal && (await ask("The same again: ")) !== password) throw new Refusal("The two passwords differ.");
    return password;
  } finally {
    clearTimeout(tooLate);
    input.off("data", count);
    lines.close();
  }
}

async function createAdmin(
  config: Config,
  log: Logger,
  person: Person & { readonly password: string },
): Promise<string> {
  return withDatabase({ config, log, program: PROGRAM, migrate: true }, async ({ db, name }) => {
    const deps = { users: new UserStore(db), passwords: new Passwords(config.passwords), clock: systemClock };
    const { email } = await register(deps, person, "ADMIN");
    return `Made the admin ${email} in ${name}.`;
  });
}

async function main(): Promise<void> {
  let working = false;
  // Half an account is none: a stop waits for the end of the work, which a second one cuts short.
  onStopRequest((_reason, times) => {
    if (!working || times > 1) process.exit(1);
  });
  const person = parsePerson(process.argv.slice(2));
  if (person === undefined) {
    process.stdout.write(USAGE);
    return;
  }
  const config = readConfig();
  // What can be known to be wrong is said before anybody types a password.
  if (process.stdin.isTTY) await checked(person, STAND_IN_PASSWORD);
  const account = await checked(person, await readPassword(process.stdin, process.stderr));
  // Standard output is for the one line of the result.
  const level = config.log.level === "info" ? "warn" : config.log.level;
  const log = pino({ level, base: null }, pino.destination({ fd: 2, sync: true }));
  working = true;
  process.stdout.write(`${await createAdmin(config, log, account)}\n`);
}

// The function that reads the password is tested without the program.
if (process.argv[1] !== undefined && realpathSync(process.argv[1]) === import.meta.filename) {
  try {
    await main();
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${sentenceOf(error)}\n`);
    process.exit(1);
  }
}
