import type { Client } from "pg";

/** Who places orders in the bench: each of the load's clients is one of them. */
export const BUYERS = 64;
export const PRODUCTS = 1_000;
export const ORDERS = 100_000;
const CUSTOMERS = 1_000;
export const BUYER_PASSWORD = "nine wild geese over the weir";
export const ADMIN_EMAIL = "admin@bench.example";
/** Nobody runs out of it: what is measured is orders that are placed. */
const STOCK = 1_000_000_000;
/** Ids are numbered from here, so that each number has as many digits and pgbench's scripts can make them, too. */
const FIRST = 100_000_000_000;

/** Products by number, both bounds inclusive. */
export interface ProductRange {
  readonly from: number;
  readonly to: number;
}

export function productId(number: number): string {
  return `00000000-0000-7000-8002-${FIRST + number}`;
}

/** The address of the buyer with a number. */
export function addressId(buyer: number): string {
  return `00000000-0000-7000-8001-${FIRST + buyer}`;
}

export function buyerEmail(buyer: number): string {
  return `buyer${buyer}@bench.example`;
}

/** The variables of the scripts in bench/pgbench/, for orders whose second product is of this range. */
export function pgbenchVariables({ from, to }: ProductRange): Readonly<Record<string, number>> {
  return { buyers: BUYERS, two_from: FIRST + from, two_to: FIRST + to };
}

const FILL = [
  // Without the foreign keys' look-ups, which cannot fail here and would take most of the time.
  "SET session_replication_role = replica",
  `INSERT INTO users (id, email, password_hash, first_name, last_name, date_of_birth, email_verified, role, create_time,
                      update_time)
   SELECT ('00000000-0000-7000-8000-' || ${FIRST}::bigint + n)::uuid,
          CASE WHEN n < ${CUSTOMERS} THEN 'buyer' || n || '@bench.example' ELSE '${ADMIN_EMAIL}' END,
          (SELECT password_hash FROM users LIMIT 1), 'Casey', 'Jones', '1990-01-02', true,
          CASE WHEN n < ${CUSTOMERS} THEN 'USER' ELSE 'ADMIN' END, now(), now()
     FROM generate_series(0, ${CUSTOMERS}) n`,
  `INSERT INTO addresses (id, user_id, street, city, state, postal_code, country, is_primary, create_time)
   SELECT ('00000000-0000-7000-8001-' || ${FIRST}::bigint + n)::uuid,
          ('00000000-0000-7000-8000-' || ${FIRST}::bigint + n)::uuid, n || ' Market Street', 'Springfield', 'IL', '62701',
          'US', true, now()
     FROM generate_series(0, ${CUSTOMERS - 1}) n`,
  `INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
   SELECT ('00000000-0000-7000-8002-' || ${FIRST}::bigint + n)::uuid, 'Product ' || n, 'USD', 5 + n % 90 + 0.99, ${STOCK},
          true, now(), now()
     FROM generate_series(0, ${PRODUCTS - 1}) n`,
  `INSERT INTO stock_movements (product_id, delta, kind, create_time)
   SELECT id, stock_quantity, 'INITIAL', now() FROM products`,
  // One order every five minutes, the last one now; every eleventh was cancelled.
  `CREATE TEMP TABLE history AS
   SELECT uuidv7(-(${ORDERS} - n) * interval '5 min') AS id, now() - (${ORDERS} - n) * interval '5 min' AS order_time,
          ('00000000-0000-7000-8000-' || ${FIRST}::bigint + n % ${CUSTOMERS})::uuid AS customer_id,
          ARRAY[n % 333, 333 + n % 334, 667 + n % 333] AS products, n % 11 = 0 AS cancelled
     FROM generate_series(1, ${ORDERS}) n`,
  `CREATE TEMP TABLE history_items AS
   SELECT h.id AS order_id, h.customer_id, h.order_time, h.cancelled, l.position, p.id AS product_id, p.name, p.price
     FROM history h CROSS JOIN LATERAL unnest(h.products) WITH ORDINALITY l (n, position)
     JOIN products p ON p.id = ('00000000-0000-7000-8002-' || ${FIRST}::bigint + l.n)::uuid`,
  `INSERT INTO orders (id, customer_id, created_by, request_id, request_hash, status, currency, total_amount, order_time,
                       update_time)
   SELECT h.id, h.customer_id, h.customer_id, gen_random_uuid(), sha256('history'),
          CASE WHEN h.cancelled THEN 'CANCELLED' ELSE 'CONFIRMED' END, 'USD', i.total, h.order_time, h.order_time
     FROM history h JOIN (SELECT order_id, sum(price) AS total FROM history_items GROUP BY order_id) i ON i.order_id = h.id
    ORDER BY h.order_time`,
  `INSERT INTO order_items (order_id, position, id, product_id, product_name, quantity, unit_price)
   SELECT order_id, position, uuidv7(), product_id, name, 1, price FROM history_items ORDER BY order_time, position`,
  `INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
   SELECT product_id, -1, 'SALE', order_id, order_time FROM history_items ORDER BY order_time`,
  `INSERT INTO stock_movements (product_id, delta, kind, order_id, actor_id, create_time)
   SELECT product_id, 1, 'RESTORE', order_id, customer_id, order_time FROM history_items WHERE cancelled
    ORDER BY order_time`,
  `UPDATE products SET stock_quantity = m.total
     FROM (SELECT product_id, sum(delta) AS total FROM stock_movements GROUP BY product_id) m WHERE m.product_id = id`,
  `INSERT INTO order_events (order_id, to_status, to_payment_state, actor_id, create_time)
   SELECT id, 'CONFIRMED', 'UNPAID', customer_id, order_time FROM history ORDER BY order_time`,
  `INSERT INTO order_events (order_id, from_status, to_status, from_payment_state, to_payment_state, actor_id, create_time)
   SELECT id, 'CONFIRMED', 'CANCELLED', 'UNPAID', 'UNPAID', customer_id, order_time FROM history WHERE cancelled
    ORDER BY order_time`,
  "DROP TABLE history_items, history",
  "RESET session_replication_role",
  "VACUUM (FREEZE, ANALYZE)",
  "CHECKPOINT",
] as const;

/**
 * Fills a database that has one account, whose password all of the bench's accounts get.
 * @param sql a connection to it, of a superuser
 */
export async function fill(sql: Client): Promise<void> {
  for (const statement of FILL) await sql.query(statement);
}

/** Ids of orders of each buyer, the newest first. */
export async function ordersOfBuyers(sql: Client, limit: number): Promise<string[][]> {
  const { rows } = await sql.query<{ ids: string[] }>(
    `SELECT (SELECT array_agg(id) FROM (SELECT id FROM orders WHERE customer_id = u.id
              ORDER BY order_time DESC LIMIT $1) o) AS ids
       FROM users u WHERE email = ANY ($2) ORDER BY u.id`,
    [limit, Array.from({ length: BUYERS }, (_, buyer) => buyerEmail(buyer))],
  );
  return rows.map(({ ids }) => ids);
}
