import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LoadProcess } from "./harness/processes.ts";
import type { SandboxTasks } from "./payments-sandbox.ts";

const CHARGES_TIMEOUT_MS = 60_000;

/** A charge as the gateway tells of it. */
export interface GatewayCharge {
  readonly reference: string;
  readonly captured_minor: number;
}

/** The sandbox, in a process of its own, which can be made to answer later or sooner. */
export class BenchGateway implements AsyncDisposable {
  readonly #process: LoadProcess;
  readonly #dataDir: string;
  #latencyMs = 0;
  #port = 0;

  private constructor(dataDir: string) {
    this.#dataDir = dataDir;
    this.#process = new LoadProcess("payments-sandbox.ts");
  }

  static async open(): Promise<BenchGateway> {
    const gateway = new BenchGateway(await mkdtemp(join(tmpdir(), "tradepost-bench-")));
    await gateway.#serve();
    return gateway;
  }

  get port(): number {
    return this.#port;
  }

  /** Changes how long it waits before it answers. No call may be under way. */
  async answerAfter(latencyMs: number): Promise<void> {
    if (latencyMs === this.#latencyMs) return;
    this.#latencyMs = latencyMs;
    await this.#serve();
  }

  /** All charges that it knows. */
  async charges(): Promise<readonly GatewayCharge[]> {
    const url = `http://127.0.0.1:${this.#port}/charges`;
    const answer = await fetch(url, { signal: AbortSignal.timeout(CHARGES_TIMEOUT_MS) });
    const { charges } = (await answer.json()) as { charges: readonly GatewayCharge[] };
    return charges;
  }

  async #serve(): Promise<void> {
    const options = { dataDir: this.#dataDir, port: this.#port, latencyMs: this.#latencyMs };
    this.#port = await this.#process.run<SandboxTasks, "serve">("serve", options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process[Symbol.asyncDispose]();
    await rm(this.#dataDir, { recursive: true, force: true });
  }
}
