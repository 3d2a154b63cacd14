//! What writers do: open transactions, two-phase commits, values that no function reads, and forged news.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use rustix::process::Signal;
use tokio_postgres::{AsyncMessage, NoTls};

use super::{committed, denied, denied_after, keys, migrate, revoke, warm};
use crate::harness::{
    cluster::Cluster,
    promise::Instance,
    service::{Key, Setup},
};

/// A key of user 1 that is put in by hand, since the command line sees no user who is being disabled.
fn insert(key: &Key, id: i64, credential: &str) -> String {
    let hash = bcrypt::hash(credential, 4).unwrap();
    let prefix = &credential[..8];
    format!(
        "INSERT INTO api_keys (id, name, key_hash, key_prefix, user_id, is_active)
        SELECT {id}, 'late', '{hash}', '{prefix}', user_id, true FROM api_keys WHERE id = {}",
        key.id
    )
}

/// T1 changes something of a user and stays open; T2 inserts a key of that user; T1 commits.
async fn change_that_is_open_while_a_key_is_inserted(prepare: &str, change: &str) {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    server.execute(prepare).await;
    migrate(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    let mut client = server.client().await;
    let open = client.transaction().await.unwrap();
    open.batch_execute(change).await.unwrap();
    let late = Key { id: 1000, credential: "ks_late_key_of_a_user".into() };
    server.execute(&insert(&key, late.id, &late.credential)).await;
    instance.expect_allowed(&late.credential).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    instance.expect_allowed(&late.credential).await;
    open.commit().await.unwrap();
    denied(&instance, &committed(&late, change)).await;
}

const BUDGETS: &str = "CREATE TABLE budgets (id serial PRIMARY KEY, user_id integer, api_key_id integer,
    limit_cents integer, current_usage_cents integer)";

