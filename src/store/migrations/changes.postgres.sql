-- The log of changes. Each statement ends with a line of its own, since functions contain semicolons.
-- An entry names a key by its prefix, or a user or key whose keys a reader looks up. An entry without a name stands
-- for every key.

CREATE TABLE IF NOT EXISTS {schema}.keystile_changes (
    prefix text,
    user_id bigint,
    key_id bigint,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    nonce bigint DEFAULT CAST(floor(random() * 9007199254740991) AS bigint),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text NOT NULL DEFAULT 'change', -- or 'command'
    seen_at timestamptz -- when an instance first found it while pruning
)
--;
ALTER TABLE {schema}.keystile_changes ADD COLUMN IF NOT EXISTS user_id bigint
--;
ALTER TABLE {schema}.keystile_changes ADD COLUMN IF NOT EXISTS key_id bigint
--;
ALTER TABLE {schema}.keystile_changes ADD COLUMN IF NOT EXISTS nonce bigint
--;
ALTER TABLE {schema}.keystile_changes
    ALTER COLUMN nonce SET DEFAULT CAST(floor(random() * 9007199254740991) AS bigint)
--;
CREATE INDEX IF NOT EXISTS keystile_changes_xid ON {schema}.keystile_changes (xid)
--;
-- Counts the changes that a trigger could not log.
CREATE SEQUENCE IF NOT EXISTS {schema}.keystile_changes_lost
--;
-- It reveals only that number, which each reader needs.
GRANT SELECT ON SEQUENCE {schema}.keystile_changes_lost TO PUBLIC
--;
CREATE OR REPLACE FUNCTION {schema}.keystile_notify() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    -- Names the log, since a channel belongs to the whole database.
    PERFORM pg_notify('keystile_changed', TG_RELID::text);
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL; -- Readers read the log without being notified as well.
END
$body$
--;
REVOKE ALL ON FUNCTION {schema}.keystile_notify() FROM PUBLIC
--;
