import { sql, type TestDatabase } from "../support/database.ts";

const DAY_MS = 24 * 60 * 60 * 1000;

/** How much there is of everything. */
export const CUSTOMERS = 300;
const PRODUCTS = 10_000;
export const ORDERS = 30_000;
/** Accounts in all; most of them have never ordered. */
const ACCOUNTS = 5_000;

/** When the first and the last order were placed: one year, ending now. */
export function theYear(): { readonly from: Date; readonly to: Date } {
  const to = new Date();
  return { from: new Date(to.getTime() - 365 * DAY_MS), to };
}

/** An id as the service makes them: by time first. `time` is a timestamptz, `seed` anything that tells rows apart. */
const idOf = (time: string, seed: string) =>
  `(lpad(to_hex(floor(extract(epoch FROM ${time}) * 1000)::bigint), 12, '0')
     || '7' || substr(md5(${seed}), 1, 3) || '8' || substr(md5(${seed}), 4, 15))::uuid`;

/**
 * Fills a database with a year of a shop's life: orders of two lines, evenly over the year and over the customers, with
 * items, journal and history. One in a hundred is RETURNED, one in five hundred PENDING.
 */
export async function fillWithAYear(database: TestDatabase): Promise<void> {
  const { from, to } = theYear();
  const statements = [
    `INSERT INTO users (id, email, password_hash, first_name, last_name, date_of_birth, create_time, update_time)
     SELECT ${idOf("$1::timestamptz", "'user' || i")}, 'customer-' || i || '@tradepost.example', '', 'Casey', 'Jones',
            '1990-01-02', $1, $2
       FROM generate_series(1, ${ACCOUNTS}) i`,
    `INSERT INTO products (id, name, currency, price, stock_quantity, active, create_time, update_time)
     SELECT ${idOf("$1::timestamptz", "'product' || i")}, 'Widget of kind ' || substr(md5(i::text), 1, 8), 'USD', 10.99,
            1000000, true, $1, $2
       FROM generate_series(1, ${PRODUCTS}) i`,
    `WITH placed AS (
       SELECT i, $1::timestamptz + ($2::timestamptz - $1::timestamptz) * (i / ${ORDERS}.0) AS time FROM generate_series(1, ${ORDERS}) i)
     INSERT INTO orders (id, customer_id, created_by, request_id, request_hash, status, currency, total_amount,
                         expire_time, order_time, update_time)
     SELECT ${idOf("time", "'order' || i")}, u.id, u.id, md5('request' || i)::uuid, '', s.status, 'USD', 21.98,
            CASE WHEN s.status = 'PENDING' THEN time + interval '30 minutes' END, time, time
       FROM placed
       JOIN (SELECT id, row_number() OVER (ORDER BY id) AS n FROM users) u ON u.n = 1 + i % ${CUSTOMERS}
      CROSS JOIN LATERAL (SELECT CASE WHEN i % 500 = 7 THEN 'PENDING' WHEN i % 100 = 3 THEN 'RETURNED'
                                      WHEN i % 20 = 1 THEN 'CANCELLED' ELSE 'DELIVERED' END AS status) s`,
    `INSERT INTO order_items (order_id, position, id, product_id, product_name, quantity, unit_price)
     SELECT o.id, at, gen_random_uuid(), p.id, 'Widget', 1, 10.99
       FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM orders) o
      CROSS JOIN generate_series(1, 2) at
       JOIN (SELECT id, row_number() OVER (ORDER BY id) AS n FROM products) p ON p.n = 1 + (o.n * 7 + at) % ${PRODUCTS}`,
    `INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
     SELECT i.product_id, -i.quantity, 'SALE', o.id, o.order_time
       FROM orders o JOIN order_items i ON i.order_id = o.id`,
    `INSERT INTO order_events (order_id, to_status, to_payment_state, create_time)
     SELECT id, status, payment_state, order_time FROM orders ORDER BY order_time`,
  ];
  await database.db.withConnection(async (connection) => {
    // The keys are right by themselves; without a check of each row this takes a third of the time. Where the user may
    // not do that it takes longer.
    await connection.query("SET session_replication_role = replica").catch(() => {});
    for (const statement of statements) await connection.query(statement, statement.includes("$1") ? [from, to] : []);
    await connection.query("RESET session_replication_role").catch(() => {});
  });
  await sql(database, "VACUUM ANALYZE");
}
