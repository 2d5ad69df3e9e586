import { BulkheadRejectedError, bulkhead } from "cockatiel";
import type sharp from "sharp";
import { DomainError, fieldsInvalid } from "../errors.ts";

/** Pixels a side of every picture that is kept. */
const SIDE_PIXELS = 512;
const WEBP_QUALITY = 82;
/** More than phones make by default; decoded, and for some formats that is all at once, four bytes each. */
const MAX_PIXELS = 32_000_000;
const DECODE_TIMEOUT_S = 10;
/** libuv has four threads for password hashes, files and pictures together: pictures get one. */
const LANES = 1;
/** Each waiting picture holds up to 5 MiB. */
const MAX_WAITING = 8;
const RETRY_AFTER_MS = 2_000;

const FORMATS = new Set(["png", "jpeg", "webp"]);
const LOADERS = ["VipsForeignLoadPngBuffer", "VipsForeignLoadJpegBuffer", "VipsForeignLoadWebpBuffer"];

type Sharp = typeof sharp;

/** Makes pictures of one form from what people upload, one at a time, so that a few large ones do not stall other calls. */
export class AvatarImages {
  readonly #lanes = bulkhead(LANES, MAX_WAITING);

  /**
   * Turns a PNG, JPEG or WebP into a WebP of 512 by 512 pixels: upright, cut to its middle, the first frame of an
   * animation, and without metadata. Nothing of the upload but its pixels is kept.
   * @throws DomainError FIELD_INVALID (IMAGE_INVALID on `image`) when it is no such picture, is cut off, damaged or has
   * too many pixels; OVERLOADED when too many pictures wait.
   */
  async normalise(upload: Uint8Array): Promise<Uint8Array> {
    if (!hasKnownSignature(upload)) throw imageInvalid("Image must be a PNG, JPEG or WebP picture");
    try {
      return await this.#lanes.execute(async () => convert(await loadSharp(), upload));
    } catch (error) {
      if (!(error instanceof BulkheadRejectedError)) throw error;
      const message = "Too many pictures are being uploaded at once; try again shortly";
      throw new DomainError("exhausted", "OVERLOADED", message, { retryAfterMs: RETRY_AFTER_MS });
    }
  }
}

async function convert(sharp: Sharp, upload: Uint8Array): Promise<Uint8Array> {
  // The header alone tells the size, so that nothing is unpacked for a picture that is too large.
  const { format, width, height } = await readable(sharp(upload, { limitInputPixels: false, pages: 1 }).metadata());
  if (!FORMATS.has(format)) throw imageInvalid("Image must be a PNG, JPEG or WebP picture");
  if (width * height > MAX_PIXELS) {
    const limit = `${MAX_PIXELS / 1_000_000} million pixels`;
    throw imageInvalid(`Image must have at most ${limit}; it has ${width} by ${height}`);
  }
  // A warning of a decoder is what a damaged picture shows as.
  const source = { failOn: "warning", limitInputPixels: MAX_PIXELS, sequentialRead: true, pages: 1 } as const;
  return readable(
    sharp(upload, source)
      .timeout({ seconds: DECODE_TIMEOUT_S })
      .autoOrient()
      .resize(SIDE_PIXELS, SIDE_PIXELS, { fit: "cover" })
      .webp({ quality: WEBP_QUALITY })
      .toBuffer(),
  );
}

/** What a decoder says of a picture is for its own developers; its sender is told in one sentence. */
async function readable<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const slow = error instanceof Error && error.message.startsWith("timeout");
    throw imageInvalid(
      slow
        ? "Image takes too long to read; save it anew with fewer pixels"
        : "Image is damaged, cut off or not a picture; save it anew as PNG, JPEG or WebP",
      error,
    );
  }
}

function imageInvalid(description: string, cause?: unknown): DomainError {
  const { kind, reason, message, details } = fieldsInvalid([{ field: "image", description, reason: "IMAGE_INVALID" }]);
  return new DomainError(kind, reason, message, { ...details, cause });
}

/** The first bytes of a PNG, a JPEG or a WebP; of the last, the four after "RIFF" are a length. */
function hasKnownSignature(upload: Uint8Array): boolean {
  const head = Buffer.from(upload.buffer, upload.byteOffset, Math.min(upload.byteLength, 12)).toString("hex");
  return /^(?:89504e470d0a1a0a|ffd8ff|52494646.{8}57454250)/.test(head);
}

let loading: Promise<Sharp> | undefined;

/** Loaded with the first picture: it takes a tenth of a second, and most processes never see one. */
function loadSharp(): Promise<Sharp> {
  loading ??= import("sharp").then(({ default: loaded }) => {
    loaded.concurrency(1);
    loaded.cache(false);
    // Content decides what a file is, so decoders for anything else (SVG, GIF, TIFF, PDF…) must not even be there.
    loaded.block({ operation: ["VipsForeignLoad"] });
    loaded.unblock({ operation: LOADERS });
    return loaded;
  });
  return loading;
}
