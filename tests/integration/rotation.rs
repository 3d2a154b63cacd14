//! Rotated keys: the successor, the overlap, and what the keys of a chain share.

use serde_json::{Value, json};

use crate::harness::{
    keystile::{Run, keystile},
    place::{BUDGETS, Place},
};

mod gateway;
mod live;
mod refusals;
mod shared;

/// Both databases, with user 1.
async fn places() -> [Place; 2] {
    let places = [Place::sqlite().await, Place::postgres().await];
    for place in &places {
        place.user().await;
    }
    places
}

fn run(place: &Place, arguments: &[&str]) -> Run {
    keystile(arguments, &place.url(), "")
}

fn json_of(place: &Place, arguments: &[&str]) -> Value {
    run(place, &[arguments, &["--output", "json"]].concat()).json()
}

fn create(place: &Place, more: &[&str]) -> Value {
    json_of(place, &[&["keys", "create", "--user", "1"], more].concat())
}

fn id(key: &Value) -> String {
    key["id"].to_string()
}

fn rotate(place: &Place, key: &Value, more: &[&str]) -> Value {
    json_of(place, &[&["keys", "rotate", &id(key)], more].concat())
}

fn show(place: &Place, key: &Value) -> Value {
    json_of(place, &["keys", "show", &id(key)])
}

fn explain(place: &Place, key: &Value, more: &[&str]) -> Value {
    json_of(place, &[&["explain", &id(key)], more].concat())
}

fn time(value: &Value) -> time::OffsetDateTime {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time"));
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
}

#[tokio::test]
async fn successor_has_all_that_the_key_had_but_its_secret_and_its_usage() {
    for place in places().await {
        place.execute("ALTER TABLE api_keys ADD COLUMN cost_center text").await;
        place.execute("ALTER TABLE api_keys ADD COLUMN \"Team\" text DEFAULT 'none'").await;
        let settings = "--name ci --description d --expires-at 90d --scope chat --tag t --allowed-model m \
            --allowed-endpoint /v1 --allowed-ip 10.0.0.0/8 --allowed-chatbot 7 --allowed-agent a \
            --allowed-extract-template e --rate-limit-per-minute 1 --rate-limit-per-hour 2 --rate-limit-per-day 3 \
            --budget-limit-cents 500 --budget-type total";
        let old = create(&place, &settings.split_whitespace().collect::<Vec<_>>());
        place
            .execute(
                "UPDATE api_keys SET cost_center = 'A1', \"Team\" = 'red', total_requests = 9, total_tokens = 8,
                total_cost = 7, last_used_at = '2026-01-02 03:04:05'",
            )
            .await;
        let new = rotate(&place, &old, &["--overlap", "7d"]);
        for column in [
            "name",
            "description",
            "expires_at",
            "scopes",
            "tags",
            "allowed_models",
            "allowed_endpoints",
            "allowed_ips",
            "allowed_chatbots",
            "allowed_agents",
            "allowed_extract_templates",
            "user_id",
            "is_active",
            "rate_limit_per_minute",
            "rate_limit_per_hour",
            "rate_limit_per_day",
            "is_unlimited",
            "budget_limit_cents",
            "budget_type",
        ] {
            assert_eq!(new[column], old[column], "{column}");
        }
        for (column, value) in [("total_requests", 0), ("total_tokens", 0), ("total_cost", 0)] {
            assert_eq!(new[column].as_f64(), Some(value.into()), "{column}");
        }
        assert!(new["last_used_at"].is_null() && new["id"] != old["id"], "{new}");
        assert_ne!(new["credential"], old["credential"]);
        let unknown = format!("SELECT cost_center || \"Team\" FROM api_keys WHERE id = {}", id(&new));
        assert_eq!(place.value(&unknown).await.as_deref(), Some("A1red"));
        // The secret is that of the successor.
        let credential = new["credential"].as_str().unwrap();
        let identified =
            keystile(&["keys", "show", "-", "--output", "json"], &place.url(), credential).json();
        assert_eq!(identified["id"], new["id"]);
    }
}

#[tokio::test]
async fn old_key_expires_at_the_end_of_the_overlap_and_at_once_without_one() {
    for place in places().await {
        let old = create(&place, &[]);
        let new = rotate(&place, &old, &["--overlap", "7d"]);
        let left = time(&show(&place, &old)["expires_at"]) - time::OffsetDateTime::now_utc();
        assert!(left > time::Duration::days(7) - time::Duration::MINUTE && left <= time::Duration::days(7));
        assert!(new["expires_at"].is_null());
        let end = show(&place, &old)["expires_at"].as_str().unwrap().to_owned();
        for (key, code) in [(&old, json!("expired")), (&new, Value::Null)] {
            assert_eq!(explain(&place, key, &[])["code"], Value::Null);
            assert_eq!(explain(&place, key, &["--at", &end])["code"], code);
        }
        let newest = rotate(&place, &new, &[]);
        assert_eq!(explain(&place, &new, &[])["code"], "expired");
        assert_eq!(explain(&place, &newest, &[])["decision"], "allow");
    }
}

