-- Accounts, their sessions and addresses, and the keys that sign access tokens.
-- Instants are timestamptz(3) and come from the application's clock: JavaScript dates have milliseconds, and a keyset
-- page over microseconds would skip rows.

CREATE TABLE users (
  id              uuid PRIMARY KEY,
  email           text NOT NULL CONSTRAINT users_email_length CHECK (char_length(email) BETWEEN 3 AND 254),
  password_hash   text NOT NULL,
  first_name      text NOT NULL CHECK (char_length(first_name) BETWEEN 2 AND 100),
  last_name       text NOT NULL CHECK (char_length(last_name) BETWEEN 2 AND 100),
  phone           text NOT NULL DEFAULT '' CHECK (char_length(phone) <= 32),
  date_of_birth   date NOT NULL,
  role            text NOT NULL DEFAULT 'USER' CHECK (role IN ('USER', 'MODERATOR', 'ADMIN')),
  bio             text NOT NULL DEFAULT '' CHECK (char_length(bio) <= 500),
  newsletter      boolean NOT NULL DEFAULT true,
  notifications   boolean NOT NULL DEFAULT true,
  avatar_file     text NOT NULL DEFAULT '',
  email_verified  boolean NOT NULL DEFAULT false,
  create_time     timestamptz(3) NOT NULL,
  update_time     timestamptz(3) NOT NULL,
  last_login_time timestamptz(3),
  delete_time     timestamptz(3),
  version         integer NOT NULL DEFAULT 1,
  CONSTRAINT users_email_key UNIQUE (email)
);
COMMENT ON TABLE users IS 'One row an account, deleted ones included: their email stays taken.';
COMMENT ON COLUMN users.email IS 'Normalised: trimmed, NFKC, lower case.';
COMMENT ON COLUMN users.password_hash IS 'Argon2id in PHC string format.';
COMMENT ON COLUMN users.version IS 'Grows with every update by a person; the etag.';

-- For lists in the order of ids that ask for a few accounts among many.
CREATE INDEX users_email_prefix ON users (email text_pattern_ops);
CREATE INDEX users_staff ON users (role, id) WHERE role <> 'USER';

CREATE TABLE account_events (
  id          uuid PRIMARY KEY,
  user_id     uuid NOT NULL REFERENCES users,
  actor_id    uuid REFERENCES users,
  type        text NOT NULL CHECK (type ~ '^[A-Z][A-Z_]+$'),
  details     jsonb NOT NULL DEFAULT '{}',
  create_time timestamptz(3) NOT NULL
);
COMMENT ON TABLE account_events IS 'Who changed what on which account, when; never a secret. No actor: nobody signed in, or the service itself.';
CREATE INDEX account_events_user ON account_events (user_id, id DESC);

CREATE TABLE login_failures (
  email            text PRIMARY KEY CHECK (char_length(email) <= 254),
  attempts         integer NOT NULL CHECK (attempts >= 0),
  locks            integer NOT NULL DEFAULT 0 CHECK (locks >= 0),
  lock_expire_time timestamptz(3),
  forget_time      timestamptz(3) NOT NULL CHECK (lock_expire_time IS NULL OR forget_time > lock_expire_time)
);
COMMENT ON TABLE login_failures IS 'Wrong passwords in a row by normalised email, with or without an account, so that a lock reveals nothing. A good login, a reset and an admin delete the row.';
COMMENT ON COLUMN login_failures.attempts IS 'Wrong passwords since the last good login; every fifth one locks.';
COMMENT ON COLUMN login_failures.locks IS 'Locks since the last good login: each is twice as long as the one before.';
COMMENT ON COLUMN login_failures.forget_time IS 'From then on the row counts as none and may be deleted. Every wrong password puts it off.';
CREATE INDEX login_failures_forget ON login_failures (forget_time);
CREATE INDEX login_failures_locked ON login_failures (lock_expire_time) WHERE lock_expire_time IS NOT NULL;

CREATE TABLE account_tokens (
  token_hash  bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
  user_id     uuid NOT NULL REFERENCES users,
  purpose     text NOT NULL CHECK (purpose IN ('VERIFY_EMAIL', 'RESET_PASSWORD')),
  email       text NOT NULL,
  create_time timestamptz(3) NOT NULL,
  expire_time timestamptz(3) NOT NULL
);
COMMENT ON TABLE account_tokens IS 'SHA-256 of the single-use tokens that were mailed; using one deletes it.';
COMMENT ON COLUMN account_tokens.email IS 'Where it was mailed: it proves nothing about an address the account has since.';
CREATE INDEX account_tokens_user ON account_tokens (user_id, purpose);
CREATE INDEX account_tokens_expiry ON account_tokens (expire_time);

CREATE TABLE sessions (
  id             uuid PRIMARY KEY,
  user_id        uuid NOT NULL REFERENCES users,
  create_time    timestamptz(3) NOT NULL,
  last_use_time  timestamptz(3) NOT NULL,
  expire_time    timestamptz(3) NOT NULL,
  client_address text NOT NULL DEFAULT '',
  user_agent     text NOT NULL DEFAULT '' CHECK (char_length(user_agent) <= 256),
  generation     integer NOT NULL DEFAULT 1 CHECK (generation >= 1)
);
COMMENT ON TABLE sessions IS 'One row an open session; the `sid` of its access tokens. Ending one deletes it.';
COMMENT ON COLUMN sessions.generation IS 'Of the access tokens that are given out for it (their `gen`). It grows when those given out so far are to be refused: a count, since no two clocks agree to the millisecond.';
CREATE INDEX sessions_user ON sessions (user_id, id DESC);
CREATE INDEX sessions_expiry ON sessions (expire_time);

