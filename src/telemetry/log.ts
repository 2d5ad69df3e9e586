import { type DestinationStream, type Logger, pino } from "pino";
import pretty from "pino-pretty";

interface LogOptions {
  readonly level: string;
  /** Not given: pretty on a terminal, JSON elsewhere. */
  readonly format: "json" | "pretty" | undefined;
}

/** One JSON object a line, or lines for a person on a terminal. What is a secret by its name is never written. */
export function createLog({ level, format }: LogOptions, destination?: DestinationStream): Logger {
  const forPerson = (format ?? (process.stdout.isTTY ? "pretty" : "json")) === "pretty";
  const stream =
    destination ??
    (forPerson
      ? pretty({ sync: true, singleLine: true, ignore: "pid,hostname" })
      : pino.destination({ fd: 1, sync: true }));
  return pino(
    { level, base: null, timestamp: pino.stdTimeFunctions.isoTime, redact: { paths: SECRETS, censor: "[redacted]" } },
    stream,
  );
}

const NAMES = ["password", "token", "accessToken", "refreshToken", "secret", "authorization", "secretKey"];
const SECRETS = NAMES.flatMap((name) => [name, `*.${name}`]);
