-- Takes a payment as it is done ordinarily, one at a time and without the gateway between: one transaction records the
-- payment and its attempt, one settles both. Twelve statements, each a round trip. Variables: buyers.
-- chr(58) is the colon, after which pgbench would look for a variable.
\set buyer 100000000000 + :client_id % :buyers
BEGIN;
SELECT id FROM users WHERE id = ('00000000-0000-7000-8000-' || :buyer)::uuid AND delete_time IS NULL;
INSERT INTO payments (id, customer_id, created_by, request_id, request_hash, currency, amount, card_token, create_time,
                      lease_expire_time, check_time)
VALUES (uuidv7(), ('00000000-0000-7000-8000-' || :buyer)::uuid, ('00000000-0000-7000-8000-' || :buyer)::uuid,
        gen_random_uuid(), sha256('pgbench'), 'USD', 120, 'tok_visa', now(), now() + interval '30 s',
        now() + interval '35 s')
RETURNING id AS payment \gset
INSERT INTO payment_attempts (id, payment_id, number, gateway, create_time, update_time)
VALUES (uuidv7(), :payment::uuid, 1, 'sandbox-primary', now(), now()) RETURNING id AS attempt \gset
COMMIT;
BEGIN;
SELECT status FROM payments WHERE id = :payment::uuid FOR NO KEY UPDATE;
UPDATE payment_attempts
   SET state = 'CAPTURED', captured_amount = 120, transaction_id = 'pgbench', response_code = '00', update_time = now()
 WHERE id = :attempt::uuid AND state = 'CREATED';
INSERT INTO ledger_entries (movement_id, kind, account, side, payment_id, currency, amount, create_time)
VALUES (:attempt::uuid, 'CHARGE', 'CUSTOMER', 'DEBIT', :payment::uuid, 'USD', 120, now()),
       (:attempt::uuid, 'CHARGE', 'REVENUE', 'CREDIT', :payment::uuid, 'USD', 120, now()),
       (:attempt::uuid, 'CHARGE', 'GATEWAY' || chr(58) || 'sandbox-primary', 'DEBIT', :payment::uuid, 'USD', 120,
        now()),
       (:attempt::uuid, 'CHARGE', 'CUSTOMER', 'CREDIT', :payment::uuid, 'USD', 120, now());
UPDATE payments
   SET status = 'COMPLETED', risk_level = 'LOW', gateway = 'sandbox-primary', gateway_transaction_id = 'pgbench',
       gateway_response_code = '00', process_time = now(), lease_expire_time = NULL, check_time = NULL
 WHERE id = :payment::uuid AND status = 'PENDING';
SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(
  SELECT json_populate_record(NULL::graphile_worker.job_spec,
           json_build_object('identifier', task, 'payload', json_build_object('paymentId', :payment::uuid),
                             'max_attempts', 12))
    FROM unnest(ARRAY['send-payment-confirmation', 'update-payment-history', 'grant-rewards']) task));
COMMIT;
