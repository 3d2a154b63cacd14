//! Every request that is let through is counted in the database, once, and nothing waits for it.

use std::time::Duration;

use keystile::revocation::ChangeLog;
use rustix::process::Signal;

use crate::harness::{
    client::{Asked, ask, ask_about, channel, status},
    fleet::Fleet,
    place::Place,
    postgres::{self, Schema},
    proxy::{Proxy, Wire},
    service::{Key, Keystile, Setup},
    until,
};

const SECOND: Duration = Duration::from_secs(1);

async fn total(fleet: &Fleet) -> u64 {
    let total = fleet.schema.value("SELECT sum(total_requests)::text FROM api_keys").await;
    total.map_or(0, |total| total.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_all_instances_are_in_the_database_after_they_were_stopped() {
    let mut fleet = Fleet::start(2, &[("KEYSTILE_USAGE_INTERVAL", "1s")]).await;
    let keys = [fleet.key(&[]), fleet.key(&[])];
    for n in 0..500 {
        let (instance, key) = (n % 2, &keys[n % 3 % 2]);
        assert_eq!(fleet.status(instance, key).await, 200);
    }
    // Neither of these gets through.
    assert_eq!(status(&ask(&fleet.channels[0], "zz_nobodysKey").await), 401);
    assert_eq!(status(&ask(&fleet.channels[0], &format!("{}x", keys[0].credential)).await), 401);
    fleet.channels.clear();
    for instance in &mut fleet.instances {
        instance.process.signal(Signal::TERM);
        assert_eq!(instance.process.wait(10 * SECOND), Some(0), "{}", instance.setup.log());
    }
    assert_eq!(total(&fleet).await, 500);
    let unused = fleet.schema.value("SELECT count(*) FROM api_keys WHERE last_used_at IS NULL").await;
    assert_eq!(unused.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_outlives_an_outage_and_is_not_written_twice() {
    let schema = Schema::create().await;
    let server = postgres::server().address();
    let proxy = Proxy::before(server).await;
    let by_way = proxy.url(&schema.url(), server);
    let fleet = Fleet::on(schema, &by_way, 1, &[("KEYSTILE_USAGE_INTERVAL", "1s")]).await;
    let key = fleet.key(&[]);
    let mut asked = 0;
    for wire in [Wire::Whole, Wire::Cut, Wire::Hanging, Wire::Slow(3 * SECOND), Wire::Whole] {
        if wire == Wire::Whole {
            proxy.mend();
            until("it is in touch", 5 * SECOND, async || {
                fleet.status(0, &key).await == 200 && {
                    asked += 1;
                    true
                }
            })
            .await;
        }
        proxy.set(wire);
        for _ in 0..40 {
            if fleet.status(0, &key).await == 200 {
                asked += 1;
            }
            tokio::time::sleep(SECOND / 20).await;
        }
    }
    proxy.mend();
    let metrics = fleet.instances[0].setup.metrics().await;
    assert!(metrics.contains("keystile_usage_pending"), "{metrics}");
    until("all is written", 10 * SECOND, async || total(&fleet).await == asked).await;
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(total(&fleet).await, asked, "and once");
}

/// What was counted of a key.
async fn total_of(schema: &Schema, key: &Key) -> u64 {
    let sql = format!("SELECT total_requests::text FROM api_keys WHERE id = {}", key.id);
    schema.value(&sql).await.unwrap().parse().unwrap()
}

/// Constraints, triggers and locks of other applications, each on the row `{id}`.
const REFUSING: [&str; 3] = [
    "ALTER TABLE api_keys ADD CONSTRAINT refused CHECK (id <> {id} OR total_requests = 0)",
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $body$ BEGIN RAISE EXCEPTION 'not this one'; END $body$;
    CREATE TRIGGER refuse BEFORE UPDATE ON api_keys FOR EACH ROW WHEN (NEW.id = {id}) EXECUTE FUNCTION refuse()",
    "CREATE FUNCTION refuse_too() RETURNS trigger LANGUAGE plpgsql AS
        $body$ BEGIN RAISE EXCEPTION 'nor this' USING ERRCODE = 'KS001'; END $body$;
    CREATE TRIGGER refuse_too BEFORE UPDATE ON api_keys FOR EACH ROW WHEN (NEW.id = {id}) EXECUTE FUNCTION refuse_too()",
];

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_refuse_or_are_locked_cost_their_own_counts_alone() {
    let mut fleet = Fleet::start(1, &[("KEYSTILE_USAGE_INTERVAL", "1s")]).await;
    let keys: Vec<_> = (0..20).map(|_| fleet.key(&[])).collect();
    let (refused, rest) = keys.split_at(REFUSING.len());
    for (sql, key) in REFUSING.iter().zip(refused) {
        fleet.schema.execute(&sql.replace("{id}", &key.id.to_string())).await;
    }
    let (locked, good) = rest.split_first().unwrap();
    let other = fleet.schema.client().await;
    let lock = format!("BEGIN; SELECT FROM api_keys WHERE id = {} FOR UPDATE", locked.id);
    other.batch_execute(&lock).await.unwrap();
    for key in &keys {
        assert_eq!(fleet.status(0, key).await, 200);
    }
    until("the other rows are written", 20 * SECOND, async || total(&fleet).await == good.len() as u64).await;
    for key in good {
        assert_eq!(total_of(&fleet.schema, key).await, 1);
    }
    // These are written once the lock is gone, and what comes last is written at the end.
    other.batch_execute("ROLLBACK").await.unwrap();
    until("the row that was locked is written", 10 * SECOND, async || {
        total_of(&fleet.schema, locked).await == 1
    })
    .await;
    for key in &keys {
        assert_eq!(fleet.status(0, key).await, 200);
    }
    fleet.channels.clear();
    let keystile = &mut fleet.instances[0];
    keystile.process.signal(Signal::TERM);
    assert_eq!(keystile.process.wait(10 * SECOND), Some(0), "{}", keystile.setup.log());
    for key in rest {
        assert_eq!(total_of(&fleet.schema, key).await, 2);
    }
    let log = fleet.instances[0].setup.log();
    for key in refused {
        assert_eq!(total_of(&fleet.schema, key).await, 0);
        let lost = format!("key_id={} requests=2", key.id);
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains(&lost)), "{lost} in {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_of_a_file_that_refuses_costs_its_own_count_alone() {
    let setup = Setup::new();
    setup.create_user("ada");
    let keys: Vec<_> = (0..5).map(|_| setup.create_key("ada", &[])).collect();
    setup.execute(&format!(
        "CREATE TRIGGER refuse BEFORE UPDATE ON api_keys WHEN NEW.id = {}
        BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        keys[2].id
    ));
    let Keystile { setup, mut process } = setup.start(&[("KEYSTILE_USAGE_INTERVAL", "1s")]).await;
    let channel = channel(setup.tcp).await;
    for key in keys.iter().chain(&keys) {
        assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    }
    let shown = |key: &Key| setup.json(&["keys", "show", &key.id.to_string()])["total_requests"].clone();
    let written = async || (0..5).all(|n| shown(&keys[n]) == if n == 2 { 0 } else { 2 });
    until("the other rows are written", 10 * SECOND, written).await;
    drop(channel);
    process.signal(Signal::TERM);
    assert_eq!(process.wait(5 * SECOND), Some(0), "{}", setup.log());
    let lost = format!("key_id={} requests=2", keys[2].id);
    assert!(setup.log().contains(&lost), "{lost} in {}", setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_chosen_columns_are_written() {
    for (columns, total, is_dated) in [
        ("last_used_at", "0", true),
        ("total_requests", "1", false),
        ("total_requests,last_used_at", "1", true),
    ] {
        let settings = [("KEYSTILE_USAGE_INTERVAL", "1s"), ("KEYSTILE_USAGE_COLUMNS", columns)];
        let mut fleet = Fleet::start(1, &settings).await;
        let key = fleet.key(&[]);
        fleet.expect(&key, 200).await;
        fleet.channels.clear();
        fleet.instances[0].process.signal(Signal::TERM);
        assert_eq!(fleet.instances[0].process.wait(10 * SECOND), Some(0));
        let written = fleet
            .schema
            .value("SELECT total_requests::text || ' ' || (last_used_at IS NOT NULL)::text FROM api_keys");
        assert_eq!(written.await.unwrap(), format!("{total} {is_dated}"), "{columns}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_envoy_asks_about_again_counts_once() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let Keystile { setup, mut process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    for stream in ["11", "11", "12", "11"] {
        let asked =
            Asked { credential: &key.credential, method: "GET", path: "/", stream, ..Asked::default() };
        assert_eq!(status(&ask_about(&channel, &asked).await), 200);
    }
    drop(channel);
    process.signal(Signal::TERM);
    assert_eq!(process.wait(10 * SECOND), Some(0), "{}", setup.log());
    let shown = setup.json(&["keys", "show", &key.id.to_string()]);
    assert_eq!(shown["total_requests"], 2, "{shown}");
    assert!(shown["last_used_at"].is_string(), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn last_use_is_written_every_five_minutes_and_counts_are_added() {
    use keystile::{
        config::UsageColumn,
        record::KeyId,
        store::UsageTable,
        usage::{Batch, KeyUsage, UsageStore, WriteOutcome},
    };
    use time::macros::datetime;
    let start = datetime!(2026-01-02 03:04:05 UTC);
    for place in [
        Place::sqlite().await,
        Place::sqlite_older().await,
        Place::postgres().await,
        Place::postgres_older().await,
    ] {
        place.user().await;
        place.key("1", &[]).await;
        let database = place.database();
        let table = UsageTable::new(database.clone(), &[UsageColumn::LastUsedAt, UsageColumn::TotalRequests]);
        for (seconds, total, last) in [(0, 2, 0), (299, 4, 0), (301, 6, 301), (200, 8, 301)] {
            let used = KeyUsage { requests: 2, last: start + Duration::from_secs(seconds) };
            let written = table.write_usage(&Batch::from([(KeyId(1), used), (KeyId(99), used)])).await;
            assert!(matches!(written, WriteOutcome::Done), "{written:?}");
            let key = database.find_key("1").await.unwrap();
            let expected = start + Duration::from_secs(last);
            let form = &time::format_description::well_known::Rfc3339;
            assert_eq!(key.text("total_requests"), total.to_string());
            assert_eq!(key.text("last_used_at"), expected.format(form).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_where_it_is_not_wanted() {
    let fleet = Fleet::start(1, &[("KEYSTILE_USAGE_INTERVAL", "0s")]).await;
    let key = fleet.key(&[]);
    fleet.expect(&key, 200).await;
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(total(&fleet).await, 0);
}

/// Makes a role with the rights that `keystile migrate --print-grants` prints for it; its URL.
async fn documented_role(schema: &Schema, suffix: &str) -> String {
    let name = format!("keystile_{}", schema.name());
    for role in [name.clone(), format!("{name}_admin")] {
        schema.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    }
    let setup = Setup::with_database(&schema.url());
    let grants = setup.run(&["migrate", "--print-grants", "--role", &name]);
    assert!(grants.status.success(), "{}", String::from_utf8_lossy(&grants.stderr));
    schema.execute(&String::from_utf8(grants.stdout).unwrap()).await;
    schema.url().replace("keystile@", &format!("{name}{suffix}@"))
}

/// Removes what [`documented_role`] has made.
async fn drop_roles(schema: &Schema) {
    let name = format!("keystile_{}", schema.name());
    schema.execute(&format!("DROP OWNED BY {name}, {name}_admin; DROP ROLE {name}, {name}_admin")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn role_with_the_documented_rights_manages_keys() {
    let fleet = Fleet::start(1, &[]).await;
    let url = documented_role(&fleet.schema, "_admin").await;
    let setup = Setup::with_database(&url);
    setup.create_user("bob");
    let key = setup.json(&["keys", "create", "--user", "bob@example.com"]);
    let id = key["id"].to_string();
    let hash = "$2b$04$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";
    let csv = format!("id,user_email,key_prefix,key_hash\n700,bob@example.com,ks_other,{hash}\n");
    std::fs::write(setup.path("keys.csv"), csv).unwrap();
    setup.json(&["explain", &id]);
    for command in [
        &["keys", "import", "keys.csv"][..],
        &["keys", "revoke", &id, "--wait"],
        &["invalidate", "--all"],
        &["users", "disable", "bob@example.com"],
    ] {
        let output = setup.run(command);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    drop_roles(&fleet.schema).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn role_with_the_documented_rights_serves_counts_and_prunes() {
    let fleet = Fleet::start(0, &[]).await;
    let key = fleet.key(&[]);
    let url = documented_role(&fleet.schema, "").await;
    let setup = Setup::with_database(&url);
    let secret = ("KEYSTILE_CACHE_SECRET", "the cache secret of this test and of no other");
    let Keystile { setup, process } = setup.start(&[("KEYSTILE_USAGE_INTERVAL", "1s"), secret]).await;
    let channel = channel(setup.tcp).await;
    assert_eq!(status(&ask(&channel, &key.credential).await), 200);
    until("its use is counted", 10 * SECOND, async || total(&fleet).await == 1).await;
    let proofs = async || fleet.schema.value("SELECT count(*) FROM keystile_proofs").await.unwrap();
    until("its proof is stored", 10 * SECOND, async || proofs().await == "1").await;
    assert_eq!(setup.stats().await["change_feed"]["up"], true);
    let database = crate::harness::place::options(&url, 5_000);
    let metrics = keystile::metrics::Metrics::new().unwrap();
    let database = keystile::store::Database::connect(&database, &metrics).unwrap();
    database.prune().await.expect("allowed");
    let later = keystile::clock::Timestamps::now().wall + keystile::proof::MAX_AGE;
    database.prune_proofs(later).await.expect("allowed");
    assert_eq!(proofs().await, "0");
    drop((process, database));
    drop_roles(&fleet.schema).await;
}
