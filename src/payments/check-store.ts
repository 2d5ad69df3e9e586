import type { Invariant } from "../db/invariants.ts";
import { UNFINISHED_JOBS } from "../jobs/enqueue.ts";

/** Whether a job about a payment or refund has yet to succeed: what follows from it need not be there. */
const isWaiting = (task: string, key: "paymentId" | "refundId", id: string) =>
  `EXISTS (SELECT FROM (${UNFINISHED_JOBS}) j WHERE j.task = '${task}' AND j.payload ->> '${key}' = ${id}::text)`;

/**
 * The movements of `kinds` in the ledger against those that `due` calls for (movement_id, kind, payment_id, currency,
 * amount, entries): each of them once, with these entries, and no other.
 */
const movements = (kinds: string, due: string) => `
  SELECT 'payment ' || payment_id AS subject,
         format(CASE WHEN is_due THEN 'the ledger lacks the %s %s of %s %s (%s)'
                     ELSE 'the ledger has a %s %s of %s %s (%s) that nothing calls for' END,
                kind, movement_id, amount, currency, entries) AS fault
    FROM (SELECT *, true AS is_due FROM (${due}) d) due
    FULL JOIN (SELECT movement_id, kind, payment_id, currency, amount, true AS is_written,
                      string_agg(account || ' ' || side, ', ' ORDER BY account COLLATE "C", side COLLATE "C") AS entries
                 FROM ledger_entries WHERE kind IN (${kinds})
                GROUP BY movement_id, kind, payment_id, currency, amount) written
      USING (movement_id, kind, payment_id, currency, amount, entries)
   WHERE is_due IS NULL OR is_written IS NULL`;

/** The entries of a movement as `movements` compares them, all of one amount. */
const entries = (gateway: string, gatewaySide: "DEBIT" | "CREDIT", account: "REVENUE" | "REFUNDS") =>
  `'CUSTOMER CREDIT, CUSTOMER DEBIT, GATEWAY:' || ${gateway} || ' ${gatewaySide}, ${account} ${
    gatewaySide === "DEBIT" ? "CREDIT" : "DEBIT"
  }' AS entries`;

/** Whether the ledger has anything of a refund. */
const WAS_BOOKED = `EXISTS (SELECT FROM ledger_entries e
          WHERE e.movement_id = r.id AND e.kind IN ('REFUND', 'REFUND_RETURNED'))`;

/** What must hold of the ledger, by itself and beside the charges, refunds and disputes that it tells of. */
const ledgerInvariants: readonly Invariant[] = [
  {
    rule: "The ledger balances in every currency",
    table: "ledger_entries",
    text: `
      SELECT 'currency ' || currency AS subject,
             format('debits and credits differ by %s', sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END)) AS fault
        FROM ledger_entries
       GROUP BY currency HAVING sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END) <> 0`,
  },
  {
    rule: "Every movement in the ledger balances",
    table: "ledger_entries",
    text: `
      SELECT 'payment ' || payment_id AS subject,
             format('debits and credits of the %s %s differ by %s %s', kind, movement_id,
                    sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END), currency) AS fault
        FROM ledger_entries
       GROUP BY payment_id, movement_id, kind, currency
      HAVING sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END) <> 0`,
  },
  {
    rule: "Every charge that took money, and every one that was given back, is in the ledger once",
    table: "ledger_entries",
    text: movements(
      "'CHARGE', 'REVERSAL'",
      `SELECT a.id AS movement_id, 'CHARGE' AS kind, p.id AS payment_id, p.currency, a.captured_amount AS amount,
              ${entries("a.gateway", "DEBIT", "REVENUE")}
         FROM payment_attempts a JOIN payments p ON p.id = a.payment_id WHERE a.captured_amount IS NOT NULL
        UNION ALL
       SELECT a.id, 'REVERSAL', p.id, p.currency, a.captured_amount, ${entries("a.gateway", "CREDIT", "REVENUE")}
         FROM payment_attempts a JOIN payments p ON p.id = a.payment_id WHERE a.state = 'REVERSED'`,
    ),
  },
  {
    rule: "Every refund that completed or was sent back, and every lost dispute, is in the ledger once",
    table: "ledger_entries",
    // Of a failed refund only the ledger knows whether it had completed before; then it has to have come back as well.
    text: movements(
      "'REFUND', 'REFUND_RETURNED', 'DISPUTE_LOST'",
      `SELECT r.id AS movement_id, 'REFUND' AS kind, p.id AS payment_id, r.currency, r.amount,
              ${entries("p.gateway", "CREDIT", "REFUNDS")}
         FROM refunds r JOIN payments p ON p.id = r.payment_id
        WHERE r.status = 'COMPLETED'
           OR (r.status = 'FAILED' AND ${WAS_BOOKED})
        UNION ALL
       SELECT r.id, 'REFUND_RETURNED', p.id, r.currency, r.amount, ${entries("p.gateway", "DEBIT", "REFUNDS")}
         FROM refunds r JOIN payments p ON p.id = r.payment_id
        WHERE r.status = 'FAILED' AND ${WAS_BOOKED}
        UNION ALL
       SELECT d.id, 'DISPUTE_LOST', d.payment_id, d.currency, d.amount, ${entries("d.gateway", "CREDIT", "REFUNDS")}
         FROM disputes d WHERE d.status = 'LOST'`,
    ),
  },
];

