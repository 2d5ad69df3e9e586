import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFile, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { expect } from "chai";
import { pino } from "pino";
import sinon from "sinon";
import { runSandbox } from "../../../src/commands/sandbox.ts";
import type {
  ChargeAnswer,
  ChargeRequest,
  Gateway,
  RefundRequest,
  WebhookRequest,
} from "../../../src/payments/gateways/gateway.ts";
import { createSandboxGateway } from "../../../src/payments/gateways/sandbox.ts";
import type { SandboxGatewayName } from "../../../src/payments/gateways/sandbox-protocol.ts";
import {
  type Sandbox,
  type SandboxOptions,
  SandboxStartError,
  startSandbox,
} from "../../../src/payments/gateways/sandbox-server.ts";
import { signWebhook } from "../../../src/payments/gateways/sandbox-webhook.ts";
import { expectWithin } from "../../support/timing.ts";

const log = pino({ level: "silent" });
const lateMs = 10;
/** For what must not happen by itself while a test runs. */
const neverMs = 600_000;
/** What a test waits for at most; only one that fails waits so long. */
const waitMs = 20_000;
const patient = { timeoutMs: 30_000 };
const impatient = { timeoutMs: 80 };
/** Nothing listens here. */
const nowhere = "http://127.0.0.1:1";
const webhookSecret = "whsec_0123456789abcdef";

interface ListedCharge {
  gateway: string;
  reference: string;
  token: string;
  amount_minor: number;
  currency: string;
  state: string;
  captured_minor: number;
  refunded_minor: number;
  create_time: string;
}

/** What a test started, ended by `cleanUp` in reverse order. */
const endings: (() => Promise<void> | void)[] = [];

async function cleanUp(): Promise<void> {
  for (const end of endings.splice(0).reverse()) await end();
}

async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sandbox-test-"));
  endings.push(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function start(options: Partial<SandboxOptions> = {}): Promise<Sandbox> {
  const dataDir = options.dataDir ?? (await temporaryFolder());
  const sandbox = await startSandbox({ port: 0, log, lateMs, hangMs: neverMs, ...options, dataDir });
  endings.push(() => sandbox.close());
  return sandbox;
}

/** Any program may have been given the port for a connection of its own meanwhile: this waits until it is free. */
async function startOnFreedPort(options: Partial<SandboxOptions>): Promise<void> {
  const failure = await eventually(
    () =>
      start(options).then(
        () => undefined,
        (error: unknown) => error,
      ),
    (error) => !(error instanceof SandboxStartError),
  );
  if (failure !== undefined) throw failure;
}

function gatewayAt(baseUrl: string, name: SandboxGatewayName = "sandbox-primary"): Gateway {
  const gateway = createSandboxGateway({ name, baseUrl, webhookSecret });
  endings.push(() => gateway.close());
  return gateway;
}

async function listCharges(sandbox: { url: string }): Promise<ListedCharge[]> {
  const response = await fetch(`${sandbox.url}/charges`);
  return ((await response.json()) as { charges: ListedCharge[] }).charges;
}

async function stateOf(sandbox: { url: string }, reference: string): Promise<string | undefined> {
  return (await listCharges(sandbox)).find((charge) => charge.reference === reference)?.state;
}

async function onlyCharge(sandbox: { url: string }): Promise<ListedCharge> {
  const charges = await listCharges(sandbox);
  expect(charges, "all charges").to.have.length(1);
  return charges[0] as ListedCharge;
}

function chargeOf(reference: string, token: string, minor = 1_099n): ChargeRequest {
  return { reference, amount: { currency: "USD", minor }, paymentMethodToken: token };
}

function refundOf(key: string, reference: string, minor: bigint, currency = "USD"): RefundRequest {
  return { key, reference, transactionId: "unused", amount: { currency, minor } };
}

async function post(url: string, body?: unknown): Promise<{ status: number; json: Record<string, unknown> }> {
  const response = await fetch(url, {
    method: "POST",
    ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
  });
  return { status: response.status, json: (await response.json()) as Record<string, unknown> };
}

/** Asks until the condition holds; the last value is what a failing test shows. */
async function eventually<T>(ask: () => Promise<T> | T, holds: (value: T) => boolean): Promise<T> {
  const end = Date.now() + waitMs;
  for (;;) {
    const value = await ask();
    if (holds(value) || Date.now() > end) return value;
    await sleep(10);
  }
}

interface UntimedCall<T> {
  readonly answer: Promise<T>;
  readonly runOut: () => void;
}

/** Makes a call whose time does not pass, and is over once `runOut` says so: it can never be over too early. */
function startUntimed<T>(call: () => Promise<T>): UntimedCall<T> {
  const clock = sinon.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    return { answer: call(), runOut: () => clock.tick(patient.timeoutMs) };
  } finally {
    // The call has its timer by now; those of the sandbox in this process are to run.
    clock.restore();
  }
}

/** Sends a charge that hangs, and waits until the sandbox has it in its books. */
async function startHanging(
  sandbox: { url: string },
  gateway: Gateway,
  request: ChargeRequest,
): Promise<UntimedCall<ChargeAnswer>> {
  const charging = startUntimed(() => gateway.charge(request, patient));
  await eventually(
    () => stateOf(sandbox, request.reference),
    (state) => state !== undefined,
  );
  return charging;
}

/** Charges as a client that gives up once the sandbox has the charge in its books. */
async function giveUp(sandbox: { url: string }, gateway: Gateway, request: ChargeRequest): Promise<ChargeAnswer> {
  const { answer, runOut } = await startHanging(sandbox, gateway, request);
  runOut();
  return await answer;
}

/** Waits until everything late that has begun is over: a late capture that begins now comes after it. */
async function passLate(sandbox: { url: string }, gateway: Gateway): Promise<void> {
  await giveUp(sandbox, gateway, chargeOf("last", "tok_late_capture"));
  const state = await eventually(
    () => stateOf(sandbox, "last"),
    (now) => now === "captured",
  );
  expect(state, "the last late capture").to.equal("captured");
}

/** An HTTP server that misbehaves as its handler says. */
async function fakeServer(handler: RequestListener): Promise<string> {
  const server = createServer(handler);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  endings.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** A sandbox in a process of its own, as `npm run sandbox` makes one. */
async function startChild(dataDir: string, options: object = {}): Promise<{ child: ChildProcess; url: string }> {
  const source = fileURLToPath(new URL("../../../src/commands/sandbox.ts", import.meta.url));
  const script = `
    import { pino } from "pino";
    import { runSandbox } from ${JSON.stringify(source)};
    await runSandbox({ ...JSON.parse(process.argv[1]), log: pino({ level: "silent" }), stopAtEndOf: process.stdin });`;
  const settings = JSON.stringify({ port: 0, dataDir, lateMs, hangMs: neverMs, ...options });
  const child = spawn(process.execPath, ["--input-type=module", "-e", script, settings], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  endings.push(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill("SIGKILL");
    await once(child, "exit");
  });
  let output = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output += text;
  });
  const ended = once(child, "exit").then(() => Promise.reject(new Error(`The sandbox ended; it printed: ${output}`)));
  ended.catch(() => undefined);
  const line = await Promise.race([
    eventually(
      () => output,
      (text) => text.includes("\n"),
    ),
    ended,
  ]);
  return { child, url: /http:\/\/[^ ]+/.exec(line)?.[0] ?? `no address in ${line}` };
}

