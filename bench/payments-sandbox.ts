import { pino } from "pino";
import { type Sandbox, startSandbox } from "../src/payments/gateways/sandbox-server.ts";
import { serveTasks } from "./harness/processes.ts";

// The gateway of `npm run bench -- payments`, in a process of its own, as a real one is on a machine of its own.

export type SandboxTasks = typeof tasks;

interface Serving {
  readonly dataDir: string;
  /** 0: a free one. */
  readonly port: number;
  readonly latencyMs: number;
}

let sandbox: Sandbox | undefined;

const tasks = {
  /** Begins to answer, or goes on with another latency: its books stay. Gives the port. */
  async serve(serving: Serving): Promise<number> {
    await sandbox?.close();
    sandbox = await startSandbox({ ...serving, log: pino({ level: "warn" }) });
    return sandbox.port;
  },
};

serveTasks(tasks);
