//! Errors that an operator meets on the command line: each names the cause, the place and the fix.

use std::process::{Command, Stdio};

use ::keystile::config::ServeOptions;
use clap::{Args, Command as Arguments};
use rustix::process::Signal;

use crate::harness::{
    keystile::{self, Run, keystile},
    place::Place,
    process::free_port,
    service::Process,
    until,
};

/// Asserts that a text has all of these words.
fn names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word} in {text}");
    }
}

fn list_keys(url: &str) -> Run {
    keystile(&["keys", "list"], url, "")
}

#[test]
fn refused_url_shows_scheme_host_and_port_and_no_secret() {
    for (flag, url, shown) in [
        ("--database-url", "mysql://app:hunter2@db.internal:3306/keys", "'mysql://db.internal:3306'"),
        ("--database-url", "postgres://app:hunter2@host:none/keys?password=hunter2", "'postgres://host'"),
        ("--redis-url", "http://app:hunter2@cache.internal:6379/0", "'http://cache.internal:6379'"),
        ("--redis-url", "hunter2", "(not shown)"),
    ] {
        let said = keystile(&["serve", flag, url], "sqlite:unused.db", "").failed(2);
        names(&said, &[flag, shown]);
        assert!(!said.contains("hunter2") && !said.contains("app"), "{said}");
    }
}

/// Passwords with each character that has a meaning in a URL. Every part of them can be recognised.
const PASSWORDS: [&str; 10] = [
    "Sek@Sek",
    "Sek/Sek",
    "Sek#Sek",
    "Sek%Sek",
    "Sek?Sek",
    "Sek:Sek",
    "Sek[Sek]Sek",
    "Sek\\Sek Sek",
    "p@Sek/w#Sek",
    "12/Sek?Sek=Sek",
];

#[test]
fn nothing_of_a_password_is_printed_wherever_a_url_is_given() {
    let (closed, admin) = (free_port(), free_port());
    let admin = format!("--admin-listen=127.0.0.1:{admin}");
    for password in PASSWORDS {
        let postgres = format!("postgres://app:{password}@127.0.0.1:{closed}/keys");
        let query = format!("postgres://127.0.0.1:{closed}/keys?user=app&password={password}");
        let redis = format!("redis://app:{password}@127.0.0.1:{closed}");
        let inline = format!("--database-ulr={postgres}");
        for (arguments, database) in [
            (&["keys", "list"][..], postgres.as_str()),
            (&["doctor"], &postgres),
            (&["explain", "1"], &query),
            (&["migrate"], &postgres),
            (&["backup", "x.db"], &postgres),
            (&["serve", &admin, "--listen", "unix:/none/none.sock"], &postgres),
            (
                &["serve", &admin, "--change-feed-url", &postgres, "--listen", "unix:/none/none.sock"],
                "sqlite:/none/unused.db",
            ),
            (&["serve", &admin, "--redis-url", &redis, "--rate-limit", "nowhere"], "sqlite:/none/unused.db"),
            (
                &["serve", &admin, "--redis-url", &redis, "--listen", "unix:/none/none.sock"],
                "sqlite:/none/unused.db",
            ),
            (&["serve", &admin, "--listen", &postgres], "sqlite:/none/unused.db"),
            (&["keys", "list", &postgres], "sqlite:/none/unused.db"),
            (&["keys", "list", &inline], "sqlite:/none/unused.db"),
            (&[&postgres], "sqlite:/none/unused.db"),
        ] {
            let Run { status, stdout, stderr } = keystile(arguments, database, "");
            assert!(status != 0 && !stdout.contains("Sek"), "{arguments:?}: {stdout}");
            assert!(!stderr.contains("Sek"), "{arguments:?} {database}: {stderr}");
        }
    }
}

#[test]
fn unencoded_password_keeps_place_and_names_the_fix() {
    for (flag, url, shown) in [
        ("--database-url", "postgres://app:p@ss/w#rd@db.internal:5432/keys", "'postgres://db.internal:5432'"),
        (
            "--change-feed-url",
            "postgres://app:p@ss/w#rd@db.internal:5432/keys",
            "'postgres://db.internal:5432'",
        ),
        ("--redis-url", "redis://app:p@ss/w#rd@cache.internal:6379", "'redis://cache.internal:6379'"),
    ] {
        let said = keystile(&["serve", flag, url], "sqlite:unused.db", "").failed(2);
        names(&said, &[flag, shown, "percent-encode the password"]);
        assert!(!said.contains("w#rd") && !said.contains("ss/"), "{said}");
    }
}

