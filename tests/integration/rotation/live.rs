//! Rotated keys on running instances: the overlap, its end, and what changes of one key mean for the other.

use std::time::{Duration, Instant};

use tonic::transport::Channel;

use super::*;
use crate::harness::{
    client::{ask, channel, code, status},
    fleet::Fleet,
    redis::Redis,
    service::{Key, Keystile, Setup},
    until,
};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn rotate_by(setup: &Setup, key: &Key, more: &[&str]) -> Key {
    let new = setup.json(&[&["keys", "rotate", &key.id.to_string()], more].concat());
    Key { id: new["id"].as_i64().unwrap(), credential: new["credential"].as_str().unwrap().to_owned() }
}

/// An instance with a database of its own, of each kind, and a key that it knows.
async fn instances() -> Vec<(Place, Keystile, Channel)> {
    let mut instances = Vec::new();
    for place in places().await {
        create_budgets(&place).await;
        run(&place, &["migrate"]).done();
        let keystile = Setup::with_database(&place.url()).start(&[]).await;
        until("the feed is up", 10 * SECOND, async || {
            keystile.setup.stats().await["change_feed"]["up"] == true
        })
        .await;
        let channel = channel(keystile.setup.tcp).await;
        instances.push((place, keystile, channel));
    }
    instances
}

fn key_of(place: &Place, more: &[&str]) -> Key {
    let key = create(place, more);
    Key { id: key["id"].as_i64().unwrap(), credential: key["credential"].as_str().unwrap().to_owned() }
}

async fn until_code(channel: &Channel, key: &Key, expected: Option<&str>) {
    until(&format!("the answer is {expected:?}"), SECOND, async || {
        code(&ask(channel, &key.credential).await).as_deref() == expected
    })
    .await;
}

/// Whether the metadata of an allowed request has this text in this field.
async fn says(channel: &Channel, key: &Key, field: &str, value: &str) -> bool {
    let answer = ask(channel, &key.credential).await;
    assert_eq!(status(&answer), 200, "{answer:?}");
    let fields = answer.dynamic_metadata.unwrap_or_default().fields;
    format!("{:?}", fields.get(field)).contains(&format!("\"{value}\""))
}

