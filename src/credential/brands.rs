//! How API keys begin. A token that begins otherwise is somebody else's: foreign.
//!
//! A foreign token reaches the upstream, which may read keys more leniently than Keystile. So no token that holds a
//! brand in another place or spelling is foreign.

use std::{borrow::Cow, str::FromStr};

use data_encoding::BASE64URL_NOPAD;
use percent_encoding::percent_decode;
use serde::Deserialize;

use super::MalformedCredential;

/// What every API key of an issuer begins with, such as `en_`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyBrand(Box<[u8]>);

/// The brands of all API keys. Where there is none, each token may be a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyBrands(Vec<KeyBrand>);

/// Whose a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// It may be an API key.
    Key,
    /// It is no API key in any spelling.
    Foreign,
}

/// The text cannot be a brand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a brand: write the first {} to {} characters of every API key, such as en_, in visible ASCII without a \
     comma or a percent sign",
    KeyBrand::MIN_LEN,
    KeyBrand::MAX_LEN
)]
pub struct InvalidKeyBrand;

/// How often a token is decoded. A token that could be decoded further is malformed.
const DECODINGS: usize = 2;

impl KeyBrand {
    /// Tokens of other issuers hold a shorter brand by chance.
    pub const MIN_LEN: usize = 2;
    /// A longer one leaves too little of a key for its secret.
    pub const MAX_LEN: usize = 32;

    fn begins(&self, text: &[u8]) -> bool {
        text.get(..self.0.len()).is_some_and(|start| start.eq_ignore_ascii_case(&self.0))
    }

    fn is_in(&self, text: &[u8]) -> bool {
        text.windows(self.0.len()).any(|part| part.eq_ignore_ascii_case(&self.0))
    }
}

impl FromStr for KeyBrand {
    type Err = InvalidKeyBrand;

    fn from_str(text: &str) -> Result<Self, InvalidKeyBrand> {
        let allowed = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'%');
        if (Self::MIN_LEN..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.as_bytes().into()))
        } else {
            Err(InvalidKeyBrand)
        }
    }
}

impl KeyBrands {
    /// Takes the brands of all API keys.
    pub fn new(brands: Vec<KeyBrand>) -> Self {
        Self(brands)
    }

    /// Whether each token may be a key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose this token is.
    ///
    /// # Errors
    /// [`MalformedCredential`] if it is no key, but something that reads it leniently could find one in it.
    pub fn kind(&self, token: &[u8]) -> Result<TokenKind, MalformedCredential> {
        if self.is_empty() || self.0.iter().any(|brand| token.starts_with(&brand.0)) {
            return Ok(TokenKind::Key);
        }
        if self.is_foreign(token) { Ok(TokenKind::Foreign) } else { Err(MalformedCredential) }
    }

    /// Whether this is one token in which no key can be found.
    pub fn is_foreign(&self, token: &[u8]) -> bool {
        self.is_free_of_brands(token) || self.is_jwt_with_brands_by_chance(token)
    }

    /// Whether this is one token that holds no brand, also after decoding and in any case.
    fn is_free_of_brands(&self, token: &[u8]) -> bool {
        let mut spelling = Cow::Borrowed(token);
        for _ in 0..=DECODINGS {
            if !is_one_token(&spelling) || self.0.iter().any(|brand| brand.is_in(&spelling)) {
                return false;
            }
            let decoded: Vec<u8> = percent_decode(&spelling).collect();
            if decoded.len() == spelling.len() {
                return true;
            }
            spelling = decoded.into();
        }
        false
    }

    /// Whether this is a JWT that holds brands only inside its parts. The base64url of a signature has a short brand by
    /// chance: `en_`, in any case, is in one of two hundred RSA signatures.
    fn is_jwt_with_brands_by_chance(&self, token: &[u8]) -> bool {
        let begins_part = |at| at == 0 || token[at - 1] == b'.';
        let has_brand_at = |at| self.0.iter().any(|brand| brand.begins(&token[at..]));
        is_jwt(token) && !(0..token.len()).any(|at| begins_part(at) && has_brand_at(at))
    }
}

/// Whether this is visible ASCII without a comma. Servers differ in what else separates two tokens.
fn is_one_token(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',')
}

/// Whether this is a signed or encrypted JWT (RFC 7515 and 7516, compact form): parts in base64url, of which the first
/// is a JSON object that names an algorithm.
fn is_jwt(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Header<'a> {
        #[serde(rename = "alg", borrow)]
        _alg: Cow<'a, str>,
    }
    let in_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let header = jwt_parts(text).next().and_then(|header| BASE64URL_NOPAD.decode(header).ok());
    matches!(jwt_parts(text).count(), 3 | 5)
        && jwt_parts(text).all(|part| part.iter().all(in_base64url))
        && header.is_some_and(|header| serde_json::from_slice::<Header<'_>>(&header).is_ok())
}

