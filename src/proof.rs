//! That a credential belongs to a record: what is proven once, and then remembered. Pure.

use std::time::Duration;

use time::OffsetDateTime;

use crate::{
    credential::Digest,
    record::{HashTag, KeyId, KeyRecord},
};

/// How long a proof may count at most, from its bcrypt run, however often it is used or stored.
pub const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// "This credential belongs to this record with this hash": what is proven or refused.
///
/// Nothing short of the whole credential has this digest, and a key whose hash changed has another tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProofKey {
    /// Of the whole credential.
    pub digest: Digest,
    /// The record; `None` for one that nobody has.
    pub key: Option<KeyId>,
    /// The hash that stands in it.
    pub hash: HashTag,
}

impl ProofKey {
    /// That a credential with this digest belongs to this record.
    pub fn of(digest: Digest, record: &KeyRecord) -> Self {
        Self { digest, key: Some(record.id), hash: record.hash.tag() }
    }
}

/// A proof key that bcrypt has confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// What was proven.
    pub proof_key: ProofKey,
    /// How long that is believed, unless a use extends it.
    pub until: OffsetDateTime,
    /// How long it is believed at most, however often it is used.
    pub ends: OffsetDateTime,
}
