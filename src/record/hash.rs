//! Stored hashes that Keystile accepts.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::credential::CacheSecret;

mod bcrypt;
mod sha256;

pub use bcrypt::BcryptHash;
pub use sha256::Sha256Hash;

/// A hash that a credential is proven against. `Debug` shows nothing of it but a cost.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash {
    tag: HashTag,
    kind: HashKind,
}

/// The kinds of hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKind {
    /// bcrypt, for every key.
    Bcrypt(BcryptHash),
    /// SHA-256, for keys with at least 128 bits of randomness.
    Sha256(Sha256Hash),
}

/// Identifies one stored hash without revealing it: 128 bits of its SHA-256.
///
/// A proof is valid for this tag only, so a key whose hash changes must be proven again. Only tags of salted hashes leave
/// the process.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashTag([u8; 16]);

/// The text is not a hash that Keystile accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {}", KeyHash::EXPECTED)]
pub struct UnacceptedHash;

impl KeyHash {
    /// What a stored hash should be, in words.
    pub const EXPECTED: &str = "a bcrypt hash of the form $2a$, $2b$ or $2y$ with a cost of 4 to 14, or $sha256$ with the \
                                SHA-256 of a random key in base64url or hexadecimal";

    /// The hash itself.
    pub fn kind(&self) -> &HashKind {
        &self.kind
    }

    /// The bcrypt hash in bcrypt's format. `None` for another kind, and where only the tag is known.
    pub fn expose(&self) -> Option<&str> {
        match &self.kind {
            HashKind::Bcrypt(hash) => hash.expose(),
            HashKind::Sha256(_) => None,
        }
    }

    /// The hash of bcrypt, if it is one.
    pub fn into_bcrypt(self) -> Option<BcryptHash> {
        match self.kind {
            HashKind::Bcrypt(hash) => Some(hash),
            HashKind::Sha256(_) => None,
        }
    }

    /// Whether a credential can be proven against it. A bcrypt hash from Redis has only its tag: stored proofs can be used,
    /// but nothing can be proven.
    pub fn is_whole(&self) -> bool {
        match &self.kind {
            HashKind::Bcrypt(hash) => hash.expose().is_some(),
            HashKind::Sha256(_) => true,
        }
    }

    /// The form of the hash that is stored outside the process. Keys cannot be tried against it without the secret: the tag
    /// of a bcrypt hash is made with its salt, and a SHA-256 hash is keyed.
    pub fn redacted(&self, secret: &CacheSecret) -> String {
        match &self.kind {
            HashKind::Bcrypt(hash) => format!("{:02}:{}", hash.cost(), self.tag.to_text()),
            HashKind::Sha256(hash) => format!("sha256:{}", hash.keyed(secret)),
        }
    }

    /// Parses the output of [`KeyHash::redacted`].
    ///
    /// # Errors
    /// [`UnacceptedHash`] for any other text.
    pub fn parse_redacted(text: &str) -> Result<Self, UnacceptedHash> {
        let (kind, rest) = text.split_once(':').ok_or(UnacceptedHash)?;
        if kind == "sha256" {
            return Sha256Hash::parse_keyed(rest).map(Self::from);
        }
        let tag = HashTag::parse(rest).ok_or(UnacceptedHash)?;
        Ok(Self { tag, kind: HashKind::Bcrypt(BcryptHash::without_text(kind)?) })
    }

    /// The cost of bcrypt. `None` for another kind.
    pub fn cost(&self) -> Option<u32> {
        match &self.kind {
            HashKind::Bcrypt(hash) => Some(hash.cost()),
            HashKind::Sha256(_) => None,
        }
    }

    /// The tag that proofs against this hash are bound to.
    pub fn tag(&self) -> HashTag {
        self.tag
    }
}

impl From<Sha256Hash> for KeyHash {
    fn from(hash: Sha256Hash) -> Self {
        Self { tag: hash.tag(), kind: HashKind::Sha256(hash) }
    }
}

impl FromStr for KeyHash {
    type Err = UnacceptedHash;

    fn from_str(text: &str) -> Result<Self, UnacceptedHash> {
        if Sha256Hash::is_form_of(text) {
            return text.parse::<Sha256Hash>().map(Self::from);
        }
        Ok(Self { tag: HashTag::of(text.as_bytes()), kind: HashKind::Bcrypt(text.parse()?) })
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({:?})", self.kind)
    }
}

