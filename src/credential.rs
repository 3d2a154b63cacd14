//! API keys as callers present them: parsed once, never printed, wiped when dropped.

use std::fmt;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub mod brands;
pub mod generate;

/// Fewest bytes a credential may have: it must at least fill its prefix.
pub const MIN_LEN: usize = Prefix::LEN;
/// Most bytes a credential may have: bcrypt reads no further, so a longer one would not be proven whole.
pub const MAX_LEN: usize = 72;

/// The whole string that a caller presents as API key. Its `Debug` shows nothing of it. It lies in place, so
/// that no check allocates for it.
#[derive(Clone)]
pub struct Credential {
    bytes: Zeroizing<[u8; MAX_LEN]>,
    len: u8,
}

/// The first eight characters of a credential: finds records, proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix([u8; Prefix::LEN]);

/// HMAC-SHA-256 of a whole credential under the cache secret: what a remembered proof is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

/// The key of the digests, held as HMAC state so that a digest costs two compressions.
#[derive(Clone)]
pub struct CacheSecret(Hmac<Sha256>);

/// The secrets in use: proofs are made under the newest, and those made under the others still count.
#[derive(Debug, Clone)]
pub struct CacheSecrets {
    newest: CacheSecret,
    older: Vec<CacheSecret>,
}

/// The string is not 8 to 72 bytes of visible ASCII without a comma.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an API key is {MIN_LEN} to {MAX_LEN} bytes of visible ASCII without a comma")]
pub struct MalformedCredential;

impl Credential {
    /// Reads a credential from the bytes that a request carried.
    ///
    /// A comma is refused because Envoy joins repeated headers with one: accepting it would let
    /// two keys pass for a single one.
    ///
    /// # Errors
    /// [`MalformedCredential`] when a byte or the length is out of bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, MalformedCredential> {
        let allowed = |byte: &u8| byte.is_ascii_graphic() && *byte != b',';
        if !(MIN_LEN..=MAX_LEN).contains(&bytes.len()) || !bytes.iter().all(allowed) {
            return Err(MalformedCredential);
        }
        let mut copy = Zeroizing::new([0; MAX_LEN]);
        copy[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { bytes: copy, len: bytes.len() as u8 })
    }

    /// The part that finds records.
    pub fn prefix(&self) -> Prefix {
        let mut prefix = [0; Prefix::LEN];
        prefix.copy_from_slice(&self.bytes[..Prefix::LEN]);
        Prefix(prefix)
    }

    /// What proofs of this credential are remembered by.
    pub fn digest(&self, secret: &CacheSecret) -> Digest {
        let mut mac = secret.0.clone();
        mac.update(self.expose().as_bytes());
        Digest(mac.finalize().into_bytes().into())
    }

    /// The secret itself: for bcrypt, and for showing a new key once.
    pub fn expose(&self) -> &str {
        // Only `parse` makes credentials, from ASCII.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
    }
}

impl Eq for Credential {}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(..)")
    }
}

impl Prefix {
    /// How many characters of a credential are its prefix.
    pub const LEN: usize = 8;

    /// Reads a prefix as a database or an operator writes it.
    ///
    /// # Errors
    /// [`MalformedCredential`] unless it is eight bytes that a credential could begin with.
    pub fn parse(text: &str) -> Result<Self, MalformedCredential> {
        match text.len() {
            Self::LEN => Credential::parse(text.as_bytes()).map(|whole| whole.prefix()),
            _ => Err(MalformedCredential),
        }
    }

    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        // Only `Credential::prefix` makes prefixes, from ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prefix({self})")
    }
}

