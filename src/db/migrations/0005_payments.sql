-- Payments, the attempts to charge them, refunds, disputes, and the ledger in which all of it must add up.
-- Rows are locked in one order everywhere: orders, payments, products, each sorted by id.

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
  risk_level             text CHECK (risk_level IN ('LOW', 'MEDIUM', 'HIGH', 'UNCHECKED')),
  risk_factors           text[] NOT NULL DEFAULT '{}',
  gateway                text NOT NULL DEFAULT '',
  gateway_transaction_id text NOT NULL DEFAULT '',
  gateway_response_code  text NOT NULL DEFAULT '',
  failure_reason         text NOT NULL DEFAULT '',
  refunded_amount        numeric(11,3) NOT NULL DEFAULT 0 CHECK (refunded_amount >= 0),
  refunding_amount       numeric(11,3) NOT NULL DEFAULT 0 CHECK (refunding_amount >= 0),
  create_time            timestamptz(3) NOT NULL,
  process_time           timestamptz(3),
  lease_expire_time      timestamptz(3),
  check_time             timestamptz(3),
  checks                 integer NOT NULL DEFAULT 0,
  CONSTRAINT payments_request_key UNIQUE (created_by, request_id),
  CONSTRAINT payments_processed CHECK ((status = 'PENDING') = (process_time IS NULL)),
  CONSTRAINT payments_checked CHECK (status <> 'PENDING' OR check_time IS NOT NULL),
  CONSTRAINT payments_refunds_within CHECK (refunded_amount + refunding_amount <= amount)
);
COMMENT ON TABLE payments IS 'One row a payment. It leaves PENDING once, on a gateway''s word or on proof that no gateway executed it, and never comes back.';
COMMENT ON COLUMN payments.risk_level IS 'The fraud verdict; null: not screened yet, so it may not be charged. UNCHECKED: no verdict could be had, and it was not charged for that.';
COMMENT ON COLUMN payments.refunding_amount IS 'The sum of its refunds that are under way.';
COMMENT ON COLUMN payments.lease_expire_time IS 'Until then one process is carrying the payment out and no other may.';
COMMENT ON COLUMN payments.check_time IS 'When the sweep looks after it: while it is PENDING, and afterwards for as long as the end of one of its charges is not known.';
COMMENT ON COLUMN payments.checks IS 'How often the sweep has looked after it: each pause is longer than the one before.';
-- An order is paid at most once: its second live or completed payment is refused by the database.
CREATE UNIQUE INDEX payments_one_per_order ON payments (order_id) WHERE status IN ('PENDING', 'COMPLETED');
CREATE INDEX payments_order ON payments (order_id, create_time, id) WHERE order_id IS NOT NULL;
CREATE INDEX payments_customer ON payments (customer_id, create_time DESC, id DESC);
CREATE INDEX payments_time ON payments (create_time DESC, id DESC);
CREATE INDEX payments_status ON payments (status, create_time DESC, id DESC);
CREATE INDEX payments_token ON payments (card_token, customer_id DESC, create_time DESC);
CREATE INDEX payments_due ON payments (check_time) WHERE check_time IS NOT NULL;