#[tokio::test(flavor = "multi_thread")]
async fn key_that_is_inserted_while_its_user_is_being_disabled_is_denied() {
    change_that_is_open_while_a_key_is_inserted("", "UPDATE users SET is_active = false").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_is_inserted_while_a_budget_of_its_user_is_being_spent_is_denied() {
    let spent = "INSERT INTO budgets (user_id, limit_cents, current_usage_cents) SELECT id, 5, 5 FROM users";
    change_that_is_open_while_a_key_is_inserted(BUDGETS, spent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_is_inserted_while_its_own_budget_is_being_spent_is_denied() {
    let spent = "INSERT INTO budgets (user_id, api_key_id, limit_cents, current_usage_cents)
        SELECT id, 1000, 5, 5 FROM users";
    change_that_is_open_while_a_key_is_inserted(BUDGETS, spent).await;
}

/// A key goes to another user while that one is being disabled.
#[tokio::test(flavor = "multi_thread")]
async fn key_that_is_given_to_a_user_who_is_being_disabled_is_denied() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    Setup::with_database(&server.url()).create_user("eve");
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    let mut client = server.client().await;
    let open = client.transaction().await.unwrap();
    open.batch_execute("UPDATE users SET is_active = false WHERE username = 'eve'").await.unwrap();
    let give = "UPDATE api_keys SET user_id = (SELECT id FROM users WHERE username = 'eve')";
    server.execute(give).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    instance.expect_allowed(&key.credential).await;
    open.commit().await.unwrap();
    denied(&instance, &committed(&key, "the new user was disabled meanwhile")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_with_a_null_character_in_its_json_is_inserted_changed_and_revoked() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    let odd = "ks_odd_json_of_a_key";
    let mut insert = insert(&key, 1000, odd);
    insert = insert
        .replace("is_active)", "is_active, tags)")
        .replace(", true FROM", ", true, '[\"a\\u0000b\"]' FROM");
    server.execute(&insert).await;
    server.execute("UPDATE api_keys SET permissions = '{\"a\": \"\\u0000\"}', description = 'odd'").await;
    let odd = Key { id: 1000, credential: odd.into() };
    println!("with such JSON: {}", instance.status(&odd.credential).await);
    denied_after(&server, &revoke(&odd), &instance, &odd).await;
    denied_after(&server, &revoke(&key), &instance, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_changed_in_two_phases_where_the_triggers_do_not_notify() {
    let server = Cluster::start();
    let [key, other] = keys::<2>(&server.url());
    let output = Setup::with_database(&server.url()).run(&["migrate", "--notify=off"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let instance = warm(&server.url(), &[key.clone(), other.clone()]).await;
    server.execute(&format!("BEGIN; {}; PREPARE TRANSACTION 'revoke'", revoke(&key))).await;
    // As long as it is only prepared, it counts as open.
    tokio::time::sleep(Duration::from_secs(2)).await;
    instance.expect_allowed(&key.credential).await;
    denied_after(&server, &revoke(&other), &instance, &other).await;
    denied_after(&server, "COMMIT PREPARED 'revoke'", &instance, &key).await;
    assert!(instance.is_up().await, "{:?}", instance.feed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_would_not_meet_without_the_triggers_do_not_meet() {
    let server = Cluster::start();
    let keys = keys::<3>(&server.url());
    let instance = warm(&server.url(), &keys).await;
    let (mut first, mut second) = (server.client().await, server.client().await);
    let begin = async |client: &mut tokio_postgres::Client| {
        let limits =
            "SET lock_timeout = '3s'; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM api_keys";
        client.batch_execute(limits).await.unwrap();
    };
    begin(&mut first).await;
    begin(&mut second).await;
    // The same user, and different rows.
    first.batch_execute("UPDATE users SET is_active = false").await.unwrap();
    second.batch_execute(&revoke(&keys[0])).await.unwrap();
    first.batch_execute(&revoke(&keys[1])).await.unwrap();
    second.batch_execute(&insert(&keys[0], 1000, "ks_another_key_of_hers")).await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
    second.batch_execute(&revoke(&keys[2])).await.unwrap();
    second.batch_execute("COMMIT").await.unwrap();
    denied(&instance, &committed(&keys[2], "two writers under repeatable read")).await;
}

/// A role that may log in, and nothing else.
const GUEST: &str = "CREATE ROLE guest LOGIN";

#[tokio::test(flavor = "multi_thread")]
async fn role_that_may_only_log_in_drops_nothing() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    server.execute(GUEST).await;
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    let logged = "SELECT count(*) FROM keystile_changes";
    let before = server.value(logged).await;
    let (client, connection) = tokio_postgres::connect(&server.url_as("guest", ""), NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("CREATE TEMP TABLE own (id integer)").await.unwrap();
    let functions = "SELECT p.proname FROM pg_proc p WHERE p.proname LIKE 'keystile%' AND prorettype = 'trigger'::regtype";
    for row in client.query(functions, &[]).await.unwrap() {
        let name: String = row.get(0);
        let create = format!("CREATE TRIGGER t_{name} AFTER INSERT ON own EXECUTE FUNCTION public.{name}()");
        let refused = client.batch_execute(&create).await;
        assert!(refused.is_err(), "a guest has made a trigger with {name}");
    }
    client.batch_execute("INSERT INTO own VALUES (1)").await.unwrap();
    assert_eq!(server.value(logged).await, before);
    instance.expect_allowed(&key.credential).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn confirmation_that_a_guest_forges_does_not_count() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    server.execute(GUEST).await;
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    let readers = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'keystile/%'";
    crate::harness::until("it listens", Duration::from_secs(10), async || {
        server.value(readers).await.as_deref() == Some("1")
    })
    .await;
    let (guest, heard) = listen_as_guest(&server).await;
    let setup = Setup::with_database(&server.url());
    assert!(setup.run(&["invalidate", "--all"]).status.success());
    let sample =
        heard.lock().unwrap().last().cloned().expect("a confirmation is seen by everybody who listens");
    instance.keystile.process.signal(Signal::STOP);
    let mut command = setup.command(&["keys", "revoke", &key.id.to_string(), "--wait"]);
    let mut revoke =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = loop {
        forge(&guest, &sample).await;
        if let Some(status) = revoke.try_wait().unwrap() {
            break status;
        }
    };
    instance.keystile.process.signal(Signal::CONT);
    assert_eq!(status.code(), Some(1), "revoke --wait believed a guest");
}

/// A session of the guest's, and the confirmations that it hears.
async fn listen_as_guest(server: &Cluster) -> (tokio_postgres::Client, Arc<Mutex<Vec<String>>>) {
    let (guest, mut connection) = tokio_postgres::connect(&server.url_as("guest", ""), NoTls).await.unwrap();
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&heard);
    let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                kept.lock().unwrap().push(notification.payload().to_owned());
            }
        }
    });
    guest.batch_execute("LISTEN keystile_confirmed").await.unwrap();
    (guest, heard)
}

/// Says what an instance would say, for every number that a change of these moments may have.
async fn forge(guest: &tokio_postgres::Client, sample: &str) {
    let start = sample.trim_end_matches(|last: char| last.is_ascii_digit());
    let all = "SELECT count(pg_notify('keystile_confirmed', $1 || number))
        FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) n,
            generate_series(next - 200, next + 20) AS number";
    guest.query(all, &[&start]).await.unwrap();
}

/// Twenty instances' worth of noise makes nobody drop anything, or look more often than is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn news_that_a_guest_forges_drops_nothing() {
    let server = Cluster::start();
    let [key] = keys::<1>(&server.url());
    server.execute(GUEST).await;
    let instance = warm(&server.url(), std::slice::from_ref(&key)).await;
    let log = server.value("SELECT 'keystile_changes'::regclass::oid").await.unwrap();
    let (client, connection) = tokio_postgres::connect(&server.url_as("guest", ""), NoTls).await.unwrap();
    tokio::spawn(connection);
    let before = memory_misses(&instance).await;
    for _ in 0..200 {
        client.batch_execute(&format!("NOTIFY keystile_changed, '{log}'")).await.unwrap();
    }
    instance.expect_allowed(&key.credential).await;
    assert_eq!(memory_misses(&instance).await, before);
}

async fn memory_misses(instance: &Instance) -> u64 {
    let metrics = instance.keystile.setup.metrics().await;
    let is_miss = |line: &&str| {
        line.starts_with("keystile_cache_lookups_total")
            && ["tier=\"memory\"", "kind=\"records\"", "result=\"miss\""]
                .iter()
                .all(|part| line.contains(part))
    };
    metrics.lines().filter(is_miss).filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}
