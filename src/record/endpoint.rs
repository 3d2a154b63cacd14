//! Entries of `allowed_endpoints`, and the one way in which paths are compared with them.
//!
//! `[METHOD ]/path`: exact, with `*` for one whole segment and a trailing `/**` for the rest.

use std::{fmt, str::FromStr};

/// A method, or any, and a pattern of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    method: Option<String>,
    segments: Vec<Segment>,
    /// Whether at least one more segment may follow.
    open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Exactly(String),
    Any,
}

/// A path in the one spelling that patterns are compared with: absolute, without its query, with
/// nothing percent-encoded that need not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath(String);

/// The path could mean one thing here and another to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is a path that servers read in different ways")]
pub struct UnsafePath;

/// The text is no pattern of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no endpoint such as `/v1/models`, `POST /v1/chat/*` or `/v1/**`")]
pub struct NotAnEndpoint;

impl Endpoint {
    /// Whether a request for `path` by `method` is for this endpoint.
    pub fn matches(&self, method: &str, path: &NormalPath) -> bool {
        if self.method.as_deref().is_some_and(|wanted| wanted != method) {
            return false;
        }
        let mut rest = path.segments();
        let all =
            self.segments.iter().all(|segment| rest.next().is_some_and(|actual| segment.matches(actual)));
        all && (rest.next().is_some() == self.open)
    }
}

impl Segment {
    fn matches(&self, actual: &str) -> bool {
        match self {
            Self::Exactly(text) => text == actual,
            Self::Any => !actual.is_empty(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(method) = &self.method {
            write!(f, "{method} ")?;
        }
        for segment in &self.segments {
            match segment {
                Segment::Exactly(text) => write!(f, "/{text}")?,
                Segment::Any => f.write_str("/*")?,
            }
        }
        f.write_str(if self.open { "/**" } else { "" })
    }
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let (method, path) = match text.split_once(' ') {
            Some((method, path)) => (Some(method), path),
            None => (None, text),
        };
        if method
            .is_some_and(|method| method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()))
        {
            return Err(NotAnEndpoint);
        }
        let (path, open) = match path.strip_suffix("/**") {
            Some("") => {
                return Ok(Self { method: method.map(str::to_owned), segments: Vec::new(), open: true });
            }
            Some(path) => (path, true),
            None => (path, false),
        };
        // Neither would ever match: paths are compared without their query, and have no empty segment
        // that another follows.
        if path.contains('?') || (open && path.ends_with('/')) {
            return Err(NotAnEndpoint);
        }
        let path = NormalPath::parse(path).map_err(|UnsafePath| NotAnEndpoint)?;
        let segments = path.segments().map(segment).collect::<Result<_, _>>()?;
        Ok(Self { method: method.map(str::to_owned), segments, open })
    }
}

/// `*` is a wildcard only as a whole segment; elsewhere its author meant something that it is not.
fn segment(text: &str) -> Result<Segment, NotAnEndpoint> {
    match text {
        "*" => Ok(Segment::Any),
        text if text.contains('*') => Err(NotAnEndpoint),
        text => Ok(Segment::Exactly(text.to_owned())),
    }
}

impl NormalPath {
    /// Reads the path of a request; a query is left off.
    ///
    /// # Errors
    /// [`UnsafePath`] for what servers are known to disagree about: dot segments, empty segments,
    /// `;` parameters, backslashes, and encoded separators, dots, controls or percent signs.
    pub fn parse(path: &str) -> Result<Self, UnsafePath> {
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let mut normal = String::with_capacity(path.len());
        let mut bytes = path.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => push_encoded(&mut normal, bytes.next(), bytes.next())?,
                b'\\' | b';' | b'#' => return Err(UnsafePath),
                byte if byte.is_ascii_graphic() => normal.push(byte.into()),
                _ => return Err(UnsafePath),
            }
        }
        let Some(inner) = normal.strip_prefix('/') else { return Err(UnsafePath) };
        let last = inner.split('/').count() - 1;
        let odd = |(at, segment): (usize, &str)| {
            matches!(segment, "." | "..") || (segment.is_empty() && at != last)
        };
        match inner.split('/').enumerate().any(odd) {
            true => Err(UnsafePath),
            false => Ok(Self(normal)),
        }
    }

    /// What is between the slashes; the last is empty when the path ends in one.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0[1..].split('/')
    }
}

