//! The normal form in which paths are compared with the allowed paths.

/// A path in the normal form that patterns are compared with: absolute, without its query, and percent-encoded only
/// where that is necessary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NormalPath(String);

/// The upstream could read the path in another way than Keystile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is a path that servers read in different ways")]
pub struct UnsafePath;

impl NormalPath {
    /// Parses the path of a request. A query is removed.
    ///
    /// # Errors
    /// [`UnsafePath`] for paths that servers are known to read in different ways: dot segments, empty segments, `;`
    /// parameters, backslashes, and encoded separators, dots, controls or percent signs.
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
        if inner.split('/').enumerate().any(odd) { Err(UnsafePath) } else { Ok(Self(normal)) }
    }

    /// The segments between the slashes. The last one is empty if the path ends with a slash.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.strip_prefix('/').unwrap_or_default().split('/')
    }
}

/// Decodes `%41` to `A` (RFC 3986, section 6.2.2.2). Characters that must stay encoded are written in upper case.
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

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(path in "/?[ -~]{0,40}") {
            if let Ok(once) = NormalPath::parse(&path) {
                let twice = NormalPath::parse(&once.0);
                prop_assert_eq!(twice.as_ref(), Ok(&once));
                prop_assert!(once.segments().all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
