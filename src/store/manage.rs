//! What operators do to users and keys, written once for both databases.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{
    Database, StoreError,
    catalog::Catalog,
    cell::{self, Cell},
    columns::{API_KEYS, Column, Kind, Listed, USERS},
    sql::{Outcome, Patience, Rows, Statement},
};
use crate::record::{KeyId, UserId};

use crate::clock;

mod import;
mod keys;
mod users;

pub use import::{ImportError, ImportRow};
pub use keys::NewKey;
pub use users::NewUser;

/// Why something could not be done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManageError {
    /// The database did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It makes no sense as things are; the text says why, and what would.
    #[error("{0}")]
    Refused(String),
}

type Result<T, E = ManageError> = std::result::Result<T, E>;

/// A column of one table, and what is written there.
type Value = (&'static str, Cell);

impl Listed {
    /// The row, if it is switched off now: row-level security, or a trigger, may have kept it from that without a word.
    fn inactive(self) -> Result<Self> {
        match self.get("is_active").as_bool() {
            Some(false) => Ok(self),
            _ => Err(ManageError::Refused(
                "the database left the row as it is; row-level security or a trigger of its own keeps it so"
                    .into(),
            )),
        }
    }
}

impl Database {
    async fn query(&self, statement: Statement) -> Result<Rows> {
        Ok(self.backend().query(Patience::Person, statement).await?)
    }

    async fn tables(&self) -> Result<Arc<Catalog>> {
        Ok(self.catalog(Patience::Person).await?)
    }

    /// Now, as this database keeps time.
    fn now(&self) -> Cell {
        self.time(clock::wall())
    }

    fn time(&self, time: OffsetDateTime) -> Cell {
        Some(self.backend().dialect().timestamp(cell::write_timestamp(time)))
    }
}

/// An INSERT that does nothing where a row with the same values in all columns of one of the
/// `unless` groups is there already; it returns the new row's id.
fn insert(catalog: &Catalog, table: &'static str, values: Vec<Value>, unless: &[&[&str]]) -> Statement {
    let param = |column: &str| {
        let at = values.iter().position(|(name, _)| *name == column);
        at.map(|at| catalog.param(at + 1, table, column))
    };
    let columns: Vec<_> = values.iter().map(|(column, _)| *column).collect();
    let params: Vec<_> = columns.iter().filter_map(|column| param(column)).collect();
    let guards = unless.iter().filter_map(|group| {
        let same = group.iter().map(|column| Some(format!("{column} = {}", param(column)?)));
        let same = same.collect::<Option<Vec<_>>>()?.join(" AND ");
        Some(format!("NOT EXISTS (SELECT 1 FROM {table} WHERE {same})"))
    });
    let guards = guards.collect::<Vec<_>>().join(" AND ");
    let sql = format!(
        "INSERT INTO {table} ({}) SELECT {} WHERE {} RETURNING CAST(id AS text)",
        columns.join(", "),
        params.join(", "),
        if guards.is_empty() { "true" } else { &guards },
    );
    Statement::new(sql, values.into_iter().map(|(_, cell)| cell).collect::<Vec<_>>())
}

/// An UPDATE of the row with this id, leaving out columns that the table does not have.
fn update(catalog: &Catalog, table: &'static str, id: i64, mut values: Vec<Value>) -> Statement {
    values.retain(|(column, _)| catalog.has(table, column));
    let set = values.iter().enumerate();
    let set = set.map(|(at, (column, _))| format!("{column} = {}", catalog.param(at + 1, table, column)));
    let set = set.collect::<Vec<_>>().join(", ");
    let id_param = catalog.param(values.len() + 1, table, "id");
    let sql = format!("UPDATE {table} SET {set} WHERE id = {id_param} RETURNING CAST(id AS text)");
    let params = values.into_iter().map(|(_, cell)| cell).chain([Some(id.to_string())]);
    Statement::new(sql, params.collect::<Vec<_>>())
}

/// Refuses to lose a setting for want of a column.
fn needs_column(catalog: &Catalog, table: &'static str, column: &str) -> Result<()> {
    if catalog.has(table, column) {
        return Ok(());
    }
    Err(ManageError::Refused(format!(
        "the table {table} has no column {column}, so what you set would be lost; leave it out, or add the column"
    )))
}

fn id(rows: &Rows) -> Option<i64> {
    rows.first()?.first()?.as_deref()?.parse().ok()
}
