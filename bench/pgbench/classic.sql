-- Places an order of three lines as it is done ordinarily: ten statements, each a round trip.
-- Variables: buyers, and the range that the second product is taken from (one product only: the hot one).
\set buyer 100000000000 + :client_id % :buyers
\set one random(100000000000, 100000000332)
\set two random(:two_from, :two_to)
\set three random(100000000667, 100000000999)
\set request random(100000000000, 999999999999)
BEGIN;
SELECT id FROM orders WHERE created_by = ('00000000-0000-7000-8000-' || :buyer)::uuid
   AND request_id = ('00000000-0000-4000-8000-' || :request)::uuid;
SELECT a.id AS address, jsonb_build_object('street', a.street, 'city', a.city, 'state', a.state, 'postal_code',
         a.postal_code, 'country', a.country) AS address_as_is
  FROM users u JOIN addresses a ON a.user_id = u.id
 WHERE u.id = ('00000000-0000-7000-8000-' || :buyer)::uuid AND u.delete_time IS NULL
   AND a.id = ('00000000-0000-7000-8001-' || :buyer)::uuid AND a.delete_time IS NULL \gset
SELECT uuidv7() AS id, sum(price) AS total, min(currency) AS currency, array_agg(name) AS names,
       array_agg(price) AS prices
  FROM (SELECT name, price, currency FROM products
         WHERE id IN (('00000000-0000-7000-8002-' || :one)::uuid, ('00000000-0000-7000-8002-' || :two)::uuid,
                      ('00000000-0000-7000-8002-' || :three)::uuid) AND active
         ORDER BY id FOR UPDATE) p \gset
UPDATE products SET stock_quantity = stock_quantity - 1
 WHERE id IN (('00000000-0000-7000-8002-' || :one)::uuid, ('00000000-0000-7000-8002-' || :two)::uuid,
              ('00000000-0000-7000-8002-' || :three)::uuid) AND stock_quantity >= 1;
INSERT INTO orders (id, customer_id, created_by, request_id, request_hash, status, currency, total_amount,
                    shipping_address_id, shipping_address, order_time, update_time)
VALUES (:id::uuid, ('00000000-0000-7000-8000-' || :buyer)::uuid, ('00000000-0000-7000-8000-' || :buyer)::uuid,
        ('00000000-0000-4000-8000-' || :request)::uuid, sha256('pgbench'), 'CONFIRMED', :currency, :total::numeric,
        :address::uuid, :address_as_is::jsonb, now(), now());
INSERT INTO order_items (order_id, position, id, product_id, product_name, quantity, unit_price)
VALUES (:id::uuid, 1, uuidv7(), ('00000000-0000-7000-8002-' || :one)::uuid, (:names::text[])[1], 1,
        (:prices::numeric[])[1]),
       (:id::uuid, 2, uuidv7(), ('00000000-0000-7000-8002-' || :two)::uuid, (:names::text[])[2], 1,
        (:prices::numeric[])[2]),
       (:id::uuid, 3, uuidv7(), ('00000000-0000-7000-8002-' || :three)::uuid, (:names::text[])[3], 1,
        (:prices::numeric[])[3]);
INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
VALUES (('00000000-0000-7000-8002-' || :one)::uuid, -1, 'SALE', :id::uuid, now()),
       (('00000000-0000-7000-8002-' || :two)::uuid, -1, 'SALE', :id::uuid, now()),
       (('00000000-0000-7000-8002-' || :three)::uuid, -1, 'SALE', :id::uuid, now());
INSERT INTO order_events (order_id, to_status, to_payment_state, actor_id, create_time)
VALUES (:id::uuid, 'CONFIRMED', 'UNPAID', ('00000000-0000-7000-8000-' || :buyer)::uuid, now());
COMMIT;
