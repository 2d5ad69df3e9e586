-- The catalogue, its stock journal, and orders.
-- Amounts are numeric(11,3): exact, up to 99,999,999.999, three decimals for the currencies that have them.

CREATE TABLE products (
  id             uuid PRIMARY KEY,
  name           text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
  description    text NOT NULL DEFAULT '' CHECK (char_length(description) <= 5000),
  currency       text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
  price          numeric(11,3) NOT NULL CHECK (price BETWEEN 0 AND 99999999.99),
  stock_quantity integer NOT NULL CONSTRAINT products_stock_not_negative CHECK (stock_quantity >= 0),
  active         boolean NOT NULL,
  create_time    timestamptz(3) NOT NULL,
  update_time    timestamptz(3) NOT NULL,
  version        integer NOT NULL DEFAULT 1
);
-- Lists search names by a part of them; the index serves parts of three letters and more.
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE INDEX products_name ON products USING gin (name gin_trgm_ops);
COMMENT ON TABLE products IS 'What can be ordered. stock_quantity is always the sum of the product''s stock_movements.';
-- Stock changes with every order: with room on the page and no index on the changed column those updates stay HOT.
ALTER TABLE products SET (fillfactor = 50);

CREATE TABLE orders (
  id                  uuid PRIMARY KEY,
  customer_id         uuid NOT NULL REFERENCES users,
  created_by          uuid NOT NULL REFERENCES users,
  request_id          uuid NOT NULL,
  request_hash        bytea NOT NULL,
  status              text NOT NULL
    CHECK (status IN ('PENDING', 'CONFIRMED', 'SHIPPED', 'DELIVERED', 'CANCELLED', 'RETURNED')),
  payment_state       text NOT NULL DEFAULT 'UNPAID'
    CHECK (payment_state IN ('UNPAID', 'PENDING', 'PAID', 'REFUNDED')),
  currency            text NOT NULL,
  total_amount        numeric(11,3) NOT NULL CHECK (total_amount BETWEEN 0 AND 99999999.99),
  shipping_address_id uuid REFERENCES addresses,
  shipping_address    jsonb,
  expire_time         timestamptz(3),
  notes               text NOT NULL DEFAULT '',
  tracking_number     text NOT NULL DEFAULT '',
  order_time          timestamptz(3) NOT NULL,
  update_time         timestamptz(3) NOT NULL,
  version             integer NOT NULL DEFAULT 1,
  CONSTRAINT orders_request_key UNIQUE (created_by, request_id),
  CONSTRAINT orders_cancelled_not_in_payment CHECK (NOT (status = 'CANCELLED' AND payment_state = 'PENDING')),
  CONSTRAINT orders_address_as_it_was CHECK ((shipping_address_id IS NULL) = (shipping_address IS NULL))
);
COMMENT ON TABLE orders IS 'Customers'' orders. payment_state is moved by the payments feature only.';
COMMENT ON COLUMN orders.created_by IS 'Who called; request_id is unique for each caller.';
COMMENT ON COLUMN orders.request_hash IS 'SHA-256 of the request''s canonical form, to tell a repeated request from another one under the same id.';
COMMENT ON COLUMN orders.shipping_address IS 'The address as it was: {street, city, state, postal_code, country}.';
CREATE INDEX orders_customer ON orders (customer_id, order_time DESC, id DESC);
CREATE INDEX orders_time ON orders (order_time DESC, id DESC);
CREATE INDEX orders_status ON orders (status, order_time DESC, id DESC);
-- What the sweep of unpaid orders reads: only those that can expire.
CREATE INDEX orders_expiry ON orders (expire_time) WHERE status = 'PENDING';

CREATE TABLE order_items (
  order_id     uuid NOT NULL REFERENCES orders ON DELETE CASCADE,
  position     integer NOT NULL CHECK (position > 0),
  id           uuid NOT NULL,
  product_id   uuid NOT NULL REFERENCES products,
  product_name text NOT NULL,
  quantity     integer NOT NULL CHECK (quantity BETWEEN 1 AND 10000),
  unit_price   numeric(11,3) NOT NULL CHECK (unit_price >= 0),
  PRIMARY KEY (order_id, product_id)
);
COMMENT ON TABLE order_items IS 'The lines of an order, a product at most once, with name and price as they were.';

CREATE TABLE stock_movements (
  id           bigint GENERATED ALWAYS AS IDENTITY,
  product_id   uuid NOT NULL,
  -- What an order took or gave back is an item of it, and so of a product that there is: one look-up for each instead of
  -- two, and stricter. Other movements have no item to vouch for their product, and this column does it.
  orderless_product_id uuid GENERATED ALWAYS AS (CASE WHEN order_id IS NULL THEN product_id END) STORED
    CONSTRAINT stock_movements_product_fkey REFERENCES products,
  delta        integer NOT NULL,
  kind         text NOT NULL CHECK (kind IN ('INITIAL', 'SALE', 'RESTORE', 'ADJUSTMENT')),
  order_id     uuid,
  reason       text NOT NULL DEFAULT '',
  actor_id     uuid REFERENCES users,
  request_id   uuid,
  request_hash bytea,
  create_time  timestamptz(3) NOT NULL,
  PRIMARY KEY (product_id, id),
  CONSTRAINT stock_movements_item_fkey FOREIGN KEY (order_id, product_id) REFERENCES order_items,
  CONSTRAINT stock_movements_order CHECK ((kind IN ('SALE', 'RESTORE')) = (order_id IS NOT NULL)),
  -- Who bought stands with the order, and is looked up there once instead of with each of its lines.
  CONSTRAINT stock_movements_actor CHECK (kind <> 'SALE' OR actor_id IS NULL),
  CONSTRAINT stock_movements_request CHECK ((kind = 'ADJUSTMENT') = (request_id IS NOT NULL))
);
COMMENT ON TABLE stock_movements IS 'The stock journal: every unit that came or went, and why.';
CREATE UNIQUE INDEX stock_movements_request_key ON stock_movements (actor_id, request_id) WHERE request_id IS NOT NULL;
-- An order takes each product once and gives it back at most once.
CREATE UNIQUE INDEX stock_movements_once ON stock_movements (order_id, product_id, kind) WHERE order_id IS NOT NULL;

CREATE TABLE order_events (
  xact_id            xid8 NOT NULL DEFAULT pg_current_xact_id(),
  id                 bigint GENERATED ALWAYS AS IDENTITY,
  order_id           uuid NOT NULL REFERENCES orders ON DELETE CASCADE,
  from_status        text,
  to_status          text NOT NULL,
  from_payment_state text,
  to_payment_state   text NOT NULL,
  actor_id           uuid,
  reason             text NOT NULL DEFAULT '',
  create_time        timestamptz(3) NOT NULL,
  -- Also the feed of WatchOrders, which reads on by transaction: ids alone become visible out of order.
  PRIMARY KEY (xact_id, id)
);
COMMENT ON TABLE order_events IS 'Who moved an order when, from what (null: it was placed) to what and why. No actor: the service itself.';
CREATE INDEX order_events_order ON order_events (order_id, id);
