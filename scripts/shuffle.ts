/** The largest seed: 32 bits, so that it is short enough to copy from a log. */
export const maxSeed = 0xffff_ffff;

/** A generator of numbers in [0, 1) that the seed determines (xorshift32 behind a multiplicative scramble). */
function randomFrom(seed: number): () => number {
  // A state of zero would stay zero, and neighbouring seeds would start alike.
  let state = Math.imul(seed ^ 0x9e37_79b9, 0x85eb_ca6b) >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / (maxSeed + 1);
  };
}

/** A copy of `items` in an order that `seed` (an integer from 0 to {@link maxSeed}) alone determines. */
export function shuffled<T>(items: readonly T[], seed: number): T[] {
  const random = randomFrom(seed);
  const result = [...items];
  for (let last = result.length - 1; last > 0; last -= 1) {
    const other = Math.floor(random() * (last + 1));
    [result[last], result[other]] = [result[other] as T, result[last] as T];
  }
  return result;
}
