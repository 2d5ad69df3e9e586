-- Payments and the attempts to charge them.

CREATE TABLE payments (
  id                     uuid PRIMARY KEY,
  customer_id            uuid NOT NULL REFERENCES users,
  order_id               uuid REFERENCES orders,
  created_by             uuid NOT NULL REFERENCES users,
  request_id             uuid NOT NULL,
  request_hash           bytea NOT NULL,
  currency               text NOT NULL,
  amount                 numeric(11,3) NOT NULL CHECK (amount > 0),
  status                 text NOT NULL DEFAULT 'PENDING'
    CHECK (status IN ('PENDING', 'COMPLETED', 'FAILED', 'FRAUD_DETECTED')),
  card_token             text NOT NULL CHECK (char_length(card_token) BETWEEN 1 AND 255),
  billing_country        text NOT NULL DEFAULT '',
  gateway                text NOT NULL DEFAULT '',
  gateway_transaction_id text NOT NULL DEFAULT '',
  gateway_response_code  text NOT NULL DEFAULT '',
  failure_reason         text NOT NULL DEFAULT '',
  create_time            timestamptz(3) NOT NULL,
  process_time           timestamptz(3),
  lease_expire_time      timestamptz(3),
  CONSTRAINT payments_request_key UNIQUE (created_by, request_id),
  CONSTRAINT payments_processed CHECK ((status = 'PENDING') = (process_time IS NULL))
);
COMMENT ON TABLE payments IS 'One row a payment. It leaves PENDING once, on a gateway''s word or on proof that no gateway executed it.';
COMMENT ON COLUMN payments.lease_expire_time IS 'Until then one process is carrying the payment out and no other may.';
-- An order is paid at most once: its second live or completed payment is refused by the database.
CREATE UNIQUE INDEX payments_one_per_order ON payments (order_id) WHERE status IN ('PENDING', 'COMPLETED');
CREATE INDEX payments_customer ON payments (customer_id, create_time DESC, id DESC);

CREATE TABLE payment_attempts (
  id             uuid PRIMARY KEY,
  payment_id     uuid NOT NULL REFERENCES payments,
  gateway        text NOT NULL,
  state          text NOT NULL DEFAULT 'CREATED'
    CHECK (state IN ('CREATED', 'CAPTURED', 'DECLINED', 'NOT_EXECUTED', 'UNKNOWN', 'VOIDED')),
  transaction_id text NOT NULL DEFAULT '',
  response_code  text NOT NULL DEFAULT '',
  create_time    timestamptz(3) NOT NULL,
  update_time    timestamptz(3) NOT NULL
);
COMMENT ON TABLE payment_attempts IS 'One row a charge that a gateway was asked for, committed before it is asked; its id is the idempotency key.';
CREATE INDEX payment_attempts_payment ON payment_attempts (payment_id, create_time, id);
