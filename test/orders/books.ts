import { transitions } from "../../src/orders/order.ts";
import { sql, type TestDatabase } from "../support/database.ts";

const LEGAL_MOVES = Object.entries(transitions).flatMap(([from, tos]) => tos.map((to) => `${from}>${to}`));

/**
 * Every way in which the database contradicts itself about stock, totals and histories, as sentences; none when all is
 * well. It reads everything, so it is for databases that nobody writes to at the moment.
 */
export async function faultsOfBooks(database: TestDatabase): Promise<string[]> {
  const rows = await sql<{ fault: string }>(
    database,
    `SELECT 'product ' || p.id || ' has ' || p.stock_quantity || ', its journal says ' || coalesce(m.sum, 0) AS fault
       FROM products p LEFT JOIN (SELECT product_id, sum(delta) FROM stock_movements GROUP BY product_id) m
         ON m.product_id = p.id
      WHERE p.stock_quantity <> coalesce(m.sum, 0) OR p.stock_quantity < 0
     UNION ALL
     SELECT 'order ' || o.id || ' is ' || o.status || ', and of product ' || i.product_id || ' it has ' || i.quantity
            || ', took ' || coalesce(-s.delta, 0) || ' and gave back ' || coalesce(r.delta, 0)
       FROM orders o
       JOIN order_items i ON i.order_id = o.id
       LEFT JOIN stock_movements s ON s.order_id = o.id AND s.product_id = i.product_id AND s.kind = 'SALE'
       LEFT JOIN stock_movements r ON r.order_id = o.id AND r.product_id = i.product_id AND r.kind = 'RESTORE'
      WHERE s.delta IS DISTINCT FROM -i.quantity
         OR coalesce(r.delta, 0) <> CASE WHEN o.status = 'CANCELLED' THEN i.quantity ELSE 0 END
     UNION ALL
     SELECT 'order ' || o.id || ' has ' || count(i.position) || ' items, but ' || count(m.id) || ' sales'
       FROM orders o
       LEFT JOIN order_items i ON i.order_id = o.id
       LEFT JOIN stock_movements m ON m.order_id = o.id AND m.product_id = i.product_id AND m.kind = 'SALE'
      GROUP BY o.id HAVING count(i.position) = 0 OR count(i.position) <> count(m.id)
     UNION ALL
     SELECT 'order ' || o.id || ' costs ' || o.total_amount || ', its lines ' || sum(i.quantity * i.unit_price)
       FROM orders o JOIN order_items i ON i.order_id = o.id
      GROUP BY o.id HAVING o.total_amount <> sum(i.quantity * i.unit_price)
     UNION ALL
     SELECT 'the history of order ' || e.order_id || ' goes from ' || coalesce(e.was, 'nothing') || ' to '
            || e.says || ' and then to ' || e.becomes
       FROM (SELECT order_id, from_status, to_status, from_status || '/' || from_payment_state AS says,
                    to_status || '/' || to_payment_state AS becomes,
                    lag(to_status || '/' || to_payment_state) OVER (PARTITION BY order_id ORDER BY id) AS was
               FROM order_events) e
      WHERE e.was IS DISTINCT FROM e.says
         OR (e.was IS NULL AND e.becomes NOT IN ('PENDING/UNPAID', 'CONFIRMED/UNPAID'))
         OR (e.from_status <> e.to_status AND NOT e.from_status || '>' || e.to_status = ANY ($1))
     UNION ALL
     SELECT 'order ' || o.id || ' is ' || o.status || '/' || o.payment_state || ' of version ' || o.version
            || ', after ' || e.count || ' events it is ' || coalesce(e.last, 'nothing')
       FROM orders o
      CROSS JOIN LATERAL (SELECT count(*), (array_agg(to_status || '/' || to_payment_state ORDER BY id DESC))[1] AS last
                            FROM order_events WHERE order_id = o.id) e
      WHERE e.count <> o.version OR e.last IS DISTINCT FROM o.status || '/' || o.payment_state`,
    [LEGAL_MOVES],
  );
  return rows.map(({ fault }) => fault);
}