/** What must hold of payments, and of what they took and gave back. */
const amountInvariants: readonly Invariant[] = [
  {
    rule: "Every payment under way has an attempt",
    table: "payments",
    text: `
      SELECT 'payment ' || id AS subject, format('it is PENDING since %s without an attempt', create_time) AS fault
        FROM payments p
       WHERE status = 'PENDING' AND NOT EXISTS (SELECT FROM payment_attempts WHERE payment_id = p.id)`,
  },
  {
    rule: "Every charge whose end is not known is looked after",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('it is %s, and its charge %s by %s is %s', p.status, a.id, a.gateway, a.state) AS fault
        FROM payments p JOIN payment_attempts a ON a.payment_id = p.id
       WHERE p.check_time IS NULL AND a.state IN ('CREATED', 'UNKNOWN')`,
  },
  {
    rule: "No finished payment is looked after whose charges have all ended",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject, format('it is %s, and would be looked after at %s', p.status, p.check_time) AS fault
        FROM payments p
       WHERE p.status <> 'PENDING' AND p.check_time IS NOT NULL
         AND NOT EXISTS (SELECT FROM payment_attempts WHERE payment_id = p.id AND state IN ('CREATED', 'UNKNOWN'))`,
  },
  {
    rule: "Every completed payment has one charge that keeps its whole amount, and no other payment has any",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('it is %s, of %s %s%s, and its charges keep %s', p.status, p.amount, p.currency,
                    CASE WHEN p.status = 'COMPLETED' THEN format(' by %s as %s', p.gateway, p.gateway_transaction_id) END,
                    coalesce(string_agg(format('%s by %s as %s', a.captured_amount, a.gateway, a.transaction_id),
                                        ' and ' ORDER BY a.number) FILTER (WHERE a.id IS NOT NULL), 'nothing')) AS fault
        FROM payments p
        LEFT JOIN payment_attempts a ON a.payment_id = p.id AND a.state = 'CAPTURED'
       GROUP BY p.id
      HAVING count(a.id) <> CASE p.status WHEN 'COMPLETED' THEN 1 ELSE 0 END
          OR bool_or((a.captured_amount, a.gateway, a.transaction_id)
                     IS DISTINCT FROM (p.amount, p.gateway, p.gateway_transaction_id)) FILTER (WHERE a.id IS NOT NULL)`,
  },
  {
    rule: "What every payment counts as refunded, and as being refunded, is the sum of its refunds",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('it counts %s refunded and %s being refunded, but its refunds make %s and %s', p.refunded_amount,
                    p.refunding_amount, coalesce(r.refunded, 0), coalesce(r.refunding, 0)) AS fault
        FROM payments p
        LEFT JOIN (SELECT payment_id, sum(amount) FILTER (WHERE status = 'COMPLETED') AS refunded,
                          sum(amount) FILTER (WHERE status = 'PENDING') AS refunding
                     FROM refunds GROUP BY payment_id) r ON r.payment_id = p.id
       WHERE p.refunded_amount <> coalesce(r.refunded, 0) OR p.refunding_amount <> coalesce(r.refunding, 0)`,
  },
  {
    rule: "Only completed payments are refunded, in their currency and never more than they took",
    table: "refunds",
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('it is %s, of %s %s, and its refunds are %s', p.status, p.amount, p.currency,
                    string_agg(format('%s %s %s', r.status, r.amount, r.currency), ' and ' ORDER BY r.id)) AS fault
        FROM payments p JOIN refunds r ON r.payment_id = p.id
       GROUP BY p.id
      HAVING p.status <> 'COMPLETED' OR bool_or(r.currency <> p.currency)
          OR sum(r.amount) FILTER (WHERE r.status <> 'FAILED') > p.amount`,
  },
];

/** What must hold of orders and the payments for them. */
const orderInvariants: readonly Invariant[] = [
  {
    rule: "No order has more than one payment that is under way or completed",
    table: "orders",
    text: `
      SELECT 'order ' || order_id AS subject, format('it has %s such payments', count(*)) AS fault
        FROM payments WHERE status IN ('PENDING', 'COMPLETED') AND order_id IS NOT NULL
       GROUP BY order_id HAVING count(*) > 1`,
  },
  {
    rule: "No unpaid order has a payment that is under way or completed",
    table: "orders",
    text: `
      SELECT 'order ' || o.id AS subject, format('it is UNPAID, and its payment %s is %s', p.id, p.status) AS fault
        FROM orders o JOIN payments p ON p.order_id = o.id AND p.status IN ('PENDING', 'COMPLETED')
       WHERE o.payment_state = 'UNPAID'`,
  },
  {
    rule: "Every order that is being paid has one payment under way",
    table: "orders",
    text: `
      SELECT 'order ' || o.id AS subject, format('its payment is PENDING, in %s payments', count(p.id)) AS fault
        FROM orders o
        LEFT JOIN payments p ON p.order_id = o.id AND p.status = 'PENDING'
       WHERE o.payment_state = 'PENDING'
       GROUP BY o.id HAVING count(p.id) <> 1`,
  },
  {
    rule: "Every paid order has one completed payment, of its total",
    table: "orders",
    text: `
      SELECT 'order ' || o.id AS subject,
             format('its total is %s %s, and it was paid %s', o.total_amount, o.currency,
                    coalesce(string_agg(p.amount || ' ' || p.currency, ' and ' ORDER BY p.id), 'nothing')) AS fault
        FROM orders o
        LEFT JOIN payments p ON p.order_id = o.id AND p.status = 'COMPLETED'
       WHERE o.payment_state = 'PAID'
       GROUP BY o.id HAVING count(p.id) <> 1 OR bool_or((p.amount, p.currency) <> (o.total_amount, o.currency))`,
  },
  {
    rule: "An order is refunded when its payment was given back whole, and only then",
    table: "orders",
    text: `
      SELECT 'order ' || o.id AS subject,
             format('it is %s, and of the %s that it paid %s were refunded', o.payment_state, coalesce(p.amount, 0),
                    coalesce(p.refunded_amount, 0)) AS fault
        FROM orders o
        LEFT JOIN payments p ON p.order_id = o.id AND p.status = 'COMPLETED'
       WHERE o.payment_state IN ('PAID', 'REFUNDED')
         AND (o.payment_state = 'REFUNDED') <> coalesce(p.refunded_amount = p.amount, false)`,
  },
];

/** What must hold of what jobs make of payments. Where a job has yet to succeed, it need not hold yet. */
const consequenceInvariants: readonly Invariant[] = [
  {
    rule: "The payment history of every customer is the sum of the payments that it counts",
    table: "payments",
    text: `
      SELECT 'account ' || customer_id AS subject,
             format('it has %s payments of %s %s, and those that were counted are %s of %s', coalesce(payment_count, 0),
                    coalesce(total_amount, 0), currency, coalesce(counted, 0), coalesce(total, 0)) AS fault
        FROM customer_payment_history h
        FULL JOIN (SELECT p.customer_id, p.currency, count(*) AS counted, sum(p.amount) AS total,
                          max(p.process_time) AS last
                     FROM counted_payments c JOIN payments p ON p.id = c.payment_id
                    GROUP BY p.customer_id, p.currency) c USING (customer_id, currency)
       WHERE (payment_count, total_amount, last_payment_time) IS DISTINCT FROM (counted, total, last)`,
  },
  {
    rule: "Every completed payment is in its customer's history, and no other is",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('it is %s, and was %s', p.status, CASE WHEN c.payment_id IS NULL THEN 'not counted' ELSE 'counted' END) AS fault
        FROM payments p LEFT JOIN counted_payments c ON c.payment_id = p.id
       WHERE (p.status = 'COMPLETED') <> (c.payment_id IS NOT NULL)
         AND NOT (c.payment_id IS NULL AND ${isWaiting("update-payment-history", "paymentId", "p.id")})`,
  },
  {
    rule: "Every completed payment of 100 units and more earned its customer a point a whole unit, and no other did",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('it is %s, of %s %s, and earned %s', p.status, p.amount, p.currency, coalesce(e.points, 0)) AS fault
        FROM payments p LEFT JOIN reward_entries e ON e.payment_id = p.id AND e.refund_id IS NULL
       WHERE (coalesce(e.points, 0) <> CASE WHEN p.status = 'COMPLETED' AND p.amount >= 100 THEN floor(p.amount) ELSE 0 END
              OR e.customer_id <> p.customer_id)
         AND NOT (e.id IS NULL AND ${isWaiting("grant-rewards", "paymentId", "p.id")})`,
  },
  {
    rule: "Every payment keeps the share of its points that it keeps of its money",
    table: "payments",
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('of %s %s it gave back %s, and of %s points %s', p.amount, p.currency, r.refunded, e.earned,
                    -e.taken_back) AS fault
        FROM payments p
        JOIN (SELECT payment_id, coalesce(sum(points) FILTER (WHERE refund_id IS NULL), 0) AS earned,
                     coalesce(sum(points) FILTER (WHERE refund_id IS NOT NULL), 0) AS taken_back
                FROM reward_entries GROUP BY payment_id) e ON e.payment_id = p.id
       CROSS JOIN LATERAL (SELECT coalesce(sum(amount) FILTER (WHERE status = 'COMPLETED'), 0) AS refunded
                             FROM refunds WHERE payment_id = p.id) r
       WHERE -e.taken_back <> floor((2 * e.earned * r.refunded + p.amount) / (2 * p.amount))
         AND NOT EXISTS (SELECT FROM refunds w
                          WHERE w.payment_id = p.id AND ${isWaiting("take-back-rewards", "refundId", "w.id")})`,
  },
];

