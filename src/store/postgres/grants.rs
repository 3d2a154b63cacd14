//! The GRANT statements for Keystile's roles, from the lists of the columns that its statements name.

use std::collections::BTreeSet;

use super::access::{WRITTEN, literal};
use crate::store::{
    audited_tables::AUDIT,
    schema::{CHANGES, PROOFS, ROTATED_BUDGETS, ROTATIONS, Schema},
    statement::Rows,
    statements::UsedColumns,
};

/// A table as a script names it.
struct Relation {
    name: String,
    /// Its schema.
    namespace: String,
    /// Its name in SQL, with its schema.
    sql: String,
    /// The sequence of its ids, if it has one.
    sequence: Option<String>,
}

/// Selects the tables: name, schema, name in SQL, and the sequence of its ids.
pub(super) fn relations(schema: &Schema) -> String {
    let tables = [
        "api_keys",
        "users",
        "roles",
        "budgets",
        CHANGES,
        PROOFS,
        ROTATIONS,
        ROTATED_BUDGETS,
        AUDIT,
        TOKENS,
        REQUESTS,
        LOST,
    ];
    let values = tables.map(|table| {
        let has_ids = matches!(table, "api_keys" | "users" | "budgets");
        let id = schema.spelling(table, "id").filter(|_| has_ids);
        format!("({}, {})", literal(table), id.map_or("CAST(NULL AS text)".to_owned(), literal))
    });
    format!(
        "SELECT t.name, quote_ident(n.nspname), quote_ident(n.nspname) || '.' || quote_ident(c.relname),
            CASE WHEN t.id IS NOT NULL AND c.relkind IN ('r', 'p') THEN
                pg_get_serial_sequence(quote_ident(n.nspname) || '.' || quote_ident(c.relname), t.id) END
        FROM (VALUES {}) AS t (name, id) JOIN pg_class c ON c.oid = to_regclass(t.name)
        JOIN pg_namespace n ON n.oid = c.relnamespace",
        values.join(", ")
    )
}

/// The sequence that counts the changes that could not be logged.
const LOST: &str = "keystile_changes_lost";

/// The tables of the management API.
const TOKENS: &str = "keystile_management_tokens";
const REQUESTS: &str = "keystile_idempotency";

/// The script.
pub(super) fn script(schema: &Schema, used: &[UsedColumns], rows: Rows, role: &str) -> String {
    let relations: Vec<_> = rows.into_iter().filter_map(Relation::read).collect();
    let script = Script { schema, used, relations };
    let (instance, admin) = (quoted(role), quoted(&format!("{role}_admin")));
    let mut lines = vec![format!(
        "-- For `keystile serve`, and for commands that only read. First: CREATE ROLE {instance} LOGIN;"
    )];
    lines.extend(script.reading(&instance));
    lines.extend(script.log(&instance, "SELECT, UPDATE, DELETE"));
    if let Some(proofs) = script.relation(PROOFS) {
        lines.push(format!("GRANT SELECT, INSERT, DELETE ON {} TO {instance};", proofs.sql));
    }
    lines.push("-- For its counts of requests. Not needed with KEYSTILE_USAGE_INTERVAL=0s.".to_owned());
    lines.extend(script.columns("UPDATE", "api_keys", &WRITTEN, &instance));
    lines.push(format!("-- For commands that write keys and users. First: CREATE ROLE {admin} LOGIN;"));
    lines.extend(script.reading(&admin));
    lines.extend(script.log(&admin, "SELECT, INSERT"));
    // Its triggers write it.
    if let Some(audit) = script.relation(AUDIT) {
        lines.push(format!("GRANT SELECT ON {} TO {admin};", audit.sql));
    }
    for UsedColumns { table, inserted, updated, .. } in used {
        lines.extend(script.columns("INSERT", table, inserted, &admin));
        lines.extend(script.columns("UPDATE", table, updated, &admin));
        if let Some(sequence) = script.relation(table).and_then(|relation| relation.sequence.as_ref()) {
            lines.push(format!("GRANT USAGE, UPDATE ON SEQUENCE {sequence} TO {admin};"));
        }
    }
    lines.extend(script.rotation(&admin));
    lines.extend(script.management(&admin));
    if script.relation(CHANGES).is_none() {
        lines.push(
            "-- There is no log of changes: run `keystile migrate`, then print the statements again.".into(),
        );
    }
    lines.join("\n") + "\n"
}

