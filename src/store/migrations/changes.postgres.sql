-- The log of changes. Every statement ends with a line of its own: functions have semicolons inside.

CREATE TABLE IF NOT EXISTS keystile_changes (
    prefix text, -- NULL: everything
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text NOT NULL DEFAULT 'change', -- or 'command'
    seen_at timestamptz -- when a sidecar first found it while pruning
)
--;
CREATE INDEX IF NOT EXISTS keystile_changes_xid ON keystile_changes (xid)
--;
CREATE OR REPLACE FUNCTION keystile_notify() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
    -- Says which log, since channels are the whole database's; what it says is in the log itself.
    PERFORM pg_notify('keystile_changed', TG_RELID::text);
    RETURN NULL;
END
$body$
--;
DROP TRIGGER IF EXISTS keystile_notify ON keystile_changes
--;
CREATE TRIGGER keystile_notify AFTER INSERT ON keystile_changes
    FOR EACH STATEMENT EXECUTE FUNCTION keystile_notify()
--;
ALTER TABLE keystile_changes ENABLE ALWAYS TRIGGER keystile_notify
--;
-- Whoever changes keys need not be allowed to write the log: that is its owner's.
CREATE OR REPLACE FUNCTION keystile_log_everything() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = {search_path} AS $body$
BEGIN
    INSERT INTO keystile_changes (prefix) VALUES (NULL);
    RETURN NULL;
END
$body$
--;
