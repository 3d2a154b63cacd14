//! Settings with a format of their own: URLs, listeners and credential sources. They are shown without secrets.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use zeroize::Zeroizing;

use super::{
    PostgresUrl,
    redacted::{PERCENT_ENCODE, has_password},
};

/// The URL of a database. Its `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// A file on this machine.
    Sqlite(PathBuf),
    /// A server, or several.
    Postgres(PostgresUrl),
}

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A part of a request that may hold an API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// `Authorization: Bearer KEY`.
    Bearer,
    /// The value of the header with this lower-case name.
    Header(String),
    /// A query parameter of this name.
    Query(String),
    /// A cookie of this name.
    Cookie(String),
}

/// The URL of a Redis. Its `Debug` and `Display` show no password. It is wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    text: Zeroizing<String>,
    /// Scheme, host and port.
    shown: String,
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("sqlite:") {
            return sqlite_file(path).map(Self::Sqlite);
        }
        if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
            return Err("is neither sqlite:FILE nor postgres://USER:PASSWORD@HOST/NAME".into());
        }
        text.parse().map(Self::Postgres)
    }
}

/// The file of `FILE`, `//FILE` or `///ABSOLUTE/FILE`.
fn sqlite_file(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("//").unwrap_or(text);
    if path.is_empty() {
        return Err(
            "names no file; write sqlite:keystile.db or sqlite:///var/lib/keystile/keystile.db".into()
        );
    }
    if has_password(text) {
        return Err("holds a URL or a password, which the path of a file does not; write sqlite:FILE".into());
    }
    // Other libraries read this as a relative path. Here it would be a file in the root folder.
    if text.starts_with("///") && ["/./", "/../"].iter().any(|dots| path.starts_with(dots)) {
        let relative = path.strip_prefix('/').unwrap_or(path);
        return Err(format!(
            "is a file in the root folder; write sqlite:{relative} for a relative path, or an absolute path without dots"
        ));
    }
    Ok(path.into())
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Behind the host, an `@` may be the end of a password, and the host a part of it.
        let rest = text.split_once("://").map_or("", |(_, rest)| rest);
        if rest.split_once(['/', '?', '#']).is_some_and(|(_, behind)| behind.contains('@')) {
            return Err(format!("has an `@` that may belong to the password; {PERCENT_ENCODE}"));
        }
        // The reason alone: the text may hold a password.
        let url: url::Url = text.parse().map_err(|error| {
            let fix = if rest.contains('@') { PERCENT_ENCODE } else { "write redis://HOST:6379" };
            format!("is not a URL such as redis://HOST:6379: {error}; {fix}")
        })?;
        let known = ["redis", "rediss", "valkey", "valkeys"];
        let (scheme, form) = url.scheme().split_once(['-', '+']).unwrap_or((url.scheme(), ""));
        if !known.contains(&scheme) || !["", "cluster", "sentinel", "unix"].contains(&form) {
            return Err(
                "has none of the schemes redis://, rediss://, redis-cluster://, redis-sentinel://, redis+unix://".into()
            );
        }
        if form == "sentinel" && url.query_pairs().all(|(name, _)| name != "sentinelServiceName") {
            return Err("names no service; add ?sentinelServiceName=NAME".into());
        }
        fred::types::config::Config::from_url(text)
            .map_err(|error| format!("cannot be used: {} Write redis://HOST:6379", error.details()))?;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = url.host_str().unwrap_or_else(|| url.path());
        let shown = format!("{}://{host}{port}", url.scheme());
        Ok(Self { text: Zeroizing::new(url.into()), shown })
    }
}

