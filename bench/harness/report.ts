import { mkdirSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";

const RESULTS_DIR = join(import.meta.dirname, "../results");
const BAR_COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#b279a2"];

export type Row = Readonly<Record<string, string | number>>;

export interface Table {
  readonly title: string;
  readonly rows: readonly Row[];
}

/** Bars side by side, in groups. */
export interface BarChart {
  readonly title: string;
  readonly unit: string;
  readonly groups: readonly { readonly label: string; readonly bars: Readonly<Record<string, number>> }[];
}

/** What a bench found. */
export interface Report {
  readonly bench: string;
  readonly tables: readonly Table[];
  readonly chart: BarChart;
}

/** Prints a table, so that what has been found is seen while the rest is still being measured. */
export function print({ title, rows }: Table): Table {
  process.stdout.write(`\n${title}\n\n${formatTable(rows)}\n`);
  return { title, rows };
}

/** Writes `bench/results/<bench>.json` and `.svg` in place of those of the last run. */
export function publish({ bench, tables, chart }: Report): void {
  mkdirSync(RESULTS_DIR, { recursive: true });
  const facts = { bench, time: new Date().toISOString(), machine: machine(), tables };
  writeFileSync(join(RESULTS_DIR, `${bench}.json`), `${JSON.stringify(facts, undefined, 2)}\n`);
  writeFileSync(join(RESULTS_DIR, `${bench}.svg`), drawBars(chart));
  process.stdout.write(`Written: bench/results/${bench}.json and ${bench}.svg\n`);
}

function machine(): Row {
  const [{ model = "unknown" } = {}] = cpus();
  return {
    cores: cpus().length,
    cpu: model,
    memoryGib: Math.round(totalmem() / 2 ** 30),
    platform: `${process.platform} ${process.arch}`,
    node: process.versions.node,
  };
}

/** Markdown, so that it can go into a README as it is. */
function formatTable(rows: readonly Row[]): string {
  const columns = Object.keys(rows[0] ?? {});
  const cells = [columns, ...rows.map((row) => columns.map((column) => format(row[column] ?? "")))];
  const widths = columns.map((_, index) => Math.max(...cells.map((row) => row[index]?.length ?? 0)));
  const line = (row: readonly string[]) =>
    `| ${row.map((cell, index) => cell.padEnd(widths[index] ?? 0)).join(" | ")} |\n`;
  const [head = [], ...body] = cells;
  return line(head) + line(widths.map((width) => "-".repeat(width))) + body.map(line).join("");
}

function format(value: string | number): string {
  if (typeof value === "string" || Number.isInteger(value)) return String(value);
  return value.toFixed(Math.abs(value) < 100 ? 2 : 0);
}

function drawBars({ title, unit, groups }: BarChart): string {
  const series = Object.keys(groups[0]?.bars ?? {});
  const [barHeight, labelWidth, barWidth] = [18, 150, 420];
  // Three names fill a line.
  const legendX = (index: number) => labelWidth + (index % 3) * 170;
  const legendY = (index: number) => 34 + Math.floor(index / 3) * 18;
  const top = legendY(series.length - 1) + 30;
  const groupHeight = series.length * barHeight + 14;
  const most = Math.max(...groups.flatMap(({ bars }) => Object.values(bars)), Number.MIN_VALUE);
  const marks = groups.flatMap(({ label, bars }, group) => {
    const y = top + group * groupHeight;
    const drawn = series.map((name, index) => {
      const value = bars[name] ?? 0;
      const width = (value / most) * barWidth;
      const barY = y + index * barHeight;
      return (
        `<rect x="${labelWidth}" y="${barY}" width="${width.toFixed(1)}" height="${barHeight - 3}" fill="${BAR_COLOURS[index]}"/>` +
        `<text x="${(labelWidth + width + 6).toFixed(1)}" y="${barY + 12}">${format(value)}</text>`
      );
    });
    const middle = y + (series.length * barHeight) / 2 + 3;
    return [`<text x="${labelWidth - 8}" y="${middle}" text-anchor="end">${label}</text>`, ...drawn];
  });
  const legend = series.map(
    (name, index) =>
      `<rect x="${legendX(index)}" y="${legendY(index)}" width="12" height="12" fill="${BAR_COLOURS[index]}"/>` +
      `<text x="${legendX(index) + 18}" y="${legendY(index) + 11}">${name}</text>`,
  );
  const height = top + groups.length * groupHeight;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="660" height="${height}" font-family="sans-serif" font-size="12">`,
    `<title>${title}</title>`,
    '<rect width="100%" height="100%" fill="white"/>',
    `<text x="12" y="20" font-size="14">${title} (${unit})</text>`,
    ...legend,
    ...marks,
    "</svg>\n",
  ].join("\n");
}
