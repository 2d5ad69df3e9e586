import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import net, { type AddressInfo } from "node:net";
import { join } from "node:path";
import { expect } from "chai";
import { type Program, usePrograms } from "../support/process.ts";

describe("npm run sandbox", function () {
  this.timeout(60_000);
  const { start, newFolder } = usePrograms();

  const run = (settings: Record<string, string>): Program =>
    start("src/commands/sandbox.ts", { settings: { SANDBOX_PORT: "0", ...settings } });

  for (const [how, stop] of [
    ["SIGTERM", (it: Program) => void it.child.kill("SIGTERM")],
    ["SIGHUP", (it: Program) => void it.child.kill("SIGHUP")],
    ["the end of the process that started it", (it: Program) => it.child.disconnect()],
  ] as const) {
    it(`answers at the address that it prints, until ${how}`, async () => {
      const sandbox = run({ DATA_DIR: await newFolder() });
      const [, url = ""] = await sandbox.printed(/Payment sandbox at (http:\/\/127\.0\.0\.1:\d+) /);
      expect(await (await fetch(`${url}/charges`)).json()).to.deep.equal({ charges: [] });
      stop(sandbox);
      expect(await sandbox.ended).to.include({ code: 0, stderr: "" });
    });
  }

  it("says that its port is taken", async () => {
    const other = net.createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as AddressInfo;
    const { code, stderr } = await run({ DATA_DIR: await newFolder(), SANDBOX_PORT: String(port) }).ended;
    other.close();
    expect(code).to.equal(1);
    expect(stderr).to.match(new RegExp(`^Port ${port} is taken: [^\\n]*SANDBOX_PORT[^\\n]*\\n$`));
  });

  it("says that its settings are wrong, or its folder cannot be used", async () => {
    const wrong = await run({ SANDBOX_PORT: "none" }).ended;
    expect(wrong).to.include({ code: 1, stdout: "" });
    expect(wrong.stderr).to.match(/^SANDBOX_PORT: [^\n]+\n$/);

    const unsigned = await run({ SANDBOX_WEBHOOK_SECRET: "short" }).ended;
    expect(unsigned.stderr)
      .to.match(/^SANDBOX_WEBHOOK_SECRET: [^\n]+\n$/)
      .and.not.to.include("short");

    const file = join(await newFolder(), "file");
    await writeFile(file, "");
    const { code, stderr } = await run({ DATA_DIR: file }).ended;
    expect(code).to.equal(1);
    expect(stderr).to.match(/^[^\n]*\bDATA_DIR\b[^\n]*\n$/);

    const tls = { TLS_CERT: file, TLS_KEY: file, SANDBOX_WEBHOOK_URL: "https://127.0.0.1:1/webhooks/sandbox" };
    const untrusted = await run({ ...tls, DATA_DIR: await newFolder() }).ended;
    expect(untrusted.stderr).to.match(/^[^\n]*\bTLS_CERT\b[^\n]*\n$/);
  });
});
