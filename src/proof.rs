//! Proofs that a credential belongs to a record. A proof is made once, then cached. Pure.

use std::time::Duration;

use time::OffsetDateTime;

use crate::{
    credential::Digest,
    record::{HashTag, KeyId, KeyRecord},
};

/// Maximum age of a proof, counted from its bcrypt run. Uses and storage do not extend it.
pub const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The statement that is proven or refused: "This credential belongs to this record with this hash."
///
/// Only the whole credential has this digest. A key whose hash changed has another tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProofKey {
    /// The digest of the whole credential.
    pub digest: Digest,
    /// The key of the record; `None` for a prefix that does not exist.
    pub key: Option<KeyId>,
    /// The tag of the hash in the record.
    pub hash: HashTag,
}

impl ProofKey {
    /// The proof key of a credential with this digest and this record.
    pub fn of(digest: Digest, record: &KeyRecord) -> Self {
        Self { digest, key: Some(record.id), hash: record.hash.tag() }
    }
}

/// A proof key that bcrypt has confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// The confirmed proof key.
    pub proof_key: ProofKey,
    /// Expiry time, unless a use extends the proof.
    pub until: OffsetDateTime,
    /// Latest expiry time. No use extends the proof beyond it.
    pub ends: OffsetDateTime,
}
