//! A key that was proven once needs no bcrypt after a restart, where there is no Redis.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use rustix::process::Signal;

use crate::harness::{
    client::{ask, channel, status},
    place::{CREDENTIAL, HASH, Place},
    postgres::Schema,
    redis::Redis,
    service::{Key, Keystile, Setup},
    until,
};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: (&str, &str) = ("KEYSTILE_CACHE_SECRET", "the cache secret of these tests and of no others");

/// How often bcrypt has run.
async fn computations(setup: &Setup) -> u64 {
    let metrics = setup.metrics().await;
    let count = metrics.lines().find_map(|line| line.strip_prefix("keystile_bcrypt_duration_seconds_count "));
    count.map_or(0, |count| count.parse().unwrap())
}

/// What stands for one key in `keystile_durable_proofs_total`.
async fn proofs(setup: &Setup, result: &str) -> u64 {
    let name = format!("keystile_durable_proofs_total{{result=\"{result}\"}} ");
    let metrics = setup.metrics().await;
    metrics.lines().find_map(|line| line.strip_prefix(&*name)).map_or(0, |count| count.parse().unwrap())
}

/// Uses each key once; all must be let in. Returns how often bcrypt ran for it.
async fn use_all(setup: &Setup, keys: &[Key]) -> u64 {
    let (channel, before) = (channel(setup.tcp).await, computations(setup).await);
    for key in keys {
        assert_eq!(status(&ask(&channel, &key.credential).await), 200, "{}", setup.log());
    }
    computations(setup).await - before
}

/// Ends it as an orchestrator does, for its setup.
fn stop(keystile: Keystile) -> Setup {
    let Keystile { mut process, setup } = keystile;
    process.signal(Signal::TERM);
    assert_eq!(process.wait(10 * SECOND), Some(0), "{}", setup.log());
    setup
}

