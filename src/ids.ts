import { randomFillSync } from "node:crypto";
import { v7 } from "uuid";

const RANDOM_BYTES = 16;
/** A draw from the system for each id would cost more than all the rest of it. */
const pool = new Uint8Array(256 * RANDOM_BYTES);
let used = pool.length;
let lastMs = 0;
let sequence = 0;

/** A new UUID version 7 (RFC 9562), later in order than every one before it in this process. */
export function newId(): string {
  if (used === pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  const random = pool.subarray(used, used + RANDOM_BYTES);
  used += RANDOM_BYTES;
  const now = Date.now();
  if (now > lastMs) {
    lastMs = now;
    // Half of the range is left to count in.
    sequence = new DataView(random.buffer, random.byteOffset).getUint32(0) >>> 1;
  } else {
    sequence += 1;
  }
  return v7({ random, msecs: lastMs, seq: sequence });
}
