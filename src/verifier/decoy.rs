//! A hash that no credential matches, to make unknown keys cost what wrong secrets cost.

use std::sync::atomic::{AtomicU32, Ordering};

use rand::{RngExt, distr::Alphanumeric};

use super::matches;
use crate::{credential::Credential, record::KeyHash};

/// The decoy, at the cost of the costliest hash seen.
pub(super) struct Decoy {
    body: String,
    cost: AtomicU32,
}

impl Decoy {
    /// A decoy whose salt and hash are drawn at random: nobody knows a credential that matches.
    pub(super) fn new(cost: u32) -> Self {
        let body = rand::rng().sample_iter(Alphanumeric).take(53).map(char::from).collect();
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
            unreachable!("costs come from accepted hashes, and the body is 53 letters and digits")
        };
        hash
    }
}