/** What is no breach, and what a person should know of. */
const remarks: readonly Invariant[] = [
  {
    rule: "Payments of which a charge has been unknown for more than a day",
    table: "payments",
    text: `
      SELECT 'payment ' || id AS subject,
             format('%s %s of %s, %s, looked after %s times', amount, currency, create_time, status, checks) AS fault
        FROM payments WHERE check_time IS NOT NULL AND create_time < now() - interval '24 hours'`,
  },
  {
    rule: "Refunds that have not been finished for more than a day",
    table: "refunds",
    text: `
      SELECT 'payment ' || payment_id AS subject,
             format('refund %s of %s %s, PENDING since %s', id, amount, currency, create_time) AS fault
        FROM refunds WHERE status = 'PENDING' AND create_time < now() - interval '24 hours'`,
  },
  {
    rule: "Charges that are not kept, and have not been given back for more than a day",
    table: "payments",
    text: `
      SELECT 'payment ' || a.payment_id AS subject,
             format('charge %s by %s of %s, since %s', a.id, a.gateway, a.captured_amount, a.update_time) AS fault
        FROM payment_attempts a
       WHERE a.state = 'REVERSING' AND a.reversal_failure = '' AND a.update_time < now() - interval '24 hours'`,
  },
  {
    rule: "Charges that are not kept, and that their gateway refuses to give back",
    table: "payments",
    text: `
      SELECT 'payment ' || a.payment_id AS subject,
             format('charge %s by %s of %s: %s', a.id, a.gateway, a.captured_amount, a.reversal_failure) AS fault
        FROM payment_attempts a WHERE a.state = 'REVERSING' AND a.reversal_failure <> ''`,
  },
  {
    rule: "Cancelled orders whose money is still here, since its refund has failed",
    table: "orders",
    text: `
      SELECT 'order ' || o.id AS subject, format('payment %s: %s', p.id, r.failure_reason) AS fault
        FROM orders o
        JOIN payments p ON p.order_id = o.id AND p.status = 'COMPLETED'
        JOIN refunds r ON r.payment_id = p.id AND r.created_by IS NULL AND NOT r.by_gateway AND r.status = 'FAILED'
       WHERE o.status = 'CANCELLED' AND o.payment_state = 'PAID'
         AND NOT EXISTS (SELECT FROM refunds w WHERE w.payment_id = p.id AND w.status = 'PENDING')`,
  },
  {
    rule: "Payments that lose more by refunds and disputes together than they took",
    table: "payments",
    // A dispute may be opened after a refund, and nobody can refuse it.
    text: `
      SELECT 'payment ' || p.id AS subject,
             format('of %s %s, %s were or are being refunded, and %s are disputed or lost', p.amount, p.currency,
                    p.refunded_amount + p.refunding_amount, d.disputed) AS fault
        FROM payments p
        JOIN (SELECT payment_id, currency, sum(amount) AS disputed FROM disputes WHERE status IN ('OPEN', 'LOST')
               GROUP BY payment_id, currency) d ON d.payment_id = p.id AND d.currency = p.currency
       WHERE p.refunded_amount + p.refunding_amount + d.disputed > p.amount`,
  },
  {
    rule: "Jobs of payments that have not succeeded for more than a day",
    table: "payments",
    text: `
      SELECT coalesce('payment ' || (payload ->> 'paymentId'), 'refund ' || (payload ->> 'refundId')) AS subject,
             format('%s, since %s', task, create_time) AS fault
        FROM (${UNFINISHED_JOBS}) j
       WHERE create_time < now() - interval '24 hours'
         AND (payload ->> 'paymentId' IS NOT NULL OR payload ->> 'refundId' IS NOT NULL)`,
  },
].map((remark) => ({ ...remark, remark: true }));

/** What must hold of payments, the orders that they are for, and the ledger; and what is worth telling of them. */
export const paymentInvariants: readonly Invariant[] = [
  ...amountInvariants,
  ...orderInvariants,
  ...ledgerInvariants,
  ...consequenceInvariants,
  ...remarks,
];
