//! Requests that must not be carried out twice: the table `keystile_idempotency`.
//!
//! The record is written in the transaction of the change, so that each change has one, and no change is made twice.

use std::{sync::Arc, time::Duration};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{Database, Result, Statement, tokens::millis, tokens::without_table};
use crate::{
    clock,
    store::{statement::Deadline, statements::Statements},
};

/// How long a request is remembered.
pub const IDEMPOTENCY_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

const TABLE: &str = "keystile_idempotency";

/// A request with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyClaim {
    /// SHA-256 of caller and key.
    id: String,
    /// SHA-256 of method, path and body.
    request: String,
}

/// A request that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// Whether it is the request of the claim.
    pub is_same: bool,
    /// The row that it created.
    pub subject: Option<i64>,
    /// Status and body of its answer, without the secret. `None` if the process ended before it answered.
    pub answer: Option<(u16, String)>,
}

impl IdempotencyClaim {
    /// The claim of a request. `caller` is unique for a caller.
    pub fn new(caller: &str, key: &str, request: [&[u8]; 3]) -> Self {
        Self { id: digest([caller.as_bytes(), key.as_bytes()]), request: digest(request) }
    }

    /// Its place among the requests in progress.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Inserts the record, unless there is one.
    pub(super) fn insert(&self, statements: &dyn Statements) -> Statement {
        let now = clock::wall();
        let sql = format!(
            "INSERT INTO {TABLE} (id, request, created_at) VALUES ({}, {}, {})
            ON CONFLICT (id) DO UPDATE SET request = excluded.request, created_at = excluded.created_at,
                subject = NULL, status = NULL, answer = NULL
            WHERE {TABLE}.created_at < {} RETURNING id",
            statements.param(1, "text"),
            statements.param(2, "text"),
            statements.param(3, "bigint"),
            statements.param(4, "bigint"),
        );
        let params = [self.id.clone(), self.request.clone(), millis(now).to_string(), oldest(now)];
        Statement::new(sql, params.map(Some))
    }

    /// Records the row that the request created.
    pub(super) fn with_subject(&self, statements: &dyn Statements, subject: i64) -> Statement {
        let sql = format!(
            "UPDATE {TABLE} SET subject = {} WHERE id = {}",
            statements.param(1, "bigint"),
            statements.param(2, "text")
        );
        Statement::new(sql, [subject.to_string(), self.id.clone()].map(Some))
    }
}

impl Database {
    /// The same database, whose next change is the one of this request, or is refused with
    /// [`ManagementError::AlreadyDone`](super::ManagementError::AlreadyDone).
    #[must_use]
    pub fn for_request(&self, claim: IdempotencyClaim) -> Self {
        self.with_claim(Some(Arc::new(claim)))
    }

    /// What became of an earlier request with this idempotency key.
    ///
    /// # Errors
    /// [`ManagementError`](super::ManagementError) when the database does not answer, or the table is missing.
    pub async fn earlier_request(&self, claim: &IdempotencyClaim) -> Result<Option<IdempotencyRecord>> {
        let sql = format!(
            "SELECT request, CAST(subject AS text), CAST(status AS text), answer FROM {TABLE}
            WHERE id = {} AND created_at >= {}",
            self.statements().param(1, "text"),
            self.statements().param(2, "bigint"),
        );
        let params = [claim.id.clone(), oldest(clock::wall())].map(Some);
        let rows = self.query(Statement::new(sql, params)).await.map_err(without_table)?;
        let record = rows.into_iter().next().map(|row| {
            let mut values = row.into_iter();
            let [request, subject, status, answer] = std::array::from_fn(|_| values.next().flatten());
            IdempotencyRecord {
                is_same: request.as_deref() == Some(&claim.request),
                subject: subject.and_then(|subject| subject.parse().ok()),
                answer: status.and_then(|status| Some((status.parse().ok()?, answer?))),
            }
        });
        Ok(record)
    }

    /// Records the answer of a request, without its secret.
    ///
    /// # Errors
    /// As above.
    pub async fn record_answer(&self, claim: &IdempotencyClaim, status: u16, answer: &str) -> Result<()> {
        let sql = format!(
            "UPDATE {TABLE} SET status = {}, answer = {} WHERE id = {} AND request = {}",
            self.statements().param(1, "integer"),
            self.statements().param(2, "text"),
            self.statements().param(3, "text"),
            self.statements().param(4, "text"),
        );
        let params = [status.to_string(), answer.to_owned(), claim.id.clone(), claim.request.clone()];
        self.backend().query(Deadline::Operator, Statement::new(sql, params.map(Some))).await?;
        Ok(())
    }

    /// Forgets requests that are too old.
    ///
    /// # Errors
    /// As above.
    pub async fn prune_requests(&self) -> Result<()> {
        let sql = format!("DELETE FROM {TABLE} WHERE created_at < {}", self.statements().param(1, "bigint"));
        let oldest = Some(oldest(clock::wall()));
        self.backend().query(Deadline::Operator, Statement::new(sql, [oldest])).await?;
        Ok(())
    }
}

fn oldest(now: OffsetDateTime) -> String {
    millis(now - IDEMPOTENCY_LIFETIME).to_string()
}

/// The lengths keep the parts apart.
fn digest<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    HEXLOWER.encode(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_depends_on_caller_key_and_request() {
        let claim =
            |caller, key, path: &str| IdempotencyClaim::new(caller, key, [b"POST", path.as_bytes(), b""]);
        let one = claim("token 1", "k", "/v1/keys");
        assert_eq!(one, claim("token 1", "k", "/v1/keys"));
        assert_ne!(one.id, claim("token 2", "k", "/v1/keys").id);
        assert_ne!(one.id, claim("token 1k", "", "/v1/keys").id);
        assert_eq!(one.id, claim("token 1", "k", "/v1/users").id);
        assert_ne!(one.request, claim("token 1", "k", "/v1/users").request);
    }
}
