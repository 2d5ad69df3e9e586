// Builds what is published of src/: the client, as JavaScript and declarations in dist/.

import { rmSync } from "node:fs";
import process from "node:process";
import { runStep } from "./step.ts";

const buildTimeoutMs = 2 * 60_000;

// What was removed from src/ must not be published because an earlier build left it here.
rmSync(new URL("../dist", import.meta.url), { recursive: true, force: true });
const command = ["tsc", "-p", "tsconfig.build.json"] as const;
const { passed } = await runStep({ title: "Build", command: [...command], timeoutMs: buildTimeoutMs }, { live: true });
process.exitCode = passed ? 0 : 1;
