//! The audit log never makes another application's statement fail, and records as much as it can.

use crate::harness::{
    cluster::Cluster,
    keystile::keystile,
    place::Place,
    promise::Instance,
    service::{Key, Setup},
};

/// A server with a user, a key, and an audit log.
async fn server() -> (Cluster, Key) {
    let server = Cluster::start();
    let setup = Setup::with_database(&server.url());
    keystile(&["migrate", "--notify=off"], &server.url(), "").done();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    (server, key)
}

async fn last(server: &Cluster) -> String {
    let last = "SELECT concat_ws(' ', source, action, table_name, row_id, label, before_values, after_values)
        FROM keystile_audit ORDER BY id DESC LIMIT 1";
    server.value(last).await.unwrap()
}

async fn lost(server: &Cluster) -> Option<String> {
    server.value("SELECT pg_sequence_last_value('keystile_audit_lost')").await
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_types_and_values_are_recorded() {
    let (server, _) = server().await;
    server
        .execute(
            "CREATE DOMAIN flag AS boolean; CREATE TYPE mood AS (a integer, b text); CREATE TYPE level AS ENUM ('low', 'high');
            ALTER TABLE api_keys ALTER is_active DROP DEFAULT, ALTER is_active TYPE flag,
                ALTER tags TYPE text[] USING NULL, ALTER scopes TYPE json USING NULL,
                ALTER permissions TYPE mood USING NULL, ALTER budget_type TYPE level USING NULL,
                ALTER rate_limit_per_day TYPE numeric, ALTER description TYPE bytea USING NULL,
                ALTER expires_at TYPE timestamptz, ALTER name TYPE text",
        )
        .await;
    keystile(&["migrate"], &server.url(), "").done();
    for (change, recorded) in [
        ("is_active = false", r#""is_active" : "f""#),
        ("tags = ARRAY['a', NULL, E'\\'']", r#""tags" : ["a",null,"'"]"#),
        ("scopes = '[\"a\\u0000b\"]'", r#""scopes" : ["a\u0000b"]"#),
        ("permissions = ROW(1, 'x')", r#""permissions" : "(1,x)""#),
        ("budget_type = 'high'", r#""budget_type" : "high""#),
        ("rate_limit_per_day = 'NaN'", r#""rate_limit_per_day" : "NaN""#),
        ("description = '\\x00ff'", r#""description" : "\\x00ff""#),
        ("expires_at = 'infinity'", r#""expires_at" : "infinity""#),
        ("expires_at = '-infinity', name = repeat('x', 100000)", r#""expires_at" : "-infinity""#),
    ] {
        server.execute(&format!("UPDATE api_keys SET {change}")).await;
        let last = last(&server).await;
        assert!(last.contains(recorded), "{change}: {}", &last[..last.len().min(500)]);
    }
    // The CLI reads them.
    let listed = keystile(&["audit", "--output", "json"], &server.url(), "");
    assert_eq!(listed.stdout.lines().count(), 11, "{}", listed.stderr);
    assert_eq!(lost(&server).await, None);
}

/// A type of the application's may have a cast with code, which must not run with the rights of the log's owner.
#[tokio::test(flavor = "multi_thread")]
async fn cast_of_an_application_is_not_run() {
    let (server, _) = server().await;
    server
        .execute(
            "CREATE TYPE trap AS (a integer); CREATE TABLE sprung (by name);
            CREATE FUNCTION to_json_trap(trap) RETURNS json LANGUAGE plpgsql AS
                'BEGIN INSERT INTO public.sprung VALUES (current_user); RETURN ''1''; END';
            CREATE CAST (trap AS json) WITH FUNCTION to_json_trap(trap);
            ALTER TABLE api_keys ALTER permissions TYPE trap USING NULL",
        )
        .await;
    keystile(&["migrate"], &server.url(), "").done();
    server.execute("UPDATE api_keys SET permissions = ROW(5)").await;
    assert!(last(&server).await.ends_with(r#"{ "permissions" : "(5)" }"#), "{}", last(&server).await);
    assert_eq!(server.value("SELECT count(*) FROM sprung").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn change_is_recorded_after_a_column_was_dropped_or_altered() {
    let (server, key) = server().await;
    let session = server.client().await;
    session.batch_execute("UPDATE api_keys SET name = 'a', description = 'x'").await.unwrap();
    let count = "SELECT count(*) FROM keystile_audit";
    for (migration, change, recorded) in [
        ("ALTER TABLE api_keys DROP description", "name = 'b'", r#"{ "name" : "a" } { "name" : "b" }"#),
        (
            "ALTER TABLE api_keys ALTER name TYPE text, ALTER rate_limit_per_day TYPE numeric",
            "name = 'c', rate_limit_per_day = 5.5",
            r#""rate_limit_per_day" : 5.5"#,
        ),
        ("ALTER TABLE api_keys RENAME tags TO labels", "name = 'd'", r#"{ "name" : "c" } { "name" : "d" }"#),
        ("ALTER TABLE api_keys ADD tags text", "tags = 'new'", r#"{ "tags" : null } { "tags" : "new" }"#),
    ] {
        server.execute(migration).await;
        session.batch_execute(&format!("UPDATE api_keys SET {change}")).await.unwrap();
        let last = last(&server).await;
        assert!(last.contains(recorded), "{migration}: {last}");
        assert!(
            last.starts_with(&format!("sql update api_keys {} {}", key.id, &key.credential[..8])),
            "{last}"
        );
        let before = server.value(count).await;
        session.batch_execute("UPDATE api_keys SET total_requests = total_requests + 1").await.unwrap();
        assert_eq!(server.value(count).await, before, "{migration}: a use is no change");
    }
    session
        .batch_execute(
            "INSERT INTO api_keys (key_hash, key_prefix, user_id, name) VALUES ('h', 'ks_other', 1, 'e')",
        )
        .await
        .unwrap();
    assert!(last(&server).await.contains(r#""name" : "e""#), "{}", last(&server).await);
    session.batch_execute("DELETE FROM api_keys WHERE name = 'e'").await.unwrap();
    assert!(last(&server).await.starts_with("sql delete api_keys"), "{}", last(&server).await);
    assert!(!last(&server).await.contains(r#""h""#), "{}", last(&server).await);
    assert_eq!(lost(&server).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_is_recorded_by_any_way_to_write() {
    let (server, key) = server().await;
    let update = |name: &str| format!("UPDATE api_keys SET name = '{name}'");
    let has_merge = server.value("SELECT current_setting('server_version_num')::int >= 150000").await;
    for (how, name) in [
        ("SET session_replication_role = replica; {}", "replica"),
        ("BEGIN; {}; PREPARE TRANSACTION 't'", "prepared"),
        ("COMMIT PREPARED 't'", "prepared"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE; {}; COMMIT", "serializable"),
        ("BEGIN; SAVEPOINT s; {}; RELEASE s; COMMIT", "savepoint"),
        ("DO $$ BEGIN {}; EXCEPTION WHEN OTHERS THEN NULL; END $$", "block"),
        ("ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY; {}", "policy"),
        ("WITH x AS ({} RETURNING 1) SELECT * FROM x", "returning"),
        (
            "CREATE TEMP TABLE t AS SELECT * FROM api_keys; UPDATE t SET name = 'merged';
            MERGE INTO api_keys k USING t ON t.id = k.id WHEN MATCHED THEN UPDATE SET name = t.name",
            "merged",
        ),
    ] {
        if how.contains("MERGE") && has_merge.as_deref() == Some("f") {
            continue;
        }
        server.execute(&how.replace("{}", &update(name))).await;
        if !how.contains("PREPARE TRANSACTION") {
            let last = last(&server).await;
            assert!(last.contains(&format!(r#"{{ "name" : "{name}" }}"#)), "{how}: {last}");
        }
    }
    server.execute("BEGIN; DELETE FROM keystile_changes; TRUNCATE api_keys CASCADE; COMMIT").await;
    assert_eq!(last(&server).await, "sql truncate api_keys");
    let _ = key;
}

#[tokio::test(flavor = "multi_thread")]
async fn change_of_a_partition_is_recorded_once() {
    let (server, _) = server().await;
    server
        .execute(
            "ALTER TABLE api_keys RENAME TO plain;
            CREATE TABLE api_keys (LIKE plain INCLUDING DEFAULTS) PARTITION BY RANGE (id);
            CREATE TABLE api_keys_low PARTITION OF api_keys FOR VALUES FROM (0) TO (1000);
            CREATE TABLE api_keys_child () INHERITS (users);
            INSERT INTO api_keys TABLE plain; ALTER SEQUENCE api_keys_id_seq OWNED BY NONE; DROP TABLE plain",
        )
        .await;
    keystile(&["migrate"], &server.url(), "").done();
    for table in ["api_keys", "api_keys_low"] {
        let before: i64 = server.value("SELECT count(*) FROM keystile_audit").await.unwrap().parse().unwrap();
        server.execute(&format!("UPDATE {table} SET name = name || '.'")).await;
        let after = server.value("SELECT count(*) FROM keystile_audit").await.unwrap();
        assert_eq!(after, (before + 1).to_string(), "{table}");
    }
    let setup = Setup::with_database(&server.url());
    setup.create_key("ada", &[]);
}

/// A migration of the application's has added a column that Keystile reads.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_end_of_access_is_recorded_without_a_new_column() {
    let (server, key) = server().await;
    server.execute("ALTER TABLE api_keys ADD allowed_regions text, ADD deleted_at timestamp").await;
    let create = ["users", "create", "--email", "eve@example.com", "--username", "eve"];
    let refused = keystile(&create, &server.url(), "").failed(1);
    assert!(refused.contains("do not watch api_keys.deleted_at"), "{refused}");
    keystile(&["keys", "revoke", &key.id.to_string()], &server.url(), "").done();
    assert!(last(&server).await.starts_with("user revoke api_keys"), "{}", last(&server).await);
    keystile(&["migrate"], &server.url(), "").done();
    keystile(&create, &server.url(), "").done();
}

/// Each way in which the log cannot be written: other applications go on, Keystile's own commands do not.
#[tokio::test]
async fn statement_succeeds_and_command_fails_where_nothing_can_be_recorded() {
    for (harm, counted) in [
        ("ALTER TABLE keystile_audit ADD CHECK (false) NOT VALID", true),
        ("ALTER TABLE keystile_audit RENAME TO elsewhere", true),
        ("ALTER TABLE keystile_audit DROP COLUMN label", true),
        ("ALTER TABLE keystile_audit ALTER table_name TYPE integer USING 0", true),
        ("CREATE RULE skip AS ON INSERT TO keystile_audit DO INSTEAD NOTHING", true),
        (
            "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER skip BEFORE INSERT ON keystile_audit FOR EACH ROW EXECUTE FUNCTION skip()",
            true,
        ),
        ("ALTER TABLE api_keys DISABLE TRIGGER keystile_audited", false),
        ("ALTER TABLE api_keys ENABLE TRIGGER keystile_audited", false),
        ("DROP TRIGGER keystile_audited_all ON users", false),
        ("ALTER FUNCTION keystile_audit_api_keys() SECURITY INVOKER", false),
        ("DROP SEQUENCE keystile_audit_lost", false),
    ] {
        let place = Place::postgres().await;
        place.user().await;
        place.key("7", &[]).await;
        let lost = "SELECT CAST(pg_sequence_last_value('keystile_audit_lost') AS text)";
        place.execute(harm).await;
        place
            .execute("UPDATE api_keys SET name = 'by an application'; UPDATE users SET username = 'eve'")
            .await;
        if counted {
            assert!(place.value(lost).await.is_some(), "{harm}");
        }
        let refused = keystile(&["keys", "revoke", "7"], &place.url(), "");
        let active = place.value("SELECT CAST(is_active AS text) FROM api_keys").await;
        // Without its table there is no audit log, and Keystile works as before.
        if harm.contains("RENAME TO") {
            continue;
        }
        assert_eq!(refused.status, 1, "{harm}");
        let said = "the audit log keystile_audit cannot record";
        assert!(refused.stderr.contains(said), "{harm}: {}", refused.stderr);
        assert_eq!(active.as_deref(), Some("true"), "{harm}");
        let report = keystile(&["doctor", "--output", "json"], &place.url(), "").stdout;
        // What only an insertion shows is not found, but was counted.
        assert!(report.contains("audit_incomplete"), "{harm}: {report}");
    }
}

/// A migration mends what keeps changes from being recorded, and starts the count again.
#[tokio::test(flavor = "multi_thread")]
async fn migration_mends_the_log_while_instances_serve() {
    let (server, key) = server().await;
    // As in the version before: no audit log.
    server
        .execute(
            "DROP TABLE keystile_audit; DROP SEQUENCE keystile_audit_lost;
            DO $$ DECLARE f regprocedure; BEGIN
                FOR f IN SELECT oid FROM pg_proc WHERE proname LIKE 'keystile_audit%' LOOP
                    EXECUTE format('DROP FUNCTION %s CASCADE', f); END LOOP; END $$",
        )
        .await;
    let instance = Instance::start(&server.url(), &[]).await;
    instance.wait_until_up().await;
    instance.expect_allowed(&key.credential).await;
    keystile(&["migrate"], &server.url(), "").done();
    instance.expect_allowed(&key.credential).await;
    server.execute("ALTER TABLE keystile_audit ADD CONSTRAINT no CHECK (false) NOT VALID").await;
    server.execute("UPDATE api_keys SET name = 'lost'").await;
    assert_eq!(lost(&server).await.as_deref(), Some("1"));
    server.execute("ALTER TABLE keystile_audit DROP CONSTRAINT no").await;
    let mended = keystile(&["migrate"], &server.url(), "").stdout;
    assert!(mended.contains("audited now"), "{mended}");
    assert_eq!(lost(&server).await, None);
    instance.wait_until_up().await;
    instance.expect_allowed(&key.credential).await;
    let id = key.id.to_string();
    keystile(&["keys", "revoke", &id, "--wait"], &server.url(), "").done();
    assert!(last(&server).await.starts_with("user revoke api_keys"), "{}", last(&server).await);
    assert_eq!(instance.status(&key.credential).await, 401);
}

/// Writers that would not wait for each other without the triggers do not wait with them.
#[tokio::test(flavor = "multi_thread")]
async fn triggers_take_no_lock_that_another_writer_waits_for() {
    let (server, key) = server().await;
    Setup::with_database(&server.url()).create_key("ada", &[]);
    let [first, second] = [server.client().await, server.client().await];
    let begin = "SET lock_timeout = '3s'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM api_keys";
    first.batch_execute(begin).await.unwrap();
    second.batch_execute(begin).await.unwrap();
    first.batch_execute(&format!("UPDATE api_keys SET name = 'a' WHERE id = {}", key.id)).await.unwrap();
    second.batch_execute(&format!("UPDATE api_keys SET name = 'b' WHERE id <> {}", key.id)).await.unwrap();
    second.batch_execute("UPDATE users SET is_active = false; COMMIT").await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    assert_eq!(lost(&server).await, None);
}
