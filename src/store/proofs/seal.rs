//! A stored proof: the content of its row, and the conditions under which it is accepted. Pure.

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

/// A row of `keystile_proofs`. It is useless without the cache secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredProof {
    key: KeyId,
    tag: Digest,
    /// In milliseconds since 1970.
    proven_at: i64,
    seal: [u8; 32],
}

/// Why a stored proof is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProof {
    /// The row cannot be read.
    #[error("unreadable")]
    Content,
    /// The seal is not that of this row, for this key with this hash, under a known secret.
    #[error("its seal is invalid")]
    Seal,
    /// It is too old, or dated in the future.
    #[error("too old")]
    Age,
}

/// The first part of the sealed message. It separates these seals from others and from other versions.
const DOMAIN: &[u8] = b"keystile_proofs 1";

/// Maximum difference between the clocks of two machines, in milliseconds.
const SKEW: i64 = 60_000;

impl ProofSeals {
    /// Seals with the newest of these, and opens what any of them has sealed.
    pub fn new(secrets: CacheSecrets) -> Self {
        Self(secrets)
    }

    /// The row of a proof key that bcrypt confirmed at `proven_at`. `None` for a proof key without a key.
    pub fn seal(&self, proof_key: &ProofKey, proven_at: OffsetDateTime) -> Option<StoredProof> {
        let (key, tag, proven_at) = (proof_key.key?, proof_key.digest, millis(proven_at));
        let seal =
            self.0.newest().seal(&parts(key, &tag.to_text(), proof_key.hash, &proven_at.to_string()).each());
        Some(StoredProof { key, tag, proven_at, seal })
    }

    /// Opens the values of a row of this record: tag, time and seal.
    ///
    /// # Errors
    /// [`InvalidProof`] when it is rejected.
    pub fn open(
        &self,
        record: &KeyRecord,
        [tag, proven_at, seal]: &[String; 3],
        now: OffsetDateTime,
    ) -> Result<Proof, InvalidProof> {
        let digest = Digest::parse(tag).ok_or(InvalidProof::Content)?;
        let seal = BASE64URL_NOPAD.decode(seal.as_bytes()).map_err(|_| InvalidProof::Content)?;
        let hash = record.hash.tag();
        let message = parts(record.id, tag, hash, proven_at);
        if !self.0.iter().any(|secret| secret.is_seal(&message.each(), &seal)) {
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
    /// The key that it proves.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// Tag, time and seal, as the row has them.
    pub fn values(&self) -> [String; 3] {
        [self.tag.to_text(), self.proven_at.to_string(), BASE64URL_NOPAD.encode(&self.seal)]
    }
}

/// Proofs from before this time, in milliseconds since 1970, are rejected at `now`.
pub(super) fn oldest(now: OffsetDateTime) -> i64 {
    millis(now) - MAX_AGE.as_millis() as i64
}

/// The message of a seal.
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

/// In milliseconds: up to a tenth less than [`MAX_AGE`], so that proofs of the same minute do not expire in the same
/// minute. It depends on the tag only, so that all instances agree.
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
