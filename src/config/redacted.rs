//! Shows a URL without its secrets, even one that cannot be parsed.

/// The fix of a URL whose password cannot be told apart from its other parts.
pub(super) const PERCENT_ENCODE: &str =
    "percent-encode the password: %40 for @, %2F for /, %23 for #, %3F for ?, %25 for %";

/// Scheme, host and port of a URL; `None` where they cannot be told apart from a password.
///
/// A path of a SQLite file is shown whole. In any other text, everything up to the last `@` may be a password.
pub fn redacted(text: &str) -> Option<String> {
    if text.strip_prefix("sqlite:").is_some_and(|file| !has_password(file)) {
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

/// Whether what follows `sqlite:` has a user and a password, or is another URL, as a path is not.
pub(super) fn has_password(rest: &str) -> bool {
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let has_user =
        !rest.starts_with('/') && rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    has_user || rest.contains("://")
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
    // Without `@`, a port that is no number may be a password, and the host its user.
    let ports_are_numbers = place.split(',').all(|one| {
        let after_address = one.rsplit_once(']').map_or(one, |(_, port)| port);
        after_address.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok())
    });
    match (ports_are_numbers, before) {
        (true, _) => Some(place),
        (false, "") => None,
        (false, _) => place.split(':').next(),
    }
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
            ("postgres://app:hunter2/keys", "postgres://..."),
            ("postgres://app:p@ss/w#rd@db:5432/keys", "postgres://db:5432"),
            ("sqlite://app:hunter2@db/keys", "sqlite://db"),
            ("sqlite:///srv/a@b:c@d.db", "sqlite:///srv/a@b:c@d.db"),
            ("sqlite:///./x.db", "sqlite:///./x.db"),
        ] {
            assert_eq!(redacted(text).as_deref(), Some(shown), "{text}");
        }
        let nested = "sqlite:/postgres://app:hunter2@db/keys";
        for text in ["hunter2", "host:6379", "", "hunter2 ://host", nested] {
            assert_eq!(redacted(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn password_is_never_shown(
            url in "(postgres|mysql|redis|rediss-cluster|sqlite|http)://",
            user in "[a-z]{0,3}",
            password in "([@/#%?:\\[\\]\\\\ &=]{0,3}SECRET){1,3}[@/#%?:\\[\\]\\\\ &=]{0,3}",
            tail in "(:[0-9]{1,4}|:none)?(/[a-z]{0,4})?(\\?[a-z]{1,4}=[a-z@]{0,4})?",
        ) {
            let text = format!("{url}{user}:{password}@host{tail}");
            let shown = redacted(&text).unwrap_or_default();
            prop_assert!(!shown.contains("SECRET"), "{} for {}", shown, text);
        }
    }
}
