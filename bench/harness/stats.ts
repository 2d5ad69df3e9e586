/** The value below which the share `q` (0 to 1) of the values lies: the nearest rank. NaN: there are none. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(q * sorted.length) - 1))] ?? Number.NaN;
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** How far `value` is from `reference`, in percent of it. */
export function percentFrom(reference: number, value: number): number {
  return (value / reference - 1) * 100;
}

/** One thing that is measured, again and again. */
export interface Variant<Result> {
  readonly name: string;
  readonly run: () => Promise<Result>;
}

/**
 * Runs every variant `rounds` times, turn by turn and each other round backwards, so that what the machine does meanwhile
 * (other work, heat, growing tables) falls on all of them alike. Results are by name, in order.
 */
export async function interleaved<Result>(
  variants: readonly Variant<Result>[],
  rounds: number,
): Promise<Map<string, Result[]>> {
  const results = new Map<string, Result[]>(variants.map(({ name }) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const { name, run } of round % 2 === 0 ? variants : [...variants].reverse()) {
      results.get(name)?.push(await run());
    }
  }
  return results;
}
