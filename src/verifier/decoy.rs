//! A hash that no credential matches, to make unknown keys cost what wrong secrets cost.

use std::sync::atomic::{AtomicU32, Ordering};

use super::matches;
use crate::{credential::Credential, record::KeyHash};

/// The decoy, at the cost of the costliest hash seen.
pub(super) struct Decoy {
    /// Salt and hash, as bcrypt writes them.
    body: String,
    cost: AtomicU32,
}

impl Decoy {
    /// A decoy that bcrypt itself made, of a random secret that nobody knows: one that it could not
    /// read would be refused at once, and tell unknown keys by their speed.
    pub(super) fn new(cost: u32) -> Self {
        let secret: [u8; 32] = rand::random();
        let Ok(hash) = bcrypt::hash(secret.map(|byte| byte.max(1)), *KeyHash::COSTS.start()) else {
            unreachable!("bcrypt hashes 32 bytes without a NUL at an accepted cost")
        };
        let body = hash.rsplit('$').next().unwrap_or_default().to_owned();
        Self { body, cost: AtomicU32::new(cost) }
    }

    /// The decoy's hash at its present cost.
    pub(super) fn hash(&self) -> KeyHash {
        self.hash_at(self.cost.load(Ordering::Relaxed))
    }

    /// Follows the costliest hash in use.
    pub(super) fn raise(&self, cost: u32) {
        self.cost.fetch_max(cost, Ordering::Relaxed);
    }

    /// Spends what a mismatch at `cost` spared compared with the decoy, so that its time does not
    /// tell a cheap old key from an unknown one. Rounds double with each step of the cost:
    /// `2^c + (2^c + 2^(c+1) + … + 2^(d-1))` is `2^d`.
    pub(super) fn make_up(&self, credential: &Credential, cost: u32) {
        for cost in cost..self.cost.load(Ordering::Relaxed) {
            matches(credential, &self.hash_at(cost));
        }
    }

    fn hash_at(&self, cost: u32) -> KeyHash {
        let Ok(hash) = format!("$2b${cost:02}${}", self.body).parse() else {
            unreachable!("costs come from accepted hashes, and the body from bcrypt")
        };
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoy_is_computed_at_every_cost_and_not_refused() {
        let decoy = Decoy::new(12);
        for cost in 4..=6 {
            let verdict = bcrypt::verify("zz_unknown", decoy.hash_at(cost).expose().expect("whole"));
            assert!(matches!(verdict, Ok(false)), "{verdict:?}");
        }
        assert_eq!(decoy.hash().cost(), 12);
    }
}
