-- Refunds and disputes: what is decided about them, and how they end. Rows are locked in one order everywhere: orders,
-- payments, refunds, products. Whatever changes the sums of a payment holds the lock on its row.

-- Of its own accord the service gives a payment back once: the job that asks for it may run any number of times.
CREATE UNIQUE INDEX refunds_one_own ON refunds (payment_id) WHERE created_by IS NULL AND NOT by_gateway;
-- How a dispute finds its payment where the gateway's event does not repeat our reference.
CREATE INDEX payment_attempts_transaction ON payment_attempts (gateway, transaction_id) WHERE transaction_id <> '';
-- What has been dealt with is forgotten after a while.
CREATE INDEX webhook_events_processed ON webhook_events (process_time) WHERE process_time IS NOT NULL;

-- Records a refund, if the payment's row, locked, allows it. Nothing is asked of a gateway yet.
--
-- created_by null: the service itself gives back whatever is left (amount, request_id and request_hash are null too); then
-- neither the window nor the number of refunds matters. owner_id: only this customer's payments are there; null:
-- everybody's. processed_since: the window's begin. max_refunds: of people, for one payment.
--
-- Answers one row:
--   RECORDED           it is this caller's to carry out until lease_expire_time
--   REPEATED           known_id is the one recorded before by the same request, or the service's own one
--   IN_PROGRESS        the same, and somebody is carrying it out
--   REQUEST_ID_REUSED, PAYMENT_NOT_FOUND
--   PAYMENT_STATUS     status: where it stands
--   CURRENCY, WINDOW_EXPIRED, TOO_MANY_REFUNDS
--   EXCEEDS            paid, refunded, refunding, disputed: the figures;  NOTHING_LEFT: the same for the service's own one
-- With every outcome from PAYMENT_STATUS on come the payment's facts.
CREATE FUNCTION record_refund(
  refund_id uuid, refunded_payment_id uuid, owner_id uuid, created_by uuid, request_id uuid, request_hash bytea,
  currency text, amount numeric, reason text, processed_since timestamptz, max_refunds integer,
  create_time timestamptz, lease_expire_time timestamptz, check_time timestamptz
) RETURNS TABLE (outcome text, known_id uuid, status text, paid_currency text, paid numeric, refunded numeric,
                 refunding numeric, disputed numeric, paid_time timestamptz)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  payment record;
  known record;
  remaining numeric;
BEGIN
  SELECT * INTO payment FROM payments p WHERE p.id = refunded_payment_id FOR NO KEY UPDATE;

  -- Read under the lock: a twin of the same request that came first has committed by now.
  IF created_by IS NULL THEN
    SELECT * INTO known FROM refunds r WHERE r.payment_id = payment.id AND r.created_by IS NULL AND NOT r.by_gateway;
  ELSE
    SELECT * INTO known FROM refunds r WHERE r.created_by = created_by AND r.request_id = request_id;
  END IF;
  IF known.id IS NOT NULL THEN
    known_id := known.id;
    outcome := CASE
      WHEN known.request_hash <> request_hash THEN 'REQUEST_ID_REUSED'
      WHEN known.status = 'PENDING' AND known.lease_expire_time > create_time THEN 'IN_PROGRESS'
      ELSE 'REPEATED' END;
    RETURN NEXT;
    RETURN;
  END IF;
  IF payment.id IS NULL OR payment.customer_id <> owner_id THEN
    outcome := 'PAYMENT_NOT_FOUND';
    RETURN NEXT;
    RETURN;
  END IF;

  status := payment.status;
  paid_currency := payment.currency;
  paid := payment.amount;
  refunded := payment.refunded_amount;
  refunding := payment.refunding_amount;
  paid_time := payment.process_time;
  -- A claim in another currency cannot be weighed, so it holds all of the payment.
  SELECT coalesce(sum(CASE WHEN d.currency = payment.currency THEN d.amount ELSE payment.amount END), 0) INTO disputed
    FROM disputes d WHERE d.payment_id = payment.id AND d.status IN ('OPEN', 'LOST');
  remaining := paid - refunded - refunding - disputed;

  outcome := CASE
    WHEN status <> 'COMPLETED' THEN 'PAYMENT_STATUS'
    WHEN created_by IS NULL AND remaining <= 0 THEN 'NOTHING_LEFT'
    WHEN created_by IS NULL THEN 'RECORDED'
    WHEN currency <> paid_currency THEN 'CURRENCY'
    WHEN paid_time < processed_since THEN 'WINDOW_EXPIRED'
    WHEN amount > remaining THEN 'EXCEEDS'
    WHEN (SELECT count(*) FROM refunds r WHERE r.payment_id = payment.id) >= max_refunds THEN 'TOO_MANY_REFUNDS'
    ELSE 'RECORDED' END;

  IF outcome = 'RECORDED' THEN
    INSERT INTO refunds (id, payment_id, created_by, request_id, request_hash, currency, amount, reason, create_time,
                         lease_expire_time, check_time)
    VALUES (refund_id, payment.id, created_by, request_id, request_hash, paid_currency, coalesce(amount, remaining),
            reason, create_time, lease_expire_time, check_time);
    UPDATE payments SET refunding_amount = refunding_amount + coalesce(amount, remaining) WHERE payments.id = payment.id;
  END IF;
  RETURN NEXT;
