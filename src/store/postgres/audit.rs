//! The triggers with which Postgres audits the changes of keys, users, roles and budgets.
//!
//! Like those of the change log, they never fail the statement that fires them, unless it is Keystile's own. A change
//! that cannot be recorded is counted in a sequence. No trigger names a column in its definition, so columns can be
//! dropped and altered.

use super::triggers::{LogLocation, TriggerDefinition, create_trigger, literal, trigger_function};
use crate::store::{
    audited_tables::{AUDIT, AuditedTable, RowReferences, SECRET},
    schema::Schema,
    watched_tables::WatchedColumn,
};

/// Those of each audited table.
pub(super) const AUDIT_TRIGGERS: [TriggerDefinition; 3] = [
    TriggerDefinition { name: "keystile_audited", kind: 17, event: "UPDATE" },
    TriggerDefinition { name: "keystile_audited_rows", kind: 13, event: "INSERT OR DELETE" },
    TriggerDefinition { name: TRUNCATE, kind: 32, event: "TRUNCATE" },
];
const TRUNCATE: &str = "keystile_audited_all";

const TABLE: &str = include_str!("../migrations/audit.postgres.sql");

/// The statements that make the table.
pub(super) fn table(location: &LogLocation<'_>) -> Vec<String> {
    let statements =
        TABLE.split("--;").map(|statement| statement.trim().replace("{schema}", location.schema));
    statements.filter(|statement| !statement.is_empty()).collect()
}

/// The statements that make the functions of one table.
pub(super) fn functions(location: &LogLocation<'_>, schema: &Schema, table: &AuditedTable) -> Vec<String> {
    let [rows, all] = functions_of(table);
    let rows = trigger_function(location, &rows, AUDIT, &row_changed(location, schema, table));
    let all = trigger_function(location, &all, AUDIT, &truncated(location, table));
    rows.into_iter().chain(all).collect()
}

fn functions_of(table: &AuditedTable) -> [String; 2] {
    ["", "_all"].map(|suffix| format!("{AUDIT}_{}{suffix}", table.name))
}

/// The statements that make the triggers of one table, partition or child.
pub(super) fn triggers(
    location: &LogLocation<'_>,
    schema: &Schema,
    table: &AuditedTable,
    relation: &str,
    is_partition: bool,
) -> Vec<String> {
    let [rows, all] = functions_of(table);
    let create = |trigger: &TriggerDefinition| {
        let columns = || table.spellings();
        if trigger.name == TRUNCATE {
            let body = truncated(location, table);
            create_trigger(location, trigger, relation, is_partition, (&all, &body), columns())
        } else {
            let body = row_changed(location, schema, table);
            create_trigger(location, trigger, relation, is_partition, (&rows, &body), columns())
        }
    };
    AUDIT_TRIGGERS.iter().flat_map(create).collect()
}

/// Reads the setting with which Keystile says who it acts for. It may hold anything: every session can set it.
const ACTOR: &str = "
        told := current_setting('keystile.actor', true);
        IF told <> '' THEN
            BEGIN
                told_kind := told::json ->> 'kind';
                told_name := left(told::json ->> 'name', 256);
                told_origin := left(told::json ->> 'origin', 256);
                told_action := told::json ->> 'action';
                is_required := COALESCE((told::json ->> 'required')::boolean, false);
            EXCEPTION WHEN OTHERS THEN
                told_kind := NULL; told_name := NULL; told_origin := NULL; told_action := NULL; is_required := false;
            END;
        END IF;";

const ACTOR_VARIABLES: &str = "told text; told_kind text; told_name text; told_origin text; told_action text;
        is_required boolean := false;";

fn write(location: &LogLocation<'_>, table: &AuditedTable) -> String {
    format!(
        "INSERT INTO {schema}.{AUDIT} (source, actor, origin, action, table_name, row_id, label, key_id, user_id,
                before_values, after_values)
            VALUES (COALESCE(told_kind, 'sql'), told_name, told_origin, COALESCE(told_action, lower(TG_OP)), '{name}',
                row_id, label, key_id, user_id, before_values, after_values);
        IF NOT FOUND THEN RAISE EXCEPTION 'the row was not inserted'; END IF;",
        schema = location.schema,
        name = table.name,
    )
}

/// The end of a function, where nothing could be written.
fn lost(location: &LogLocation<'_>) -> String {
    format!(
        "IF is_required THEN
            RAISE EXCEPTION 'the audit log keystile_audit cannot record this change, so it is not made: %', SQLERRM;
        END IF;
        RAISE WARNING 'keystile: the change of a row of % was not recorded in keystile_audit: %', TG_TABLE_NAME, SQLERRM;
        BEGIN
            PERFORM nextval('{}');
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
        RETURN NULL;",
        lost_sequence(location)
    )
}

