//! A Postgres URL means what it means to another reader of such URLs, and its password is not shown. The input is the URL.

use keystile::config::PostgresUrl;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio_postgres::config::Host;

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let Ok(url) = text.parse::<PostgresUrl>() else { return };
    let secret =
        url.get("password").filter(|password| password.len() >= 6 && is_unlike_others(&url, password));
    for shown in [url.to_string(), format!("{url:?}")] {
        assert!(secret.is_none_or(|secret| !shown.contains(secret)), "{shown}");
    }
    // Written as parameters alone, it is the same URL.
    let parameters = url.iter().map(|(name, value)| {
        let [name, value] = [name, value].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
        format!("{name}={value}")
    });
    let again = format!("postgres://?{}", parameters.collect::<Vec<_>>().join("&"));
    assert_eq!(again.parse::<PostgresUrl>(), Ok(url.clone()), "{again}");

    // tokio-postgres refuses parameters that it does not know, and libpq does not.
    let Ok(other) = text.parse::<tokio_postgres::Config>() else { return };
    let one = |name: &str| url.get(name).map(str::to_owned);
    assert_eq!(one("user").as_deref(), other.get_user().filter(|user| !user.is_empty()), "{text}");
    let password = other.get_password().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert_eq!(one("password"), password.filter(|password| !password.is_empty()), "{text}");
    assert_eq!(one("dbname").as_deref(), other.get_dbname().filter(|name| !name.is_empty()), "{text}");
    let hosts = other.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) => folder.display().to_string(),
    });
    let hosts: Vec<_> = hosts.collect();
    let is_named = hosts.iter().any(|host| !host.is_empty());
    let hosts = if is_named { hosts.join(",") } else { String::new() };
    // It appends hosts that come as parameters, and libpq replaces.
    if !text.contains("host=") {
        assert_eq!(one("host").unwrap_or_default(), hosts, "{text}");
    }
}

/// Whether a text is in no parameter that is shown.
fn is_unlike_others(url: &PostgresUrl, password: &str) -> bool {
    url.iter().all(|(name, value)| name == "password" || !value.contains(password))
        && !"postgres://local socket".contains(password)
}
