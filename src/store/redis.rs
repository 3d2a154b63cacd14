//! The tier that instances share: records and proofs in Redis.
//!
//! An entry is sealed. It has its age, and the changes that the database had seen when it was read. So a revocation does
//! not depend on Redis: every instance learns of it from the database, and ignores entries that have not seen it. A late
//! write to Redis is harmless for the same reason.

use std::{
    collections::HashSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fred::{
    clients::Client,
    interfaces::{ClientLike, KeysInterface},
    types::{CustomCommand, Expiration, Value},
};
use metrics::Histogram;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use super::{KeyStore, Lookup, StoreError};
use crate::{
    clock::Timestamps,
    credential::{CacheSecrets, Digest, Prefix},
    decision::Tier,
    metrics::{CacheLookups, Metrics},
    proof::{Proof, ProofKey},
    redis::{Redis, RedisError, STORE},
    resilience::CallError,
    revocation::{Fence, MEMORY, WORST_CASE},
};

pub mod envelope;

use envelope::{Envelopes, InvalidEntry, RedisTimestamps};

/// Shares the answers of the next tier between instances. Cheap to clone.
pub struct RedisTier<S>(Arc<Inner<S>>);

/// The TTLs of [`RedisTier`].
#[derive(Debug, Clone, Copy)]
pub struct RedisTierConfig {
    /// Records.
    pub record_ttl: Duration,
    /// Proofs.
    pub proof_ttl: Duration,
}

/// Maximum number of proofs of one prefix. Each is for a correct secret, so there are few, unless another application
/// writes them.
const PROOFS: usize = 32;

/// Maximum length of a value in bytes. Keystile writes no longer one.
const MAX_VALUE: usize = 1 << 20;

/// Length in bytes beyond which the proofs of a prefix are rewritten, without replaced proofs.
const MAX_PROOFS: usize = 16 << 10;

/// Maximum number of concurrent writes. Further writes are dropped: another instance will make them.
const WRITES: usize = 64;

struct Inner<S> {
    next: S,
    redis: Redis,
    envelopes: Envelopes,
    config: RedisTierConfig,
    fence: Arc<Fence<Prefix>>,
    writes: Arc<Semaphore>,
    records: CacheLookups,
    proofs: CacheLookups,
    read: Histogram,
    write: Histogram,
    /// Whether a log line reported that Redis does not return its time.
    is_warned: AtomicBool,
}

impl<S: KeyStore> RedisTier<S> {
    /// Puts Redis before `next`. Entries are sealed under `secrets`. `fence` decides which of them are current.
    pub fn new(
        next: S,
        redis: Redis,
        secrets: CacheSecrets,
        config: RedisTierConfig,
        fence: Arc<Fence<Prefix>>,
        metrics: &Metrics,
    ) -> Self {
        let record_ttl = config.record_ttl.min(MEMORY / 2);
        Self(Arc::new(Inner {
            next,
            redis,
            envelopes: Envelopes::new(secrets),
            config: RedisTierConfig { record_ttl, ..config },
            fence,
            writes: Arc::new(Semaphore::new(WRITES)),
            records: metrics.cache_lookups(Tier::Redis.name(), "records"),
            proofs: metrics.cache_lookups(Tier::Redis.name(), "proofs"),
            read: metrics.store_duration(STORE, "read"),
            write: metrics.store_duration(STORE, "write"),
            is_warned: AtomicBool::default(),
        }))
    }

    /// Shares a proof with other instances, in the background. It is valid for `longest` at most, however often it is used.
    pub fn share(&self, prefix: Prefix, proof_key: ProofKey, longest: Duration, now: Timestamps) {
        let (name, field) = (proofs_name(prefix), proof_key.digest.to_text());
        let name_of_field = field_name(&name, &field);
        let Some(entry) = self.0.envelopes.proof(&name_of_field, &proof_key, now.wall, now.wall + longest)
        else {
            return;
        };
        let inner = Arc::clone(&self.0);
        self.0.in_background(async move { inner.write_proof(name, field, entry).await });
    }
}

impl<S> Clone for RedisTier<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: KeyStore> KeyStore for RedisTier<S> {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        let (lookup, redis_now) = self.0.read(prefix, now).await;
        match lookup {
            Some(lookup) => Ok(Arc::new(lookup)),
            None => self.fill(prefix, now, redis_now).await,
        }
    }

    /// Only for records that are in Redis already, so the answer is not shared.
    async fn hashed(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Lookup>, StoreError> {
        self.0.next.hashed(prefix, now).await
    }

    fn is_lost(&self) -> bool {
        self.0.next.is_lost()
    }
}

impl<S: KeyStore> RedisTier<S> {
    /// Unknown prefixes are not shared: invented keys would fill Redis. Records are not shared if Redis did not return its
    /// time before they were read.
    async fn fill(
        &self,
        prefix: Prefix,
        now: Timestamps,
        redis_now: Option<OffsetDateTime>,
    ) -> Result<Arc<Lookup>, StoreError> {
        let generation = self.0.fence.generation();
        let lookup = self.0.next.hashed(prefix, now).await?;
        let admitted = || self.0.fence.admit_read(prefix, generation, lookup.seen.as_deref(), || ());
        if let Some(redis) = redis_now
            && !lookup.records.is_empty()
            && admitted()
        {
            let name = records_name(prefix);
            let entry =
                self.0.envelopes.records(&name, &lookup, RedisTimestamps { instance: now.wall, redis });
            let inner = Arc::clone(&self.0);
            self.0.in_background(async move { inner.write_records(name, entry).await });
        }
        Ok(lookup)
    }
}

impl<S: KeyStore> Inner<S> {
    /// The valid entries in Redis, and the time there. An outage of Redis is a miss.
    async fn read(&self, prefix: Prefix, now: Timestamps) -> (Option<Lookup>, Option<OffsetDateTime>) {
        match self.fetch(prefix).await {
            Ok(Entries { redis_now: Some(redis), records, proofs }) => {
                let at = RedisTimestamps { instance: now.wall, redis };
                (self.accept(prefix, records, proofs, at, now.monotonic), Some(redis))
            }
            Ok(Entries { redis_now: None, .. }) => {
                if !self.is_warned.swap(true, Ordering::Relaxed) {
                    warn!("Redis does not return its time, so no records are shared: allow its user +time");
                }
                self.records.miss.increment(1);
                (None, None)
            }
            Err(error) => {
                debug!(%error, store = STORE, "Redis is skipped");
                self.records.miss.increment(1);
                (None, None)
            }
        }
    }

    fn accept(
        &self,
        prefix: Prefix,
        records: Option<Entry>,
        proofs: Option<Entry>,
        now: RedisTimestamps,
        monotonic: Instant,
    ) -> Option<Lookup> {
        let records =
            records.map(|entry| entry.and_then(|entry| self.read_records(prefix, &entry, now, monotonic)));
        let lookup = valid_entry(records, &self.records)?;
        if !self.fence.believes(prefix, lookup.seen.as_deref()) {
            self.records.miss.increment(1);
            return None;
        }
        self.records.hit.increment(1);
        Some(Lookup { proofs: self.read_proofs(prefix, proofs, now.instance), ..lookup })
    }

    /// Both entries of a prefix and the time of their server, in one round trip. Redis returns a limited part of each value,
    /// in case another application wrote a huge one.
    async fn fetch(&self, prefix: Prefix) -> Result<Entries, RedisError> {
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
        Ok(Entries { records, proofs, redis_now })
    }

    fn read_records(
        &self,
        prefix: Prefix,
        entry: &str,
        now: RedisTimestamps,
        monotonic: Instant,
    ) -> Result<Lookup, InvalidEntry> {
        let without_feed = if self.fence.is_up(monotonic) { Duration::MAX } else { WORST_CASE };
        let oldest = self.config.record_ttl.min(without_feed);
        let lookup = self.envelopes.read_records(&records_name(prefix), entry, now, oldest)?;
        if lookup.records.iter().all(|record| record.prefix == prefix) {
            Ok(lookup)
        } else {
            Err(InvalidEntry::Content)
        }
    }

    fn read_proofs(&self, prefix: Prefix, proofs: Option<Entry>, now: OffsetDateTime) -> Arc<[Proof]> {
        let name = proofs_name(prefix);
        let read = |(field, entry): (&str, &str)| {
            let digest = Digest::parse(field).ok_or(InvalidEntry::Content)?;
            let name = field_name(&name, field);
            self.envelopes.read_proof(&name, digest, entry, now, self.config.proof_ttl)
        };
        let proofs = proofs.and_then(|proofs| valid_entry(Some(proofs), &self.proofs)).unwrap_or_default();
        let read = newest(&proofs).into_iter().map(read);
        let proofs: Arc<[_]> = read.filter_map(|proof| valid_entry(Some(proof), &self.proofs)).collect();
        let count = if proofs.is_empty() { &self.proofs.miss } else { &self.proofs.hit };
        count.increment(1);
        proofs
    }

    async fn write_records(&self, name: String, entry: String) -> Result<(), RedisError> {
        let ttl = Expiration::PX(i64::try_from(self.config.record_ttl.as_millis()).unwrap_or(i64::MAX));
        let set =
            |client: Client| async move { client.set::<(), _, _>(name, entry, Some(ttl), None, false).await };
        self.redis.call(&self.write, set).await
    }

    /// Appends a proof to those of its prefix.
    async fn write_proof(&self, name: String, field: String, entry: String) -> Result<(), RedisError> {
        let ttl = i64::try_from(self.config.proof_ttl.as_millis()).unwrap_or(i64::MAX);
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

    fn in_background(&self, write: impl Future<Output = Result<(), RedisError>> + Send + 'static) {
        let Ok(permit) = Arc::clone(&self.writes).try_acquire_owned() else { return };
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = write.await {
                debug!(%error, store = STORE, outage = error.is_outage(), "an entry was not shared");
            }
        });
    }
}

