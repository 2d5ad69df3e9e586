-- Takes the same payment as payment-classic.sql by the functions of the service, one payment a call: two statements, each
-- a round trip and a commit. Variables: buyers.
\set buyer 100000000000 + :client_id % :buyers
SELECT payment_id AS payment
  FROM record_payments(
         ARRAY[uuidv7()], ARRAY[('00000000-0000-7000-8000-' || :buyer)::uuid], ARRAY[NULL]::uuid[],
         ARRAY[('00000000-0000-7000-8000-' || :buyer)::uuid], ARRAY[gen_random_uuid()], ARRAY[sha256('pgbench')],
         ARRAY['USD'], ARRAY[120.00], ARRAY['tok_visa'], ARRAY[''], ARRAY[uuidv7()], ARRAY['sandbox-primary'],
         ARRAY[now()], ARRAY[now() + interval '30 s'], ARRAY[now() + interval '35 s']) \gset
SELECT ended
  FROM settle_payments(
         ARRAY[:payment::uuid], ARRAY[(SELECT id FROM payment_attempts WHERE payment_id = :payment::uuid)],
         ARRAY['COMPLETED'], ARRAY['CAPTURED'], ARRAY[120.00], ARRAY['pgbench'], ARRAY['00'], ARRAY[''],
         ARRAY[uuidv7()], ARRAY[now()]);