CREATE TABLE payment_attempts (
  id                uuid PRIMARY KEY,
  payment_id        uuid NOT NULL REFERENCES payments,
  number            integer NOT NULL CHECK (number BETWEEN 1 AND 2),
  gateway           text NOT NULL,
  gateway_reference text NOT NULL DEFAULT '',
  state             text NOT NULL DEFAULT 'CREATED' CHECK (state IN
    ('CREATED', 'UNKNOWN', 'CAPTURED', 'DECLINED', 'NOT_EXECUTED', 'VOIDED', 'REVERSING', 'REVERSED')),
  captured_amount   numeric(11,3),
  transaction_id    text NOT NULL DEFAULT '',
  response_code     text NOT NULL DEFAULT '',
  reversal_id       uuid,
  reversal_failure  text NOT NULL DEFAULT '' CHECK (char_length(reversal_failure) <= 200),
  create_time       timestamptz(3) NOT NULL,
  update_time       timestamptz(3) NOT NULL,
  check_time        timestamptz(3),
  checks            integer NOT NULL DEFAULT 0,
  CONSTRAINT payment_attempts_number UNIQUE (payment_id, number),
  CONSTRAINT payment_attempts_captured CHECK ((state IN ('CAPTURED', 'REVERSING', 'REVERSED')) = (captured_amount IS NOT NULL)),
  CONSTRAINT payment_attempts_reversal CHECK ((state IN ('REVERSING', 'REVERSED')) = (reversal_id IS NOT NULL)),
  CONSTRAINT payment_attempts_checked CHECK ((state = 'REVERSING') = (check_time IS NOT NULL))
);
COMMENT ON TABLE payment_attempts IS 'One row a charge that a gateway is asked for, committed before it is asked; its id is the idempotency key. 1 is the primary gateway''s, 2 the backup''s.';
COMMENT ON COLUMN payment_attempts.state IS 'CREATED: it may have been sent. UNKNOWN: it was, and only the gateway''s own word clears it. REVERSING: money that it took must go back.';
COMMENT ON COLUMN payment_attempts.reversal_id IS 'The key by which the money is given back; another one once the gateway has refused it for good.';
COMMENT ON COLUMN payment_attempts.reversal_failure IS 'Why its gateway last refused to give the money back: then a person has to look.';
COMMENT ON COLUMN payment_attempts.gateway_reference IS 'The gateway''s own id of the attempt, stored before any money can move, where its void needs it.';
-- Of all attempts of one payment at most one keeps its money.
CREATE UNIQUE INDEX payment_attempts_one_captured ON payment_attempts (payment_id) WHERE state = 'CAPTURED';
CREATE INDEX payment_attempts_reversing ON payment_attempts (check_time) WHERE check_time IS NOT NULL;

CREATE TABLE refunds (
  id                     uuid PRIMARY KEY,
  payment_id             uuid NOT NULL REFERENCES payments,
  created_by             uuid REFERENCES users,
  request_id             uuid,
  request_hash           bytea,
  by_gateway             boolean NOT NULL DEFAULT false,
  currency               text NOT NULL,
  amount                 numeric(11,3) NOT NULL CHECK (amount > 0),
  status                 text NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'COMPLETED', 'FAILED')),
  reason                 text NOT NULL DEFAULT '' CHECK (char_length(reason) <= 500),
  gateway_transaction_id text NOT NULL DEFAULT '',
  failure_reason         text NOT NULL DEFAULT '',
  create_time            timestamptz(3) NOT NULL,
  process_time           timestamptz(3),
  lease_expire_time      timestamptz(3),
  check_time             timestamptz(3),
  checks                 integer NOT NULL DEFAULT 0,
  alert_time             timestamptz(3),
  CONSTRAINT refunds_request_key UNIQUE (created_by, request_id),
  CONSTRAINT refunds_by_gateway CHECK (created_by IS NULL OR NOT by_gateway),
  CONSTRAINT refunds_requested CHECK ((created_by IS NULL) = (request_id IS NULL)),
  CONSTRAINT refunds_processed CHECK ((status = 'PENDING') = (process_time IS NULL)),
  CONSTRAINT refunds_checked CHECK ((status = 'PENDING') = (check_time IS NOT NULL))
);
COMMENT ON TABLE refunds IS 'One row a refund; its id is the gateway''s idempotency key. No request: the service itself gives the money back.';
COMMENT ON COLUMN refunds.by_gateway IS 'The gateway cancelled the whole charge of its own accord; the refund''s id is that of the attempt, so there is one.';
COMMENT ON COLUMN refunds.alert_time IS 'When a person was told that it is not finished after a day: that is told once.';
CREATE INDEX refunds_payment ON refunds (payment_id, create_time, id);
CREATE INDEX refunds_due ON refunds (check_time) WHERE check_time IS NOT NULL;

CREATE TABLE disputes (
  id                 uuid PRIMARY KEY,
  payment_id         uuid NOT NULL REFERENCES payments,
  gateway            text NOT NULL,
  gateway_dispute_id text NOT NULL,
  currency           text NOT NULL,
  amount             numeric(11,3) NOT NULL CHECK (amount > 0),
  status             text NOT NULL CHECK (status IN ('OPEN', 'WON', 'LOST')),
  reason             text NOT NULL DEFAULT '',
  create_time        timestamptz(3) NOT NULL,
  resolve_time       timestamptz(3),
  CONSTRAINT disputes_gateway_key UNIQUE (gateway, gateway_dispute_id),
  CONSTRAINT disputes_resolved CHECK ((status = 'OPEN') = (resolve_time IS NULL))
);
COMMENT ON TABLE disputes IS 'Claims that customers make at their banks, as the gateways tell of them. They are weighed when a refund is decided, and hold no constraint: a webhook must never violate one.';
CREATE INDEX disputes_payment ON disputes (payment_id, create_time, id);

