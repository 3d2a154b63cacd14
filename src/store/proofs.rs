//! Proofs that survive a restart: the table `keystile_proofs`, used where there is no Redis.
//!
//! A look-up reads the proofs of its keys in the same statement. Each is sealed under the cache secret, together
//! with the key's id and the tag of its hash. So a row that was changed, moved to another key or written under
//! another secret is not believed, and neither is one whose key has another hash by now.

use std::sync::Arc;

use serde_json::json;
use time::OffsetDateTime;
use tracing::debug;

use super::{
    Database, Found, KeyStore, Row, StoreError,
    catalog::Catalog,
    sql::{Dialect, Outcome, Patience, Statement},
};
use crate::{
    clock::Timestamps,
    credential::{CacheSecrets, Prefix},
    metrics::{CacheLookups, Metrics},
    proof::Proof,
    record::KeyRecord,
};

mod sealed;

pub use sealed::{InvalidProof, ProofSeals, StoredProof};

pub(super) const TABLE: &str = "keystile_proofs";

/// A table without these is another application's.
const COLUMNS: [&str; 4] = ["key_id", "tag", "proven_at", "seal"];

/// Proofs of one key that a look-up reads. Each is of a right secret, so there are few, unless another application
/// writes them.
const PROOFS: usize = 16;

const POSTGRES: &str = include_str!("migrations/proofs.postgres.sql");
const SQLITE: &str = include_str!("migrations/proofs.sqlite.sql");

/// A database whose stored proofs are believed.
pub struct ProvenDatabase {
    database: Database,
    seals: ProofSeals,
    lookups: CacheLookups,
}

impl ProvenDatabase {
    /// Believes what was sealed under one of `secrets`.
    pub fn new(database: Database, secrets: CacheSecrets, metrics: &Metrics) -> Self {
        let lookups = metrics.cache_lookups("database", "proofs");
        Self { database, seals: ProofSeals::new(secrets), lookups }
    }

    fn read(&self, found: &Found, now: OffsetDateTime) -> Arc<[Proof]> {
        let mut proofs = Vec::new();
        for (record, row) in found.records.iter().zip(found.rows.iter()) {
            for proof in self.read_row(record, row, now) {
                match proof {
                    Ok(proof) => proofs.push(proof),
                    Err(invalid) => {
                        debug!(key_id = record.id.0, %invalid, "a stored proof is not believed");
                        self.lookups.odd.increment(1);
                    }
                }
            }
        }
        if !found.records.is_empty() {
            let count = if proofs.is_empty() { &self.lookups.miss } else { &self.lookups.hit };
            count.increment(1);
        }
        proofs.into()
    }

    fn read_row(
        &self,
        record: &KeyRecord,
        row: &Row,
        now: OffsetDateTime,
    ) -> Vec<Result<Proof, InvalidProof>> {
        // The last cell of a row, see `select`.
        let Some(cell) = row.last().and_then(Option::as_deref) else { return Vec::new() };
        match serde_json::from_str::<Vec<[String; 3]>>(cell) {
            Ok(stored) => stored.iter().map(|cells| self.seals.open(record, cells, now)).collect(),
            Err(_) => vec![Err(InvalidProof::Content)],
        }
    }
}

impl KeyStore for ProvenDatabase {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Found>, StoreError> {
        let found = self.database.records(prefix, now).await?;
        let proofs = self.read(&found, now.wall);
        if proofs.is_empty() {
            return Ok(found);
        }
        Ok(Arc::new(Found { proofs, ..Arc::unwrap_or_clone(found) }))
    }

    fn is_lost(&self) -> bool {
        self.database.is_lost()
    }
}

/// An expression for the stored proofs of the key `k`: a JSON array with an array of three texts for each. NULL
/// where there is no such table, or it may not be read.
pub(super) fn select(catalog: &Catalog, dialect: Dialect) -> String {
    let Some(kind) = catalog.kind("api_keys", "id").filter(|_| catalog.has_all(TABLE, &COLUMNS)) else {
        return "NULL".to_owned();
    };
    let rows = "json_group_array(json_array(tag, CAST(proven_at AS text), seal))";
    let (rows, key) = match dialect {
        Dialect::Sqlite => (rows.to_owned(), "k.id".to_owned()),
        Dialect::Postgres => (
            "CAST(json_agg(json_build_array(tag, CAST(proven_at AS text), seal)) AS text)".to_owned(),
            match kind {
                "smallint" | "integer" | "bigint" => "k.id".to_owned(),
                // An id of another type is read as text elsewhere; here it must not fail the whole look-up.
                _ => {
                    let text = dialect.read("k.id", kind);
                    format!("CASE WHEN {text} ~ '^-?[0-9]{{1,18}}$' THEN CAST({text} AS bigint) END")
                }
            },
        ),
    };
    format!(
        "(SELECT {rows} FROM (SELECT tag, proven_at, seal FROM {TABLE} p WHERE p.key_id = {key}
        ORDER BY p.proven_at DESC LIMIT {PROOFS}) p)"
    )
}

