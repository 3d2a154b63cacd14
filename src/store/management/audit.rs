//! Reads and prunes the audit log.

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::{
    Database, DisplayRow, ManagementError, Result, Statement,
    columns::{API_KEYS, Column, ColumnKind, USERS},
    display_row::show,
    id,
};
use crate::store::{audited_tables::AUDIT, schema::Schema};

/// Which entries are read. Empty fields are no condition.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// From this time on.
    pub since: Option<OffsetDateTime>,
    /// About the key with this id or prefix.
    pub key: Option<String>,
    /// About the user with this id or email, or a key of that user.
    pub user: Option<String>,
    /// By the actor of this name, or by plain SQL of this database role.
    pub actor: Option<String>,
    /// At most so many, the newest.
    pub limit: Option<u32>,
}

/// The entries that a read has seen.
#[derive(Debug, Clone)]
pub struct AuditPosition(String);

/// Entries, oldest first.
#[derive(Debug)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<DisplayRow>,
    /// The position after them.
    pub position: AuditPosition,
}

const fn column(name: &'static str, kind: ColumnKind) -> Column {
    Column { name, kind }
}

const COLUMNS: [Column; 15] = [
    column("id", ColumnKind::Integer),
    column("changed_at", ColumnKind::Timestamp),
    column("source", ColumnKind::Text),
    column("actor", ColumnKind::Text),
    column("origin", ColumnKind::Text),
    column("database_role", ColumnKind::Text),
    column("application", ColumnKind::Text),
    column("client_address", ColumnKind::Text),
    column("action", ColumnKind::Text),
    column("table_name", ColumnKind::Text),
    column("row_id", ColumnKind::Text),
    column("label", ColumnKind::Text),
    column("user_id", ColumnKind::Text),
    column("before_values", ColumnKind::Json),
    column("after_values", ColumnKind::Json),
];

impl Database {
    /// Entries of the audit log, those that were committed since a position or all. What is committed late is in a later
    /// page, whatever its number.
    ///
    /// # Errors
    /// [`ManagementError`] when there is no audit log, or the database does not answer.
    pub async fn audit(&self, filter: &AuditFilter, since: Option<&AuditPosition>) -> Result<AuditPage> {
        let schema = &self.audited_schema().await?;
        let mut query = AuditQuery { schema, conditions: Vec::new(), params: Vec::new() };
        if let Some(AuditPosition(position)) = since {
            query.params.push(Some(position.clone()));
            query.conditions.push(self.statements().audit_since(query.params.len()));
        }
        if let Some(time) = filter.since {
            query.params.push(self.time(time));
            let param = schema.param(query.params.len(), AUDIT, "changed_at");
            query.conditions.push(format!("a.changed_at >= {param}"));
        }
        if let Some(key) = &filter.key {
            let key = query.text(key);
            query
                .conditions
                .push(format!("(a.key_id = {key} OR (a.table_name = 'api_keys' AND a.label = {key}))"));
        }
        if let Some(user) = &filter.user {
            let found = self.find_user(user).await.map_or_else(|_| user.clone(), |user| user.text("id"));
            let (label, id) = (query.text(user), query.text(&found));
            // A user who was deleted is known to the log alone.
            query.conditions.push(format!(
                "(a.user_id = {id} OR a.user_id IN (SELECT u.user_id FROM {} u
                    WHERE u.table_name = 'users' AND lower(u.label) = lower({label})))",
                schema.relation(AUDIT)
            ));
        }
        if let Some(actor) = &filter.actor {
            let actor = query.text(actor);
            let role = if schema.has(AUDIT, "database_role") {
                format!(" OR (a.source = 'sql' AND a.database_role = {actor})")
            } else {
                String::new()
            };
            query.conditions.push(format!("(a.actor = {actor}{role})"));
        }
        let statement = query.statement(self.statements().audit_position(), filter.limit);
        let mut position = String::new();
        let mut entries = Vec::new();
        for row in self.query(statement).await? {
            let mut values = row.into_iter();
            position = values.next().flatten().unwrap_or_default();
            let row = DisplayRow::new(COLUMNS, values.collect());
            // A page without entries has one row with the position.
            if !row.get("id").is_null() {
                entries.push(typed(row));
            }
        }
        Ok(AuditPage { entries, position: AuditPosition(position) })
    }

    /// Why the audit log does not have every change, in sentences.
    ///
    /// # Errors
    /// [`ManagementError`] when there is no audit log, or the database does not answer.
    pub async fn audit_gaps(&self) -> Result<Vec<String>> {
        let schema = self.audited_schema().await?;
        let state = self.audit_state(&schema).await?;
        let lost = (state.lost > 0).then(|| format!("{} changes could not be recorded", state.lost));
        Ok(state.problems.into_iter().chain(lost).collect())
    }

    /// Deletes the entries from before this time, and records that. Returns how many there were.
    ///
    /// # Errors
    /// [`ManagementError`] when this role may not, or the database does not answer.
    pub async fn prune_audit(&self, before: OffsetDateTime) -> Result<i64> {
        let schema = &self.audited_schema().await?;
        let (audit, param) = (schema.relation(AUDIT), schema.param(1, AUDIT, "changed_at"));
        let old = format!("FROM {audit} WHERE changed_at < {param}");
        let count = Statement::new(format!("SELECT CAST(count(*) AS text) {old}"), [self.time(before)]);
        let count = id(&self.query(count).await?).unwrap_or(0);
        let time = before.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        let pruned = serde_json::json!({ "before": time, "entries": count }).to_string();
        let [kind, name, origin] = self.actor().describe();
        let values = [("source", kind), ("actor", name), ("origin", origin), ("after_values", &pruned)];
        let columns = values.map(|(column, _)| column).join(", ");
        let params: Vec<_> =
            (1..).zip(values).map(|(at, (column, _))| schema.param(at, AUDIT, column)).collect();
        let record = format!(
            "INSERT INTO {audit} (action, table_name, {columns}) VALUES ('prune', '{AUDIT}', {})",
            params.join(", ")
        );
        let values = values.map(|(_, value)| Some(value.to_owned()));
        let delete = Statement::new(format!("DELETE {old}"), [self.time(before)]);
        self.backend().execute_all(vec![delete, Statement::new(record, values)]).await?;
        Ok(count)
    }

    async fn audited_schema(&self) -> Result<std::sync::Arc<Schema>> {
        let schema = self.operator_schema().await?;
        if schema.has_table(AUDIT) {
            return Ok(schema);
        }
        Err(ManagementError::Refused(
            "the database has no audit log keystile_audit; run `keystile migrate` as the owner of the tables"
                .into(),
        ))
    }
}

