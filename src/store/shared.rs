//! The tier that sidecars share: records and proofs in Redis, believed by what they say and not by where
//! they stand.
//!
//! An entry is sealed, says how old it is, and which changes the database had seen when it was read. So a
//! revocation needs nothing of Redis: every sidecar hears of it from the database, and takes an entry that has
//! not seen it for none. For the same reason a fill that comes late does no harm.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use fred::{
    interfaces::{HashesInterface, KeysInterface},
    types::{Expiration, Value},
};
use metrics::Histogram;
use tokio::sync::Semaphore;
use tracing::debug;

use super::{Found, KeyStore, StoreError};
use crate::{
    credential::{CacheSecrets, Digest, Prefix},
    decision::Tier,
    fence::{Fence, MEMORY, WORST_CASE},
    gate::CallError,
    metrics::{CacheLookups, Metrics},
    moment::Moment,
    proof::{Claim, Proof},
    redis::{Redis, RedisError, STORE},
};

pub mod entry;

use entry::{Entries, Odd};

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
        }))
    }

    /// Tells the others what was proven here. Nobody waits for it.
    pub fn share(&self, prefix: Prefix, claim: Claim, now: Moment) {
        let (name, field) = (proofs_name(prefix), claim.digest.to_text());
        let Some(entry) = self.0.entries.proof(&field_name(&name, &field), &claim, now.wall) else { return };
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
    async fn records(&self, prefix: Prefix, now: Moment) -> Result<Arc<Found>, StoreError> {
        match self.0.read(prefix, now).await {
            Some(found) => Ok(Arc::new(found)),
            None => self.fill(prefix, now).await,
        }
    }

    async fn hashed(&self, prefix: Prefix, now: Moment) -> Result<Arc<Found>, StoreError> {
        self.fill(prefix, now).await
    }

    fn is_lost(&self) -> bool {
        self.0.next.is_lost()
    }
}

impl<S: KeyStore> Shared<S> {
    /// Unknown prefixes are not shared: whoever invents keys would fill Redis with them.
    async fn fill(&self, prefix: Prefix, now: Moment) -> Result<Arc<Found>, StoreError> {
        let ticket = self.0.fence.ticket();
        let found = self.0.next.hashed(prefix, now).await?;
        let admitted = || self.0.fence.admit(prefix, ticket, found.seen.as_deref(), || ());
        if !found.records.is_empty() && admitted() {
            let name = records_name(prefix);
            let entry = self.0.entries.records(&name, &found, now.wall);
            let inner = Arc::clone(&self.0);
            self.0.in_background(async move { inner.write_records(name, entry).await });
        }
        Ok(found)
    }
}

impl<S: KeyStore> Inner<S> {
    /// What stands in Redis, if it is to be believed. Redis lost is a miss, and nothing else.
    async fn read(&self, prefix: Prefix, now: Moment) -> Option<Found> {
        let (records, proofs) = match self.fetch(prefix).await {
            Ok(fetched) => fetched,
            Err(error) => {
                debug!(%error, store = STORE, "falling through");
                self.records.miss.increment(1);
                return None;
            }
        };
        let records = records.map(|entry| entry.and_then(|entry| self.read_records(prefix, &entry, now)));
        let found = counted(records, &self.records)?;
        if !self.fence.believes(prefix, found.seen.as_deref()) {
            self.records.miss.increment(1);
            return None;
        }
        self.records.hit.increment(1);
        Some(Found { proofs: self.read_proofs(prefix, proofs, now), ..found })
    }

    /// Both entries of a prefix, in one round trip.
    async fn fetch(&self, prefix: Prefix) -> Result<(Option<Entry>, Fields), RedisError> {
        let asked = async {
            let pipeline = self.redis.client().pipeline();
            let () = pipeline.get(records_name(prefix)).await?;
            let () = pipeline.hgetall(proofs_name(prefix)).await?;
            let mut answers = pipeline.try_all::<Value>().await.into_iter();
            let mut answer = || match answers.next().transpose() {
                Ok(value) => Ok(value.unwrap_or(Value::Null)),
                Err(error) => match RedisError::from(error) {
                    // Of another kind than ours: read as the nonsense that it is.
                    RedisError::Refused(_) => Ok(Value::Queued),
                    error => Err(error),
                },
            };
            Ok::<_, RedisError>((answer()?, answer()?))
        };
        let (records, proofs) = self.redis.call(&self.read, asked).await?;
        let records = match records {
            Value::Null => None,
            value => Some(value.into_string().ok_or(Odd::Content)),
        };
        let proofs =
            if proofs.is_null() { Ok(HashMap::new()) } else { proofs.convert().map_err(|_| Odd::Content) };
        Ok((records, proofs))
    }

    fn read_records(&self, prefix: Prefix, entry: &str, now: Moment) -> Result<Found, Odd> {
        let unheard = if self.fence.is_up() { Duration::MAX } else { WORST_CASE };
        let oldest = self.config.record_ttl.min(unheard);
        self.entries.read_records(&records_name(prefix), entry, now.wall, oldest)
    }

    fn read_proofs(&self, prefix: Prefix, fields: Fields, now: Moment) -> Arc<[Proof]> {
        let name = proofs_name(prefix);
        let read = |(field, entry): (String, String)| {
            let digest = Digest::parse(&field).ok_or(Odd::Content)?;
            let name = field_name(&name, &field);
            self.entries.read_proof(&name, digest, &entry, now.wall, self.config.proof_ttl)
        };
        let fields = counted(Some(fields), &self.proofs).unwrap_or_default();
        let read = fields.into_iter().take(PROOFS).map(read);
        let proofs: Arc<[_]> = read.filter_map(|proof| counted(Some(proof), &self.proofs)).collect();
        let count = if proofs.is_empty() { &self.proofs.miss } else { &self.proofs.hit };
        count.increment(1);
        proofs
    }

    async fn write_records(&self, name: String, entry: String) -> Result<(), RedisError> {
        let ttl = Expiration::PX(i64::try_from(self.config.record_ttl.as_millis()).unwrap_or(i64::MAX));
        let set = self.redis.client().set::<(), _, _>(name, entry, Some(ttl), None, false);
        self.redis.call(&self.write, set).await
    }

    async fn write_proof(&self, name: String, field: String, entry: String) -> Result<(), RedisError> {
        let ttl = i64::try_from(self.config.proof_ttl.as_millis()).unwrap_or(i64::MAX);
        let put = || async {
            let pipeline = self.redis.client().pipeline();
            let () = pipeline.hset(&name, (&*field, &*entry)).await?;
            let () = pipeline.pexpire(&name, ttl, None).await?;
            let () = pipeline.hlen(&name).await?;
            pipeline.last::<usize>().await
        };
        match self.redis.call(&self.write, put()).await {
            Ok(fields) if fields <= PROOFS => Ok(()),
            // Of another kind, or of more than there are good secrets: not ours. It is made anew.
            Ok(_) | Err(RedisError::Refused(_)) => {
                let deleted = self.redis.client().del::<(), _>(&name);
                self.redis.call(&self.write, deleted).await?;
                self.redis.call(&self.write, put()).await.map(drop)
            }
            Err(error) => Err(error),
        }
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

/// A value as it stands in Redis.
type Entry = Result<String, Odd>;
/// The fields of a hash.
type Fields = Result<HashMap<String, String>, Odd>;

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
