import { appendFileSync, createReadStream, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { DescMessage, Message } from "@bufbuild/protobuf";
import type { Interceptor } from "@connectrpc/connect";
import { type DestinationStream, destination } from "pino";
import { DEMO_PASSWORD } from "../../src/demo.ts";

// Every log line of a whole run goes into one folder, beside the secrets that its tests have sent and been given; at the
// end of the run the lines are searched for them. What is a secret is not listed here: the contract says it by the
// option `debug_redact` of its fields.

/** What is shorter, or has so few letters, turns up in log lines by chance. */
const MIN_SECRET_CHARS = 12;
const MIN_DIFFERENT_CHARS = 6;
const MAX_LINE_CHARS = 400;
const LOG_ENDING = ".log";
const SECRETS_ENDING = ".secrets";

const JWT = /eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}/;
const URL_WITH_PASSWORD = /\b(?:postgres(?:ql)?|smtps?):\/\/[^\s:@/"]+:(?!password@|\*+@)[^\s@"]+@/;
/** Of mails that go into files their link is logged, so that it can be used: that is what they are for. */
const LINK_OF_WRITTEN_MAIL = /"link":"[^"]*"(?=.*"msg":"mail written")/;

const remembered = new Set<string>();
let file: DestinationStream | undefined;

/** The folder of this run; test/support/global.ts makes it. */
function folder(): string {
  const dir = process.env["TEST_LOG_DIR"];
  if (dir === undefined) throw new Error("TEST_LOG_DIR is not set: test/support/global.ts sets it, see .mocharc.json");
  return dir;
}

/** Where the servers of this process write their log lines, to be searched at the end. */
export function logFile(): DestinationStream {
  file ??= destination({ dest: join(folder(), `tests-${process.pid}${LOG_ENDING}`), sync: true });
  return file;
}

/** Keeps what a program of its own prints, to be searched at the end. */
export function keepOutput(pid: number, stream: string, text: string): void {
  appendFileSync(join(folder(), `program-${pid}-${stream}${LOG_ENDING}`), text);
}

/** Remembers a value that must not be found in any log line of this run. */
export function rememberSecret(value: string): void {
  const common = value.length < MIN_SECRET_CHARS || new Set(value).size < MIN_DIFFERENT_CHARS;
  // The demo's password is printed for whoever starts the service.
  if (common || value === DEMO_PASSWORD || remembered.has(value)) return;
  remembered.add(value);
  appendFileSync(join(folder(), `${process.pid}${SECRETS_ENDING}`), `${JSON.stringify(value)}\n`);
}

/** The password of a URL, where it has one. */
export function rememberPasswordOf(url: string): void {
  if (URL.canParse(url)) rememberSecret(decodeURIComponent(new URL(url).password));
}

/** Remembers every secret that a client sends and gets. */
export const rememberingSecrets: Interceptor = (next) => async (req) => {
  if (!req.stream) secretsOf(req.method.input, req.message).forEach(rememberSecret);
  const res = await next(req);
  if (!res.stream) secretsOf(res.method.output, res.message).forEach(rememberSecret);
  return res;
};

function secretsOf(schema: DescMessage, message: Message): string[] {
  if (!mayHoldSecrets(schema)) return [];
  const values = message as unknown as Readonly<Record<string, unknown>>;
  const found: string[] = [];
  for (const field of schema.fields) {
    const holder = field.oneof === undefined ? undefined : (values[field.oneof.localName] as OneofValue);
    const chosen = holder?.case === field.localName ? holder.value : undefined;
    const value = field.oneof === undefined ? values[field.localName] : chosen;
    if (value === undefined) continue;
    if (field.fieldKind === "message") found.push(...secretsOf(field.message, value as Message));
    else if (field.proto.options?.debugRedact === true) found.push(String(value));
  }
  return found;
}

type OneofValue = { readonly case?: string; readonly value?: unknown } | undefined;

const known = new Map<DescMessage, boolean>();

/** Most messages hold none, and pages of them are long. */
function mayHoldSecrets(schema: DescMessage): boolean {
  const before = known.get(schema);
  if (before !== undefined) return before;
  known.set(schema, false);
  const may = schema.fields.some(
    (field) =>
      field.proto.options?.debugRedact === true || (field.fieldKind === "message" && mayHoldSecrets(field.message)),
  );
  known.set(schema, may);
  return may;
}

/** Finds secrets in the log lines of a run. */
class Search {
  /** Tokens, by their length: looked up in runs of the characters they are made of, however many there are. */
  readonly #tokens = new Map<number, Set<string>>();
  readonly #texts: string[] = [];

  constructor(secrets: readonly string[]) {
    for (const secret of secrets) {
      if (!/^[\w-]{32,}$/.test(secret)) this.#texts.push(secret);
      else this.#tokens.set(secret.length, (this.#tokens.get(secret.length) ?? new Set()).add(secret));
    }
  }

  /** What a line must not hold; undefined: it is clean. */
  leakIn(written: string): string | undefined {
    const line = written.replace(LINK_OF_WRITTEN_MAIL, "");
    if (JWT.test(line)) return "an access token";
    if (URL_WITH_PASSWORD.test(line)) return "a URL with a password";
    if (this.#texts.some((text) => line.includes(text))) return "a password or other secret";
    for (const [run] of line.matchAll(/[\w-]{32,}/g)) if (this.#hasToken(run)) return "a token";
    return undefined;
  }

  #hasToken(run: string): boolean {
    for (const [length, tokens] of this.#tokens) {
      for (let start = 0; start + length <= run.length; start++) {
        if (tokens.has(run.slice(start, start + length))) return true;
      }
    }
    return false;
  }
}

/** Every log line in `dir` that holds a secret: where it stands, what it is, and how the line begins. */
export async function findLeaks(dir: string): Promise<string[]> {
  const names = readdirSync(dir);
  const secrets = names
    .filter((name) => name.endsWith(SECRETS_ENDING))
    .flatMap((name) => readFileSync(join(dir, name), "utf8").trim().split("\n"))
    .map((line) => JSON.parse(line) as string);
  const search = new Search([...new Set(secrets)]);
  const leaks: string[] = [];
  for (const name of names.filter((each) => each.endsWith(LOG_ENDING))) {
    let number = 0;
    for await (const line of createInterface({ input: createReadStream(join(dir, name)) })) {
      number++;
      const leak = search.leakIn(line);
      if (leak !== undefined) leaks.push(`${name}:${number} holds ${leak}: ${line.slice(0, MAX_LINE_CHARS)}`);
    }
  }
  return leaks;
}

/** @throws Error naming the lines when a log line of this run holds a secret. */
export async function refuseLeaks(dir: string): Promise<void> {
  const leaks = await findLeaks(dir);
  if (leaks.length > 0) throw new Error(`Secrets in the logs of this run:\n${leaks.join("\n")}`);
}
