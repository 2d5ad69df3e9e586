-- Moves a batch of orders from one status to another in one statement, with the outcomes of moving them one at a time in
-- the order given; the same order may come more than once. Which moves there are is the caller's table, given as
-- 'FROM>TO' pairs, so that it stands in one place.
--
-- Orders are locked first and products after them, each sorted by id, as everywhere. Cancelling gives the stock back,
-- once: the status is checked again in the UPDATE's WHERE, and stock_movements_once forbids a second restoring.
--
-- owner_id: only this customer's orders are there; null: everybody's. expiring: only unpaid orders whose time has passed
-- at move_time are moved; a payment that is still under way at hold_until is left to be reversed by the payments feature.
--
-- Answers one row a move, in order:
--   MOVED           from_status; was_paid: the order was PAID when it was cancelled, so its money has to go back
--   NOT_FOUND
--   INVALID         from_status: there is no such move
--   PAYMENT_PENDING from_status: it cannot be cancelled while a payment is under way
--   NOT_DUE         expiring only: it has been paid, moved or prolonged meanwhile
CREATE FUNCTION move_orders(
  order_ids uuid[], to_statuses text[], note_lines text[], reasons text[], tracking_numbers text[], allowed_moves text[],
  owner_id uuid, actor_id uuid, expiring boolean, hold_until timestamptz, move_time timestamptz
) RETURNS TABLE (outcome text, from_status text, was_paid boolean)
LANGUAGE plpgsql
-- One plan for every batch, by index: see place_orders.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
  -- The locked orders, by their place in id order.
  ids uuid[];
  customers uuid[];
  first_statuses text[];
  statuses text[];
  payment_states text[];
  expiries timestamptz[];
  notes text[];
  trackings text[];
  moves integer[];
  detached boolean[];

  move_ks integer[];
  outcomes text[] := '{}';
  froms text[] := '{}';
  paids boolean[] := '{}';
  cancelled uuid[] := '{}';
  verdict text;
  was text;
  k integer;
BEGIN
  SELECT array_agg(o.id), array_agg(o.customer_id), array_agg(o.status), array_agg(o.payment_state),
         array_agg(o.expire_time), array_agg(o.notes), array_agg(o.tracking_number), array_agg(0), array_agg(false)
    INTO ids, customers, first_statuses, payment_states, expiries, notes, trackings, moves, detached
    FROM (SELECT id, customer_id, status, payment_state, expire_time, orders.notes, tracking_number
            FROM orders WHERE id = ANY (order_ids) ORDER BY id FOR NO KEY UPDATE) o;
  statuses := first_statuses;

  SELECT array_agg(coalesce(array_position(ids, m.id), 0) ORDER BY m.at)
    INTO move_ks
    FROM unnest(order_ids) WITH ORDINALITY m (id, at);

  FOR i IN 1 .. cardinality(order_ids) LOOP
    k := move_ks[i];
    was := CASE WHEN k > 0 THEN statuses[k] END;
    verdict := CASE
      WHEN k = 0 OR customers[k] <> owner_id THEN 'NOT_FOUND'
      WHEN expiring AND (was <> 'PENDING' OR expiries[k] IS NULL OR expiries[k] > move_time
                         OR payment_states[k] NOT IN ('UNPAID', 'PENDING')
                         OR (payment_states[k] = 'PENDING' AND expiries[k] > hold_until)) THEN 'NOT_DUE'
      WHEN NOT was || '>' || to_statuses[i] = ANY (allowed_moves) THEN 'INVALID'
      WHEN to_statuses[i] = 'CANCELLED' AND payment_states[k] = 'PENDING' AND NOT expiring THEN 'PAYMENT_PENDING'
      ELSE 'MOVED' END;

    IF verdict = 'MOVED' THEN
      statuses[k] := to_statuses[i];
      moves[k] := moves[k] + 1;
      IF note_lines[i] <> '' THEN
        notes[k] := CASE WHEN notes[k] = '' THEN '' ELSE notes[k] || E'\n' END || note_lines[i];
      END IF;
      IF tracking_numbers[i] <> '' THEN
        trackings[k] := tracking_numbers[i];
      END IF;
      IF to_statuses[i] = 'CANCELLED' THEN
        cancelled := cancelled || ids[k];
        detached[k] := payment_states[k] = 'PENDING';
      END IF;
    END IF;
    outcomes := outcomes || verdict;
    froms := froms || CASE WHEN verdict <> 'NOT_FOUND' THEN was END;
    paids := paids || (verdict = 'MOVED' AND to_statuses[i] = 'CANCELLED' AND payment_states[k] = 'PAID');
  END LOOP;

  UPDATE orders
     SET status = m.status, notes = m.notes, tracking_number = m.tracking,
         payment_state = CASE WHEN m.detached THEN 'UNPAID' ELSE payment_state END,
         expire_time = CASE WHEN m.status = 'PENDING' THEN expire_time END,
         update_time = move_time, version = version + m.moves
    FROM unnest(ids, first_statuses, statuses, notes, trackings, moves, detached)
           m (id, first_status, status, notes, tracking, moves, detached)
   WHERE orders.id = m.id AND m.moves > 0 AND orders.status = m.first_status;

  IF FOUND THEN
    INSERT INTO order_events (order_id, from_status, to_status, from_payment_state, to_payment_state, actor_id, reason,
                              create_time)
    SELECT m.id, m.was, m.status, payment_states[m.k],
           CASE WHEN m.status = 'CANCELLED' AND detached[m.k] THEN 'UNPAID' ELSE payment_states[m.k] END,
           actor_id, m.reason, move_time
      FROM unnest(order_ids, froms, to_statuses, reasons, outcomes, move_ks) WITH ORDINALITY
             m (id, was, status, reason, outcome, k, at)
     WHERE m.outcome = 'MOVED'
     ORDER BY m.at;
  END IF;

  IF cardinality(cancelled) > 0 THEN
    PERFORM 1 FROM products
     WHERE id IN (SELECT product_id FROM order_items WHERE order_id = ANY (cancelled)) ORDER BY id FOR NO KEY UPDATE;

    INSERT INTO stock_movements (product_id, delta, kind, order_id, actor_id, create_time)
    SELECT product_id, quantity, 'RESTORE', order_id, actor_id, move_time
      FROM order_items WHERE order_id = ANY (cancelled);

    UPDATE products SET stock_quantity = stock_quantity + r.quantity
      FROM (SELECT product_id, sum(quantity)::integer AS quantity
              FROM order_items WHERE order_id = ANY (cancelled) GROUP BY product_id) r
     WHERE products.id = r.product_id;
  END IF;

  RETURN QUERY
  SELECT r.outcome, r.was, r.paid
    FROM unnest(outcomes, froms, paids) WITH ORDINALITY r (outcome, was, paid, at) ORDER BY r.at;
END $$;
COMMENT ON FUNCTION move_orders IS 'Moves a batch of orders, deciding in the order given: see the migration.';
