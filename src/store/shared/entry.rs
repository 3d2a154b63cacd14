//! What stands in Redis: sealed JSON, that says when it was read and what had been seen by then. Pure.
//!
//! A seal is an HMAC under the cache secret over the name of the entry and its content: nothing can be made
//! up, changed or moved to another key by whoever can write to Redis. What is left to them is to bring back
//! what once was there, and that counts for no longer than it did then.

use std::{sync::Arc, time::Duration};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::super::{Found, Row, row};
use crate::{
    credential::{CacheSecrets, Digest},
    decision::Tier,
    proof::{MAX_AGE as MAX_PROOF_AGE, Proof, ProofKey},
    record::{HashTag, KeyId},
    revocation::LogPosition,
};

/// What a value begins with. Another one is another version's, and nothing that can be read.
const VERSION: &str = "2";

/// How far ahead of this instance's clock a proof may be dated: clocks differ. A proof that is believed longer for it
/// proves no less.
const SKEW: Duration = Duration::from_secs(60);

/// Older entries are of no use to any reader.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// One moment, on the clocks that the age of records is taken from.
///
/// Instances' clocks may be wrong, and by themselves would make records younger than they are. So ages are taken from
/// the clock of Redis, which all instances see alike, and from the instances' own as well: the greater counts.
#[derive(Debug, Clone, Copy)]
pub struct RedisTimestamps {
    /// This instance's wall clock.
    pub instance: OffsetDateTime,
    /// The wall clock of the Redis server that has the entry.
    pub redis: OffsetDateTime,
}

/// Why an entry is as good as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Odd {
    /// It is not of this version.
    #[error("of another version")]
    Version,
    /// The seal is not one of ours, or not that of this content under this name.
    #[error("its seal does not hold")]
    Seal,
    /// What is sealed cannot be read.
    #[error("unreadable")]
    Content,
    /// It is older than it may be, or from the future.
    #[error("too old")]
    Age,
}

/// The records of a prefix, as they were read.
#[derive(Debug, Serialize, Deserialize)]
struct Records {
    /// When, in milliseconds since 1970: by the clock of the instance that did, and by that of Redis.
    at: i64,
    redis_at: i64,
    seen: Option<String>,
    /// Which columns stand in the rows.
    columns: String,
    rows: Vec<Row>,
}

/// That a credential belongs to a record; its digest is the name that the entry has.
#[derive(Debug, Serialize, Deserialize)]
struct Proven {
    /// When it was proven or last used, in milliseconds since 1970.
    at: i64,
    /// When it ends however often it is used.
    ends: i64,
    key: i64,
    hash: String,
}

/// Writes and reads entries.
pub struct Entries {
    secrets: CacheSecrets,
    columns: String,
}

impl Entries {
    /// Seals with the newest of these, and reads what any of them has sealed.
    pub fn new(secrets: CacheSecrets) -> Self {
        let columns =
            row::COLUMNS.iter().map(|(table, column)| format!("{table}.{column} ")).collect::<String>();
        Self { secrets, columns: HEXLOWER.encode(&Sha256::digest(columns)[..4]) }
    }

    /// What was found, as an entry of this name.
    pub fn records(&self, name: &str, found: &Found, read_at: RedisTimestamps) -> String {
        let redacted = found.rows.iter().zip(found.records.iter());
        let rows =
            redacted.map(|(cells, record)| row::redact(cells[..row::COLUMNS.len()].to_vec(), &record.hash));
        let records = Records {
            at: millis(read_at.instance - found.age.min(MAX_AGE)),
            redis_at: millis(read_at.redis - found.age.min(MAX_AGE)),
            seen: found.seen.as_ref().map(|seen| seen.to_string()),
            columns: self.columns.clone(),
            rows: rows.collect(),
        };
        self.seal(name, &records)
    }