#[tokio::test]
async fn chain_shows_who_still_uses_the_old_key_and_when_last() {
    for place in places().await {
        let first = create(&place, &["--expires-at", "90d"]);
        let used = |requests: u32| {
            format!(
                "UPDATE api_keys SET total_requests = {requests}, last_used_at = '2026-01-02 03:04:05' WHERE id = "
            )
        };
        place.execute(&format!("{}{}", used(5), id(&first))).await;
        let second = rotate(&place, &first, &["--overlap", "7d"]);
        place.execute(&format!("{}{}", used(12), id(&first))).await;
        let third = rotate(&place, &second, &["--overlap", "1d", "--expires-at", "365d", "--name", "third"]);
        let shown = show(&place, &second);
        assert_eq!(shown["chain"], json!([first["id"], second["id"], third["id"]]));
        assert_eq!((&shown["limit_id"], &shown["rotated_from"]), (&first["id"], &first["id"]));
        assert_eq!(shown["rotated_to"], third["id"]);
        assert_eq!(shown["predecessor_last_used_at"], "2026-01-02T03:04:05Z");
        assert_eq!(shown["predecessor_requests_since_rotation"], 7);
        assert_eq!(shown["requests_since_rotation"], 0);
        assert_eq!(show(&place, &first)["requests_since_rotation"], 7);
        assert_eq!(show(&place, &first)["rotated_from"], Value::Null);
        let shown = show(&place, &third);
        assert_eq!((&shown["name"], &shown["limit_id"]), (&json!("third"), &first["id"]));
        assert!(time(&shown["expires_at"]) > time(&first["expires_at"]));
        let alone = show(&place, &create(&place, &[]));
        assert!(alone.get("chain").is_none() && alone.get("limit_id").is_none(), "{alone}");
        let table = run(&place, &["keys", "show", &id(&second)]).done();
        assert!(
            table.contains("predecessor_last_used_at") && table.contains("2026-01-02T03:04:05Z"),
            "{table}"
        );
    }
}

#[tokio::test]
async fn secret_stands_alone_on_stdout() {
    for place in places().await {
        let old = create(&place, &[]);
        let rotated = run(&place, &["keys", "rotate", &id(&old), "--overlap", "1h"]);
        assert!(rotated.stderr.contains("only time"), "{}", rotated.stderr);
        assert!(rotated.stderr.contains(&format!("key {} ends at", id(&old))), "{}", rotated.stderr);
        let secret = rotated.done();
        assert!(keystile::credential::generate::checksum_holds(secret.trim_end()));
    }
}

#[tokio::test]
async fn revocation_covers_the_chain_unless_told_otherwise() {
    for place in places().await {
        let first = create(&place, &[]);
        let second = rotate(&place, &first, &["--overlap", "7d"]);
        let third = rotate(&place, &second, &["--overlap", "7d"]);
        let other = create(&place, &[]);
        let active = |key: &Value| show(&place, key)["is_active"] == true;
        let revoked = json_of(&place, &["keys", "revoke", &id(&second), "--only"]);
        assert_eq!((&revoked["id"], revoked.get("also_revoked")), (&second["id"], None));
        assert!(active(&first) && !active(&second) && active(&third));
        // From the old end as well as from the new one.
        for (end, fresh) in [(&first, false), (&third, true)] {
            if fresh {
                place.execute("UPDATE api_keys SET is_active = true").await;
            }
            let revoked = json_of(&place, &["keys", "revoke", &id(end)]);
            assert_eq!(revoked["also_revoked"].as_array().map(Vec::len), Some(2), "{revoked}");
            assert!(!active(&first) && !active(&second) && !active(&third) && active(&other));
        }
        place.execute("UPDATE api_keys SET is_active = true").await;
        let said = run(&place, &["keys", "revoke", &id(&second)]).done();
        assert_eq!(said.matches("revoked key").count(), 3, "{said}");
    }
}