impl Digest {
    /// The digest in hexadecimal.
    pub fn to_text(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    /// Reads what [`Digest::to_text`] has written.
    pub fn parse(text: &str) -> Option<Self> {
        HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

impl CacheSecret {
    /// Takes the bytes of a secret; HMAC accepts any length.
    pub fn new(secret: &[u8]) -> Self {
        let Ok(mac) = Hmac::new_from_slice(secret) else {
            unreachable!("HMAC takes keys of every length (RFC 2104, section 3)")
        };
        Self(mac)
    }

    /// A fresh secret from the system's generator, good for this process alone.
    pub fn random() -> Self {
        let secret: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        Self::new(&*secret)
    }
}

impl CacheSecret {
    /// HMAC-SHA-256 over these parts, each ended by a NUL. No credential has one, so this is never a
    /// [`Digest`] of any.
    pub fn seal(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.sealing(parts).finalize().into_bytes().into()
    }

    /// Whether this is the seal over these parts. Takes the same time wherever it differs.
    pub fn is_seal(&self, parts: &[&[u8]], seal: &[u8]) -> bool {
        self.sealing(parts).verify_slice(seal).is_ok()
    }

    fn sealing(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(part);
            mac.update(&[0]);
        }
        mac
    }
}

impl CacheSecrets {
    /// One secret alone.
    pub fn one(newest: CacheSecret) -> Self {
        Self { newest, older: Vec::new() }
    }

    /// Several, newest first; `None` when there are none.
    pub fn new(secrets: impl IntoIterator<Item = CacheSecret>) -> Option<Self> {
        let mut secrets = secrets.into_iter();
        Some(Self { newest: secrets.next()?, older: secrets.collect() })
    }

    /// The one that is used.
    pub fn newest(&self) -> &CacheSecret {
        &self.newest
    }

    /// All that are understood, newest first.
    pub fn iter(&self) -> impl Iterator<Item = &CacheSecret> {
        [&self.newest].into_iter().chain(&self.older)
    }
}

impl fmt::Debug for CacheSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credential(text: &str) -> Credential {
        Credential::parse(text.as_bytes()).expect("well-formed")
    }

    #[test]
    fn bounds_of_length_are_inclusive() {
        for (len, good) in [(7, false), (8, true), (72, true), (73, false), (10 * 1024, false)] {
            assert_eq!(Credential::parse(&vec![b'k'; len]).is_ok(), good, "{len} bytes");
        }
    }

    #[test]
    fn debug_output_shows_nothing() {
        let secret = CacheSecret::new(b"cache secret");
        let credential = credential("ks_secret-material");
        let shown = format!("{credential:?} {:?} {secret:?}", credential.digest(&secret));
        assert_eq!(shown, "Credential(..) Digest(..) CacheSecret(..)");
    }

    #[test]
    fn digest_is_hmac_sha256() {
        // Computed by Python's hmac module.
        let expected = "d21860b1b1743eaf83f3c247a4156d3e78a46ef2f302134c7781e3bd25ecb80f";
        let digest = credential("what-do-ya-want?").digest(&CacheSecret::new(b"Jefe"));
        assert_eq!(digest.to_text(), expected);
        assert_eq!(Digest::parse(expected), Some(digest));
    }

    #[test]
    fn seal_is_over_every_part_and_no_credential_has_it() {
        let secret = CacheSecret::new(b"cache secret");
        let seal = secret.seal(&[b"name", b"content"]);
        assert!(secret.is_seal(&[b"name", b"content"], &seal));
        for other in [&[&b"nam"[..], b"econtent"][..], &[b"name", b"contents"], &[b"namecontent"]] {
            assert!(!secret.is_seal(other, &seal));
        }
        assert!(!CacheSecret::new(b"other secret").is_seal(&[b"name", b"content"], &seal));
        assert_ne!(credential("ks_sample").digest(&secret).0, secret.seal(&[b"ks_sample"]));
    }

    #[test]
    fn prefix_is_exactly_eight_characters() {
        assert_eq!(credential("ks_abcdefgh").prefix().as_str(), "ks_abcde");
        assert!(Prefix::parse("ks_abcd").is_err());
        assert!(Prefix::parse("ks_abcdef").is_err());
        assert!(Prefix::parse("ks_ab,de").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused_by_the_rule(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let good = (8..=72).contains(&bytes.len())
                && bytes.iter().all(|byte| (0x21..=0x7e).contains(byte) && *byte != 0x2c);
            let parsed = Credential::parse(&bytes);
            prop_assert_eq!(parsed.is_ok(), good);
            if let Ok(parsed) = parsed {
                prop_assert_eq!(parsed.expose().as_bytes(), &bytes[..]);
                let prefix = parsed.prefix();
                prop_assert_eq!(prefix.as_str().as_bytes(), &bytes[..8]);
            }
        }

        #[test]
        fn digests_differ_when_credentials_or_secrets_do(a in "[!-+.-~]{8,72}", b in "[!-+.-~]{8,72}") {
            let (first, second) = (CacheSecret::new(b"one"), CacheSecret::new(b"two"));
            let (a, b) = (credential(&a), credential(&b));
            prop_assert_eq!(a == b, a.digest(&first) == b.digest(&first));
            prop_assert_ne!(a.digest(&first), a.digest(&second));
        }
    }
}
