//! What a Postgres URL asks for, in libpq's words. What is not supported is an error that names the parameter.

use std::{net::IpAddr, path::PathBuf, str::FromStr, time::Duration};

use tokio_postgres::{
    Config,
    config::{ChannelBinding, SslMode, SslNegotiation},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls;
use crate::config::PostgresUrl;

/// A URL's settings.
#[derive(Clone)]
pub(super) struct Settings {
    /// In the order in which they are tried; one at least.
    pub(super) hosts: Vec<Host>,
    pub(super) session: Session,
    /// For each address; none is none.
    pub(super) connect_timeout: Option<Duration>,
    /// Whether hosts and addresses are tried in a random order.
    pub(super) is_random: bool,
    /// All but hosts and ports.
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
}

/// One entry of the list of hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) place: Place,
    pub(super) port: u16,
    /// The name in the certificate.
    pub(super) name: String,
}

/// Where a host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Looked up for each connection.
    Name(String),
    Address(IpAddr),
    /// The folder of a Unix socket.
    Socket(PathBuf),
}

/// `target_session_attrs`: which servers will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// What a server is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) is_standby: bool,
    /// A standby is read-only as well.
    pub(super) is_read_only: bool,
}

/// What libpq knows and Keystile does not do.
const UNSUPPORTED: [&str; 20] = [
    "gssdelegation",
    "gsslib",
    "krbsrvname",
    "min_protocol_version",
    "max_protocol_version",
    "oauth_client_id",
    "oauth_issuer",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
];

impl Settings {
    /// Reads the URL that `flag` has.
    ///
    /// # Errors
    /// A sentence that names flag and parameter, and shows no secret.
    pub(super) fn read(flag: &str, url: &PostgresUrl) -> Result<Self, String> {
        read(url).map_err(|error| format!("{flag}: {error}"))
    }
}

fn read(url: &PostgresUrl) -> Result<Settings, String> {
    let (mut config, mut tls) = (Config::new(), tls::Options::default());
    let (mut session, mut connect_timeout, mut is_random) = (Session::Any, None, false);
    config.application_name(url.get("fallback_application_name").unwrap_or("keystile"));
    for (name, value) in url.iter() {
        let one_of = |choices: &str| format!("{name}={value} is not supported; write {choices}");
        match name {
            // Read with one another, or above.
            "host" | "hostaddr" | "port" | "fallback_application_name" => {}
            "user" => _ = config.user(value),
            "password" => _ = config.password(value),
            "dbname" => _ = config.dbname(value),
            "options" => _ = config.options(value),
            "application_name" => _ = config.application_name(value),
            "connect_timeout" => connect_timeout = seconds(name, value)?,
            "keepalives" => _ = config.keepalives(number::<i64>(name, value)? != 0),
            "keepalives_idle" => _ = seconds(name, value)?.map(|idle| config.keepalives_idle(idle)),
            "keepalives_interval" => {
                _ = seconds(name, value)?.map(|interval| config.keepalives_interval(interval));
            }
            "keepalives_count" => match number(name, value)? {
                0 => {}
                count => _ = config.keepalives_retries(count),
            },
            "tcp_user_timeout" => match number(name, value)? {
                0 => {}
                millis => _ = config.tcp_user_timeout(Duration::from_millis(millis)),
            },
            "target_session_attrs" => session = value.parse().map_err(one_of)?,
            "load_balance_hosts" => match value {
                "disable" => is_random = false,
                "random" => is_random = true,
                _ => return Err(one_of("disable or random")),
            },
            "channel_binding" => {
                _ = config.channel_binding(match value {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(one_of("disable, prefer or require")),
                });
            }
            "client_encoding" if !["auto", "utf8", "utf-8", "unicode"].contains(&&*value.to_lowercase()) => {
                return Err(one_of("UTF8"));
            }
            "gssencmode" if !["disable", "prefer"].contains(&value) => return Err(one_of("disable")),
            "sslcompression" if value != "0" => return Err(one_of("0")),
            "client_encoding" | "gssencmode" | "sslcompression" => {}
            "sslnegotiation" => {
                tls.is_direct = match value {
                    "postgres" => false,
                    "direct" => true,
                    _ => return Err(one_of("postgres or direct")),
                }
            }
            "sslmode" => tls.mode = Some(value.to_owned()),
            "sslrootcert" => tls.root = Some(value.to_owned()),
            "sslcert" => tls.certificate = Some(value.into()),
            "sslkey" => tls.key = Some(value.into()),
            "sslsni" => tls.hides_name = number::<i64>(name, value)? == 0,
            "ssl_min_protocol_version" => {
                tls.only_13 = match value {
                    "TLSv1" | "TLSv1.1" | "TLSv1.2" => false,
                    "TLSv1.3" => true,
                    _ => return Err(one_of("TLSv1.2 or TLSv1.3")),
                }
            }
            "ssl_max_protocol_version" => {
                tls.only_12 = match value {
                    "TLSv1.2" => true,
                    "TLSv1.3" => false,
                    _ => return Err(one_of("TLSv1.2 or TLSv1.3")),
                }
            }
            _ if UNSUPPORTED.contains(&name) => {
                return Err(format!("{name} is not supported; take it out of the URL"));
            }
            _ => return Err(format!("{name} is no parameter of a Postgres URL")),
        }
    }
    let hosts = hosts(url)?;
    let (mode, tls) = tls::read(&tls)?;
    config.ssl_mode(mode);
    if url.get("sslnegotiation") == Some("direct") {
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    Ok(Settings { hosts, session, connect_timeout, is_random, config, tls: MakeRustlsConnect::new(tls) })
}

/// The lists `host`, `hostaddr` and `port`, entry by entry.
fn hosts(url: &PostgresUrl) -> Result<Vec<Host>, String> {
    let list = |name| url.get(name).map(|list| list.split(',').collect::<Vec<_>>());
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port").unwrap_or(vec![""]));
    let count = match (&names, &addresses) {
        (Some(names), Some(addresses)) if names.len() != addresses.len() => {
            let (hosts, addresses) = (names.len(), addresses.len());
            return Err(format!("host has {hosts} entries and hostaddr has {addresses}; each needs its own"));
        }
        (Some(list), _) | (None, Some(list)) => list.len(),
        (None, None) => {
            return Err(
                "names no host; for a socket add the folder that it is in: host=/var/run/postgresql".into()
            );
        }
    };
    if ports.len() != 1 && ports.len() != count {
        return Err(format!("has {count} hosts and {} ports; write one port, or one for each", ports.len()));
    }
    (0..count)
        .map(|n| {
            let name = names.as_ref().map_or("", |names| names[n]);
            let address = addresses.as_ref().map_or("", |addresses| addresses[n]);
            let port = if ports.len() == 1 { ports[0] } else { ports[n] };
            let place = match (name, address) {
                (_, address) if !address.is_empty() => Place::Address(
                    address.parse().map_err(|_| "hostaddr has an entry that is no IP address")?,
                ),
                ("", _) => return Err("has an empty entry in its list of hosts".to_owned()),
                (socket, _) if socket.starts_with('/') => Place::Socket(socket.into()),
                (socket, _) if socket.starts_with('@') => {
                    return Err("host names an abstract Unix socket, which is not supported".into());
                }
                (name, _) => name.parse().map_or_else(|_| Place::Name(name.to_owned()), Place::Address),
            };
            let port = if port.is_empty() { 5432 } else { number("port", port)? };
            let name = if name.is_empty() { address } else { name };
            Ok(Host { place, port, name: name.to_owned() })
        })
        .collect()
}

/// A number of seconds, where 0 and less are none.
fn seconds(name: &str, value: &str) -> Result<Option<Duration>, String> {
    let seconds: i32 = number(name, value)?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.trim().parse().map_err(|_| format!("{name} is no number, or out of range"))
}

impl FromStr for Session {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        Ok(match text {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => return Err("any, read-write, read-only, primary, standby or prefer-standby"),
        })
    }
}

