-- Places a batch of orders in one statement, with the outcomes of placing them one at a time in arrival order.
--
-- The products of all orders are locked once, sorted by id, so that two batches cannot deadlock. Everything else is
-- read after that lock, by a later statement with a fresh snapshot, so it sees what other batches have committed. Each
-- order is then decided in memory against the stock that its predecessors left, and all rows are written set-based. An
-- order that is refused takes nothing, so it never costs a batch-mate its stock.
--
-- The key (created_by, request_id) is held by a plain INSERT: if another batch commits the same request between our
-- look and our write, the whole batch fails with 23505, the caller runs it again, and then the look finds it.
--
-- Arguments: one element an order, in arrival order, no two with the same created_by and request_id; and one element a
-- line, grouped by order in the same order, a product at most once an order, line_orders counting from 1.
--
-- Answers one row an order, in order:
--   PLACED              detail {currency, total, address, items: [{name, price}]}
--   REPEATED            order_id is that of the order placed before by the same request
--   REQUEST_ID_REUSED   request_id was used for another request
--   CUSTOMER_INACTIVE, ADDRESS_INVALID, CURRENCY_MIXED
--   PRODUCT_UNAVAILABLE detail {product_id}
--   INSUFFICIENT_STOCK  detail {product_id, product, available, requested}
--   ORDER_TOTAL_TOO_LARGE detail {currency, total}
CREATE FUNCTION place_orders(
  ids uuid[], customer_ids uuid[], created_by uuid[], request_ids uuid[], request_hashes bytea[], address_ids uuid[],
  notes text[], statuses text[], expire_times timestamptz[], order_times timestamptz[],
  line_orders integer[], line_positions integer[], line_ids uuid[], line_products uuid[], line_quantities integer[]
) RETURNS TABLE (outcome text, order_id uuid, detail json)
LANGUAGE plpgsql
-- One plan for every batch: what is looked up by index is few rows of big tables, whatever the planner takes an array for.
-- Planning anew took a third of a lone order's time.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_variable
DECLARE
  max_total CONSTANT numeric := 99999999.99;

  -- The locked products, by their place in id order.
  product_ids uuid[];
  product_names text[];
  product_currencies text[];
  product_prices numeric[];
  product_actives boolean[];
  product_items text[];
  stocks integer[];

  -- What is known of each order before stock is looked at.
  known_ids uuid[];
  same_requests boolean[];
  customer_actives boolean[];
  addresses jsonb[];

  -- Where each line's product stands among the locked ones; 0: there is no such product.
  line_ks integer[];

  outcomes text[] := '{}';
  details json[] := '{}';
  currencies text[] := '{}';
  totals numeric[] := '{}';

  n_lines integer := cardinality(line_orders);
  first_line integer;
  last_line integer := 0;
  verdict text;
  facts json;
  items text;
  currency text;
  total numeric;
  short_line integer;
  k integer;
