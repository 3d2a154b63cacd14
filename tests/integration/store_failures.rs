//! Databases that are not there, hang, or are somebody else's.

use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use keystile::{
    clock::Timestamps,
    credential::Prefix,
    metrics::Metrics,
    revocation::{ChangeLog, LogRead, Since},
    store::{Database, KeyStore, LogInstallation, StoreError, UsageTable},
    usage::UsageStore,
};

use crate::harness::{
    place::{Place, options, prefix},
    process::free_port,
    until,
};

fn store(url: &str, timeout_millis: u64) -> Database {
    Database::connect(&options(url, timeout_millis), &Metrics::new().expect("builds")).expect("good settings")
}

#[tokio::test]
async fn hung_database_is_given_up_on_at_the_deadline() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    let accept = async {
        let mut held = Vec::new();
        loop {
            held.push(listener.accept().await);
        }
    };
    let ask = async {
        let database = store(&format!("postgres://keystile:hunter2@127.0.0.1:{port}/keys"), 200);
        // Twice: a hung attempt must not block the next one for longer.
        for _ in 0..2 {
            let started = Instant::now();
            let error = database.records(prefix(), Timestamps::now()).await.expect_err("hangs");
            assert!(matches!(error, StoreError::Timeout(_)), "{error}");
            assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        }
    };
    tokio::select! {
        () = accept => {}
        () = ask => {}
    }
}

/// A connection in the middle of a transaction that has done this.
async fn begin(place: &Place, sql: &str) -> tokio_postgres::Client {
    let (client, connection) =
        tokio_postgres::connect(&place.url(), tokio_postgres::NoTls).await.expect("connects");
    tokio::spawn(connection);
    client.batch_execute(&format!("BEGIN; {sql}")).await.expect("begins");
    client
}

/// Whoever reads `api_keys` now waits, until the transaction of this connection is over.
async fn lock_keys(place: &Place) -> tokio_postgres::Client {
    begin(place, "LOCK TABLE api_keys").await
}