fn jwt_parts(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";

    fn brands(brands: &[&str]) -> KeyBrands {
        KeyBrands::new(brands.iter().map(|brand| brand.parse().expect("a brand")).collect())
    }

    fn kind(token: &str) -> Result<TokenKind, MalformedCredential> {
        brands(&["en_", "ks-live."]).kind(token.as_bytes())
    }

    #[test]
    fn without_brands_each_token_may_be_a_key() {
        for token in ["en_abcdefgh", HEADER, "a b", "\u{e9}"] {
            assert_eq!(KeyBrands::default().kind(token.as_bytes()), Ok(TokenKind::Key));
        }
    }

    #[test]
    fn key_begins_with_a_brand_in_its_own_case() {
        for token in ["en_", "en_abcdefgh", "ks-live.x", "en_%65n_", "en_a,en_b"] {
            assert_eq!(kind(token), Ok(TokenKind::Key), "{token}");
        }
    }

    #[test]
    fn other_tokens_are_foreign() {
        for token in [
            "eyJhbGciOiJIUzI1NiJ9.e30.c2ln",
            "sk-ant-api03-abc",
            "1|sanctumtoken",
            "user:pass",
            "0b8f5a",
            "en-abcdefgh",
            "en",
            "abc%2Fdef",
            "abc%252Fdef",
            "100%",
            "%zz",
            "==",
        ] {
            assert_eq!(kind(token), Ok(TokenKind::Foreign), "{token}");
        }
    }

    #[test]
    fn token_with_a_brand_in_another_place_or_spelling_is_malformed() {
        for token in [
            "xen_abcdefgh",
            "\"en_abcdefgh\"",
            "Beareren_abcdefgh",
            "token=en_abcdefgh",
            "EN_abcdefgh",
            "eN_abcdefgh",
            "KS-LIVE.abcdefgh",
            "%65n_abcdefgh",
            "%45N_abcdefgh",
            "en%5Fabcdefgh",
            "en%5fabcdefgh",
            "%2565n_abcdefgh",
            "%25%36%35n_abcdefgh",
            "%252565n_abcdefgh",
            "%25252565n_abcdefgh",
        ] {
            assert_eq!(kind(token), Err(MalformedCredential), "{token}");
        }
    }

    #[test]
    fn more_than_one_token_is_malformed() {
        for token in
            ["a b", "a,b", "a\tb", "a%20b", "a%2Cb", "a%00b", "a\u{a0}b", "a%C2%A0b", "a%E2%84%AAb", "a\n"]
        {
            assert_eq!(kind(token), Err(MalformedCredential), "{token:?}");
        }
    }

    #[test]
    fn characters_of_a_brand_inside_a_part_of_a_jwt_are_chance() {
        for token in [
            format!("{HEADER}.e30.abcen_def"),
            format!("{HEADER}.e30.abcEN_def"),
            format!("{HEADER}.xen_.e30.e30.c2ln"),
        ] {
            assert_eq!(kind(&token), Ok(TokenKind::Foreign), "{token}");
        }
        for token in [
            format!("{HEADER}.e30.en_abcdefgh"),
            format!("{HEADER}.En_abcdefgh.c2ln"),
            format!("{HEADER}.ks-live.c2ln"),
            format!("{HEADER}.xen_"),
            format!("{HEADER}.e30.ab.xen_"),
            format!("{HEADER}.e30.\"xen_"),
            format!("{HEADER}.e30.x%65n_"),
            // The first part is not JSON, or names no algorithm.
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ.e30.xen_".to_owned(),
            "e30.e30.xen_".to_owned(),
            "xen_.e30.c2ln".to_owned(),
        ] {
            assert_eq!(kind(&token), Err(MalformedCredential), "{token}");
        }
    }

    #[test]
    fn brands_are_short_visible_ascii() {
        for bad in ["", "e", "a b_", "\u{e9}_", "en%", "a,b", &"k".repeat(33)] {
            assert_eq!(bad.parse::<KeyBrand>(), Err(InvalidKeyBrand), "{bad}");
        }
        assert!("sk".parse::<KeyBrand>().is_ok() && "k".repeat(32).parse::<KeyBrand>().is_ok());
    }

    /// The ways in which a lenient server may come from a header to a key.
    fn lenient_readings(token: &str) -> Vec<String> {
        let decode = |text: &str| percent_decode(text.as_bytes()).decode_utf8_lossy().into_owned();
        let (once, twice) = (decode(token), decode(&decode(token)));
        let mut readings = vec![token.to_owned(), once, twice];
        let separators = [' ', ',', ';', '=', ':', '"', '\'', '.', '|', '\u{a0}', '\t'];
        let words: Vec<_> =
            readings.iter().flat_map(|text| text.split(separators)).map(str::to_owned).collect();
        readings.extend(words);
        let replaced: Vec<_> = readings
            .iter()
            .flat_map(|text| [text.replace("Bearer", ""), text.to_lowercase(), text.trim().to_owned()])
            .collect();
        readings.extend(replaced);
        readings
    }

    proptest! {
        /// Whatever surrounds a key, and however it is written.
        #[test]
        fn no_lenient_reading_of_a_foreign_token_is_a_key(
            before in "([!-~]{0,6}|Bearer|eyJhbGciOiJub25lIn0\\.e30\\.|%25|%[0-7][0-9a-f])",
            brand in "(en_|En_|%65n_|e%6E_|en%5f|%2565n_|en)",
            after in "([a-zA-Z0-9]{0,12}|[ -~]{0,6})",
        ) {
            let token = format!("{before}{brand}{after}");
            if kind(&token) == Ok(TokenKind::Foreign) {
                for reading in lenient_readings(&token) {
                    prop_assert!(!reading.starts_with("en_"), "{token} is read as {reading}");
                }
            }
        }

        /// A user would otherwise be denied now and then, until the next login.
        #[test]
        fn real_jwt_is_foreign(signature in proptest::collection::vec(any::<u8>(), 32..512)) {
            let token = format!("{HEADER}.e30.{}", BASE64URL_NOPAD.encode(&signature));
            prop_assume!(!token.rsplit('.').next().is_some_and(|part| part.to_lowercase().starts_with("en_")));
            prop_assert_eq!(kind(&token), Ok(TokenKind::Foreign));
        }
    }
}
