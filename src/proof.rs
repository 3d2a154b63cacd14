//! That a credential belongs to a record: what is proven once, and then remembered. Pure.

use time::OffsetDateTime;

use crate::{
    credential::Digest,
    record::{HashTag, KeyId},
};

/// "This credential belongs to this record with this hash": what is proven or refused.
///
/// Nothing short of the whole credential has this digest, and a key whose hash changed has another tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Of the whole credential.
    pub digest: Digest,
    /// The record; `None` for one that nobody has.
    pub key: Option<KeyId>,
    /// The hash that stands in it.
    pub hash: HashTag,
}

/// A claim that bcrypt has confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// What was proven.
    pub claim: Claim,
    /// How long that is believed.
    pub until: OffsetDateTime,
}