/// The entries of a prefix in Redis.
struct Entries {
    records: Option<Entry>,
    proofs: Option<Entry>,
    /// The time of its server, where Redis returns that.
    redis_now: Option<OffsetDateTime>,
}

/// A value in Redis.
type Entry = Result<String, InvalidEntry>;

/// The value under a name. `GETRANGE` returns the empty text where there is none.
fn read_value(value: Value) -> Option<Entry> {
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
fn newest(lines: &str) -> Vec<(&str, &str)> {
    let mut seen = HashSet::new();
    let lines = lines.rsplit_terminator('\n').map(|line| line.split_once(' ').unwrap_or((line, "")));
    let mut newest: Vec<_> = lines.filter(|(field, _)| seen.insert(*field)).take(PROOFS).collect();
    newest.reverse();
    newest
}

/// The entry, if it is there and valid. Counts it otherwise.
fn valid_entry<T>(read: Option<Result<T, InvalidEntry>>, lookups: &CacheLookups) -> Option<T> {
    match read {
        Some(Ok(value)) => Some(value),
        Some(Err(error)) => {
            debug!(%error, store = STORE, "an entry in Redis is ignored");
            lookups.odd.increment(1);
            None
        }
        None => {
            lookups.miss.increment(1);
            None
        }
    }
}

/// The braces make a cluster keep both entries of a prefix on one node.
fn records_name(prefix: Prefix) -> String {
    format!("keystile:{{{prefix}}}:records")
}

fn proofs_name(prefix: Prefix) -> String {
    format!("keystile:{{{prefix}}}:proofs")
}

/// The name under which a field is sealed.
fn field_name(name: &str, field: &str) -> String {
    format!("{name}:{field}")
}
