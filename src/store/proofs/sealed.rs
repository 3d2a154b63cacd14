//! A stored proof: what stands in its row, and when it is believed. Pure.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use time::OffsetDateTime;

use crate::{
    credential::{CacheSecrets, Digest},
    proof::{MAX_AGE, Proof, ProofKey},
    record::{HashTag, KeyId, KeyRecord},
};

/// Seals proofs, and opens those that were sealed under a known secret. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ProofSeals(CacheSecrets);

/// A row of `keystile_proofs`. Nothing in it is of use without the cache secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredProof {
    key: KeyId,
    tag: Digest,
    /// In milliseconds since 1970.
    proven_at: i64,
    seal: [u8; 32],
}

/// Why a stored proof is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProof {
    /// The row cannot be read.
    #[error("unreadable")]
    Content,
    /// The seal is not that of this row, for this key with this hash, under a known secret.
    #[error("its seal does not hold")]
    Seal,
    /// It is too old, or from the future.
    #[error("too old")]
    Age,
}

/// What a seal is over begins with this: nothing else is sealed under this name, nor in another version.
const DOMAIN: &[u8] = b"keystile_proofs 1";

/// How far the clocks of two machines may be apart.
const SKEW: i64 = 60_000;

impl ProofSeals {
    /// Seals with the newest of these, and opens what any of them has sealed.
    pub fn new(secrets: CacheSecrets) -> Self {
        Self(secrets)
    }

    /// The row of a proof key that bcrypt has confirmed at `proven_at`; `None` for one without a key.
    pub fn seal(&self, proof_key: &ProofKey, proven_at: OffsetDateTime) -> Option<StoredProof> {
        let (key, tag, proven_at) = (proof_key.key?, proof_key.digest, millis(proven_at));
        let seal =
            self.0.newest().seal(&parts(key, &tag.to_text(), proof_key.hash, &proven_at.to_string()).each());
        Some(StoredProof { key, tag, proven_at, seal })
    }

    /// Opens the cells of a row, tag, time and seal, that was found for this record.
    ///
    /// # Errors
    /// [`InvalidProof`] when it is not to be believed.
    pub fn open(
        &self,
        record: &KeyRecord,
        [tag, proven_at, seal]: &[String; 3],
        now: OffsetDateTime,
    ) -> Result<Proof, InvalidProof> {
        let digest = Digest::parse(tag).ok_or(InvalidProof::Content)?;
        let seal = BASE64URL_NOPAD.decode(seal.as_bytes()).map_err(|_| InvalidProof::Content)?;
        let hash = record.hash.tag();
        let sealed = parts(record.id, tag, hash, proven_at);
        if !self.0.iter().any(|secret| secret.is_seal(&sealed.each(), &seal)) {
            return Err(InvalidProof::Seal);
        }
        let proven_at: i64 = proven_at.parse().map_err(|_| InvalidProof::Content)?;
        let age = millis(now).saturating_sub(proven_at);
        let left = lifetime(tag).saturating_sub(age);
        if age < -SKEW || left <= 0 {
            return Err(InvalidProof::Age);
        }
        let left = Duration::from_millis(left.unsigned_abs()).min(MAX_AGE);
        let proof_key = ProofKey { digest, key: Some(record.id), hash };
        Ok(Proof { proof_key, until: now + left, ends: now + left })
    }
}

impl StoredProof {
    /// Whose proof it is.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Tag, time and seal, as they stand in the row.
    pub fn cells(&self) -> [String; 3] {
        [self.tag.to_text(), self.proven_at.to_string(), BASE64URL_NOPAD.encode(&self.seal)]
    }
}

/// Proofs from before this time, in milliseconds since 1970, are not believed at `now`.
pub(super) fn oldest(now: OffsetDateTime) -> i64 {
    millis(now) - MAX_AGE.as_millis() as i64
}

/// What a seal is over.
struct Parts([Vec<u8>; 4]);

impl Parts {
    fn each(&self) -> [&[u8]; 5] {
        let [key, tag, hash, proven_at] = &self.0;
        [DOMAIN, key, tag, hash, proven_at]
    }
}

fn parts(key: KeyId, tag: &str, hash: HashTag, proven_at: &str) -> Parts {
    Parts([key.0.to_string(), tag.to_owned(), hash.to_text(), proven_at.to_owned()].map(String::into_bytes))
}

/// In milliseconds: up to a tenth less than [`MAX_AGE`], so that proofs of the same minute do not end in the same
/// minute. By the tag, so that all instances agree.
fn lifetime(tag: &str) -> i64 {
    let longest = MAX_AGE.as_millis() as i64;
    let share = tag.get(..4).and_then(|digits| i64::from_str_radix(digits, 16).ok()).unwrap_or(0);
    longest - longest / 10 * share / 0x1_0000
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