#[tokio::test]
async fn columns_that_the_database_fills_are_left_to_it() {
    let place = Place::empty_schema().await;
    place
        .execute(
            "CREATE TABLE users (id bigint PRIMARY KEY, email text, is_active boolean);
            CREATE TABLE api_keys (
                id bigint GENERATED ALWAYS AS IDENTITY, \"ID\" text,
                public_id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
                \"Name\" varchar(20) NOT NULL, shout text GENERATED ALWAYS AS (upper(\"Name\")) STORED,
                key_prefix char(8) NOT NULL, key_hash char(60) NOT NULL, user_id bigint NOT NULL, is_active boolean,
                \"Expires_At\" timestamptz, created_at timestamptz NOT NULL,
                ordinal bigint GENERATED BY DEFAULT AS IDENTITY, total_requests integer NOT NULL, region text NOT NULL,
                PRIMARY KEY (id)
            );
            CREATE INDEX ON api_keys (key_prefix);
            INSERT INTO users VALUES (1, 'ada@example.com', true);
            INSERT INTO api_keys (\"ID\", \"Name\", key_prefix, key_hash, user_id, is_active, created_at, total_requests, region)
            VALUES ('x', 'ci', 'ks_sampl', '$2b$04$6q9BoBmFnzUHBXzeU2EI8e8EzfrzE6oitM6WpEA.O897CcJpI2bkG', 1, true,
                now(), 5, 'eu');",
        )
        .await;
    run(&place, &["migrate"]).done();
    let new = json_of(&place, &["keys", "rotate", "ks_sampl", "--overlap", "1d", "--name", "second"]);
    let row = "SELECT concat_ws('/', n.\"ID\", n.\"Name\", n.shout, n.region, n.total_requests, n.public_id <> o.public_id,
            n.ordinal <> o.ordinal, o.\"Expires_At\" > now() + interval '23 hours', n.\"Expires_At\")
        FROM api_keys o, api_keys n WHERE o.id = 1 AND n.id = ";
    let row = place.value(&format!("{row}{}", id(&new))).await;
    assert_eq!(row.as_deref(), Some("x/second/SECOND/eu/0/t/t/t"));
}

#[tokio::test]
async fn key_of_a_partition_gets_its_successor_there() {
    let place = Place::empty_schema().await;
    place
        .execute(
            "CREATE TABLE users (id bigint PRIMARY KEY, email text, username text, is_active boolean);
            CREATE TABLE api_keys (id bigserial, name text, key_prefix text NOT NULL, key_hash text NOT NULL,
                user_id bigint NOT NULL, is_active boolean, expires_at timestamp, region text NOT NULL DEFAULT 'eu',
                PRIMARY KEY (id, region)) PARTITION BY LIST (region);
            CREATE TABLE api_keys_eu PARTITION OF api_keys FOR VALUES IN ('eu');
            CREATE TABLE api_keys_us PARTITION OF api_keys FOR VALUES IN ('us');
            CREATE INDEX ON api_keys (key_prefix);
            INSERT INTO users VALUES (1, 'ada@example.com', 'ada', true);",
        )
        .await;
    run(&place, &["migrate"]).done();
    let old = create(&place, &[]);
    place.execute("UPDATE api_keys SET region = 'us'").await;
    let new = rotate(&place, &old, &["--overlap", "1d"]);
    let row = "SELECT tableoid::regclass || '/' || (SELECT count(*) FROM keystile_rotations) FROM api_keys WHERE id = ";
    assert_eq!(place.value(&format!("{row}{}", id(&new))).await.as_deref(), Some("api_keys_us/1"));
}

#[tokio::test]
async fn generated_columns_of_sqlite_are_left_out() {
    let place = Place::sqlite().await;
    place.user().await;
    place
        .execute("ALTER TABLE api_keys ADD COLUMN shout text GENERATED ALWAYS AS (upper(name)) VIRTUAL")
        .await;
    let old = create(&place, &["--name", "ci"]);
    let new = rotate(&place, &old, &[]);
    let shout = format!("SELECT shout FROM api_keys WHERE id = {}", id(&new));
    assert_eq!(place.value(&shout).await.as_deref(), Some("CI"));
}

#[tokio::test]
async fn database_without_the_tables_works_and_is_told_to_migrate() {
    for place in places().await {
        let old = create(&place, &[]);
        place.execute("DROP TABLE keystile_rotations; DROP TABLE keystile_rotated_budgets").await;
        assert_eq!(explain(&place, &old, &[])["decision"], "allow");
        let refused = run(&place, &["keys", "rotate", &id(&old)]).failed(1);
        assert!(refused.contains("keystile_rotations") && refused.contains("keystile migrate"), "{refused}");
        let migrated = run(&place, &["migrate"]).done();
        assert!(migrated.contains("created the tables keystile_rotations"), "{migrated}");
        let new = rotate(&place, &old, &[]);
        assert_eq!(show(&place, &new)["rotated_from"], old["id"]);
        assert_eq!(run(&place, &["migrate"]).stderr, "");
    }
}

/// Budgets whose ids the database assigns.
async fn create_budgets(place: &Place) {
    let serial = if place.file().is_some() { "integer PRIMARY KEY" } else { "serial PRIMARY KEY" };
    place.execute(&BUDGETS.replacen("integer PRIMARY KEY", serial, 1)).await;
    run(place, &["migrate"]).done();
}