    /// Reads what [`Entries::records`] has written.
    ///
    /// # Errors
    /// [`Odd`] when it is to be taken for none.
    pub fn read_records(
        &self,
        name: &str,
        entry: &str,
        now: RedisTimestamps,
        oldest: Duration,
    ) -> Result<Found, Odd> {
        let Records { at, redis_at, seen, columns, rows } = self.open(name, entry)?;
        if columns != self.columns || rows.iter().any(|cells| cells.len() != row::COLUMNS.len()) {
            return Err(Odd::Version);
        }
        // One clock has no excuse for the future.
        let age = age(redis_at, now.redis, Duration::ZERO)?.max(age(at, now.instance, Duration::MAX)?);
        if age >= oldest {
            return Err(Odd::Age);
        }
        let records = rows.iter().map(|cells| row::decode_redacted(cells).map(Arc::new));
        let records = records.collect::<Result<Vec<_>, _>>().map_err(|_| Odd::Content)?;
        let seen = seen.map(|seen| seen.parse::<LogPosition>().map(Arc::new));
        let seen = seen.transpose().map_err(|_| Odd::Content)?;
        Ok(Found { age, seen, ..Found::fresh(records, Tier::Redis) })
    }

    /// That this was proven, as an entry of this name.
    pub fn proof(
        &self,
        name: &str,
        proof_key: &ProofKey,
        used_at: OffsetDateTime,
        ends: OffsetDateTime,
    ) -> Option<String> {
        let hash = proof_key.hash.to_text();
        let proven = Proven { at: millis(used_at), ends: millis(ends), key: proof_key.key?.0, hash };
        Some(self.seal(name, &proven))
    }

    /// Reads what [`Entries::proof`] has written.
    ///
    /// # Errors
    /// [`Odd`] when it is to be taken for none.
    pub fn read_proof(
        &self,
        name: &str,
        digest: Digest,
        entry: &str,
        now: OffsetDateTime,
        ttl: Duration,
    ) -> Result<Proof, Odd> {
        let Proven { at, ends, key, hash } = self.open(name, entry)?;
        let age = age(at, now, SKEW)?;
        if age >= ttl {
            return Err(Odd::Age);
        }
        let hash = HashTag::parse(&hash).ok_or(Odd::Content)?;
        let proof_key = ProofKey { digest, key: Some(KeyId(key)), hash };
        // What another instance could not know of its clock, this one does not add: an end later than any is cut.
        let left = u64::try_from(ends.saturating_sub(millis(now))).map_err(|_| Odd::Age)?;
        let ends = now + Duration::from_millis(left).min(MAX_PROOF_AGE);
        Ok(Proof { proof_key, until: (now + (ttl - age)).min(ends), ends })
    }

    fn seal(&self, name: &str, content: &impl Serialize) -> String {
        let content = serde_json::to_string(content).unwrap_or_default();
        let seal = self.secrets.newest().seal(&parts(name, &content));
        format!("{VERSION}.{}.{content}", BASE64URL_NOPAD.encode(&seal))
    }

    fn open<T: DeserializeOwned>(&self, name: &str, entry: &str) -> Result<T, Odd> {
        let (version, rest) = entry.split_once('.').ok_or(Odd::Version)?;
        if version != VERSION {
            return Err(Odd::Version);
        }
        let (seal, content) = rest.split_once('.').ok_or(Odd::Seal)?;
        let seal = BASE64URL_NOPAD.decode(seal.as_bytes()).map_err(|_| Odd::Seal)?;
        let parts = parts(name, content);
        if !self.secrets.iter().any(|secret| secret.is_seal(&parts, &seal)) {
            return Err(Odd::Seal);
        }
        serde_json::from_str(content).map_err(|_| Odd::Content)
    }
}

fn parts<'a>(name: &'a str, content: &'a str) -> [&'a [u8]; 3] {
    [VERSION.as_bytes(), name.as_bytes(), content.as_bytes()]
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// How long ago that was, unless it lies further ahead than `skew`.
fn age(at: i64, now: OffsetDateTime, skew: Duration) -> Result<Duration, Odd> {
    let age = i128::from(millis(now)) - i128::from(at);
    if age < 0 && age.unsigned_abs() > skew.as_millis() {
        return Err(Odd::Age);
    }
    u64::try_from(age.max(0)).map(Duration::from_millis).map_err(|_| Odd::Age)
}

#[cfg(test)]
mod tests;
