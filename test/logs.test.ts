import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "chai";
import { newCustomer, PASSWORD } from "./support/factories.ts";
import { findLeaks, refuseLeaks } from "./support/secrets.ts";
import { useServer } from "./support/server.ts";

// That no log line of the whole run holds a secret is decided when the last test has ended (test/support/global.ts).
// Here is shown that this search sees what it should.

const aToken = () => randomBytes(32).toString("base64url");

describe("the search of the logs for secrets", () => {
  let dir = "";
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), "tradepost-search-"));
  });
  afterEach(() => rm(dir, { recursive: true, force: true }));

  const searched = async (secrets: readonly string[], lines: readonly string[]): Promise<string[]> => {
    await writeFile(join(dir, "1.secrets"), secrets.map((secret) => `${JSON.stringify(secret)}\n`).join(""));
    await writeFile(join(dir, "a.log"), lines.map((line) => `${line}\n`).join(""));
    return findLeaks(dir);
  };

  const token = aToken();
  const jwt = `${Buffer.from('{"alg":"EdDSA"}').toString("base64url")}.${Buffer.from('{"sub":"1234567"}').toString("base64url")}.${aToken()}`;
  const planted: Record<string, string> = {
    "a password": `{"level":30,"password":"${PASSWORD}","msg":"login"}`,
    "a password inside a sentence": `{"level":50,"err":{"message":"cannot hash ${PASSWORD}!"}}`,
    "a refresh token": `{"level":30,"given":"${token}"}`,
    "a refresh token inside a longer word": `{"level":30,"cookie":"session_${token}xyz"}`,
    "an access token, though nobody remembered it": `{"level":30,"authorization":"Bearer ${jwt}"}`,
    "the address of a database with its password": "cannot reach postgres://tradepost:s3cret-0f-db@127.0.0.1:5432/db",
  };
  for (const [what, line] of Object.entries(planted)) {
    it(`finds ${what}, and names the line`, async () => {
      const leaks = await searched([PASSWORD, aToken(), token], ['{"msg":"rpc"}', line]);
      expect(leaks).to.have.length(1);
      expect(leaks[0]).to.match(/^a\.log:2 holds an? /);
    });
  }

  it("fails the run with what it found", async () => {
    await searched([PASSWORD], [`{"password":"${PASSWORD}"}`]);
    const error = await refuseLeaks(dir).catch((reason: Error) => reason);
    expect(String(error)).to.match(/^Error: Secrets in the logs of this run:\na\.log:1 holds/);
  });

  it("lets pass what is no secret: ids, hashes, censored addresses, and the link of a mail that became a file", async () => {
    const lines = [
      `{"level":30,"requestId":"01a20ea9-ecd5-7421-85df-17ff18522eb5","emailHash":"${randomBytes(8).toString("hex")}"}`,
      `{"level":30,"url":"postgres://tradepost:***@127.0.0.1:5432/db","kid":"${aToken()}"}`,
      "DATABASE_URL: must look like postgres://user:password@host:5432/database",
      `{"level":30,"subject":"Verify","link":"http://localhost/?token=${token}","msg":"mail written"}`,
    ];
    expect(await searched([PASSWORD, token], lines)).to.deep.equal([]);
  });
});

describe("the logs of this run", () => {
  const server = useServer();

  it("are collected, with the secrets that clients sent and got", async () => {
    const person = await newCustomer(server);
    const { refreshToken } = await server.as().auth.login({ email: person.email, password: PASSWORD });
    const dir = process.env["TEST_LOG_DIR"] ?? "";
    const read = (name: string) => (existsSync(join(dir, name)) ? readFileSync(join(dir, name), "utf8") : "");
    const secrets = read(`${process.pid}.secrets`);
    for (const secret of [PASSWORD, person.token, refreshToken]) expect(secrets).to.include(JSON.stringify(secret));
    expect(read(`tests-${process.pid}.log`)).to.include('"method":"tradepost.user.v1.AuthService/Login"');
  });
});
