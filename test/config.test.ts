import { readFileSync } from "node:fs";
import { expect } from "chai";
import { ConfigError, readConfig, settingDocs } from "../src/config.ts";

function mistakesOf(settings: Record<string, string>): string[] {
  try {
    readConfig(settings);
  } catch (error) {
    expect(error).to.be.instanceOf(ConfigError);
    return (error as ConfigError).message.split("\n");
  }
  throw new Error("expected the settings to be refused");
}

describe("settings", () => {
  it("have sensible defaults", () => {
    const { port, host, database, reflection, payments } = readConfig({});
    expect({ port, host, url: database.url, reflection }).to.deep.equal({
      port: 8080,
      host: "127.0.0.1",
      url: undefined,
      reflection: true,
    });
    expect(payments.currencies).to.deep.equal(["USD", "EUR"]);
  });

  it("are told wrong all at once, each by its name", () => {
    const mistakes = mistakesOf({ PORT: "99999", LOG_LEVEL: "loud", DATABASE_URL: "mysql://x", TLS_CERT: "cert.pem" });
    expect(mistakes.map((line) => line.split(":")[0])).to.have.members([
      "PORT",
      "LOG_LEVEL",
      "DATABASE_URL",
      "TLS_CERT and TLS_KEY",
    ]);
  });

  it("cannot give one port to the service and the sandbox", () => {
    expect(mistakesOf({ PORT: "8081" })).to.deep.equal(["PORT and SANDBOX_PORT: choose two different ports"]);
    expect(readConfig({ PORT: "0", SANDBOX_PORT: "0" }).port).to.equal(0);
  });

  it("never repeat a secret in what they say of it", () => {
    expect(mistakesOf({ SECRET_KEY: "c2hvcnQ=" }).join()).not.to.include("c2hvcnQ");
  });

  it("take an empty value for one that is not set", () => {
    expect(readConfig({ PORT: "", DATABASE_URL: "" }).port).to.equal(8080);
  });

  it("turn reflection off in production, unless it is asked for", () => {
    const production = { NODE_ENV: "production", PAYMENT_GATEWAY_PRIMARY: "stripe", STRIPE_API_KEY: "sk_test" };
    expect(readConfig(production).reflection).to.equal(false);
    expect(readConfig({ ...production, REFLECTION: "on" }).reflection).to.equal(true);
  });

  it("refuse the sandbox in production, and a gateway without its keys", () => {
    expect(mistakesOf({ NODE_ENV: "production" })).to.deep.equal([
      "PAYMENT_GATEWAY_PRIMARY: the sandbox takes no real money, so NODE_ENV=production refuses it",
    ]);
    expect(
      mistakesOf({ PAYMENT_GATEWAY_PRIMARY: "adyen", ADYEN_API_KEY: "k", ADYEN_RETURN_URL: "https://x.example" }),
    ).to.deep.equal(["ADYEN_MERCHANT_ACCOUNT: must be set when PAYMENT_GATEWAY_PRIMARY is adyen"]);
    expect(mistakesOf({ PAYMENT_GATEWAY_BACKUP: "sandbox-primary" })).to.deep.equal([
      "PAYMENT_GATEWAY_BACKUP: choose another gateway than the primary, or none",
    ]);
  });

  it("demand a payment limit for each supported currency", () => {
    expect(mistakesOf({ SUPPORTED_CURRENCIES: "USD,JPY" })).to.deep.equal([
      "MAX_PAYMENT_AMOUNT: has no amount for JPY",
    ]);
    const { payments } = readConfig({ SUPPORTED_CURRENCIES: "USD,JPY", MAX_PAYMENT_AMOUNT: "USD:5,JPY:1000000" });
    expect(payments.maxAmounts.map(({ currency }) => currency)).to.deep.equal(["USD", "JPY"]);
  });

  it("cannot be changed once read", () => {
    expect(Object.isFrozen(readConfig({}))).to.equal(true);
  });

  it("stand in the README's table, each with its default and what it is for", () => {
    const readme = readFileSync("README.md", "utf8");
    for (const { name, fallback, description } of settingDocs()) {
      expect(readme).to.include(`| \`${name}\` | ${fallback === "" ? "" : `\`${fallback}\``} | ${description} |`);
    }
  });
});
