-- Records a batch of payments in one statement, with the outcomes of recording them one at a time in arrival order: each
-- payment with its first attempt, its order marked as being paid. Nothing is charged yet.
--
-- The orders are locked first, sorted by id, then known payments of the same requests. What is read after that sees what
-- other batches have committed; the unique keys of payments hold the rest, and a violation makes the caller run again.
--
-- Arguments: one element a payment, in arrival order, no two with the same created_by and request_id. order_ids: null for
-- a payment without an order.
--
-- Answers one row a payment, in order:
--   RECORDED            it is this caller's to carry out until lease_expire_time
--   REPEATED            payment_id is the one recorded before by the same request, and it is over
--   TAKEN_OVER          the same, but PENDING and carried out by nobody: it is this caller's now
--   IN_PROGRESS         the same, and somebody else carries it out
--   REQUEST_ID_REUSED, ORDER_NOT_FOUND, CUSTOMER_INACTIVE
--   ORDER_STATUS, ORDER_PAYMENT_STATE detail: where it stands;  ORDER_EXPIRED
--   AMOUNT_MISMATCH     detail: "<total> <currency>"
CREATE FUNCTION record_payments(
  ids uuid[], customer_ids uuid[], order_ids uuid[], created_by uuid[], request_ids uuid[], request_hashes bytea[],
  currencies text[], amounts numeric[], card_tokens text[], billing_countries text[], attempt_ids uuid[],
  gateways text[], create_times timestamptz[], lease_expire_times timestamptz[], check_times timestamptz[]
) RETURNS TABLE (outcome text, payment_id uuid, detail text)
LANGUAGE plpgsql
-- One plan for every batch, by index: see place_orders.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
  -- The locked orders, by their place in id order.
  locked_ids uuid[];
  owners uuid[];
  statuses text[];
  states text[];
  order_currencies text[];
  totals numeric[];
  expiries timestamptz[];

  known_ids uuid[];
  same_requests boolean[];
  known_pending boolean[];
  known_free boolean[];
  customer_actives boolean[];
  ks integer[];

  outcomes text[] := '{}';
  details text[] := '{}';
  verdict text;
  fact text;
  k integer;
