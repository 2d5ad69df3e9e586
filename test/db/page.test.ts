import { expect } from "chai";
import { PageTokens, pageOf, readPage } from "../../src/db/page.ts";

const tokens = new PageTokens(Buffer.alloc(32, 1));
const query = ["ListThings", "ada"];
const first = (pageSize: number) => readPage(tokens, { pageSize, pageToken: "" }, query);
const reasonOf = (work: () => unknown) => {
  try {
    work();
  } catch (error) {
    return (error as { details: { violations: { reason: string }[] } }).details.violations[0]?.reason;
  }
  return "no refusal";
};

describe("pages", () => {
  it("have 50 rows where nothing is said, and at most 1,000", () => {
    expect([0, 7, 5_000].map((size) => first(size).limit - 1)).to.deep.equal([50, 7, 1000]);
  });

  it("go on after the last row shown, and end with an empty token", () => {
    const page = first(2);
    const { items, nextPageToken } = pageOf(page, ["a", "b", "c"], (row) => [row]);
    expect(items).to.deep.equal(["a", "b"]);
    const next = readPage(tokens, { pageSize: 2, pageToken: nextPageToken }, query);
    expect(next.after).to.deep.equal(["b"]);
    expect(pageOf(next, ["c"], (row) => [row])).to.deep.equal({ items: ["c"], nextPageToken: "" });
  });

  it("refuse a token of another query, of another key, or with a bit changed", () => {
    const token = tokens.seal(["b"], query);
    const foreign = new PageTokens(Buffer.alloc(32, 2)).seal(["b"], query);
    const bytes = Buffer.from(token, "base64url");
    bytes[bytes.length - 2]! ^= 1;
    const open = (pageToken: string, asked: unknown[]) => () => readPage(tokens, { pageSize: 0, pageToken }, asked);
    expect(reasonOf(open(token, ["ListThings", "ben"]))).to.equal("PAGE_TOKEN_INVALID");
    expect(reasonOf(open(foreign, query))).to.equal("PAGE_TOKEN_INVALID");
    expect(reasonOf(open(bytes.toString("base64url"), query))).to.equal("PAGE_TOKEN_INVALID");
    for (const junk of ["x", "!!!!", "AAAA", "A".repeat(1024)])
      expect(reasonOf(open(junk, query))).to.equal("PAGE_TOKEN_INVALID");
  });
});