impl RedisUrl {
    /// The settings of the client.
    ///
    /// # Errors
    /// When the system's certificates, which TLS needs, can no longer be read.
    pub fn to_config(&self) -> Result<fred::types::config::Config, fred::error::Error> {
        fred::types::config::Config::from_url(&self.text)
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({self})")
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("names no socket; write unix:/run/keystile/keystile.sock".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "is neither ADDRESS:PORT, such as 127.0.0.1:9191, nor unix:/PATH".into()),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for CredentialSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "is none of bearer, header:NAME, query:NAME, cookie:NAME".to_owned();
        // The characters of an HTTP token (RFC 9110, section 5.6.2): a name that no header,
        // cookie or plain query parameter can have would never be found.
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let named = |name: &str| {
            if !name.is_empty() && name.bytes().all(token) { Ok(name.to_owned()) } else { Err(form()) }
        };
        match text.split_once(':') {
            None if text.eq_ignore_ascii_case("bearer") => Ok(Self::Bearer),
            Some(("header", name)) if name.eq_ignore_ascii_case("authorization") => {
                Err("would take the scheme for part of the key; write bearer".into())
            }
            Some(("header", name)) => Ok(Self::Header(named(name)?.to_ascii_lowercase())),
            Some(("query", name)) => Ok(Self::Query(named(name)?)),
            Some(("cookie", name)) => Ok(Self::Cookie(named(name)?)),
            _ => Err(form()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_url_is_shown_without_its_password() {
        let url: DatabaseUrl =
            "postgres://app:hunter2@db.internal:5432/keys?sslmode=require".parse().expect("a URL");
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://db.internal:5432/keys DatabaseUrl(postgres://db.internal:5432/keys)"
        );
        for bad in ["mysql://app:hunter2@host/keys", "postgres://app:hunter2@host:notaport/keys", "sqlite:"] {
            let error = bad.parse::<DatabaseUrl>().expect_err("refused");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_of_a_password_is_shown(
            scheme in "(postgres|postgresql|redis|rediss|redis-cluster|mysql|sqlite)",
            user in "[a-z]{0,3}",
            password in "([@/#%?:\\[\\]\\\\ &=]{0,2}(SECRET|12)){1,3}[@/#%?:\\[\\]\\\\ &=]{0,2}",
            tail in "(:[0-9]{1,4})?(/[a-z]{0,4}|/0)?(\\?password=SECRET)?",
        ) {
            let text = format!("{scheme}://{user}:{password}@host{tail}");
            let show = |shown: Result<String, String>| shown.unwrap_or_else(|error| error);
            let database = text.parse::<DatabaseUrl>().map(|url| format!("{url} {url:?}"));
            let redis = text.parse::<RedisUrl>().map(|url| format!("{url} {url:?}"));
            for shown in [show(database), show(redis)] {
                proptest::prop_assert!(!shown.contains("SECRET"), "{} for {}", shown, text);
            }
        }
    }

    #[test]
    fn password_that_is_not_percent_encoded_is_refused_with_the_fix() {
        for url in ["postgres://app:p@ss/w#rd@db:5432/keys", "postgres://app:12/x@db/keys"] {
            let error = url.parse::<DatabaseUrl>().expect_err(url);
            assert!(error.contains("percent-encode the password"), "{error}");
        }
        for url in ["redis://app:p@ss/w#rd@cache:6379", "redis://:12/x@cache", "redis://:a/b@cache"] {
            let error = url.parse::<RedisUrl>().expect_err(url);
            assert!(error.contains("percent-encode the password"), "{error}");
        }
    }

    #[test]
    fn relative_sqlite_path_after_three_slashes_is_refused_with_the_fix() {
        for (url, fix) in [("sqlite:///./x.db", "sqlite:./x.db"), ("sqlite:///../a/x.db", "sqlite:../a/x.db")]
        {
            let error = url.parse::<DatabaseUrl>().expect_err("refused");
            assert!(error.contains(fix), "{error}");
        }
        for (url, path) in
            [("sqlite:./x.db", "./x.db"), ("sqlite:///x.db", "/x.db"), ("sqlite://x.db", "x.db")]
        {
            assert_eq!(url.parse(), Ok(DatabaseUrl::Sqlite(path.into())), "{url}");
        }
    }

    #[test]
    fn credential_sources_are_named_exactly() {
        assert_eq!("Bearer".parse(), Ok(CredentialSource::Bearer));
        assert_eq!("header:X-API-Key".parse(), Ok(CredentialSource::Header("x-api-key".into())));
        assert_eq!("query:api_key".parse(), Ok(CredentialSource::Query("api_key".into())));
        assert_eq!("cookie:Key".parse(), Ok(CredentialSource::Cookie("Key".into())));
        for bad in [
            "",
            "header",
            "header:",
            "header:a b",
            "query:a=b",
            "cookie:a;b",
            "header:authorization",
            "form:key",
        ] {
            assert!(bad.parse::<CredentialSource>().is_err(), "{bad}");
        }
    }

    #[test]
    fn listeners_are_addresses_or_sockets() {
        assert_eq!("[::1]:1".parse(), Ok(Listen::Tcp(([0, 0, 0, 0, 0, 0, 0, 1], 1).into())));
        assert_eq!("unix:/run/k.sock".parse(), Ok(Listen::Unix("/run/k.sock".into())));
        assert!("unix:".parse::<Listen>().is_err());
        assert!("localhost".parse::<Listen>().is_err());
    }

    #[test]
    fn redis_url_is_shown_without_its_password() {
        let url: RedisUrl = "redis://app:hunter2@cache.internal:6379/1".parse().expect("a URL");
        assert_eq!(
            format!("{url} {url:?}"),
            "redis://cache.internal:6379 RedisUrl(redis://cache.internal:6379)"
        );
        for good in [
            "redis-cluster://a:6379?node=b:6379",
            "redis-sentinel://a:26379?node=b:26379&sentinelServiceName=main",
            "redis+unix:///run/redis.sock",
        ] {
            assert!(good.parse::<RedisUrl>().is_ok(), "{good}");
        }
        for bad in [
            "http://app:hunter2@host",
            "redis-sentinel://app:hunter2@host:26379",
            "redis://app:hunter2@host:notaport",
            "redis-ring://app:hunter2@host",
            "host:6379",
        ] {
            let error = bad.parse::<RedisUrl>().expect_err(bad);
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
