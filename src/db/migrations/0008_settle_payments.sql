-- Settles a batch of attempts in one statement: what a gateway said of each, or the proof that it did nothing. Orders are
-- locked first, payments after them, each sorted by id.
--
-- A payment that is PENDING ends by it: COMPLETED when the whole amount was captured and its order, if it has one, still
-- waits for it; FAILED or FRAUD_DETECTED as asked. A payment that is over stays as it is. Money that was captured beyond
-- that (by an abandoned attempt, for an order that was given up, or of another amount) is not kept: the attempt becomes
-- REVERSING, and what takes money back finds it there. Also where an attempt had ended without money, a capture that its
-- gateway tells of is believed. Every movement is written to the ledger here, once. Where the end of another attempt is not
-- known when a payment ends, the sweep goes on looking after it.
--
-- Arguments: one element an attempt. verdicts: COMPLETED, FAILED, FRAUD_DETECTED: how a PENDING payment ends; null: it
-- does not end by this. attempt_states: what the attempt becomes; AUTHORISED is CAPTURED, but for an attempt that was VOIDED:
-- then it was cancelled before any money was taken, and stays VOIDED. captured_amounts: null where nothing was taken.
-- reversal_ids: the keys by which money is given back where it must be.
--
-- Answers one row an attempt, in order: whether it is REVERSING, whether the payment ended by this, and the payment as it
-- is then (the statement that calls this function would still see it as it was before).
CREATE FUNCTION settle_payments(
  payment_ids uuid[], attempt_ids uuid[], verdicts text[], attempt_states text[], captured_amounts numeric[],
  transaction_ids text[], response_codes text[], failure_reasons text[], reversal_ids uuid[], settle_times timestamptz[]
) RETURNS TABLE (reversing boolean, ended boolean, settled payments)
LANGUAGE plpgsql
-- One plan for every batch, by index: see place_orders.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
  a record;
  payment record;
  bought record;
  attempt record;
  final text;
  state text;
  reason text;
  is_over boolean;
  is_open boolean;
  done_ids uuid[] := '{}';
  fraud_ids uuid[] := '{}';