BEGIN
  SELECT array_agg(o.id), array_agg(o.customer_id), array_agg(o.status), array_agg(o.payment_state),
         array_agg(o.currency), array_agg(o.total_amount), array_agg(o.expire_time)
    INTO locked_ids, owners, statuses, states, order_currencies, totals, expiries
    FROM (SELECT id, customer_id, status, payment_state, currency, total_amount, expire_time
            FROM orders WHERE id = ANY (order_ids) ORDER BY id FOR NO KEY UPDATE) o;

  -- Two calls that want to take over one payment wait here for each other.
  PERFORM 1 FROM (
    SELECT p.id FROM payments p
      JOIN unnest(created_by, request_ids) r (created_by, request_id)
        ON p.created_by = r.created_by AND p.request_id = r.request_id
     WHERE p.status = 'PENDING' ORDER BY p.id FOR NO KEY UPDATE OF p) locked;

  SELECT array_agg(p.id ORDER BY r.at), array_agg(p.request_hash = r.request_hash ORDER BY r.at),
         array_agg(p.status = 'PENDING' ORDER BY r.at),
         array_agg(coalesce(p.lease_expire_time <= r.now, true) ORDER BY r.at),
         array_agg(u.id IS NOT NULL ORDER BY r.at), array_agg(coalesce(array_position(locked_ids, r.order_id), 0) ORDER BY r.at)
    INTO known_ids, same_requests, known_pending, known_free, customer_actives, ks
    FROM unnest(customer_ids, order_ids, created_by, request_ids, request_hashes, create_times) WITH ORDINALITY
           r (customer_id, order_id, created_by, request_id, request_hash, now, at)
    LEFT JOIN payments p ON p.created_by = r.created_by AND p.request_id = r.request_id
    LEFT JOIN users u ON u.id = r.customer_id AND u.delete_time IS NULL;

  FOR i IN 1 .. cardinality(ids) LOOP
    k := ks[i];
    fact := NULL;
    IF known_ids[i] IS NOT NULL THEN
      verdict := CASE
        WHEN NOT same_requests[i] THEN 'REQUEST_ID_REUSED'
        WHEN NOT known_pending[i] THEN 'REPEATED'
        WHEN known_free[i] THEN 'TAKEN_OVER'
        ELSE 'IN_PROGRESS' END;
    ELSIF NOT customer_actives[i] THEN
      verdict := 'CUSTOMER_INACTIVE';
    ELSIF order_ids[i] IS NULL THEN
      verdict := 'RECORDED';
    ELSIF k = 0 OR owners[k] <> customer_ids[i] THEN
      verdict := 'ORDER_NOT_FOUND';
    ELSIF statuses[k] NOT IN ('PENDING', 'CONFIRMED') THEN
      verdict := 'ORDER_STATUS';
      fact := statuses[k];
    ELSIF states[k] <> 'UNPAID' THEN
      verdict := 'ORDER_PAYMENT_STATE';
      fact := states[k];
    ELSIF statuses[k] = 'PENDING' AND expiries[k] <= create_times[i] THEN
      verdict := 'ORDER_EXPIRED';
    ELSIF order_currencies[k] <> currencies[i] OR totals[k] <> amounts[i] THEN
      verdict := 'AMOUNT_MISMATCH';
      fact := totals[k] || ' ' || order_currencies[k];
    ELSE
      verdict := 'RECORDED';
      states[k] := 'PENDING';
    END IF;
    outcomes := outcomes || verdict;
    details := details || fact;
  END LOOP;

  -- Sorted by the unique key: two batches that hold each other's requests then wait for one another in one direction.
  INSERT INTO payments (id, customer_id, order_id, created_by, request_id, request_hash, currency, amount, card_token,
                        billing_country, create_time, lease_expire_time, check_time)
  SELECT r.id, r.customer_id, r.order_id, r.created_by, r.request_id, r.request_hash, r.currency, r.amount, r.token,
         r.country, r.create_time, r.lease, r.check_time
    FROM unnest(ids, customer_ids, order_ids, created_by, request_ids, request_hashes, currencies, amounts, card_tokens,
                billing_countries, create_times, lease_expire_times, check_times, outcomes)
           r (id, customer_id, order_id, created_by, request_id, request_hash, currency, amount, token, country,
              create_time, lease, check_time, outcome)
   WHERE r.outcome = 'RECORDED'
   ORDER BY r.created_by, r.request_id;

  IF FOUND THEN
    INSERT INTO payment_attempts (id, payment_id, number, gateway, create_time, update_time)
    SELECT r.attempt_id, r.id, 1, r.gateway, r.now, r.now
      FROM unnest(attempt_ids, ids, gateways, create_times, outcomes) r (attempt_id, id, gateway, now, outcome)
     WHERE r.outcome = 'RECORDED';

    INSERT INTO order_events (order_id, from_status, to_status, from_payment_state, to_payment_state, actor_id, reason,
                              create_time)
    SELECT r.order_id, statuses[r.k], statuses[r.k], 'UNPAID', 'PENDING', r.created_by, 'Payment', r.now
      FROM unnest(order_ids, ks, created_by, create_times, outcomes) r (order_id, k, created_by, now, outcome)
     WHERE r.outcome = 'RECORDED' AND r.order_id IS NOT NULL;

    UPDATE orders SET payment_state = 'PENDING', update_time = r.now, version = version + 1
      FROM unnest(order_ids, create_times, outcomes) r (order_id, now, outcome)
     WHERE orders.id = r.order_id AND r.outcome = 'RECORDED' AND orders.payment_state = 'UNPAID';
  END IF;

  UPDATE payments SET lease_expire_time = r.lease
    FROM unnest(known_ids, lease_expire_times, outcomes) r (id, lease, outcome)
   WHERE payments.id = r.id AND r.outcome = 'TAKEN_OVER';

  RETURN QUERY
  SELECT r.outcome, coalesce(r.known_id, r.id), r.detail
    FROM unnest(ids, known_ids, outcomes, details) WITH ORDINALITY r (id, known_id, outcome, detail, at) ORDER BY r.at;
END $$;
COMMENT ON FUNCTION record_payments IS 'Records a batch of payments, deciding in arrival order: see the migration.';
