//! The tier that sidecars share: records and proofs in Redis, believed by what they say and not by where
//! they stand.
//!
//! An entry is sealed, says how old it is, and which changes the database had seen when it was read. So a
//! revocation needs nothing of Redis: every sidecar hears of it from the database, and takes an entry that has
//! not seen it for none. For the same reason a fill that comes late does no harm.

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

use super::{Found, KeyStore, StoreError};
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

pub mod entry;

use entry::{Entries, Odd, RedisTimestamps};

/// Shares what the next tier found. Cheap to clone.
pub struct Shared<S>(Arc<Inner<S>>);

/// How long [`Shared`] believes what it finds.
#[derive(Debug, Clone, Copy)]
pub struct SharedConfig {
    /// Records.
    pub record_ttl: Duration,
    /// Proofs.
    pub proof_ttl: Duration,
}

/// Proofs that one prefix may have: each is of a right secret, so there are few, unless somebody else
/// writes them.
const PROOFS: usize = 32;

/// Bytes of one value that are read; a longer one is not ours.
const MAX_VALUE: usize = 1 << 20;

/// Bytes from which on the proofs of a prefix are written anew, without those that were replaced.
const MAX_PROOFS: usize = 16 << 10;

/// Writes that are under way at the same time; further ones are left out, and somebody else's will do.
const WRITES: usize = 64;

struct Inner<S> {
    next: S,
    redis: Redis,
    entries: Entries,
    config: SharedConfig,
    fence: Arc<Fence<Prefix>>,
    writes: Arc<Semaphore>,
    records: CacheLookups,
    proofs: CacheLookups,
    read: Histogram,
    write: Histogram,
    /// Whether it was said that Redis does not tell its time.
    is_warned: AtomicBool,
}

impl<S: KeyStore> Shared<S> {
    /// Puts Redis before `next`. Entries are sealed under `secrets`, and believed as `fence` lets them.
    pub fn new(
        next: S,
        redis: Redis,
        secrets: CacheSecrets,
        config: SharedConfig,
        fence: Arc<Fence<Prefix>>,
        metrics: &Metrics,
    ) -> Self {
        let record_ttl = config.record_ttl.min(MEMORY / 2);
        Self(Arc::new(Inner {
            next,
            redis,
            entries: Entries::new(secrets),
            config: SharedConfig { record_ttl, ..config },
            fence,
            writes: Arc::new(Semaphore::new(WRITES)),
            records: metrics.cache_lookups(Tier::Redis.name(), "records"),
            proofs: metrics.cache_lookups(Tier::Redis.name(), "proofs"),
            read: metrics.store_duration(STORE, "read"),
            write: metrics.store_duration(STORE, "write"),
            is_warned: AtomicBool::default(),
        }))
    }