END $$;
COMMENT ON FUNCTION record_refund IS 'Records a refund, deciding under the lock on its payment: see the migration.';

-- Writes money that went back to the customer, or with REFUND_RETURNED came back from there, to the ledger.
CREATE FUNCTION write_return(
  movement_id uuid, kind text, payment_id uuid, gateway text, currency text, amount numeric, create_time timestamptz
) RETURNS void
LANGUAGE sql AS $$
  INSERT INTO ledger_entries (movement_id, kind, account, side, payment_id, currency, amount, create_time)
  SELECT $1, $2, e.account, CASE WHEN $2 = 'REFUND_RETURNED' THEN e.other_side ELSE e.side END, $3, $5, $6, $7
    FROM (VALUES ('REFUNDS', 'DEBIT', 'CREDIT'), ('CUSTOMER', 'CREDIT', 'DEBIT'),
                 ('CUSTOMER', 'DEBIT', 'CREDIT'), ('GATEWAY:' || $4, 'CREDIT', 'DEBIT')) e (account, side, other_side)
$$;
COMMENT ON FUNCTION write_return IS 'The ledger''s entries of a refund, of one that was sent back, or of a lost dispute.';

-- Ends a refund by its gateway's word. PENDING may become COMPLETED or FAILED; COMPLETED may become FAILED, when a bank
-- sends the money back; FAILED is the last word. Anything else changes nothing, so that it may be told again, in any
-- order. Every movement of money is written to the ledger here, once.
--
-- A payment that is given back whole makes its order REFUNDED, and cancels it where allowed_moves ('FROM>TO' pairs, as
-- move_orders takes them) still lets it be cancelled, which restores its stock.
--
-- Answers no row where there is no such refund; otherwise whether this changed it, what it was before, and whether its
-- failing leaves money of a cancelled order with us.
CREATE FUNCTION settle_refund(
  refund_id uuid, verdict text, transaction_id text, failure_reason text, allowed_moves text[], cancel_note text,
  settle_time timestamptz
) RETURNS TABLE (changed boolean, was text, owed boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  refund record;
  payment record;
  bought record;
  is_full boolean;
  paid_state text;
  tasks text[];
BEGIN
  PERFORM 1 FROM orders o WHERE o.id = (
    SELECT p.order_id FROM payments p JOIN refunds r ON r.payment_id = p.id WHERE r.id = refund_id) FOR NO KEY UPDATE;
  SELECT * INTO payment FROM payments p
   WHERE p.id = (SELECT r.payment_id FROM refunds r WHERE r.id = refund_id) FOR NO KEY UPDATE;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  SELECT * INTO STRICT refund FROM refunds r WHERE r.id = refund_id FOR NO KEY UPDATE;
  SELECT * INTO bought FROM orders o WHERE o.id = payment.order_id;

  was := refund.status;
  changed := was = 'PENDING' OR (was = 'COMPLETED' AND verdict = 'FAILED');
  owed := verdict = 'FAILED' AND coalesce(bought.status = 'CANCELLED', false);
  RETURN NEXT;
  IF NOT changed THEN
    RETURN;
  END IF;

  UPDATE refunds
     SET status = verdict, failure_reason = failure_reason, process_time = settle_time, lease_expire_time = NULL,
         check_time = NULL,
         gateway_transaction_id = coalesce(nullif(transaction_id, ''), refunds.gateway_transaction_id)
   WHERE refunds.id = refund_id;
  UPDATE payments
     SET refunding_amount = refunding_amount - CASE WHEN was = 'PENDING' THEN refund.amount ELSE 0 END,
         refunded_amount = refunded_amount
           + CASE WHEN verdict = 'COMPLETED' THEN refund.amount WHEN was = 'COMPLETED' THEN -refund.amount ELSE 0 END
   WHERE payments.id = payment.id
  RETURNING refunded_amount = amount INTO is_full;

  IF verdict = 'COMPLETED' THEN
    PERFORM write_return(refund.id, 'REFUND', payment.id, payment.gateway, refund.currency, refund.amount, settle_time);
  ELSIF was = 'COMPLETED' THEN
    PERFORM write_return(refund.id, 'REFUND_RETURNED', payment.id, payment.gateway, refund.currency, refund.amount,
                         settle_time);
  END IF;

  paid_state := CASE
    WHEN bought.payment_state = 'PAID' AND is_full THEN 'REFUNDED'
    WHEN bought.payment_state = 'REFUNDED' AND NOT is_full THEN 'PAID' END;
  IF paid_state IS NOT NULL THEN
    UPDATE orders SET payment_state = paid_state, update_time = settle_time, version = version + 1
     WHERE orders.id = bought.id;
    INSERT INTO order_events (order_id, from_status, to_status, from_payment_state, to_payment_state, actor_id, reason,
                              create_time)
    VALUES (bought.id, bought.status, bought.status, bought.payment_state, paid_state, refund.created_by,
            CASE paid_state WHEN 'PAID' THEN 'Refund sent back' ELSE 'Refund' END, settle_time);
    IF paid_state = 'REFUNDED' AND bought.status || '>CANCELLED' = ANY (allowed_moves) THEN
      PERFORM 1 FROM move_orders(ARRAY[bought.id], ARRAY['CANCELLED'], ARRAY[cancel_note], ARRAY['Refund'], ARRAY[''],
                                 allowed_moves, NULL, refund.created_by, false, settle_time, settle_time);
    END IF;
  END IF;

  -- Points follow the money both ways; of money that a bank sent back nobody is told that it has come.
  tasks := CASE
    WHEN verdict = 'COMPLETED' THEN ARRAY['send-refund-confirmation', 'take-back-rewards']
    WHEN was = 'COMPLETED' THEN ARRAY['take-back-rewards']
    ELSE '{}' END;
  IF cardinality(tasks) > 0 THEN
    PERFORM graphile_worker.add_jobs(ARRAY(
      SELECT json_populate_record(NULL::graphile_worker.job_spec,
               json_build_object('identifier', t.task, 'payload', json_build_object('refundId', refund.id)))
        FROM unnest(tasks) t (task)));
  END IF;
END $$;
COMMENT ON FUNCTION settle_refund IS 'Ends a refund by its gateway''s word: see the migration.';

-- Takes in a gateway's word that a charge which it had told to be captured holds no money: it was only authorised, and then
-- cancelled or never captured. The payment stays COMPLETED, as its customer was told, and is given back in the books: what
-- is left of it by a refund whose id is the attempt's, so that it is there once. Refunds under way fail, since there is
-- nothing that they could be taken from. Order, ledger, points and mails follow as they do for any refund.
--
-- Answers one row:
--   RETURNED      amount: what the refund is of
--   NOTHING_LEFT  all of it was refunded, or lost in disputes, before
--   UNCHANGED     the attempt has taken no money that is kept, or this was told before
-- failed_refunds: how many had been under way.
CREATE FUNCTION void_captured(
  voided_attempt_id uuid, reason text, allowed_moves text[], cancel_note text, settle_time timestamptz
) RETURNS TABLE (outcome text, amount numeric, failed_refunds integer)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  payment record;
  pending_id uuid;
BEGIN
  PERFORM 1 FROM orders o WHERE o.id = (
    SELECT p.order_id FROM payments p JOIN payment_attempts a ON a.payment_id = p.id
     WHERE a.id = voided_attempt_id) FOR NO KEY UPDATE;
  SELECT * INTO payment FROM payments p
   WHERE p.id = (SELECT a.payment_id FROM payment_attempts a WHERE a.id = voided_attempt_id) FOR NO KEY UPDATE;
  failed_refunds := 0;
  IF NOT EXISTS (SELECT FROM payment_attempts a WHERE a.id = voided_attempt_id AND a.state = 'CAPTURED')
     OR EXISTS (SELECT FROM refunds r WHERE r.id = voided_attempt_id) THEN
    outcome := 'UNCHANGED';
    RETURN NEXT;
    RETURN;
  END IF;

  FOR pending_id IN
    SELECT r.id FROM refunds r WHERE r.payment_id = payment.id AND r.status = 'PENDING' ORDER BY r.id
  LOOP
    PERFORM 1 FROM settle_refund(pending_id, 'FAILED', '', 'Refund failed: the gateway has cancelled the charge',
                                 allowed_moves, cancel_note, settle_time);
    failed_refunds := failed_refunds + 1;
  END LOOP;

  SELECT payment.amount - payment.refunded_amount
         - coalesce(sum(CASE WHEN d.currency = payment.currency THEN d.amount ELSE payment.amount END), 0) INTO amount
    FROM disputes d WHERE d.payment_id = payment.id AND d.status = 'LOST';
  outcome := CASE WHEN amount > 0 THEN 'RETURNED' ELSE 'NOTHING_LEFT' END;
  IF amount > 0 THEN
    INSERT INTO refunds (id, payment_id, by_gateway, currency, amount, reason, create_time, check_time)
    VALUES (voided_attempt_id, payment.id, true, payment.currency, amount, reason, settle_time, settle_time);
    UPDATE payments SET refunding_amount = refunding_amount + amount WHERE payments.id = payment.id;
    PERFORM 1 FROM settle_refund(voided_attempt_id, 'COMPLETED', '', '', allowed_moves, cancel_note, settle_time);
  END IF;
  RETURN NEXT;
END $$;
COMMENT ON FUNCTION void_captured IS 'Gives back in the books what a gateway has not taken after all: see the migration.';

-- Takes in what a gateway tells of a dispute, in any order and any number of times: OPEN gives way to WON, and both to
-- LOST, never back. Money that is lost is written to the ledger once. Nothing here can violate a constraint, whatever was
-- refunded before: disputes are weighed when a refund is decided.
--
-- Its payment is found by the attempt's id or, where that is null, by the gateway's id of the charge.
--
-- Answers no row where there is no such charge; otherwise its payment, and what the dispute was before (null: new) and
-- is now.
CREATE FUNCTION record_dispute(
  dispute_id uuid, gateway text, gateway_dispute_id text, attempt_id uuid, transaction_id text, currency text,
  amount numeric, status text, reason text, occur_time timestamptz
) RETURNS TABLE (payment_id uuid, was text, now_is text)
LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
  known record;
  ranks CONSTANT text[] := ARRAY['OPEN', 'WON', 'LOST'];
BEGIN
  SELECT a.payment_id INTO payment_id FROM payment_attempts a
   WHERE a.gateway = gateway
     AND CASE WHEN attempt_id IS NOT NULL THEN a.id = attempt_id ELSE a.transaction_id = transaction_id END
   ORDER BY a.number LIMIT 1;
  IF payment_id IS NULL THEN
    RETURN;
  END IF;
  -- Refunds of this payment are decided under the same lock, so one of them sees the other.
  PERFORM 1 FROM payments p WHERE p.id = payment_id FOR NO KEY UPDATE;
  SELECT * INTO known FROM disputes d WHERE d.gateway = gateway AND d.gateway_dispute_id = gateway_dispute_id;
  was := known.status;
  now_is := coalesce(known.status, status);

  IF known.id IS NULL THEN
    INSERT INTO disputes (id, payment_id, gateway, gateway_dispute_id, currency, amount, status, reason, create_time,
                          resolve_time)
    VALUES (dispute_id, payment_id, gateway, gateway_dispute_id, currency, amount, status, reason, occur_time,
            CASE WHEN status <> 'OPEN' THEN occur_time END);
  ELSIF array_position(ranks, status) > array_position(ranks, known.status) THEN
    now_is := status;
    UPDATE disputes
       SET status = status, currency = currency, amount = amount, resolve_time = occur_time,
           reason = coalesce(nullif(reason, ''), disputes.reason)
     WHERE disputes.id = known.id;
  ELSIF status = 'OPEN' THEN
    -- It is told late of its beginning.
    UPDATE disputes SET create_time = least(disputes.create_time, occur_time) WHERE disputes.id = known.id;
  END IF;

  IF now_is = 'LOST' AND was IS DISTINCT FROM 'LOST' THEN
    PERFORM write_return(coalesce(known.id, dispute_id), 'DISPUTE_LOST', payment_id, gateway, currency, amount, occur_time);
  END IF;
  RETURN NEXT;
END $$;
COMMENT ON FUNCTION record_dispute IS 'Takes in what a gateway tells of a dispute, in any order: see the migration.';
