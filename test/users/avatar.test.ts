import { createHash } from "node:crypto";
import { readdir, writeFile } from "node:fs/promises";
import http2 from "node:http2";
import { join } from "node:path";
import { expect } from "chai";
import sharp from "sharp";
import sinon from "sinon";
import { DomainError } from "../../src/errors.ts";
import { sql } from "../support/database.ts";
import { newCustomer, PASSWORD, type Person, present } from "../support/factories.ts";
import { refusalOf, tally } from "../support/refusals.ts";
import { type TestServer, useServer } from "../support/server.ts";

const HOUR_MS = 60 * 60 * 1000;
const MIB = 1024 * 1024;
const red = { r: 220, g: 20, b: 20 };
const blue = { r: 20, g: 20, b: 220 };

const plain = (width = 64, height = 64, background = red) =>
  sharp({ create: { width, height, channels: 3, background } });
const aPng = (width?: number, height?: number) => plain(width, height).png().toBuffer();
/** A picture that does not compress, so that its middle is worth damaging; always the same. */
const noisy = () => {
  const raw = { width: 400, height: 300, channels: 3 } as const;
  const outputLength = raw.width * raw.height * raw.channels;
  return sharp(createHash("shake256", { outputLength }).update("noise").digest(), { raw });
};

const storedFiles = async ({ deps }: TestServer): Promise<string[]> =>
  (await readdir(join(deps.config.dataDir, "files")).catch(() => [])).sort();

const nameOf = (avatarUrl: string) => avatarUrl.replace("/avatars/", "");

async function upload({ users }: Person, image: Uint8Array): Promise<string> {
  return present((await users.uploadAvatar({ image })).user).avatarUrl;
}

async function picture(server: TestServer, avatarUrl: string): Promise<Buffer> {
  return Buffer.from(await (await fetch(server.url + avatarUrl)).arrayBuffer());
}

async function pixel(image: Buffer, left: number, top: number): Promise<number[]> {
  return [...(await sharp(image).extract({ left, top, width: 1, height: 1 }).raw().toBuffer())];
}

