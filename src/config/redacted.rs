//! Shows a URL without its secrets, even one that cannot be parsed.

/// Scheme, host and port of a URL; `None` where they cannot be told apart from a password.
///
/// A path of a SQLite file is shown whole. In any other text, everything up to the last `@` may be a password.
pub fn redacted(text: &str) -> Option<String> {
    if text.starts_with("sqlite:") {
        return Some(text.to_owned());
    }
    let (scheme, rest) = text.split_once("://")?;
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
        return None;
    }
    let shown = place(rest).unwrap_or("...");
    Some(format!("{scheme}://{shown}"))
}

/// Host and port.
fn place(rest: &str) -> Option<&str> {
    let (before, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    // The `@` may belong to a value of the query, and what precedes it to a password.
    if before.contains('?') {
        return None;
    }
    let place = place.split(['/', '?', '#']).next().unwrap_or_default();
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._,:[]%".contains(&byte);
    if !place.bytes().all(is_host) {
        return None;
    }
    // Without `@`, a port that is no number may be a password whose `@` is missing.
    let ports_are_numbers = place.split(',').all(|one| {
        let after_address = one.rsplit_once(']').map_or(one, |(_, port)| port);
        after_address.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok())
    });
    if ports_are_numbers { Some(place) } else { place.split(':').next() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scheme_host_and_port_are_shown_and_nothing_else() {
        for (text, shown) in [
            ("postgres://app:hunter2@db.internal:5432/keys?sslmode=off", "postgres://db.internal:5432"),
            ("postgres://app:hunter2@h1:1,[::1]:2/keys", "postgres://h1:1,[::1]:2"),
            ("postgres://app:hunter2@host:notaport/keys", "postgres://host"),
            ("mysql://host/keys", "mysql://host"),
            ("http://app:hunt@er2@cache:6379", "http://cache:6379"),
            ("postgres://app:hunt/er2@host", "postgres://host"),
            ("postgres://app:hunt?er2@host", "postgres://..."),
            ("postgres://host/keys?password=hunt@er2", "postgres://..."),
            ("postgres://app:hunter2/keys", "postgres://app"),
            ("sqlite:///./x.db", "sqlite:///./x.db"),
        ] {
            assert_eq!(redacted(text).as_deref(), Some(shown), "{text}");
        }
        for text in ["hunter2", "host:6379", "", "hunter2 ://host"] {
            assert_eq!(redacted(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn password_is_never_shown(
            before in "[a-z:/?#%]{0,8}",
            after in "[a-z/?#%@=]{0,8}",
            tail in "(:[0-9]{1,4})?(/[a-z]{0,4})?(\\?[a-z]{1,4}=[a-z@]{0,4})?",
        ) {
            let text = format!("postgres://u:{before}SECRET{after}@host{tail}");
            let shown = redacted(&text).unwrap_or_default();
            prop_assert!(!shown.contains("SECRET"), "{} for {}", shown, text);
        }
    }
}
