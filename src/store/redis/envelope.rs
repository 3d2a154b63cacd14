//! The format of entries in Redis: sealed JSON with the time of the read and the changes seen by then. Pure.
//!
//! A seal is an HMAC under the cache secret over the name of the entry and its content. An attacker who can write to
//! Redis cannot invent an entry, change it, or move it to another key. The attacker can restore an earlier entry, which
//! expires when it would have expired.

use std::{sync::Arc, time::Duration};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::{
    config::AccountLock,
    credential::{CacheSecrets, Digest},
    decision::Tier,
    proof::{MAX_AGE as MAX_PROOF_AGE, Proof, ProofKey},
    record::{HashTag, KeyId},
    revocation::LogPosition,
    store::{Lookup, Row, decode},
};

/// The version, with which each value begins. Values of other versions are ignored.
const VERSION: &str = "2";

/// How far ahead of this instance's clock a proof may be dated, since clocks differ. The proof is then valid for that much
/// longer.
const SKEW: Duration = Duration::from_secs(60);

/// No reader accepts older entries.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The same time on the two clocks that determine the age of records.
///
/// The clocks of instances may be wrong, and would then make records too young. So the age of a record is the greater of
/// two: by the clock of Redis, which is the same for all instances, and by the instances' own clocks.
#[derive(Debug, Clone, Copy)]
pub struct RedisTimestamps {
    /// This instance's wall clock.
    pub instance: OffsetDateTime,
    /// The wall clock of the Redis server that has the entry.
    pub redis: OffsetDateTime,
}

/// Why an entry is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEntry {
    /// It has another version.
    #[error("of another version")]
    Version,
    /// The seal is not that of this content under this name and a known secret.
    #[error("its seal is invalid")]
    Seal,
    /// The content cannot be read.
    #[error("unreadable")]
    Content,
    /// It is too old, or dated in the future.
    #[error("too old")]
    Age,
}

/// The content of an entry of records.
#[derive(Debug, Serialize, Deserialize)]
struct RecordsContent {
    /// When they were read, in milliseconds since 1970: by the clock of the instance, and by that of Redis.
    at: i64,
    redis_at: i64,
    seen: Option<String>,
    /// A digest of the columns of the rows.
    columns: String,
    rows: Vec<Row>,
}

/// The content of an entry of a proof. The entry's name has the digest of the credential.
#[derive(Debug, Serialize, Deserialize)]
struct ProofContent {
    /// When it was proven or last used, in milliseconds since 1970.
    at: i64,
    /// When it expires, however often it is used.
    ends: i64,
    key: i64,
    hash: String,
}

/// Seals and opens entries.
pub struct Envelopes {
    secrets: CacheSecrets,
    account_lock: AccountLock,
    columns: String,
}

impl Envelopes {
    /// Seals with the newest of these secrets, and opens entries of any of them. Entries hold the rows as the database
    /// has them, so that each instance follows its own setting.
    pub fn new(secrets: CacheSecrets, account_lock: AccountLock) -> Self {
        let columns =
            decode::COLUMNS.iter().map(|(table, column)| format!("{table}.{column} ")).collect::<String>();
        Self { secrets, account_lock, columns: HEXLOWER.encode(&Sha256::digest(columns)[..4]) }
    }

    /// The entry of this name for an answer.
    pub fn records(&self, name: &str, lookup: &Lookup, read_at: RedisTimestamps) -> String {
        let secret = self.secrets.newest();
        let rows =
            lookup.rows.iter().zip(lookup.records.iter()).map(|(row, record)| {
                decode::redact(row[..decode::COLUMNS.len()].to_vec(), &record.hash, secret)
            });
        let records = RecordsContent {
            at: millis(read_at.instance - lookup.age.min(MAX_AGE)),
            redis_at: millis(read_at.redis - lookup.age.min(MAX_AGE)),
            seen: lookup.seen.as_ref().map(|seen| seen.to_string()),
            columns: self.columns.clone(),
            rows: rows.collect(),
        };
        self.seal(name, &records)
    }

