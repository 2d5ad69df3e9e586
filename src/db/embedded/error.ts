/** A PostgreSQL that cannot be started. The message says what a person can do about it. */
export class EmbeddedPostgresError extends Error {
  override readonly name = "EmbeddedPostgresError";
}

const ADVICE: Readonly<Record<string, string>> = {
  EACCES: "Make it writable for this user, or use another folder.",
  EPERM: "Make it writable for this user, or use another folder.",
  EROFS: "Use a folder that can be written to.",
  ENOSPC: "Free some disk space.",
  EDQUOT: "Free some disk space.",
  ENOTDIR: "Use another folder.",
  EEXIST: "Use another folder.",
};

/** Turns the system's errors into a sentence; what nobody foresaw stays as it is. */
export function explain(error: unknown, dataDir: string): unknown {
  const { code, message } = error as NodeJS.ErrnoException;
  const advice = ADVICE[code ?? ""];
  if (advice === undefined) return error;
  return new EmbeddedPostgresError(`The PostgreSQL data folder ${dataDir} cannot be used: ${message}. ${advice}`, {
    cause: error,
  });
}
