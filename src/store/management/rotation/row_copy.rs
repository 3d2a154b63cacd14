//! Copies of rows, made in SQL: columns that Keystile does not know are copied as they are.

use super::super::{Database, Result};
use crate::store::{SqlValue, schema::Schema, statement::Statement};

/// A column of a table to copy a row of.
pub(super) struct CopiedColumn {
    name: String,
    /// In SQL.
    sql: String,
    /// Whether the database supplies the value of a copy.
    is_supplied: bool,
}

/// A copy of one row: its columns, and the values that it has in place of the row's own.
pub(super) struct RowCopy<'a> {
    pub(super) schema: &'a Schema,
    pub(super) table: &'static str,
    pub(super) columns: &'a [CopiedColumn],
    pub(super) values: Vec<(&'static str, NewValue)>,
}

/// A value that a copy has in place of the row's own.
pub(super) enum NewValue {
    Param(SqlValue),
    /// An expression in SQL.
    Expression(String),
}

impl Database {
    /// The columns of a table, all that the database has.
    pub(super) async fn copied_columns(
        &self,
        schema: &Schema,
        table: &'static str,
    ) -> Result<Vec<CopiedColumn>> {
        let rows = self.query(self.statements().columns(schema, table)).await?;
        let column = |row: Vec<SqlValue>| {
            let mut values = row.into_iter();
            let [name, sql, how] = std::array::from_fn(|_| values.next().flatten());
            Some(CopiedColumn { name: name?, sql: sql?, is_supplied: how.is_some() })
        };
        Ok(rows.into_iter().filter_map(column).collect())
    }
}

impl RowCopy<'_> {
    /// An INSERT of the copy of the row with this id. It ends with a condition, to which others can be added, and has no
    /// RETURNING.
    pub(super) fn insert(self, id: i64) -> Statement {
        let Self { schema, table, columns, values } = self;
        let (mut names, mut expressions, mut params) = (Vec::new(), Vec::new(), Vec::new());
        let spelled = |name: &str, column: &CopiedColumn| {
            schema.spelling(table, name).is_some_and(|spelling| spelling == column.name)
        };
        for column in columns {
            let expression = match values.iter().find(|(name, _)| spelled(name, column)) {
                Some((name, NewValue::Param(value))) => {
                    params.push(value.clone());
                    schema.param(params.len(), table, name)
                }
                Some((_, NewValue::Expression(sql))) => sql.clone(),
                None if column.is_supplied || spelled("id", column) => continue,
                None => format!("o.{}", column.sql),
            };
            names.push(&*column.sql);
            expressions.push(expression);
        }
        params.push(Some(id.to_string()));
        let relation = schema.relation(table);
        let sql = format!(
            "INSERT INTO {relation} ({}) SELECT {} FROM {relation} o WHERE o.{} = {}",
            names.join(", "),
            expressions.join(", "),
            schema.name(table, "id"),
            schema.param(params.len(), table, "id"),
        );
        Statement::new(sql, params)
    }
}
