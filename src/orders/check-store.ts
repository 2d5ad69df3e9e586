import type { Invariant } from "../db/invariants.ts";
import { ALLOWED_MOVES } from "./store.ts";

/** Units of each product that each order's journal has under a kind: `quantity`, and in how many rows. */
const moved = (kind: "SALE" | "RESTORE") => `
  SELECT order_id, product_id, abs(sum(delta)) AS quantity, count(*) AS entries
    FROM stock_movements WHERE kind = '${kind}' GROUP BY order_id, product_id`;

/** What must hold of products. */
const productInvariants: readonly Invariant[] = [
  {
    rule: "The stock of every product is the sum of its journal",
    table: "products",
    text: `
      SELECT 'product ' || p.id AS subject,
             format('%s: %s in stock, but its journal makes %s', p.name, p.stock_quantity, coalesce(m.total, 0)) AS fault
        FROM products p
        LEFT JOIN (SELECT product_id, sum(delta) AS total FROM stock_movements GROUP BY product_id) m
          ON m.product_id = p.id
       WHERE p.stock_quantity <> coalesce(m.total, 0)`,
  },
  {
    rule: "No stock is negative",
    table: "products",
    text: `
      SELECT 'product ' || id AS subject, format('%s: %s in stock', name, stock_quantity) AS fault
        FROM products WHERE stock_quantity < 0`,
  },
];

/** What must hold of an order and its items. */
const itemInvariants: readonly Invariant[] = [
  {
    rule: "The total of every order is the sum of its items",
    table: "orders",
    text: `
      SELECT 'order ' || o.id AS subject,
             format('its total is %s, but its items make %s', o.total_amount, coalesce(i.total::text, 'nothing')) AS fault
        FROM orders o
        LEFT JOIN (SELECT order_id, sum(quantity * unit_price) AS total FROM order_items GROUP BY order_id) i
          ON i.order_id = o.id
       WHERE o.total_amount IS DISTINCT FROM i.total`,
  },
  {
    rule: "Every order took its items from stock, once",
    table: "orders",
    text: `
      SELECT 'order ' || order_id AS subject,
             format('of product %s it has %s, and took %s in %s entries of the journal', product_id,
                    coalesce(i.quantity, 0), coalesce(m.quantity, 0), coalesce(m.entries, 0)) AS fault
        FROM (SELECT order_id, product_id, sum(quantity) AS quantity FROM order_items GROUP BY order_id, product_id) i
        FULL JOIN (${moved("SALE")}) m USING (order_id, product_id)
       WHERE i.quantity IS DISTINCT FROM m.quantity OR m.entries > 1`,
  },
  {
    rule: "Every cancelled order gave its items back, once, and no other order did",
    table: "orders",
    text: `
      SELECT 'order ' || order_id AS subject,
             format('of product %s it should have given back %s, and gave back %s in %s entries of the journal',
                    product_id, coalesce(i.quantity, 0), coalesce(m.quantity, 0), coalesce(m.entries, 0)) AS fault
        FROM (SELECT order_id, product_id, sum(quantity) AS quantity
                FROM order_items JOIN orders o ON o.id = order_id AND o.status = 'CANCELLED'
               GROUP BY order_id, product_id) i
        FULL JOIN (${moved("RESTORE")}) m USING (order_id, product_id)
       WHERE i.quantity IS DISTINCT FROM m.quantity OR m.entries > 1`,
  },
];

/**
 * What must hold of an order's history. Its events are written under the lock on the order, so their ids are in the
 * order in which they happened.
 */
const historyInvariants: readonly Invariant[] = [
  {
    rule: "The history of every order begins with its placing and has no gap",
    table: "orders",
    text: `
      SELECT 'order ' || order_id AS subject,
             format('event %s moves it from %s and %s, but it was %s and %s', id, coalesce(from_status, 'nothing'),
                    coalesce(from_payment_state, 'nothing'), coalesce(status, 'nothing'),
                    coalesce(payment_state, 'nothing')) AS fault
        FROM (SELECT order_id, id, from_status, from_payment_state,
                     lag(to_status) OVER history AS status, lag(to_payment_state) OVER history AS payment_state
                FROM order_events WINDOW history AS (PARTITION BY order_id ORDER BY id)) e
       WHERE from_status IS DISTINCT FROM status OR from_payment_state IS DISTINCT FROM payment_state`,
  },
  {
    rule: "Every order moved as the table of transitions allows",
    table: "orders",
    // An event of a payment may leave the status as it is.
    text: `
      SELECT 'order ' || order_id AS subject,
             format('event %s moves it from %s to %s', id, coalesce(from_status, 'nothing'), to_status) AS fault
        FROM order_events
       WHERE CASE WHEN from_status IS NULL THEN to_status NOT IN ('PENDING', 'CONFIRMED')
                  ELSE from_status <> to_status AND from_status || '>' || to_status <> ALL ($1) END`,
    values: [ALLOWED_MOVES],
  },
  {
    rule: "The history of every order ends where it stands",
    table: "orders",
    text: `
      SELECT 'order ' || o.id AS subject,
             format('it is %s and %s, but its history ends at %s and %s', o.status, o.payment_state,
                    coalesce(e.to_status, 'nothing'), coalesce(e.to_payment_state, 'nothing')) AS fault
        FROM orders o
        LEFT JOIN (SELECT DISTINCT ON (order_id) order_id, to_status, to_payment_state
                     FROM order_events ORDER BY order_id, id DESC) e ON e.order_id = o.id
       WHERE (o.status, o.payment_state) IS DISTINCT FROM (e.to_status, e.to_payment_state)`,
  },
];

/** What must hold of products, stock, orders and their history. */
export const orderInvariants: readonly Invariant[] = [...productInvariants, ...itemInvariants, ...historyInvariants];
