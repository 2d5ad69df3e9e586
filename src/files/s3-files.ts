import { Readable } from "node:stream";
import {
  DeleteObjectCommand,
  GetObjectCommand,
  NoSuchKey,
  PutObjectCommand,
  S3Client,
  S3ServiceException,
} from "@aws-sdk/client-s3";
import { DomainError } from "../errors.ts";
import { checkFile, type Files, MAX_FILE_BYTES } from "./files.ts";

const CONNECT_TIMEOUT_MS = 2_000;
const ATTEMPT_TIMEOUT_MS = 5_000;
/** All attempts together, body and pauses included. */
const OPERATION_TIMEOUT_MS = 12_000;
const MAX_ATTEMPTS = 3;
const MAX_SOCKETS = 32;
const RETRY_AFTER_MS = 2_000;

export interface S3Options {
  readonly bucket: string;
  /** Where the names of the objects begin, such as "avatars/". */
  readonly prefix: string;
  readonly region: string;
  /** Not given: Amazon's own. Given, the bucket is named in the path, as other stores expect it. */
  readonly endpoint: string | undefined;
}

/** Files in a bucket of Amazon S3 or a store that speaks like it. Credentials come from where the AWS SDK looks for them. */
export class S3Files implements Files {
  readonly #client: S3Client;
  readonly #options: S3Options;

  constructor(options: S3Options) {
    this.#options = options;
    this.#client = new S3Client({
      region: options.region,
      ...(options.endpoint !== undefined && { endpoint: options.endpoint, forcePathStyle: true }),
      maxAttempts: MAX_ATTEMPTS,
      requestHandler: {
        connectionTimeout: CONNECT_TIMEOUT_MS,
        requestTimeout: ATTEMPT_TIMEOUT_MS,
        throwOnRequestTimeout: true,
        socketTimeout: ATTEMPT_TIMEOUT_MS,
        httpAgent: { maxSockets: MAX_SOCKETS },
        httpsAgent: { maxSockets: MAX_SOCKETS },
      },
      // Stores other than Amazon's refuse the checksums that the SDK adds of itself.
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
    });
  }

  async put(name: string, bytes: Uint8Array, contentType: string): Promise<void> {
    checkFile(name, bytes.byteLength);
    const command = new PutObjectCommand({ ...this.#object(name), Body: bytes, ContentType: contentType });
    await answered((abortSignal) => this.#client.send(command, { abortSignal }));
  }

  async get(name: string): Promise<Uint8Array | undefined> {
    checkFile(name);
    return answered(async (abortSignal) => {
      try {
        const command = new GetObjectCommand(this.#object(name));
        const { Body, ContentLength } = await this.#client.send(command, { abortSignal });
        if (ContentLength !== undefined && ContentLength <= MAX_FILE_BYTES) return await Body?.transformToByteArray();
        if (Body instanceof Readable) Body.destroy();
        throw new Error(`the object has ${ContentLength ?? "an unknown number of"} bytes: too many to be ours`);
      } catch (error) {
        if (isMissing(error)) return undefined;
        throw error;
      }
    });
  }

  async delete(name: string): Promise<void> {
    checkFile(name);
    const command = new DeleteObjectCommand(this.#object(name));
    await answered((abortSignal) => this.#client.send(command, { abortSignal }));
  }

  #object(name: string): { Bucket: string; Key: string } {
    return { Bucket: this.#options.bucket, Key: `${this.#options.prefix}${name}` };
  }
}

/** A bucket whose keys may not be listed answers 403 for a key that is missing, but so it does for wrong credentials. */
function isMissing(error: unknown): boolean {
  return error instanceof NoSuchKey || (error instanceof S3ServiceException && error.$metadata.httpStatusCode === 404);
}

async function answered<T>(send: (signal: AbortSignal) => Promise<T>): Promise<T> {
  try {
    return await send(AbortSignal.timeout(OPERATION_TIMEOUT_MS));
  } catch (cause) {
    const message = "The store of files cannot be reached at the moment; try again shortly";
    throw new DomainError("unavailable", "FILES_UNAVAILABLE", message, { retryAfterMs: RETRY_AFTER_MS, cause });
  }
}