#[test]
fn refused_brand_is_repeated_unless_it_may_be_a_whole_key() {
    let refused = |brands| keystile(&["serve", "--key-brands", brands], "sqlite:unused.db", "").failed(2);
    for (brands, shown) in [("e", "'e'"), ("en_,", "''"), ("en_, ks_", "' ks_'"), ("en%5f", "'en%5f'")] {
        names(&refused(brands), &["--key-brands", shown, "such as en_"]);
    }
    let said = refused("en_0123456789abcdef0123456789abcdef");
    names(&said, &["--key-brands", "(not shown)", "such as en_"]);
    assert!(!said.contains("0123"), "{said}");
}

#[tokio::test]
async fn unknown_id_prefix_or_user_is_repeated() {
    let place = Place::sqlite().await;
    for (arguments, words) in [
        (&["keys", "show", "4711"][..], ["4711", "keys list --all"]),
        (&["keys", "revoke", "ks_nobod"], ["ks_nobod", "keys list --all"]),
        (&["explain", "ks_nobod"], ["ks_nobod", "keys list --all"]),
        (&["keys", "create", "--user", "4711"], ["4711", "users list"]),
        (&["users", "disable", "x@example.com"], ["x@example.com", "users list"]),
        (&["invalidate", "short"], ["short", "first 8 characters"]),
    ] {
        names(&keystile(arguments, &place.url(), "").failed(1), &words);
    }
}

#[tokio::test]
async fn explain_prints_rfc_3339_times_and_the_entry_that_is_not_valid() {
    let place = Place::sqlite().await;
    place.user().await;
    place.key("3", &[]).await;
    let change = r#"allowed_models = '["gpt-*-mini"]', expires_at = '2090-01-02 03:04:05'"#;
    place.execute(&format!("UPDATE api_keys SET {change}")).await;
    let run =
        keystile(&["explain", "3", "--at", "2089-01-02T03:04:05Z", "--output", "json"], &place.url(), "");
    names(&run.stderr, &["allowed_models", "gpt-*-mini", "only at the end"]);
    assert!(!run.stderr.contains("list of strings"), "{}", run.stderr);
    let looked_at = &run.json()["checks"][1]["detail"];
    assert_eq!(looked_at, "expires_at: 2090-01-02T03:04:05Z; now: 2089-01-02T03:04:05Z");
}

#[test]
fn relative_sqlite_path_after_three_slashes_names_the_accepted_form() {
    names(&list_keys("sqlite:///./x.db").failed(2), &["'sqlite:///./x.db'", "write sqlite:./x.db"]);
}

#[tokio::test]
async fn database_that_cannot_be_used_names_place_and_fix() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage.db");
    std::fs::write(&garbage, "garbage, and more garbage than a header has").unwrap();
    let garbage = format!("sqlite:{}", garbage.display());
    names(&list_keys(&garbage).failed(1), &[&garbage, "no SQLite database"]);
    let missing = format!("sqlite:{}/none/x.db", folder.path().display());
    names(&list_keys(&missing).failed(1), &[&missing, "No such file", "help:", "folder"]);
    let closed = format!("postgres://app:hunter2@127.0.0.1:{}/none", free_port());
    names(&list_keys(&closed).failed(1), &["127.0.0.1", "refused", "help:", "host and port"]);
    let unknown = list_keys("postgres://app:hunter2@host.invalid:5432/none").failed(1);
    names(&unknown, &["host.invalid:5432", "cannot look up the name", "help:"]);
    assert!(!unknown.contains("hunter2"), "{unknown}");
}

#[test]
fn wrong_values_name_flag_value_and_form() {
    for (arguments, words) in [
        (&["serve", "--timeout", "soon"][..], ["--timeout", "'soon'", "500ms"]),
        (&["probe", "--timeout", "soon"], ["--timeout", "'soon'", "500ms"]),
        (&["serve", "--listen", "localhost"], ["--listen", "'localhost'", "127.0.0.1:9191"]),
        (&["migrate", "--notify", "maybe"], ["--notify", "'maybe'", "on, off"]),
        (&["explain", "1", "--at", "now"], ["--at", "'now'", "2026-12-31T23:59:59Z"]),
    ] {
        names(&keystile(arguments, "sqlite:unused.db", "").failed(2), &words);
    }
    let address = format!("127.0.0.1:{}", free_port());
    let said = keystile(&["probe", "--address", &address], "", "").failed(1);
    names(&said, &["--address", &address, "keystile serve"]);
}

#[tokio::test]
async fn migrate_takes_notify_from_its_variable() {
    let mut command = keystile::command(&["migrate"], "sqlite:unused.db");
    let output = command.env("KEYSTILE_MIGRATE_NOTIFY", "maybe").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    names(&String::from_utf8_lossy(&output.stderr), &["--notify", "'maybe'"]);
}

/// `keystile ARGUMENTS` in a folder of its own, with every variable of `serve` empty.
fn with_empty_variables(arguments: &[&str], folder: &std::path::Path) -> Command {
    let options = ServeOptions::augment_args(Arguments::new("serve"));
    let variables = options.get_arguments().filter_map(|argument| argument.get_env());
    // An empty variable of TLS is an error.
    let variables = variables.filter(|name| !name.to_str().unwrap().contains("_TLS_"));
    let mut command = keystile::command(arguments, "");
    command.envs(variables.map(|name| (name, ""))).current_dir(folder).stdin(Stdio::null());
    command
}