CREATE TABLE refresh_tokens (
  token_hash  bytea PRIMARY KEY CHECK (octet_length(token_hash) = 32),
  session_id  uuid NOT NULL REFERENCES sessions ON DELETE CASCADE,
  create_time timestamptz(3) NOT NULL,
  expire_time timestamptz(3) NOT NULL,
  rotate_time timestamptz(3)
);
COMMENT ON TABLE refresh_tokens IS 'SHA-256 of each refresh token that was given out for an open session; the tokens themselves are not kept.';
COMMENT ON COLUMN refresh_tokens.rotate_time IS 'When it was used up. Seen again long after that, somebody has stolen it.';
CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id);
CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expire_time);

CREATE TABLE session_revocations (
  id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  session_id     uuid NOT NULL,
  min_generation integer CHECK (min_generation > 1),
  create_time    timestamptz(3) NOT NULL,
  transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id()
);
COMMENT ON TABLE session_revocations IS 'Access tokens that are refused before they expire. Rows older than an access token can be are of no use and are deleted.';
COMMENT ON COLUMN session_revocations.min_generation IS 'Tokens of the session below this generation are refused. Null: all are, the session is over.';
COMMENT ON COLUMN session_revocations.transaction_id IS 'Which transaction wrote it: readers go by this and not by id, since ids do not become visible in their order.';
CREATE INDEX session_revocations_transaction ON session_revocations (transaction_id);
CREATE INDEX session_revocations_time ON session_revocations (create_time);

CREATE TABLE signing_keys (
  id            text PRIMARY KEY,
  public_key    jsonb NOT NULL,
  private_key   bytea NOT NULL,
  create_time   timestamptz(3) NOT NULL,
  activate_time timestamptz(3) NOT NULL
);
COMMENT ON TABLE signing_keys IS 'Ed25519 keys of access tokens. All are published; of those whose activate_time has come the newest one signs.';
COMMENT ON COLUMN signing_keys.id IS 'The `kid`: RFC 7638 thumbprint of the public key.';
COMMENT ON COLUMN signing_keys.private_key IS 'PKCS #8, encrypted with AES-256-GCM under a key derived from the setting SECRET_KEY: nonce (12 bytes), tag (16), ciphertext.';

CREATE TABLE avatar_files (
  file        text PRIMARY KEY CHECK (file ~ '^[0-9a-z]{16,64}\.webp$'),
  user_id     uuid NOT NULL REFERENCES users,
  state       text NOT NULL CHECK (state IN ('UPLOADING', 'SHOWN', 'REMOVED')),
  create_time timestamptz(3) NOT NULL
);
COMMENT ON TABLE avatar_files IS 'Every file of a picture that is stored or may be: noted before it is stored, forgotten after it is removed.';
COMMENT ON COLUMN avatar_files.state IS 'UPLOADING: being stored, or left by a crash in the middle of it; SHOWN: users.avatar_file of the account; REMOVED: the file is to go, or gone.';
CREATE UNIQUE INDEX avatar_files_one_shown ON avatar_files (user_id) WHERE state = 'SHOWN';
CREATE INDEX avatar_files_to_remove ON avatar_files (create_time) WHERE state <> 'SHOWN';

CREATE TABLE addresses (
  id          uuid PRIMARY KEY,
  user_id     uuid NOT NULL REFERENCES users,
  street      text NOT NULL CHECK (char_length(street) BETWEEN 1 AND 200),
  city        text NOT NULL CHECK (char_length(city) BETWEEN 1 AND 100),
  state       text NOT NULL CHECK (char_length(state) BETWEEN 1 AND 100),
  postal_code text NOT NULL CHECK (char_length(postal_code) BETWEEN 1 AND 20),
  country     text NOT NULL CHECK (country ~ '^[A-Z]{2}$'),
  is_primary  boolean NOT NULL,
  create_time timestamptz(3) NOT NULL,
  delete_time timestamptz(3),
  CONSTRAINT addresses_deleted_not_primary CHECK (delete_time IS NULL OR NOT is_primary)
);
COMMENT ON TABLE addresses IS 'Postal addresses; removed ones are hidden by delete_time, since orders refer to them.';
CREATE UNIQUE INDEX addresses_one_primary ON addresses (user_id) WHERE is_primary;
CREATE INDEX addresses_user ON addresses (user_id, id) WHERE delete_time IS NULL;

-- "At most one is primary" is the index above; "one is while there are any" is this trigger. It looks at commit, since
-- moving the mark takes two statements, and locks the account first: of two transactions that each see the other's
-- address as it was (one removes the primary address, one adds another), the second looks again after the first.
CREATE FUNCTION require_primary_address() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  owner uuid;
BEGIN
  FOR owner IN SELECT DISTINCT id FROM unnest(ARRAY[OLD.user_id, NEW.user_id]) id WHERE id IS NOT NULL ORDER BY id LOOP
    PERFORM FROM users WHERE id = owner FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM addresses WHERE user_id = owner AND delete_time IS NULL)
       AND NOT EXISTS (SELECT FROM addresses WHERE user_id = owner AND is_primary) THEN
      RAISE EXCEPTION 'account % has addresses but no primary one', owner
        USING ERRCODE = 'check_violation', TABLE = 'addresses', CONSTRAINT = 'addresses_some_primary';
    END IF;
  END LOOP;
  RETURN NULL;
END $$;
COMMENT ON FUNCTION require_primary_address IS 'Refuses a transaction that leaves an account with addresses of which none is primary.';
CREATE CONSTRAINT TRIGGER addresses_some_primary
  AFTER INSERT OR DELETE OR UPDATE OF user_id, is_primary, delete_time ON addresses
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION require_primary_address();
