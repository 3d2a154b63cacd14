//! Faults that an operator meets: the log at `warn` and `/readyz` name the cause.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{
    postgres::Schema,
    process::free_port,
    redis::Redis,
    service::{Keystile, Setup},
};

/// Waits until the log and `/readyz` contain these words.
async fn named(setup: &Setup, words: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let (log, readyz) = (setup.log(), setup.readyz().await.1.to_string());
        if words.iter().all(|word| log.contains(word) && readyz.contains(word)) {
            return;
        }
        assert!(Instant::now() < deadline, "{words:?} in both:\n{log}\n{readyz}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_line_has_version_and_settings_and_the_last_one_says_that_it_stopped() {
    let secret = "0123456789abcdef0123456789abcdef";
    let setup = Setup::new();
    assert!(setup.run(&["migrate"]).status.success());
    let settings = [
        ("KEYSTILE_RECORD_TTTL", "1s"),
        ("KEYSTILE_TIMEOUT", "3s"),
        ("KEYSTILE_CACHE_SECRET", secret),
        ("KEYSTILE_SERVICE_PORT", "9191"),
        ("KEYSTILE_REDIS_URL", ""),
    ];
    let Keystile { setup, mut process } = setup.start(&settings).await;
    process.signal(Signal::TERM);
    assert_eq!(process.wait(Duration::from_secs(10)), Some(0));
    let log = setup.log();
    let first = log.lines().next().unwrap();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    for word in [&version, "database-url=sqlite:", "timeout=3s", "cache-secret=(not shown)"] {
        assert!(first.contains(word), "{word} in {first}");
    }
    assert!(!log.contains(secret));
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("no setting has this name")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("KEYSTILE_RECORD_TTTL") && warnings[0].contains("KEYSTILE_RECORD_TTL\""),
        "{warnings:?}"
    );
    assert!(log.lines().last().unwrap().contains("stopped"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn role_that_may_not_read_the_budgets_is_named() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    schema
        .execute(
            "CREATE TABLE budgets (id BIGSERIAL PRIMARY KEY, user_id BIGINT, api_key_id BIGINT, limit_cents BIGINT, \
             current_usage_cents BIGINT)",
        )
        .await;
    let role = format!("no_budgets_{}", schema.name());
    let grants = format!(
        "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {} TO {role};
         GRANT SELECT ON api_keys, users, keystile_changes TO {role}",
        schema.name()
    );
    schema.execute(&grants).await;
    let url = schema.url().replace("//keystile@", &format!("//{role}@"));
    let keystile = Setup::with_database(&url).start_unready(&[("KEYSTILE_LOG", "warn")]);
    named(&keystile.setup, &["permission denied", "budgets"]).await;
    assert_eq!(keystile.setup.readyz().await.0, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_redis_is_named() {
    let open = Redis::start();
    let closed = Redis::with(&["requirepass hunter2"]);
    let (open, closed) = (open.address(), closed.address());
    let nowhere = free_port();
    for (url, words) in [
        (format!("redis://:wrong@{closed}"), &["WRONGPASS"][..]),
        (format!("redis://{closed}"), &["NOAUTH"]),
        (format!("redis://127.0.0.1:{nowhere}"), &["refused"]),
        (format!("rediss://{open}"), &["TLS"]),
        ("redis://no-such-host.invalid:6379".to_owned(), &["no-such-host.invalid"]),
    ] {
        let settings = [("KEYSTILE_REDIS_URL", url.as_str()), ("KEYSTILE_LOG", "warn")];
        let keystile = Setup::new().start(&settings).await;
        named(&keystile.setup, words).await;
        assert!(!keystile.setup.log().contains("hunter2"));
        assert!(!keystile.setup.log().contains("already exists"), "a new file is created by one task");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_database_is_a_warning_that_names_it() {
    let setup = Setup::with_database("postgres://keystile@127.0.0.1:1/none");
    let keystile = setup.start_unready(&[("KEYSTILE_LOG", "warn")]);
    named(&keystile.setup, &["refused"]).await;
    assert!(keystile.setup.log().contains("dependency=\"postgres\""), "{}", keystile.setup.log());
}
