//! What the database says about one key and the user it belongs to, decoded.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::credential::Prefix;

#[cfg(test)]
pub(crate) mod sample;

/// `api_keys.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub i64);

/// `users.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub i64);

/// One row of `api_keys` joined with its row of `users`.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRecord {
    /// Primary key of the row.
    pub id: KeyId,
    /// What the key's owner calls it.
    pub name: Option<String>,
    /// What the row is found by.
    pub prefix: Prefix,
    /// What a credential is proven against.
    pub hash: KeyHash,
    /// False when revoked; NULL counts as false.
    pub is_active: bool,
    /// When the key stops to work.
    pub expiry: Expiry,
    /// Whose key it is.
    pub user: User,
    /// What the key may do; none means none.
    pub scopes: Vec<String>,
    /// Labels without meaning to a decision.
    pub tags: Vec<String>,
    /// Free-form JSON for the upstream, compact.
    pub permissions: Option<String>,
    /// Where and with what the key may be used.
    pub allowed: Allowed,
    /// How often the key may be used.
    pub limits: Limits,
    /// How much the key may spend.
    pub budget: Budget,
}

/// One row of `users`, as far as a decision or an upstream needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    /// Primary key of the row.
    pub id: UserId,
    /// `username`.
    pub name: Option<String>,
    /// `email`.
    pub email: Option<String>,
    /// `role`, or the name in `roles` that `role_id` points to.
    pub role: Option<String>,
    /// NULL counts as false.
    pub is_active: bool,
    /// Told to the upstream; bypasses nothing here.
    pub is_superuser: bool,
    /// Whether the account is locked, and until when.
    pub lock: Lock,
}

/// A bcrypt hash that Keystile accepts. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash {
    text: String,
    cost: u32,
    tag: HashTag,
}

/// Names one stored hash without giving it away: 128 bits of its SHA-256.
///
/// A proof holds for this tag only, so a key whose hash changes must be proven again. The salt
/// inside the hash keeps the tag from being searched for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HashTag([u8; 16]);

/// The text is no bcrypt hash that Keystile accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a bcrypt hash of the form $2a$, $2b$ or $2y$ with a cost of 4 to 14")]
pub struct UnacceptedHash;

/// When a key stops to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// NULL or `infinity`.
    Never,
    /// At this instant it is expired already.
    At(OffsetDateTime),
    /// `-infinity`.
    Always,
}

/// Whether an account is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// It is not.
    Open,
    /// Until this instant.
    Until(OffsetDateTime),
    /// Until somebody unlocks it.
    Closed,
}

/// The lists that restrict a key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    /// `allowed_models`.
    pub models: AllowList,
    /// `allowed_endpoints`.
    pub endpoints: AllowList,
    /// `allowed_ips`.
    pub ips: AllowList,
    /// `allowed_chatbots`.
    pub chatbots: AllowList,
    /// `allowed_agents`.
    pub agents: AllowList,
}

/// One restricting list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllowList {
    /// NULL, `null` or `[]`: everything.
    #[default]
    Any,
    /// These and nothing else.
    Only(Vec<String>),
    /// Not an array of strings: nothing, since nobody can tell what was meant.
    Unreadable,
}

/// Requests per window; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `rate_limit_per_minute`.
    pub minute: Option<u64>,
    /// `rate_limit_per_hour`.
    pub hour: Option<u64>,
    /// `rate_limit_per_day`.
    pub day: Option<u64>,
}

/// What a key may spend and has spent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Budget {
    /// `is_unlimited`.
    pub unlimited: Option<bool>,
    /// `budget_limit_cents`.
    pub limit_cents: Option<i64>,
    /// `budget_type`, such as `total` or `monthly`.
    pub kind: Option<String>,
    /// `total_cost`, in cents.
    pub spent_cents: Option<f64>,
}

impl KeyHash {
    /// Costs that are accepted: below, guessing is too cheap; above, one proof takes seconds.
    pub const COSTS: std::ops::RangeInclusive<u32> = 4..=14;

    /// The hash as bcrypt writes it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// Two to this power is the number of rounds.
    pub fn cost(&self) -> u32 {
        self.cost
    }

    /// What proofs against this hash are bound to.
    pub fn tag(&self) -> HashTag {
        self.tag
    }
}

impl FromStr for KeyHash {
    type Err = UnacceptedHash;

    fn from_str(text: &str) -> Result<Self, UnacceptedHash> {
        // $2b$12$ + 22 characters of salt + 31 of hash, in bcrypt's own base 64.
        let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/');
        let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|version| text.strip_prefix(version));
        let Some((cost, body)) = rest.and_then(|rest| rest.split_once('$')) else {
            return Err(UnacceptedHash);
        };
        // `parse` alone would take "+9".
        let two_digits = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
        if !two_digits || body.len() != 53 || !body.bytes().all(base64) {
            return Err(UnacceptedHash);
        }
        let cost = cost.parse().map_err(|_| UnacceptedHash)?;
        if !Self::COSTS.contains(&cost) {
            return Err(UnacceptedHash);
        }
        let mut tag = [0; 16];
        tag.copy_from_slice(&Sha256::digest(text)[..16]);
        Ok(Self { text: text.to_owned(), cost, tag: HashTag(tag) })
    }
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

impl Expiry {
    /// Whether the key has stopped to work at `now`.
    pub fn is_past(self, now: OffsetDateTime) -> bool {
        match self {
            Self::Never => false,
            Self::At(end) => now >= end,
            Self::Always => true,
        }
    }
}

impl Lock {
    /// Whether the account is locked at `now`.
    pub fn holds(self, now: OffsetDateTime) -> bool {
        match self {
            Self::Open => false,
            Self::Until(end) => now < end,
            Self::Closed => true,
        }
    }
}

impl AllowList {
    /// The entries, where there is a list of them.
    pub fn entries(&self) -> Option<&[String]> {
        match self {
            Self::Only(entries) => Some(entries),
            Self::Any | Self::Unreadable => None,
        }
    }
}

impl Allowed {
    /// The lists that nobody can read, by column.
    pub fn unreadable(&self) -> impl Iterator<Item = &'static str> {
        [
            ("allowed_models", &self.models),
            ("allowed_endpoints", &self.endpoints),
            ("allowed_ips", &self.ips),
            ("allowed_chatbots", &self.chatbots),
            ("allowed_agents", &self.agents),
        ]
        .into_iter()
        .filter(|(_, list)| **list == AllowList::Unreadable)
        .map(|(column, _)| column)
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
    fn debug_output_shows_no_hash() {
        let hash: KeyHash = format!("$2b$10${BODY}").parse().expect("accepted");
        assert_eq!(format!("{hash:?} {:?}", hash.tag()), "KeyHash(cost 10, ..) HashTag(..)");
    }
}