/// The sequence that counts changes that were not recorded, inside a string literal.
pub(super) fn lost_sequence(location: &LogLocation<'_>) -> String {
    format!("{}.keystile_audit_lost", location.schema).replace('\'', "''")
}

fn truncated(location: &LogLocation<'_>, table: &AuditedTable) -> String {
    format!(
        "
    DECLARE
        {ACTOR_VARIABLES}
        row_id text; label text; key_id text; user_id text; before_values json; after_values json;
    BEGIN
        {ACTOR}
        {write}
        RETURN NULL;
    EXCEPTION WHEN OTHERS THEN
        {lost}
    END",
        write = write(location, table),
        lost = lost(location),
    )
}

/// The value as JSON. A type of the application's may have casts, which must not run with the rights of this function:
/// it is shown by its output function.
fn as_json(value: &str) -> String {
    format!(
        "CASE WHEN {value} IS NULL THEN NULL WHEN pg_typeof({value})::oid::bigint < 16384 THEN to_json({value})
            ELSE to_json(format('%s', {value})) END"
    )
}

fn as_text(value: &str) -> String {
    format!("nullif(rtrim(format('%s', {value})), '')")
}

/// The parts of [`VALUES`] for one column of this name and number: a row, and its value before and after.
fn parts(name: &str, number: &str, column: &str, is_secret: bool) -> [String; 3] {
    let [old, new] = if is_secret {
        SECRET.map(|text| format!("to_json('{text}'::text)"))
    } else {
        [as_json(&format!("{{old}}.{column}")), as_json(&format!("{{new}}.{column}"))]
    };
    [
        format!(
            "({name}, {number}, record_image_ne(ROW({{old}}.{column}), ROW({{new}}.{column})), {is_secret})"
        ),
        format!("WHEN {number} THEN {old}"),
        format!("WHEN {number} THEN {new}"),
    ]
}

/// Selects both sides of a change as JSON, which is computed for columns that differ. `{both}` is whether there are two
/// rows; a new or a deleted row has no secret and no NULL.
const VALUES: &str = "SELECT json_object_agg(c.name, CASE c.number {was} END),
        json_object_agg(c.name, CASE c.number {is_now} END)
    FROM (VALUES {rows}) AS c (name, number, differs, is_secret)
    WHERE CASE WHEN {both} THEN c.differs ELSE NOT c.is_secret AND CASE c.number {is_now} END IS NOT NULL END";

/// Appends a column to both sides of the change, as members of a JSON object, if it differs; of a new or a deleted row if
/// it is not NULL. These expressions are simple, which plpgsql evaluates without an executor of their own.
fn compared(column: &WatchedColumn, is_secret: bool) -> String {
    let WatchedColumn { sql, spelling, .. } = column;
    let member = serde_json::Value::from(spelling.as_str()).to_string();
    let [old, new] = if is_secret {
        SECRET.map(|text| format!("to_json('{text}'::text)"))
    } else {
        [as_json(&format!("OLD.{sql}")), as_json(&format!("NEW.{sql}"))]
    };
    let one_sided =
        |row: &str| if is_secret { "false".to_owned() } else { format!("NOT {row}.{sql} IS NULL") };
    let append = |side: &str, value: &str| {
        let member = literal(&format!("{member} : "));
        format!("{side} := concat_ws(', ', {side}, {member} || COALESCE(({value})::text, 'null'));")
    };
    format!(
        "IF (CASE TG_OP WHEN 'UPDATE' THEN record_image_ne(ROW(OLD.{sql}), ROW(NEW.{sql}))
            WHEN 'INSERT' THEN {} ELSE {} END) THEN
            {}
            {}
        END IF;",
        one_sided("NEW"),
        one_sided("OLD"),
        append("was", &old),
        append("is_now", &new),
    )
}

