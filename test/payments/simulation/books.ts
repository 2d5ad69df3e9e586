import { fromDecimal, toMinor } from "../../../src/money.ts";
import type { AttemptState, Payment, PaymentStatus } from "../../../src/payments/payment.ts";
import { sql, type TestDatabase } from "../../support/database.ts";
import { type HeldCharge, refundedMinorOf } from "./gateway.ts";

interface AttemptRow {
  readonly id: string;
  readonly number: number;
  readonly gateway: string;
  readonly state: AttemptState;
  readonly captured: string | null;
}

interface PaymentRow {
  readonly id: string;
  readonly order_id: string | null;
  readonly status: PaymentStatus;
  readonly risk_level: string | null;
  readonly currency: string;
  readonly amount: string;
  readonly refunded: string;
  readonly refunding: string;
  readonly refunds: string;
  readonly open_refunds: number;
  readonly attempts: readonly AttemptRow[];
}

interface OrderRow {
  readonly id: string;
  readonly status: string;
  readonly payment_state: string;
}

/** Every charge that a gateway holds, by the gateway's name and then by our reference. */
type Truth = ReadonlyMap<string, ReadonlyMap<string, HeldCharge>>;

/**
 * Every way in which a customer's books contradict themselves, the gateways, or what the customer was told; none when all
 * is well. Nothing may be under way any more.
 */
export async function faultsOfWorld(
  database: TestDatabase,
  customerId: string,
  truth: Truth,
  told: Iterable<Payment>,
): Promise<string[]> {
  const [rows] = await sql<{ payments: PaymentRow[]; orders: OrderRow[]; unbalanced: string[]; clearing: Clearing[] }>(
    database,
    BOOKS,
    [customerId],
  );
  if (rows === undefined) return ["the books cannot be read"];
  const { payments, orders, unbalanced, clearing } = rows;
  return [
    ...payments.flatMap((payment) => faultsOfPayment(payment, truth)),
    ...orders.flatMap((order) => faultsOfOrder(order, payments, truth)),
    ...unbalanced.map((movement) => `the ledger's movement ${movement} does not balance`),
    ...faultsOfClearing(clearing, truth),
    ...strayCharges(payments, truth),
    ...faultsOfWords(payments, told),
  ];
}

function faultsOfPayment(payment: PaymentRow, truth: Truth): string[] {
  const { id, status, attempts, amount, refunded, refunding, refunds, currency } = payment;
  const faults: string[] = [];
  const blame = (what: string) => faults.push(`payment ${id} (${status}): ${what}`);
  if (status === "PENDING") blame("nobody knows what became of it");
  const kept = attempts.filter(({ state }) => state === "CAPTURED");
  if (kept.length !== (status === "COMPLETED" ? 1 : 0)) blame(`${kept.length} attempts keep money`);
  if (kept.some(({ captured }) => captured !== amount)) blame("another amount was taken");
  if (payment.risk_level === null && attempts.some(({ captured }) => captured !== null)) blame("charged unscreened");
  if (["HIGH", "UNCHECKED"].includes(payment.risk_level ?? "") && attempts.some(({ captured }) => captured !== null))
    blame("charged as fraud");
  if (payment.open_refunds > 0 || Number(refunding) !== 0) blame("a refund is under way");
  if (refunded !== refunds || Number(refunded) > Number(amount)) {
    blame(`of ${amount}, ${refunded} were refunded, and its refunds are ${refunds}`);
  }
  for (const attempt of attempts) {
    const held = truth.get(attempt.gateway)?.get(attempt.id);
    const fault = faultOfAttempt(attempt, currency, attempt.state === "CAPTURED" ? refunded : attempt.captured, held);
    if (fault !== undefined) blame(`attempt ${attempt.number} at ${attempt.gateway} is ${attempt.state}, but ${fault}`);
  }
  if (attempts.filter(({ id, gateway }) => isTaken(truth.get(gateway)?.get(id))).length > 1) blame("charged twice");
  return faults;
}

/** Where our word about an attempt differs from its gateway's. */
function faultOfAttempt(
  { state, captured }: AttemptRow,
  currency: string,
  givenBack: string | null,
  held: HeldCharge | undefined,
): string | undefined {
  const minorOf = (decimal: string | null) => (decimal === null ? 0n : toMinor(fromDecimal(currency, decimal)));
  const truth = held === undefined ? "nothing" : held.state;
  const agrees: Readonly<Record<AttemptState, boolean>> = {
    CREATED: false,
    UNKNOWN: false,
    REVERSING: false,
    CAPTURED: truth === "captured",
    REVERSED: truth === "captured",
    DECLINED: truth === "declined",
    NOT_EXECUTED: truth === "nothing" || truth === "voided",
    VOIDED: truth === "voided",
  };
  if (!agrees[state]) return `the gateway holds ${truth}`;
  if (held === undefined) return undefined;
  if (held.capturedMinor !== minorOf(captured)) return `the gateway took ${held.capturedMinor}`;
  const gaveBack = refundedMinorOf(held);
  return gaveBack === minorOf(givenBack) ? undefined : `the gateway gave back ${gaveBack}, not ${givenBack}`;
}

