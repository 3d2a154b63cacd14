//! The statements that write a row of a table whose columns and types are the application's.

use super::ColumnValue;
use crate::store::{schema::Schema, statement::Statement};

/// An INSERT that returns the new row's id. It does nothing if a row already has the same values in all columns of one of
/// the `unless` groups.
pub(super) fn insert(
    schema: &Schema,
    table: &'static str,
    values: Vec<ColumnValue>,
    unless: &[&[&str]],
) -> Statement {
    insert_from(schema, table, values, unless, |_, _| None)
}

/// The same. `expression` returns what a column gets in place of the parameter of this number.
pub(super) fn insert_from(
    schema: &Schema,
    table: &'static str,
    values: Vec<ColumnValue>,
    unless: &[&[&str]],
    expression: impl Fn(&str, usize) -> Option<String>,
) -> Statement {
    let param = |column: &str| {
        let at = values.iter().position(|(name, _)| *name == column);
        at.map(|at| expression(column, at + 1).unwrap_or_else(|| schema.param(at + 1, table, column)))
    };
    let relation = schema.relation(table);
    let columns: Vec<_> = values.iter().map(|(column, _)| *column).collect();
    let params: Vec<_> = columns.iter().filter_map(|column| param(column)).collect();
    let guards = unless.iter().filter_map(|group| {
        let same =
            group.iter().map(|column| Some(format!("{} = {}", schema.name(table, column), param(column)?)));
        let same = same.collect::<Option<Vec<_>>>()?.join(" AND ");
        Some(format!("NOT EXISTS (SELECT 1 FROM {relation} WHERE {same})"))
    });
    let guards = guards.collect::<Vec<_>>().join(" AND ");
    let sql = format!(
        "INSERT INTO {relation} ({}) SELECT {} WHERE {} RETURNING CAST({} AS text)",
        columns.iter().map(|column| schema.name(table, column)).collect::<Vec<_>>().join(", "),
        params.join(", "),
        if guards.is_empty() { "true" } else { &guards },
        schema.name(table, "id"),
    );
    Statement::new(sql, values.into_iter().map(|(_, value)| value).collect::<Vec<_>>())
}

/// An UPDATE of the row with this id, which returns its id. Columns that the table does not have are omitted.
pub(super) fn update(
    schema: &Schema,
    table: &'static str,
    id: i64,
    mut values: Vec<ColumnValue>,
) -> Statement {
    values.retain(|(column, _)| schema.has(table, column));
    let assignments = assignments(schema, table, &values, 0);
    let id_param = schema.param(values.len() + 1, table, "id");
    let id_column = schema.name(table, "id");
    let sql = format!(
        "UPDATE {} SET {assignments} WHERE {id_column} = {id_param} RETURNING CAST({id_column} AS text)",
        schema.relation(table)
    );
    let params = values.into_iter().map(|(_, value)| value).chain([Some(id.to_string())]);
    Statement::new(sql, params.collect::<Vec<_>>())
}

/// The SET clause of these columns, whose parameters come after `offset` others.
pub(super) fn assignments(
    schema: &Schema,
    table: &'static str,
    values: &[ColumnValue],
    offset: usize,
) -> String {
    let set = values.iter().enumerate().map(|(at, (column, _))| {
        format!("{} = {}", schema.name(table, column), schema.param(offset + at + 1, table, column))
    });
    set.collect::<Vec<_>>().join(", ")
}

/// Whether the database stores times in this column: one of another type holds something that the application computes.
pub(super) fn holds_time(schema: &Schema, table: &str, column: &str) -> bool {
    let kind = schema.kind(table, column).map(str::to_ascii_lowercase);
    let is_time = |kind: &String| ["time", "date", "text", "char"].iter().any(|part| kind.contains(part));
    kind.as_ref().is_some_and(is_time) && !schema.is_generated(table, column)
}
