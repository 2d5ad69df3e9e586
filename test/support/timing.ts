import { expect } from "chai";

/** Of so many tries one has to be in time: a busy machine may stand still for longer than what is promised. */
const MAX_TRIES = 3;

/** Holds that what is tried is done within a time; each try gives how long it took in milliseconds. */
export async function expectWithin(limitMs: number, tryOnce: () => Promise<number>): Promise<void> {
  const tookMs: number[] = [];
  while (tookMs.length < MAX_TRIES && !tookMs.some((ms) => ms < limitMs)) tookMs.push(await tryOnce());
  expect(Math.min(...tookMs), `the least of ${tookMs.length} tries, ms`).to.be.below(limitMs);
}

/**
 * Looks again and again beside work that goes on until `mayEnd`, which it does after two looks at the earliest.
 * @param work does a part of it at a time, and asks between them whether it may end.
 */
export async function lookBeside(
  work: (mayEnd: () => boolean) => Promise<unknown>,
  look: () => Promise<unknown>,
): Promise<void> {
  let looks = 0;
  let over = false;
  const done = work(() => over || looks >= 2).finally(() => {
    over = true;
  });
  // It is awaited below; until then a failure of it has been heard.
  done.catch(() => {});
  try {
    for (; !over; looks++) await look();
  } finally {
    over = true;
    await done;
  }
}
