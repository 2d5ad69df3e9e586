-- The table of the library rate-limiter-flexible, which fills its columns by position. Unlogged: a count lives for
-- minutes, so after a crash of PostgreSQL it may begin anew, and the calls that are counted do not wait for the disk.
CREATE UNLOGGED TABLE rate_limits (
  key    varchar(255) PRIMARY KEY,
  points integer NOT NULL,
  expire bigint NOT NULL
);
COMMENT ON TABLE rate_limits IS 'How many calls of each kind have come from each client address, or for each email, in the window of time that runs.';
COMMENT ON COLUMN rate_limits.key IS 'Name of the limit and what it counts by: a client address, or SHA-256 of an email.';
COMMENT ON COLUMN rate_limits.expire IS 'End of the window, epoch milliseconds. From then on the row counts as none and may be deleted.';
CREATE INDEX rate_limits_expire ON rate_limits (expire);
