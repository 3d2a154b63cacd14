//! The cache of proofs and their lifetimes. Pure: the time is passed in.

use std::time::{Duration, Instant};

use metrics::Gauge;

use crate::{
    cache::{Cache, cache},
    proof::{MAX_AGE, ProofKey},
};

/// The cached proofs.
pub(super) struct Proofs {
    held: Cache<ProofKey, CachedProof>,
    ttl: Duration,
    count: Gauge,
}

/// The result of looking for a proof key in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recall {
    /// There is no valid proof.
    Miss,
    /// It is proven.
    Proven,
    /// It is proven, and this use has extended it. The value is the maximum remaining lifetime of the proof.
    Extended(Duration),
}

/// One proof. Its times have jitter, so that proofs made at the same time neither expire nor are extended at the same
/// time.
#[derive(Clone, Copy)]
struct CachedProof {
    until: Instant,
    /// A use after this time extends the proof.
    extend_after: Instant,
    /// No use extends the proof beyond this time.
    ends: Instant,
}

impl Proofs {
    /// An empty cache. A proof that is not used expires after a maximum of `ttl`.
    pub(super) fn new(capacity: usize, ttl: Duration, count: Gauge) -> Self {
        Self { held: cache(capacity), ttl, count }
    }

    /// Looks for a valid proof. This counts as a use, so it may extend the proof.
    pub(super) fn recall(&self, proof_key: &ProofKey, now: Instant) -> Recall {
        match self.held.get(proof_key) {
            Some(held) if now < held.extend_after => Recall::Proven,
            // A separate cold function, so that the code of the usual case stays small.
            Some(held) if now < held.until => self.extend(proof_key, held, now),
            _ => Recall::Miss,
        }
    }

    /// Caches a proof that was just made.
    pub(super) fn insert(&self, proof_key: ProofKey, now: Instant) {
        let longest = MAX_AGE.max(self.ttl);
        self.hold(proof_key, now + jittered(self.ttl), now + jittered(longest), now);
    }

    /// Caches a proof that another process made. It expires after `left` unless a use here extends it, and after
    /// `longest` in any case.
    pub(super) fn insert_for(&self, proof_key: ProofKey, left: Duration, longest: Duration, now: Instant) {
        let left = left.min(self.ttl).min(longest);
        self.hold(proof_key, now + left, now + longest, now);
    }

    /// Number of cached proofs.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    #[cold]
    fn extend(&self, proof_key: &ProofKey, held: CachedProof, now: Instant) -> Recall {
        let until = (now + jittered(self.ttl)).min(held.ends);
        if until <= held.until {
            return Recall::Proven;
        }
        self.hold(*proof_key, until, held.ends, now);
        Recall::Extended(held.ends - now)
    }

    fn hold(&self, proof_key: ProofKey, until: Instant, ends: Instant, now: Instant) {
        let half = (until - now).mul_f64(0.4 + 0.2 * rand::random::<f64>());
        // A proof that has reached its end cannot be extended.
        let extend_after = if until < ends { now + half } else { until };
        self.held.insert(proof_key, CachedProof { until, extend_after, ends });
        self.count.set(self.held.len() as f64);
    }
}

/// Reduces a duration by a random part, up to a tenth.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(1.0 - rand::random::<f64>() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        credential::{CacheSecret, Credential},
        metrics::Metrics,
        record::{KeyId, fixtures},
    };

    const HOUR: Duration = Duration::from_secs(3600);

    fn proofs() -> Proofs {
        Proofs::new(10_000, HOUR, Metrics::new().expect("builds").cache_entries("proofs"))
    }

    fn proof_key(id: i64) -> ProofKey {
        let credential = Credential::parse(fixtures::CREDENTIAL.as_bytes()).expect("well-formed");
        let digest = credential.digest(&CacheSecret::new(b"secret"));
        ProofKey { digest, key: Some(KeyId(id)), hash: fixtures::record().hash.tag() }
    }

    #[test]
    fn unused_proof_ends_with_its_ttl_and_a_used_one_goes_on_for_a_week() {
        let (proofs, now) = (proofs(), Instant::now());
        proofs.insert(proof_key(1), now);
        proofs.insert(proof_key(2), now);
        let last = |uses: &mut dyn Iterator<Item = u32>| {
            uses.take_while(|n| proofs.recall(&proof_key(1), now + *n * HOUR / 4) != Recall::Miss).last()
        };
        let hours = last(&mut (0..10_000)).expect("some") / 4;
        assert!((24 * 6..=24 * 7).contains(&hours), "{hours}");
        assert_eq!(proofs.recall(&proof_key(2), now + HOUR), Recall::Miss);
    }

    #[test]
    fn proofs_made_together_and_in_use_end_spread_over_hours() {
        let (proofs, now) = (proofs(), Instant::now());
        let step = Duration::from_secs(15 * 60);
        let mut held: Vec<_> = (0..300).collect();
        held.iter().for_each(|id| proofs.insert(proof_key(*id), now));
        let mut most = 0;
        for n in 0..4 * 24 * 8_u32 {
            let before = held.len();
            held.retain(|id| proofs.recall(&proof_key(*id), now + n * step) != Recall::Miss);
            most = most.max(before - held.len());
        }
        assert_eq!(held.len(), 0);
        assert!(most < 30, "{most} within a quarter of an hour");
    }

    #[test]
    fn proofs_made_together_and_used_once_do_not_end_in_one_second() {
        let (proofs, now) = (proofs(), Instant::now());
        (0..1000).for_each(|id| proofs.insert(proof_key(id), now));
        let held = |id: &i64| proofs.held.get(&proof_key(*id)).expect("held").until;
        let first = (0..1000).map(|id| held(&id)).min().expect("some");
        let within = (0..1000).filter(|id| held(id) < first + Duration::from_secs(1)).count();
        assert!(within < 50, "{within}");
    }

    #[test]
    fn proof_of_another_process_is_extended_by_use_alone() {
        let (proofs, now) = (proofs(), Instant::now());
        let (left, before) = (HOUR / 4, HOUR / 5);
        proofs.insert_for(proof_key(1), left, 24 * HOUR, now);
        proofs.insert_for(proof_key(2), left, left, now);
        assert_eq!(proofs.recall(&proof_key(1), now + before), Recall::Extended(24 * HOUR - before));
        assert_eq!(
            proofs.recall(&proof_key(2), now + before),
            Recall::Proven,
            "at its end, no use extends it"
        );
        assert_eq!(proofs.recall(&proof_key(1), now + HOUR / 2), Recall::Proven);
        assert_eq!(proofs.recall(&proof_key(2), now + left), Recall::Miss);
    }
}
