//! The settings of a Postgres URL, by libpq's names. An unsupported parameter is an error that names it.

use std::{str::FromStr, time::Duration};

use tokio_postgres::{
    Config,
    config::{ChannelBinding, SslMode, SslNegotiation},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    hosts::{self, Host},
    session_attrs::SessionAttrs,
    tls::{self, TlsOptions},
};
use crate::config::PostgresUrl;

/// A URL's settings.
#[derive(Clone)]
pub(super) struct Settings {
    /// In the order in which they are tried. At least one.
    pub(super) hosts: Vec<Host>,
    pub(super) session_attrs: SessionAttrs,
    /// For each address. None without a limit.
    pub(super) connect_timeout: Option<Duration>,
    /// Whether hosts and addresses are tried in a random order.
    pub(super) is_random: bool,
    /// All but hosts and ports.
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
}

/// Parameters of libpq that Keystile does not support.
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
    let (mut config, mut tls) = (Config::new(), TlsOptions::default());
    let (mut session_attrs, mut connect_timeout, mut is_random) = (SessionAttrs::Any, None, false);
    config.application_name(url.get("fallback_application_name").unwrap_or("keystile"));
    for (name, value) in url.iter() {
        let one_of = |choices: &str| format!("{name}={value} is not supported; write {choices}");
        match name {
            // Read above, or by `hosts`.
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
            "target_session_attrs" => session_attrs = value.parse().map_err(one_of)?,
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
    let hosts = hosts::read(url)?;
    let (mode, tls) = tls::read(&tls)?;
    config.ssl_mode(mode);
    if url.get("sslnegotiation") == Some("direct") {
        config.ssl_negotiation(SslNegotiation::Direct);
    }
    Ok(Settings {
        hosts,
        session_attrs,
        connect_timeout,
        is_random,
        config,
        tls: MakeRustlsConnect::new(tls),
    })
}

/// A number of seconds. None for 0 and less.
fn seconds(name: &str, value: &str) -> Result<Option<Duration>, String> {
    let seconds: i32 = number(name, value)?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.trim().parse().map_err(|_| format!("{name} is no number, or out of range"))
}

/// Disables TLS: a server on a Unix socket has none.
pub(super) fn without_tls(config: &mut Config) {
    config.ssl_mode(SslMode::Disable).ssl_negotiation(SslNegotiation::Postgres);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<Settings, String> {
        Settings::read("--database-url", &url.parse().expect("a URL"))
    }

    #[test]
    fn parameters_mean_what_they_mean_to_libpq() {
        let url = "postgres://ada:p%40ss@db:6432/keys?sslmode=require&options=-c%20search_path%3Da%2Cb&connect_timeout=3\
            &keepalives=0&keepalives_idle=11&keepalives_interval=12&keepalives_count=13&tcp_user_timeout=1400\
            &target_session_attrs=prefer-standby&load_balance_hosts=random&client_encoding=UTF8&gssencmode=prefer";
        let Settings { config, connect_timeout, session_attrs, is_random, .. } = settings(url).expect("good");
        assert_eq!(config.get_options(), Some("-c search_path=a,b"));
        assert_eq!(config.get_password(), Some(&b"p@ss"[..]));
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        assert_eq!(config.get_application_name(), Some("keystile"));
        assert_eq!((connect_timeout, is_random), (Some(Duration::from_secs(3)), true));
        assert_eq!(session_attrs, SessionAttrs::PreferStandby);
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
            ("%40abstract/keys", "abstract"),
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