#[tokio::test]
async fn refused_connection_is_told_at_once_and_without_the_password() {
    let database = store(&format!("postgres://keystile:hunter2@127.0.0.1:{}/keys", free_port()), 20_000);
    let started = Instant::now();
    let error = database.ping().await.expect_err("nobody listens").to_string();
    assert!(error.contains("refused") && !error.contains("hunter2"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn answer_after_a_timeout_is_nobody_elses() {
    let place = Place::postgres().await;
    place.user().await;
    place.key("1", &[]).await;
    let database = store(&place.url(), 300);
    let LogRead::Read(reading) = database.read(None).await.expect("up") else { panic!("no log") };
    let anchor = reading.evidence.anchor;
    let since = reading.position.map(|position| Since { position, anchor });
    let holder = lock_keys(&place).await;
    let error = database.records(prefix(), Timestamps::now()).await.expect_err("locked");
    assert!(matches!(error, StoreError::Timeout(_)), "{error}");
    database.read(since).await.expect("another connection");
    holder.batch_execute("COMMIT").await.expect("unlocks");
    let found = database.records(prefix(), Timestamps::now()).await.expect("unlocked");
    assert_eq!(found.records.len(), 1);
}

#[tokio::test]
async fn what_was_given_up_does_not_pile_up_in_the_server() {
    let place = Place::postgres().await;
    let database = store(&place.url(), 100);
    // A first connection may take longer than that.
    until("it is up", Duration::from_secs(10), async || database.ping().await.is_ok()).await;
    let _holder = lock_keys(&place).await;
    for _ in 0..5 {
        let error = database.records(prefix(), Timestamps::now()).await.expect_err("locked");
        assert!(matches!(error, StoreError::Timeout(_)), "{error}");
    }
    let waiting = "SELECT CAST(count(*) AS text) FROM pg_locks
        WHERE NOT granted AND relation = CAST('api_keys' AS regclass)";
    until("nobody waits for the lock", Duration::from_secs(2), async || {
        place.value(waiting).await.as_deref() == Some("0")
    })
    .await;
}

/// Whether a look-up that failed is told as an outage depends on a look-up of Keystile's own.
#[tokio::test]
async fn failed_look_up_is_an_outage_only_if_keystiles_own_fails_too() {
    let place = Place::postgres().await;
    place.user().await;
    place.key("1", &[]).await;
    let database = store(&place.url(), 300);
    database.ping().await.expect("up");
    // A look-up of one prefix alone that takes too long: something that a caller may have found.
    let slow = format!(
        "ALTER TABLE api_keys RENAME TO keys_of_all;
        CREATE VIEW api_keys AS SELECT * FROM keys_of_all
            WHERE key_prefix <> '{}' OR (SELECT pg_sleep(5)) IS NOT NULL",
        prefix()
    );
    place.execute(&slow).await;
    let error = database.records(prefix(), Timestamps::now()).await.expect_err("slow");
    assert!(matches!(error, StoreError::Busy), "{error}");
    assert!(!database.is_lost());
    place.execute("DROP VIEW api_keys").await;
    let error = database.records(prefix(), Timestamps::now()).await.expect_err("gone");
    assert!(!matches!(error, StoreError::Busy), "{error}");
    assert!(database.is_lost());
}

#[tokio::test]
async fn changes_are_read_while_every_look_up_hangs() {
    let place = Place::postgres().await;
    let database = store(&place.url(), 1_000);
    database.ping().await.expect("up");
    let _holder = lock_keys(&place).await;
    let ask = |n: u32| {
        let (database, prefix) = (database.clone(), Prefix::parse(&format!("ks_{n:05}")).expect("a prefix"));
        tokio::spawn(async move { database.records(prefix, Timestamps::now()).await })
    };
    let asking: Vec<_> = (0..100).map(ask).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    database.read(None).await.expect("has a connection to itself");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    // Whoever waited for a turn in vain is not told of an outage that nobody has seen.
    for asked in asking {
        let error = asked.await.expect("no panic").expect_err("locked");
        use StoreError::{Busy, Paused, Timeout, Unavailable};
        assert!(matches!(error, Timeout(_) | Busy | Unavailable(_) | Paused(_)), "{error}");
    }
}

#[tokio::test]
async fn connection_that_is_refused_is_no_matter_while_there_are_others() {
    let place = Place::postgres().await;
    let schema = place.value("SELECT CAST(current_schema() AS text)").await.expect("a schema");
    let role = format!("few_{schema}");
    let one = format!(
        "CREATE ROLE {role} LOGIN CONNECTION LIMIT 1; GRANT USAGE ON SCHEMA {schema} TO {role};
        GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"
    );
    place.execute(&one).await;
    let database = store(&place.url().replace("keystile@", &format!("{role}@")), 5_000);
    database.ping().await.expect("on the one connection");
    let answers = (0..20).map(|_| database.records(prefix(), Timestamps::now()));
    for answer in futures_util::future::join_all(answers).await {
        answer.expect("waited for it");
    }
    place.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn connection_that_died_while_idle_is_no_outage() {
    let place = Place::postgres().await;
    let url = format!("{}&application_name=dies-{}", place.url(), std::process::id());
    let database = store(&url, 5_000);
    database.ping().await.expect("up");
    let kill = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dies-{}'",
        std::process::id()
    );
    assert_eq!(place.value(&kill).await.as_deref(), Some("t"));
    database.ping().await.expect("on a new connection");
}

#[tokio::test]
async fn migration_that_waits_for_a_table_does_not_keep_look_ups_waiting() {
    let place = Place::postgres().await;
    place.execute("DROP TABLE keystile_changes CASCADE").await;
    // As an import has it. A reader, such as a dump, keeps no migration waiting, from Postgres 14 on.
    let reader = begin(&place, "SELECT count(*) FROM api_keys").await;
    let replaces_triggers = place.value("SELECT current_setting('server_version_num')::int >= 140000").await;
    if replaces_triggers.as_deref() == Some("f") {
        reader.batch_execute("COMMIT").await.expect("is over");
    }
    let writer = begin(&place, "UPDATE api_keys SET name = name").await;
    let migrating = tokio::spawn({
        let database = place.database();
        async move { database.migrate(None).await }
    });
    let database = store(&place.url(), 2_000);
    for _ in 0..15 {
        database
            .records(prefix(), Timestamps::now())
            .await
            .expect("behind the migration for a second at most");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!migrating.is_finished(), "it waits, and tries again");
    writer.batch_execute("COMMIT").await.expect("is over");
    let migrated = migrating.await.expect("no panic").expect("migrates");
    assert_eq!(migrated.log, LogInstallation::Installed);
    drop(reader);
}

#[tokio::test]
async fn row_that_the_database_keeps_as_it_is_is_not_said_to_be_revoked() {
    let place = Place::postgres().await;
    place.user().await;
    place.key("1", &[]).await;
    place
        .execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER keep BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION keep()",
        )
        .await;
    let error = place.database().revoke_key("1", false).await.expect_err("it is not").to_string();
    assert!(error.contains("left the row as it is"), "{error}");
}

#[tokio::test]
async fn transaction_that_a_server_knows_nothing_of_is_unfit() {
    let place = Place::postgres().await;
    let table = UsageTable::new(place.database(), &[]);
    let error = table.was_written("99999999999").await.expect_err("in the future");
    assert!(matches!(error, StoreError::Unfit(_)), "{error}");
}

#[tokio::test]
async fn schema_without_tables_is_unfit_until_it_is_migrated() {
    let place = Place::empty_schema().await;
    let database = place.database();
    let error = database.ping().await.expect_err("no tables");
    assert!(matches!(error, StoreError::Unfit(_)), "{error}");
    assert!(error.to_string().contains("keystile migrate"), "{error}");
    let migrated = place.database().migrate(None).await.expect("migrates");
    assert_eq!(migrated.created, ["users", "api_keys"]);
    database.ping().await.expect("found out anew");
}

#[tokio::test]
async fn foreign_tables_are_named_by_what_they_lack_and_left_alone() {
    for place in [Place::no_file(), Place::empty_schema().await] {
        place.execute("CREATE TABLE api_keys (id integer, token text)").await;
        let error = place.database().migrate(None).await.expect_err("not ours").to_string();
        assert!(error.contains("key_hash, key_prefix, user_id"), "{error}");
        let error = place.database().ping().await.expect_err("not ours").to_string();
        assert!(error.contains("key_hash, key_prefix, user_id"), "{error}");
        place.execute("INSERT INTO api_keys (id, token) VALUES (1, 'as before')").await;
    }
}

#[tokio::test]
async fn file_with_other_tables_gets_none_of_ours_unasked() {
    let place = Place::no_file();
    place.execute("CREATE TABLE notes (text text)").await;
    let error = place.database().ping().await.expect_err("not ours").to_string();
    assert!(error.contains("no table api_keys"), "{error}");
    let tables = "SELECT CAST(count(*) AS text) FROM sqlite_schema";
    assert_eq!(place.value(tables).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn missing_index_is_a_warning_with_its_mend() {
    for place in [Place::sqlite().await, Place::postgres().await] {
        place.execute("DROP INDEX api_keys_key_prefix").await;
        let warnings = place.database().migrate(None).await.expect("migrates").warnings;
        let mend = "CREATE INDEX api_keys_key_prefix ON api_keys (key_prefix);";
        assert!(warnings.len() == 1 && warnings[0].contains(mend), "{warnings:?}");
        place.execute(mend).await;
        assert_eq!(place.database().migrate(None).await.expect("migrates").warnings, Vec::<String>::new());
    }
}

#[tokio::test]
async fn index_on_a_column_in_upper_case_counts_in_sqlite() {
    let place = Place::no_file();
    place
        .execute(
            "CREATE TABLE users (id integer PRIMARY KEY);
            CREATE TABLE api_keys (id integer PRIMARY KEY, KEY_PREFIX text, key_hash text, user_id integer);
            CREATE INDEX api_keys_key_prefix ON api_keys (KEY_PREFIX)",
        )
        .await;
    assert_eq!(place.database().migrate(None).await.expect("migrates").warnings, Vec::<String>::new());
}

#[tokio::test]
async fn two_migrations_at_once_both_succeed() {
    for place in [Place::no_file(), Place::empty_schema().await] {
        let (one, two) = (place.database(), place.database());
        let (one, two) = tokio::join!(one.migrate(None), two.migrate(None));
        one.expect("migrates");
        two.expect("migrates");
        place.database().ping().await.expect("fits");
    }
}

#[tokio::test]
async fn new_file_and_its_companions_are_their_owners_alone() {
    let place = Place::no_file();
    let database = place.database();
    database.ping().await.expect("created on first use");
    place.user().await;
    let path = place.file().expect("a file");
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", path.display());
        let mode = std::fs::metadata(&file).expect(&file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn file_that_is_no_database_is_said_to_be_none() {
    let place = Place::no_file();
    std::fs::write(place.file().expect("a file"), "name,key\nada,secret-in-a-file\n".repeat(100))
        .expect("writes");
    let error = place.database().ping().await.expect_err("a CSV file");
    assert!(matches!(error, StoreError::Unfit(_)), "{error}");
    assert!(error.to_string().contains("is no SQLite database"), "{error}");
}

#[tokio::test]
async fn file_in_no_folder_is_named() {
    let error =
        store("sqlite:/nonexistent/keystile.db", 500).ping().await.expect_err("no folder").to_string();
    assert!(error.contains("/nonexistent/keystile.db"), "{error}");
}
