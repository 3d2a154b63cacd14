//! A Postgres URL, read as libpq reads it: its parts are parameters, and a later one replaces an earlier one.

use std::{collections::BTreeMap, fmt, str::FromStr};

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::redacted::PERCENT_ENCODE;

/// A Postgres URL. Its `Debug` and `Display` show hosts, ports and the database's name. It is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// By libpq's name. None is empty.
    parameters: BTreeMap<String, Zeroizing<String>>,
}

impl PostgresUrl {
    /// A parameter that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(|value| value.as_str())
    }

    /// Sets a parameter.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.parameters.insert(name.to_owned(), value.to_owned().into());
    }

    /// All parameters, by name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromStr for PostgresUrl {
    /// Names the wrong part and does not show it: a password with an unescaped `/` is read as a host.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or("does not begin with postgres://")?;
        if is_ambiguous(rest) {
            return Err(format!("has an `@` that may belong to the password; {PERCENT_ENCODE}"));
        }
        let mut parameters = BTreeMap::new();
        let rest = match rest.split_once('@') {
            Some((login, rest)) if !login.contains('/') => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                parameters.insert("user".to_owned(), decode(user, "the user")?);
                parameters.insert("password".to_owned(), decode(password, "the password")?);
                rest
            }
            _ => rest,
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
        let (hosts, ports) = split_hosts(hosts)?;
        parameters.insert("host".to_owned(), decode(&hosts, "the host")?);
        parameters.insert("port".to_owned(), decode(&ports, "the port")?);
        parameters.insert("dbname".to_owned(), decode(database, "the database's name")?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or("has a parameter without `=`")?;
            let (name, value) = (decode(name, "a parameter's name")?, decode(value, "a parameter's value")?);
            match (name.as_str(), value.as_str()) {
                // As JDBC writes it; libpq understands that.
                ("ssl", "true") => parameters.insert("sslmode".to_owned(), "require".to_owned().into()),
                _ => parameters.insert(name.to_string(), value),
            };
        }
        parameters.retain(|_, value| !value.is_empty());
        Ok(Self { parameters })
    }
}

/// Whether part of the password may be read as another part, which would be shown. libpq would accept some of these.
fn is_ambiguous(rest: &str) -> bool {
    let Some((user, after)) = rest.split_once('@') else { return false };
    let is_query = user.split_once('?').is_some_and(|(_, query)| query.contains('='));
    user.contains('/') || is_query || after.contains('@')
}

const UNCLOSED: &str = "has a `[` that does not stand around an IPv6 address";

/// The hosts of `h1:1,[::2]:2,h3`, and their ports, each list by comma.
fn split_hosts(text: &str) -> Result<(String, String), String> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for one in text.split(',') {
        let (host, port) = match one.strip_prefix('[').map(|rest| rest.split_once(']')) {
            Some(Some((address, ""))) => (address, ""),
            Some(Some((address, port))) => match port.strip_prefix(':') {
                Some(port) => (address, port),
                None => return Err(UNCLOSED.into()),
            },
            Some(None) => return Err(UNCLOSED.into()),
            None => one.split_once(':').unwrap_or((one, "")),
        };
        if !port.is_empty() && port.parse::<u16>().is_err() {
            return Err(format!(
                "has a port that is no number; if it is part of the password, {PERCENT_ENCODE}"
            ));
        }
        hosts.push(host);
        ports.push(port);
    }
    let is_empty = |list: &[&str]| list.iter().all(|item| item.is_empty());
    let join = |list: Vec<&str>| if is_empty(&list) { String::new() } else { list.join(",") };
    Ok((join(hosts), join(ports)))
}

fn decode(text: &str, part: &str) -> Result<Zeroizing<String>, String> {
    let decoded =
        percent_decode_str(text).decode_utf8().map_err(|_| format!("has {part} that is not UTF-8"))?;
    let hex = |at: usize| {
        text.as_bytes().get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    if !text.match_indices('%').all(|(at, _)| hex(at)) || decoded.contains('\0') {
        let fix = "a `%` that does not begin an escape; write %25 for %, and percent-encode the password";
        return Err(format!("has {part} with {fix}"));
    }
    Ok(decoded.into_owned().into())
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.get("host").or_else(|| self.get("hostaddr")).unwrap_or("local socket");
        let mut ports = self.get("port").unwrap_or_default().split(',').cycle();
        f.write_str("postgres://")?;
        for (n, (host, port)) in hosts.split(',').zip(&mut ports).enumerate() {
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            let (comma, colon) = (if n > 0 { "," } else { "" }, if port.is_empty() { "" } else { ":" });
            write!(f, "{comma}{host}{colon}{port}")?;
        }
        self.get("dbname").map_or(Ok(()), |name| write!(f, "/{name}"))
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without user and password.
    fn read(text: &str) -> String {
        let url: PostgresUrl = text.parse().unwrap_or_else(|error| panic!("{text} {error}"));
        url.iter().map(|(name, value)| format!("{name}={value} ")).collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        for (url, expected) in [
            ("postgres://", ""),
            ("postgresql://h", "host=h"),
            ("postgres://u@h1,h2/db", "dbname=db host=h1,h2 user=u"),
            ("postgres://u:p@h1:1,h2,h3:3/db", "dbname=db host=h1,h2,h3 password=p port=1,,3 user=u"),
            ("postgres://[2001:db8::1]:5433,h", "host=2001:db8::1,h port=5433,"),
            ("postgres:///db?host=/run/pg&port=6", "dbname=db host=/run/pg port=6"),
            ("postgres://%2Frun%2Fpg/db", "dbname=db host=/run/pg"),
            // A later one counts.
            ("postgres://h1:1/db?host=h2&port=2&dbname=other", "dbname=other host=h2 port=2"),
            // Not form-encoded: a plus is a plus.
            ("postgres://u:a+b@h?application_name=a+b", "application_name=a+b host=h password=a+b user=u"),
            ("postgres://u:p%40%2f%3a@h", "host=h password=p@/: user=u"),
            ("postgres://u:p#?q@h/db", "dbname=db host=h password=p#?q user=u"),
            ("postgres://h?ssl=true", "host=h sslmode=require"),
            ("postgres://h/?sslmode=&options=-c%20search_path%3Da,b", "host=h options=-c search_path=a,b"),
        ] {
            assert_eq!(read(url), expected, "{url}");
        }
    }

    #[test]
    fn errors_and_debug_output_show_no_password() {
        for bad in [
            "postgres://u:hunter2@h:none/db",
            "postgres://u:hunt/er2@h/db",
            "postgres://u:hunter2%@h/db",
            "postgres://u:hunter2@[::1/db",
            "postgres://u:hunter2@h?sslmode",
            "postgres://u:hunter2@h/%ff",
            "postgres://u:hunter2%00@h",
            "postgres://u:p@hunter2/hunter2@h:5432/db",
            "postgres://u:12/hunter2@h/db",
            "postgres://u:12/x?hunter2=x@h/db",
            "postgres://u:12?hunter2=x@h/db",
        ] {
            let error = bad.parse::<PostgresUrl>().expect_err(bad);
            assert!(!error.contains("hunt") && !error.contains("er2"), "{error}");
        }
        let url: PostgresUrl =
            "postgres://app:hunter2@db1:5432,[::1]/keys?password=hunter2".parse().expect("a URL");
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://db1:5432,[::1]/keys PostgresUrl(postgres://db1:5432,[::1]/keys)"
        );
    }
}
