// Checks that gen/ is what `buf generate` makes of proto/, without touching gen/.

import { execFileSync } from "node:child_process";
import { globSync, mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";

const generateTimeoutMs = 60_000;
const root = path.dirname(import.meta.dirname);

/** The files below a folder and their text, by path relative to it. */
function readTree(folder: string): Map<string, string> {
  const files = globSync("**/*", { cwd: folder }).filter((file) => statSync(path.join(folder, file)).isFile());
  return new Map(files.map((file) => [file, readFileSync(path.join(folder, file), "utf8")]));
}

function describeDifference(file: string, kept: string | undefined, made: string | undefined): string | undefined {
  if (kept === undefined) return `gen/${file} is missing.`;
  if (made === undefined) return `gen/${file} has no source in proto/.`;
  if (kept === made) return undefined;
  const keptLines = kept.split("\n");
  const madeLines = made.split("\n");
  const at = madeLines.findIndex((line, index) => line !== keptLines[index]);
  const line = at < 0 ? madeLines.length : at;
  const show = (text: string | undefined): string => text?.slice(0, 160) ?? "(end of file)";
  return `gen/${file} differs in line ${line + 1}:\n  - ${show(keptLines[line])}\n  + ${show(madeLines[line])}`;
}

const scratch = mkdtempSync(path.join(tmpdir(), "tradepost-gen-"));
try {
  execFileSync("buf", ["generate", "--output", scratch], { cwd: root, stdio: "inherit", timeout: generateTimeoutMs });
  const kept = readTree(path.join(root, "gen"));
  const made = readTree(path.join(scratch, "gen"));
  const files = [...new Set([...kept.keys(), ...made.keys()])].sort();
  const differences = files
    .map((file) => describeDifference(file, kept.get(file), made.get(file)))
    .filter((difference) => difference !== undefined);
  if (made.size === 0) differences.push("buf generate made no file at all.");
  for (const difference of differences) process.stdout.write(`${difference}\n`);
  if (differences.length > 0) process.stdout.write("Run `npm run generate` and commit what it writes.\n");
  process.exitCode = differences.length === 0 ? 0 : 1;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
