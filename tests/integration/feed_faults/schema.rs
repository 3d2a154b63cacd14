//! Tables that are altered, moved or divided after `keystile migrate`.

use std::time::Duration;

use super::{
    COLUMNS, LOG_MISSING, ROWS_HIDDEN, TRIGGERS, committed, denied, denied_after, expect_cause, keys,
    migrate, revoke, warm,
};
use crate::harness::{
    cluster::Cluster,
    promise::Instance,
    service::{Key, Setup},
};

/// What an application's migration adds, and what then denies a key.
const ADDED: &[(&str, &str)] = &[
    ("ALTER TABLE api_keys ADD deleted_at timestamp", "UPDATE api_keys SET deleted_at = now() WHERE id = {key}"),
    (
        "ALTER TABLE api_keys ADD allowed_ips json",
        "UPDATE api_keys SET allowed_ips = '[\"192.0.2.1\"]' WHERE id = {key}",
    ),
    ("ALTER TABLE api_keys ADD expires_at timestamp", "UPDATE api_keys SET expires_at = '2020-01-01' WHERE id = {key}"),
    (
        "ALTER TABLE users ADD account_locked boolean",
        "UPDATE users SET account_locked = true WHERE id = (SELECT user_id FROM api_keys WHERE id = {key})",
    ),
    (
        "CREATE TABLE budgets (id serial PRIMARY KEY, user_id integer, api_key_id integer, limit_cents integer,
            current_usage_cents integer)",
        "INSERT INTO budgets (user_id, api_key_id, limit_cents, current_usage_cents)
            SELECT user_id, id, 5, 5 FROM api_keys WHERE id = {key}",
    ),
    (
        "ALTER TABLE api_keys ADD allowed_models text[], ADD budget_limit_cents integer, ADD budget_type text",
        "UPDATE api_keys SET budget_limit_cents = 0, budget_type = 'total' WHERE id = {key}",
    ),
];

/// Tables as an application has them that knows none of the columns above.
const OLD_TABLES: &str = "
    ALTER TABLE api_keys DROP allowed_ips, DROP expires_at, DROP allowed_models, DROP budget_limit_cents,
        DROP budget_type, DROP is_unlimited;
    ALTER TABLE users DROP account_locked, DROP account_locked_until";

async fn old_tables() -> (Cluster, Key) {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    server.execute(OLD_TABLES).await;
    migrate(&server.url());
    (server, key)
}

