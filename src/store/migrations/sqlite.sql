-- The tables of a file that has none. Timestamps are UTC text, which sorts by time; lists are JSON text.

-- table: users
CREATE TABLE IF NOT EXISTS users (
    id integer PRIMARY KEY AUTOINCREMENT,
    email text NOT NULL UNIQUE,
    username text NOT NULL UNIQUE,
    hashed_password text NOT NULL,
    role text,
    is_active boolean DEFAULT true,
    is_superuser boolean DEFAULT false,
    account_locked boolean DEFAULT false,
    account_locked_until timestamp,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP,
    last_login timestamp
);

-- table: api_keys
CREATE TABLE IF NOT EXISTS api_keys (
    id integer PRIMARY KEY AUTOINCREMENT,
    name text,
    key_hash text NOT NULL,
    key_prefix text NOT NULL,
    user_id integer NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    is_active boolean DEFAULT true,
    permissions text,
    scopes text,
    rate_limit_per_minute integer,
    rate_limit_per_hour integer,
    rate_limit_per_day integer,
    allowed_models text,
    allowed_endpoints text,
    allowed_ips text,
    allowed_chatbots text,
    allowed_agents text,
    allowed_extract_templates text,
    is_unlimited boolean DEFAULT true,
    budget_limit_cents integer,
    budget_type text,
    description text,
    tags text,
    created_at timestamp DEFAULT CURRENT_TIMESTAMP,
    updated_at timestamp DEFAULT CURRENT_TIMESTAMP,
    last_used_at timestamp,
    expires_at timestamp,
    total_requests integer DEFAULT 0,
    total_tokens integer DEFAULT 0,
    total_cost real DEFAULT 0
);
CREATE INDEX IF NOT EXISTS api_keys_key_prefix ON api_keys (key_prefix);
CREATE INDEX IF NOT EXISTS api_keys_user_id ON api_keys (user_id);
