-- Places the same order as classic.sql in one statement: one round trip, one commit.
\set buyer 100000000000 + :client_id % :buyers
\set one random(100000000000, 100000000332)
\set two random(:two_from, :two_to)
\set three random(100000000667, 100000000999)
WITH asked (buyer, address, request) AS (
       SELECT ('00000000-0000-7000-8000-' || :buyer)::uuid, ('00000000-0000-7000-8001-' || :buyer)::uuid,
              gen_random_uuid()),
     lines (position, product_id, quantity) AS (
       VALUES (1, ('00000000-0000-7000-8002-' || :one)::uuid, 1), (2, ('00000000-0000-7000-8002-' || :two)::uuid, 1),
              (3, ('00000000-0000-7000-8002-' || :three)::uuid, 1)),
     shipped AS (
       SELECT q.request, a.id, a.user_id, jsonb_build_object('street', a.street, 'city', a.city, 'state', a.state,
                'postal_code', a.postal_code, 'country', a.country) AS address
         FROM asked q JOIN users u ON u.id = q.buyer AND u.delete_time IS NULL
         JOIN addresses a ON a.id = q.address AND a.user_id = u.id AND a.delete_time IS NULL
         LEFT JOIN orders known ON known.created_by = q.buyer AND known.request_id = q.request
        WHERE known.id IS NULL),
     locked AS MATERIALIZED (
       SELECT p.id, p.name, p.price, p.currency FROM products p
        WHERE p.id IN (('00000000-0000-7000-8002-' || :one)::uuid, ('00000000-0000-7000-8002-' || :two)::uuid,
                       ('00000000-0000-7000-8002-' || :three)::uuid) AND p.active
        ORDER BY p.id FOR NO KEY UPDATE),
     taken AS (
       UPDATE products p SET stock_quantity = p.stock_quantity - l.quantity
         FROM locked k JOIN lines l ON l.product_id = k.id
        WHERE p.id = k.id AND p.stock_quantity >= l.quantity
       RETURNING l.position, l.quantity, k.id, k.name, k.price, k.currency),
     placed AS (
       INSERT INTO orders (id, customer_id, created_by, request_id, request_hash, status, currency, total_amount,
                           shipping_address_id, shipping_address, order_time, update_time)
       SELECT uuidv7(), s.user_id, s.user_id, s.request, sha256('pgbench'), 'CONFIRMED', t.currency, t.total,
              s.id, s.address, now(), now()
         FROM shipped s, (SELECT min(currency) AS currency, sum(price * quantity) AS total FROM taken
                          HAVING count(*) = 3) t
       RETURNING id, customer_id),
     itemised AS (
       INSERT INTO order_items (order_id, position, id, product_id, product_name, quantity, unit_price)
       SELECT o.id, t.position, uuidv7(), t.id, t.name, t.quantity, t.price FROM placed o, taken t),
     journaled AS (
       INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
       SELECT t.id, -t.quantity, 'SALE', o.id, now() FROM placed o, taken t),
     noted AS (
       INSERT INTO order_events (order_id, to_status, to_payment_state, actor_id, create_time)
       SELECT id, 'CONFIRMED', 'UNPAID', customer_id, now() FROM placed)
SELECT id FROM placed;
