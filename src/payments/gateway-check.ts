import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { type Comparison, compareCharge, compareRefund } from "./agreement.ts";
import type { BookedCharge, BookedRange, BookedRefund, GatewayCheckStore } from "./gateway-check-store.ts";
import type { Gateway, GatewayCallOptions, GatewayName, Unknown } from "./gateways/gateway.ts";

/** How much is read and asked at once, and how patiently. */
interface GatewayCheckLimits {
  readonly pageSize: number;
  /** Questions under way at once. */
  readonly width: number;
  /** For one question, all of it. */
  readonly timeoutMs: number;
  /** A question without an answer is put once more, after this. */
  readonly pauseMs: number;
  /** After so many rows in a row without an answer a gateway is not asked any more. */
  readonly maxSilences: number;
}

const LIMITS: GatewayCheckLimits = { pageSize: 200, width: 4, timeoutMs: 10_000, pauseMs: 500, maxSilences: 8 };
/** How often a row is read that changes while its gateway is asked about it. */
const MAX_ROUNDS = 3;
/** Of these a second question may come to more; that a question could not be put, the adapter knows for certain. */
const PASSING: ReadonlySet<Unknown["cause"]> = new Set(["timeout", "connection_lost", "gateway_error"]);

/** What the gateways of the settings are: one that cannot be reached has the reason in its place. */
export type ReachedGateways = ReadonlyMap<GatewayName, Gateway | Error>;

interface GatewayCheckDeps {
  readonly store: GatewayCheckStore;
  readonly gateways: ReachedGateways;
  readonly now: () => Date;
}

interface GatewayCheckOptions extends BookedRange {
  /** Takes each difference as it is found: there is no bound to how many there are. */
  readonly tell: (difference: Difference) => void;
  /** Rows that are done, after each page. */
  readonly progress?: (done: number) => void;
  readonly limits?: Partial<GatewayCheckLimits>;
}

/** One movement of which our books and its gateway do not say the same. */
export interface Difference {
  readonly paymentId: string;
  /** The charge or refund, by its key at the gateway. */
  readonly movement: string;
  readonly gateway: GatewayName;
  /** The gateway has decided what is open in our books, and they may still learn of it. */
  readonly underWay: boolean;
  readonly books: string;
  readonly gatewaySays: string;
}

/** What came of asking one gateway, in charges and refunds. */
export interface GatewayTally {
  readonly gateway: GatewayName;
  readonly agreeing: number;
  readonly disagreeing: number;
  readonly underWay: number;
  readonly unanswered: number;
  /** Why the first of these were not answered. */
  readonly why: string;
}

/** One thing to ask a gateway about, again where our books have changed meanwhile. */
interface Question<Row> {
  readonly movement: string;
  readonly row: Row & { readonly id: string; readonly paymentId: string; readonly gateway: GatewayName };
  readonly ask: (row: Row, now: Date) => Promise<Comparison>;
  readonly again: () => Promise<Question<Row>["row"] | undefined>;
}

/**
 * Asks the gateways about every charge and refund of the range, and compares. It only asks: nothing is sent that could
 * move money or change a word of theirs, and nothing is written. What a gateway does not answer is counted, not guessed.
 */
export async function checkGateways(deps: GatewayCheckDeps, options: GatewayCheckOptions): Promise<GatewayTally[]> {
  const check = new GatewayCheck(deps, options);
  await check.charges();
  await check.refunds();
  return check.tallies;
}

class GatewayCheck {
  readonly #deps: GatewayCheckDeps;
  readonly #options: GatewayCheckOptions;
  readonly #limits: GatewayCheckLimits;
  readonly #asked = new Map<GatewayName, AskedGateway>();
  #done = 0;

  constructor(deps: GatewayCheckDeps, options: GatewayCheckOptions) {
    this.#deps = deps;
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
  }

