// Holds the walls of src/: who may import whom (.dependency-cruiser.mjs), who may read the environment, who may exit.

import { existsSync, globSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { cruise, type IConfiguration, type ICruiseResult } from "dependency-cruiser";

const projectRoot = path.dirname(import.meta.dirname);
const configurationFile = new URL("../.dependency-cruiser.mjs", import.meta.url).href;

/** What a file of src/ may do only where the last column allows it. */
const reservations: { what: string; pattern: RegExp; allowed: RegExp; instead: string }[] = [
  {
    what: "reads the environment",
    pattern: /\bprocess\??\.\s*env\b|\bprocess\[|[{,]\s*env\b[^}]*\}\s*from\s+["'](?:node:)?process["']/,
    allowed: /^src\/config\.ts$/,
    instead: "src/config.ts is its only reader; take a setting as a parameter",
  },
  {
    what: "ends the process",
    pattern: /\bprocess\??\.\s*(?:exit|abort|reallyExit)\b|[{,]\s*exit\b[^}]*\}\s*from\s+["'](?:node:)?process["']/,
    allowed: /^src\/(?:main|commands\/.*|db\/embedded-supervisor)\.ts$/,
    instead: "only a program may; throw, or tell the caller",
  },
];

function withoutComments(source: string): string {
  return source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/^\s*\/\/.*$/gm, "");
}

function findReserved(root: string, files: string[]): string[] {
  const faults: string[] = [];
  for (const file of files) {
    const source = withoutComments(readFileSync(path.join(root, file), "utf8"));
    for (const { what, pattern, allowed, instead } of reservations) {
      if (pattern.test(source) && !allowed.test(file)) faults.push(`${file} ${what}: ${instead}.`);
    }
  }
  return faults;
}

function describeViolations({ summary }: ICruiseResult, rules: Map<string, string>): string[] {
  return summary.violations.map(({ from, to, rule }) => {
    const reason = rules.get(rule.name) ?? "";
    return `${from} → ${to} (${rule.name}): ${reason}`;
  });
}

/**
 * Every breach of the walls in the project at `root`, one line each; none where all is well. A file of src/ that the
 * analysis did not see is a breach too, since an analyser that sees nothing would otherwise find nothing wrong.
 */
export async function findBreaches(root: string = projectRoot): Promise<string[]> {
  const { default: configuration } = (await import(configurationFile)) as { default: IConfiguration };
  const folders = ["src", "test", "scripts"].filter((folder) => existsSync(path.join(root, folder)));
  const files = globSync("src/**/*.ts", { cwd: root }).map((file) => file.split(path.sep).join("/"));
  if (files.length === 0) return [`There is no TypeScript file in ${path.join(root, "src")}.`];
  const { forbidden = [], options = {} } = configuration;
  const { output } = await cruise(folders, { ...options, baseDir: root, validate: true, ruleSet: { forbidden } });
  if (typeof output === "string") throw new TypeError(`dependency-cruiser answered with text: ${output.slice(0, 200)}`);
  const seen = new Map(output.modules.map((module) => [module.source, module.dependencies.length]));
  const unseen = files
    .filter((file) => !seen.has(file))
    .map((file) => `${file} was not analysed: is @swc/core installed?`);
  const importing = files.filter((file) => /^import\s/m.test(readFileSync(path.join(root, file), "utf8")));
  if (importing.length > 0 && importing.every((file) => seen.get(file) === 0)) {
    unseen.push("No import of src/ was seen: is @swc/core installed?");
  }
  const comments = new Map(forbidden.map((rule) => [rule.name ?? "", rule.comment ?? ""]));
  return [...unseen, ...describeViolations(output, comments), ...findReserved(root, files)];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const breaches = await findBreaches();
  for (const breach of breaches) process.stdout.write(`${breach}\n`);
  process.exitCode = breaches.length === 0 ? 0 : 1;
}