    /// Tells the others what was proven here. Nobody waits for it.
    /// It counts for `longest` at most, however often it is used.
    pub fn share(&self, prefix: Prefix, proof_key: ProofKey, longest: Duration, now: Timestamps) {
        let (name, field) = (proofs_name(prefix), proof_key.digest.to_text());
        let name_of_field = field_name(&name, &field);
        let Some(entry) = self.0.entries.proof(&name_of_field, &proof_key, now.wall, now.wall + longest)
        else {
            return;
        };
        let inner = Arc::clone(&self.0);
        self.0.in_background(async move { inner.write_proof(name, field, entry).await });
    }
}

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: KeyStore> KeyStore for Shared<S> {
    async fn records(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Found>, StoreError> {
        let (found, redis_now) = self.0.read(prefix, now).await;
        match found {
            Some(found) => Ok(Arc::new(found)),
            None => self.fill(prefix, now, redis_now).await,
        }
    }

    /// Asked of what is in Redis already, so there is nothing to share.
    async fn hashed(&self, prefix: Prefix, now: Timestamps) -> Result<Arc<Found>, StoreError> {
        self.0.next.hashed(prefix, now).await
    }

    fn is_lost(&self) -> bool {
        self.0.next.is_lost()
    }
}

impl<S: KeyStore> Shared<S> {
    /// Unknown prefixes are not shared: whoever invents keys would fill Redis with them. Nor are records of which
    /// Redis has not told the time before they were read.
    async fn fill(
        &self,
        prefix: Prefix,
        now: Timestamps,
        redis_now: Option<OffsetDateTime>,
    ) -> Result<Arc<Found>, StoreError> {
        let generation = self.0.fence.generation();
        let found = self.0.next.hashed(prefix, now).await?;
        let admitted = || self.0.fence.admit_read(prefix, generation, found.seen.as_deref(), || ());
        if let Some(redis) = redis_now
            && !found.records.is_empty()
            && admitted()
        {
            let name = records_name(prefix);
            let entry = self.0.entries.records(&name, &found, RedisTimestamps { instance: now.wall, redis });
            let inner = Arc::clone(&self.0);
            self.0.in_background(async move { inner.write_records(name, entry).await });
        }
        Ok(found)
    }
}

impl<S: KeyStore> Inner<S> {
    /// What stands in Redis, if it is to be believed, and the time there. Redis lost is a miss, and nothing else.
    async fn read(&self, prefix: Prefix, now: Timestamps) -> (Option<Found>, Option<OffsetDateTime>) {
        match self.fetch(prefix).await {
            Ok(Fetched { redis_now: Some(redis), records, proofs }) => {
                let at = RedisTimestamps { instance: now.wall, redis };
                (self.believe(prefix, records, proofs, at, now.monotonic), Some(redis))
            }
            Ok(Fetched { redis_now: None, .. }) => {
                if !self.is_warned.swap(true, Ordering::Relaxed) {
                    warn!("Redis does not tell its time, so no records are shared: allow its user +time");
                }
                self.records.miss.increment(1);
                (None, None)
            }
            Err(error) => {
                debug!(%error, store = STORE, "falling through");
                self.records.miss.increment(1);
                (None, None)
            }
        }
    }

    fn believe(
        &self,
        prefix: Prefix,
        records: Option<Entry>,
        proofs: Option<Entry>,
        now: RedisTimestamps,
        monotonic: Instant,
    ) -> Option<Found> {
        let records =
            records.map(|entry| entry.and_then(|entry| self.read_records(prefix, &entry, now, monotonic)));
        let found = counted(records, &self.records)?;
        if !self.fence.believes(prefix, found.seen.as_deref()) {
            self.records.miss.increment(1);
            return None;
        }
        self.records.hit.increment(1);
        Some(Found { proofs: self.read_proofs(prefix, proofs, now.instance), ..found })
    }

    /// Both entries of a prefix and the time of the server that has them, in one round trip. Redis is asked for a part
    /// of each value that is a little longer than ours are: of one that somebody else made huge, no more arrives here.
    async fn fetch(&self, prefix: Prefix) -> Result<Fetched, RedisError> {
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
                    // Of another kind than ours.
                    RedisError::Refused(_) => Ok(Some(Err(Odd::Content))),
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
        Ok(Fetched { records, proofs, redis_now })
    }

    fn read_records(
        &self,
        prefix: Prefix,
        entry: &str,
        now: RedisTimestamps,
        monotonic: Instant,
    ) -> Result<Found, Odd> {
        let unheard = if self.fence.is_up(monotonic) { Duration::MAX } else { WORST_CASE };
        let oldest = self.config.record_ttl.min(unheard);
        let found = self.entries.read_records(&records_name(prefix), entry, now, oldest)?;
        match found.records.iter().all(|record| record.prefix == prefix) {
            true => Ok(found),
            false => Err(Odd::Content),
        }
    }

    fn read_proofs(&self, prefix: Prefix, proofs: Option<Entry>, now: OffsetDateTime) -> Arc<[Proof]> {
        let name = proofs_name(prefix);
        let read = |(field, entry): (&str, &str)| {
            let digest = Digest::parse(field).ok_or(Odd::Content)?;
            let name = field_name(&name, field);
            self.entries.read_proof(&name, digest, entry, now, self.config.proof_ttl)
        };
        let proofs = proofs.and_then(|proofs| counted(Some(proofs), &self.proofs)).unwrap_or_default();
        let read = newest(&proofs).into_iter().map(read);
        let proofs: Arc<[_]> = read.filter_map(|proof| counted(Some(proof), &self.proofs)).collect();
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

    /// Puts a proof behind the others of its prefix.
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
            // Of another kind: not ours.
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
                debug!(%error, store = STORE, outage = error.is_outage(), "not shared");
            }
        });
    }
}

/// What Redis has of a prefix.
struct Fetched {
    records: Option<Entry>,
    proofs: Option<Entry>,
    /// Its time, where it tells that.
    redis_now: Option<OffsetDateTime>,
}

/// A value as it stands in Redis.
type Entry = Result<String, Odd>;

/// What Redis has under a name; nothing and the empty text are the same to `GETRANGE`.
fn read_value(value: Value) -> Option<Entry> {
    if value.is_null() {
        return None;
    }
    match value.into_string() {
        Some(text) if text.is_empty() => None,
        Some(text) if text.len() <= MAX_VALUE => Some(Ok(text)),
        _ => Some(Err(Odd::Content)),
    }
}

/// A proof among those of its prefix.
fn proof_line(field: &str, entry: &str) -> String {
    format!("{field} {entry}\n")
}

/// The last proofs, of each field the last, oldest first.
fn newest(lines: &str) -> Vec<(&str, &str)> {
    let mut seen = HashSet::new();
    let lines = lines.rsplit_terminator('\n').map(|line| line.split_once(' ').unwrap_or((line, "")));
    let mut newest: Vec<_> = lines.filter(|(field, _)| seen.insert(*field)).take(PROOFS).collect();
    newest.reverse();
    newest
}

/// Counts a miss, and what is odd and so as good as none.
fn counted<T>(read: Option<Result<T, Odd>>, lookups: &CacheLookups) -> Option<T> {
    match read {
        Some(Ok(value)) => Some(value),
        Some(Err(odd)) => {
            debug!(%odd, store = STORE, "taken for none");
            lookups.odd.increment(1);
            None
        }
        None => {
            lookups.miss.increment(1);
            None
        }
    }
}

/// The braces make a cluster keep both entries of a prefix in one place.
fn records_name(prefix: Prefix) -> String {
    format!("keystile:{{{prefix}}}:records")
}

fn proofs_name(prefix: Prefix) -> String {
    format!("keystile:{{{prefix}}}:proofs")
}

/// What a field is sealed under.
fn field_name(name: &str, field: &str) -> String {
    format!("{name}:{field}")
}
