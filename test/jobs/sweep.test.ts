import { expect } from "chai";
import { pino } from "pino";
import { type Sweep, startSweep } from "../../src/jobs/sweep.ts";

const log = pino({ level: "silent" });

describe("a sweep", () => {
  let sweep: Sweep | undefined;
  afterEach(() => sweep?.stop());

  /** Resolves when `run` was called `times` times; `results` are what each run does. */
  const until = (times: number, results: readonly (boolean | Error)[], intervalMs: number) =>
    new Promise<number>((resolve) => {
      let runs = 0;
      const run = async () => {
        runs++;
        if (runs === times) resolve(runs);
        const result = results[runs - 1] ?? false;
        if (result instanceof Error) throw result;
        return result;
      };
      sweep = startSweep({ name: "test", intervalMs, run, log });
    });

  it("runs at once, and again after its pause", async () => {
    expect(await until(3, [false, false], 5)).to.equal(3);
  });

  it("goes on without a pause while more is waiting", async () => {
    expect(await until(3, [true, true], 3_600_000)).to.equal(3);
  });

  it("goes on after a run that failed", async () => {
    expect(await until(2, [new Error("the database is away")], 5)).to.equal(2);
  });

  it("never runs twice at once, and its stop awaits the run under way", async () => {
    let active = 0;
    let most = 0;
    let ended = false;
    await new Promise<void>((resolve) => {
      const run = async () => {
        most = Math.max(most, ++active);
        resolve();
        await new Promise((done) => setTimeout(done, 20));
        active--;
        ended = true;
        return true;
      };
      sweep = startSweep({ name: "test", intervalMs: 0, run, log });
    });
    await sweep?.stop();
    expect([most, active, ended]).to.deep.equal([1, 0, true]);
  });
});
