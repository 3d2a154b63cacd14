//! Stored bcrypt hashes that Keystile accepts.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// A bcrypt hash that Keystile accepts. A record that was stored outside the process has only its cost and tag. `Debug`
/// prints the cost only.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash {
    text: Option<Box<str>>,
    cost: u32,
    tag: HashTag,
}

/// Identifies one stored hash without revealing it: 128 bits of its SHA-256.
///
/// A proof is valid for this tag only, so a key whose hash changes must be proven again. The salt inside the hash
/// prevents a search for the key by its tag.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashTag([u8; 16]);

/// The text is not a bcrypt hash that Keystile accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a bcrypt hash of the form $2a$, $2b$ or $2y$ with a cost of 4 to 14")]
pub struct UnacceptedHash;

impl KeyHash {
    /// The accepted costs. Below them, guessing is too cheap; above them, one proof takes seconds.
    pub const COSTS: std::ops::RangeInclusive<u32> = 4..=14;

    /// The hash in bcrypt's format. `None` where only its tag is known: then stored proofs can be used, but nothing can
    /// be proven.
    pub fn expose(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The form of the hash that is stored outside the process: its cost and tag.
    pub fn redacted(&self) -> String {
        format!("{:02}:{}", self.cost, self.tag.to_text())
    }

    /// Parses the output of [`KeyHash::redacted`].
    ///
    /// # Errors
    /// [`UnacceptedHash`] for any other text.
    pub fn parse_redacted(text: &str) -> Result<Self, UnacceptedHash> {
        let (cost, tag) = text.split_once(':').ok_or(UnacceptedHash)?;
        let cost = cost.parse().ok().filter(|cost| Self::COSTS.contains(cost)).ok_or(UnacceptedHash)?;
        Ok(Self { text: None, cost, tag: HashTag::parse(tag).ok_or(UnacceptedHash)? })
    }

    /// The cost: the number of rounds is two to this power.
    pub fn cost(&self) -> u32 {
        self.cost
    }

    /// The tag that proofs against this hash are bound to.
    pub fn tag(&self) -> HashTag {
        self.tag
    }
}

impl HashTag {
    /// A tag that no hash has, for prefixes without a hash.
    pub fn none() -> Self {
        Self([0; 16])
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

impl FromStr for KeyHash {
    type Err = UnacceptedHash;

    fn from_str(text: &str) -> Result<Self, UnacceptedHash> {
        // $2b$12$ + 22 characters of salt + 31 of hash, in bcrypt's own base 64.
        let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|version| text.strip_prefix(version));
        let Some((cost, body)) = rest.and_then(|rest| rest.split_once('$')) else {
            return Err(UnacceptedHash);
        };
        // `parse` alone would accept "+9".
        let two_digits = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
        if !two_digits || body.len() != SALT_LEN + HASH_LEN {
            return Err(UnacceptedHash);
        }
        let (salt, hash) =
            (without_spare_bits(&body[..SALT_LEN], 4)?, without_spare_bits(&body[SALT_LEN..], 2)?);
        let cost = cost.parse().map_err(|_| UnacceptedHash)?;
        if !Self::COSTS.contains(&cost) {
            return Err(UnacceptedHash);
        }
        let mut tag = [0; 16];
        tag.copy_from_slice(&Sha256::digest(text)[..16]);
        let text = format!("{}{cost:02}${salt}{hash}", &text[..4]).into();
        Ok(Self { text: Some(text), cost, tag: HashTag(tag) })
    }
}

const SALT_LEN: usize = 22;
const HASH_LEN: usize = 31;

/// Clears the unused bits of the last character: 22 characters hold 132 bits for a salt of 128 bits, and 31 hold 186
/// bits for a hash of 184 bits. Some old libraries left these bits set, and bcrypt refuses that.
fn without_spare_bits(text: &str, spare: u32) -> Result<String, UnacceptedHash> {
    const ALPHABET: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let digit = |byte: u8| ALPHABET.iter().position(|other| *other == byte).ok_or(UnacceptedHash);
    let digits = text.bytes().map(digit).collect::<Result<Vec<_>, _>>()?;
    let Some((last, rest)) = digits.split_last() else { return Err(UnacceptedHash) };
    let cleared = rest.iter().copied().chain([last >> spare << spare]);
    Ok(cleared.map(|digit| char::from(ALPHABET[digit])).collect())
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash(cost {}, ..)", self.cost)
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
            ("!".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(text.parse::<KeyHash>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn bits_that_stand_for_nothing_are_cleared() {
        let made = bcrypt::hash("secret", 4).expect("hashes");
        let set = |text: &str, at: usize, spare: &str| format!("{}{spare}{}", &text[..at], &text[at + 1..]);
        // Salt and hash end at these places; "9" has all of its bits set.
        let odd = set(&set(&made, 28, "9"), 59, "9");
        let hash: KeyHash = odd.parse().expect("accepted");
        assert!(bcrypt::verify("other", hash.expose().expect("whole")).is_ok(), "bcrypt reads it");
        let same: KeyHash = made.parse().expect("accepted");
        assert_eq!(same.expose(), Some(&*made), "a clean one stays as it is");
    }

    #[test]
    fn what_is_left_outside_the_process_has_the_tag_and_not_the_hash() {
        let hash: KeyHash = format!("$2b$10${BODY}").parse().expect("accepted");
        let text = hash.redacted();
        assert!(!text.contains(&BODY[..8]) && text.len() == 35, "{text}");
        let left = KeyHash::parse_redacted(&text).expect("read");
        assert_eq!((left.tag(), left.cost(), left.expose()), (hash.tag(), 10, None));
        for bad in ["", "10", "10:", "03:00", &text[..34], &text.to_uppercase().replace(':', "")] {
            assert!(KeyHash::parse_redacted(bad).is_err(), "{bad}");
        }
        assert!(text.parse::<KeyHash>().is_err(), "never from a database");
    }

    #[test]
    fn debug_output_shows_no_hash() {
        let hash: KeyHash = format!("$2b$10${BODY}").parse().expect("accepted");
        assert_eq!(format!("{hash:?} {:?}", hash.tag()), "KeyHash(cost 10, ..) HashTag(..)");
    }
}