async function kill(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  const exited = once(child, "exit");
  child.kill(signal);
  await exited;
}

describe("payment sandbox", function () {
  this.timeout(60_000);
  afterEach(cleanUp);

  describe("tokens", () => {
    let sandbox: Sandbox;
    let primary: Gateway;
    let backup: Gateway;

    beforeEach(async () => {
      sandbox = await start();
      primary = gatewayAt(sandbox.url);
      backup = gatewayAt(sandbox.url, "sandbox-backup");
    });

    for (const token of ["tok_visa", "tok_fraud"]) {
      it(`captures ${token}`, async () => {
        const answer = await primary.charge(chargeOf("a1", token), patient);
        expect(answer).to.deep.include({ kind: "executed" });
        expect(answer).to.have.nested.property("result.transactionId").that.matches(/^txn_/);
        expect(answer).to.deep.nested.include({
          "result.outcome": "captured",
          "result.captured": { currency: "USD", minor: 1_099n },
          "result.responseCode": "00",
        });
      });
    }

    for (const [token, reason, responseCode] of [
      ["tok_declined", "card_declined", "05"],
      ["tok_insufficient_funds", "insufficient_funds", "51"],
      ["tok_nobody_knows", "invalid_token", "14"],
      ["tok_nobody_knows@primary", "invalid_token", "14"],
      ["constructor", "invalid_token", "14"],
    ] as const) {
      it(`declines ${token} on both gateways with ${reason}, for good`, async () => {
        for (const gateway of [primary, backup]) {
          const declined = { kind: "executed", result: { outcome: "declined", reason, responseCode } };
          expect(await gateway.charge(chargeOf("a1", token), patient)).to.deep.equal(declined);
          expect(await gateway.charge(chargeOf("a1", token), patient), "sent again").to.deep.equal(declined);
          expect(await gateway.void({ reference: "a1" }, patient), "voided").to.deep.equal(declined);
        }
      });
    }

    it("never executes tok_timeout: unknown, then not found, then voided for good", async () => {
      // Over a connection that stands already, the charge is sent at once, however short its time is.
      await primary.lookup({ reference: "a0" }, patient);
      const answer = await primary.charge(chargeOf("a1", "tok_timeout"), impatient);
      expect(answer).to.include({ kind: "unknown", cause: "timeout" });
      expect(await primary.lookup({ reference: "a1" }, patient)).to.deep.equal({ kind: "not_found" });
      expect(await primary.void({ reference: "a1" }, patient)).to.deep.equal({ kind: "voided" });
      expect(await primary.charge(chargeOf("a1", "tok_timeout"), patient)).to.include({
        kind: "not_executed",
        cause: "voided",
        proves: "reference",
      });
    });

    it("cuts off a client that waits longer than the sandbox hangs, which stays unknown", async () => {
      const short = gatewayAt((await start({ hangMs: 30 })).url);
      const answer = await short.charge(chargeOf("a1", "tok_timeout"), patient);
      expect(answer).to.include({ kind: "unknown", cause: "connection_lost" });
    });

    for (const [token, cause] of [
      ["tok_timeout_captured", "timeout"],
      ["tok_error_captured", "gateway_error"],
      ["tok_garbage", "malformed_answer"],
    ] as const) {
      it(`captures ${token} though the answer is unknown (${cause}); a lookup and a second send tell`, async () => {
        const request = chargeOf("a1", token);
        const answer =
          cause === "timeout" ? await giveUp(sandbox, primary, request) : await primary.charge(request, patient);
        expect(answer).to.include({ kind: "unknown", cause });
        const found = await primary.lookup({ reference: "a1" }, patient);
        expect(found).to.deep.nested.include({ kind: "found", "charge.captured": { currency: "USD", minor: 1_099n } });
        expect(await primary.charge(chargeOf("a1", token), patient)).to.deep.nested.include({
          kind: "executed",
          "result.outcome": "captured",
        });
        expect(await primary.void({ reference: "a1" }, patient)).to.deep.nested.include({
          kind: "executed",
          "result.outcome": "captured",
        });
        expect((await listCharges(sandbox)).map((charge) => charge.captured_minor)).to.deep.equal([1_099]);
      });
    }

    it("captures tok_late_capture only after the client has given up", async () => {
      const { answer, runOut } = await startHanging(sandbox, primary, chargeOf("a1", "tok_late_capture"));
      await passLate(sandbox, primary);
      expect(await stateOf(sandbox, "a1"), "while the client waits").to.equal("pending");
      runOut();
      expect(await answer).to.include({ kind: "unknown", cause: "timeout" });
      const found = await eventually(
        () => primary.lookup({ reference: "a1" }, patient),
        (lookup) => lookup.kind === "found",
      );
      expect(found).to.deep.nested.include({ kind: "found", "charge.outcome": "captured" });
    });

    it("does not find tok_late_capture until it is captured", async () => {
      const late = await start({ lateMs: neverMs });
      const gateway = gatewayAt(late.url);
      await giveUp(late, gateway, chargeOf("a1", "tok_late_capture"));
      expect(await gateway.lookup({ reference: "a1" }, patient)).to.deep.equal({ kind: "not_found" });
      expect(await onlyCharge(late)).to.have.property("state", "pending");
    });

    for (const [token, cause] of [
      ["tok_unreachable", "unavailable"],
      ["tok_rate_limited", "rate_limited"],
    ] as const) {
      it(`refuses ${token} before processing: proof for that send, and nothing in the books`, async () => {
        const answer = await primary.charge(chargeOf("a1", token), patient);
        expect(answer).to.include({ kind: "not_executed", cause, proves: "this_send", retryAfterMs: 1_000 });
        expect(await primary.lookup({ reference: "a1" }, patient)).to.deep.equal({ kind: "not_found" });
        expect(await listCharges(sandbox)).to.deep.equal([]);
      });
    }

    it("captures another amount for tok_wrong_amount, and says which", async () => {
      const answer = await primary.charge(chargeOf("a1", "tok_wrong_amount"), patient);
      expect(answer).to.deep.nested.include({ "result.captured": { currency: "USD", minor: 1_199n } });
      expect(await onlyCharge(sandbox)).to.include({
        amount_minor: 1_099,
        captured_minor: 1_199,
      });
    });

    for (const token of ["tok_timeout", "tok_declined", "tok_unreachable", "tok_rate_limited", "tok_late_capture"]) {
      it(`treats ${token}@primary as tok_visa on the backup alone`, async () => {
        const onPrimary = await primary.charge(chargeOf("a1", `${token}@primary`), impatient);
        expect(onPrimary).not.to.have.nested.property("result.outcome", "captured");
        const onBackup = await backup.charge(chargeOf("a1", `${token}@primary`), patient);
        expect(onBackup).to.have.nested.property("result.outcome", "captured");
      });
    }
  });

  describe("charging", () => {
    it("charges one key once, however many send it at once", async () => {
      const sandbox = await start();
      const gateway = gatewayAt(sandbox.url);
      const answers = await Promise.all(
        Array.from({ length: 100 }, () => gateway.charge(chargeOf("one", "tok_visa"), patient)),
      );
      const first = answers[0];
      expect(first).to.have.nested.property("result.outcome", "captured");
      for (const answer of answers) expect(answer).to.deep.equal(first);
      expect(await listCharges(sandbox)).to.have.length(1);
    });

    it("refuses a key that belongs to a charge of another amount, currency or token", async () => {
      const sandbox = await start();
      const gateway = gatewayAt(sandbox.url);
      await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      for (const other of [
        chargeOf("a1", "tok_visa", 1_100n),
        chargeOf("a1", "tok_fraud"),
        { ...chargeOf("a1", "tok_visa"), amount: { currency: "EUR", minor: 1_099n } },
      ]) {
        const answer = await gateway.charge(other, patient);
        expect(answer).to.include({ kind: "not_executed", cause: "key_conflict", proves: "this_send" });
      }
      expect(await listCharges(sandbox)).to.have.length(1);
    });

    it("keeps the books of its two gateways apart", async () => {
      const sandbox = await start();
      await gatewayAt(sandbox.url).charge(chargeOf("a1", "tok_visa"), patient);
      const backup = gatewayAt(sandbox.url, "sandbox-backup");
      expect(await backup.lookup({ reference: "a1" }, patient)).to.deep.equal({ kind: "not_found" });
    });

    it("sends nothing that the sandbox would refuse as invalid", async () => {
      const gateway = gatewayAt(nowhere);
      for (const invalid of [
        chargeOf("a/b", "tok_visa"),
        chargeOf("", "tok_visa"),
        chargeOf("a1", ""),
        chargeOf("a1", "tok_visa", 0n),
        chargeOf("a1", "tok_visa", -1n),
        chargeOf("a1", "tok_visa", 2n ** 80n),
        { ...chargeOf("a1", "tok_visa"), amount: { currency: "usd", minor: 1n } },
      ]) {
        const answer = await gateway.charge(invalid, patient);
        expect(answer, `reference ${invalid.reference}`).to.include({ kind: "not_executed", cause: "rejected" });
      }
      expect(await gateway.lookup({ reference: "../charges" }, patient)).to.include({ cause: "not_sent" });
      expect(await gateway.void({ reference: "a b" }, patient)).to.include({ cause: "not_sent" });
    });

    it("lists every charge with exactly the promised members, also when the list is long", async () => {
      const sandbox = await start();
      const gateway = gatewayAt(sandbox.url);
      const references = Array.from({ length: 1_000 }, (_, index) => `r${index}`);
      await Promise.all(references.map((reference) => gateway.charge(chargeOf(reference, "tok_visa", 5n), patient)));
      const charges = await listCharges(sandbox);
      expect(charges.map((charge) => charge.reference).sort()).to.deep.equal(references.sort());
      const { create_time, reference, ...members } = charges[0] as ListedCharge;
      expect(new Date(create_time).getTime()).to.be.closeTo(Date.now(), 60_000);
      expect(references).to.include(reference);
      expect(members).to.deep.equal({
        gateway: "sandbox-primary",
        token: "tok_visa",
        amount_minor: 5,
        currency: "USD",
        state: "captured",
        captured_minor: 5,
        refunded_minor: 0,
      });
    });

    it("waits its latency before it processes", async () => {
      const gateway = gatewayAt((await start({ latencyMs: 50 })).url);
      let charges = 0;
      await expectWithin(1_000, async () => {
        const begin = performance.now();
        await gateway.charge(chargeOf(`a${++charges}`, "tok_visa"), patient);
        const tookMs = performance.now() - begin;
        expect(tookMs).to.be.at.least(45);
        return tookMs;
      });
    });
  });

  describe("voiding", () => {
    it("puts a tombstone on a reference it has never seen, which beats every later charge", async () => {
      const sandbox = await start();
      const gateway = gatewayAt(sandbox.url);
      expect(await gateway.void({ reference: "never-seen" }, patient)).to.deep.equal({ kind: "voided" });
      expect(await gateway.void({ reference: "never-seen" }, patient), "again").to.deep.equal({ kind: "voided" });
      const answer = await gateway.charge(chargeOf("never-seen", "tok_visa"), patient);
      expect(answer).to.include({ kind: "not_executed", cause: "voided", proves: "reference" });
      expect(await gateway.lookup({ reference: "never-seen" }, patient)).to.deep.equal({
        kind: "found",
        charge: { outcome: "voided" },
      });
      expect(await onlyCharge(sandbox)).to.include({ state: "voided", captured_minor: 0 });
    });

    it("lets a void win over a late capture that has not come yet", async () => {
      const sandbox = await start({ lateMs: neverMs });
      const gateway = gatewayAt(sandbox.url);
      await giveUp(sandbox, gateway, chargeOf("a1", "tok_late_capture"));
      expect(await gateway.void({ reference: "a1" }, patient)).to.deep.equal({ kind: "voided" });
      expect(await onlyCharge(sandbox)).to.include({ state: "voided", captured_minor: 0 });
    });

    it("lets a late capture win over a void that comes after it", async () => {
      const sandbox = await start();
      const gateway = gatewayAt(sandbox.url);
      await giveUp(sandbox, gateway, chargeOf("a1", "tok_late_capture"));
      await passLate(sandbox, gateway);
      const answer = await gateway.void({ reference: "a1" }, patient);
      expect(answer).to.deep.nested.include({ kind: "executed", "result.outcome": "captured" });
      expect(await stateOf(sandbox, "a1")).to.equal("captured");
    });

    it("lets a void and a late capture race: whoever the void's answer names has won for good", async () => {
      const sandbox = await start({ lateMs: 15 });
      const gateway = gatewayAt(sandbox.url);
      const race = async (index: number): Promise<{ reference: string; saysCaptured: boolean }> => {
        const reference = `race-${index}`;
        await giveUp(sandbox, gateway, chargeOf(reference, "tok_late_capture"));
        await sleep((index % 30) + Math.random());
        const answer = await gateway.void({ reference }, patient);
        expect(["voided", "executed"], `void of ${reference}: ${JSON.stringify(answer, bigintText)}`).to.include(
          answer.kind,
        );
        return { reference, saysCaptured: answer.kind === "executed" };
      };
      const said: { reference: string; saysCaptured: boolean }[] = [];
      for (let round = 0; round < 10; round += 1) {
        said.push(...(await Promise.all(Array.from({ length: 30 }, (_, index) => race(round * 30 + index)))));
      }
      await passLate(sandbox, gateway);
      const states = new Map((await listCharges(sandbox)).map((charge) => [charge.reference, charge.state]));
      for (const { reference, saysCaptured } of said) {
        expect(states.get(reference), reference).to.equal(saysCaptured ? "captured" : "voided");
      }
    });

    it("voids a charge whose request is still hanging, for good", async () => {
      const sandbox = await start();
      const gateway = gatewayAt(sandbox.url);
      const { answer, runOut } = await startHanging(sandbox, gateway, chargeOf("a1", "tok_late_capture"));
      expect(await gateway.void({ reference: "a1" }, patient)).to.deep.equal({ kind: "voided" });
      runOut();
      expect(await answer).to.include({ kind: "unknown" });
      await passLate(sandbox, gateway);
      expect(await stateOf(sandbox, "a1")).to.equal("voided");
    });
  });

  describe("refunding", () => {
    let sandbox: Sandbox;
    let gateway: Gateway;

    beforeEach(async () => {
      sandbox = await start();
      gateway = gatewayAt(sandbox.url);
    });

    it("refunds once per key and shows it in the charge", async () => {
      await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      const answer = await gateway.refund(refundOf("r1", "a1", 99n), patient);
      expect(answer).to.deep.nested.include({
        kind: "executed",
        "result.outcome": "completed",
        "result.refunded": { currency: "USD", minor: 99n },
      });
      expect(await gateway.refund(refundOf("r1", "a1", 99n), patient), "sent again").to.deep.equal(answer);
      expect(await gateway.refund(refundOf("r1", "a1", 98n), patient)).to.include({ cause: "key_conflict" });
      expect(await gateway.lookupRefund(refundOf("r1", "a1", 99n), patient)).to.deep.nested.include({
        kind: "found",
        "result.outcome": "completed",
      });
      expect(await gateway.lookup({ reference: "a1" }, patient)).to.deep.nested.include({
        "charge.refunded": { currency: "USD", minor: 99n },
      });
    });

    it("never refunds more than was captured, however many refunds come at once", async () => {
      await gateway.charge(chargeOf("a1", "tok_visa", 1_000n), patient);
      const answers = await Promise.all(
        Array.from({ length: 50 }, (_, index) => gateway.refund(refundOf(`r${index}`, "a1", 30n), patient)),
      );
      const outcomes = answers.map((answer) => (answer.kind === "executed" ? answer.result.outcome : answer.kind));
      expect(outcomes.filter((outcome) => outcome === "completed")).to.have.length(33);
      expect(outcomes.filter((outcome) => outcome === "failed")).to.have.length(17);
      expect((await listCharges(sandbox))[0]?.refunded_minor).to.equal(990);
    });

    it("fails a refund that exceeds the capture or has another currency, and keeps that answer", async () => {
      await gateway.charge(chargeOf("a1", "tok_visa", 100n), patient);
      for (const [key, minor, currency, reason] of [
        ["r1", 101n, "USD", "exceeds_captured_amount"],
        ["r2", 1n, "EUR", "currency_mismatch"],
      ] as const) {
        const answer = await gateway.refund(refundOf(key, "a1", minor, currency), patient);
        expect(answer).to.deep.nested.include({ "result.outcome": "failed", "result.reason": reason });
        expect(await gateway.refund(refundOf(key, "a1", minor, currency), patient)).to.deep.equal(answer);
      }
    });

    it("proves that a refund of a charge it does not have was not executed", async () => {
      expect(await gateway.refund(refundOf("r1", "nothing", 1n), patient)).to.include({
        kind: "not_executed",
        cause: "rejected",
      });
      expect(await gateway.lookupRefund(refundOf("r1", "nothing", 1n), patient)).to.deep.equal({ kind: "not_found" });
    });

    it("keeps a refund of tok_refund_pending pending, which holds its amount", async () => {
      const slow = gatewayAt((await start({ lateMs: neverMs })).url);
      await slow.charge(chargeOf("a1", "tok_refund_pending", 100n), patient);
      expect(await slow.refund(refundOf("r1", "a1", 60n), patient)).to.include({ kind: "pending" });
      expect(await slow.lookupRefund(refundOf("r1", "a1", 60n), patient)).to.deep.equal({
        kind: "found",
        result: { outcome: "pending" },
      });
      const second = await slow.refund(refundOf("r2", "a1", 60n), patient);
      expect(second).to.deep.nested.include({ "result.outcome": "failed" });
    });

    it("completes a refund of tok_refund_pending later", async () => {
      await gateway.charge(chargeOf("a1", "tok_refund_pending", 100n), patient);
      expect(await gateway.refund(refundOf("r1", "a1", 60n), patient)).to.include({ kind: "pending" });
      const found = await eventually(
        () => gateway.lookupRefund(refundOf("r1", "a1", 60n), patient),
        (lookup) => lookup.kind === "found" && lookup.result.outcome !== "pending",
      );
      expect(found).to.deep.nested.include({ "result.outcome": "completed" });
    });

    it("fails refunds of tok_refund_failed, and loses the first answer for tok_refund_timeout", async () => {
      await gateway.charge(chargeOf("a1", "tok_refund_failed", 100n), patient);
      expect(await gateway.refund(refundOf("r1", "a1", 60n), patient)).to.deep.nested.include({
        "result.outcome": "failed",
        "result.reason": "refund_declined",
      });
      await gateway.charge(chargeOf("a2", "tok_refund_timeout", 100n), patient);
      const { answer, runOut } = startUntimed(() => gateway.refund(refundOf("r2", "a2", 60n), patient));
      await eventually(
        () => gateway.lookupRefund(refundOf("r2", "a2", 60n), patient),
        (lookup) => lookup.kind === "found",
      );
      runOut();
      expect(await answer).to.include({ kind: "unknown", cause: "timeout" });
      expect(await gateway.refund(refundOf("r2", "a2", 60n), patient)).to.deep.nested.include({
        "result.outcome": "completed",
      });
    });

    it("frees the amount of a completed refund that the bank sends back", async () => {
      await gateway.charge(chargeOf("a1", "tok_visa", 100n), patient);
      await gateway.refund(refundOf("r1", "a1", 100n), patient);
      expect((await post(`${sandbox.url}/sandbox-primary/refunds/r1/fail`)).status).to.equal(200);
      expect(await gateway.lookupRefund(refundOf("r1", "a1", 100n), patient)).to.deep.nested.include({
        "result.outcome": "failed",
        "result.reason": "returned_by_bank",
      });
      expect(await gateway.refund(refundOf("r2", "a1", 100n), patient)).to.deep.nested.include({
        "result.outcome": "completed",
      });
    });

    it("keeps disputed money from being refunded until the dispute is won", async () => {
      await gateway.charge(chargeOf("a1", "tok_visa", 100n), patient);
      const opened = await post(`${sandbox.url}/sandbox-primary/charges/a1/disputes`, { amount_minor: 70 });
      const { id } = opened.json["dispute"] as { id: string };
      expect(await gateway.refund(refundOf("r1", "a1", 31n), patient)).to.deep.nested.include({
        "result.outcome": "failed",
      });
      expect((await post(`${sandbox.url}/sandbox-primary/charges/a1/disputes`, { amount_minor: 31 })).status).to.equal(
        422,
      );
      expect((await post(`${sandbox.url}/sandbox-primary/disputes/${id}/win`)).status).to.equal(200);
      expect((await post(`${sandbox.url}/sandbox-primary/disputes/${id}/win`)).status, "again").to.equal(200);
      expect((await post(`${sandbox.url}/sandbox-primary/disputes/${id}/lose`)).status, "the other").to.equal(409);
      expect(await gateway.refund(refundOf("r2", "a1", 100n), patient)).to.deep.nested.include({
        "result.outcome": "completed",
      });
    });
  });

  describe("durable memory", () => {
    it("keeps every acknowledged charge, void and refund when it is killed in the middle of many", async () => {
      const dataDir = await temporaryFolder();
      const first = await startChild(dataDir, { lateMs: neverMs });
      const before = gatewayAt(first.url);
      await before.void({ reference: "buried" }, patient);
      await giveUp(first, before, chargeOf("late", "tok_late_capture"));
      const acknowledged: string[] = [];
      const refunded: string[] = [];
      let running = true;
      const client = async (name: string): Promise<void> => {
        for (let index = 0; running; index += 1) {
          const reference = `${name}-${index}`;
          const answer = await before.charge(chargeOf(reference, "tok_visa"), patient);
          if (answer.kind !== "executed") return;
          acknowledged.push(reference);
          const refund = await before.refund(refundOf(`refund-${reference}`, reference, 1n), patient);
          if (refund.kind !== "executed") return;
          refunded.push(reference);
        }
      };
      const clients = Array.from({ length: 8 }, (_, index) => client(`c${index}`));
      await eventually(
        () => refunded.length,
        (count) => count >= 200,
      );
      await kill(first.child, "SIGKILL");
      running = false;
      await Promise.all(clients);

      const second = await startChild(dataDir);
      const charges = new Map((await listCharges(second)).map((charge) => [charge.reference, charge]));
      const lost = acknowledged.filter((reference) => charges.get(reference)?.captured_minor !== 1_099);
      expect(lost, "acknowledged charges that are gone").to.deep.equal([]);
      const lostRefunds = refunded.filter((reference) => charges.get(reference)?.refunded_minor !== 1);
      expect(lostRefunds, "acknowledged refunds that are gone").to.deep.equal([]);
      expect(charges.get("buried")?.state).to.equal("voided");
      const after = gatewayAt(second.url);
      expect(await after.charge(chargeOf("buried", "tok_visa"), patient)).to.include({ cause: "voided" });
      const late = await eventually(
        () => after.lookup({ reference: "late" }, patient),
        (lookup) => lookup.kind === "found",
      );
      expect(late).to.deep.nested.include({ "charge.outcome": "captured" });
    });

    it("cuts off a torn end of its journal and goes on behind it", async () => {
      const dataDir = await temporaryFolder();
      const first = await start({ dataDir });
      await gatewayAt(first.url).charge(chargeOf("a1", "tok_visa"), patient);
      await first.close();
      await appendFile(join(dataDir, "sandbox.jsonl"), '{"charge":{"gateway":"sandbox-pri');
      const second = await start({ dataDir });
      await gatewayAt(second.url).charge(chargeOf("a2", "tok_visa"), patient);
      await second.close();
      const third = await start({ dataDir });
      expect((await listCharges(third)).map((charge) => charge.reference)).to.deep.equal(["a1", "a2"]);
    });

    it("refuses to start on a journal that is damaged before its end, and leaves it as it is", async () => {
      const dataDir = await temporaryFolder();
      const path = join(dataDir, "sandbox.jsonl");
      const first = await start({ dataDir });
      await gatewayAt(first.url).charge(chargeOf("a1", "tok_visa"), patient);
      await first.close();
      const damaged = `not json\n${await readFile(path, "utf8")}`;
      await writeFile(path, damaged);
      const failure = await start({ dataDir }).catch((error: Error) => error);
      expect(failure)
        .to.be.an("error")
        .with.property("message")
        .that.matches(/damaged at byte 0/);
      expect(await readFile(path, "utf8")).to.equal(damaged);
    });

    it("makes its journal small again at start without losing anything", async () => {
      const dataDir = await temporaryFolder();
      const path = join(dataDir, "sandbox.jsonl");
      const first = await start({ dataDir });
      const before = gatewayAt(first.url);
      await before.charge(chargeOf("a1", "tok_visa"), patient);
      await before.refund(refundOf("r1", "a1", 9n), patient);
      await first.close();
      const lines = await readFile(path, "utf8");
      await writeFile(path, lines.repeat(2_000));
      const grown = (await stat(path)).size;
      const second = await start({ dataDir });
      expect((await stat(path)).size).to.be.below(grown / 1_000);
      expect(await onlyCharge(second)).to.include({
        captured_minor: 1_099,
        refunded_minor: 9,
      });
    });

    it("lets one sandbox at a time use a folder, and says so", async () => {
      const dataDir = await temporaryFolder();
      const sentence = "Another sandbox uses the folder";
      const first = await start({ dataDir });
      const inOneProcess = await start({ dataDir }).catch((error: Error) => error);
      expect(inOneProcess).to.be.an("error").with.property("message").that.includes(sentence);
      await first.close();
      const { child } = await startChild(dataDir);
      const inAnother = await start({ dataDir }).catch((error: Error) => error);
      expect(inAnother).to.be.an("error").with.property("message").that.includes(sentence);
      await kill(child, "SIGKILL");
      expect((await fetch(`${(await start({ dataDir })).url}/health`)).status).to.equal(200);
    });
  });

  describe("as a program", () => {
    it("prints one line with its address, and ends cleanly on SIGTERM", async () => {
      const dataDir = await temporaryFolder();
      const { child, url } = await startChild(dataDir);
      expect((await fetch(`${url}/health`)).status).to.equal(200);
      const hanging = gatewayAt(url).charge(chargeOf("a1", "tok_timeout_captured"), patient);
      await eventually(
        () => stateOf({ url }, "a1"),
        (state) => state !== undefined,
      );
      await kill(child, "SIGTERM");
      expect(child.exitCode).to.equal(0);
      expect(await hanging).to.include({ kind: "unknown", cause: "connection_lost" });
      const again = await start({ dataDir });
      expect(await onlyCharge(again)).to.include({ reference: "a1", state: "captured" });
    });

    it("ends when the program that started it is gone", async () => {
      const { child } = await startChild(await temporaryFolder());
      const exited = once(child, "exit");
      child.stdin?.end();
      expect(await exited).to.deep.equal([0, null]);
    });

    it("says in one sentence that its port is taken, and by which setting to change it", async () => {
      const { port } = await start();
      const output = new PassThrough();
      const dataDir = await temporaryFolder();
      const failure = await runSandbox({ port, dataDir, log, output }).catch((error: Error) => error);
      expect(failure)
        .to.be.instanceOf(SandboxStartError)
        .with.property(
          "message",
          `Port ${port} is taken: stop the program that uses it, or set SANDBOX_PORT to a free one.`,
        );
      expect(output.read()).to.equal(null);
    });
  });

  describe("hostile requests", () => {
    const hostile: [string, string][] = [
      ["bytes that are no HTTP", "\u0000\u0001\u0002\r\n\r\n"],
      ["a body that is no JSON", request("POST /sandbox-primary/charges", "{")],
      ["a body that is null", request("POST /sandbox-primary/charges", "null")],
      ["a body with unknown members", request("POST /sandbox-primary/charges", '{"__proto__":{"a":1},"x":1}')],
      [
        "a refund of a fraction",
        request("POST /sandbox-primary/refunds", '{"key":"k","reference":"a","amount_minor":0.5}'),
      ],
      [
        "a body of its own length",
        "POST /sandbox-primary/charges HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n",
      ],
      ["two lengths", "POST /charges HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"],
      ["a path that cannot be decoded", request("GET /sandbox-primary/charges/%E0%A4%A", "")],
      ["a path upwards", request("GET /sandbox-primary/../../etc/passwd", "")],
      ["an inherited name as path", request("GET /sandbox-primary/constructor", "")],
      ["an asterisk", request("OPTIONS *", "")],
      ["a tunnel", "CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n"],
      ["an upgrade", "GET /charges HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"],
      ["an unknown expectation", "GET /charges HTTP/1.1\r\nhost: x\r\nexpect: the-worst\r\n\r\n"],
      ["no host", "GET /charges HTTP/1.1\r\n\r\n"],
      ["headers without end", `GET /charges HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(100_000)}`],
      ["HTTP/2 at once", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
      ["a TLS handshake", "\u0016\u0003\u0001\u0002\u0000\u0001\u0000\u0001"],
    ];

    function request(line: string, body: string): string {
      return `${line} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    }

    it("outlives every odd request", async () => {
      const sandbox = await start();
      for (const [name, bytes] of hostile) {
        const socket = connect(sandbox.port, "127.0.0.1");
        socket.on("error", () => undefined);
        socket.write(bytes, "latin1");
        await Promise.race([once(socket, "data"), once(socket, "close"), sleep(300)]);
        socket.destroy();
        const health = await fetch(`${sandbox.url}/health`).catch((error: Error) => error);
        expect(health, `after ${name}`).to.have.property("status", 200);
      }
    });

    it("answers JSON errors: 400, 403, 404, 405, 413 and 414", async () => {
      const { url } = await start();
      const primary = `${url}/sandbox-primary`;
      const code = ({ status, json }: Awaited<ReturnType<typeof post>>): string =>
        `${status} ${(json["error"] as { code: string }).code}`;
      expect(code(await post(`${primary}/charges`, "{"))).to.equal("400 malformed_json");
      expect(code(await post(`${primary}/charges`, { reference: "a" }))).to.equal("400 invalid_request");
      expect(code(await post(`${primary}/charges`, "x".repeat(20_000)))).to.equal("413 body_too_large");
      expect(code(await post(`${url}/nowhere`))).to.equal("404 unknown_path");
      expect(code(await post(`${url}/sandbox-primary/charges/a/b/c`))).to.equal("404 unknown_path");
      expect(code(await post(`${url}/charges`))).to.equal("405 method_not_allowed");
      expect(code(await post(`${primary}/refunds/r1`))).to.equal("405 method_not_allowed");
      expect(code(await post(`${primary}/charges?${"q".repeat(2_000)}`))).to.equal("414 address_too_long");
      const page = await fetch(`${primary}/charges/a/void`, {
        method: "POST",
        headers: { origin: "http://evil.example" },
      });
      expect(page.status).to.equal(403);
    });
  });

  describe("adapter", () => {
    const respond = (status: number, body: string, headers = {}): RequestListener => {
      return (_request: IncomingMessage, response: ServerResponse) => {
        response.writeHead(status, headers);
        response.end(body);
      };
    };

    it("proves a refused connection not executed, and a lookup or void without one unknown", async () => {
      const gateway = gatewayAt(nowhere);
      const answer = await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      expect(answer).to.include({ kind: "not_executed", cause: "connection_failed", proves: "this_send" });
      expect(answer).to.have.property("detail").that.includes("ECONNREFUSED");
      expect(await gateway.refund(refundOf("r1", "a1", 1n), patient)).to.include({ kind: "not_executed" });
      expect(await gateway.lookup({ reference: "a1" }, patient)).to.include({ kind: "unknown", cause: "not_sent" });
      expect(await gateway.void({ reference: "a1" }, patient)).to.include({ kind: "unknown", cause: "not_sent" });
    });

    it("proves a name with several refused addresses not executed", async () => {
      const gateway = gatewayAt("http://localhost:1");
      expect(await gateway.charge(chargeOf("a1", "tok_visa"), patient)).to.include({ cause: "connection_failed" });
    });

    const unknowns: [string, RequestListener, string][] = [
      ["a connection that ends after the request", (incoming) => incoming.socket.destroy(), "connection_lost"],
      [
        "an answer that ends in the middle",
        (_incoming, response) => {
          response.writeHead(200, { "content-length": 1_000 });
          response.write('{"charge":', () => response.destroy());
        },
        "connection_lost",
      ],
      ["a bare 503", respond(503, "<html>Service Unavailable</html>"), "gateway_error"],
      ["a bare 429", respond(429, ""), "gateway_error"],
      ["a 503 with the code of a 429", respond(503, '{"error":{"code":"rate_limited","message":""}}'), "gateway_error"],
      ["a redirect", respond(302, "", { location: "http://127.0.0.1:1/" }), "gateway_error"],
      ["a bare 404", respond(404, "not here"), "gateway_error"],
      ["a success of no form", respond(200, "{}"), "malformed_answer"],
      ["a success that is no JSON", respond(200, "\u0000"), "malformed_answer"],
      ["a success without end", respond(200, "x".repeat(70_000)), "malformed_answer"],
      [
        "another charge than the one sent",
        respond(200, JSON.stringify({ charge: wireCharge("b2") })),
        "malformed_answer",
      ],
      [
        "a charge of the other gateway",
        respond(200, JSON.stringify({ charge: { ...wireCharge("a1"), gateway: "sandbox-backup" } })),
        "malformed_answer",
      ],
      [
        "a capture of nothing",
        respond(200, JSON.stringify({ charge: { ...wireCharge("a1"), captured_minor: 0 } })),
        "malformed_answer",
      ],
      [
        "a capture of an inexact amount",
        respond(200, JSON.stringify({ charge: wireCharge("a1") }).replace("1099", "9007199254740993")),
        "malformed_answer",
      ],
    ];

    function everyCall(gateway: Gateway): (() => Promise<object>)[] {
      return [
        () => gateway.charge(chargeOf("a1", "tok_visa"), patient),
        () => gateway.lookup({ reference: "a1" }, patient),
        () => gateway.void({ reference: "a1" }, patient),
        () => gateway.refund(refundOf("r1", "a1", 1n), patient),
        () => gateway.lookupRefund(refundOf("r1", "a1", 1n), patient),
      ];
    }

    for (const [name, handler, cause] of unknowns) {
      it(`takes ${name} for unknown (${cause}), in every call`, async () => {
        const gateway = gatewayAt(await fakeServer(handler));
        for (const call of everyCall(gateway)) expect(await call()).to.include({ kind: "unknown", cause });
      });
    }

    it("takes an answer that drips without end for unknown (timeout), in every call", async () => {
      let dripped = (): void => undefined;
      const url = await fakeServer((_incoming, response) => {
        let drops = 0;
        const onDrop = (): void => {
          drops += 1;
          if (drops === 3) dripped();
        };
        const timer = setInterval(() => response.write(" ", onDrop), 1);
        response.on("close", () => clearInterval(timer));
      });
      for (const call of everyCall(gatewayAt(url))) {
        const { answer, runOut } = startUntimed(call);
        dripped = runOut;
        expect(await answer).to.include({ kind: "unknown", cause: "timeout" });
      }
    });

    it("takes a capture told as answer to a void that is no refusal for malformed, never for proof", async () => {
      const gateway = gatewayAt(await fakeServer(respond(200, JSON.stringify({ charge: wireCharge("a1") }))));
      expect(await gateway.void({ reference: "a1" }, patient)).to.include({
        kind: "unknown",
        cause: "malformed_answer",
      });
    });

    it("sends nothing when no time is left or the caller has aborted before", async () => {
      let requests = 0;
      const url = await fakeServer((_incoming, response) => {
        requests += 1;
        response.end("{}");
      });
      const gateway = gatewayAt(url);
      for (const timeoutMs of [0, -1, Number.NaN]) {
        expect(await gateway.charge(chargeOf("a1", "tok_visa"), { timeoutMs })).to.include({
          kind: "not_executed",
          cause: "timeout",
        });
      }
      const aborted = { ...patient, signal: AbortSignal.abort() };
      expect(await gateway.charge(chargeOf("a1", "tok_visa"), aborted)).to.include({
        kind: "not_executed",
        cause: "aborted",
      });
      expect(requests).to.equal(0);
    });

    it("takes an abort after sending for unknown", async () => {
      const abort = new AbortController();
      const gateway = gatewayAt(await fakeServer(() => abort.abort()));
      const answer = await gateway.charge(chargeOf("a1", "tok_visa"), { ...patient, signal: abort.signal });
      expect(answer).to.include({ kind: "unknown", cause: "aborted" });
    });

    it("proves a charge not executed that never got a connection within its time", async () => {
      const gateway = gatewayAt((await start()).url);
      const end = new AbortController();
      const holders = Array.from({ length: 256 }, (_, index) =>
        gateway.charge(chargeOf(`hold-${index}`, "tok_timeout"), { ...patient, signal: end.signal }),
      );
      const answer = await gateway.charge(chargeOf("a1", "tok_visa"), impatient);
      expect(answer).to.include({ kind: "not_executed", cause: "timeout", proves: "this_send" });
      end.abort();
      await Promise.all(holders);
      expect(await gateway.charge(chargeOf("a1", "tok_visa"), patient)).to.include({ kind: "executed" });
    });

    it("uses its connections again", async () => {
      const ports = new Set<number | undefined>();
      const url = await fakeServer((incoming, response) => {
        ports.add(incoming.socket.remotePort);
        response.end(JSON.stringify({ charge: wireCharge("a1") }));
      });
      const gateway = gatewayAt(url);
      for (let index = 0; index < 10; index += 1) await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      expect(ports.size).to.equal(1);
    });

    it("finds its way back after the sandbox was started anew", async () => {
      const dataDir = await temporaryFolder();
      const first = await start({ dataDir });
      const gateway = gatewayAt(first.url);
      await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      await first.close();
      // The end of the kept connection may not be here yet, and a request over it is lost.
      const away = await eventually(
        () => gateway.charge(chargeOf("a2", "tok_visa"), patient),
        (answer) => answer.kind === "not_executed",
      );
      expect(away).to.include({ kind: "not_executed", cause: "connection_failed" });
      await startOnFreedPort({ dataDir, port: first.port });
      expect(await gateway.lookup({ reference: "a1" }, patient)).to.include({ kind: "found" });
    });

    it("refuses addresses and secrets that it could not use", () => {
      for (const baseUrl of ["https://127.0.0.1:1", "127.0.0.1:8081", "", "http://127.0.0.1:1/path", "http://u@h:1"]) {
        expect(() => createSandboxGateway({ name: "sandbox-primary", baseUrl }), baseUrl).to.throw(TypeError);
      }
      const short = { name: "sandbox-primary", baseUrl: "http://127.0.0.1:1", webhookSecret: "short" } as const;
      expect(() => createSandboxGateway(short)).to.throw(TypeError);
    });
  });

  describe("webhooks", () => {
    const parser = (): Gateway => gatewayAt("http://127.0.0.1:1");
    const now = new Date("2026-03-01T12:00:00.500Z");
    const genuineBody = JSON.stringify({
      id: "evt_1",
      type: "charge.captured",
      gateway: "sandbox-backup",
      create_time: "2026-03-01T11:59:00.000Z",
      charge: wireCharge("a1"),
    });

    function signed(body: string, sentAt = now, secret = webhookSecret): WebhookRequest {
      return { headers: { "sandbox-signature": signWebhook(secret, body, sentAt) }, body: Buffer.from(body), now };
    }

    it("accepts a genuine event and reads it in the port's terms", () => {
      expect(parser().parseWebhook(signed(genuineBody))).to.deep.equal({
        kind: "accepted",
        events: [
          {
            type: "charge_captured",
            id: "evt_1",
            gateway: "sandbox-backup",
            occurTime: new Date("2026-03-01T11:59:00.000Z"),
            reference: "a1",
            result: {
              outcome: "captured",
              transactionId: "txn_1",
              captured: { currency: "USD", minor: 1_099n },
              responseCode: "00",
            },
          },
        ],
      });
    });

    it("refuses forged signatures of every kind", () => {
      const genuine = signed(genuineBody);
      const header = String(genuine.headers["sandbox-signature"]);
      const forgeries: [string, WebhookRequest][] = [
        ["another secret", signed(genuineBody, now, "another-secret-of-length")],
        ["another body", { ...genuine, body: Buffer.from(genuineBody.replace("1099", "9999")) }],
        ["another time", { ...genuine, headers: { "sandbox-signature": header.replace(/t=\d/, "t=2") } }],
        ["no header", { ...genuine, headers: {} }],
        ["two headers", { ...genuine, headers: { "sandbox-signature": [header, header] } }],
        ["a cut digest", { ...genuine, headers: { "sandbox-signature": header.slice(0, -2) } }],
        ["an endless header", { ...genuine, headers: { "sandbox-signature": header + "0".repeat(10_000) } }],
      ];
      for (const [name, forgery] of forgeries) {
        expect(parser().parseWebhook(forgery), name).to.include({ kind: "refused", cause: "forged" });
      }
    });

    it("refuses a genuine event from outside the replay window, old or of the future", () => {
      const at = (offsetMs: number) => parser().parseWebhook(signed(genuineBody, new Date(now.getTime() + offsetMs)));
      expect(at(-299_000)).to.include({ kind: "accepted" });
      expect(at(299_000)).to.include({ kind: "accepted" });
      expect(at(-301_000)).to.include({ kind: "refused", cause: "stale" });
      expect(at(302_000)).to.include({ kind: "refused", cause: "stale" });
    });

    it("refuses what is signed but malformed, and ignores types it does not know", () => {
      const withoutSubject = genuineBody.replace('"charge":', '"other":');
      for (const body of ["", "{", "null", "{}", withoutSubject, " ".repeat(70_000)]) {
        const verdict = parser().parseWebhook(signed(body));
        expect(verdict, body.slice(0, 40)).to.include({ kind: "refused", cause: "malformed" });
      }
      const unknownType = genuineBody.replace("charge.captured", "charge.blessed");
      expect(parser().parseWebhook(signed(unknownType))).to.deep.nested.include({
        "events[0].type": "ignored",
        "events[0].vendorType": "charge.blessed",
      });
    });

    it("refuses everything without a secret", () => {
      const gateway = createSandboxGateway({ name: "sandbox-primary", baseUrl: "http://127.0.0.1:1" });
      expect(gateway.parseWebhook(signed(genuineBody))).to.include({ kind: "refused", cause: "unconfigured" });
    });

    /** A receiver that answers the given statuses first, then 200, and keeps the events that it took. */
    async function receiver(statuses: number[] = []): Promise<{ url: string; types: string[]; ids: string[] }> {
      const types: string[] = [];
      const ids: string[] = [];
      const gateway = parser();
      const url = await fakeServer((incoming, response) => {
        const chunks: Buffer[] = [];
        incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
        incoming.on("end", () => {
          const verdict = gateway.parseWebhook({
            headers: incoming.headers,
            body: Buffer.concat(chunks),
            now: new Date(),
          });
          const status = verdict.kind === "refused" ? 400 : (statuses.shift() ?? 200);
          if (status === 200 && verdict.kind === "accepted") {
            for (const event of verdict.events) {
              types.push(event.type);
              ids.push(event.id);
            }
          }
          response.writeHead(status).end();
        });
      });
      return { url, types, ids };
    }

    it("tells of captures, declines, voids, refunds and disputes, signed", async () => {
      const { url, types, ids } = await receiver();
      const sandbox = await start({ webhook: { url, secret: webhookSecret, firstRetryMs: 5 } });
      const gateway = gatewayAt(sandbox.url);
      await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      await gateway.charge(chargeOf("a2", "tok_declined"), patient);
      await gateway.void({ reference: "a3" }, patient);
      await gateway.refund(refundOf("r1", "a1", 99n), patient);
      await post(`${sandbox.url}/sandbox-primary/refunds/r1/fail`);
      for (const verdict of ["win", "lose"]) {
        const opened = await post(`${sandbox.url}/sandbox-primary/charges/a1/disputes`);
        const { id } = opened.json["dispute"] as { id: string };
        await post(`${sandbox.url}/sandbox-primary/disputes/${id}/${verdict}`);
      }
      const expected = [
        "charge_captured",
        "charge_declined",
        "charge_voided",
        "dispute_lost",
        "dispute_opened",
        "dispute_opened",
        "dispute_won",
        "refund_completed",
        "refund_failed",
      ];
      await eventually(
        () => types.length,
        (count) => count >= expected.length,
      );
      expect([...types].sort()).to.deep.equal(expected);
      expect(new Set(ids).size, "each event has an id of its own").to.equal(expected.length);
    });

    /** Waits until the sandbox has noted that so many events need no more sending. */
    async function untilOver(dataDir: string, events: number): Promise<void> {
      const over = await eventually(
        async () => (await readFile(join(dataDir, "sandbox.jsonl"), "utf8")).split('"delivered"').length - 1,
        (count) => count >= events,
      );
      expect(over, "events that need no more sending").to.equal(events);
    }

    it("sends an event again until it is taken, and not after that", async () => {
      const dataDir = await temporaryFolder();
      const { url, types } = await receiver([500, 503, 302]);
      const sandbox = await start({ dataDir, webhook: { url, secret: webhookSecret, firstRetryMs: 5 } });
      const gateway = gatewayAt(sandbox.url);
      await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      await untilOver(dataDir, 1);
      await gateway.charge(chargeOf("a2", "tok_declined"), patient);
      await untilOver(dataDir, 2);
      expect(types).to.deep.equal(["charge_captured", "charge_declined"]);
    });

    it("gives an event up after its attempts, and goes on with others", async () => {
      const dataDir = await temporaryFolder();
      const { url, types } = await receiver([500, 500]);
      const webhook = { url, secret: webhookSecret, firstRetryMs: 1, maxAttempts: 2 };
      const gateway = gatewayAt((await start({ dataDir, webhook })).url);
      await gateway.charge(chargeOf("a1", "tok_visa"), patient);
      await untilOver(dataDir, 1);
      await gateway.charge(chargeOf("a2", "tok_declined"), patient);
      await untilOver(dataDir, 2);
      expect(types).to.deep.equal(["charge_declined"]);
    });

    it("keeps events over a restart until they are taken, and sends none twice that were", async () => {
      const dataDir = await temporaryFolder();
      const first = await start({ dataDir, webhook: { url: nowhere, secret: webhookSecret } });
      await gatewayAt(first.url).charge(chargeOf("a1", "tok_visa"), patient);
      await first.close();
      const { url, types } = await receiver();
      const second = await start({ dataDir, webhook: { url, secret: webhookSecret } });
      await untilOver(dataDir, 1);
      await second.close();
      const third = await start({ dataDir, webhook: { url, secret: webhookSecret } });
      await gatewayAt(third.url).charge(chargeOf("a2", "tok_declined"), patient);
      await untilOver(dataDir, 2);
      expect(types).to.deep.equal(["charge_captured", "charge_declined"]);
    });
  });
});

/** A captured charge as the sandbox writes it. */
function wireCharge(reference: string) {
  return {
    gateway: "sandbox-primary",
    reference,
    token: "tok_visa",
    amount_minor: 1_099,
    currency: "USD",
    state: "captured",
    captured_minor: 1_099,
    refunded_minor: 0,
    disputed_minor: 0,
    transaction_id: "txn_1",
    response_code: "00",
    decline_reason: "",
    create_time: "2026-03-01T11:59:00.000Z",
  };
}

function bigintText(_key: string, value: unknown): unknown {
  return typeof value === "bigint" ? value.toString() : value;
}
