//! `keystile backup`: a copy of a SQLite file that is in use.

use std::{os::unix::fs::MetadataExt, time::Duration};

use crate::harness::{
    cluster::{Cluster, Restored},
    keystile::keystile,
    redis::Redis,
    service::{Keystile, Setup},
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn copy_has_what_is_only_in_the_write_ahead_log() {
    let setup = Setup::new();
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    // A connection that stays open, as an instance has, keeps the log from being merged into the file.
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    setup.json(&["keys", "revoke", &key.id.to_string()]);
    let is_active = |file: &str| {
        let connection = rusqlite::Connection::open(setup.path(file)).unwrap();
        let sql = "SELECT is_active FROM api_keys WHERE id = ?1";
        connection.query_row(sql, [key.id], |row| row.get::<_, bool>(0)).unwrap()
    };
    std::fs::copy(setup.path("keystile.db"), setup.path("copied.db")).unwrap();
    assert!(is_active("copied.db"), "a plain copy is older; otherwise this test shows nothing");

    assert!(setup.run(&["backup", "backup.db"]).status.success());
    assert_eq!(std::fs::metadata(setup.path("backup.db")).unwrap().mode() & 0o777, 0o600);
    assert!(!is_active("backup.db"));
    assert!(!setup.path("backup.db-wal").exists());
    let copy = format!("sqlite:{}", setup.path("backup.db").display());
    assert_eq!(
        keystile(&["keys", "list", "--all", "--output", "json"], &copy, "").json()[0]["is_active"],
        false
    );
}

#[test]
fn backup_overwrites_nothing_and_creates_no_database() {
    let setup = Setup::new();
    let failed = |arguments: &[&str], words: &[&str]| {
        let output = setup.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        words.iter().for_each(|word| assert!(error.contains(word), "{word} in {error}"));
    };
    failed(&["backup", "backup.db"], &["no such file", "keystile.db"]);
    assert!(!setup.path("keystile.db").exists() && !setup.path("backup.db").exists());
    assert!(setup.run(&["migrate"]).status.success());
    std::fs::write(setup.path("backup.db"), "precious").unwrap();
    failed(&["backup", "backup.db"], &["backup.db exists already"]);
    assert_eq!(std::fs::read_to_string(setup.path("backup.db")).unwrap(), "precious");
    failed(&["backup", "no/such/folder.db"], &["no/such/folder.db"]);
    failed(
        &["backup", "x.db", "--database-url", "postgres://app:hunter2@db/keys"],
        &["pg_dump", "postgres://db"],
    );
}

const OLDER: &str = "keystile_database_older 1\n";
const NOT_OLDER: &str = "keystile_database_older 0\n";

/// Starts an instance, waits until it has compared and kept what it sees, and ends it. Returns its log.
async fn one_run(setup: Setup, settings: &[(&str, &str)], expected: &str) -> (Setup, String) {
    let Keystile { setup, mut process } = setup.start(settings).await;
    until("it has compared", Duration::from_secs(20), async || setup.metrics().await.contains(expected))
        .await;
    until("the feed is up", Duration::from_secs(20), async || {
        setup.readyz().await.1["change_feed"]["up"] == true
    })
    .await;
    // It keeps what it has seen within a second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    process.kill();
    let log = setup.log();
    (setup, log)
}

fn assert_names_restore(log: &str) {
    let warning = log.lines().find(|line| line.contains("older than what an earlier run had seen"));
    let warning = warning.unwrap_or_else(|| panic!("{log}"));
    for word in ["WARN", "restored", "docs/operations/backups.md", "may be active again"] {
        assert!(warning.contains(word), "{word} in {warning}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_file_is_noticed_at_the_next_start_and_an_untouched_one_is_not() {
    let setup = Setup::new();
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let (setup, log) = one_run(setup, &[], NOT_OLDER).await;
    assert!(!log.contains("older than"), "nothing is known at the first start: {log}");
    assert!(setup.run(&["backup", "backup.db"]).status.success());
    setup.json(&["keys", "revoke", &key.id.to_string()]);
    let (setup, log) = one_run(setup, &[], NOT_OLDER).await;
    assert!(!log.contains("older than"), "changes while it did not run are newer, not older: {log}");

    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(setup.path(&format!("keystile.db{end}")));
    }
    std::fs::rename(setup.path("backup.db"), setup.path("keystile.db")).unwrap();
    let (setup, log) = one_run(setup, &[], OLDER).await;
    assert_names_restore(&log);
    assert_eq!(std::fs::metadata(setup.path("keystile.db.seen")).unwrap().mode() & 0o777, 0o600);
    let (_, log) = one_run(setup, &[], NOT_OLDER).await;
    assert!(!log.contains("older than"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_server_is_noticed_by_what_redis_has_seen() {
    let (mut server, redis) = (Cluster::start(), Redis::start());
    let setup = Setup::with_database(&server.url());
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let keys = [setup.create_key("ada", &[]), setup.create_key("ada", &[])];
    let (volume, dump) = (server.backup(), server.dump());
    let url = redis.url();
    let settings =
        [("KEYSTILE_REDIS_URL", url.as_str()), ("KEYSTILE_CACHE_SECRET", "0123456789abcdef0123456789abcdef")];
    setup.json(&["keys", "revoke", &keys[0].id.to_string()]);
    let (setup, log) = one_run(setup, &settings, NOT_OLDER).await;
    assert!(!log.contains("older than"), "{log}");

    server.restore(&volume, Restored::Snapshot);
    let (setup, log) = one_run(setup, &settings, OLDER).await;
    assert_names_restore(&log);

    // The restored database was the newest state that Redis knows; now another change, and a dump from before it.
    setup.json(&["keys", "revoke", &keys[1].id.to_string()]);
    let (setup, log) = one_run(setup, &settings, NOT_OLDER).await;
    assert!(!log.contains("older than"), "{log}");
    server.load(&dump);
    assert!(setup.run(&["migrate"]).status.success());
    let (setup, log) = one_run(setup, &settings, OLDER).await;
    assert_names_restore(&log);

    // Without Redis nothing is known.
    server.restore(&volume, Restored::Snapshot);
    let (_, log) = one_run(setup, &[], NOT_OLDER).await;
    assert!(!log.contains("older than"), "{log}");
}
