//! The commands that read and write the entries of a prefix in Redis.

use std::{collections::HashSet, time::Duration};

use fred::{
    clients::Client,
    interfaces::{ClientLike, KeysInterface},
    types::{CustomCommand, Expiration, SetOptions, Value},
};
use metrics::Histogram;
use time::OffsetDateTime;

use super::envelope::InvalidEntry;
use crate::{
    credential::Prefix,
    metrics::Metrics,
    redis::{Redis, RedisError, STORE},
};

/// Runs the commands, and measures them.
pub(super) struct Commands {
    redis: Redis,
    read: Histogram,
    write: Histogram,
    ping: Histogram,
}

/// The entries of a prefix in Redis.
pub(super) struct RawEntries {
    pub(super) records: Option<RawEntry>,
    pub(super) proofs: Option<RawEntry>,
    /// The time of its server, where Redis returns that.
    pub(super) redis_now: Option<OffsetDateTime>,
}

/// A value in Redis.
pub(super) type RawEntry = Result<String, InvalidEntry>;

/// Maximum number of proofs of one prefix. Each is for a correct secret, so there are few, unless another application
/// writes them.
const PROOFS: usize = 32;

/// The entries that the probe uses. A prefix has eight characters.
const PROBE: (&str, &str) = ("keystile:{probe}:records", "keystile:{probe}:proofs");

/// Maximum length of a value in bytes. Keystile writes no longer one.
const MAX_VALUE: usize = 1 << 20;

/// Length in bytes beyond which the proofs of a prefix are rewritten, without replaced proofs.
const MAX_PROOFS: usize = 16 << 10;

impl Commands {
    pub(super) fn new(redis: Redis, metrics: &Metrics) -> Self {
        let duration = |operation| metrics.store_duration(STORE, operation);
        Self { redis, read: duration("read"), write: duration("write"), ping: duration("ping") }
    }

    /// Runs each command that reads and writes entries, except `APPEND`, on entries of no prefix. Nothing is left: `XX`
    /// writes only over a value.
    pub(super) async fn probe(&self) -> Result<(), RedisError> {
        let probe = |client: Client| async move {
            let (records, proofs) = PROBE;
            let pipeline = client.pipeline();
            let () = pipeline.getrange(records, 0, 0).await?;
            let () = pipeline.getrange(proofs, 0, 0).await?;
            let () = pipeline
                .custom(CustomCommand::new_static("TIME", records, false), Vec::<Value>::new())
                .await?;
            let () = pipeline.set(records, "", Some(Expiration::PX(1)), Some(SetOptions::XX), false).await?;
            let () = pipeline.pexpire(proofs, 1, None).await?;
            pipeline.try_all::<Value>().await.into_iter().try_for_each(|answer| answer.map(drop))
        };
        self.redis.call(&self.ping, probe).await
    }

    /// Both entries of a prefix and the time of their server, in one round trip. Redis returns a limited part of each value,
    /// in case another application wrote a huge one.
    pub(super) async fn fetch(&self, prefix: Prefix) -> Result<RawEntries, RedisError> {
        let get = |client: Client| async move {
            let (name, pipeline) = (records_name(prefix), client.pipeline());
            let time = CustomCommand::new_static("TIME", name.as_str(), false);
            let () = pipeline.getrange(name, 0, MAX_VALUE).await?;
            let () = pipeline.getrange(proofs_name(prefix), 0, MAX_VALUE).await?;
            let () = pipeline.custom(time, Vec::<Value>::new()).await?;
            let mut answers = pipeline.try_all::<Value>().await.into_iter();
            let mut entry = || match answers.next().transpose() {
                Ok(value) => Ok(read_value(value.unwrap_or(Value::Null))),
                Err(error) => match RedisError::from(error) {
                    // Another application wrote a value of another type.
                    RedisError::Refused(_) => Ok(Some(Err(InvalidEntry::Content))),
                    error => Err(error),
                },
            };
            let (records, proofs) = (entry()?, entry()?);
            Ok::<_, RedisError>((records, proofs, answers.next().and_then(Result::ok)))
        };
        let (records, proofs, time) = self.redis.call(&self.read, get).await?;
        let time: Option<(i64, u32)> = time.and_then(|time| time.convert().ok());
        let redis_now = time.and_then(|(seconds, micros)| {
            let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
            time.replace_microsecond(micros).ok()
        });
        Ok(RawEntries { records, proofs, redis_now })
    }