/// A query of the audit log, named `a`.
struct AuditQuery<'a> {
    schema: &'a Schema,
    conditions: Vec<String>,
    params: Vec<Option<String>>,
}

impl AuditQuery<'_> {
    /// A parameter with this text.
    fn text(&mut self, text: &str) -> String {
        self.params.push(Some(text.to_owned()));
        self.schema.param(self.params.len(), AUDIT, "label")
    }

    /// Selects the position, and the entries where there are any.
    fn statement(self, position: &str, limit: Option<u32>) -> Statement {
        let Self { schema, conditions, params } = self;
        let columns = COLUMNS.map(|column| schema.text_of(AUDIT, "a", column.name)).join(", ");
        let conditions =
            if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
        let limit = limit.map_or_else(String::new, |limit| format!("ORDER BY a.id DESC LIMIT {limit}"));
        let audit = schema.relation(AUDIT);
        let sql = format!(
            "SELECT p.position, {columns} FROM (SELECT {position} AS position) p
            LEFT JOIN (SELECT a.* FROM {audit} a {conditions} {limit}) a ON true ORDER BY a.id"
        );
        Statement::new(sql, params)
    }
}

/// The entry with its values in the types of their columns, which a database may not have.
fn typed(mut entry: DisplayRow) -> DisplayRow {
    let table = entry.text("table_name");
    let columns = match &*table {
        "api_keys" => API_KEYS,
        "users" => USERS,
        _ => return entry,
    };
    let value = |name: &str, value: Value| {
        let kind =
            columns.iter().find(|column| column.name.eq_ignore_ascii_case(name)).map(|column| column.kind);
        match (kind, value) {
            (_, Value::Null) | (None | Some(ColumnKind::Hash), _) => None,
            (Some(kind), Value::String(text)) => Some(show(kind, Some(text))),
            (Some(kind), value) => Some(show(kind, Some(value.to_string()))),
        }
    };
    let typed = |values: &Value| match values {
        Value::Object(values) => Value::Object(
            values
                .iter()
                .map(|(name, old)| (name.clone(), value(name, old.clone()).unwrap_or(old.clone())))
                .collect::<Map<_, _>>(),
        ),
        other => other.clone(),
    };
    let [before, after] = ["before_values", "after_values"].map(|column| typed(entry.get(column)));
    entry.replace("before_values", before);
    entry.replace("after_values", after);
    entry
}