impl Database {
    /// Stores proofs; those of the same key and credential are replaced.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, has no such table, or does not allow it.
    pub async fn write_proofs(&self, proofs: &[StoredProof]) -> Result<(), StoreError> {
        let catalog = self.catalog(Patience::Check).await?;
        if !catalog.has_all(TABLE, &COLUMNS) {
            return Err(StoreError::Unfit(
                format!("there is no table {TABLE}, or it may not be read; run `keystile migrate`").into(),
            ));
        }
        let rows = proofs.iter().map(|proof| {
            let [tag, proven_at, seal] = proof.cells();
            json!({ "key_id": proof.key().0, "tag": tag, "proven_at": proven_at, "seal": seal })
        });
        let rows = serde_json::Value::from_iter(rows).to_string();
        let sql = match self.dialect() {
            // No UPDATE, so that a role needs no more than to insert and to delete.
            Dialect::Postgres => {
                let rows = "jsonb_to_recordset(CAST($1::text AS jsonb))
                    AS d (key_id bigint, tag text, proven_at bigint, seal text)";
                [
                    format!("DELETE FROM {TABLE} p USING {rows} WHERE p.key_id = d.key_id AND p.tag = d.tag"),
                    format!(
                        "INSERT INTO {TABLE} (key_id, tag, proven_at, seal)
                        SELECT d.key_id, d.tag, d.proven_at, d.seal FROM {rows} ON CONFLICT DO NOTHING"
                    ),
                ]
            }
            Dialect::Sqlite => {
                let cells = |names: &[&str]| {
                    let cells = names.iter().map(|name| format!("json_extract(value, '$.{name}')"));
                    cells.collect::<Vec<_>>().join(", ")
                };
                [
                    format!(
                        "DELETE FROM {TABLE} WHERE (key_id, tag) IN (SELECT {} FROM json_each(?1))",
                        cells(&COLUMNS[..2])
                    ),
                    format!(
                        "INSERT OR IGNORE INTO {TABLE} ({}) SELECT {} FROM json_each(?1)",
                        COLUMNS.join(", "),
                        cells(&COLUMNS)
                    ),
                ]
            }
        };
        self.change_proofs(sql.map(|sql| Statement::new(sql, [Some(rows.clone())])).to_vec()).await
    }

    /// Deletes the proofs that are no longer believed at `now`.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer, or does not allow it.
    pub async fn prune_proofs(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        if !self.catalog(Patience::Check).await?.has_all(TABLE, &COLUMNS) {
            return Ok(());
        }
        let parameter = match self.dialect() {
            Dialect::Sqlite => "CAST(?1 AS integer)",
            Dialect::Postgres => "CAST($1::text AS bigint)",
        };
        let sql = format!("DELETE FROM {TABLE} WHERE proven_at < {parameter}");
        self.change_proofs(vec![Statement::new(sql, [Some(sealed::oldest(now).to_string())])]).await
    }

    /// Creates the table of proofs; the reason if the database does not allow it, which is no failure.
    ///
    /// # Errors
    /// [`StoreError`] when the database does not answer.
    pub(super) async fn create_proofs(&self, lock: &str) -> Result<Option<Arc<str>>, StoreError> {
        let statements = match self.dialect() {
            Dialect::Sqlite => vec![SQLITE],
            Dialect::Postgres => vec![lock, POSTGRES],
        };
        let statements = statements.into_iter().map(|sql| Statement::new(sql, [])).collect();
        match self.backend().transaction(statements, false, Box::new(|_| ())).await? {
            Outcome::Failed(_, StoreError::Unfit(reason)) => Ok(Some(reason)),
            Outcome::Failed(_, error) => Err(error),
            Outcome::Committed | Outcome::Refused(_) => Ok(None),
        }
    }

    /// Not through the guard: a table of proofs that fails says nothing about look-ups.
    async fn change_proofs(&self, statements: Vec<Statement>) -> Result<(), StoreError> {
        let _permit = self.permit().await;
        match self.backend().transaction(statements, false, Box::new(|_| ())).await? {
            Outcome::Failed(_, error) => Err(error),
            Outcome::Committed | Outcome::Refused(_) => Ok(()),
        }
    }
}