CREATE TABLE webhook_events (
  gateway      text NOT NULL,
  event_id     text NOT NULL,
  event        jsonb NOT NULL,
  create_time  timestamptz(3) NOT NULL,
  process_time timestamptz(3),
  PRIMARY KEY (gateway, event_id)
);
COMMENT ON TABLE webhook_events IS 'Verified events of the gateways, each once, however often it is sent.';

CREATE TABLE ledger_entries (
  movement_id uuid NOT NULL,
  kind        text NOT NULL CHECK (kind IN ('CHARGE', 'REVERSAL', 'REFUND', 'REFUND_RETURNED', 'DISPUTE_LOST')),
  account     text NOT NULL CHECK (account IN ('CUSTOMER', 'REVENUE', 'REFUNDS') OR account LIKE 'GATEWAY:%'),
  side        text NOT NULL CHECK (side IN ('DEBIT', 'CREDIT')),
  payment_id  uuid NOT NULL REFERENCES payments,
  currency    text NOT NULL,
  amount      numeric(11,3) NOT NULL CHECK (amount > 0),
  create_time timestamptz(3) NOT NULL,
  PRIMARY KEY (movement_id, kind, account, side)
);
COMMENT ON TABLE ledger_entries IS 'Double entry: every settled movement of money is written once, as debits and credits of the same sum, in the transaction that settles it.';
COMMENT ON COLUMN ledger_entries.movement_id IS 'The attempt, refund or dispute that moved the money.';
CREATE INDEX ledger_entries_payment ON ledger_entries (payment_id);

-- A movement that does not balance cannot be committed, whoever writes it.
CREATE FUNCTION ledger_balances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM written GROUP BY movement_id, kind, currency
             HAVING sum(CASE side WHEN 'DEBIT' THEN amount ELSE -amount END) <> 0) THEN
    RAISE EXCEPTION 'a movement does not balance' USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_balances';
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER ledger_balances AFTER INSERT ON ledger_entries
  REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION ledger_balances();

-- What is wrong is put right by another movement, so that both can be read.
CREATE FUNCTION ledger_is_added_to() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'entries of the ledger are never changed or deleted'
    USING ERRCODE = 'restrict_violation', CONSTRAINT = 'ledger_is_added_to';
END $$;
CREATE TRIGGER ledger_is_added_to BEFORE UPDATE OR DELETE ON ledger_entries
  FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_added_to();

CREATE TABLE reward_entries (
  id          uuid PRIMARY KEY,
  customer_id uuid NOT NULL REFERENCES users,
  payment_id  uuid NOT NULL REFERENCES payments,
  refund_id   uuid REFERENCES refunds,
  points      bigint NOT NULL CHECK (points <> 0),
  create_time timestamptz(3) NOT NULL,
  CONSTRAINT reward_entries_sign CHECK (refund_id IS NOT NULL OR points > 0)
);
COMMENT ON TABLE reward_entries IS 'Points that a payment earned, that a refund took back, and that a refund which banks sent back returned. Decided under the lock on the payment by what is booked already, so that a job that runs again books nothing.';
CREATE UNIQUE INDEX reward_entries_earned ON reward_entries (payment_id) WHERE refund_id IS NULL;
CREATE INDEX reward_entries_payment ON reward_entries (payment_id);
CREATE INDEX reward_entries_customer ON reward_entries (customer_id, id DESC) INCLUDE (points);

CREATE TABLE customer_payment_history (
  customer_id       uuid NOT NULL REFERENCES users,
  currency          text NOT NULL,
  payment_count     bigint NOT NULL,
  total_amount      numeric NOT NULL,
  last_payment_time timestamptz(3) NOT NULL,
  PRIMARY KEY (customer_id, currency)
);
COMMENT ON TABLE customer_payment_history IS 'Completed payments of each customer, counted by a job after each.';

CREATE TABLE counted_payments (
  payment_id uuid PRIMARY KEY REFERENCES payments
);
COMMENT ON TABLE counted_payments IS 'Which payments customer_payment_history has counted: each once, however often its job runs.';
