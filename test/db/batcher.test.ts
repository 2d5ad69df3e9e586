import { expect } from "chai";
import { Batcher, type BatcherOptions } from "../../src/db/batcher.ts";

const FAR = Number.POSITIVE_INFINITY;

/** A batcher whose batches end when the test says so. */
function controlled(options: Partial<BatcherOptions<number, string>> = {}) {
  const batches: { commands: readonly number[]; finish: () => void; fail: (error: Error) => void }[] = [];
  const batcher = new Batcher<number, string>({
    maxBatch: 4,
    maxLanes: 1,
    maxWaiting: 100,
    run: (commands) =>
      new Promise((resolve, reject) => {
        batches.push({ commands, finish: () => resolve(commands.map((n) => `done ${n}`)), fail: reject });
      }),
    ...options,
  });
  return { batcher, batches };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

describe("a batcher", () => {
  it("sends a lone command at once", () => {
    const { batcher, batches } = controlled();
    void batcher.submit(1, FAR);
    expect(batches.map(({ commands }) => commands)).to.deep.equal([[1]]);
  });

  it("sends together what came while the lane was busy, and gives each its own outcome", async () => {
    const { batcher, batches } = controlled();
    const outcomes = [1, 2, 3].map((n) => batcher.submit(n, FAR));
    batches[0]?.finish();
    await turn();
    expect(batches[1]?.commands).to.deep.equal([2, 3]);
    batches[1]?.finish();
    expect(await Promise.all(outcomes)).to.deep.equal(["done 1", "done 2", "done 3"]);
  });

  it("sends what waited before it tells the outcomes of the batch that is done", async () => {
    const { batcher, batches } = controlled();
    const sentWhenTold = batcher.submit(1, FAR).then(() => batches.length);
    void batcher.submit(2, FAR);
    batches[0]?.finish();
    expect(await sentWhenTold).to.equal(2);
  });

  it("never has more batches in flight than lanes, nor more commands in one than allowed", async () => {
    const { batcher, batches } = controlled({ maxLanes: 2 });
    for (let n = 1; n <= 9; n++) void batcher.submit(n, FAR);
    expect(batches.map(({ commands }) => commands)).to.deep.equal([[1], [2]]);
    batches[0]?.finish();
    await turn();
    expect(batches.map(({ commands }) => commands)).to.deep.equal([[1], [2], [3, 4, 5, 6]]);
  });

  it("refuses a command when too many wait, and tells it to come back", async () => {
    const { batcher } = controlled({ maxWaiting: 1 });
    void batcher.submit(1, FAR);
    void batcher.submit(2, FAR);
    const error = await batcher.submit(3, FAR).catch((reason) => reason);
    expect(error).to.include({ reason: "OVERLOADED", kind: "exhausted" });
    expect(error.details.retryAfterMs).to.be.greaterThan(0);
  });

  it("does not send what waited past its deadline, and sends its neighbours", async () => {
    const { batcher, batches } = controlled();
    void batcher.submit(1, FAR);
    const late = batcher.submit(2, Date.now() - 1).catch((reason) => reason.reason);
    void batcher.submit(3, FAR);
    batches[0]?.finish();
    expect(await late).to.equal("DEADLINE_EXCEEDED");
    expect(batches[1]?.commands).to.deep.equal([3]);
  });

  it("keeps two commands with one key apart: the later one waits for the next batch", async () => {
    const { batcher, batches } = controlled({ keyOf: (n) => String(n % 10) });
    for (const n of [1, 2, 12, 3]) void batcher.submit(n, FAR);
    batches[0]?.finish();
    await turn();
    expect(batches[1]?.commands).to.deep.equal([2, 3]);
    batches[1]?.finish();
    await turn();
    expect(batches[2]?.commands).to.deep.equal([12]);
  });

  it("halves a batch that fails until the culprit stands alone", async () => {
    const sent: (readonly number[])[] = [];
    const batcher = new Batcher<number, string>({
      maxBatch: 8,
      maxLanes: 1,
      maxWaiting: 100,
      run: async (commands) => {
        sent.push(commands);
        if (commands.includes(5)) throw new Error("5 is poison");
        return commands.map(String);
      },
    });
    const results = await Promise.allSettled([1, 2, 3, 4, 5, 6, 7].map((n) => batcher.submit(n, FAR)));
    const outcomes = results.map((result) => (result.status === "fulfilled" ? result.value : result.reason.message));
    expect(outcomes).to.deep.equal(["1", "2", "3", "4", "5 is poison", "6", "7"]);
    expect(sent.length).to.be.at.most(8);
  });

  it("does not halve for a fault that every command shares", async () => {
    const { batcher, batches } = controlled({ isShared: () => true });
    const outcomes = [1, 2, 3].map((n) => batcher.submit(n, FAR).catch((error) => error.message));
    batches[0]?.finish();
    await turn();
    batches[1]?.fail(new Error("away"));
    expect(await Promise.all(outcomes)).to.deep.equal(["done 1", "away", "away"]);
    expect(batches).to.have.length(2);
  });

  it("fails a batch whose outcomes are not one for each command", async () => {
    const batcher = new Batcher<number, string>({ maxBatch: 4, maxLanes: 1, maxWaiting: 9, run: async () => [] });
    const error = await batcher.submit(1, FAR).catch((reason) => reason);
    expect(error.message).to.equal("1 commands had 0 outcomes");
  });
});
