-- The tables of a database that has none. Timestamps are UTC.

-- table: users
CREATE TABLE IF NOT EXISTS users (
    id serial PRIMARY KEY,
    email varchar(255) NOT NULL UNIQUE,
    username varchar(255) NOT NULL UNIQUE,
    hashed_password varchar(255) NOT NULL,
    role varchar(64),
    is_active boolean DEFAULT true,
    is_superuser boolean DEFAULT false,
    account_locked boolean DEFAULT false,
    account_locked_until timestamp,
    created_at timestamp DEFAULT (now() AT TIME ZONE 'UTC'),
    updated_at timestamp DEFAULT (now() AT TIME ZONE 'UTC'),
    last_login timestamp
);

-- table: api_keys
CREATE TABLE IF NOT EXISTS api_keys (
    id serial PRIMARY KEY,
    name varchar(255),
    key_hash varchar(255) NOT NULL,
    key_prefix varchar(8) NOT NULL,
    user_id integer NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    is_active boolean DEFAULT true,
    permissions json,
    scopes json,
    rate_limit_per_minute integer,
    rate_limit_per_hour integer,
    rate_limit_per_day integer,
    allowed_models json,
    allowed_endpoints json,
    allowed_ips json,
    allowed_chatbots json,
    allowed_agents json,
    allowed_extract_templates json,
    is_unlimited boolean DEFAULT true,
    budget_limit_cents bigint,
    budget_type varchar(32),
    description text,
    tags json,
    created_at timestamp DEFAULT (now() AT TIME ZONE 'UTC'),
    updated_at timestamp DEFAULT (now() AT TIME ZONE 'UTC'),
    last_used_at timestamp,
    expires_at timestamp,
    total_requests bigint DEFAULT 0,
    total_tokens bigint DEFAULT 0,
    total_cost double precision DEFAULT 0
);
CREATE INDEX IF NOT EXISTS api_keys_key_prefix ON api_keys (key_prefix);
CREATE INDEX IF NOT EXISTS api_keys_user_id ON api_keys (user_id);