describe("UploadAvatar", () => {
  const server = useServer();

  for (const format of ["png", "jpeg", "webp"] as const) {
    it(`keeps a ${format} as a WebP of 512 by 512 pixels`, async () => {
      const person = await newCustomer(server);
      const avatarUrl = await upload(person, await plain(90, 60).toFormat(format).toBuffer());
      expect(avatarUrl).to.match(/^\/avatars\/[0-9a-f]{32}\.webp$/);
      expect((await person.users.getProfile({})).user?.avatarUrl).to.equal(avatarUrl);
      const { format: kept, width, height } = await sharp(await picture(server, avatarUrl)).metadata();
      expect({ kept, width, height }).to.deep.equal({ kept: "webp", width: 512, height: 512 });
    });
  }

  it("drops all metadata, and turns the picture as it says it is to be seen", async () => {
    const leftRedRightBlue = await plain(100, 100)
      .composite([{ input: await plain(50, 100, blue).png().toBuffer(), left: 50, top: 0 }])
      .jpeg({ quality: 100 })
      .withExif({ IFD0: { Copyright: "Casey Jones", Make: "a camera" }, IFD3: { GPSLatitude: "51/1 30/1 0/1" } })
      .withMetadata({ orientation: 6 })
      .withIccProfile("p3")
      .toBuffer();
    const kept = await picture(server, await upload(await newCustomer(server), leftRedRightBlue));
    const { exif, icc, xmp, iptc, orientation } = await sharp(kept).metadata();
    expect({ exif, icc, xmp, iptc, orientation }).to.deep.equal({
      exif: undefined,
      icc: undefined,
      xmp: undefined,
      iptc: undefined,
      orientation: undefined,
    });
    // Orientation 6 is a quarter turn clockwise: what is on the left comes to the top.
    const [[topRed = 0, , topBlue = 0], [bottomRed = 0, , bottomBlue = 0]] = [
      await pixel(kept, 256, 60),
      await pixel(kept, 256, 450),
    ];
    expect(topRed).to.be.greaterThan(topBlue);
    expect(bottomBlue).to.be.greaterThan(bottomRed);
  });

  it("keeps the middle of a picture that is not square", async () => {
    const wide = await plain(300, 100)
      .composite([{ input: await plain(100, 100, blue).png().toBuffer(), left: 100, top: 0 }])
      .png()
      .toBuffer();
    const kept = await picture(server, await upload(await newCustomer(server), wide));
    for (const left of [10, 500]) {
      const [redness = 0, , blueness = 0] = await pixel(kept, left, 256);
      expect(blueness, `at ${left}`).to.be.greaterThan(redness);
    }
  });

  it("takes the first frame of an animation", async () => {
    const frames = Buffer.concat([await plain(32, 32).raw().toBuffer(), await plain(32, 32, blue).raw().toBuffer()]);
    const animation = await sharp(frames, { raw: { width: 32, height: 64, channels: 3, pageHeight: 32 } })
      .webp({ loop: 0, delay: [100, 100] })
      .toBuffer();
    expect((await sharp(animation).metadata()).pages).to.equal(2);
    const kept = await picture(server, await upload(await newCustomer(server), animation));
    expect((await sharp(kept).metadata()).pages ?? 1).to.equal(1);
    const [redness = 0, , blueness = 0] = await pixel(kept, 256, 256);
    expect(redness).to.be.greaterThan(blueness);
  });

  const noPictures: Record<string, () => Promise<Uint8Array>> = {
    "an SVG": async () => Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
    "a GIF": () => plain().gif().toBuffer(),
    "a TIFF": () => plain().tiff().toBuffer(),
    "a page of HTML with a picture behind it": async () =>
      Buffer.concat([Buffer.from("<script>alert(1)</script>"), await aPng()]),
    "one byte": async () => Buffer.of(0x89),
    "a signature and nothing else": async () => Buffer.from("89504e470d0a1a0a", "hex"),
    "a signature and noise": async () => Buffer.concat([Buffer.from("ffd8ff", "hex"), Buffer.alloc(5_000, 7)]),
    "an SVG behind a WebP's signature": async () =>
      Buffer.concat([Buffer.from("RIFF1234WEBP"), Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>')]),
  };
  for (const format of ["png", "jpeg", "webp"] as const) {
    noPictures[`a ${format} that is cut off`] = async () => {
      const whole = await noisy().toFormat(format).toBuffer();
      return whole.subarray(0, Math.floor(whole.length * 0.6));
    };
    noPictures[`a damaged ${format}`] = async () => {
      const whole = await noisy().toFormat(format).toBuffer();
      return whole.fill(0xff, Math.floor(whole.length / 4), Math.floor(whole.length / 2));
    };
  }
  for (const [name, make] of Object.entries(noPictures)) {
    it(`refuses ${name}, by the field`, async () => {
      const person = await newCustomer(server);
      const refusal = await refusalOf(person.users.uploadAvatar({ image: await make() }));
      expect(refusal).to.deep.include({
        code: "InvalidArgument",
        reason: "FIELD_INVALID",
        reasons: { image: "IMAGE_INVALID" },
      });
      expect(refusal.fields["image"]).to.match(/^Image (must be|is damaged).*PNG, JPEG or WebP/);
      expect((await person.users.getProfile({})).user?.avatarUrl).to.equal("");
    });
  }

  it("refuses a picture of more pixels than it would unpack, by its header alone", async () => {
    const bomb = await sharp({ create: { width: 8_000, height: 8_000, channels: 3, background: red } })
      .png({ compressionLevel: 9 })
      .toBuffer();
    expect(bomb.length).to.be.lessThan(MIB);
    const refusal = await refusalOf((await newCustomer(server)).users.uploadAvatar({ image: bomb }));
    expect(refusal.fields).to.deep.equal({ image: "Image must have at most 32 million pixels; it has 8000 by 8000" });
  });

  it("refuses more than 5 MiB, and none at all", async () => {
    const { users } = await newCustomer(server);
    expect(await refusalOf(users.uploadAvatar({ image: new Uint8Array(5 * MIB + 1) }))).to.deep.include({
      reason: "FIELD_INVALID",
      reasons: { image: "TOO_LONG" },
    });
    expect(await refusalOf(users.uploadAvatar({}))).to.deep.include({ reasons: { image: "TOO_SHORT" } });
  });

  it("replaces: the new picture has another address, and the file of the old one goes", async () => {
    const person = await newCustomer(server);
    const image = await aPng();
    const first = await upload(person, image);
    const second = await upload(person, image);
    expect(second).not.to.equal(first);
    await server.runJobs();
    expect(await storedFiles(server))
      .to.include(nameOf(second))
      .and.not.include(nameOf(first));
    expect((await fetch(server.url + first)).status).to.equal(404);
    expect((await fetch(server.url + second)).status).to.equal(200);
  });

  it("leaves exactly one file when several come at once, and sheds what it cannot take soon", async () => {
    const person = await newCustomer(server);
    const image = await aPng();
    const before = await storedFiles(server);
    const { ok = 0, ...refused } = await tally(Array.from({ length: 24 }, () => person.users.uploadAvatar({ image })));
    expect(ok).to.be.greaterThan(1);
    expect(Object.keys(refused)).to.deep.equal(ok < 24 ? ["OVERLOADED"] : []);
    await server.runJobs();
    const { avatarUrl = "" } = (await person.users.getProfile({})).user ?? {};
    const added = (await storedFiles(server)).filter((file) => !before.includes(file));
    expect(added).to.deep.equal([nameOf(avatarUrl)]);
  });

  it("says when to come back while one picture is read and eight wait, and goes on afterwards", async () => {
    const image = await noisy().png().toBuffer();
    const person = await newCustomer(server);
    let over = false;
    // Whoever has his picture comes with the next at once, so that no place is ever free.
    const taken = Array.from({ length: 9 }, async () => {
      while (!over) await server.deps.images.normalise(image);
    });
    expect(await refusalOf(person.users.uploadAvatar({ image }))).to.include({
      code: "ResourceExhausted",
      reason: "OVERLOADED",
      retryAfterMs: 2_000,
    });
    over = true;
    await Promise.all(taken);
    expect(await upload(person, image)).to.match(/^\/avatars\//);
  });

  it("raises the etag and notes the change in the account's events", async () => {
    const person = await newCustomer(server);
    const { user } = await person.users.uploadAvatar({ image: await aPng() });
    expect(user?.etag).to.equal("2");
    await person.users.uploadAvatar({ image: await aPng() });
    await person.users.deleteAvatar({});
    const events = await sql<{ details: object; actor_id: string }>(
      server.database,
      "SELECT details, actor_id FROM account_events WHERE user_id = $1 AND type = 'AVATAR_CHANGED' ORDER BY id",
      [person.id],
    );
    expect(events.map(({ details }) => details)).to.deep.equal([
      { action: "ADDED" },
      { action: "REPLACED" },
      { action: "DELETED" },
    ]);
    expect(new Set(events.map((event) => event.actor_id))).to.deep.equal(new Set([person.id]));
  });

  it("of a deleted account stores nothing", async () => {
    const person = await newCustomer(server);
    await sql(server.database, "UPDATE users SET delete_time = now() WHERE id = $1", [person.id]);
    expect(await refusalOf(person.users.uploadAvatar({ image: await aPng() }))).to.include({
      reason: "USER_NOT_FOUND",
    });
    await server.runJobs();
    const left = await sql(server.database, "SELECT FROM avatar_files WHERE user_id = $1", [person.id]);
    expect(left).to.deep.equal([]);
  });
});

describe("DeleteAvatar", () => {
  const server = useServer();

  it("takes the picture away, and its file goes", async () => {
    const person = await newCustomer(server);
    const avatarUrl = await upload(person, await aPng());
    expect((await person.users.deleteAvatar({})).user?.avatarUrl).to.equal("");
    await server.runJobs();
    expect(await storedFiles(server)).not.to.include(nameOf(avatarUrl));
    expect((await fetch(server.url + avatarUrl)).status).to.equal(404);
  });

  it("changes nothing where there is no picture", async () => {
    const person = await newCustomer(server);
    const { user } = await person.users.deleteAvatar({});
    expect(user).to.include({ avatarUrl: "", etag: "1" });
  });
});

describe("a picture's file", () => {
  const server = useServer();
  afterEach(() => sinon.restore());

  const unavailable = () =>
    new DomainError("unavailable", "FILES_UNAVAILABLE", "The store is away", { retryAfterMs: 5 });

  it("that cannot be stored leaves the account as it was, with the picture it had", async () => {
    const person = await newCustomer(server);
    const avatarUrl = await upload(person, await aPng());
    sinon.stub(server.deps.files, "put").rejects(unavailable());
    expect(await refusalOf(person.users.uploadAvatar({ image: await aPng() }))).to.include({
      code: "Unavailable",
      reason: "FILES_UNAVAILABLE",
    });
    expect((await person.users.getProfile({})).user).to.include({ avatarUrl, etag: "2" });
    sinon.restore();
    await server.runJobs();
    expect((await fetch(server.url + avatarUrl)).status).to.equal(200);
  });

  it("that could not be removed is removed the next time", async () => {
    const person = await newCustomer(server);
    const first = await upload(person, await aPng());
    await person.users.deleteAvatar({});
    sinon.stub(server.deps.files, "delete").rejects(unavailable());
    await server.runJobs();
    expect(await storedFiles(server)).to.include(nameOf(first));
    sinon.restore();
    await upload(person, await aPng());
    await person.users.deleteAvatar({});
    await server.runJobs();
    expect(await storedFiles(server)).not.to.include(nameOf(first));
  });

  it("that a crash left behind in the middle of an upload is removed an hour later", async () => {
    const [person, other] = await Promise.all([newCustomer(server), newCustomer(server)]);
    const { avatars, files, config } = server.deps;
    const [whole, half] = ["0".repeat(32), "1".repeat(32)].map((stem) => `${stem}.webp`) as [string, string];
    for (const file of [whole, half]) await avatars.begin(file, person.id, server.clock.now());
    await files.put(whole, Buffer.from("a picture"), "image/webp");
    await writeFile(join(config.dataDir, "files", `${half}.part`), "half a pic");

    await other.users.uploadAvatar({ image: await aPng() });
    await other.users.deleteAvatar({});
    await server.runJobs();
    expect(await storedFiles(server)).to.include.members([whole, `${half}.part`]);

    server.clock.advance(2 * HOUR_MS);
    const back = await server.as().auth.login({ email: other.email, password: PASSWORD });
    const again = server.as(back.accessToken).users;
    await again.uploadAvatar({ image: await aPng() });
    await again.deleteAvatar({});
    await server.runJobs();
    const left = await storedFiles(server);
    expect(left).to.not.include(whole);
    expect(left).to.not.include(`${half}.part`);
    // An upload that is so late must not show a file that is gone.
    await server.deps.users.transaction(async (transaction) => {
      expect(await avatars.show(whole, person.id, transaction)).to.equal(false);
    });
  });

  it("is shown once an account at most, by the database", async () => {
    const person = await newCustomer(server);
    await upload(person, await aPng());
    const insert = sql(
      server.database,
      "INSERT INTO avatar_files (file, user_id, state, create_time) VALUES ($1, $2, 'SHOWN', now())",
      [`${"a".repeat(32)}.webp`, person.id],
    );
    expect(String(await insert.catch((error: Error) => error))).to.include("avatar_files_one_shown");
  });
});

describe("GET /avatars/", () => {
  const server = useServer();
  let path = "";
  before(async () => {
    path = await upload(await newCustomer(server), await aPng());
  });
  afterEach(() => sinon.restore());

  it("may be cached for ever, and is nothing but a picture to a browser", async () => {
    const response = await fetch(server.url + path);
    expect(response.status).to.equal(200);
    expect(Object.fromEntries(response.headers)).to.include({
      "content-type": "image/webp",
      "cache-control": "public, max-age=31536000, immutable",
      etag: `"${nameOf(path)}"`,
      "x-content-type-options": "nosniff",
      "content-security-policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    });
    expect(Number(response.headers.get("content-length"))).to.equal((await response.arrayBuffer()).byteLength);
  });

  it("answers 304 to whoever has it", async () => {
    const etag = `"${nameOf(path)}"`;
    for (const given of [etag, `W/${etag}`, `"another", ${etag}`, "*"]) {
      const response = await fetch(server.url + path, { headers: { "if-none-match": given } });
      expect([response.status, await response.text()], given).to.deep.equal([304, ""]);
    }
    const changed = await fetch(server.url + path, { headers: { "if-none-match": '"another"' } });
    expect(changed.status).to.equal(200);
  });

  it("answers HEAD with the headers alone", async () => {
    const response = await fetch(server.url + path, { method: "HEAD" });
    expect(Number(response.headers.get("content-length"))).to.be.greaterThan(100);
    expect((await response.arrayBuffer()).byteLength).to.equal(0);
  });

  it("works over HTTP/2", async () => {
    const session = http2.connect(server.url);
    const stream = session.request({ ":path": path });
    const [headers, body] = await new Promise<[http2.IncomingHttpHeaders, Buffer]>((resolve, reject) => {
      const chunks: Buffer[] = [];
      let received: http2.IncomingHttpHeaders = {};
      stream.on("response", (given) => {
        received = given;
      });
      stream.on("data", (chunk: Buffer) => chunks.push(chunk));
      stream.on("end", () => resolve([received, Buffer.concat(chunks)]));
      stream.on("error", reject);
    }).finally(() => session.close());
    expect(headers).to.include({ ":status": 200, "content-type": "image/webp" });
    expect((await sharp(body).metadata()).width).to.equal(512);
  });

  const strangers = [
    "",
    "0".repeat(32),
    `${"0".repeat(32)}.webp`,
    "..%2f..%2fsecret.key",
    "../secret.key",
    "../../secret.key",
    "%2e%2e/secret.key",
    `${"0".repeat(30)}%00.webp`,
    "x".repeat(5_000),
  ];
  for (const name of strangers) {
    it(`answers 404 to ${name.slice(0, 40) || "no name"}`, async () => {
      // A URL would be tidied up by fetch, so it is sent as it is.
      const session = http2.connect(server.url);
      const stream = session.request({ ":path": `/avatars/${name}` });
      const status = await new Promise<number | undefined>((resolve, reject) => {
        stream.on("response", (headers) => resolve(headers[":status"]));
        stream.on("error", reject);
      }).finally(() => session.close());
      expect(status).to.equal(404);
    });
  }

  it("takes no other method", async () => {
    for (const method of ["POST", "PUT", "DELETE", "PATCH"]) {
      const response = await fetch(server.url + path, { method });
      expect([response.status, response.headers.get("allow")], method).to.satisfy(
        ([status, allow]: [number, string]) => status === 405 && allow.startsWith("GET, HEAD"),
      );
    }
  });

  it("says when to come back while the store is away, without saying why", async () => {
    const cause = new Error("connect ECONNREFUSED 10.0.0.7:9000");
    sinon
      .stub(server.deps.files, "get")
      .rejects(new DomainError("unavailable", "FILES_UNAVAILABLE", "The store is away", { cause }));
    const response = await fetch(server.url + path);
    expect(response.status).to.equal(503);
    expect(response.headers.get("retry-after")).to.equal("1");
    expect(response.headers.get("cache-control")).to.equal("no-store");
    expect(await response.text()).not.to.include("10.0.0.7");
  });
});
