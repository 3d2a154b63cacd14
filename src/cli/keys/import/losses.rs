//! What an import cannot carry over, by name and count.

use std::collections::BTreeMap;

/// Losses of one file. Those that restrict keys are apart.
#[derive(Debug, Clone, Default)]
pub(super) struct Losses {
    restrictions: BTreeMap<String, u64>,
    others: BTreeMap<String, u64>,
}

/// Names are other people's text.
const MAX_NAME: usize = 60;

/// Names of fields are shorter than keys.
const MAX_FIELD: usize = 28;

impl Losses {
    /// Counts a restriction that is lost.
    pub(super) fn restriction(&mut self, name: impl Into<String>) {
        *self.restrictions.entry(name.into()).or_default() += 1;
    }

    /// Counts something else that is lost.
    pub(super) fn note(&mut self, name: impl Into<String>) {
        self.note_times(name, 1);
    }

    /// The same, several times.
    pub(super) fn note_times(&mut self, name: impl Into<String>, count: u64) {
        *self.others.entry(name.into()).or_default() += count;
    }

    /// Whether a restriction is lost.
    pub(super) fn restricts(&self) -> bool {
        !self.restrictions.is_empty()
    }

    /// The restrictions, one a line.
    pub(super) fn restrictions(&self) -> String {
        lines(self.restrictions.iter())
    }

    /// Everything, one a line.
    pub(super) fn all(&self) -> String {
        lines(self.restrictions.iter().chain(&self.others))
    }
}

/// A name from a file, as it is shown.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(MAX_NAME).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The name of a field or column, as it is shown. In a file without a header, or with shifted columns, a name may be a
/// key or a hash.
pub(super) fn shown_field(name: &str) -> String {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-. ".contains(&byte);
    if name.len() <= MAX_FIELD && name.bytes().all(is_name) {
        return name.to_owned();
    }
    format!("(a name of {} characters, not shown, since it may be a secret)", name.chars().count())
}

fn lines<'a>(losses: impl Iterator<Item = (&'a String, &'a u64)>) -> String {
    losses.map(|(name, count)| format!("  {name} ({count})")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_is_shown_unless_it_may_be_a_key_or_a_hash() {
        for name in ["rate_limit_per_minute", "keyauth_enc_credentials", "Name", ""] {
            assert_eq!(shown_field(name), name);
        }
        let hash = "$2b$04$6q9BoBmFnzUHBXzeU2EI8e8EzfrzE6oitM6WpEA.O897CcJpI2bkG";
        for secret in ["mPWlQmYyMUxYdWEdpUbWmqMKYNJXQEiN", hash, &hash[..20]] {
            assert!(!shown_field(secret).contains(&secret[..8]), "{secret}");
        }
    }
}
