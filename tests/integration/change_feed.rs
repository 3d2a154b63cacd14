//! What is changed in the database counts everywhere, within a second.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{
    client::{ask, channel, status},
    fleet::Fleet,
    keystile,
    postgres::Schema,
    service::{Keystile, Setup},
    until,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn revocation_by_plain_sql_is_a_denial_on_three_instances_within_a_second() {
    let fleet = Fleet::start(3, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    let lag =
        fleet.after(&format!("UPDATE api_keys SET is_active = false WHERE id = {}", key.id), &key, 401).await;
    println!("revoked everywhere within {lag:?}");
    assert!(lag < SECOND, "{lag:?}");
    for instance in &fleet.instances {
        let metrics = instance.setup.metrics().await;
        assert!(metrics.contains("keystile_change_feed_up 1"), "{metrics}");
        assert!(metrics.contains("keystile_invalidations_total{source=\"change\"}"), "{metrics}");
        assert!(metrics.contains("keystile_revocation_lag_seconds_count"), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_that_matters_is_heard_of_and_no_other() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    for (change, code) in [
        ("UPDATE users SET is_active = false", "user_inactive"),
        ("UPDATE users SET is_active = true; UPDATE api_keys SET expires_at = '2020-01-01'", "expired"),
        ("UPDATE api_keys SET expires_at = NULL, allowed_ips = '[\"10.0.0.1\"]'", "ip_not_allowed"),
        ("UPDATE api_keys SET allowed_ips = NULL, allowed_models = '[\"m\"]'", "model_not_allowed"),
        ("DELETE FROM api_keys", "invalid_credential"),
    ] {
        fleet.schema.execute(change).await;
        until(change, SECOND, async || fleet.code(0, &key).await.as_deref() == Some(code)).await;
    }
    let other = fleet.key(&[]);
    fleet.expect(&other, 200).await;
    // A change is counted after it counts: the count must stand still before what follows is compared with it.
    let mut heard = 0;
    until("every change is counted", 5 * SECOND, async || {
        tokio::time::sleep(SECOND / 2).await;
        std::mem::replace(&mut heard, fleet.changes(0).await) == heard
    })
    .await;
    let logged = "SELECT count(*) FROM keystile_changes";
    let before = fleet.schema.value(logged).await;
    for unheard in [
        "UPDATE api_keys SET total_requests = 7, total_cost = 9, total_tokens = 3, last_used_at = now()",
        "UPDATE api_keys SET updated_at = now(), description = 'other'",
        "UPDATE users SET last_login = now()",
    ] {
        fleet.schema.execute(unheard).await;
        assert_eq!(fleet.schema.value(logged).await, before, "{unheard}");
    }
    assert_eq!(fleet.changes(0).await, heard);
}

#[tokio::test(flavor = "multi_thread")]
async fn spending_counts_when_it_reaches_a_limit() {
    let fleet = Fleet::start(1, &[]).await;
    fleet
        .schema
        .execute(
            "CREATE TABLE budgets (id serial PRIMARY KEY, user_id integer, api_key_id integer,
                limit_cents integer, current_usage_cents integer DEFAULT 0, is_active boolean DEFAULT true)",
        )
        .await;
    fleet.run_plain(&["migrate"]).done();
    let key = fleet.key(&["--budget-limit-cents", "100", "--budget-type", "total"]);
    fleet.expect(&key, 200).await;
    let logged = "SELECT count(*) FROM keystile_changes";
    let before = fleet.schema.value(logged).await;
    fleet.schema.execute("UPDATE api_keys SET total_cost = 99").await;
    assert_eq!(fleet.schema.value(logged).await, before, "on its way there it changes nothing");
    assert!(fleet.after("UPDATE api_keys SET total_cost = 100", &key, 402).await < SECOND);
    assert!(fleet.after("UPDATE api_keys SET total_cost = 0", &key, 200).await < SECOND);
    let budget =
        "INSERT INTO budgets (user_id, limit_cents, current_usage_cents) SELECT id, 50, 50 FROM users";
    assert!(fleet.after(budget, &key, 402).await < SECOND);
    assert!(fleet.after("UPDATE budgets SET current_usage_cents = 49", &key, 200).await < SECOND);
    let before = fleet.schema.value(logged).await;
    fleet.schema.execute("UPDATE budgets SET current_usage_cents = 10").await;
    assert_eq!(fleet.schema.value(logged).await, before);
    assert!(fleet.after("UPDATE budgets SET current_usage_cents = 50", &key, 402).await < SECOND);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_was_unknown_a_moment_ago_works_as_soon_as_it_is_there() {
    let fleet = Fleet::start(1, &[("KEYSTILE_NEGATIVE_TTL", "60s")]).await;
    let key = fleet.key(&[]);
    fleet.schema.execute("CREATE TABLE kept AS SELECT * FROM api_keys; DELETE FROM api_keys").await;
    fleet.expect(&key, 401).await;
    let lag = fleet.after("INSERT INTO api_keys SELECT * FROM kept", &key, 200).await;
    assert!(lag < SECOND, "{lag:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn change_counts_when_it_is_committed_however_long_that_takes() {
    let fleet = Fleet::start(1, &[]).await;
    let (slow, quick) = (fleet.key(&[]), fleet.key(&[]));
    let mut client = fleet.schema.client().await;
    let open = client.transaction().await.unwrap();
    open.batch_execute(&format!("UPDATE api_keys SET is_active = false WHERE id = {}", slow.id))
        .await
        .unwrap();
    // Later transactions are logged and read in the meantime: the position moves past the one that is open.
    fleet.expect(&slow, 200).await;
    fleet.after(&format!("UPDATE api_keys SET is_active = false WHERE id = {}", quick.id), &quick, 401).await;
    tokio::time::sleep(2 * SECOND).await;
    fleet.expect(&slow, 200).await;
    open.commit().await.unwrap();
    let committed = Instant::now();
    until("the late commit counts", SECOND, async || fleet.code(0, &slow).await.is_some()).await;
    println!("heard of {:?} after its commit", committed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn change_that_is_rolled_back_never_counts() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    until("its creation is heard of", SECOND, async || fleet.changes(0).await > 0).await;
    let heard = fleet.changes(0).await;
    fleet.schema.execute("BEGIN; UPDATE api_keys SET is_active = false; ROLLBACK").await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(fleet.changes(0).await, heard);
    fleet.expect(&key, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listener_that_is_ended_during_a_revocation_loses_nothing() {
    let fleet = Fleet::start(3, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE application_name LIKE 'keystile/' || to_regclass('keystile_changes')::oid || '/%'";
    until("three listen", 5 * SECOND, async || fleet.readers().await == 3).await;
    let revoke = format!("UPDATE api_keys SET is_active = false WHERE id = {}; {end}", key.id);
    let lag = fleet.after(&revoke, &key, 401).await;
    assert!(lag < SECOND, "{lag:?}");
    until("they listen again", 5 * SECOND, async || fleet.readers().await == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_notifications_do_not_pass_the_log_is_looked_at() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    // What a pooler in transaction mode amounts to: the change is logged, and nobody calls.
    fleet.schema.execute("ALTER TABLE keystile_changes DISABLE TRIGGER keystile_notify").await;
    let lag = fleet.after("UPDATE api_keys SET is_active = false", &key, 401).await;
    assert!(lag < SECOND, "{lag:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_triggers_updated_at_is_looked_at_and_nothing_counts_for_long() {
    let schema = Schema::create().await;
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    schema.execute("DROP TABLE keystile_changes").await;
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    let stats = setup.stats().await;
    let feed = &stats["change_feed"];
    assert_eq!((&feed["source"], &feed["up"]), (&"updated_at".into(), &false.into()), "{feed}");
    assert_eq!(feed["problems"][0]["cause"], "log_missing");
    assert!(setup.log().contains("keystile migrate"), "{}", setup.log());
    schema.execute("UPDATE api_keys SET is_active = false, updated_at = now() AT TIME ZONE 'UTC'").await;
    until("updated_at is noticed", 2 * SECOND, async || status(&ask(&channel, &key.credential).await) == 401)
        .await;

    // And the log is taken up as soon as there is one.
    schema.execute("UPDATE api_keys SET is_active = true, updated_at = now() AT TIME ZONE 'UTC'").await;
    until("it works again", 2 * SECOND, async || status(&ask(&channel, &key.credential).await) == 200).await;
    assert!(setup.run(&["migrate"]).status.success());
    until("the log is found", 20 * SECOND, async || setup.stats().await["change_feed"]["up"] == true).await;
    schema.execute("UPDATE api_keys SET is_active = false").await;
    until("the log is read", SECOND, async || status(&ask(&channel, &key.credential).await) == 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn role_that_may_not_make_triggers_is_told_what_that_means() {
    let schema = Schema::create().await;
    assert!(Setup::with_database(&schema.url()).run(&["migrate"]).status.success());
    schema.execute("DROP TABLE keystile_changes CASCADE; DROP TRIGGER keystile_changed ON users").await;
    let role = format!("reader_{}", schema.name());
    schema
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {0} TO {role};
            GRANT SELECT ON ALL TABLES IN SCHEMA {0} TO {role}",
            schema.name()
        ))
        .await;
    let url = schema.url().replace("keystile@", &format!("{role}@"));
    let run = keystile::keystile(&["migrate"], &url, "");
    assert_eq!(run.status, 0, "{run:?}");
    assert!(run.stderr.contains("no log of changes") && run.stderr.contains("30 s"), "{run:?}");
    schema.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_keys_needs_no_right_to_the_log() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    let role = format!("app_{}", fleet.schema.name());
    let schema = fleet.schema.name();
    let change = format!(
        "CREATE ROLE {role}; GRANT USAGE ON SCHEMA {schema} TO {role};
        GRANT SELECT, UPDATE ON api_keys TO {role}; SET ROLE {role};
        UPDATE api_keys SET is_active = false; RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}"
    );
    let lag = fleet.after(&change, &key, 401).await;
    assert!(lag < SECOND, "{lag:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_of_the_tables_alters_them_as_ever() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    fleet.schema.execute("ALTER TABLE api_keys DROP COLUMN tags, ALTER COLUMN name TYPE text").await;
    let lag = fleet.after("UPDATE api_keys SET is_active = false", &key, 401).await;
    assert!(lag < SECOND, "{lag:?}");
    fleet.schema.execute("DROP TABLE keystile_changes CASCADE; UPDATE api_keys SET is_active = true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_tables_are_heard_of() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    let lag = fleet.after("TRUNCATE users CASCADE", &key, 401).await;
    assert!(lag < SECOND, "{lag:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_come_by_replication_are_heard_of() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    // As logical replication applies it, for which ordinary triggers do not fire.
    let change = "SET session_replication_role = replica; UPDATE api_keys SET is_active = false;
        RESET session_replication_role";
    let lag = fleet.after(change, &key, 401).await;
    assert!(lag < SECOND, "{lag:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_that_another_replaces_is_heard_of_in_sqlite() {
    let setup = Setup::new();
    setup.create_user("ada");
    // Before it starts, so that nothing else is left to be heard of.
    let keys = [setup.create_key("ada", &[]), setup.create_key("ada", &[])];
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    for key in &keys {
        assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    }
    let other_prefix = format!(
        "INSERT OR REPLACE INTO api_keys (id, user_id, key_prefix, key_hash)
        SELECT id, user_id, 'ks_other', key_hash FROM api_keys WHERE id = {}",
        keys[0].id
    );
    // Whose keys are left without a user, where nobody checks.
    let other_id =
        "PRAGMA foreign_keys = off; INSERT OR REPLACE INTO users (id, email, username, hashed_password)
        SELECT 99, email, username, hashed_password FROM users";
    for (key, replace) in keys.iter().zip([&*other_prefix, other_id]) {
        setup.execute(replace);
        let denied = async || status(&ask(&channel, &key.credential).await) == 401;
        until("the key is denied", SECOND, denied).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn change_by_another_process_is_seen_in_sqlite_within_a_second() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    setup.json(&["keys", "revoke", &key.id.to_string()]);
    until("the revoked key is denied", SECOND, async || status(&ask(&channel, &key.credential).await) == 401)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_waits_for_every_instance_that_lives() {
    let fleet = Fleet::start(3, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    until("three listen", 5 * SECOND, async || fleet.readers().await == 3).await;
    let told = fleet.run(&["keys", "revoke", &key.id.to_string(), "--wait"]).json();
    fleet.expect(&key, 401).await;
    assert_eq!(
        (names(&told["invalidation"]["dropped"]), names(&told["invalidation"]["silent"])),
        (3, 0),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_that_says_nothing_is_named() {
    let mut fleet = Fleet::start(2, &[]).await;
    let key = fleet.key(&[]);
    until("two listen", 5 * SECOND, async || fleet.readers().await == 2).await;
    fleet.instances[0].process.signal(rustix::process::Signal::STOP);
    let arguments = ["invalidate", &key.credential[..8], "--timeout", "1s"];
    let run = fleet.run(&arguments);
    let told = run.failed(1);
    assert!(told.contains("not confirmed within 1s by"), "{told}");
    fleet.instances[0].process.signal(rustix::process::Signal::CONT);
    until("it has caught up", 5 * SECOND, async || fleet.changes(0).await >= 1).await;
    // One that is gone is waited for by nobody.
    fleet.instances[0].process.kill();
    until("it is gone", 5 * SECOND, async || fleet.readers().await == 1).await;
    let told = fleet.run(&["invalidate", "--all"]).json();
    assert_eq!((names(&told["dropped"]), names(&told["silent"])), (1, 0), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalidation_makes_records_be_read_again() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    let reads = async || {
        let metrics = fleet.instances[0].setup.metrics().await;
        let name = "keystile_store_duration_seconds_count{store=\"postgres\",operation=\"records\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse::<u64>().unwrap()
    };
    let before = reads().await;
    for scope in [&key.credential[..8], "--all"] {
        fleet.run(&["invalidate", scope]).done();
        fleet.expect(&key, 200).await;
    }
    assert_eq!(reads().await, before + 2);
    let metrics = fleet.instances[0].setup.metrics().await;
    assert!(metrics.contains("keystile_invalidations_total{source=\"command\"} 2"), "{metrics}");
}

#[test]
fn what_is_to_be_dropped_must_be_named() {
    let setup = Setup::new();
    for arguments in [&["invalidate"][..], &["invalidate", "ks_abcde", "--all"]] {
        assert_eq!(setup.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let whole = setup.run(&["invalidate", "ks_thisIsAWholeKey"]);
    let told = String::from_utf8(whole.stderr).unwrap();
    assert!(!told.contains("thisIsAWholeKey"), "{told}");
}

fn names(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}