impl HashTag {
    /// A tag that no hash has, for prefixes without a hash.
    pub fn none() -> Self {
        Self([0; 16])
    }

    fn of(hash: &[u8]) -> Self {
        let mut tag = [0; 16];
        tag.copy_from_slice(&Sha256::digest(hash)[..16]);
        Self(tag)
    }

    /// The tag in hexadecimal.
    pub fn to_text(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// Parses the output of [`HashTag::to_text`].
    pub fn parse(text: &str) -> Option<Self> {
        HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Debug for HashTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashTag(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    const BODY: &str = "N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";

    #[test]
    fn accepted_versions_and_costs() {
        for (text, good) in [
            (format!("$2a$10${BODY}"), true),
            (format!("$2b$04${BODY}"), true),
            (format!("$2y$14${BODY}"), true),
            (format!("$2x$10${BODY}"), false),
            (format!("$2$10${BODY}"), false),
            (format!("$2b$03${BODY}"), false),
            (format!("$2b$15${BODY}"), false),
            (format!("$2b$+9${BODY}"), false),
            (format!("$2b$9${BODY}"), false),
            (format!("$2b$10${BODY}x"), false),
            (format!("$2b$10${}!", &BODY[1..]), false),
            // Two bytes, across the end of the salt.
            (format!("$2b$10${}é{}", &BODY[..21], &BODY[23..]), false),
            ("!".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(text.parse::<KeyHash>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn bits_that_stand_for_nothing_are_cleared() {
        let made = ::bcrypt::hash("secret", 4).expect("hashes");
        let set = |text: &str, at: usize, spare: &str| format!("{}{spare}{}", &text[..at], &text[at + 1..]);
        // Salt and hash end at these places; "9" has all of its bits set.
        let odd = set(&set(&made, 28, "9"), 59, "9");
        let hash: KeyHash = odd.parse().expect("accepted");
        assert!(::bcrypt::verify("other", hash.expose().expect("whole")).is_ok(), "bcrypt reads it");
        let same: KeyHash = made.parse().expect("accepted");
        assert_eq!(same.expose(), Some(&*made), "a clean one stays as it is");
    }

    #[test]
    fn what_is_left_outside_the_process_has_the_tag_and_not_the_hash() {
        let hash: KeyHash = format!("$2b$10${BODY}").parse().expect("accepted");
        let text = hash.redacted(&CacheSecret::new(b"secret"));
        assert!(!text.contains(&BODY[..8]) && text.len() == 35, "{text}");
        let left = KeyHash::parse_redacted(&text).expect("read");
        assert_eq!((left.tag(), left.cost(), left.expose()), (hash.tag(), Some(10), None));
        for bad in [
            "",
            "10",
            "10:",
            "03:00",
            "sha256:",
            "sha256:AAAA",
            &text[..34],
            &text.to_uppercase().replace(':', ""),
        ] {
            assert!(KeyHash::parse_redacted(bad).is_err(), "{bad}");
        }
        assert!(text.parse::<KeyHash>().is_err(), "never from a database");
    }

    #[test]
    fn debug_output_shows_no_hash() {
        let hash: KeyHash = format!("$2b$10${BODY}").parse().expect("accepted");
        assert_eq!(
            format!("{hash:?} {:?}", hash.tag()),
            "KeyHash(Bcrypt(BcryptHash(cost 10, ..))) HashTag(..)"
        );
    }
    proptest! {
        #[test]
        fn any_text_is_a_hash_of_one_kind_or_refused(text in "\\$?(2[aby]|sha256)?\\$?[0-9a-zA-Z./_$=-]{0,70}|.{0,80}") {
            if let Ok(hash) = text.parse::<KeyHash>() {
                prop_assert_eq!(matches!(hash.kind(), HashKind::Sha256(_)), text.starts_with("$sha256$"));
                let left = hash.redacted(&CacheSecret::new(b"secret"));
                prop_assert!(!left.contains(&text[8..]));
                prop_assert!(left.parse::<KeyHash>().is_err(), "never from a database");
                prop_assert!(KeyHash::parse_redacted(&left).is_ok());
            }
        }
    }
}