function faultsOfOrder({ id, status, payment_state: state }: OrderRow, payments: PaymentRow[], truth: Truth): string[] {
  const own = payments.filter(({ order_id }) => order_id === id);
  const completed = own.filter((payment) => payment.status === "COMPLETED");
  const [only] = completed;
  const expected = only === undefined ? "UNPAID" : only.refunded === only.amount ? "REFUNDED" : "PAID";
  const faults: string[] = [];
  if (completed.length > 1) faults.push(`order ${id} has ${completed.length} completed payments`);
  if (state !== expected) faults.push(`order ${id} (${status}) is ${state}, and by its payments ${expected}`);
  if (status === "CANCELLED" && expected === "PAID") faults.push(`order ${id} is cancelled, and its money is kept`);
  if (expected === "REFUNDED" && status !== "CANCELLED") faults.push(`order ${id} is refunded, and still ${status}`);
  const taken = own.flatMap(({ attempts }) => attempts).filter((a) => isTaken(truth.get(a.gateway)?.get(a.id)));
  if (taken.length > 1) faults.push(`order ${id} was charged ${taken.length} times`);
  return faults;
}

interface Clearing {
  readonly account: string;
  readonly minor: string;
}

/** What our ledger says that each gateway owes us, beside what it has. */
function faultsOfClearing(clearing: readonly Clearing[], truth: Truth): string[] {
  return [...truth].flatMap(([gateway, charges]) => {
    const has = [...charges.values()].reduce((sum, held) => sum + held.capturedMinor - refundedMinorOf(held), 0n);
    const booked = clearing.find(({ account }) => account === `GATEWAY:${gateway}`)?.minor ?? "0";
    return BigInt(booked) === has ? [] : [`the ledger has ${booked} at ${gateway}, the gateway ${has}`];
  });
}

function strayCharges(payments: readonly PaymentRow[], truth: Truth): string[] {
  const known = new Set(payments.flatMap(({ attempts }) => attempts.map(({ id, gateway }) => `${gateway} ${id}`)));
  return [...truth].flatMap(([gateway, charges]) =>
    [...charges.keys()]
      .filter((reference) => !known.has(`${gateway} ${reference}`))
      .map((reference) => `${gateway} holds ${reference}, which nobody recorded`),
  );
}

/** An end that somebody was told of stays the end. */
function faultsOfWords(payments: readonly PaymentRow[], told: Iterable<Payment>): string[] {
  return [...told].flatMap(({ id, status }) => {
    const now = payments.find((payment) => payment.id === id)?.status;
    return now === status || status === "PENDING" ? [] : [`payment ${id} was told to be ${status}, and is ${now}`];
  });
}

function isTaken(held: HeldCharge | undefined): boolean {
  return held !== undefined && held.capturedMinor > refundedMinorOf(held);
}

const BOOKS = `
  WITH mine AS MATERIALIZED (SELECT * FROM payments WHERE customer_id = $1),
       entries AS MATERIALIZED (SELECT e.*, CASE e.side WHEN 'DEBIT' THEN e.amount ELSE -e.amount END AS signed
                                  FROM ledger_entries e JOIN mine ON mine.id = e.payment_id)
  SELECT coalesce((SELECT json_agg(json_build_object(
           'id', p.id, 'order_id', p.order_id, 'status', p.status, 'risk_level', p.risk_level, 'currency', p.currency,
           'amount', p.amount::text, 'refunded', p.refunded_amount::numeric(11,3)::text,
           'refunding', p.refunding_amount::text,
           'refunds', (SELECT coalesce(sum(r.amount) FILTER (WHERE r.status = 'COMPLETED'), 0)::numeric(11,3)::text
                         FROM refunds r WHERE r.payment_id = p.id),
           'open_refunds', (SELECT count(*) FROM refunds r WHERE r.payment_id = p.id AND r.status = 'PENDING'),
           'attempts', (SELECT json_agg(json_build_object('id', a.id, 'number', a.number, 'gateway', a.gateway,
                               'state', a.state, 'captured', a.captured_amount::text) ORDER BY a.number)
                          FROM payment_attempts a WHERE a.payment_id = p.id))) FROM mine p), '[]') AS payments,
         coalesce((SELECT json_agg(json_build_object('id', id, 'status', status, 'payment_state', payment_state))
            FROM orders WHERE customer_id = $1), '[]') AS orders,
         coalesce((SELECT json_agg(movement) FROM (
            SELECT movement_id || ' ' || kind AS movement FROM entries
             GROUP BY movement_id, kind, currency HAVING sum(signed) <> 0) m), '[]') AS unbalanced,
         coalesce((SELECT json_agg(json_build_object('account', account, 'minor', (sum * 100)::bigint::text))
            FROM (SELECT account, sum(signed) FROM entries GROUP BY account) c), '[]') AS clearing`;