#[tokio::test]
async fn empty_variables_count_as_unset() {
    let folder = tempfile::tempdir().unwrap();
    let migrated = with_empty_variables(&["migrate"], folder.path()).output().unwrap();
    assert!(migrated.status.success(), "{migrated:?}");
    assert!(folder.path().join("keystile.db").is_file(), "the default database");
    let (listen, admin) = (free_port(), free_port());
    let (listen, admin) = (format!("127.0.0.1:{listen}"), format!("127.0.0.1:{admin}"));
    let arguments = ["serve", "--listen", &listen, "--admin-listen", &admin];
    let mut served = Process(with_empty_variables(&arguments, folder.path()).spawn().unwrap());
    until("it is ready", std::time::Duration::from_secs(20), async || {
        reqwest::get(format!("http://{admin}/readyz")).await.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    served.signal(Signal::TERM);
    assert_eq!(served.wait(std::time::Duration::from_secs(20)), Some(0));
}

#[test]
fn empty_tls_variable_is_an_error() {
    let mut command = keystile::command(&["inject", "--image", "k", "--self-signed", "localhost"], "");
    let output = command.env("KEYSTILE_INJECT_TLS_CERT", "").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    names(&String::from_utf8_lossy(&output.stderr), &["--tls-cert"]);
    for name in ["KEYSTILE_TLS_CERT_FILE", "KEYSTILE_TLS_CLIENT_CA_FILE", "KEYSTILE_ADMIN_TLS_CLIENT_NAMES"] {
        let output = keystile::command(&["serve"], "").env(name, "").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
}

#[tokio::test]
async fn unknown_header_name_is_refused_with_the_names_that_exist() {
    let place = Place::sqlite().await;
    let (listen, admin) =
        (format!("--listen=127.0.0.1:{}", free_port()), format!("--admin-listen=127.0.0.1:{}", free_port()));
    let arguments = ["serve", &listen, &admin, "--upstream-headers", "x-auth-usr-id"];
    let error = keystile(&arguments, &place.url(), "").failed(1);
    names(&error, &["--upstream-headers", "x-auth-usr-id", "x-auth-user-id", "none"]);
}

#[test]
fn injector_without_a_certificate_names_both_ways_to_give_one() {
    let error = keystile(&["inject", "--image", "k"], "", "").failed(2);
    names(&error, &["--tls-cert", "--self-signed"]);
}

#[tokio::test]
async fn invalidate_without_arguments_names_both_ways() {
    let place = Place::sqlite().await;
    names(&keystile(&["invalidate"], &place.url(), "").failed(2), &["--all", "PREFIX"]);
}

#[test]
fn unknown_flag_names_the_flag_that_was_meant() {
    for (arguments, meant) in [
        (&["keys", "list", "--email", "ada@example.com"][..], "'--user'"),
        (&["keys", "create", "--email", "ada@example.com"], "'--user'"),
        (&["keys", "create", "--user", "1", "--ttl", "90d"], "'--expires-at'"),
        (&["keys", "list", "--json"], "'--output json'"),
        (&["keys", "list", "--usr", "1"], "'--user'"),
        (&["serve", "--db", "x"], "'--database-url'"),
    ] {
        names(&keystile(arguments, "sqlite:unused.db", "").failed(2), &["tip:", meant]);
    }
    // users create has --email itself, and no --user.
    let said = keystile(&["users", "list", "--email", "x"], "sqlite:unused.db", "").failed(2);
    assert!(!said.contains("--user'"), "{said}");
}

#[test]
fn readers_create_no_database() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["keys", "list"][..],
        &["keys", "show", "1"],
        &["users", "list"],
        &["explain", "1"],
        &["doctor"],
        &["backup", "copy.db"],
    ] {
        let output =
            keystile::command(arguments, "sqlite:keystile.db").current_dir(&folder).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        names(&error, &["keystile.db"]);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "{arguments:?}");
    }
}

#[tokio::test]
async fn explain_exits_with_1_for_a_denial_if_told_to() {
    let place = Place::sqlite().await;
    place.user().await;
    let key = keystile(
        &["keys", "create", "--user", "1", "--allowed-endpoint", "/v1/**", "--output", "json"],
        &place.url(),
        "",
    );
    let id = key.json()["id"].to_string();
    for (path, status) in [("/v1/models", 0), ("/v2", 1)] {
        let arguments = ["explain", &id, "--path", path, "--exit-status"];
        assert_eq!(keystile(&arguments, &place.url(), "").status, status, "{path}");
        assert_eq!(keystile(&arguments[..4], &place.url(), "").status, 0, "{path}");
    }
}