/// A database with this many keys.
fn with_keys(setup: Setup, count: usize) -> (Setup, Vec<Key>) {
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let keys = (0..count).map(|_| setup.create_key("ada", &[])).collect();
    (setup, keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_costs_proven_keys_no_bcrypt_with_a_file() {
    let (setup, keys) = with_keys(Setup::new(), 20);
    let keystile = setup.start(&[]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 20);
    let keystile = stop(keystile).start(&[]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 0, "{}", keystile.setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_costs_proven_keys_no_bcrypt_with_postgres() {
    let schema = Schema::create().await;
    let (setup, keys) = with_keys(Setup::with_database(&schema.url()), 20);
    let keystile = setup.start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 20);
    drop(stop(keystile));
    // Another one, as after a deployment, with nothing but the database and the secret.
    let keystile = Setup::with_database(&schema.url()).start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 0, "{}", keystile.setup.log());
}

/// Puts in a key that was made elsewhere: bcrypt of [`CREDENTIAL`], which Keystile did not draw.
fn import(setup: &Setup) -> Key {
    let csv = format!("id,user_email,key_prefix,key_hash\n700,ada@example.com,{},{HASH}\n", &CREDENTIAL[..8]);
    std::fs::write(setup.path("keys.csv"), csv).unwrap();
    assert!(setup.run(&["keys", "import", "keys.csv"]).status.success());
    Key { id: 700, credential: CREDENTIAL.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_key_is_stored_only_where_its_brand_is_said_to_be_random() {
    for (setting, stored, after) in [
        (None, 1, 1),
        (Some("generated,ks_"), 2, 0),
        (Some("ks_sample"), 1, 1),
        (Some("all"), 2, 0),
        (Some("none"), 0, 2),
    ] {
        let (setup, mut keys) = with_keys(Setup::new(), 1);
        keys.push(import(&setup));
        let settings: Vec<_> = setting.map(|value| ("KEYSTILE_DURABLE_PROOFS", value)).into_iter().collect();
        let keystile = setup.start(&settings).await;
        assert_eq!(use_all(&keystile.setup, &keys).await, 2);
        let setup = stop(keystile);
        let count = setup.value("SELECT count(*) FROM keystile_proofs");
        assert_eq!(count, stored.to_string(), "{setting:?}");
        let keystile = setup.start(&settings).await;
        assert_eq!(use_all(&keystile.setup, &keys).await, after, "{setting:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_were_changed_moved_or_brought_back_are_not_believed() {
    let (setup, keys) = with_keys(Setup::new(), 2);
    let keystile = setup.start(&[]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 2);
    let mut setup = stop(keystile);
    setup.execute("CREATE TABLE kept AS SELECT * FROM keystile_proofs");
    let [one, two] = [keys[0].id, keys[1].id];
    for (changed, computed) in [
        (String::new(), 0),
        ("UPDATE keystile_proofs SET proven_at = proven_at + 1".to_owned(), 2),
        ("UPDATE keystile_proofs SET tag = substr(tag, 2) || '0'".to_owned(), 2),
        ("UPDATE keystile_proofs SET seal = substr(seal, 2) || 'A'".to_owned(), 2),
        (
            "UPDATE keystile_proofs SET seal = 'no seal', tag = 'x' || key_id, proven_at = 'soon'".to_owned(),
            2,
        ),
        (format!("UPDATE keystile_proofs SET key_id = {one} + {two} - key_id"), 2),
        (format!("UPDATE keystile_proofs SET key_id = {one}"), 1),
        // Sealed for the first key's hash, which the second's replaces.
        (
            format!(
                "UPDATE api_keys SET key_hash = (SELECT key_hash FROM kept_keys WHERE id = {two}) WHERE id = {one}"
            ),
            2,
        ),
    ] {
        setup.execute(&format!(
            "DROP TABLE IF EXISTS kept_keys; CREATE TABLE kept_keys AS SELECT * FROM api_keys;
            DELETE FROM keystile_proofs; INSERT INTO keystile_proofs SELECT * FROM kept; {changed}"
        ));
        let keystile = setup.start(&[]).await;
        let channel = channel(keystile.setup.tcp).await;
        let statuses = [
            status(&ask(&channel, &keys[0].credential).await),
            status(&ask(&channel, &keys[1].credential).await),
        ];
        let expected = if changed.contains("key_hash") { [401, 200] } else { [200, 200] };
        assert_eq!(statuses, expected, "{changed}");
        let ran = computations(&keystile.setup).await;
        assert!(ran == computed || (changed.contains("key_hash") && ran == 1), "{ran} for {changed}");
        drop(channel);
        setup = stop(keystile);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_proof_lets_no_key_in_that_was_revoked_or_has_another_hash() {
    let schema = Schema::create().await;
    let (setup, keys) = with_keys(Setup::with_database(&schema.url()), 3);
    let keystile = setup.start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 3);
    let setup = stop(keystile);
    assert!(setup.run(&["keys", "revoke", &keys[0].id.to_string()]).status.success());
    schema.execute(&format!("UPDATE api_keys SET key_hash = '{HASH}' WHERE id = {}", keys[1].id)).await;
    let Keystile { setup, process } = setup.start(&[SECRET]).await;
    let channel = channel(setup.tcp).await;
    let mut statuses = Vec::new();
    for key in &keys {
        statuses.push(status(&ask(&channel, &key.credential).await));
    }
    assert_eq!(statuses, [401, 401, 200], "{}", setup.log());
    assert_eq!(computations(&setup).await, 1, "only for the hash that is new");
    // The process lives while the key goes away: its stored proof is there, and counts for nothing.
    assert_eq!(schema.value("SELECT count(*) FROM keystile_proofs").await.as_deref(), Some("3"));
    drop(process);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_believes_nothing_and_two_secrets_believe_both() {
    let (new, both) = ("n".repeat(32), format!("{},{}", "n".repeat(32), SECRET.1));
    let schema = Schema::create().await;
    let (setup, keys) = with_keys(Setup::with_database(&schema.url()), 2);
    let keystile = setup.start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 2);
    let setup = stop(keystile);
    let keystile = setup.start(&[("KEYSTILE_CACHE_SECRET", &both)]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 0);
    let keystile = stop(keystile).start(&[("KEYSTILE_CACHE_SECRET", &new)]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 2);
    let keystile = stop(keystile).start(&[("KEYSTILE_CACHE_SECRET", &new)]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_table_all_works_as_before_until_it_is_made() {
    let schema = Schema::create().await;
    let (setup, keys) = with_keys(Setup::with_database(&schema.url()), 4);
    let keystile = setup.start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys[..1]).await, 1);
    until("it is stored", 5 * SECOND, async || proofs(&keystile.setup, "written").await == 1).await;
    // Under the running process, whose look-ups have it in their statement.
    schema.execute("DROP TABLE keystile_proofs").await;
    assert_eq!(use_all(&keystile.setup, &keys[1..3]).await, 2);
    until("they are lost", 5 * SECOND, async || proofs(&keystile.setup, "lost").await == 2).await;
    let said = |setup: &Setup| setup.log().matches("proofs are not stored at the moment").count();
    assert_eq!(said(&keystile.setup), 1, "{}", keystile.setup.log());
    let keystile = stop(keystile).start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys[..3]).await, 3);
    until("it is said", 5 * SECOND, async || said(&keystile.setup) == 1).await;
    assert!(keystile.setup.log().contains("keystile migrate"), "{}", keystile.setup.log());
    let made = keystile.setup.run(&["migrate"]);
    let made = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(made.contains("created the table keystile_proofs"), "{made}");
    let keystile = stop(keystile).start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 4);
    let keystile = stop(keystile).start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn role_without_rights_on_the_table_serves_as_before_and_says_so_once() {
    let schema = Schema::create().await;
    let (setup, keys) = with_keys(Setup::with_database(&schema.url()), 4);
    let keystile = setup.start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 4);
    drop(stop(keystile));
    let role = format!("reader_{}", schema.name());
    schema
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {} TO {role};
            GRANT SELECT, UPDATE ON api_keys, users TO {role};
            GRANT SELECT, UPDATE, DELETE ON keystile_changes TO {role}",
            schema.name()
        ))
        .await;
    let url = schema.url().replace("keystile@", &format!("{role}@"));
    for (grant, computed) in [("SELECT 1", 4), (&*format!("GRANT SELECT ON keystile_proofs TO {role}"), 0)] {
        schema.execute(grant).await;
        let keystile = Setup::with_database(&url).start(&[SECRET]).await;
        assert_eq!(use_all(&keystile.setup, &keys).await, computed, "{grant}");
        // One more, which it cannot store.
        let another = [Setup::with_database(&schema.url()).create_key("ada", &[])];
        assert_eq!(use_all(&keystile.setup, &another).await, 1);
        let lost = computed + 1;
        until("they are lost", 5 * SECOND, async || proofs(&keystile.setup, "lost").await == lost).await;
        let log = keystile.setup.log();
        assert_eq!(log.matches("proofs are not stored at the moment").count(), 1, "{log}");
    }
    // A right that is taken away while it runs fails no look-up.
    let keystile = Setup::with_database(&url).start(&[SECRET]).await;
    assert_eq!(use_all(&keystile.setup, &keys[..2]).await, 0);
    schema.execute(&format!("REVOKE ALL ON keystile_proofs FROM {role}")).await;
    assert_eq!(use_all(&keystile.setup, &keys[2..]).await, 2, "{}", keystile.setup.log());
    drop(keystile);
    schema.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_the_start_says_what_a_restart_costs() {
    let schema = Schema::create().await;
    let (setup, keys) = with_keys(Setup::with_database(&schema.url()), 1);
    let says = |setup: &Setup| setup.log().contains("a restart costs one bcrypt for each key");
    let keystile = setup.start(&[]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 1);
    assert!(says(&keystile.setup), "{}", keystile.setup.log());
    let keystile = stop(keystile).start(&[("KEYSTILE_DURABLE_PROOFS", "none")]).await;
    assert!(!says(&keystile.setup), "{}", keystile.setup.log());
    drop(stop(keystile));
    assert_eq!(schema.value("SELECT count(*) FROM keystile_proofs").await.as_deref(), Some("0"));
    // A folder in which no secret can be made.
    let (setup, _) = with_keys(Setup::new(), 1);
    std::fs::create_dir(setup.path("keystile.db.secret")).unwrap();
    let keystile = setup.start(&[]).await;
    assert!(says(&keystile.setup), "{}", keystile.setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_on_one_file_share_the_secret_beside_it() {
    let (setup, keys) = with_keys(Setup::new(), 5);
    let others: Vec<_> = (0..3).map(|_| Setup::with_database(&setup.database_url)).collect();
    let secret = setup.path("keystile.db.secret");
    assert!(!secret.exists(), "commands that serve nothing need none");
    let all: Vec<_> = [setup].into_iter().chain(others).map(|setup| setup.start_unready(&[])).collect();
    for keystile in &all {
        until("ready", 20 * SECOND, async || keystile.setup.readyz().await.0 == 200).await;
    }
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(use_all(&all[0].setup, &keys).await, 5);
    until("they are stored", 5 * SECOND, async || proofs(&all[0].setup, "written").await == 5).await;
    for keystile in &all[1..] {
        assert_eq!(use_all(&keystile.setup, &keys).await, 0, "{}", keystile.setup.log());
    }
    let log: String = all.iter().map(|keystile| keystile.setup.log()).collect();
    let text = std::fs::read_to_string(secret).unwrap();
    assert!(text.trim().len() == 64 && !log.contains(text.trim()), "nothing shows it");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_stored_where_there_is_redis() {
    let redis = Redis::start();
    let (setup, keys) = with_keys(Setup::new(), 2);
    let url = redis.url();
    let keystile = setup.start(&[SECRET, ("KEYSTILE_REDIS_URL", &url)]).await;
    assert_eq!(use_all(&keystile.setup, &keys).await, 2);
    let setup = stop(keystile);
    assert_eq!(setup.value("SELECT count(*) FROM keystile_proofs"), "0");
    assert!(!setup.path("keystile.db.secret").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_are_kept_from_no_statement_of_another_application() {
    for place in [Place::sqlite().await, Place::postgres().await] {
        place.user().await;
        place.key("1", &[]).await;
        place
            .execute("INSERT INTO keystile_proofs VALUES (1, 'tag', 0, 'seal'), (2, 'tag', 0, 'seal')")
            .await;
        place.execute("UPDATE api_keys SET id = 3; DELETE FROM api_keys; DROP TABLE api_keys").await;
        assert_eq!(
            place.value("SELECT CAST(count(*) AS text) FROM keystile_proofs").await.as_deref(),
            Some("2")
        );
    }
}

#[tokio::test]
async fn proofs_are_replaced_bounded_and_deleted_when_they_are_over() {
    use keystile::{
        clock::Timestamps,
        credential::{CacheSecret, CacheSecrets, Credential},
        proof::{MAX_AGE, ProofKey},
        store::{DatabaseWithProofs, KeyStore, ProofSeals},
    };
    let secrets = CacheSecrets::one(CacheSecret::new(b"a secret"));
    let credential = Credential::parse(CREDENTIAL.as_bytes()).unwrap();
    for place in [Place::sqlite().await, Place::postgres().await] {
        place.user().await;
        place.key("1", &[]).await;
        place.key("2", &[]).await;
        let (database, now) = (place.database(), Timestamps::now());
        let proven = DatabaseWithProofs::new(database.clone(), secrets.clone(), &place.metrics);
        let found = proven.records(credential.prefix(), now).await.unwrap();
        assert_eq!(found.proofs.len(), 0);
        let seals = ProofSeals::new(secrets.clone());
        let proof = |n: usize, age: Duration| {
            let record = &found.records[n];
            let proof_key = ProofKey {
                digest: credential.digest(secrets.newest()),
                key: Some(record.id),
                hash: record.hash.tag(),
            };
            seals.seal(&proof_key, now.wall - age).unwrap()
        };
        let minute = Duration::from_secs(60);
        let count = async || place.value("SELECT CAST(count(*) AS text) FROM keystile_proofs").await.unwrap();
        for age in [3, 2, 1, 2] {
            // Twice in one batch, as two instances' would be.
            let batch = [proof(0, age * minute), proof(1, age * minute), proof(1, age * minute)];
            database.write_proofs(&batch).await.unwrap();
            assert_eq!(count().await, "2");
        }
        let found = proven.records(credential.prefix(), now).await.unwrap();
        assert_eq!(found.proofs.len(), 2);
        let until = now.wall - 2 * minute + MAX_AGE;
        assert!(found.proofs.iter().all(|proof| proof.until <= until), "from the bcrypt run on");
        // Rows of another application, as many as it likes: a look-up reads some of them, and is none the worse.
        for n in 0..100 {
            let sql = format!("INSERT INTO keystile_proofs VALUES (1, 'tag {n}', {n}, 'seal')");
            place.execute(&sql).await;
        }
        let found = proven.records(credential.prefix(), now).await.unwrap();
        assert_eq!(found.proofs.len(), 2);
        let text = place.metrics.render();
        let odd = text.lines().find(|line| line.contains("kind=\"proofs\",result=\"odd\"")).unwrap();
        assert!(odd.ends_with(" 15"), "{odd}");
        database.prune_proofs(now.wall).await.unwrap();
        assert_eq!(count().await, "2", "those are over");
        database.prune_proofs(now.wall + MAX_AGE).await.unwrap();
        assert_eq!(count().await, "0");
    }
}

/// Ids may be of other types in a database that is used as it is.
#[tokio::test(flavor = "multi_thread")]
async fn ids_of_other_types_fail_no_look_up() {
    for kind in ["numeric", "text", "smallint"] {
        let schema = Schema::create().await;
        schema
            .execute(&format!(
                "CREATE TABLE users (id integer PRIMARY KEY, email text, username text, is_active boolean);
                CREATE TABLE api_keys (id {kind} PRIMARY KEY, key_prefix text, key_hash text,
                    user_id integer, is_active boolean);
                INSERT INTO users VALUES (1, 'ada@example.com', 'ada', true);
                INSERT INTO api_keys VALUES ('7', '{}', '{HASH}', 1, true)",
                &CREDENTIAL[..8]
            ))
            .await;
        let setup = Setup::with_database(&schema.url());
        assert!(setup.run(&["migrate"]).status.success());
        let keys = [Key { id: 7, credential: CREDENTIAL.to_owned() }];
        let settings = [SECRET, ("KEYSTILE_DURABLE_PROOFS", "all"), ("KEYSTILE_USAGE_INTERVAL", "0s")];
        let keystile = setup.start(&settings).await;
        assert_eq!(use_all(&keystile.setup, &keys).await, 1, "{kind}");
        let keystile = stop(keystile).start(&settings).await;
        assert_eq!(use_all(&keystile.setup, &keys).await, 0, "{kind}");
    }
}
