//! SQL that both databases understand: everything is text on its way in and out.

use std::sync::Arc;

use super::{StoreError, Written, cell::Cell, postgres::Postgres, sqlite::Sqlite};

/// Rows of cells.
pub(crate) type Rows = Vec<Vec<Cell>>;

/// A statement and its parameters.
#[derive(Clone)]
pub(crate) struct Statement {
    pub(crate) sql: Arc<str>,
    pub(crate) params: Vec<Cell>,
    /// Whether it does what no transaction takes back, and so is not even tried after another has failed.
    pub(crate) is_final: bool,
}

/// The database itself.
pub(crate) enum Backend {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

/// Where the two differ in what they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// A check waits for it: the database timeout.
    Check,
    /// A person waits for it, and it may be about every row there is.
    Person,
}

/// How a transaction ended.
pub(crate) enum Outcome {
    /// Every statement returned something.
    Committed,
    /// The statements at these places returned nothing, and nothing was done.
    Refused(Vec<usize>),
    /// The statement at this place failed, and nothing was done.
    Failed(usize, StoreError),
}

/// Told how many statements of a transaction are done.
pub(crate) type Progress = Box<dyn Fn(usize) + Send + Sync>;

impl Statement {
    pub(crate) fn new(sql: impl Into<Arc<str>>, params: impl Into<Vec<Cell>>) -> Self {
        Self { sql: sql.into(), params: params.into(), is_final: false }
    }

    /// The same, to be run only if all before it in its transaction went well.
    pub(crate) fn at_last(self) -> Self {
        Self { is_final: true, ..self }
    }
}

impl Backend {
    pub(crate) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite(_) => Dialect::Sqlite,
            Self::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Which of several databases of this kind answers, as far as the process itself can tell: a SQLite file by its
    /// device and inode. Empty for Postgres, which says it in a statement.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Sqlite(sqlite) => sqlite.identity(),
            Self::Postgres(_) => String::new(),
        }
    }

    /// Closes all connections, those in use as soon as they are free.
    pub(crate) fn reconnect(&self) {
        match self {
            Self::Sqlite(sqlite) => sqlite.reconnect(),
            Self::Postgres(postgres) => postgres.reconnect(),
        }
    }

    pub(crate) async fn query(&self, patience: Patience, statement: Statement) -> Result<Rows, StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.query(patience, statement).await,
            Self::Postgres(postgres) => postgres.query(patience, &statement).await,
        }
    }

    /// Runs one statement, so that it can be found out later whether it was.
    pub(crate) async fn write_once(&self, statement: Statement) -> Written {
        match self {
            // Whoever asks for this file is in this process with it: an error is a no.
            Self::Sqlite(sqlite) => match sqlite.query(Patience::Person, statement).await {
                Ok(_) => Written::Done,
                Err(error) => Written::NotDone(error),
            },
            Self::Postgres(postgres) => postgres.write_once(&statement).await,
        }
    }

    /// Runs the statements in one transaction, all or nothing; with `needs_rows`, a statement that
    /// returns none has failed too, and those after it are tried to see which else do.
    pub(crate) async fn transaction(
        &self,
        statements: Vec<Statement>,
        needs_rows: bool,
        progress: Progress,
    ) -> Result<Outcome, StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlite.transaction(statements, needs_rows, progress).await,
            Self::Postgres(postgres) => postgres.transaction(statements, needs_rows, progress).await,
        }
    }
}

impl Dialect {
    /// The name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }

    /// An expression for this column's value as text, which no setting of the session changes: neither its time
    /// zone nor how it prints dates, bytes and fractions.
    pub(crate) fn read(self, column: &str, kind: &str) -> String {
        if self == Self::Sqlite {
            return format!("CAST({column} AS TEXT)");
        }
        match kind {
            // JSON as written: unwrapped, the string "[]" would pass for an empty list. What `char(n)` pads is left off.
            "json" | "jsonb" | "text" | "character varying" | "bpchar" | "character" | "citext" => {
                format!("CAST({column} AS text)")
            }
            "timestamp with time zone" => format!("to_jsonb(timezone('UTC', {column})) #>> '{{}}'"),
            // As numbers they have 15 digits. There is none for what is not finite.
            "real" | "double precision" => format!(
                "CASE WHEN {column} IN ('NaN', 'Infinity', '-Infinity') THEN 'NaN'
                ELSE CAST(CAST(CAST({column} AS double precision) AS numeric) AS text) END"
            ),
            "bytea" => format!("encode({column}, 'escape')"),
            "bpchar[]" | "character[]" => format!("to_jsonb(CAST({column} AS text[])) #>> '{{}}'"),
            // One form for every other type, which DateStyle and the like do not change.
            _ => format!("to_jsonb({column}) #>> '{{}}'"),
        }
    }

    /// A condition for texts that are the same byte for byte. A column's type or collation may take others for equal.
    pub(crate) fn is_exactly(self, column: &str, param: usize) -> String {
        match self {
            Self::Sqlite => format!("CAST({column} AS TEXT) COLLATE BINARY = ?{param}"),
            Self::Postgres => format!("CAST({column} AS text) COLLATE \"C\" = ${param}::text"),
        }
    }

    /// The parameter of this number, for a column of this type.
    pub(crate) fn param(self, number: usize, kind: &str) -> String {
        match self {
            Self::Sqlite => format!("?{number}"),
            Self::Postgres => format!("CAST(${number}::text AS {kind})"),
        }
    }

    /// A timestamp as it is written, from [`super::cell::write_timestamp`]'s form. Postgres ignores
    /// the offset where a column has no time zone, and needs it where it has.
    pub(crate) fn timestamp(self, mut written: String) -> String {
        if self == Self::Postgres && written.starts_with(|first: char| first.is_ascii_digit()) {
            written.push_str("+00");
        }
        written
    }
}
