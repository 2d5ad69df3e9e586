import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "chai";
import { DomainError } from "../../src/errors.ts";
import { type Files, MAX_FILE_BYTES } from "../../src/files/files.ts";
import { LocalFiles } from "../../src/files/local-files.ts";
import { openFiles } from "../../src/files/open-files.ts";
import { type S3Server, startS3Server } from "./s3-server.ts";

const name = `${"0123456789abcdef".repeat(2)}.webp`;
const bytes = Buffer.from("the bytes of a picture");
const text = (found: Uint8Array | undefined) => found && Buffer.from(found).toString();

const outcomeOf = (work: Promise<unknown>): Promise<unknown> => work.catch((error: unknown) => error);

/** What every store of files does. */
function keepsFiles(store: () => Files): void {
  it("gives back what was put, and knows nothing of it once it is deleted", async () => {
    const files = store();
    expect(await files.get(name)).to.equal(undefined);
    await files.put(name, bytes, "image/webp");
    expect(text(await files.get(name))).to.equal(bytes.toString());
    await files.delete(name);
    expect(await files.get(name)).to.equal(undefined);
  });

  it("replaces a file of the same name", async () => {
    const files = store();
    await files.put(name, bytes, "image/webp");
    await files.put(name, Buffer.from("another"), "image/webp");
    expect(text(await files.get(name))).to.equal("another");
  });

  it("deletes what is not there without a fault", async () => {
    await store().delete(name);
    await store().delete(name);
  });

  it("takes no name that could be a path, and no more bytes than a file may have", async () => {
    const files = store();
    for (const bad of [
      "",
      "..",
      "../secret.key",
      "a/b.webp",
      "A".repeat(32),
      `${"a".repeat(32)}.webp/..`,
      "a\0b",
      name.toUpperCase(),
    ]) {
      for (const work of [files.put(bad, bytes, "image/webp"), files.get(bad), files.delete(bad)]) {
        expect(String(await outcomeOf(work)), bad).to.include("not a name of a kept file");
      }
    }
    const large = files.put(name, new Uint8Array(MAX_FILE_BYTES + 1), "image/webp");
    expect(String(await outcomeOf(large))).to.include(`a file may have ${MAX_FILE_BYTES} bytes`);
  });
}

describe("files in a folder", () => {
  let dataDir = "";
  let files: Files;
  beforeEach(async () => {
    dataDir = await mkdtemp(join(tmpdir(), "tradepost-files-"));
    files = await openFiles({ dataDir, bucket: undefined, region: "us-east-1", endpoint: undefined });
  });
  afterEach(() => rm(dataDir, { recursive: true, force: true }));

  keepsFiles(() => files);

  it("can be read by nobody but the service's user", async () => {
    await files.put(name, bytes, "image/webp");
    expect((await stat(join(dataDir, "files"))).mode & 0o777).to.equal(0o700);
    expect((await stat(join(dataDir, "files", name))).mode & 0o777).to.equal(0o600);
  });

  it("appear whole: a put that was cut off leaves a draft, which delete removes", async () => {
    await mkdir(join(dataDir, "files"));
    await writeFile(join(dataDir, "files", `${name}.part`), "half");
    expect(await files.get(name)).to.equal(undefined);
    await files.delete(name);
    expect(await readdir(join(dataDir, "files"))).to.deep.equal([]);
  });

  it("are whole when many put the same name at once", async () => {
    const texts = Array.from({ length: 8 }, (_, index) => String(index).repeat(100_000));
    await Promise.allSettled(texts.map((each) => files.put(name, Buffer.from(each), "image/webp")));
    expect(texts).to.include(text(await files.get(name)));
  });

  it("fail as they are when the folder cannot be made", async () => {
    const blocked = join(dataDir, "blocked");
    await writeFile(blocked, "a file where a folder should be");
    const error = await outcomeOf(new LocalFiles(blocked).put(name, bytes));
    expect((error as NodeJS.ErrnoException).code).to.equal("EEXIST");
  });
});

describe("files in an S3 bucket", () => {
  let s3: S3Server;
  let files: Files;
  const kept = new Map<string, string | undefined>();
  before(() => {
    for (const [variable, value] of [
      ["AWS_ACCESS_KEY_ID", "an-access-key"],
      ["AWS_SECRET_ACCESS_KEY", "a-secret-key"],
    ] as const) {
      kept.set(variable, process.env[variable]);
      process.env[variable] = value;
    }
  });
  after(() => {
    for (const [variable, value] of kept) {
      if (value === undefined) delete process.env[variable];
      else process.env[variable] = value;
    }
  });
  beforeEach(async () => {
    s3 = await startS3Server();
    files = await openFiles({ dataDir: "/nowhere", bucket: "shop-pictures", region: "eu-west-1", endpoint: s3.url });
  });
  afterEach(() => s3.close());

  keepsFiles(() => files);

  it("are signed for the region, and stand under their prefix with their type", async () => {
    await files.put(name, bytes, "image/webp");
    const path = `/shop-pictures/avatars/${name}`;
    expect(s3.objects.get(path)).to.deep.equal({ bytes, contentType: "image/webp" });
    expect(s3.received[0]?.headers.authorization).to.match(
      /^AWS4-HMAC-SHA256 Credential=an-access-key\/.*eu-west-1\/s3/,
    );
  });

  it("survive a store that fails twice", async () => {
    s3.failures.push(503, 500);
    await files.put(name, bytes, "image/webp");
    expect(text(await files.get(name))).to.equal(bytes.toString());
  });

  it("are unavailable when the store goes on failing or refuses, which is not retried for ever", async () => {
    s3.failures.push(503, 503, 503);
    const failing = await outcomeOf(files.put(name, bytes, "image/webp"));
    expect(failing).to.be.instanceOf(DomainError);
    expect(failing).to.include({ kind: "unavailable", reason: "FILES_UNAVAILABLE" });
    expect((failing as DomainError).details.retryAfterMs).to.equal(2_000);
    expect(s3.received).to.have.length(3);

    s3.failures.push(403);
    expect(await outcomeOf(files.get(name))).to.include({ reason: "FILES_UNAVAILABLE" });
    expect(s3.received).to.have.length(4);
  });

  it("are unavailable when nothing listens at the endpoint", async () => {
    await s3.close();
    expect(await outcomeOf(files.get(name))).to.include({ reason: "FILES_UNAVAILABLE" });
    s3 = await startS3Server();
  });

  it("are not read when an object is larger than any file of ours", async () => {
    s3.objects.set(`/shop-pictures/avatars/${name}`, {
      bytes: Buffer.alloc(MAX_FILE_BYTES + 1),
      contentType: "image/webp",
    });
    const error = (await outcomeOf(files.get(name))) as DomainError;
    expect(error.reason).to.equal("FILES_UNAVAILABLE");
    expect(String(error.details.cause)).to.include("too many to be ours");
  });
});