fn row_changed(location: &LogLocation<'_>, schema: &Schema, table: &AuditedTable) -> String {
    let all = || table.columns.iter().chain(&table.secret);
    let image =
        |row: &str| all().map(|column| format!("{row}.{}", column.sql)).collect::<Vec<_>>().join(", ");
    let columns = table.columns.iter().map(|column| compared(column, false));
    let columns = columns.chain(table.secret.iter().map(|column| compared(column, true)));
    let compared = columns.collect::<Vec<_>>().join("\n        ");
    let references = table.references(schema);
    format!(
        "
    DECLARE
        {ACTOR_VARIABLES}
        row_id text; label text; key_id text; user_id text; before_values json; after_values json;
        old_row record; new_row record; rows text; was text; is_now text; is_update boolean;
    BEGIN
        IF TG_OP = 'UPDATE' AND record_image_eq(ROW({old_image}), ROW({new_image})) THEN RETURN NULL; END IF;
        {ACTOR}
        {compared}
        IF TG_OP = 'UPDATE' AND was IS NULL THEN RETURN NULL; END IF;
        IF TG_OP <> 'INSERT' THEN before_values := '{{ ' || COALESCE(was, '') || ' }}'; END IF;
        IF TG_OP = 'DELETE' THEN
            {old_references}
        ELSE
            after_values := '{{ ' || COALESCE(is_now, '') || ' }}';
            {new_references}
        END IF;
        {write}
        RETURN NULL;
    EXCEPTION WHEN OTHERS THEN
        -- A column is gone, or this session is older than a change of a column's type, and has plans that no longer fit.
        BEGIN
            {ACTOR}
            {dynamic}
            {write}
            RETURN NULL;
        EXCEPTION WHEN OTHERS THEN
            {lost}
        END;
    END",
        old_image = image("OLD"),
        new_image = image("NEW"),
        old_references = references_of(&references, "OLD"),
        new_references = references_of(&references, "NEW"),
        dynamic = dynamic(table, &references),
        write = write(location, table),
        lost = lost(location),
    )
}

fn references_of(references: &RowReferences<'_>, row: &str) -> String {
    let RowReferences { id, label, key_id, user_id, .. } = references;
    let of = |column: Option<&WatchedColumn>| {
        column.map_or_else(|| "NULL".to_owned(), |column| as_text(&format!("{row}.{}", column.sql)))
    };
    format!(
        "row_id := {}; label := {}; key_id := {}; user_id := {};",
        of(Some(id)),
        of(label.as_ref()),
        of(key_id.as_ref()),
        of(user_id.as_ref())
    )
}

/// The same with the columns that the table has at this moment, in statements that are planned now.
fn dynamic(table: &AuditedTable, references: &RowReferences<'_>) -> String {
    let numbered = |is_secret| {
        let parts = parts("%1$L", "%2$s", "%1$I", is_secret);
        parts.map(|part| part.replace("'%s'", "'%%s'").replace("{old}", "($1)").replace("{new}", "($2)"))
    };
    let spellings: Vec<_> = table.spellings().map(literal).collect();
    let secret = table.secret.as_ref().map_or("NULL".to_owned(), |column| literal(&column.spelling));
    let values = VALUES.replace("{both}", "$3");
    let [secret_parts, parts] = [numbered(true), numbered(false)];
    let list = |at: usize, separator: &str| {
        let (secret_part, part) = (&secret_parts[at], &parts[at]);
        format!(
            "string_agg(format(CASE WHEN a.attname = {secret} THEN $t${secret_part}$t$ ELSE $t${part}$t$ END, a.attname,
                    a.attnum), '{separator}')"
        )
    };
    let reference = |column: Option<&WatchedColumn>| {
        let name = column.map_or("NULL".to_owned(), |column| literal(&column.spelling));
        format!(
            "COALESCE((SELECT format($t$nullif(rtrim(format('%%s', ($1).%I)), '')$t$, a.attname) FROM pg_attribute a
                WHERE a.attrelid = TG_RELID AND a.attname = {name} AND NOT a.attisdropped), 'NULL')"
        )
    };
    let RowReferences { id, label, key_id, user_id, .. } = references;
    format!(
        "is_update := TG_OP = 'UPDATE';
            IF TG_OP = 'INSERT' THEN old_row := NEW; ELSE old_row := OLD; END IF;
            IF TG_OP = 'DELETE' THEN new_row := OLD; ELSE new_row := NEW; END IF;
            SELECT {rows}, {was}, {is_now} INTO rows, was, is_now
                FROM pg_attribute a WHERE a.attrelid = TG_RELID AND NOT a.attisdropped
                AND a.attname = ANY (ARRAY[{spellings}]);
            EXECUTE replace(replace(replace($t${values}$t$, '{{was}}', was), '{{is_now}}', is_now), '{{rows}}', rows)
                INTO before_values, after_values USING old_row, new_row, is_update;
            IF is_update AND after_values IS NULL THEN RETURN NULL; END IF;
            IF TG_OP = 'INSERT' THEN before_values := NULL; ELSIF TG_OP = 'DELETE' THEN after_values := NULL; END IF;
            EXECUTE 'SELECT ' || concat_ws(', ', {id}, {label}, {key_id}, {user_id})
                INTO row_id, label, key_id, user_id USING new_row;",
        rows = list(0, ", "),
        was = list(1, " "),
        is_now = list(2, " "),
        spellings = spellings.join(", "),
        id = reference(Some(id)),
        label = reference(label.as_ref()),
        key_id = reference(key_id.as_ref()),
        user_id = reference(user_id.as_ref()),
    )
}
