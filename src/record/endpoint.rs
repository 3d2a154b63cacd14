//! Entries of `allowed_endpoints`.
//!
//! `[METHOD ]/path`: an exact path. `*` stands for one whole segment, and a trailing `/**` for the rest of the path.

use std::{fmt, str::FromStr};

use super::path::{NormalPath, UnsafePath};

/// A method, or any method, and a pattern of a path.
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

/// The text is not a pattern of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an endpoint such as `/v1/models`, `POST /v1/chat/*` or `/v1/**`")]
pub struct NotAnEndpoint;

impl Endpoint {
    /// Whether a request for `path` with `method` is for this endpoint.
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
        // Neither of these would ever match: paths are compared without their query, and only the last segment may be
        // empty.
        if path.contains('?') || (open && path.ends_with('/')) {
            return Err(NotAnEndpoint);
        }
        let path = NormalPath::parse(path).map_err(|UnsafePath| NotAnEndpoint)?;
        let segments = path.segments().map(segment).collect::<Result<_, _>>()?;
        Ok(Self { method: method.map(str::to_owned), segments, open })
    }
}

/// `*` is a wildcard only as a whole segment. Elsewhere its author expected a meaning that it does not have.
fn segment(text: &str) -> Result<Segment, NotAnEndpoint> {
    match text {
        "*" => Ok(Segment::Any),
        text if text.contains('*') => Err(NotAnEndpoint),
        text => Ok(Segment::Exactly(text.to_owned())),
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

    /// The slow, obvious algorithm: recursion over lists of segments.
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
    }
}