struct Script<'a> {
    schema: &'a Schema,
    used: &'a [UsedColumns],
    relations: Vec<Relation>,
}

impl Script<'_> {
    fn relation(&self, name: &str) -> Option<&Relation> {
        self.relations.iter().find(|relation| relation.name == name)
    }

    /// The rights to read what decisions and lists read.
    fn reading(&self, role: &str) -> Vec<String> {
        let namespaces: BTreeSet<_> = self.relations.iter().map(|relation| &relation.namespace).collect();
        let mut lines: Vec<_> = namespaces
            .into_iter()
            .map(|namespace| format!("GRANT USAGE ON SCHEMA {namespace} TO {role};"))
            .collect();
        for UsedColumns { table, read, .. } in self.used {
            lines.extend(self.columns("SELECT", table, read, role));
        }
        lines
    }

    /// The rights to rotate keys, whose rows are copied with all of their columns.
    fn rotation(&self, role: &str) -> Vec<String> {
        if self.relation(ROTATIONS).is_none() {
            return Vec::new();
        }
        let tables = ["api_keys", "budgets", ROTATIONS, ROTATED_BUDGETS];
        let relations = tables.into_iter().filter_map(|table| self.relation(table));
        let copied = relations.map(|relation| format!("GRANT SELECT, INSERT ON {} TO {role};", relation.sql));
        ["-- For `keystile keys rotate`, which copies rows with all of their columns.".to_owned()]
            .into_iter()
            .chain(copied)
            .collect()
    }

    /// The rights of the management API, and of the command that makes its tokens.
    fn management(&self, role: &str) -> Vec<String> {
        let rights = [(TOKENS, "SELECT, INSERT, UPDATE"), (REQUESTS, "SELECT, INSERT, UPDATE, DELETE")];
        let granted: Vec<_> = rights
            .into_iter()
            .filter_map(|(table, rights)| {
                Some(format!("GRANT {rights} ON {} TO {role};", self.relation(table)?.sql))
            })
            .collect();
        if granted.is_empty() {
            return granted;
        }
        let comment = "-- For `keystile management` and `keystile management-tokens`.".to_owned();
        [comment].into_iter().chain(granted).collect()
    }

    fn log(&self, role: &str, rights: &str) -> Vec<String> {
        let log = self.relation(CHANGES).map(|log| format!("GRANT {rights} ON {} TO {role};", log.sql));
        let lost =
            self.relation(LOST).map(|lost| format!("GRANT SELECT ON SEQUENCE {} TO {role};", lost.sql));
        log.into_iter().chain(lost).collect()
    }

    /// A right on these columns, as far as the table has them.
    fn columns(&self, right: &str, table: &str, columns: &[&str], role: &str) -> Option<String> {
        let relation = self.relation(table)?;
        let there: BTreeSet<_> = columns.iter().filter(|column| self.schema.has(table, column)).collect();
        let names: Vec<_> = there.into_iter().map(|column| self.schema.name(table, column)).collect();
        (!names.is_empty())
            .then(|| format!("GRANT {right} ({}) ON {} TO {role};", names.join(", "), relation.sql))
    }
}

impl Relation {
    fn read(row: Vec<Option<String>>) -> Option<Self> {
        let mut values = row.into_iter();
        let [name, namespace, sql, sequence] = std::array::from_fn(|_| values.next().flatten());
        Some(Self { name: name?, namespace: namespace?, sql: sql?, sequence })
    }
}

fn quoted(name: &str) -> String {
    let is_plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_is_quoted_where_it_must_be() {
        for (name, shown) in [("keystile", "keystile"), ("Api", "\"Api\""), ("a\"; DROP", "\"a\"\"; DROP\"")]
        {
            assert_eq!(quoted(name), shown);
        }
    }
}
