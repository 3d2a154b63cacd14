//! Faults that an operator meets. The log at `warn`, `/readyz`, `/stats`, the metrics and the runbook name each of them in
//! the same words.

use std::time::{Duration, Instant};

use keystile::dependencies::{Cause, Dependency};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    client::{Asked, ask, ask_about, channel, code, status, try_ask},
    peer::Peer,
    postgres::{self, Schema},
    process::{free_port, scratch},
    proxy::{Proxy, Wire},
    redis::Redis,
    service::{Key, Keystile, Setup},
    tools::read,
    until,
};

const SECRET: (&str, &str) = ("KEYSTILE_CACHE_SECRET", "the cache secret of these tests and of no others");
const WARN: (&str, &str) = ("KEYSTILE_LOG", "warn");

/// A fault as it must be named: dependency, cause, and words of the problem.
type Named<'a> = (&'a str, &'a str, &'a [&'a str]);

/// Whether `/readyz` or `/stats` has this fault, with a fix.
fn has_fault(answer: &Value, (dependency, cause, words): Named<'_>) -> bool {
    let faults = answer["dependencies"][dependency]["faults"].as_array().cloned().unwrap_or_default();
    let text = |fault: &Value, field: &str| fault[field].as_str().unwrap_or_default().to_owned();
    faults.iter().any(|fault| {
        let problem = text(fault, "problem");
        text(fault, "cause") == cause
            && words.iter().all(|word| problem.contains(word))
            && text(fault, "fix").len() > 10
    })
}

/// Whether a line of the log at WARN has this fault, with a fix.
fn is_logged(log: &str, (dependency, cause, words): Named<'_>) -> bool {
    let fields = [format!("dependency=\"{dependency}\""), format!("cause=\"{cause}\""), "fix=\"".to_owned()];
    let mut lines = log.lines().filter(|line| line.contains(" WARN "));
    lines.any(|line| {
        fields.iter().all(|field| line.contains(field)) && words.iter().all(|word| line.contains(word))
    })
}

/// Waits until log, `/readyz`, `/stats` and metrics name this fault. The runbook must have it too.
async fn named(setup: &Setup, fault: Named<'_>) {
    let (dependency, cause, _) = fault;
    let metric = format!("keystile_dependency_fault{{dependency=\"{dependency}\",cause=\"{cause}\"}} 1\n");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (log, readyz) = (setup.log(), setup.readyz().await.1);
        if is_logged(&log, fault)
            && has_fault(&readyz, fault)
            && has_fault(&setup.stats().await, fault)
            && setup.metrics().await.contains(&metric)
        {
            break;
        }
        assert!(Instant::now() < deadline, "{fault:?} in all places:\n{log}\n{readyz:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let page = if dependency == "change_feed" { "change-feed.md" } else { "runbook.md" };
    let page = read(&format!("docs/operations/{page}"));
    let entries = [format!("\n| `{cause}` |"), format!("\n### {cause}\n")];
    assert!(entries.iter().any(|entry| page.contains(entry)), "{cause} is in the runbook");
}

/// Starts an instance whose log has warnings only.
fn start(database_url: &str, settings: &[(&str, &str)]) -> Keystile {
    Setup::with_database(database_url).start_unready(&[&[WARN][..], settings].concat())
}

/// A migrated schema, a user, a key, and a role with these further rights.
async fn schema_with_role(grants: &str) -> (Schema, String, Key) {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let role = format!("fault_{}", schema.name());
    let create = format!("CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {} TO {role};", schema.name());
    schema.execute(&(create + &grants.replace("ROLE", &role))).await;
    let url = schema.url().replace("//keystile@", &format!("//{role}@"));
    (schema, url, key)
}

const ALL_RIGHTS: &str = "GRANT SELECT, UPDATE ON api_keys, users TO ROLE; \
                          GRANT SELECT, UPDATE, DELETE ON keystile_changes TO ROLE; \
                          GRANT SELECT ON SEQUENCE keystile_changes_lost TO ROLE; \
                          GRANT SELECT, INSERT, DELETE ON keystile_proofs TO ROLE;";

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
async fn each_fault_of_a_connection_to_postgres_is_named() {
    let server = postgres::server().address();
    let schema = Schema::create().await;
    let proxy = Proxy::before(server).await;
    proxy.set(Wire::Hanging);
    let of = |user: &str, host: &str, rest: &str| format!("postgres://{user}@{host}/{rest}");
    for (url, fault) in [
        (of("nobody", &server.to_string(), "postgres"), ("database", "login_refused", &["nobody"][..])),
        (
            of("keystile", &format!("127.0.0.1:{}", free_port()), "postgres"),
            ("database", "unreachable", &["refused"]),
        ),
        (of("keystile", "no-such-host.invalid", "postgres"), ("database", "name_unknown", &["look up"])),
        (of("keystile", &server.to_string(), "nowhere"), ("database", "tables", &["nowhere"])),
        (schema.url(), ("database", "tables", &["keystile migrate"])),
        (of("keystile", &server.to_string(), "postgres?sslmode=verify-full"), ("database", "tls", &[])),
        (proxy.url(&schema.url(), server), ("database", "no_answer", &[])),
    ] {
        let keystile = start(&url, &[]);
        named(&keystile.setup, fault).await;
        assert_eq!(keystile.setup.readyz().await.0, 503, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_a_right_is_not_ready_and_the_table_is_named() {
    let (schema, url, key) = schema_with_role(ALL_RIGHTS).await;
    schema
        .execute(
            "CREATE TABLE budgets (id BIGSERIAL PRIMARY KEY, user_id BIGINT, api_key_id BIGINT, limit_cents BIGINT, \
             current_usage_cents BIGINT)",
        )
        .await;
    let keystile = start(&url, &[]);
    named(&keystile.setup, ("budgets", "access_denied", &["permission denied", "budgets"])).await;
    let (status_code, readyz) = keystile.setup.readyz().await;
    assert_eq!(
        (status_code, &readyz["dependencies"]["database"]["state"]),
        (503, &"up".into()),
        "{readyz:#}"
    );
    let grant = format!("GRANT SELECT ON budgets TO fault_{}", schema.name());
    schema.execute(&grant).await;
    until("it is ready without a restart", Duration::from_secs(10), async || {
        keystile.setup.readyz().await.0 == 200
    })
    .await;
    let channel = channel(keystile.setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);

    // A right that is taken away while it runs.
    schema.execute(&format!("REVOKE SELECT ON users FROM fault_{}", schema.name())).await;
    named(&keystile.setup, ("database", "access_denied", &["permission denied", "users"])).await;
    assert_eq!(keystile.setup.readyz().await.0, 200, "keys in memory still work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_a_writer_of_usage_and_of_proofs_without_rights_are_named() {
    let few = "GRANT SELECT ON api_keys, users, keystile_proofs TO ROLE;";
    let (_schema, url, key) = schema_with_role(few).await;
    let settings = [WARN, SECRET, ("KEYSTILE_USAGE_INTERVAL", "100ms"), ("KEYSTILE_DURABLE_PROOFS", "all")];
    let keystile = Setup::with_database(&url).start(&settings).await;
    let channel = channel(keystile.setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    named(&keystile.setup, ("change_feed", "unreadable", &["keystile_changes"])).await;
    named(&keystile.setup, ("usage", "access_denied", &["api_keys"])).await;
    named(&keystile.setup, ("proofs", "access_denied", &["keystile_proofs"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_that_fail_for_some_keys_only_are_named() {
    let (schema, url, key) = schema_with_role(ALL_RIGHTS).await;
    schema
        .execute(
            "ALTER TABLE api_keys RENAME TO all_keys;
            CREATE VIEW api_keys AS SELECT id, key_hash, key_prefix, user_id, 1 / (id - id) > 0 AS is_active FROM all_keys;
            GRANT SELECT ON api_keys TO PUBLIC",
        )
        .await;
    let keystile = Setup::with_database(&url).start(&[WARN]).await;
    let channel = channel(keystile.setup.tcp).await;
    let answer = ask(&channel, &key.credential).await;
    assert_eq!(code(&answer).as_deref(), Some("overloaded"), "the caller may have caused it");
    named(&keystile.setup, ("database", "refused", &["division by zero"])).await;
    assert_eq!(keystile.setup.readyz().await.1["dependencies"]["database"]["state"], "degraded");
    assert!(!is_unexplained(&keystile.setup), "{}", keystile.setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_look_ups_at_once_are_named() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let url = proxy.url(&schema.url(), server);
    let settings = [WARN, ("KEYSTILE_DATABASE_TIMEOUT", "900ms"), ("KEYSTILE_DATABASE_CONNECTIONS", "2")];
    let keystile = Setup::with_database(&url).start(&settings).await;
    proxy.set(Wire::Slow(Duration::from_millis(300)));
    let channel = channel(keystile.setup.tcp).await;
    let asks: Vec<_> = (0..100)
        .map(|n| {
            let channel = channel.clone();
            tokio::spawn(async move { try_ask(&channel, &format!("ks_{n:05}nobodysKeyAtAll")).await })
        })
        .collect();
    named(&keystile.setup, ("database", "too_many_calls", &["too many calls"])).await;
    for ask in asks {
        ask.await.unwrap().ok();
    }
    let metrics = keystile.setup.metrics().await;
    assert!(metrics.contains("keystile_database_connections_limit 2\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_that_are_later_than_their_checks_are_named() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let url = proxy.url(&schema.url(), server);
    let settings = [WARN, ("KEYSTILE_DATABASE_TIMEOUT", "5s"), ("KEYSTILE_TIMEOUT", "200ms")];
    let keystile = Setup::with_database(&url).start(&settings).await;
    proxy.set(Wire::Slow(Duration::from_millis(500)));
    let channel = channel(keystile.setup.tcp).await;
    let answer = ask(&channel, "ks_nobodysKeyAtAll").await;
    assert_eq!(status(&answer), 503);
    named(&keystile.setup, ("database", "no_answer", &["KEYSTILE_TIMEOUT"])).await;
    until("the answers are logged", Duration::from_secs(5), async || {
        keystile.setup.log().contains("reason=")
    })
    .await;
    assert!(!is_unexplained(&keystile.setup), "{}", keystile.setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_sqlite_file_is_named() {
    let keystile = Setup::new().start(&[WARN]).await;
    let file = keystile.setup.path("keystile.db");
    std::fs::rename(&file, keystile.setup.path("elsewhere.db")).unwrap();
    named(&keystile.setup, ("database", "file", &["keystile.db"])).await;

    let setup = Setup::new();
    std::fs::write(setup.path("keystile.db"), "no database, and long enough to be read as the head of one")
        .unwrap();
    let keystile = setup.start_unready(&[WARN]);
    named(&keystile.setup, ("database", "file", &["is no SQLite database"])).await;

    let setup = Setup::new();
    setup.create_user("ada");
    let holder = rusqlite::Connection::open(setup.path("keystile.db")).unwrap();
    holder
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE")
        .unwrap();
    let keystile = setup.start_unready(&[WARN, ("KEYSTILE_DATABASE_TIMEOUT", "500ms")]);
    until("it is named", Duration::from_secs(15), async || {
        let readyz = keystile.setup.readyz().await.1;
        let locked = has_fault(&readyz, ("database", "locked", &["locked by another process"]));
        locked || has_fault(&readyz, ("database", "no_answer", &[]))
    })
    .await;
}

/// Redis with TLS only on this port, and plain text on its own.
fn redis_with_tls(port: u16) -> Redis {
    let folder = scratch("redis-tls");
    postgres::certificates(&folder);
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let settings = [
        format!("tls-port {port}"),
        format!("tls-cert-file {}", file("server.pem")),
        format!("tls-key-file {}", file("server.key")),
        format!("tls-ca-cert-file {}", file("authority.pem")),
        "tls-auth-clients no".to_owned(),
    ];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    Redis::with(&settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_redis_is_named() {
    let tls_port = free_port();
    let open = redis_with_tls(tls_port);
    let few = "user few on >few ~keystile:* +hello +client|setname +client|id +info +ping";
    let closed = Redis::with(&["requirepass hunter2", few]);
    let full = Redis::with(&["maxmemory 1", "maxmemory-policy noeviction"]);
    let replica = Redis::with(&["replica-serve-stale-data yes"]);
    replica.command(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    let frozen = Redis::start();
    frozen.freeze();
    let nowhere = free_port();
    let (open_at, closed_at) = (open.address(), closed.address());
    for (url, fault) in [
        (format!("redis://:wrong@{closed_at}"), ("redis_cache", "login_refused", &["WRONGPASS"][..])),
        (format!("redis://{closed_at}"), ("redis_cache", "login_refused", &["NOAUTH"])),
        (format!("redis://127.0.0.1:{nowhere}"), ("redis_cache", "unreachable", &["refused"])),
        (format!("rediss://{open_at}"), ("redis_cache", "tls", &["TLS"])),
        (format!("rediss://localhost:{tls_port}"), ("redis_cache", "tls", &["UnknownIssuer"])),
        (format!("redis://127.0.0.1:{tls_port}"), ("redis_cache", "unreachable", &["rediss://"])),
        (
            "redis://no-such-host.invalid:6379".to_owned(),
            ("redis_cache", "name_unknown", &["no-such-host.invalid"]),
        ),
        (format!("redis://few:few@{closed_at}"), ("redis_cache", "access_denied", &["NOPERM"])),
        (full.url(), ("redis_cache", "full", &["OOM"])),
        (replica.url(), ("redis_cache", "read_only", &["READONLY"])),
        (frozen.url(), ("redis_cache", "no_answer", &[])),
    ] {
        let keystile = Setup::new().start(&[("KEYSTILE_REDIS_URL", url.as_str()), WARN]).await;
        named(&keystile.setup, fault).await;
        let (status, readyz) = keystile.setup.readyz().await;
        assert_eq!((status, &readyz["status"]), (200, &"degraded".into()), "{readyz:#}");
        let log = keystile.setup.log();
        assert!(!log.contains("hunter2"), "{log}");
        assert!(!log.contains("already exists"), "a new file is created by one task: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_without_the_rights_of_their_scripts_are_named() {
    let cache = "+hello +client|setname +client|id +info +ping +time +getrange +set +append +pexpire";
    let redis = Redis::with(&[&format!("user cache on >cache ~keystile:* {cache}")]);
    let setup = Setup::new();
    setup.create_user("ada");
    let limited = setup.create_key("ada", &["--rate-limit-per-day", "100"]);
    let url = format!("redis://cache:cache@{}", redis.address());
    let keystile = setup.start(&[WARN, ("KEYSTILE_REDIS_URL", &url), ("KEYSTILE_RATE_LIMIT", "redis")]).await;
    let channel = channel(keystile.setup.tcp).await;
    let answer = ask(&channel, &limited.credential).await;
    assert_eq!((status(&answer), code(&answer).as_deref()), (503, Some("unavailable")));
    named(&keystile.setup, ("redis_limits", "access_denied", &["NOPERM"])).await;
    let (_, readyz) = keystile.setup.readyz().await;
    assert_eq!(readyz["status"], "degraded");
    assert_eq!(readyz["dependencies"]["redis_cache"]["state"], "up", "{readyz:#}");
    until("the metric names who counts", Duration::from_secs(5), async || {
        keystile.setup.metrics().await.contains("keystile_limits_counted{by=\"none\"} 1\n")
    })
    .await;
    assert!(!is_unexplained(&keystile.setup), "{}", keystile.setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_do_not_end_are_named() {
    let keystile = Setup::new().start(&[WARN, ("KEYSTILE_TIMEOUT", "500ms")]).await;
    let peer = Peer::connect(keystile.setup.tcp).await;
    let call = peer.unfinished(100, 50).await.unwrap();
    assert_eq!(call.answer_soon().await.status(), 503);
    named(&keystile.setup, ("memory", "late_messages", &["deadline"])).await;

    let keystile = Setup::new().start(&[WARN, ("KEYSTILE_TIMEOUT", "30s")]).await;
    let peer = Peer::connect(keystile.setup.tcp).await;
    let size = 16 * 1024 * 1024;
    let mut calls = Vec::new();
    for _ in 0..8 {
        calls.push(peer.unfinished(size, size as usize - 1).await);
    }
    named(&keystile.setup, ("memory", "no_room", &["hold all memory"])).await;
    until("the answers are logged", Duration::from_secs(5), async || {
        keystile.setup.log().contains("reason=")
    })
    .await;
    assert!(!is_unexplained(&keystile.setup), "{}", keystile.setup.log());
}

/// Whether the log has an answer that no dependency explains.
fn is_unexplained(setup: &Setup) -> bool {
    setup.log().contains("no dependency reports a fault")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_wrong_keys_is_logged_when_it_begins_and_when_it_ends_with_its_number() {
    let keystile =
        Setup::new().start(&[("KEYSTILE_BCRYPT_COST", "12"), ("KEYSTILE_BCRYPT_THREADS", "1")]).await;
    let channel = channel(keystile.setup.tcp).await;
    let asks: Vec<_> = (0..600)
        .map(|n| {
            let channel = channel.clone();
            tokio::spawn(async move { try_ask(&channel, &format!("ks_nobody{n:05}sKeyAtAll")).await })
        })
        .collect();
    named(&keystile.setup, ("bcrypt", "too_many_proofs", &["unproven credentials"])).await;
    let mut shed = 0;
    for ask in asks {
        shed += usize::from(ask.await.unwrap().is_ok_and(|answer| status(&answer) == 503));
    }
    assert!(shed > 100, "{shed}");
    until("the end is logged", Duration::from_secs(40), async || {
        let log = keystile.setup.log();
        log.contains("no longer denied") && log.contains("are proven in time")
    })
    .await;
    let log = keystile.setup.log();
    let lines =
        |words: &[&str]| log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count();
    assert_eq!(lines(&["WARN", "dependency=\"bcrypt\""]), 1, "{log}");
    assert_eq!(
        lines(&["WARN", "reason=\"overloaded\"", "keystile_first_proofs_total", "bcrypt: too_many_proofs"]),
        1,
        "{log}"
    );
    assert_eq!(lines(&["INFO", "reason=\"overloaded\"", &format!("answers={shed}")]), 1, "{shed}: {log}");
    assert_eq!(lines(&["INFO", "dependency=\"bcrypt\"", "failed_calls="]), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misconfigured_route_is_logged_once_and_counted_each_time() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let keystile = setup.start(&[WARN]).await;
    let channel = channel(keystile.setup.tcp).await;
    for route in [&[("keystile.scope", "read")][..], &[("keystile.mode", "sometimes")]] {
        for n in 0..20 {
            let path = format!("/v1/{n}");
            let asked =
                Asked { credential: &key.credential, method: "GET", path: &path, route, ..Asked::default() };
            let answer = ask_about(&channel, &asked).await;
            assert_eq!(code(&answer).as_deref(), Some("route_misconfigured"));
            let metadata = format!("{:?}", answer.dynamic_metadata);
            assert!(metadata.contains(route[0].0), "each answer names the setting: {metadata}");
        }
    }
    let log = keystile.setup.log();
    for setting in ["keystile.scope", "keystile.mode"] {
        let lines = log.lines().filter(|line| line.contains("is misconfigured") && line.contains(setting));
        assert_eq!(lines.count(), 1, "{setting}: {log}");
    }
    let metrics = keystile.setup.metrics().await;
    assert!(
        metrics.contains("keystile_checks_total{decision=\"deny\",reason=\"route_misconfigured\"} 40\n"),
        "{metrics}"
    );
    until("the answers are logged too", Duration::from_secs(5), async || {
        keystile.setup.log().contains("reason=\"route_misconfigured\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependency_that_is_lost_is_a_warning_and_its_return_is_logged() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let keystile = Setup::with_database(&proxy.url(&schema.url(), server)).start(&[]).await;
    proxy.set(Wire::Refusing);
    named(&keystile.setup, ("database", "unreachable", &[])).await;
    proxy.mend();
    let back = |log: &str| {
        log.lines().any(|line| line.contains("INFO") && line.contains("it works again: keys are looked up"))
    };
    until("its return is logged", Duration::from_secs(10), async || back(&keystile.setup.log())).await;
    until("the metrics follow", Duration::from_secs(10), async || {
        let metrics = keystile.setup.metrics().await;
        metrics.contains("keystile_dependency_up{dependency=\"database\"} 1\n")
            && metrics
                .contains("keystile_dependency_fault{dependency=\"database\",cause=\"unreachable\"} 0\n")
    })
    .await;
    let readyz = keystile.setup.readyz().await.1;
    assert_eq!(readyz["dependencies"]["database"], serde_json::json!({ "state": "up" }), "{readyz:#}");
}

/// The value of a metric without labels, or with these.
async fn value(setup: &Setup, series: &str) -> f64 {
    let metrics = setup.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(f64::NAN, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn work_in_progress_and_the_age_of_changes_are_in_the_metrics() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let url = proxy.url(&schema.url(), server);
    let settings = [
        ("KEYSTILE_DATABASE_CONNECTIONS", "3"),
        ("KEYSTILE_DATABASE_TIMEOUT", "5s"),
        ("KEYSTILE_TIMEOUT", "9s"),
    ];
    let Keystile { setup, process: _process } = Setup::with_database(&url).start(&settings).await;
    let before = value(&setup, "keystile_change_feed_last_change_timestamp_seconds").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    Setup::with_database(&schema.url()).create_key("ada", &[]);
    until("the change is seen", Duration::from_secs(5), async || {
        value(&setup, "keystile_change_feed_last_change_timestamp_seconds").await > before + 0.5
    })
    .await;
    let read = value(&setup, "keystile_change_feed_last_read_timestamp_seconds").await;
    assert!((keystile::clock::wall().unix_timestamp() as f64 - read).abs() < 10.0, "{read}");

    proxy.set(Wire::Slow(Duration::from_secs(1)));
    let channel = channel(setup.tcp).await;
    let asks: Vec<_> = (0..20)
        .map(|n| {
            let channel = channel.clone();
            tokio::spawn(async move { try_ask(&channel, &format!("ks_{n:05}nobodysKeyAtAll")).await })
        })
        .collect();
    until("work is in progress", Duration::from_secs(10), async || {
        value(&setup, "keystile_checks_in_flight").await >= 10.0
            && value(&setup, "keystile_database_connections{state=\"used\"}").await >= 2.0
            && value(&setup, "keystile_database_calls_waiting").await >= 5.0
    })
    .await;
    assert!((value(&setup, "keystile_database_connections_limit").await - 3.0).abs() < 0.1);
    proxy.mend();
    for ask in asks {
        ask.await.unwrap().ok();
    }
    until("it has ended", Duration::from_secs(10), async || {
        value(&setup, "keystile_checks_in_flight").await == 0.0
            && value(&setup, "keystile_database_calls_waiting").await == 0.0
    })
    .await;
    for metric in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
        assert!(value(&setup, metric).await > 0.0, "{metric}");
    }
    let used = value(&setup, "process_cpu_seconds_total").await;
    assert!(used >= 0.0, "in whole seconds: {used}");
    let started = value(&setup, "process_start_time_seconds").await;
    assert!((keystile::clock::wall().unix_timestamp() as f64 - started).abs() < 300.0, "{started}");
}

/// A bug cannot be provoked from outside.
const ELSEWHERE: [&str; 1] = ["panicked"];

#[test]
fn every_dependency_and_every_cause_is_provoked_here() {
    let source = read("tests/integration/faults_named.rs");
    let (tests, _) = source.split_once("const ELSEWHERE").unwrap();
    for name in Dependency::ALL.map(Dependency::name).into_iter().chain(Cause::ALL.map(Cause::name)) {
        let is_provoked =
            tests.contains(&format!("\"{name}\", ")) || tests.contains(&format!("(\"{name}\", "));
        assert!(is_provoked != ELSEWHERE.contains(&name), "{name}");
    }
}
