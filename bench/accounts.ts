import { setTimeout as sleep } from "node:timers/promises";
import type { AccountTasks } from "./accounts-load.ts";
import type { Samples } from "./harness/load.ts";
import { LoadProcess, startServer } from "./harness/processes.ts";
import { print, publish, type Row } from "./harness/report.ts";
import { interleaved, median, percentFrom, quantile } from "./harness/stats.ts";

const LOAD = "accounts-load.ts";
/** Each is tried four times, so this many times four pairs are compared. */
const COMPARED_ACCOUNTS = 100;
const LANES = [1, 2, 3] as const;
const COMPARED_LANES = 2;
const LOGIN_CLIENTS = 16;
const BURST_CLIENTS = 64;
const PROFILE_RATE_PER_S = 50;
const ROUNDS = 5;
const ROUND_MS = 4_000;
const BURST_LEAD_MS = 500;

/** The figures of accounts: what a login costs and tells, and what it does to other calls. */
export async function accounts(): Promise<void> {
  const comparison = print({
    title: "A wrong password, one client: time until the refusal, ms",
    rows: await compareKnownAndUnknown(),
  });
  const throughput = print({
    title: `Good logins by ${LOGIN_CLIENTS} clients, and Argon2id alone`,
    rows: await compareWithBareArgon2(),
  });
  const latencies: ProfileFigures[] = [];
  for (const lanes of LANES) latencies.push(await profileUnderBurst(lanes));
  const profiles = print({
    title: `GetProfile ${PROFILE_RATE_PER_S} times a second, idle and during a burst of logins by ${BURST_CLIENTS} clients, ms`,
    rows: latencies.map(profileRow),
  });
  publish({
    bench: "accounts",
    tables: [comparison, throughput, profiles],
    chart: {
      title: "p99 of GetProfile by hashing lanes",
      unit: "ms",
      groups: latencies.map(({ lanes, idleP99, burstP99 }) => ({
        label: `${lanes} lane${lanes === 1 ? "" : "s"}`,
        bars: { idle: idleP99, "burst of logins": burstP99 },
      })),
    },
  });
}

async function compareKnownAndUnknown(): Promise<Row[]> {
  say("known and unknown emails");
  await using server = await startServer();
  await using load = new LoadProcess(LOAD);
  const { url } = server;
  const emails = await load.run<AccountTasks, "register">("register", { url, count: COMPARED_ACCOUNTS });
  const [known, unknown] = await load.run<AccountTasks, "compareLogins">("compareLogins", { url, emails });
  const row = (email: string, samples: Samples): Row => ({
    email,
    calls: samples.latenciesMs.length,
    median: median(samples.latenciesMs),
    p99: quantile(samples.latenciesMs, 0.99),
    "median, % from known": percentFrom(median(known.latenciesMs), median(samples.latenciesMs)),
    otherwise: othersOf(samples),
  });
  return [row("known", known), row("unknown", unknown)];
}

async function compareWithBareArgon2(): Promise<Row[]> {
  say("logins and Argon2id alone");
  const lanes = COMPARED_LANES;
  await using server = await startServer({ PASSWORD_HASH_LANES: String(lanes) });
  await using load = new LoadProcess(LOAD);
  const { url } = server;
  const emails = await load.run<AccountTasks, "register">("register", { url, count: LOGIN_CLIENTS });
  const logins = { url, emails, clients: LOGIN_CLIENTS, durationMs: ROUND_MS };
  const results = await interleaved<Samples>(
    [
      {
        name: `Argon2id alone, ${lanes} at a time`,
        run: () => load.run<AccountTasks, "verifyBare">("verifyBare", { lanes, durationMs: ROUND_MS }),
      },
      { name: `Login, ${lanes} lanes`, run: () => load.run<AccountTasks, "logIn">("logIn", logins) },
    ],
    ROUNDS,
  );
  const rates = [...results].map(([what, rounds]) => ({ what, perSecond: median(rounds.map(rateOf)), rounds }));
  const bare = rates[0]?.perSecond ?? Number.NaN;
  return rates.map(({ what, perSecond, rounds }) => ({
    what,
    "median/s": perSecond,
    "least/s": Math.min(...rounds.map(rateOf)),
    "most/s": Math.max(...rounds.map(rateOf)),
    "% of Argon2id alone": (perSecond / bare) * 100,
  }));
}

interface ProfileFigures {
  readonly lanes: number;
  readonly idleP50: number;
  readonly idleP99: number;
  readonly burstP50: number;
  readonly burstP99: number;
  readonly loginsPerSecond: number;
}

async function profileUnderBurst(lanes: number): Promise<ProfileFigures> {
  say(`GetProfile with ${lanes} hashing lanes`);
  await using server = await startServer({ PASSWORD_HASH_LANES: String(lanes) });
  await using readers = new LoadProcess(LOAD);
  await using attackers = new LoadProcess(LOAD);
  const { url } = server;
  const emails = await attackers.run<AccountTasks, "register">("register", { url, count: LOGIN_CLIENTS });
  const token = await readers.run<AccountTasks, "getToken">("getToken", { url, email: emails[0] ?? "" });
  const reads = { url, token, ratePerS: PROFILE_RATE_PER_S, durationMs: ROUND_MS };
  const read = () => readers.run<AccountTasks, "getProfile">("getProfile", reads);
  const loginRates: number[] = [];
  const burst = async () => {
    const durationMs = ROUND_MS + 2 * BURST_LEAD_MS;
    const logins = attackers.run<AccountTasks, "logIn">("logIn", { url, emails, clients: BURST_CLIENTS, durationMs });
    await sleep(BURST_LEAD_MS);
    const samples = await read();
    loginRates.push(rateOf(await logins));
    return samples;
  };
  await read();
  const results = await interleaved<Samples>(
    [
      { name: "idle", run: read },
      { name: "burst", run: burst },
    ],
    ROUNDS,
  );
  // One round has too few calls for a p99 of its own.
  const over = (name: string, q: number) =>
    quantile(
      (results.get(name) ?? []).flatMap(({ latenciesMs }) => latenciesMs),
      q,
    );
  return {
    lanes,
    idleP50: over("idle", 0.5),
    idleP99: over("idle", 0.99),
    burstP50: over("burst", 0.5),
    burstP99: over("burst", 0.99),
    loginsPerSecond: median(loginRates),
  };
}

function profileRow({ lanes, idleP50, idleP99, burstP50, burstP99, loginsPerSecond }: ProfileFigures): Row {
  return {
    lanes,
    "idle p50": idleP50,
    "idle p99": idleP99,
    "burst p50": burstP50,
    "burst p99": burstP99,
    "p99, times idle": burstP99 / idleP99,
    "logins/s": loginsPerSecond,
  };
}

function rateOf({ latenciesMs, elapsedMs }: Samples): number {
  return (latenciesMs.length / elapsedMs) * 1000;
}

function othersOf({ outcomes }: Samples): string {
  const others = Object.entries(outcomes).filter(([outcome]) => outcome !== "ok");
  return others.map(([outcome, count]) => `${count} ${outcome}`).join(", ") || "none";
}

function say(what: string): void {
  process.stderr.write(`measuring ${what} …\n`);
}
