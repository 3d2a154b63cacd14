//! Reads all rows of a table in batches, by id, so that a large table needs neither much memory nor a long transaction.

use super::Inspector;
use crate::store::{Row, SqlValue, StoreError, statement::Statement};

/// Rows in one batch.
const BATCH: usize = 1000;

/// What is read of a table.
pub(super) struct Scan<'a> {
    pub(super) table: &'static str,
    /// The name that the table has in `from`.
    pub(super) alias: &'a str,
    pub(super) from: &'a str,
    /// The columns that are selected, after the id.
    pub(super) columns: &'a str,
}

/// The place of a scan: the id of the last row.
#[derive(Default)]
pub(super) struct Cursor {
    last: SqlValue,
    is_done: bool,
}

impl Cursor {
    /// The next rows, each without its id. None at the end.
    pub(super) async fn next(
        &mut self,
        inspector: &Inspector<'_>,
        scan: &Scan<'_>,
    ) -> Result<Option<Vec<Row>>, StoreError> {
        if self.is_done {
            return Ok(None);
        }
        let (schema, Scan { table, alias, from, columns }) = (&inspector.schema, scan);
        let id = format!("{alias}.{}", schema.name(table, "id"));
        let after = if self.last.is_some() {
            format!("WHERE {id} > {}", schema.param(1, table, "id"))
        } else {
            String::new()
        };
        let text = schema.column(table, "id");
        let sql = format!("SELECT {text}, {columns} FROM {from} {after} ORDER BY {id} LIMIT {BATCH}");
        let params = self.last.clone().map(Some).into_iter().collect::<Vec<_>>();
        let mut rows = inspector.query(Statement::new(sql, params)).await?;
        let last = rows.last_mut().and_then(|row| row.first_mut()).and_then(Option::take);
        // An id that is NULL or does not grow would be read for ever.
        self.is_done = rows.len() < BATCH || last.is_none() || last == self.last;
        self.last = last;
        Ok(Some(rows.into_iter().map(|row| row.into_iter().skip(1).collect()).collect()))
    }
}
