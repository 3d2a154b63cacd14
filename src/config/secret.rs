//! Secrets among the settings.

use std::{fmt, str::FromStr};

/// A secret setting. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(zeroize::Zeroizing<String>);

/// Secrets for a rotation. The first is used, and the others are still accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secrets(Vec<Secret>);

impl FromStr for Secret {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.len() < 32 {
            return Err("is shorter than 32 characters; make one with `openssl rand -hex 32`");
        }
        Ok(Self(text.to_owned().into()))
    }
}

impl FromStr for Secrets {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Secrets {
    /// The newest first, at least one.
    pub fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.0.iter()
    }
}

impl Secret {
    /// The bytes. Only the cipher may use them.
    pub fn expose(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_secrets_are_refused_and_several_are_told_apart() {
        let (new, old) = ("n".repeat(32), "o".repeat(32));
        assert!("short".parse::<Secrets>().is_err());
        assert!(format!("{new},short").parse::<Secrets>().is_err());
        let both: Secrets = format!("{new},{old}").parse().expect("two");
        assert!(both.iter().map(Secret::expose).eq([new.as_bytes(), old.as_bytes()]));
    }
}