/// `%41` is `A` (RFC 3986, section 6.2.2.2); what must stay encoded does, in upper case.
fn push_encoded(normal: &mut String, high: Option<u8>, low: Option<u8>) -> Result<(), UnsafePath> {
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
    let (Some(high), Some(low)) = (digit(high), digit(low)) else { return Err(UnsafePath) };
    let byte = u8::try_from(high * 16 + low).map_err(|_| UnsafePath)?;
    match byte {
        b'/' | b'\\' | b';' | b'%' => Err(UnsafePath),
        byte if byte.is_ascii_control() => Err(UnsafePath),
        byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
            normal.push(byte.into());
            Ok(())
        }
        byte => {
            normal.push_str(&format!("%{byte:02X}"));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(endpoint: &str, method: &str, path: &str) -> bool {
        let endpoint: Endpoint = endpoint.parse().expect("an endpoint");
        NormalPath::parse(path).is_ok_and(|path| endpoint.matches(method, &path))
    }

    #[test]
    fn patterns_match_whole_paths() {
        for (endpoint, path, expected) in [
            ("/v1/models", "/v1/models", true),
            ("/v1/models", "/v1/models?limit=1", true),
            ("/v1/models", "/v1/models/", false),
            ("/v1/models", "/v1/models/a", false),
            ("/v1/models", "/v1/Models", false),
            ("/v1/models", "/v1/%6dodels", true),
            ("/v1/*/files", "/v1/a/files", true),
            ("/v1/*/files", "/v1/a/b/files", false),
            ("/v1/*", "/v1/", false),
            ("/v1/**", "/v1/a", true),
            ("/v1/**", "/v1/a/b/c", true),
            ("/v1/**", "/v1", false),
            ("/v1/**", "/v10/a", false),
            ("/v1/**", "/v1/../admin", false),
            ("/v1/**", "/v1/%2e%2e/admin", false),
            ("/**", "/", true),
            ("/**", "/a/b", true),
            ("/", "/", true),
            ("/", "/a", false),
            ("/a%20b", "/a%20b", true),
            ("/a%c3%a9", "/a%C3%A9", true),
        ] {
            assert_eq!(matches(endpoint, "GET", path), expected, "{endpoint} for {path}");
        }
    }

    #[test]
    fn method_is_compared_when_there_is_one() {
        assert!(matches("POST /v1/chat/*", "POST", "/v1/chat/completions"));
        assert!(!matches("POST /v1/chat/*", "GET", "/v1/chat/completions"));
        assert!(!matches("POST /v1/chat/*", "post", "/v1/chat/completions"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "",
            "v1/models",
            "/v1/mod*",
            "/v1/**/files",
            "/**/files",
            "post /v1",
            " /v1",
            "GET  /v1",
            "GET",
            "/a?b=c",
            "/v1/../admin",
            "//v1",
            "/v1//a",
            "//**",
            "/v1//**",
            "/a;b",
            "/a#b",
            "/v1/%zz",
            "GET,POST /v1",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(NotAnEndpoint), "{text:?}");
        }
    }

    #[test]
    fn path_that_servers_read_in_different_ways_is_refused() {
        for path in [
            "",
            "*",
            "a",
            "//",
            "//a",
            "/a//b",
            "/.",
            "/..",
            "/a/./b",
            "/a/..",
            "/%2e",
            "/a/%2E%2e/b",
            "/.%2e/",
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/a;b",
            "/a%3bb",
            "/a%00",
            "/a\u{0}",
            "/a%0a",
            "/a%25",
            "/a%",
            "/a%4",
            "/a%zz",
            "/a b",
            "/\u{e9}",
            "/a#b",
            "http://host/a",
        ] {
            assert_eq!(NormalPath::parse(path), Err(UnsafePath), "{path:?}");
        }
        for path in ["/", "/a", "/a/", "/a/...", "/.a", "/a..b", "/a=b&c", "/a%20b", "/@:+,"] {
            assert!(NormalPath::parse(path).is_ok(), "{path:?}");
        }
    }

    /// The slow, obvious way: recursion over lists of segments.
    fn reference(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            (["**"], [_, ..]) => true,
            (["*", pattern @ ..], [first, path @ ..]) => !first.is_empty() && reference(pattern, path),
            ([wanted, pattern @ ..], [first, path @ ..]) => wanted == first && reference(pattern, path),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(
            pattern in proptest::collection::vec("[ab]|\\*", 1..4),
            open: bool,
            path in proptest::collection::vec("[ab]", 0..5),
            slash: bool,
        ) {
            let mut pattern = pattern;
            if open {
                pattern.push("**".into());
            }
            let mut path = path;
            if slash || path.is_empty() {
                path.push(String::new());
            }
            let text = format!("/{}", pattern.join("/"));
            let (pattern, segments): (Vec<_>, Vec<_>) =
                (pattern.iter().map(String::as_str).collect(), path.iter().map(String::as_str).collect());
            let expected = reference(&pattern, &segments);
            prop_assert_eq!(matches(&text, "GET", &format!("/{}", path.join("/"))), expected);
        }

        #[test]
        fn normalising_twice_changes_nothing_and_any_text_is_safe(path in "/?[ -~]{0,40}") {
            if let Ok(once) = NormalPath::parse(&path) {
                let twice = NormalPath::parse(&once.0);
                prop_assert_eq!(twice.as_ref(), Ok(&once));
                prop_assert!(once.segments().all(|segment| segment != "." && segment != ".."));
            }
            let _ = path.parse::<Endpoint>();
        }
    }
}
