import { expect } from "chai";
import type { Gateway } from "../../src/payments/gateways/gateway.ts";
import { useDatabase } from "../support/database.ts";
import { reportOf, runSeeds } from "./simulation/run.ts";
import { runWorld } from "./simulation/world.ts";

const SEEDS = 2_000;
/** As many worlds as fit in; `npm run simulate` takes any number. */
const TIME_LIMIT_MS = 60_000;
/** A break in the service has to show in so many worlds. */
const SABOTAGED_SEEDS = 300;

describe("the simulation of payments", function () {
  this.timeout(240_000);

  it(`holds every rule in ${SEEDS} worlds of faults, or as many as fit in ${TIME_LIMIT_MS / 1_000} s`, async function () {
    const { worlds, failed } = await runSeeds({ firstSeed: 1, seeds: SEEDS, timeLimitMs: TIME_LIMIT_MS });
    if (failed !== undefined) expect.fail(reportOf(failed));
    if (this.test !== undefined) this.test.title += `: ${worlds} worlds`;
    expect(worlds).to.be.greaterThan(0);
  });

  it("catches a build that takes a charge it cannot find for one that never happens: void skipped before failover", async () => {
    const skipsVoid = (gateway: Gateway): Gateway => ({ ...gateway, void: async () => ({ kind: "voided" }) });
    const looksFor = /was charged 2 times/;
    const { worlds, failed } = await runSeeds({ firstSeed: 1, seeds: SABOTAGED_SEEDS, sabotage: skipsVoid, looksFor });
    expect(failed, `nothing was wrong in ${worlds} worlds`).not.to.equal(undefined);
    expect(failed && reportOf(failed)).to.include(`npm run simulate -- --seeds 1 --seed ${failed?.seed}`);
  });

  it("catches a build that takes a broken connection for proof", async () => {
    const believesSilence = (gateway: Gateway): Gateway => ({
      ...gateway,
      async charge(request, options) {
        const answer = await gateway.charge(request, options);
        if (answer.kind !== "unknown") return answer;
        return { kind: "not_executed", cause: "connection_failed", proves: "this_send", detail: answer.detail };
      },
    });
    const looksFor = /was charged 2 times/;
    const { worlds, failed } = await runSeeds({
      ...{ firstSeed: 1, seeds: SABOTAGED_SEEDS, looksFor },
      sabotage: believesSilence,
    });
    expect(failed, `nothing was wrong in ${worlds} worlds`).not.to.equal(undefined);
  });

  describe("one seed", () => {
    const database = useDatabase();

    it("is one interleaving, step by step, however often it is run", async () => {
      for (const seed of [1, 2, 3]) {
        const first = await runWorld(database, seed);
        expect(first.trace.length).to.be.greaterThan(20);
        expect((await runWorld(database, seed)).trace).to.deep.equal(first.trace);
      }
    });
  });
});
