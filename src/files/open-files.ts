import { join } from "node:path";
import type { Files } from "./files.ts";
import { LocalFiles } from "./local-files.ts";

const FOLDER = "files";
const S3_PREFIX = "avatars/";

export interface FilesOptions {
  /** Files go into a folder of it when there is no bucket. */
  readonly dataDir: string;
  readonly bucket: string | undefined;
  readonly region: string;
  readonly endpoint: string | undefined;
}

/** The store of files that the settings name. The AWS SDK is loaded only where it is used. */
export async function openFiles({ dataDir, bucket, region, endpoint }: FilesOptions): Promise<Files> {
  if (bucket === undefined) return new LocalFiles(join(dataDir, FOLDER));
  const { S3Files } = await import("./s3-files.ts");
  return new S3Files({ bucket, region, endpoint, prefix: S3_PREFIX });
}
