import type { Invariant } from "../db/invariants.ts";

/** What must hold of payments and the orders that they are for. */
export const paymentInvariants: readonly Invariant[] = [
  {
    rule: "Every payment under way has an attempt",
    table: "payments",
    text: `
      SELECT 'payment ' || id AS subject, format('it is PENDING since %s without an attempt', create_time) AS fault
        FROM payments p
       WHERE status = 'PENDING' AND NOT EXISTS (SELECT FROM payment_attempts WHERE payment_id = p.id)`,
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
];
