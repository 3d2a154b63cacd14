//! The triggers with which Postgres logs the changes of keys, users, roles and budgets.
//!
//! A trigger must never fail the statement that fires it, even if tables, columns or the log change. It catches every
//! error. One that kept it from writing the log is counted in a sequence, which a rollback does not reset, so
//! that readers know that the log is incomplete.

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::store::watched_tables::{EntryKind, SharedSpending, WatchedTable};

/// A trigger that each watched table has.
pub(super) struct TriggerDefinition {
    pub(super) name: &'static str,
    /// `pg_trigger.tgtype`: when it fires.
    pub(super) kind: u16,
    pub(super) event: &'static str,
}

/// An update of a row, its insertion or deletion, and the truncation of a table.
pub(super) const TRIGGERS: [TriggerDefinition; 3] = [
    TriggerDefinition { name: "keystile_changed", kind: 17, event: "UPDATE" },
    TriggerDefinition { name: "keystile_changed_rows", kind: 13, event: "INSERT OR DELETE" },
    TriggerDefinition { name: TRUNCATE, kind: 32, event: "TRUNCATE" },
];
const TRUNCATE: &str = "keystile_changed_all";

const LOG: &str = include_str!("../migrations/changes.postgres.sql");

/// Where the log and the functions are.
pub(super) struct LogLocation<'a> {
    /// The schema, as an identifier in SQL.
    pub(super) schema: &'a str,
    /// Whether there is `CREATE OR REPLACE TRIGGER` (Postgres 14), which does not block readers.
    pub(super) replaces_triggers: bool,
}

impl LogLocation<'_> {
    /// The sequence that counts lost changes, inside a string literal.
    pub(super) fn lost_sequence(&self) -> String {
        format!("{}.keystile_changes_lost", self.schema).replace('\'', "''")
    }
}

/// The statements that make the log.
pub(super) fn log(location: &LogLocation<'_>) -> Vec<String> {
    let statements = LOG.split("--;").map(|statement| statement.trim().replace("{schema}", location.schema));
    let mut statements: Vec<_> = statements.filter(|statement| !statement.is_empty()).collect();
    statements.extend(function(location, "everything", &truncated(location)));
    statements
}

/// The statements that make the trigger that notifies readers, or remove it. A transaction that notifies cannot be
/// prepared for a two-phase commit.
pub(super) fn notify(location: &LogLocation<'_>, notifies: bool) -> Vec<String> {
    let LogLocation { schema, .. } = location;
    let drop = format!("DROP TRIGGER IF EXISTS keystile_notify ON {schema}.keystile_changes");
    if !notifies {
        return vec![drop];
    }
    vec![
        drop,
        format!(
            "CREATE TRIGGER keystile_notify AFTER INSERT ON {schema}.keystile_changes
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.keystile_notify()"
        ),
        format!("ALTER TABLE {schema}.keystile_changes ENABLE ALWAYS TRIGGER keystile_notify"),
    ]
}

/// The statements that make the function of one table.
pub(super) fn table_function(location: &LogLocation<'_>, table: &WatchedTable) -> [String; 3] {
    function(location, table.name, &row_changed(location, table))
}

/// The statements that make the triggers of one table. `relation` is its name in SQL: the table itself, a partition,
/// or a table that inherits from it. A partition has the row triggers of its parent already.
pub(super) fn table_triggers(
    location: &LogLocation<'_>,
    table: &WatchedTable,
    relation: &str,
    is_partition: bool,
) -> Vec<String> {
    let create = |trigger: &TriggerDefinition| {
        let (function, body) = if trigger.name == TRUNCATE {
            ("keystile_log_everything".to_owned(), truncated(location))
        } else {
            (format!("keystile_log_{}", table.name), row_changed(location, table))
        };
        let columns = table.columns.iter().map(|column| column.spelling.as_str());
        create_trigger(location, trigger, relation, is_partition, (&function, &body), columns)
    };
    TRIGGERS.iter().flat_map(create).collect()
}

/// The statements that make one trigger with this function and its text. `columns` are those that the function compares.
pub(super) fn create_trigger<'a>(
    location: &LogLocation<'_>,
    trigger: &TriggerDefinition,
    relation: &str,
    is_partition: bool,
    (function, body): (&str, &str),
    columns: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let LogLocation { schema, replaces_triggers } = location;
    let TriggerDefinition { name, event, .. } = trigger;
    let is_of_rows = *event != "TRUNCATE";
    let level = if is_of_rows { "ROW" } else { "STATEMENT" };
    // Readers verify these: the function's text, the schema of its log, and the columns that it compares.
    let arguments = [digest(body), unquoted(schema)].into_iter().chain(columns.map(str::to_owned));
    let arguments: Vec<_> = arguments.map(|argument| literal(&argument)).collect();
    let replace = if *replaces_triggers { "OR REPLACE " } else { "" };
    let drop = format!("DROP TRIGGER IF EXISTS {name} ON {relation}");
    let create = format!(
        "CREATE {replace}TRIGGER {name} AFTER {event} ON {relation} FOR EACH {level}
        EXECUTE FUNCTION {schema}.{function}({})",
        arguments.join(", ")
    );
    // Also for rows that logical replication applies, and for sessions in the role of a replica.
    let always = format!("ALTER TABLE {relation} ENABLE ALWAYS TRIGGER {name}");
    let is_inherited = is_partition && is_of_rows;
    let drop = (!replaces_triggers && !is_inherited).then_some(drop);
    drop.into_iter().chain((!is_inherited).then_some(create)).chain([always]).collect()
}

