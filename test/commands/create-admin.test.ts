import { existsSync } from "node:fs";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { text } from "node:stream/consumers";
import { expect } from "chai";
import { readPassword } from "../../src/commands/create-admin.ts";
import { createDatabase, sql, type TestDatabase } from "../support/database.ts";
import { type Ended, processesNaming, until, usePrograms } from "../support/process.ts";

const PROGRAM = "src/commands/create-admin.ts";
const PASSWORD = "hunter2 hunter2 hunter2";

describe("npm run admin:create", function () {
  this.timeout(120_000);
  const { start, startService, newFolder } = usePrograms();
  let database: TestDatabase;

  before(async () => {
    database = await createDatabase();
  });
  after(() => database.drop());

  const run = (
    args: readonly string[],
    settings: Record<string, string> = {},
    input = `${PASSWORD}\n`,
  ): Promise<Ended> => start(PROGRAM, { args, settings: { DATABASE_URL: database.url, ...settings }, input }).ended;

  it("makes an admin who can log in, under the email in its normal form", async () => {
    const args = [
      "--email",
      " Root@Example.com ",
      "--first-name",
      "Robin",
      "--last-name",
      "Root",
      "--date-of-birth",
      "1980-02-29",
    ];
    const { code, stdout, stderr } = await run(args);
    expect({ code, stderr }).to.deep.equal({ code: 0, stderr: "" });
    expect(stdout).to.match(/^Made the admin root@example\.com in the database \S+ at \S+\.\n$/);
    const [user] = await sql(
      database,
      "SELECT role, first_name, last_name, date_of_birth::text FROM users WHERE email = $1",
      ["root@example.com"],
    );
    expect(user).to.deep.equal({ role: "ADMIN", first_name: "Robin", last_name: "Root", date_of_birth: "1980-02-29" });

    const service = startService({ DATABASE_URL: database.url, DATA_DIR: await newFolder() });
    const [, url = ""] = await service.printed(/Tradepost serves .* at (\S+)\n/);
    const response = await fetch(`${url}/tradepost.user.v1.AuthService/Login`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ email: "root@example.com", password: PASSWORD }),
    });
    expect(response.status, await response.text()).to.equal(200);
  });

  it("says that an email is taken", async () => {
    await run(["--email", "twice@example.com"]);
    const { code, stderr } = await run(["--email", "TWICE@example.com"]);
    expect({ code, stderr }).to.deep.equal({ code: 1, stderr: "An account with this email already exists\n" });
  });

  it("names everything that is wrong at once, and never the password", async () => {
    const args = ["--email", "nobody", "--first-name", "R", "--date-of-birth", "1990-02-31"];
    const { code, stdout, stderr } = await run(args, {}, "hunter2\n");
    expect(code).to.equal(1);
    expect(stderr.trimEnd().split("\n")).to.have.members([
      "--email: Email must be a valid email address",
      "--first-name: First name must be at least 2 characters",
      "--date-of-birth: Date of birth must be a real date",
      "Password must be at least 8 characters",
    ]);
    expect(stdout + stderr).to.not.contain("hunter2");
  });

  for (const [what, input, sentence] of [
    ["there is none", "", "No password was given, so no account was made."],
    ["it has no end", "x".repeat(1_000_000), "The password is too long: it may have 128 characters."],
    ["it has 129 characters", `${"x".repeat(129)}\n`, "Password must be at most 128 characters"],
  ] as const) {
    it(`refuses the password when ${what}`, async () => {
      const { code, stderr } = await run(["--email", "long@example.com"], {}, input);
      expect({ code, stderr }).to.deep.equal({ code: 1, stderr: `${sentence}\n` });
    });
  }

  it("explains itself when asked, and when an option is wrong or missing", async () => {
    expect(await run(["--help"])).to.deep.include({ code: 0, stderr: "" });
    for (const [args, sentence] of [
      [[], "--email is missing"],
      [["--email", "a@example.com", "--role", "ADMIN"], "Unknown option '--role'"],
    ] as const) {
      const { code, stderr } = await run(args);
      expect(code).to.equal(1);
      expect(stderr).to.contain(sentence).and.contain("Usage: npm run admin:create");
    }
  });

  it("says that the database cannot be reached", async () => {
    const { code, stderr } = await run(["--email", "a@example.com"], {
      DATABASE_URL: `postgres://shop:${encodeURIComponent(PASSWORD)}@127.0.0.1:1/shop`,
    });
    expect(code).to.equal(1);
    expect(stderr)
      .to.match(/^DATABASE_URL: nothing listens at 127\.0\.0\.1:1: [^\n]+\n$/)
      .and.not.contain("hunter2");
  });

  it("uses the embedded database, whether the service runs on it, is starting or is not there", async () => {
    const settings = { DATABASE_URL: "", DATA_DIR: await newFolder() };
    const make = async (email: string) => {
      const { code, stderr } = await run(["--email", email], settings);
      expect({ code, stderr }).to.deep.equal({ code: 0, stderr: "" });
    };
    await make("first@example.com");
    expect(await processesNaming(settings.DATA_DIR), "PostgreSQL is left").to.deep.equal([]);

    const service = startService(settings);
    await until("the service holds the folder", () => existsSync(join(settings.DATA_DIR, "server.json")) || undefined);
    await make("second@example.com");
    await service.printed(/Ctrl-C stops it/);
    await make("third@example.com");
    expect(service.stdout, "a database with accounts is filled with demo data").to.not.contain("Demo logins");
    expect(await service.stop()).to.include({ code: 0, stderr: "" });
    expect((await run(["--email", "third@example.com"], settings)).stderr).to.contain("already exists");
  });
});

describe("readPassword on a terminal", () => {
  /** A terminal at which somebody types `keys`, and what it shows. */
  async function typing(...keys: string[]): Promise<{ password: string; shown: string }> {
    const terminal = Object.assign(new PassThrough(), { isTTY: true, setRawMode: () => terminal });
    const prompts = new PassThrough();
    for (const key of keys) terminal.write(key);
    try {
      const password = await readPassword(terminal as unknown as NodeJS.ReadStream, prompts);
      prompts.end();
      return { password, shown: await text(prompts) };
    } finally {
      terminal.destroy();
    }
  }

  it("asks twice and shows nothing of what is typed", async () => {
    const { password, shown } = await typing("correct horse\r", "correct horse\r");
    expect(password).to.equal("correct horse");
    expect(shown).to.equal("Password (8 to 128 characters): \nThe same again: \n");
  });

  it("lets a slip be corrected with backspace", async () => {
    expect((await typing("correcr\x7ft horse\r", "correct horse\r")).password).to.equal("correct horse");
  });

  it("refuses two passwords that differ", async () => {
    const error = await typing("correct horse\r", "correct house\r").catch((reason: Error) => reason);
    expect(error).to.have.property("message", "The two passwords differ.");
  });

  for (const [key, code] of [
    ["Ctrl-C", "\x03"],
    ["Ctrl-D", "\x04"],
  ] as const) {
    it(`gives up on ${key}`, async () => {
      const error = await typing(code).catch((reason: Error) => reason);
      expect(error).to.have.property("message", "No password was given, so no account was made.");
    });
  }
});