BEGIN
  PERFORM 1 FROM (SELECT id FROM orders
    WHERE id IN (SELECT order_id FROM payments WHERE id = ANY (payment_ids)) ORDER BY id FOR NO KEY UPDATE) locked;
  PERFORM 1 FROM (SELECT id FROM payments WHERE id = ANY (payment_ids) ORDER BY id FOR NO KEY UPDATE) locked;

  FOR a IN
    SELECT * FROM unnest(payment_ids, attempt_ids, verdicts, attempt_states, captured_amounts, transaction_ids,
                         response_codes, failure_reasons, reversal_ids, settle_times) WITH ORDINALITY
      r (payment_id, attempt_id, verdict, attempt_state, captured, transaction_id, response_code, failure_reason,
         reversal_id, now, at)
     ORDER BY r.at
  LOOP
    SELECT * INTO STRICT payment FROM payments p WHERE p.id = a.payment_id;
    SELECT * INTO STRICT attempt FROM payment_attempts t WHERE t.id = a.attempt_id AND t.payment_id = a.payment_id;
    SELECT * INTO bought FROM orders o WHERE o.id = payment.order_id;
    final := payment.status;
    state := CASE WHEN a.attempt_state = 'AUTHORISED' AND attempt.state <> 'VOIDED' THEN 'CAPTURED' ELSE a.attempt_state END;
    reason := a.failure_reason;

    -- What an attempt once came to is its end: a lookup or webhook that says it again changes nothing. Only money that
    -- was taken nevertheless may not be overlooked.
    IF attempt.state NOT IN ('CREATED', 'UNKNOWN')
       AND NOT (state = 'CAPTURED' AND attempt.state IN ('DECLINED', 'NOT_EXECUTED', 'VOIDED')) THEN
      state := attempt.state;
      -- Its end was noted before, so that the backup could be begun, and that did not come about.
      IF payment.status = 'PENDING' AND a.verdict <> 'COMPLETED' AND state IN ('DECLINED', 'NOT_EXECUTED', 'VOIDED')
         AND NOT EXISTS (SELECT FROM payment_attempts later
                          WHERE later.payment_id = a.payment_id AND later.number > attempt.number) THEN
        final := a.verdict;
      END IF;
    ELSE
      IF state = 'CAPTURED' THEN
        IF payment.status <> 'PENDING' OR a.captured <> payment.amount
           OR (payment.order_id IS NOT NULL AND (bought.payment_state <> 'PENDING' OR bought.status = 'CANCELLED')) THEN
          state := 'REVERSING';
          IF payment.status = 'PENDING' AND a.verdict IS NOT NULL THEN
            final := 'FAILED';
            reason := CASE WHEN a.captured <> payment.amount THEN 'Gateway error: another amount was taken, and is given back'
                           ELSE 'The order was cancelled before the payment was known' END;
          END IF;
        ELSE
          final := 'COMPLETED';
        END IF;
      ELSIF payment.status = 'PENDING' AND a.verdict IS NOT NULL THEN
        final := a.verdict;
      END IF;

      UPDATE payment_attempts
         SET state = state, captured_amount = a.captured, transaction_id = a.transaction_id,
             response_code = a.response_code, update_time = a.now,
             reversal_id = CASE WHEN state = 'REVERSING' THEN a.reversal_id END,
             check_time = CASE WHEN state = 'REVERSING' THEN a.now END
       WHERE payment_attempts.id = a.attempt_id;

      IF a.captured IS NOT NULL THEN
        INSERT INTO ledger_entries (movement_id, kind, account, side, payment_id, currency, amount, create_time)
        SELECT a.attempt_id, 'CHARGE', e.account, e.side, a.payment_id, payment.currency, a.captured, a.now
          FROM (VALUES ('CUSTOMER', 'DEBIT'), ('REVENUE', 'CREDIT'),
                       ('GATEWAY:' || attempt.gateway, 'DEBIT'), ('CUSTOMER', 'CREDIT')) e (account, side);
      END IF;
    END IF;

    is_over := payment.status <> 'PENDING' AND payment.check_time IS NOT NULL;
    is_open := (final <> payment.status OR is_over) AND EXISTS (
      SELECT FROM payment_attempts other
       WHERE other.payment_id = a.payment_id AND other.id <> a.attempt_id AND other.state IN ('CREATED', 'UNKNOWN'));
    IF is_over AND NOT is_open THEN
      UPDATE payments SET check_time = NULL, lease_expire_time = NULL WHERE payments.id = a.payment_id;
    END IF;
    IF final <> payment.status THEN
      UPDATE payments
         SET status = final, process_time = a.now, checks = 0,
             check_time = CASE WHEN is_open THEN a.now END,
             lease_expire_time = CASE WHEN is_open THEN lease_expire_time END,
             gateway = CASE WHEN final = 'FRAUD_DETECTED' THEN '' ELSE attempt.gateway END,
             gateway_transaction_id = CASE WHEN final = 'COMPLETED' THEN a.transaction_id ELSE '' END,
             gateway_response_code = a.response_code,
             failure_reason = CASE WHEN final = 'COMPLETED' THEN '' ELSE reason END
       WHERE payments.id = a.payment_id;

      IF payment.order_id IS NOT NULL AND bought.payment_state = 'PENDING' THEN
        UPDATE orders
           SET payment_state = CASE WHEN final = 'COMPLETED' THEN 'PAID' ELSE 'UNPAID' END,
               status = CASE WHEN final = 'COMPLETED' AND orders.status = 'PENDING' THEN 'CONFIRMED' ELSE orders.status END,
               expire_time = CASE WHEN final = 'COMPLETED' THEN NULL ELSE expire_time END,
               update_time = a.now, version = version + 1
         WHERE orders.id = payment.order_id;
        INSERT INTO order_events (order_id, from_status, to_status, from_payment_state, to_payment_state, reason, create_time)
        SELECT o.id, bought.status, o.status, bought.payment_state, o.payment_state, 'Payment', a.now
          FROM orders o WHERE o.id = payment.order_id;
      END IF;
      IF final = 'COMPLETED' THEN
        done_ids := done_ids || a.payment_id;
      ELSIF final = 'FRAUD_DETECTED' THEN
        fraud_ids := fraud_ids || a.payment_id;
      END IF;
    END IF;
    reversing := state = 'REVERSING';
    ended := final <> payment.status;
    SELECT * INTO settled FROM payments p WHERE p.id = a.payment_id;
    RETURN NEXT;
  END LOOP;

  -- What follows from an end is asked for in the transaction that makes it one, in one statement: each is a NOTIFY.
  IF cardinality(done_ids || fraud_ids) > 0 THEN
    PERFORM graphile_worker.add_jobs(ARRAY(
      SELECT json_populate_record(NULL::graphile_worker.job_spec,
               json_build_object('identifier', t.task, 'payload', json_build_object('paymentId', t.id),
                                 'max_attempts', 12))
        FROM (SELECT d.id, t.task FROM unnest(done_ids) d (id)
               CROSS JOIN unnest(ARRAY['send-payment-confirmation', 'update-payment-history', 'grant-rewards']) t (task)
               UNION ALL
              SELECT f.id, 'send-fraud-alert' FROM unnest(fraud_ids) f (id)) t));
  END IF;
END $$;
COMMENT ON FUNCTION settle_payments IS 'Ends a batch of attempts by what their gateways said: see the migration.';