BEGIN
  SELECT array_agg(p.id), array_agg(p.name), array_agg(p.currency), array_agg(p.price), array_agg(p.active),
         array_agg(json_build_object('name', p.name, 'price', p.price::text)::text), array_agg(p.stock_quantity)
    INTO product_ids, product_names, product_currencies, product_prices, product_actives, product_items, stocks
    FROM (SELECT id, name, products.currency, price, active, stock_quantity
            FROM products WHERE id = ANY (line_products) ORDER BY id FOR NO KEY UPDATE) p;

  SELECT array_agg(coalesce(array_position(product_ids, l.product_id), 0) ORDER BY l.at)
    INTO line_ks
    FROM unnest(line_products) WITH ORDINALITY l (product_id, at);

  SELECT array_agg(o.id ORDER BY r.at), array_agg(o.request_hash = r.request_hash ORDER BY r.at),
         array_agg(u.id IS NOT NULL ORDER BY r.at),
         array_agg(CASE WHEN a.id IS NOT NULL THEN jsonb_build_object('street', a.street, 'city', a.city,
           'state', a.state, 'postal_code', a.postal_code, 'country', a.country) END ORDER BY r.at)
    INTO known_ids, same_requests, customer_actives, addresses
    FROM unnest(customer_ids, created_by, request_ids, request_hashes, address_ids) WITH ORDINALITY
           r (customer_id, created_by, request_id, request_hash, address_id, at)
    LEFT JOIN orders o ON o.created_by = r.created_by AND o.request_id = r.request_id
    LEFT JOIN users u ON u.id = r.customer_id AND u.delete_time IS NULL
    LEFT JOIN addresses a ON a.id = r.address_id AND a.user_id = r.customer_id AND a.delete_time IS NULL;

  FOR o IN 1 .. cardinality(ids) LOOP
    first_line := last_line + 1;
    WHILE last_line < n_lines AND line_orders[last_line + 1] = o LOOP
      last_line := last_line + 1;
    END LOOP;

    facts := NULL;
    currency := NULL;
    total := 0;
    verdict := CASE
      WHEN known_ids[o] IS NOT NULL AND same_requests[o] THEN 'REPEATED'
      WHEN known_ids[o] IS NOT NULL THEN 'REQUEST_ID_REUSED'
      WHEN NOT customer_actives[o] THEN 'CUSTOMER_INACTIVE'
      WHEN address_ids[o] IS NOT NULL AND addresses[o] IS NULL THEN 'ADDRESS_INVALID'
      ELSE 'PLACED' END;

    IF verdict = 'PLACED' THEN
      items := NULL;
      short_line := NULL;
      FOR l IN first_line .. last_line LOOP
        k := line_ks[l];
        IF k = 0 OR NOT product_actives[k] THEN
          verdict := 'PRODUCT_UNAVAILABLE';
          facts := json_build_object('product_id', line_products[l]);
          EXIT;
        END IF;
        currency := coalesce(currency, product_currencies[k]);
        IF currency <> product_currencies[k] THEN
          verdict := 'CURRENCY_MIXED';
          EXIT;
        END IF;
        total := total + product_prices[k] * line_quantities[l];
        items := concat_ws(',', items, product_items[k]);
        IF short_line IS NULL AND stocks[k] < line_quantities[l] THEN
          short_line := l;
        END IF;
      END LOOP;
    END IF;

    IF verdict = 'PLACED' AND total > max_total THEN
      verdict := 'ORDER_TOTAL_TOO_LARGE';
      facts := json_build_object('currency', currency, 'total', total::text);
    END IF;

    IF verdict = 'PLACED' AND short_line IS NOT NULL THEN
      verdict := 'INSUFFICIENT_STOCK';
      k := line_ks[short_line];
      facts := json_build_object('product_id', product_ids[k], 'product', product_names[k], 'available', stocks[k],
                                 'requested', line_quantities[short_line]);
    END IF;

    IF verdict = 'PLACED' THEN
      FOR l IN first_line .. last_line LOOP
        k := line_ks[l];
        stocks[k] := stocks[k] - line_quantities[l];
      END LOOP;
      facts := json_build_object('currency', currency, 'total', total::text, 'address', addresses[o],
                                 'items', concat('[', items, ']')::json);
    END IF;

    outcomes := outcomes || verdict;
    details := details || facts;
    currencies := currencies || currency;
    totals := totals || total;
  END LOOP;

  -- Sorted by the unique key: two batches that hold each other's requests then wait for one another in one direction.
  INSERT INTO orders (id, customer_id, created_by, request_id, request_hash, status, currency, total_amount,
                      shipping_address_id, shipping_address, expire_time, notes, order_time, update_time)
  SELECT r.id, r.customer_id, r.created_by, r.request_id, r.request_hash, r.status, r.currency, r.total, r.address_id,
         r.address, r.expire_time, r.notes, r.order_time, r.order_time
    FROM unnest(ids, customer_ids, created_by, request_ids, request_hashes, address_ids, notes, statuses, expire_times,
                order_times, currencies, totals, addresses, outcomes)
           r (id, customer_id, created_by, request_id, request_hash, address_id, notes, status, expire_time, order_time,
              currency, total, address, outcome)
   WHERE r.outcome = 'PLACED'
   ORDER BY r.created_by, r.request_id;

  IF FOUND THEN
    INSERT INTO order_events (order_id, to_status, to_payment_state, actor_id, create_time)
    SELECT r.id, r.status, 'UNPAID', r.created_by, r.order_time
      FROM unnest(ids, statuses, created_by, order_times, outcomes) r (id, status, created_by, order_time, outcome)
     WHERE r.outcome = 'PLACED';

    INSERT INTO order_items (order_id, position, id, product_id, product_name, quantity, unit_price)
    SELECT ids[l.o], l.at, l.id, l.product_id, product_names[l.k], l.quantity, product_prices[l.k]
      FROM unnest(line_orders, line_positions, line_ids, line_products, line_quantities, line_ks)
             l (o, at, id, product_id, quantity, k)
     WHERE outcomes[l.o] = 'PLACED';

    INSERT INTO stock_movements (product_id, delta, kind, order_id, create_time)
    SELECT l.product_id, -l.quantity, 'SALE', ids[l.o], order_times[l.o]
      FROM unnest(line_orders, line_products, line_quantities) l (o, product_id, quantity)
     WHERE outcomes[l.o] = 'PLACED';

    UPDATE products SET stock_quantity = s.stock
      FROM unnest(product_ids, stocks) s (id, stock)
     WHERE products.id = s.id AND products.stock_quantity <> s.stock;
  END IF;

  RETURN QUERY
  SELECT r.outcome, coalesce(r.known_id, r.id), r.detail
    FROM unnest(ids, known_ids, outcomes, details) WITH ORDINALITY r (id, known_id, outcome, detail, at)
   ORDER BY r.at;
END $$;
COMMENT ON FUNCTION place_orders IS 'Places a batch of orders, deciding in arrival order: see the migration.';
