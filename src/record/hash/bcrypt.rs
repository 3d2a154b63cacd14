//! bcrypt hashes.

use std::{fmt, str::FromStr};

use super::UnacceptedHash;

/// A bcrypt hash that Keystile accepts. One that was stored outside the process has only its cost.
#[derive(Clone, PartialEq, Eq)]
pub struct BcryptHash {
    text: Option<Box<str>>,
    cost: u32,
}

impl BcryptHash {
    /// The accepted costs. Below them, guessing is too cheap; above them, one proof takes seconds.
    pub const COSTS: std::ops::RangeInclusive<u32> = 4..=14;

    /// The hash in bcrypt's format. `None` where only its tag is known: then stored proofs can be used, but nothing can
    /// be proven.
    pub fn expose(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The cost: the number of rounds is two to this power.
    pub fn cost(&self) -> u32 {
        self.cost
    }

    pub(super) fn without_text(cost: &str) -> Result<Self, UnacceptedHash> {
        let cost = cost.parse().ok().filter(|cost| Self::COSTS.contains(cost)).ok_or(UnacceptedHash)?;
        Ok(Self { text: None, cost })
    }
}

impl FromStr for BcryptHash {
    type Err = UnacceptedHash;

    fn from_str(text: &str) -> Result<Self, UnacceptedHash> {
        // $2b$12$ + 22 characters of salt + 31 of hash, in bcrypt's own base 64.
        let of_version =
            |version: &'static str| Some((version, text.strip_prefix(version)?.split_once('$')?));
        let found = ["$2a$", "$2b$", "$2y$"].into_iter().find_map(of_version);
        let Some((version, (cost, body))) = found else { return Err(UnacceptedHash) };
        // `parse` alone would accept "+9".
        let two_digits = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
        if !two_digits || body.len() != SALT_LEN + HASH_LEN {
            return Err(UnacceptedHash);
        }
        // A character of several bytes may lie across the end of the salt.
        let (salt, hash) = body.split_at_checked(SALT_LEN).ok_or(UnacceptedHash)?;
        let (salt, hash) = (without_spare_bits(salt, 4)?, without_spare_bits(hash, 2)?);
        let cost = cost.parse().map_err(|_| UnacceptedHash)?;
        if !Self::COSTS.contains(&cost) {
            return Err(UnacceptedHash);
        }
        let text = format!("{version}{cost:02}${salt}{hash}").into();
        Ok(Self { text: Some(text), cost })
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

impl fmt::Debug for BcryptHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BcryptHash(cost {}, ..)", self.cost)
    }
}