    /// Opens an entry of [`Envelopes::records`].
    ///
    /// # Errors
    /// [`InvalidEntry`] when it is ignored.
    pub fn read_records(
        &self,
        name: &str,
        entry: &str,
        now: RedisTimestamps,
        oldest: Duration,
    ) -> Result<Lookup, InvalidEntry> {
        let RecordsContent { at, redis_at, seen, columns, rows } = self.open(name, entry)?;
        if columns != self.columns || rows.iter().any(|row| row.len() != decode::COLUMNS.len()) {
            return Err(InvalidEntry::Version);
        }
        // A clock is never ahead of itself, so its age has no tolerance.
        let age = age(redis_at, now.redis, Duration::ZERO)?.max(age(at, now.instance, Duration::MAX)?);
        if age >= oldest {
            return Err(InvalidEntry::Age);
        }
        let records = rows.iter().map(|row| decode::decode_redacted(row, self.account_lock).map(Arc::new));
        let records = records.collect::<Result<Vec<_>, _>>().map_err(|_| InvalidEntry::Content)?;
        let seen = seen.map(|seen| seen.parse::<LogPosition>().map(Arc::new));
        let seen = seen.transpose().map_err(|_| InvalidEntry::Content)?;
        Ok(Lookup { age, seen, ..Lookup::fresh(records, Tier::Redis) })
    }

    /// The entry of this name for a proof. None for a proof without a key.
    pub fn proof(
        &self,
        name: &str,
        proof_key: &ProofKey,
        used_at: OffsetDateTime,
        ends: OffsetDateTime,
    ) -> Option<String> {
        let hash = proof_key.hash.to_text();
        let proven = ProofContent { at: millis(used_at), ends: millis(ends), key: proof_key.key?.0, hash };
        Some(self.seal(name, &proven))
    }

    /// Opens an entry of [`Envelopes::proof`].
    ///
    /// # Errors
    /// [`InvalidEntry`] when it is ignored.
    pub fn read_proof(
        &self,
        name: &str,
        digest: Digest,
        entry: &str,
        now: OffsetDateTime,
        ttl: Duration,
    ) -> Result<Proof, InvalidEntry> {
        let ProofContent { at, ends, key, hash } = self.open(name, entry)?;
        let age = age(at, now, SKEW)?;
        if age >= ttl {
            return Err(InvalidEntry::Age);
        }
        let hash = HashTag::parse(&hash).ok_or(InvalidEntry::Content)?;
        let proof_key = ProofKey { digest, key: Some(KeyId(key)), hash };
        // The clock of another instance may be wrong, so an expiry later than the maximum is cut.
        let left = u64::try_from(ends.saturating_sub(millis(now))).map_err(|_| InvalidEntry::Age)?;
        let ends = now + Duration::from_millis(left).min(MAX_PROOF_AGE);
        Ok(Proof { proof_key, until: (now + (ttl - age)).min(ends), ends })
    }

    fn seal(&self, name: &str, content: &impl Serialize) -> String {
        let content = serde_json::to_string(content).unwrap_or_default();
        let seal = self.secrets.newest().seal(&parts(name, &content));
        format!("{VERSION}.{}.{content}", BASE64URL_NOPAD.encode(&seal))
    }

    fn open<T: DeserializeOwned>(&self, name: &str, entry: &str) -> Result<T, InvalidEntry> {
        let (version, rest) = entry.split_once('.').ok_or(InvalidEntry::Version)?;
        if version != VERSION {
            return Err(InvalidEntry::Version);
        }
        let (seal, content) = rest.split_once('.').ok_or(InvalidEntry::Seal)?;
        let seal = BASE64URL_NOPAD.decode(seal.as_bytes()).map_err(|_| InvalidEntry::Seal)?;
        let parts = parts(name, content);
        if !self.secrets.iter().any(|secret| secret.is_seal(&parts, &seal)) {
            return Err(InvalidEntry::Seal);
        }
        serde_json::from_str(content).map_err(|_| InvalidEntry::Content)
    }
}

fn parts<'a>(name: &'a str, content: &'a str) -> [&'a [u8]; 3] {
    [VERSION.as_bytes(), name.as_bytes(), content.as_bytes()]
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The age, unless the time is further ahead than `skew`.
fn age(at: i64, now: OffsetDateTime, skew: Duration) -> Result<Duration, InvalidEntry> {
    let age = i128::from(millis(now)) - i128::from(at);
    if age < 0 && age.unsigned_abs() > skew.as_millis() {
        return Err(InvalidEntry::Age);
    }
    u64::try_from(age.max(0)).map(Duration::from_millis).map_err(|_| InvalidEntry::Age)
}

#[cfg(test)]
mod tests;