async fn addition_counts(at: usize) {
    let (add, deny) = ADDED[at];
    let (server, key) = old_tables().await;
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server.execute(add).await;
    // The feed has seen the addition, and has dropped everything for it, before the column is used.
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..2 {
        instance.expect_allowed(&key.credential).await;
    }
    denied_after(&server, &deny.replace("{key}", &key.id.to_string()), &instance, &key).await;
    if !instance.is_up().await {
        expect_cause(&instance, COLUMNS).await;
        migrate(&server.url());
        instance.wait_until_up().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_at_that_is_added_later_counts() {
    addition_counts(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn allowed_ips_that_are_added_later_count() {
    addition_counts(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expires_at_that_is_added_later_counts() {
    addition_counts(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn account_locked_that_is_added_later_counts() {
    addition_counts(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_that_are_created_later_count() {
    addition_counts(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_are_added_later_count() {
    addition_counts(5).await;
}

/// The application adds the column and uses it in one transaction.
#[tokio::test(flavor = "multi_thread")]
async fn column_that_is_added_and_set_at_once_counts() {
    let (server, key) = old_tables().await;
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    let sql = "BEGIN; ALTER TABLE api_keys ADD deleted_at timestamp; UPDATE api_keys SET deleted_at = now(); COMMIT";
    denied_after(&server, sql, &instance, &key).await;
}

/// `budgets` is there, and gets one more column that Keystile reads.
#[tokio::test(flavor = "multi_thread")]
async fn column_that_is_added_to_budgets_counts() {
    let (server, key) = old_tables().await;
    server.execute(ADDED[4].0).await;
    let unspent = "INSERT INTO budgets (user_id, api_key_id, limit_cents, current_usage_cents)
        SELECT user_id, id, 5, 0 FROM api_keys";
    server.execute(unspent).await;
    migrate(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server.execute("ALTER TABLE budgets ADD period_start timestamp").await;
    instance.expect_allowed(&key.credential).await;
    denied_after(&server, "UPDATE budgets SET period_start = '2999-01-01'", &instance, &key).await;
}

/// Connections of an application's pool outlive its migrations.
#[tokio::test(flavor = "multi_thread")]
async fn session_that_is_older_than_a_migration_is_heard_of() {
    let server = Cluster::start();
    let keys = keys::<3>(&server.url());
    server
        .execute("ALTER TABLE api_keys ALTER key_prefix TYPE varchar(16), ALTER allowed_ips TYPE text")
        .await;
    migrate(&server.url());
    let instance = warm(&server.url(), &keys).await;
    let session = server.client().await;
    let change = async |key: &Key, sql: &str| {
        session.batch_execute(sql).await.unwrap();
        denied(&instance, &committed(key, sql)).await;
    };
    change(&keys[0], &revoke(&keys[0])).await;
    for migration in [
        "ALTER TABLE api_keys ALTER key_prefix TYPE text, ALTER is_active TYPE boolean, ALTER allowed_ips TYPE jsonb USING NULL",
        "ALTER TABLE users ALTER id TYPE bigint; ALTER TABLE api_keys ALTER user_id TYPE bigint, ALTER id TYPE bigint",
    ] {
        server.execute(migration).await;
        crate::harness::until("the feed is up", Duration::from_secs(15), async || instance.is_up().await)
            .await;
    }
    for key in &keys[1..] {
        instance.expect_allowed(&key.credential).await;
    }
    change(&keys[1], &revoke(&keys[1])).await;
    change(&keys[2], "UPDATE users SET is_active = false").await;
    assert!(instance.is_up().await, "{:?}", instance.feed().await);
}

/// Roles' search path follows the table, and sessions begin again, as at a deployment.
const MOVE: &str = "CREATE SCHEMA app; ALTER TABLE api_keys SET SCHEMA app;
    ALTER ROLE keystile SET search_path = app, public;
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND datname = current_database()";

#[tokio::test(flavor = "multi_thread")]
async fn user_of_keys_that_were_moved_to_another_schema_is_disabled() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server.execute(MOVE).await;
    instance.expect_allowed(&key.credential).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    instance.expect_allowed(&key.credential).await;
    denied_after(&server, "UPDATE users SET is_active = false", &instance, &key).await;
    if !instance.is_up().await {
        expect_cause(&instance, &[TRIGGERS, LOG_MISSING, COLUMNS].concat()).await;
        migrate(&server.url());
        instance.wait_until_up().await;
        let setup = Setup::with_database(&server.url());
        setup.create_user("eve");
        let other = setup.create_key("eve", &[]);
        instance.expect_allowed(&other.credential).await;
        let all = "UPDATE users SET is_active = false WHERE username = 'eve'";
        denied_after(&server, all, &instance, &other).await;
    }
}

/// Another table of the same name comes first in the search path.
#[tokio::test(flavor = "multi_thread")]
async fn table_that_comes_first_in_the_search_path_is_watched() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    server.execute("CREATE SCHEMA app; ALTER ROLE keystile SET search_path = app, public").await;
    migrate(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server.execute("CREATE TABLE app.api_keys (LIKE public.api_keys); INSERT INTO app.api_keys TABLE public.api_keys").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    denied_after(&server, "UPDATE app.api_keys SET is_active = false", &instance, &key).await;
}

/// Keys are in two partitions, and the primary key is made accordingly.
const PARTITIONED: &str = "
    ALTER TABLE api_keys RENAME TO plain;
    CREATE TABLE api_keys (LIKE plain INCLUDING DEFAULTS) PARTITION BY RANGE (id);
    CREATE TABLE api_keys_low PARTITION OF api_keys FOR VALUES FROM (0) TO (2);
    CREATE TABLE api_keys_high PARTITION OF api_keys FOR VALUES FROM (2) TO (1000);
    INSERT INTO api_keys TABLE plain;
    ALTER SEQUENCE api_keys_id_seq OWNED BY NONE;
    DROP TABLE plain";

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_is_truncated_is_heard_of() {
    let server = Cluster::start();
    let [_, key, other] = keys::<3>(&server.url());
    server.execute(PARTITIONED).await;
    migrate(&server.url());
    let instance = warm(&server.url(), &[key.clone(), other.clone()]).await;
    denied_after(&server, &revoke(&other), &instance, &other).await;
    denied_after(&server, "TRUNCATE api_keys_high", &instance, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_is_detached_or_attached_is_heard_of() {
    let server = Cluster::start();
    let [low, high] = keys::<2>(&server.url());
    server.execute(PARTITIONED).await;
    migrate(&server.url());
    let instance = warm(&server.url(), &[low.clone(), high.clone()]).await;
    denied_after(&server, "ALTER TABLE api_keys DETACH PARTITION api_keys_high", &instance, &high).await;
    // One that was made elsewhere, and knows nothing of triggers.
    server
        .execute(
            "CREATE TABLE api_keys_new (LIKE api_keys INCLUDING DEFAULTS);
            INSERT INTO api_keys_new TABLE api_keys_high;
            ALTER TABLE api_keys ATTACH PARTITION api_keys_new FOR VALUES FROM (2) TO (1000)",
        )
        .await;
    instance.expect_allowed(&high.credential).await;
    denied_after(&server, "TRUNCATE api_keys_new", &instance, &high).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_of_a_child_that_is_changed_through_its_parent_is_heard_of() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    server
        .execute(
            "CREATE TABLE api_keys_old () INHERITS (api_keys);
            WITH moved AS (DELETE FROM api_keys RETURNING *) INSERT INTO api_keys_old SELECT * FROM moved",
        )
        .await;
    migrate(&server.url());
    let instance = Instance::start(&server.url(), &[]).await;
    instance.expect_allowed(&key.credential).await;
    denied_after(&server, &revoke(&key), &instance, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn child_that_is_created_while_keystile_serves_is_watched() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server
        .execute(
            "CREATE TABLE users_old () INHERITS (users); ALTER TABLE api_keys DROP CONSTRAINT api_keys_user_id_fkey;
            WITH moved AS (DELETE FROM users RETURNING *) INSERT INTO users_old SELECT * FROM moved",
        )
        .await;
    instance.expect_allowed(&key.credential).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    instance.expect_allowed(&key.credential).await;
    denied_after(&server, "UPDATE users SET is_active = false", &instance, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_that_is_disabled_or_dropped_is_noticed() {
    for harm in [
        "ALTER TABLE api_keys DISABLE TRIGGER ALL",
        "ALTER TABLE users DISABLE TRIGGER USER; ALTER TABLE api_keys DISABLE TRIGGER USER",
        "DO $$ DECLARE t record; BEGIN
            FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'api_keys'::regclass AND NOT tgisinternal LOOP
                EXECUTE format('DROP TRIGGER %I ON api_keys', t.tgname); END LOOP; END $$",
    ] {
        let server = Cluster::start();
        let [key] = keys::<1>(&server.url());
        let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
        server.execute(harm).await;
        denied_after(&server, &revoke(&key), &instance, &key).await;
        expect_cause(&instance, TRIGGERS).await;
    }
}

/// The functions of the triggers must run with the rights of the log's owner: other roles may not write the log.
#[tokio::test(flavor = "multi_thread")]
async fn function_that_writes_the_log_without_its_owners_rights_is_noticed() {
    let functions = |change: &str| {
        format!(
            "DO $$ DECLARE f regprocedure; BEGIN
                FOR f IN SELECT oid FROM pg_proc WHERE proname LIKE 'keystile%' LOOP
                    EXECUTE format('ALTER FUNCTION %s {change}', f); END LOOP; END $$"
        )
    };
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server.execute("CREATE ROLE guest; GRANT CREATE ON SCHEMA public TO guest").await;
    for harm in ["SECURITY INVOKER", "OWNER TO guest"] {
        server.execute(&functions(harm)).await;
        expect_cause(&instance, TRIGGERS).await;
        migrate(&server.url());
        instance.wait_until_up().await;
    }
    denied_after(&server, &revoke(&key), &instance, &key).await;
}

/// A change that a trigger could not log leaves its trace in a sequence.
#[tokio::test(flavor = "multi_thread")]
async fn log_without_its_count_of_lost_changes_is_noticed() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server.execute("DROP SEQUENCE keystile_changes_lost").await;
    expect_cause(&instance, TRIGGERS).await;
    migrate(&server.url());
    instance.wait_until_up().await;
    denied_after(&server, &revoke(&key), &instance, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn change_that_no_trigger_could_log_is_noticed() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    server.execute("ALTER TABLE keystile_changes ADD CHECK (source = 'command') NOT VALID").await;
    denied_after(&server, &revoke(&key), &instance, &key).await;
    expect_cause(&instance, &["writes_lost"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_whose_rows_this_role_does_not_see_is_noticed() {
    let server = Cluster::start();
    let [key, other] = keys::<2>(&server.url());
    server
        .execute(
            "CREATE ROLE reader LOGIN; GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO reader;
            GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO reader; GRANT INSERT ON keystile_changes TO reader",
        )
        .await;
    let instance = warm(&server.url_as("reader", ""), &[key.clone(), other.clone()]).await;
    denied_after(&server, &revoke(&other), &instance, &other).await;
    server.execute("ALTER TABLE keystile_changes ENABLE ROW LEVEL SECURITY").await;
    denied_after(&server, &revoke(&key), &instance, &key).await;
    expect_cause(&instance, ROWS_HIDDEN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_that_differs_in_case_is_no_prefix_of_the_key() {
    let server = Cluster::start();
    migrate(&server.url());
    server.execute("CREATE EXTENSION citext; ALTER TABLE api_keys ALTER key_prefix TYPE citext").await;
    let [key] = keys::<1>(&server.url());
    server.execute("UPDATE api_keys SET key_prefix = upper(key_prefix)").await;
    let instance = Instance::start(&server.url(), &[]).await;
    instance.wait_until_up().await;
    println!("with a prefix in another case: {}", instance.status(&key.credential).await);
    server.execute(&revoke(&key)).await;
    denied(&instance, &committed(&key, "revoked where prefixes compare without regard to case")).await;
}
