//! Many keys are revoked at once: all of those that were meant, or none.

use keystile::{
    record::KeyId,
    store::{KeyFilter, ManagementError},
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::harness::{
    keystile::{Run, keystile},
    place::{HASH, Place},
};

/// Both databases, with this many keys of user 1 that were created in 2020.
async fn places(keys: usize) -> [Place; 2] {
    let places = [Place::sqlite().await, Place::postgres().await];
    for place in &places {
        place.user().await;
        let row = |id| format!("({id}, '{HASH}', 'ks_sampl', 1, '1', '2020-01-01', '[\"batch\"]')");
        let rows: Vec<_> = (1..=keys).map(row).collect();
        let columns = "id, key_hash, key_prefix, user_id, is_active, created_at, tags";
        place.execute(&format!("INSERT INTO api_keys ({columns}) VALUES {}", rows.join(", "))).await;
    }
    places
}

fn revoke(place: &Place, flags: &[&str]) -> Run {
    keystile(&[&["keys", "revoke"], flags].concat(), &place.url(), "")
}

async fn active(place: &Place) -> String {
    let active = if place.file().is_some() { "is_active = 1" } else { "is_active" };
    let sql = format!("SELECT CAST(count(*) AS text) FROM api_keys WHERE {active}");
    place.value(&sql).await.expect("a count")
}

#[tokio::test]
async fn keys_of_a_user_a_tag_or_without_use_are_revoked_together() {
    for place in places(9).await {
        place.execute("UPDATE api_keys SET tags = '[\"ci\", \"batch\"]' WHERE id <= 2").await;
        place.execute("UPDATE api_keys SET last_used_at = '2099-01-01' WHERE id BETWEEN 3 AND 6").await;
        let dry = revoke(&place, &["--tag", "ci", "--dry-run", "--output", "json"]);
        assert!(dry.stderr.contains("would revoke 2 keys"), "{}", dry.stderr);
        assert_eq!(dry.json().as_array().map(Vec::len), Some(2));
        assert_eq!(active(&place).await, "9");
        let said = revoke(&place, &["--tag", "ci", "--tag", "batch", "--yes"]).done();
        assert_eq!(said, "revoked 2 keys\n");
        let told = revoke(&place, &["--unused-since", "90d", "--yes", "--output", "json"]).json();
        assert_eq!(told["revoked"], 3);
        assert_eq!(told["keys"], json!([7, 8, 9]));
        assert_eq!(revoke(&place, &["--user", "ADA@example.com", "--yes"]).done(), "revoked 4 keys\n");
        assert_eq!(active(&place).await, "0");
        let none = revoke(&place, &["--user", "1", "--yes", "--output", "json"]).json();
        assert_eq!(none, json!({"revoked": 0, "keys": []}));
        let updated = "SELECT CAST(count(*) AS text) FROM api_keys WHERE updated_at > '2020-01-01'";
        assert_eq!(place.value(updated).await.as_deref(), Some("9"));
    }
}

#[tokio::test]
async fn many_keys_are_not_revoked_unless_someone_said_so() {
    for place in places(3).await {
        let said = revoke(&place, &["--tag", "batch"]).failed(1);
        assert!(said.contains("3 keys") && said.contains("--yes") && said.contains("--dry-run"), "{said}");
        for (flags, status, words) in [
            (&["--yes"][..], 1, "say which keys"),
            (&[], 2, "--user, --tag or --unused-since"),
            (&["1", "--user", "1", "--yes"], 2, "not both"),
            (&["--unused-since", "5m", "--yes"], 2, "less than an hour ago"),
            (&["--unused-since", "2099-01-01T00:00:00Z", "--yes"], 2, "in the future"),
            (&["--user", "eve@example.com", "--yes"], 1, "eve@example.com"),
            (&["--tag", "", "--yes"], 2, "--tag"),
        ] {
            let said = revoke(&place, flags).failed(status);
            assert!(said.contains(words), "{flags:?}: {said}");
        }
        assert_eq!(active(&place).await, "3");
    }
}

#[tokio::test]
async fn ten_thousand_keys_are_revoked_in_one_transaction() {
    for place in places(10_000).await {
        let told = revoke(&place, &["--tag", "batch", "--yes", "--output", "json"]).json();
        assert_eq!((&told["revoked"], active(&place).await.as_str()), (&Value::from(10_000), "0"));
    }
}

#[tokio::test]
async fn row_that_cannot_be_revoked_leaves_every_other_as_it_is() {
    let [sqlite, postgres] = places(1_200).await;
    sqlite
        .execute(
            "CREATE TRIGGER keep BEFORE UPDATE ON api_keys WHEN OLD.id = 1100
                BEGIN SELECT RAISE(ABORT, 'key 1100 is kept'); END",
        )
        .await;
    postgres
        .execute(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN IF OLD.id = 1100 THEN RAISE ''key 1100 is kept''; END IF; RETURN NEW; END';
            CREATE TRIGGER keep BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION keep()",
        )
        .await;
    for place in [&sqlite, &postgres] {
        let said = revoke(place, &["--tag", "batch", "--yes"]).failed(1);
        assert!(said.contains("key 1100 is kept"), "{said}");
        assert_eq!(active(place).await, "1200");
    }
    // A row that is skipped without an error.
    sqlite
        .execute(
            "DROP TRIGGER keep; CREATE TRIGGER keep BEFORE UPDATE ON api_keys WHEN OLD.id = 1100
                BEGIN SELECT RAISE(IGNORE); END",
        )
        .await;
    postgres
        .execute(
            "CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN IF OLD.id = 1100 THEN RETURN NULL; END IF; RETURN NEW; END'",
        )
        .await;
    for place in [&sqlite, &postgres] {
        let said = revoke(place, &["--tag", "batch", "--yes"]).failed(1);
        assert!(said.contains("nothing was revoked") && said.contains("left 1 of the rows"), "{said}");
        assert_eq!(active(place).await, "1200");
    }
}

#[tokio::test]
async fn key_that_was_used_or_created_after_the_count_is_not_revoked() {
    for place in places(3).await {
        let unused_since = Some(OffsetDateTime::now_utc() - Duration::days(90));
        let filter = KeyFilter { unused_since, ..KeyFilter::default() };
        let database = place.database();
        let mut counted = database.key_ids(&filter).await.expect("answers");
        counted.sort();
        assert_eq!(counted, [1, 2, 3].map(KeyId));
        place.execute("UPDATE api_keys SET last_used_at = '2099-01-01' WHERE id = 2").await;
        place.key("4", &[("created_at", Some("2020-01-01"))]).await;
        let revoked = database.revoke_keys(&filter, &counted, Box::new(|_| ())).await.expect("revokes");
        assert_eq!(revoked.keys, [1, 3].map(KeyId));
        assert_eq!(active(&place).await, "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn use_that_is_committed_while_the_revocation_waits_for_its_row_counts() {
    let place = &places(2).await[1];
    let unused_since = Some(OffsetDateTime::now_utc() - Duration::days(90));
    let filter = KeyFilter { unused_since, ..KeyFilter::default() };
    let database = place.database();
    let counted = database.key_ids(&filter).await.expect("answers");
    let connected = tokio_postgres::connect(&place.url(), tokio_postgres::NoTls).await;
    let (client, connection) = connected.expect("connects");
    tokio::spawn(connection);
    let using = "BEGIN; UPDATE api_keys SET last_used_at = '2099-01-01' WHERE id = 1";
    client.batch_execute(using).await.expect("updates");
    let revoking = tokio::spawn(async move {
        let progress = Box::new(|_| ());
        database.revoke_keys(&filter, &counted, progress).await
    });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE OF k%'";
    crate::harness::until("it waits for the row", std::time::Duration::from_secs(10), async || {
        place.value(waiting).await.as_deref() != Some("0")
    })
    .await;
    client.batch_execute("COMMIT").await.expect("commits");
    let revoked: Result<_, ManagementError> = revoking.await.expect("no panic");
    assert_eq!(revoked.expect("revokes").keys, [KeyId(2)]);
}