impl Session {
    /// What is asked for, one after the other, until some server will do.
    pub(super) fn passes(self) -> &'static [Self] {
        match self {
            Self::Any => &[Self::Any],
            Self::ReadWrite => &[Self::ReadWrite],
            Self::ReadOnly => &[Self::ReadOnly],
            Self::Primary => &[Self::Primary],
            Self::Standby => &[Self::Standby],
            Self::PreferStandby => &[Self::Standby, Self::Any],
        }
    }

    /// Why a server will not do.
    pub(super) fn objection(self, role: Role) -> Option<&'static str> {
        match self {
            Self::ReadWrite if role.is_read_only => Some("it is read-only"),
            Self::ReadOnly if !role.is_read_only => Some("it is not read-only"),
            Self::Primary if role.is_standby => Some("it is a standby"),
            Self::Standby if !role.is_standby => Some("it is not a standby"),
            _ => None,
        }
    }
}

/// For a server on a Unix socket there is no TLS, whatever the URL says.
pub(super) fn without_tls(config: &mut Config) {
    config.ssl_mode(SslMode::Disable).ssl_negotiation(SslNegotiation::Postgres);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<Settings, String> {
        Settings::read("--database-url", &url.parse().expect("a URL"))
    }

    fn hosts(url: &str) -> Vec<(Place, u16, String)> {
        let settings = settings(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        settings.hosts.into_iter().map(|host| (host.place, host.port, host.name)).collect()
    }

    #[test]
    fn hosts_are_paired_as_libpq_pairs_them() {
        let name = |name: &str, port| (Place::Name(name.into()), port, name.to_owned());
        let address = |address: &str, port, name: &str| {
            (Place::Address(address.parse().expect("an address")), port, name.to_owned())
        };
        let socket = |folder: &str, port| (Place::Socket(folder.into()), port, folder.to_owned());
        for (url, expected) in [
            ("postgres://h1,h2/db", vec![name("h1", 5432), name("h2", 5432)]),
            ("postgres://h1:1,h2/db", vec![name("h1", 1), name("h2", 5432)]),
            ("postgres:///db?host=h1,h2&port=7", vec![name("h1", 7), name("h2", 7)]),
            ("postgres:///db?host=h1,h2&port=7,8", vec![name("h1", 7), name("h2", 8)]),
            ("postgres:///db?host=/run/pg,h2&port=7", vec![socket("/run/pg", 7), name("h2", 7)]),
            ("postgres://[::1]:7/db", vec![address("::1", 7, "::1")]),
            ("postgres://h?hostaddr=10.0.0.1", vec![address("10.0.0.1", 5432, "h")]),
            ("postgres://h,g?hostaddr=10.0.0.1,", vec![address("10.0.0.1", 5432, "h"), name("g", 5432)]),
            ("postgres:///db?hostaddr=10.0.0.1", vec![address("10.0.0.1", 5432, "10.0.0.1")]),
        ] {
            assert_eq!(hosts(url), expected, "{url}");
        }
    }

    #[test]
    fn parameters_mean_what_they_mean_to_libpq() {
        let url = "postgres://ada:p%40ss@db:6432/keys?sslmode=require&options=-c%20search_path%3Da%2Cb&connect_timeout=3\
            &keepalives=0&keepalives_idle=11&keepalives_interval=12&keepalives_count=13&tcp_user_timeout=1400\
            &target_session_attrs=prefer-standby&load_balance_hosts=random&client_encoding=UTF8&gssencmode=prefer";
        let Settings { config, connect_timeout, session, is_random, .. } = settings(url).expect("good");
        assert_eq!(config.get_options(), Some("-c search_path=a,b"));
        assert_eq!(config.get_password(), Some(&b"p@ss"[..]));
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        assert_eq!(config.get_application_name(), Some("keystile"));
        assert_eq!((connect_timeout, is_random), (Some(Duration::from_secs(3)), true));
        assert_eq!(session, Session::PreferStandby);
        assert!(!config.get_keepalives());
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(11));
        assert_eq!(config.get_keepalives_interval(), Some(Duration::from_secs(12)));
        assert_eq!(config.get_keepalives_retries(), Some(13));
        assert_eq!(config.get_tcp_user_timeout(), Some(&Duration::from_millis(1400)));
        let none =
            settings("postgres://db?connect_timeout=0&tcp_user_timeout=0&keepalives_count=0").expect("good");
        assert_eq!((none.connect_timeout, none.config.get_tcp_user_timeout()), (None, None));
    }

    #[test]
    fn errors_name_the_parameter_and_no_password() {
        for (rest, word) in [
            ("db/keys?sslmode=allow", "verify-full"),
            ("db/keys?colour=red", "colour"),
            ("db/keys?sslmode=verify-full&sslrootcert=/none.pem", "/none.pem"),
            ("db/keys?connect_timeout=soon", "connect_timeout"),
            ("db/keys?target_session_attrs=master", "prefer-standby"),
            ("db/keys?service=main", "service"),
            ("db/keys?sslpassword=hunter2", "sslpassword"),
            ("db/keys?gssencmode=require", "gssencmode"),
            ("db/keys?client_encoding=latin1", "client_encoding"),
            ("db/keys?sslcert=/none.pem", "sslkey"),
            ("db/keys?sslmode=require&sslrootcert=system", "verify-full"),
            (
                "db?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2",
                "ssl_max_protocol_version",
            ),
            ("h1,h2/keys?port=1,2,3", "ports"),
            ("h1,h2/keys?hostaddr=10.0.0.1", "hostaddr"),
            ("h1,,h2/keys", "empty"),
            ("/keys", "host=/var/run/postgresql"),
            ("@abstract/keys", "abstract"),
        ] {
            let error = settings(&format!("postgres://ada:hunter2@{rest}")).err().expect(rest);
            assert!(error.contains(word) && !error.contains("hunter2"), "{rest}: {error}");
        }
    }

    #[test]
    fn every_parameter_of_libpq_is_known() {
        // As `PQconninfoOptions` of libpq 18 has them.
        let all = "service user password passfile channel_binding connect_timeout dbname host hostaddr port client_encoding
            options application_name fallback_application_name keepalives keepalives_idle keepalives_interval
            keepalives_count tcp_user_timeout sslmode sslnegotiation sslcompression sslcert sslkey sslcertmode sslpassword
            sslrootcert sslcrl sslcrldir sslsni requirepeer require_auth min_protocol_version max_protocol_version
            ssl_min_protocol_version ssl_max_protocol_version gssencmode krbsrvname gsslib gssdelegation replication
            target_session_attrs scram_client_key scram_server_key load_balance_hosts sslkeylogfile requiressl
            oauth_issuer oauth_client_id";
        for name in all.split_whitespace() {
            if let Err(error) = settings(&format!("postgres://h?{name}=1")) {
                assert!(!error.contains("is no parameter") && error.contains(name), "{name}: {error}");
            }
        }
    }
}