  get tallies(): GatewayTally[] {
    return [...this.#asked].map(([gateway, { tally }]) => ({ gateway, ...tally }));
  }

  charges(): Promise<void> {
    const { store } = this.#deps;
    return this.#pages(
      (after) => store.charges(this.#options, this.#limits.pageSize, after),
      (row) =>
        this.#pursue({
          movement: `charge ${row.id}`,
          row,
          ask: (charge, now) => this.#askCharge(charge, now),
          again: () => store.charge(row.id),
        }),
    );
  }

  refunds(): Promise<void> {
    const { store } = this.#deps;
    return this.#pages(
      (after) => store.refunds(this.#options, this.#limits.pageSize, after),
      (row) =>
        this.#pursue({
          movement: `refund ${row.id}`,
          row,
          ask: (refund, now) => this.#askRefund(refund, now),
          again: () => store.refund(row.id),
        }),
    );
  }

  async #pages<Row extends { readonly id: string }>(
    read: (after: string | undefined) => Promise<Row[]>,
    work: (row: Row) => Promise<void>,
  ): Promise<void> {
    let after: string | undefined;
    for (;;) {
      const page = await read(after);
      await forEach(page, this.#limits.width, work);
      this.#done += page.length;
      if (page.length > 0) this.#options.progress?.(this.#done);
      if (page.length < this.#limits.pageSize) return;
      after = page.at(-1)?.id;
    }
  }

  /** A service at work changes its books while gateways are asked: only a row that has stayed the same differs. */
  async #pursue<Row>({ movement, row: first, ask, again }: Question<Row>): Promise<void> {
    let row = first;
    for (let round = 1; ; round++) {
      const comparison = await ask(row, this.#deps.now());
      if (!isDifference(comparison)) return this.#note(movement, row, comparison);
      const now = await again();
      if (now === undefined || isDeepStrictEqual(now, row)) return this.#note(movement, row, comparison);
      if (round === MAX_ROUNDS) return this.#note(movement, row, { ...comparison, kind: "under_way" });
      row = now;
    }
  }

  #note(
    movement: string,
    { paymentId, gateway }: { readonly paymentId: string; readonly gateway: GatewayName },
    comparison: Comparison,
  ): void {
    this.#gateway(gateway).note(comparison);
    if (!isDifference(comparison)) return;
    const { books, gateway: gatewaySays } = comparison;
    this.#options.tell({ paymentId, movement, gateway, underWay: comparison.kind === "under_way", books, gatewaySays });
  }

  async #askCharge(charge: BookedCharge, now: Date): Promise<Comparison> {
    // By its own id a gateway finds also what its search does not, and what is older than the keys that it keeps.
    const gatewayReference = charge.gatewayReference || charge.transactionId;
    const attempt = { reference: charge.id, ...(gatewayReference !== "" && { gatewayReference }) };
    const answer = await this.#gateway(charge.gateway).ask((gateway, bounds) => gateway.lookup(attempt, bounds));
    return compareCharge(charge, answer, now);
  }

  async #askRefund(refund: BookedRefund, now: Date): Promise<Comparison> {
    const {
      id: key,
      attemptId: reference,
      chargeTransactionId: transactionId,
      transactionId: refundTransactionId,
    } = refund;
    const named = { key, reference, transactionId, ...(refundTransactionId !== "" && { refundTransactionId }) };
    const answer = await this.#gateway(refund.gateway).ask((gateway, bounds) => gateway.lookupRefund(named, bounds));
    return compareRefund(refund, answer, now);
  }

  #gateway(name: GatewayName): AskedGateway {
    const known = this.#asked.get(name);
    if (known !== undefined) return known;
    const asked = new AskedGateway(this.#deps.gateways.get(name), this.#limits);
    this.#asked.set(name, asked);
    return asked;
  }
}

/** A gateway that is asked until it is plain that it does not answer. */
class AskedGateway {
  readonly tally = { agreeing: 0, disagreeing: 0, underWay: 0, unanswered: 0, why: "" };
  readonly #gateway: Gateway | Error;
  readonly #limits: GatewayCheckLimits;
  #silences = 0;

  constructor(gateway: Gateway | Error | undefined, limits: GatewayCheckLimits) {
    this.#gateway = gateway ?? new Error("It is not one of the gateways of the settings.");
    this.#limits = limits;
  }

  async ask<A extends { readonly kind: string }>(
    question: (gateway: Gateway, bounds: GatewayCallOptions) => Promise<A | Unknown>,
  ): Promise<A | Unknown> {
    const gateway = this.#gateway;
    if (gateway instanceof Error) return { kind: "unknown", cause: "not_sent", detail: gateway.message };
    if (this.#silences >= this.#limits.maxSilences) {
      return {
        kind: "unknown",
        cause: "not_sent",
        detail: `It was not asked any more after ${this.#silences} questions.`,
      };
    }
    const { timeoutMs, pauseMs } = this.#limits;
    let answer = await question(gateway, { timeoutMs });
    if (isUnknown(answer) && PASSING.has(answer.cause)) {
      await sleep(pauseMs);
      answer = await question(gateway, { timeoutMs });
    }
    this.#silences = isUnknown(answer) ? this.#silences + 1 : 0;
    return answer;
  }

  note(comparison: Comparison): void {
    const { tally } = this;
    if (comparison.kind === "agrees") tally.agreeing++;
    else if (comparison.kind === "disagrees") tally.disagreeing++;
    else if (comparison.kind === "under_way") tally.underWay++;
    else {
      tally.unanswered++;
      tally.why ||= comparison.why;
    }
  }
}

function isDifference(comparison: Comparison): comparison is Extract<Comparison, { readonly books: string }> {
  return comparison.kind === "disagrees" || comparison.kind === "under_way";
}

function isUnknown(answer: { readonly kind: string }): answer is Unknown {
  return answer.kind === "unknown";
}

async function forEach<T>(items: readonly T[], width: number, work: (item: T) => Promise<void>): Promise<void> {
  const rest = items.values();
  await Promise.all(
    Array.from({ length: width }, async () => {
      for (const item of rest) await work(item);
    }),
  );
}
