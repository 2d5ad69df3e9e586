import { expect } from "chai";
import { maxSeed, shuffled } from "../../scripts/shuffle.ts";
import { parseOptions, UsageError } from "../../scripts/test-options.ts";

describe("the options of npm test", () => {
  it("run everything when there are none", () => {
    expect(parseOptions([])).to.deep.include({
      runStatic: true,
      runTests: true,
      seed: undefined,
      files: [],
      mochaArgs: [],
    });
  });

  it("leave the static checks out where files or a pattern are named", () => {
    expect(parseOptions(["test/money.test.ts"])).to.deep.include({ runStatic: false, files: ["test/money.test.ts"] });
    expect(parseOptions(["--grep", "refund"])).to.deep.include({ runStatic: false, mochaArgs: ["--grep", "refund"] });
    expect(parseOptions(["-g", "test/x"])).to.deep.include({
      runStatic: false,
      files: [],
      mochaArgs: ["-g", "test/x"],
    });
    expect(parseOptions(["--only-tests"])).to.deep.include({ runStatic: false, mochaArgs: [] });
  });

  it("keep the static checks for options that do not choose tests", () => {
    expect(parseOptions(["--parallel", "--shuffle=7"])).to.deep.include({
      runStatic: true,
      seed: 7,
      mochaArgs: ["--parallel"],
    });
  });

  it("choose a seed where none is given, and refuse one that is no whole number", () => {
    expect(parseOptions(["--shuffle"]).seed).to.be.within(0, maxSeed);
    for (const seed of ["x", "-1", "1.5", "", String(maxSeed + 1)]) {
      expect(() => parseOptions([`--shuffle=${seed}`]), seed).to.throw(UsageError, "--shuffle takes a whole number");
    }
  });
});

describe("shuffling", () => {
  const items = Array.from({ length: 20 }, (_, index) => index);

  it("keeps every item and leaves the original alone", () => {
    const result = shuffled(items, 1);
    expect(result).to.have.members(items).and.not.to.deep.equal(items);
    expect(items[0]).to.equal(0);
  });

  it("gives the same order for the same seed and other orders for others", () => {
    expect(shuffled(items, 42)).to.deep.equal(shuffled(items, 42));
    const orders = new Set([0, 1, 2, 3, maxSeed].map((seed) => shuffled(items, seed).join()));
    expect(orders.size).to.equal(5);
  });
});
