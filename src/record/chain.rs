//! The chain of a key: the keys that it was rotated from and to. They share limits and budgets.

use time::OffsetDateTime;

use super::KeyId;

/// The place of a key that was rotated, or that a rotation created.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Chain {
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
    /// What the other keys have spent, in cents.
    pub fn spent_by_others(&self) -> f64 {
        self.others.iter().map(|member| member.spent_cents).sum()
    }
}
