//! Paths as the most lenient server reads them. The endpoints of a budget restrict, so no other spelling of a path may
//! avoid the budget.

use percent_encoding::percent_decode_str;

use super::path::{NormalPath, UnsafePath};

/// A path without the differences that some server ignores: percent-encoding, letter case, spaces and dots around a
/// segment, and slashes at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoosePath(Vec<String>);

impl LoosePath {
    /// Parses an absolute path. A query is removed.
    ///
    /// # Errors
    /// [`UnsafePath`] if [`NormalPath`] refuses the path, or if a decoded segment has a `?` or `#`, or an inner segment
    /// is empty.
    pub fn parse(path: &str) -> Result<Self, UnsafePath> {
        let normal = NormalPath::parse(path)?;
        let mut segments: Vec<_> = normal.segments().map(fold).collect::<Result<_, _>>()?;
        while segments.last().is_some_and(String::is_empty) {
            segments.pop();
        }
        if segments.iter().any(String::is_empty) { Err(UnsafePath) } else { Ok(Self(segments)) }
    }

    /// Whether the last segments of this path are those of `other`.
    pub fn ends_with(&self, other: &Self) -> bool {
        self.0.ends_with(&other.0)
    }
}

fn fold(segment: &str) -> Result<String, UnsafePath> {
    let decoded = percent_decode_str(segment).decode_utf8_lossy();
    if decoded.contains(['?', '#']) {
        return Err(UnsafePath);
    }
    // Both conversions are needed, because some letters have only one case: the Kelvin sign is a `k` in lower case.
    let folded = decoded.to_uppercase().to_lowercase().replace('+', " ");
    Ok(folded.trim_matches(|c: char| c.is_whitespace() || c == '.').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loose(path: &str) -> LoosePath {
        LoosePath::parse(path).expect(path)
    }

    #[test]
    fn spellings_of_one_path_are_one() {
        let path = loose("/v1/chat/completions");
        for same in [
            "/V1/Chat/COMPLETIONS",
            "/v1/chat/completions/",
            "/v1/chat/completions?x=/v2",
            "/v1/chat/completions%20",
            "/v1/chat/completions+",
            "/v1/chat/completions.",
            "/v1/chat/completions/%20",
            "/v1/%63hat/completions",
            "/v1/chat/comple%54ions",
            "/v1/chat%C2%A0/completions",
        ] {
            assert_eq!(loose(same), path, "{same}");
        }
        assert_eq!(loose("/%E2%84%AAey"), loose("/key"), "the Kelvin sign");
        assert_eq!(loose("/me%C5%BFsages"), loose("/messages"), "the long s");
        for other in [
            "/",
            "/v1/chat",
            "/v1/chat/completion",
            "/v1/chat-completions",
            "/chat/completions",
            "/v1/chat/completions/x",
        ] {
            assert_ne!(loose(other), path, "{other}");
        }
        for unsafe_path in [
            "",
            "v1",
            "/v1//chat",
            "/v1/%20/chat",
            "/v1/chat%3fx",
            "/v1/chat%23",
            "/v1/../chat",
            "/v1/chat;x",
            "/v1%2fchat",
        ] {
            assert_eq!(LoosePath::parse(unsafe_path), Err(UnsafePath), "{unsafe_path:?}");
        }
    }

    #[test]
    fn path_ends_with_whole_segments() {
        for (path, end, expected) in [
            ("/v1/chat/completions", "/chat/completions", true),
            ("/v1/chat/completions/", "/Chat/completions", true),
            ("/chat/completions", "/chat/completions", true),
            ("/completions", "/chat/completions", false),
            ("/v1/livechat/completions", "/chat/completions", false),
            ("/v1/chat/completions/x", "/chat/completions", false),
        ] {
            assert_eq!(loose(path).ends_with(&loose(end)), expected, "{path} {end}");
        }
    }

    /// One character: unchanged, in the other case, or percent-encoded in either case.
    fn spelled(c: char, how: u8) -> String {
        let other = if how & 1 == 0 { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
        match how & 6 {
            0 => c.to_string(),
            2 => other.to_string(),
            4 => format!("%{:02x}", other as u32),
            _ => format!("%{:02X}", c as u32),
        }
    }

    proptest! {
        #[test]
        fn no_spelling_is_another_path(
            segments in proptest::collection::vec("[a-z0-9_-]{1,6}", 1..5),
            how in proptest::collection::vec(any::<u8>(), 40),
            end in proptest::sample::select(&["", "/", "%20", "/%20/", ".", "+", "?a=b"][..]),
            stranger in "/[a-z]{1,3}",
        ) {
            let path = format!("/{}", segments.join("/"));
            let spell = |(at, c)| if c == '/' { "/".to_owned() } else { spelled(c, how[at]) };
            let other: String = path.chars().enumerate().map(spell).collect();
            prop_assert_eq!(loose(&format!("{other}{end}")), loose(&path));
            prop_assert_ne!(loose(&format!("{other}{stranger}{end}")), loose(&path));
        }
    }
}
