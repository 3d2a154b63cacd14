//! The page that callers of a rotated key are pointed to.

use std::{fmt, str::FromStr, sync::Arc};

/// An absolute URL that can stand in a `Link` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotationLink(Arc<str>);

impl RotationLink {
    /// The URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RotationLink {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "is not a URL such as https://example.com/rotation, of visible ASCII without < > and \"";
        let after = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or(FORM)?;
        let allowed = |byte: u8| byte.is_ascii_graphic() && !b"<>\"\\^`{|}".contains(&byte);
        if !text.bytes().all(allowed) || after.is_empty() || after.starts_with(['/', '?', '#']) {
            return Err(FORM);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for RotationLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_an_absolute_url_that_ends_no_header() {
        for good in ["https://example.com/docs?a=b#rotation", "http://localhost:8080"] {
            assert!(good.parse::<RotationLink>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "docs",
            "/docs",
            "https://",
            "https:///docs",
            "ftp://a",
            "https://a>; rel=x",
            "https://a\r\nx: y",
            "https://ä",
        ] {
            assert!(bad.parse::<RotationLink>().is_err(), "{bad}");
        }
    }
}