fn function(location: &LogLocation<'_>, name: &str, body: &str) -> [String; 3] {
    trigger_function(location, &format!("keystile_log_{name}"), "keystile_changes", body)
}

/// A trigger function. It writes the table with the rights of its owner, not of the role that changes the row. Other
/// roles cannot use it: a trigger on one of their own tables could otherwise write there.
pub(super) fn trigger_function(
    location: &LogLocation<'_>,
    name: &str,
    written: &str,
    body: &str,
) -> [String; 3] {
    let LogLocation { schema, .. } = location;
    // A function that is replaced keeps its owner, who may have no right to the table.
    let give_to_owner_of_log = format!(
        "DO $give$ DECLARE log_owner name; BEGIN
            SELECT r.rolname INTO log_owner FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner,
                pg_proc p WHERE c.oid = '{schema}.{written}'::regclass
                AND p.oid = '{schema}.{name}()'::regprocedure AND p.proowner <> c.relowner;
            IF log_owner IS NOT NULL THEN
                EXECUTE format('ALTER FUNCTION {schema}.{name}() OWNER TO %I', log_owner);
            END IF; END $give$"
    );
    [
        format!(
            "CREATE OR REPLACE FUNCTION {schema}.{name}() RETURNS trigger LANGUAGE plpgsql
            SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body${body}$body$"
        ),
        give_to_owner_of_log,
        // Default privileges may have given it to roles by name.
        format!(
            "DO $revoke$ DECLARE grantee text; BEGIN
            FOR grantee IN SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
                FROM pg_proc p CROSS JOIN aclexplode(COALESCE(p.proacl, acldefault('f', p.proowner))) a
                WHERE p.oid = '{schema}.{name}()'::regprocedure AND a.grantee <> p.proowner LOOP
                EXECUTE format('REVOKE ALL ON FUNCTION {schema}.{name}() FROM %s', grantee);
            END LOOP; END $revoke$"
        ),
    ]
}

fn truncated(location: &LogLocation<'_>) -> String {
    let LogLocation { schema, .. } = location;
    guarded(location, "", &format!("INSERT INTO {schema}.keystile_changes (prefix) VALUES (NULL);"))
}

fn row_changed(location: &LogLocation<'_>, table: &WatchedTable) -> String {
    let LogLocation { schema, .. } = location;
    // As text, compared byte by byte: types such as json have no equality, and some collations take different prefixes
    // for equal.
    let compared = |row: &str| {
        let columns = table.columns.iter().map(|column| format!("{row}.{}::text COLLATE \"C\"", column.sql));
        let spent = table.spent_of(row).map(|spent| format!("({spent})::text COLLATE \"C\""));
        columns.chain(spent).collect::<Vec<_>>().join(", ")
    };
    let unchanged = format!(
        "IF TG_OP = 'UPDATE' THEN
            BEGIN
                IF ROW({}) IS NOT DISTINCT FROM ROW({}) THEN
                    {}
                    RETURN NULL;
                END IF;
            EXCEPTION WHEN OTHERS THEN
                NULL; -- A column is gone, so the rows cannot be compared: they count as different.
            END;
        END IF;",
        compared("OLD"),
        compared("NEW"),
        table.shared.as_ref().map_or_else(String::new, |shared| shared_spending(location, shared)),
    );
    let of = |row: &str| {
        let value = |column| format!("{row}.{}", table.sql(column));
        match table.entry_kind {
            EntryKind::Rotation => format!(
                "(key_id) SELECT * FROM (VALUES ({}::bigint), ({}::bigint), ({}::bigint)) AS changed (id)
                        WHERE id IS NOT NULL",
                value("predecessor_id"),
                value("successor_id"),
                value("limit_id"),
            ),
            EntryKind::RotatedBudget => {
                let key = value("key_id");
                format!("(key_id) SELECT {key}::bigint WHERE {key} IS NOT NULL")
            }
            EntryKind::AllKeys => "(prefix) VALUES (NULL)".to_owned(),
            EntryKind::Key => {
                let prefix = value("key_prefix");
                format!("(prefix) SELECT {prefix}::text WHERE {prefix} IS NOT NULL")
            }
            EntryKind::User => {
                let id = value("id");
                format!("(user_id) SELECT {id}::bigint WHERE {id} IS NOT NULL")
            }
            EntryKind::Budget => {
                let (user, key) = (value("user_id"), value("api_key_id"));
                format!(
                    "(user_id, key_id) SELECT CASE WHEN {key} IS NULL THEN {user}::bigint END, {key}::bigint
                        WHERE {key} IS NOT NULL OR {user} IS NOT NULL"
                )
            }
        }
    };
    let log = format!(
        "IF TG_OP <> 'INSERT' THEN INSERT INTO {schema}.keystile_changes {}; END IF;
        IF TG_OP <> 'DELETE' THEN INSERT INTO {schema}.keystile_changes {}; END IF;
        {}",
        of("OLD"),
        of("NEW"),
        chain_entry(location, table),
    );
    // A session that is older than a change of a column's type has plans that no longer fit. It plans this each time.
    let planned = literal(&format!("INSERT INTO {schema}.keystile_changes {}", of("($1)")));
    let replanned = format!(
        "IF TG_OP <> 'INSERT' THEN EXECUTE {planned} USING OLD; END IF;
            IF TG_OP <> 'DELETE' THEN EXECUTE {planned} USING NEW; END IF;"
    );
    guarded(location, &unchanged, &format!("BEGIN {log} EXCEPTION WHEN OTHERS THEN {replanned} END;"))
}

