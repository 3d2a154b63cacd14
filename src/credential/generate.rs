//! Makes new keys: a brand, randomness from the system's generator, and a checksum.
//!
//! ```text
//! ks_ Q4mZr  8fT0…24 characters…Ya  2xKp0B
//! brand      secret                 checksum: CRC-32 of all before it, base 62
//! '-prefix-'
//! ```
//!
//! The 24 secret characters alone carry 142 bits; those in the prefix are not counted, because
//! prefixes are shown in logs and headers. The checksum tells a scanner, or a person who mistyped,
//! that a string is no key, without a database.

use std::{fmt, str::FromStr};

use rand::{CryptoRng, RngExt, distr::Alphanumeric};
use zeroize::Zeroizing;

use super::{Credential, Prefix};

const SECRET_LEN: usize = 24;
const CHECKSUM_LEN: usize = 6;
/// Bytes in a generated key, with every brand.
pub const LEN: usize = Prefix::LEN + SECRET_LEN + CHECKSUM_LEN;

/// What every generated key begins with, such as `ks_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brand(String);

/// The text cannot be a brand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a brand is at most {} characters of A-Z, a-z, 0-9, '_' and '-'", Brand::MAX_LEN)]
pub struct InvalidBrand;

impl Brand {
    /// Four characters of the prefix stay random: 14.7 million prefixes, so that few keys share one.
    pub const MAX_LEN: usize = 4;
}

impl FromStr for Brand {
    type Err = InvalidBrand;

    fn from_str(text: &str) -> Result<Self, InvalidBrand> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if text.len() <= Self::MAX_LEN && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidBrand)
        }
    }
}

impl fmt::Display for Brand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes a key of this brand from `rng`.
pub fn generate(brand: &Brand, rng: &mut impl CryptoRng) -> Credential {
    let mut key = Zeroizing::new(String::with_capacity(LEN));
    key.push_str(&brand.0);
    let random = Prefix::LEN + SECRET_LEN - brand.0.len();
    key.extend(rng.sample_iter(Alphanumeric).take(random).map(char::from));
    let sum = checksum(&key);
    key.extend(sum.map(char::from));
    let Ok(credential) = Credential::parse(key.as_bytes()) else {
        unreachable!("brand, base 62 and length are all within a credential's bounds")
    };
    credential
}

/// Whether the text has the length and the checksum of a generated key.
///
/// False for every other issuer's keys too: it recognises ours, and typos in ours.
pub fn checksum_holds(text: &str) -> bool {
    let Some((body, sum)) = text.split_at_checked(LEN - CHECKSUM_LEN) else { return false };
    sum.as_bytes() == checksum(body)
}

/// Whether the text has the form of a generated key, of any brand, and its checksum. Such a key is random.
pub fn is_generated(text: &str) -> bool {
    let (brand, random) = text.as_bytes().split_at(Brand::MAX_LEN.min(text.len()));
    let in_brand = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    brand.iter().all(in_brand) && random.iter().all(u8::is_ascii_alphanumeric) && checksum_holds(text)
}

fn checksum(body: &str) -> [u8; CHECKSUM_LEN] {
    const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut rest = crc32fast::hash(body.as_bytes()) as usize;
    let mut digits = [0; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % BASE62.len()];
        rest /= BASE62.len();
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(brand: &str) -> Credential {
        generate(&brand.parse().expect("a brand"), &mut rand::rng())
    }

    #[test]
    fn brand_opens_the_key_and_stays_inside_the_prefix() {
        for brand in ["ks_", "", "acme"] {
            let key = key(brand);
            assert!(key.expose().starts_with(brand));
            assert_eq!(key.expose().len(), LEN);
        }
        assert_eq!("acme_".parse::<Brand>(), Err(InvalidBrand));
        assert_eq!("a,".parse::<Brand>(), Err(InvalidBrand));
    }

    #[test]
    fn right_checksum_alone_makes_no_generated_key() {
        for body in ["password-password-password-passwor", "ks_aaaaaaaaaaaaaaaaaaaaaaaaaaaaa"] {
            let sum = String::from_utf8(checksum(&body[..32]).to_vec()).expect("ASCII");
            let key = format!("{}{sum}", &body[..32]);
            assert!(checksum_holds(&key));
            assert_eq!(is_generated(&key), body.starts_with("ks_"), "{key}");
        }
    }

    #[test]
    fn two_keys_differ_after_the_prefix() {
        assert_ne!(key("ks_").expose()[8..], key("ks_").expose()[8..]);
    }

    #[test]
    fn checksum_finds_every_single_character_typo_and_every_swap() {
        let key = key("ks_");
        let text = key.expose();
        assert!(checksum_holds(text));
        for at in 0..text.len() {
            let mut typo = text.as_bytes().to_vec();
            typo[at] = if typo[at] == b'x' { b'y' } else { b'x' };
            assert!(!checksum_holds(&String::from_utf8(typo).expect("ASCII")), "typo at {at}");
        }
        for at in 1..text.len() {
            let mut swapped = text.as_bytes().to_vec();
            swapped.swap(at - 1, at);
            let differs = swapped != text.as_bytes();
            assert_ne!(checksum_holds(&String::from_utf8(swapped).expect("ASCII")), differs);
        }
        assert!(is_generated(text));
        assert!(!is_generated(&text[..LEN - 1]) && !is_generated(""));
        assert!(!checksum_holds(&text[1..]));
        assert!(!checksum_holds(""));
        assert!(!checksum_holds(&"é".repeat(19)));
    }
}