#[tokio::test(flavor = "multi_thread")]
async fn overlap_and_its_end_hold_in_memory_in_redis_and_in_the_database() {
    let redis = Redis::start();
    let url = redis.url();
    let settings =
        [("KEYSTILE_REDIS_URL", &*url), ("KEYSTILE_CACHE_SECRET", SECRET), ("KEYSTILE_REDIS_TIMEOUT", "2s")];
    let mut fleet = Fleet::start(1, &settings).await;
    let (old, database) = (fleet.key(&[]), Setup::with_database(&fleet.schema.url()));
    fleet.expect(&old, 200).await;
    let new = rotate_by(&database, &old, &["--overlap", "6s"]);
    let end = Instant::now() + 6 * SECOND;
    // From memory, then by an instance that has it from Redis, then by one that has it from the database.
    until("the rotation is known", SECOND, async || {
        says(&fleet.channels[0], &old, "rotated_to", &new.id.to_string()).await
    })
    .await;
    fleet.expect(&new, 200).await;
    let name = format!("keystile:{{{}}}:records", &old.credential[..8]);
    until("it is shared", 3 * SECOND, async || {
        fleet.status(0, &old).await;
        redis.keys(&name).contains(&name)
    })
    .await;
    fleet.add(&fleet.schema.url(), &settings).await;
    let answer = format!("{:?}", ask(&fleet.channels[1], &old.credential).await);
    assert!(answer.contains("\"redis\"") && answer.contains("rotated_to"), "{answer}");
    fleet.add(&fleet.schema.url(), &[]).await;
    assert!(Instant::now() < end, "the machine is too slow for this test");
    fleet.expect(&old, 200).await;
    tokio::time::sleep(end.saturating_duration_since(Instant::now())).await;
    for instance in 0..3 {
        assert_eq!(fleet.code(instance, &old).await.as_deref(), Some("expired"), "instance {instance}");
    }
    fleet.expect(&new, 200).await;
    // An instance that has never seen the keys.
    fleet.add(&fleet.schema.url(), &settings).await;
    assert_eq!(fleet.code(3, &old).await.as_deref(), Some("expired"));
    assert_eq!(fleet.status(3, &new).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn overlap_and_its_end_hold_across_a_restart() {
    for place in places().await {
        let start =
            async || Setup::with_database(&place.url()).start(&[("KEYSTILE_CACHE_SECRET", SECRET)]).await;
        let old = key_of(&place, &[]);
        let keystile = start().await;
        let before = channel(keystile.setup.tcp).await;
        assert_eq!(status(&ask(&before, &old.credential).await), 200);
        let new = rotate_by(&keystile.setup, &old, &["--overlap", "5s"]);
        let end = Instant::now() + 5 * SECOND;
        assert_eq!(status(&ask(&before, &new.credential).await), 200);
        drop(keystile);
        let keystile = start().await;
        let after = channel(keystile.setup.tcp).await;
        assert!(Instant::now() < end, "the machine is too slow for this test");
        assert!(says(&after, &old, "limit_id", &old.id.to_string()).await);
        assert!(says(&after, &new, "limit_id", &old.id.to_string()).await);
        tokio::time::sleep(end.saturating_duration_since(Instant::now())).await;
        assert_eq!(code(&ask(&after, &old.credential).await).as_deref(), Some("expired"));
        drop(keystile);
        let keystile = start().await;
        let again = channel(keystile.setup.tcp).await;
        assert_eq!(code(&ask(&again, &old.credential).await).as_deref(), Some("expired"));
        assert_eq!(status(&ask(&again, &new.credential).await), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_revocation_of_one_key_denies_both_everywhere() {
    let fleet = Fleet::start(3, &[]).await;
    let database = Setup::with_database(&fleet.schema.url());
    let old = fleet.key(&[]);
    let new = rotate_by(&database, &old, &["--overlap", "7d"]);
    fleet.expect(&old, 200).await;
    fleet.expect(&new, 200).await;
    let said = fleet.run_plain(&["keys", "revoke", &new.id.to_string(), "--wait"]).done();
    assert!(said.contains("3 instances"), "{said}");
    for key in [&old, &new] {
        for instance in 0..3 {
            assert_eq!(fleet.code(instance, key).await.as_deref(), Some("disabled"), "instance {instance}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_with_wait_returns_when_every_instance_knows_it() {
    let fleet = Fleet::start(3, &[]).await;
    let old = fleet.key(&[]);
    fleet.expect(&old, 200).await;
    let rotated = fleet.run_plain(&["keys", "rotate", &old.id.to_string(), "--wait"]);
    assert!(rotated.stderr.contains("confirmed by 3 instances"), "{}", rotated.stderr);
    assert!(keystile::credential::generate::checksum_holds(rotated.done().trim_end()));
    for instance in 0..3 {
        assert_eq!(fleet.code(instance, &old).await.as_deref(), Some("expired"), "instance {instance}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_that_are_changed_by_plain_sql_are_known_within_a_second() {
    for (place, _keystile, channel) in instances().await {
        let keys: Vec<_> = (0..3).map(|_| key_of(&place, &[])).collect();
        let ids: Vec<_> = keys.iter().map(|key| key.id.to_string()).collect();
        let limit_is = async |key: &Key, id: &str| {
            until(&format!("key {} counts under {id}", key.id), SECOND, async || {
                says(&channel, key, "limit_id", id).await
            })
            .await;
        };
        for (key, id) in keys.iter().zip(&ids) {
            limit_is(key, id).await;
        }
        let row = |predecessor: usize, successor: usize| {
            format!(
                "INSERT INTO keystile_rotations (predecessor_id, successor_id, limit_id, ends_at)
                VALUES ({}, {}, {}, '2099-01-01 00:00:00')",
                ids[predecessor], ids[successor], ids[0]
            )
        };
        place.execute(&row(0, 1)).await;
        limit_is(&keys[1], &ids[0]).await;
        until("the successor is told", SECOND, async || {
            says(&channel, &keys[0], "rotated_to", &ids[1]).await
        })
        .await;
        place.execute(&row(1, 2)).await;
        limit_is(&keys[2], &ids[0]).await;
        place.execute(&format!("UPDATE keystile_rotations SET limit_id = {}", ids[1])).await;
        for key in &keys {
            limit_is(key, &ids[1]).await;
        }
        place.execute(&format!("DELETE FROM keystile_rotations WHERE successor_id = {}", ids[2])).await;
        limit_is(&keys[2], &ids[2]).await;
        if place.file().is_some() {
            place.execute(&row(0, 2).replace("INSERT", "INSERT OR REPLACE")).await;
            limit_is(&keys[1], &ids[1]).await;
            limit_is(&keys[2], &ids[0]).await;
            place.execute("DELETE FROM keystile_rotations").await;
        } else {
            place.execute("TRUNCATE keystile_rotations").await;
        }
        for (key, id) in keys.iter().zip(&ids) {
            limit_is(key, id).await;
        }
    }
}

/// How many changes the log has.
async fn logged(place: &Place) -> String {
    place.value("SELECT CAST(count(*) AS text) FROM keystile_changes").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_key_spends_denies_the_other_within_a_second_and_costs_nothing_before() {
    for (place, keystile, channel) in instances().await {
        let old = key_of(&place, &["--budget-limit-cents", "100"]);
        let new = rotate_by(&keystile.setup, &old, &["--overlap", "7d"]);
        let newest = rotate_by(&keystile.setup, &new, &["--overlap", "7d"]);
        let spend = |key: &Key, cents: u32| {
            format!(
                "UPDATE api_keys SET total_cost = {cents}, total_requests = total_requests + 1 WHERE id = {}",
                key.id
            )
        };
        for key in [&old, &new, &newest] {
            until_code(&channel, key, None).await;
        }
        let before = logged(&place).await;
        for (key, cents) in [(&old, 40), (&new, 30), (&old, 45), (&newest, 20)] {
            place.execute(&spend(key, cents)).await;
        }
        assert_eq!(logged(&place).await, before, "below the limit, no record has to be read again");
        place.execute(&spend(&new, 35)).await;
        for key in [&old, &new, &newest] {
            until_code(&channel, key, Some("budget_exhausted")).await;
        }
        // The application resets one of them.
        place.execute(&spend(&old, 0)).await;
        for key in [&old, &new, &newest] {
            until_code(&channel, key, None).await;
        }
        // Two keys in one statement.
        place
            .execute(&format!("UPDATE api_keys SET total_cost = 50 WHERE id IN ({}, {})", old.id, new.id))
            .await;
        for key in [&old, &new, &newest] {
            until_code(&channel, key, Some("budget_exhausted")).await;
        }
        place.execute(&format!("DELETE FROM api_keys WHERE id = {}", old.id)).await;
        until_code(&channel, &newest, None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_do_not_see_each_other_reach_the_limit_together() {
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let fleet = Fleet::start(1, &[]).await;
        let database = Setup::with_database(&fleet.schema.url());
        let old = fleet.key(&["--budget-limit-cents", "100"]);
        let new = rotate_by(&database, &old, &["--overlap", "7d"]);
        fleet.schema.execute("UPDATE api_keys SET total_cost = 40").await;
        fleet.expect(&old, 200).await;
        fleet.expect(&new, 200).await;
        let spend =
            |key: &Key| format!("UPDATE api_keys SET total_cost = total_cost + 15 WHERE id = {}", key.id);
        let clients = [fleet.schema.client().await, fleet.schema.client().await];
        for client in &clients {
            client
                .batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT 1 FROM users"))
                .await
                .unwrap();
        }
        for (client, key) in clients.iter().zip([&old, &new]) {
            client.batch_execute(&spend(key)).await.unwrap();
        }
        // Neither of them fails because of the triggers.
        for client in &clients {
            client.batch_execute("COMMIT").await.unwrap();
        }
        if level == "READ COMMITTED" {
            // Neither saw the other. The next request's cost reveals the sum.
            fleet.schema.execute(&spend(&old)).await;
        }
        for key in [&old, &new] {
            until("the budget is spent", SECOND, async || {
                fleet.code(0, key).await.as_deref() == Some("budget_exhausted")
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_the_triggers_may_not_see_are_taken_to_be_spent() {
    let fleet = Fleet::start(1, &[]).await;
    let database = Setup::with_database(&fleet.schema.url());
    let old = fleet.key(&["--budget-limit-cents", "100"]);
    let new = rotate_by(&database, &old, &["--overlap", "7d"]);
    fleet.schema.execute("UPDATE api_keys SET total_cost = 40").await;
    // The owner of the tables, which owns the functions, sees one key only.
    let owner = format!("owner_of_{}", fleet.schema.name());
    let tables = "api_keys, users, keystile_changes, keystile_rotations, keystile_rotated_budgets";
    let give =
        tables.split(", ").map(|table| format!("ALTER TABLE {table} OWNER TO {owner};")).collect::<String>();
    fleet
        .schema
        .execute(&format!(
            "DROP ROLE IF EXISTS {owner}; CREATE ROLE {owner}; GRANT ALL ON SCHEMA {} TO {owner}; {give}
            ALTER SEQUENCE keystile_changes_lost OWNER TO {owner};
            ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY one ON api_keys USING (id = {})",
            fleet.schema.name(),
            old.id
        ))
        .await;
    assert!(database.run(&["migrate"]).status.success());
    until("both are in memory, while the feed is up", 10 * SECOND, async || {
        let mut answers = Vec::new();
        for key in [&old, &new] {
            answers.push(format!("{:?}", ask(&fleet.channels[0], &key.credential).await));
        }
        let is_up = fleet.instances[0].setup.stats().await["change_feed"]["up"] == true;
        is_up && answers.iter().all(|answer| answer.contains("\"memory\""))
    })
    .await;
    fleet.schema.execute(&format!("UPDATE api_keys SET total_cost = 60 WHERE id = {}", old.id)).await;
    for key in [&old, &new] {
        until("the budget is spent", SECOND, async || {
            fleet.code(0, key).await.as_deref() == Some("budget_exhausted")
        })
        .await;
    }
    fleet
        .schema
        .execute(&format!("REASSIGN OWNED BY {owner} TO keystile; DROP OWNED BY {owner}; DROP ROLE {owner}"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_whose_period_or_flag_leaves_them_to_others_cost_no_reading() {
    let fleet = Fleet::start(1, &[]).await;
    let database = Setup::with_database(&fleet.schema.url());
    let old = fleet.key(&["--budget-limit-cents", "100", "--budget-type", "monthly"]);
    rotate_by(&database, &old, &["--overlap", "7d"]);
    fleet.schema.execute("UPDATE api_keys SET total_cost = 1000").await;
    let count = "SELECT count(*) FROM keystile_changes";
    let before = fleet.schema.value(count).await;
    fleet.schema.execute("UPDATE api_keys SET total_cost = total_cost + 1").await;
    assert_eq!(fleet.schema.value(count).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn use_of_a_copied_budget_denies_the_other_key_within_a_second() {
    for (place, keystile, channel) in instances().await {
        let old = key_of(&place, &[]);
        let period =
            [("period_start", Some("2020-01-01 00:00:00")), ("period_end", Some("2099-01-01 00:00:00"))];
        let id = old.id.to_string();
        place.budget("1", &[&period[..], &[("api_key_id", Some(&id))]].concat()).await;
        if place.file().is_none() {
            place.execute("SELECT setval('budgets_id_seq', 100)").await;
        }
        let new = rotate_by(&keystile.setup, &old, &["--overlap", "7d"]);
        let spend = |key: &Key, cents: u32| {
            format!("UPDATE budgets SET current_usage_cents = {cents} WHERE api_key_id = {}", key.id)
        };
        for key in [&old, &new] {
            until_code(&channel, key, None).await;
        }
        let before = logged(&place).await;
        place.execute(&spend(&old, 60)).await;
        place.execute(&spend(&new, 30)).await;
        assert_eq!(logged(&place).await, before);
        place.execute(&spend(&new, 40)).await;
        for key in [&old, &new] {
            until_code(&channel, key, Some("budget_exhausted")).await;
        }
        place.execute("DELETE FROM keystile_rotated_budgets").await;
        for key in [&old, &new] {
            until_code(&channel, key, None).await;
        }
    }
}