/// Logs a change of the spending alone, if together with that of other rows it has reached the limit, or had. A
/// transaction at READ COMMITTED does not see what others have not committed yet, so this is not only about the change that
/// reaches the limit: the next one would reveal a sum that two of them reached together.
///
/// At other levels a transaction sees less, and reading the other rows could make a serializable transaction fail. Row-level
/// security may hide them. Then each change is logged.
fn shared_spending(location: &LogLocation<'_>, shared: &SharedSpending) -> String {
    let LogLocation { schema, .. } = location;
    let SharedSpending { relation, amount, limit, is_shared, by_others, is_enforced, key } = shared;
    let on_new = |text: &str| text.replace("{row}", "NEW");
    format!(
        "IF NEW.{amount} IS DISTINCT FROM OLD.{amount} AND {is_enforced} THEN
                        IF {is_shared} THEN
                            IF current_setting('transaction_isolation') <> 'read committed'
                                OR row_security_active({relation}::text) THEN
                                INSERT INTO {schema}.keystile_changes (key_id) VALUES (NEW.{key}::bigint);
                            ELSIF {by_others} + GREATEST(COALESCE(OLD.{amount}, 0), COALESCE(NEW.{amount}, 0))
                                >= NEW.{limit} THEN
                                INSERT INTO {schema}.keystile_changes (key_id) VALUES (NEW.{key}::bigint);
                            END IF;
                        END IF;
                    END IF;",
        relation = literal(relation),
        is_enforced = on_new(is_enforced),
        is_shared = on_new(is_shared),
        by_others = on_new(by_others),
    )
}

/// The entry for the other keys of a key's chain, whose spending adds up. That of a budget names its key already.
fn chain_entry(location: &LogLocation<'_>, table: &WatchedTable) -> String {
    let Some(shared) = table.shared.as_ref().filter(|_| table.entry_kind == EntryKind::Key) else {
        return String::new();
    };
    let (key, is_shared) = (&shared.key, shared.is_shared.replace("{row}", "OLD"));
    format!(
        "IF TG_OP <> 'INSERT' THEN
            INSERT INTO {}.keystile_changes (key_id) SELECT OLD.{key}::bigint WHERE {is_shared};
        END IF;",
        location.schema
    )
}

/// The body of a function that never fails.
fn guarded(location: &LogLocation<'_>, unchanged: &str, log: &str) -> String {
    format!(
        "
    BEGIN
        {unchanged}
        {log}
        RETURN NULL;
    EXCEPTION WHEN OTHERS THEN
        BEGIN
            INSERT INTO {schema}.keystile_changes (prefix) VALUES (NULL);
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'keystile: the change of a row of % was not logged: %', TG_TABLE_NAME, SQLERRM;
            BEGIN
                PERFORM nextval('{sequence}');
            EXCEPTION WHEN OTHERS THEN
                NULL;
            END;
        END;
        RETURN NULL;
    END",
        schema = location.schema,
        sequence = location.lost_sequence(),
    )
}

/// The digest by which readers recognise a function's text.
fn digest(body: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(body))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The name that a quoted identifier stands for.
fn unquoted(identifier: &str) -> String {
    match identifier.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\"\"", "\""),
        None => identifier.to_owned(),
    }
}
