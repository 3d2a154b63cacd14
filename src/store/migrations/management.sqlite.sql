-- Tokens of the management API, as digests. Times are milliseconds since 1970. No foreign key: this table must not make a
-- statement of another application fail.
CREATE TABLE IF NOT EXISTS keystile_management_tokens (
    id integer PRIMARY KEY AUTOINCREMENT,
    handle text NOT NULL UNIQUE, -- the part of a token that finds its row
    digest text NOT NULL, -- SHA-256 of the whole token
    name text NOT NULL,
    scope text NOT NULL, -- read, write or own
    user_id integer, -- whose keys, for own
    template text, -- what new keys get, for own (JSON)
    created_at integer NOT NULL,
    expires_at integer,
    revoked_at integer,
    last_used_at integer
);
-- Requests of the management API with an Idempotency-Key, for a day. Written in the transaction of the change.
CREATE TABLE IF NOT EXISTS keystile_idempotency (
    id text PRIMARY KEY, -- SHA-256 of caller and key
    request text NOT NULL, -- SHA-256 of method, path and body
    subject integer, -- the row that the request created
    status integer, -- the answer, without the secret. None until the change is committed
    answer text,
    created_at integer NOT NULL
);
