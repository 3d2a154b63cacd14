//! Which versions of servers this run is about, and that they are among those that docs/reference/versions.md lists.
//!
//! `make compat` runs the tests of the database, the change feed and Redis with one version after another. Which, says
//! `KEYSTILE_TEST_PROGRAMS`.

use std::fs;

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    postgres::Schema,
    redis::Redis,
    service::Setup,
};

/// The versions in the table's column for tested ones, of one kind of server.
fn tested(kind: &str) -> Vec<String> {
    let page =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/versions.md")).unwrap();
    let row = page.lines().find(|line| line.starts_with(&format!("| {kind} |")));
    let row = row.unwrap_or_else(|| panic!("{kind} has no row"));
    let cell = row.split('|').nth(3).unwrap();
    cell.split([',', ' ']).filter(|text| text.starts_with(char::is_numeric)).map(str::to_owned).collect()
}

fn is_listed(kind: &str, version: &str) {
    println!("running {kind} {version}");
    let tested = tested(kind);
    let is_tested = |listed: &String| version == listed || version.starts_with(&format!("{listed}."));
    assert!(
        tested.iter().any(is_tested),
        "{kind} {version} is not among {tested:?} in docs/reference/versions.md"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_a_listed_one() {
    let version = Schema::create().await.value("SHOW server_version").await.unwrap();
    is_listed("Postgres", version.split(' ').next().unwrap());
}

#[test]
fn redis_is_a_listed_one() {
    let info = Redis::start().command(&["INFO", "server"]);
    let version = |field| info.lines().find_map(|line| line.strip_prefix(field));
    match version("valkey_version:") {
        Some(version) => is_listed("Valkey", version),
        None => is_listed("Redis", version("redis_version:").unwrap()),
    }
}

/// Every configuration in `envoy/` is tried with the oldest and the newest Envoy elsewhere. `KEYSTILE_TEST_ENVOYS` names the
/// versions between.
#[tokio::test(flavor = "multi_thread")]
async fn shipped_configurations_let_only_keys_through_in_every_envoy() {
    let named = std::env::var("KEYSTILE_TEST_ENVOYS").unwrap_or_default();
    let versions: Vec<_> = named.split_whitespace().collect();
    let (versions, configs): (&[&str], &[&str]) = if versions.is_empty() {
        (&VERSIONS, &["uds.yaml"])
    } else {
        (
            &versions,
            &["uds.yaml", "tcp.yaml", "body.yaml", "routes.yaml", "openai.yaml", "local-ratelimit.yaml"],
        )
    };
    for version in versions {
        is_listed("Envoy", version);
        for config in configs {
            let setup = Setup::new();
            setup.create_user("ada");
            let key = setup.create_key("ada", &["--scope", "models.list"]);
            let gateway = Gateway::start(version, config, setup, &[]).await;
            let what = format!("Envoy {version}, {config}");
            assert_eq!(gateway.status(&key.credential).await, 200, "{what}");
            assert_eq!(gateway.status("ks_nobodysKey").await, 401, "{what}");
            let forged = gateway.get("/v1/models").header("x-api-key", &key.credential);
            let answer = forged.header("x-auth-user-name", "forged").send().await.unwrap();
            let seen = answer.text().await.unwrap();
            assert!(seen.contains("ada") && !seen.contains("forged"), "{what}: {seen}");
            assert!(!seen.contains(&key.credential), "{what}: the key reached the upstream");
        }
    }
}
