//! SHA-256 hashes of keys with high entropy.
//!
//! There is no salt and no cost: who reads such a hash can try billions of keys a second. So it protects only keys that
//! have at least 128 bits of randomness. Nothing in a hash tells whether its key has.

use std::{fmt, str::FromStr};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{HashTag, UnacceptedHash};
use crate::credential::{CacheSecret, CacheSecrets, Credential};

/// The SHA-256 of a whole credential. One that was stored outside the process is an HMAC of it under the cache secret, so
/// that a reader of Redis cannot try keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256Hash {
    bytes: [u8; 32],
    is_keyed: bool,
}

/// How the stored text begins.
const BEGINNING: &str = "$sha256$";

/// The first part of the keyed form. It separates this HMAC from those of other things.
const DOMAIN: &[u8] = b"keystile sha256 1";

impl Sha256Hash {
    /// The hash of a credential.
    pub fn of(credential: &Credential) -> Self {
        Self::of_digest(Sha256::digest(credential.expose()).into())
    }

    /// The hash with these bytes.
    pub fn of_digest(bytes: [u8; 32]) -> Self {
        Self { bytes, is_keyed: false }
    }

    /// Whether this stored hash is the one of a credential. Takes the same time wherever it differs. A hash from Redis
    /// needs the secret that it was keyed with.
    pub fn matches(&self, presented: &Self, secrets: Option<&CacheSecrets>) -> bool {
        if !self.is_keyed {
            return self.bytes.ct_eq(&presented.bytes).into();
        }
        let mut secrets = secrets.into_iter().flat_map(CacheSecrets::iter);
        secrets.any(|secret| secret.is_seal(&[DOMAIN, &presented.bytes], &self.bytes))
    }

    /// The stored form, in base64url: it fits into a column for bcrypt.
    pub fn expose(&self) -> String {
        format!("{BEGINNING}{}", BASE64URL_NOPAD.encode(&self.bytes))
    }

    pub(super) fn tag(&self) -> HashTag {
        HashTag::of(&[BEGINNING.as_bytes(), &[self.is_keyed.into()], &self.bytes].concat())
    }

    /// The form for Redis, without its name.
    pub(super) fn keyed(&self, secret: &CacheSecret) -> String {
        let keyed = if self.is_keyed { self.bytes } else { secret.seal(&[DOMAIN, &self.bytes]) };
        BASE64URL_NOPAD.encode(&keyed)
    }

    pub(super) fn parse_keyed(text: &str) -> Result<Self, UnacceptedHash> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Self { bytes: bytes.ok_or(UnacceptedHash)?, is_keyed: true })
    }

    /// Whether the text claims to be such a hash.
    pub(super) fn is_form_of(text: &str) -> bool {
        text.starts_with(BEGINNING)
    }
}

impl FromStr for Sha256Hash {
    type Err = UnacceptedHash;

    /// 64 hexadecimal digits, or base64url without padding: 43 characters.
    fn from_str(text: &str) -> Result<Self, UnacceptedHash> {
        let text = text.strip_prefix(BEGINNING).ok_or(UnacceptedHash)?.as_bytes();
        let encoding = if text.len() == 64 { HEXLOWER_PERMISSIVE } else { BASE64URL_NOPAD };
        let bytes = encoding.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        Ok(Self::of_digest(bytes.ok_or(UnacceptedHash)?))
    }
}

impl fmt::Debug for Sha256Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256Hash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "ks_sampleCredentialOfUnitTests", by coreutils.
    const HEX: &str = "45351b373195cd8db117799da567f26932de918c88a9e6a05d6a64ca992e1bf8";

    fn hash(text: &str) -> Sha256Hash {
        Sha256Hash::of(&Credential::parse(text.as_bytes()).expect("well-formed"))
    }

    #[test]
    fn both_notations_are_one_hash_and_anything_else_is_refused() {
        let hash = hash("ks_sampleCredentialOfUnitTests");
        assert_eq!(format!("$sha256${HEX}").parse(), Ok(hash));
        assert_eq!(format!("$sha256${}", HEX.to_uppercase()).parse(), Ok(hash));
        assert_eq!(hash.expose().parse(), Ok(hash));
        assert_eq!(hash.expose().len(), 51);
        let base64 = &hash.expose()[8..];
        for bad in [
            String::new(),
            "$sha256$".into(),
            HEX.into(),
            base64.into(),
            format!("$sha256${base64}="),
            format!("$sha256${}", &base64[1..]),
            format!("$sha256${}", &HEX[1..]),
            format!("$sha256${HEX}0"),
            format!("$sha256$ {HEX}"),
            format!("$sha256${HEX} "),
            format!("$sha256$v=1${HEX}"),
            // The last character has two bits that stand for nothing.
            format!("$sha256${}B", "A".repeat(42)),
            format!("$SHA256${HEX}"),
            format!("$sha512${HEX}{HEX}"),
        ] {
            assert!(bad.parse::<Sha256Hash>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keyed_hash_matches_under_its_secret_alone() {
        let secret = |text: &str| CacheSecret::new(text.as_bytes());
        let plain = hash("ks_sampleCredentialOfUnitTests");
        let text = plain.keyed(&secret("one"));
        let keyed = Sha256Hash::parse_keyed(&text).expect("read");
        assert!(plain.matches(&plain, None) && !plain.matches(&hash("ks_samplX"), None));
        let both = CacheSecrets::new([secret("two"), secret("one")]).expect("some");
        assert!(keyed.matches(&plain, Some(&both)));
        assert!(!keyed.matches(&hash("ks_samplX"), Some(&both)));
        assert!(!keyed.matches(&plain, Some(&CacheSecrets::one(secret("two")))));
        assert!(!keyed.matches(&plain, None));
        assert!(!keyed.matches(&keyed, Some(&both)), "the stored form is no credential's");
        assert_ne!(keyed.tag(), plain.tag());
        assert!(!text.contains(&plain.expose()[8..]), "{text}");
    }
}
