-- The audit log: who changed which key, user, role or budget. Triggers write it. Each statement ends with a line of its
-- own, since blocks contain semicolons. No foreign key: this table must not make a statement of another application fail.

CREATE TABLE IF NOT EXISTS {schema}.keystile_audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text NOT NULL, -- sql, or what the actor is: user, token, client, program
    actor text,
    origin text, -- the host or address of the actor, as Keystile knows it
    database_role text DEFAULT session_user || CASE current_setting('role') WHEN 'none' THEN ''
        ELSE ' as ' || current_setting('role') END,
    application text DEFAULT nullif(current_setting('application_name'), ''),
    client_address text DEFAULT host(inet_client_addr()),
    action text NOT NULL,
    table_name text NOT NULL,
    row_id text,
    label text, -- the prefix of a key, the email of a user
    key_id text, -- the key that the row concerns
    user_id text, -- the user whom the row concerns
    before_values json, -- json keeps what jsonb refuses
    after_values json
)
--;
CREATE INDEX IF NOT EXISTS keystile_audit_xid ON {schema}.keystile_audit (xid)
--;
-- Counts the changes that a trigger could not record.
CREATE SEQUENCE IF NOT EXISTS {schema}.keystile_audit_lost
--;
GRANT SELECT ON SEQUENCE {schema}.keystile_audit_lost TO PUBLIC
--;
-- Default privileges of a schema often give every application all rights. Only the triggers write here.
DO $revoke$ DECLARE given record; BEGIN
    FOR given IN SELECT a.privilege_type AS privilege, c.oid::regclass AS relation,
                CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
            FROM pg_class c CROSS JOIN aclexplode(c.relacl) a
            WHERE c.oid IN ('{schema}.keystile_audit'::regclass, '{schema}.keystile_audit_lost'::regclass,
                pg_get_serial_sequence('{schema}.keystile_audit', 'id')::regclass)
            AND a.grantee <> c.relowner AND a.privilege_type <> 'SELECT' LOOP
        EXECUTE format('REVOKE %s ON %s FROM %s', given.privilege, given.relation, given.grantee);
    END LOOP; END $revoke$
--;
