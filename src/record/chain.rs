//! The chain of a key: the keys that it was rotated from and to. They share limits and budgets.

use time::OffsetDateTime;

use super::KeyId;

/// The place of a key in its chain. A key that was never rotated is alone in its chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// The first key of the chain. Requests with every key of the chain count against limits under its id.
    pub limit_id: KeyId,
    /// The other keys of the chain, by id.
    pub others: Vec<ChainMember>,
    /// The rotation that ended this key.
    pub successor: Option<Rotation>,
    /// The rotation that created this key.
    pub predecessor: Option<Rotation>,
}

/// Another key of the chain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChainMember {
    /// The key.
    pub id: KeyId,
    /// `total_cost`, in cents; NULL and a key that was deleted count as 0.
    pub spent_cents: f64,
}

/// The rotation of one key to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// The other key.
    pub key: KeyId,
    /// When the rotation was made. None if it cannot be read.
    pub rotated_at: Option<OffsetDateTime>,
}

impl Chain {
    /// The chain of a key that was never rotated.
    pub fn of(key: KeyId) -> Self {
        Self { limit_id: key, others: Vec::new(), successor: None, predecessor: None }
    }

    /// What the other keys have spent, in cents.
    pub fn spent_by_others(&self) -> f64 {
        self.others.iter().map(|member| member.spent_cents).sum()
    }
}