    /// Writes the records of a prefix.
    pub(super) async fn write_records(
        &self,
        name: String,
        entry: String,
        ttl: Duration,
    ) -> Result<(), RedisError> {
        let ttl = Expiration::PX(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        let set =
            |client: Client| async move { client.set::<(), _, _>(name, entry, Some(ttl), None, false).await };
        self.redis.call(&self.write, set).await
    }

    /// Appends a proof to those of its prefix.
    pub(super) async fn append_proof(
        &self,
        name: String,
        field: String,
        entry: String,
        ttl: Duration,
    ) -> Result<(), RedisError> {
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        let (name, line) = (&*name, &*proof_line(&field, &entry));
        let append = |client: Client| async move {
            let pipeline = client.pipeline();
            let () = pipeline.append(name, line).await?;
            let () = pipeline.pexpire(name, ttl, None).await?;
            pipeline.all::<(usize, i64)>().await.map(|(length, _)| length)
        };
        let before = match self.redis.call(&self.write, append).await {
            Ok(length) if length <= MAX_PROOFS => return Ok(()),
            Ok(_) => {
                let get = |client: Client| async move { client.getrange(name, 0, MAX_VALUE).await };
                read_value(self.redis.call(&self.write, get).await?)
            }
            // Another application wrote a value of another type.
            Err(RedisError::Refused(_)) => None,
            Err(error) => return Err(error),
        };
        let before = before.and_then(Result::ok).unwrap_or_default();
        let kept = newest(&before).into_iter().map(|(field, entry)| proof_line(field, entry));
        let kept =
            Some(kept.collect::<String>()).filter(|kept| kept.contains(line) && kept.len() <= MAX_PROOFS);
        let kept = kept.unwrap_or_else(|| line.to_owned());
        let ttl = Some(Expiration::PX(ttl));
        let set = |client: Client| async move { client.set::<(), _, _>(name, kept, ttl, None, false).await };
        self.redis.call(&self.write, set).await
    }
}

/// The value under a name. `GETRANGE` returns the empty text where there is none.
fn read_value(value: Value) -> Option<RawEntry> {
    if value.is_null() {
        return None;
    }
    match value.into_string() {
        Some(text) if text.is_empty() => None,
        Some(text) if text.len() <= MAX_VALUE => Some(Ok(text)),
        _ => Some(Err(InvalidEntry::Content)),
    }
}

/// The line of a proof among those of its prefix.
fn proof_line(field: &str, entry: &str) -> String {
    format!("{field} {entry}\n")
}

/// The newest proofs, one for each field, oldest first.
pub(super) fn newest(lines: &str) -> Vec<(&str, &str)> {
    let mut seen = HashSet::new();
    let lines = lines.rsplit_terminator('\n').map(|line| line.split_once(' ').unwrap_or((line, "")));
    let mut newest: Vec<_> = lines.filter(|(field, _)| seen.insert(*field)).take(PROOFS).collect();
    newest.reverse();
    newest
}

/// The braces make a cluster keep both entries of a prefix on one node.
pub(super) fn records_name(prefix: Prefix) -> String {
    format!("keystile:{{{prefix}}}:records")
}

pub(super) fn proofs_name(prefix: Prefix) -> String {
    format!("keystile:{{{prefix}}}:proofs")
}

/// The name under which a field is sealed.
pub(super) fn field_name(name: &str, field: &str) -> String {
    format!("{name}:{field}")
}
