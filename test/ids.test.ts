import { expect } from "chai";
import { newId } from "../src/ids.ts";

describe("new ids", () => {
  it("are UUIDs version 7 of now, each later than the one before, also within a millisecond and beyond a pool", () => {
    const before = Date.now();
    const ids = Array.from({ length: 5_000 }, newId);
    const after = Date.now();
    for (const id of ids) expect(id).to.match(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    expect(new Set(ids).size).to.equal(ids.length);
    expect([...ids].sort()).to.deep.equal(ids);
    const times = ids.map((id) => Number.parseInt(id.replaceAll("-", "").slice(0, 12), 16));
    for (const time of times) expect(time).to.be.within(before, after);
  });

  it("share no randomness", () => {
    const tails = Array.from({ length: 1_000 }, () => newId().slice(24));
    expect(new Set(tails).size).to.equal(tails.length);
  });
});
