//! Rows that deny or allow by mistake.

use super::{Examined, after, finds, sound};
use crate::harness::{
    keystile::keystile,
    place::{HASH, Place},
};

/// An UPDATE of key 3.
fn key(set: &str) -> String {
    format!("UPDATE api_keys SET {set} WHERE id = 3")
}

/// An UPDATE of budget 9.
fn budget(set: &str) -> String {
    format!("UPDATE budgets SET {set} WHERE id = 9")
}

/// Rows with the prefix of key 3, which are newer.
fn with_the_same_prefix(count: usize) -> String {
    let row = |id| format!("({id}, '{HASH}', 'ks_sampl', 1, true, '2090-01-01 00:00:00')");
    let rows: Vec<_> = (100..100 + count).map(row).collect();
    format!(
        "INSERT INTO api_keys (id, key_hash, key_prefix, user_id, is_active, created_at) VALUES {}",
        rows.join(", ")
    )
}

#[tokio::test]
async fn ninth_row_of_a_prefix_is_found() {
    for examined in after(&with_the_same_prefix(7)).await {
        assert!(!examined.codes().contains(&"prefix_crowded"), "eight rows are tried");
    }
    finds(&with_the_same_prefix(8), "prefix_crowded", "error", "api_keys.key_prefix", "3").await;
    let revoked = format!("{}; {}", key("is_active = false"), with_the_same_prefix(8));
    finds(&revoked, "prefix_crowded", "warning", "api_keys.key_prefix", "3").await;
}

#[tokio::test]
async fn value_that_cannot_be_read_is_found_by_column() {
    let change = key("rate_limit_per_minute = -1, rate_limit_per_day = -2");
    for examined in after(&change).await {
        for column in ["rate_limit_per_minute", "rate_limit_per_day"] {
            let place = format!("api_keys.{column}");
            let finding = examined.expect("undecodable", "error", &place);
            assert_eq!(finding["examples"], serde_json::json!(["3"]));
            assert!(finding["message"].as_str().unwrap().contains("a whole number from 0"), "{finding}");
        }
    }
}

#[tokio::test]
async fn value_of_a_key_that_is_denied_anyway_is_a_note() {
    for denied in ["is_active = false", "expires_at = '2020-01-01 00:00:00'"] {
        let change = key(&format!("rate_limit_per_minute = -1, {denied}"));
        finds(&change, "undecodable", "note", "api_keys.rate_limit_per_minute", "3").await;
    }
}

/// The user of two keys counts once.
#[tokio::test]
async fn value_of_a_user_is_found_once() {
    let change = format!(
        "{}; ALTER TABLE users DROP COLUMN account_locked_until; ALTER TABLE users ADD account_locked_until text;
        UPDATE users SET account_locked_until = 'soon'",
        with_the_same_prefix(1)
    );
    finds(&change, "undecodable", "error", "users.account_locked_until", "1").await;
}

#[tokio::test]
async fn hash_of_unknown_form_is_found_and_not_shown() {
    for (hash, form) in [
        ("$argon2id$v=19$m=65536,t=3,p=4$c2VjcmV0$c2VjcmV0", "Argon2"),
        ("$2b$15$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy", "bcrypt with cost 15"),
        ("plain-secret-in-the-wrong-column", "unknown form"),
    ] {
        for examined in after(&key(&format!("key_hash = '{hash}'"))).await {
            let finding = examined.expect("hash_unknown", "error", "api_keys.key_hash");
            assert!(finding["message"].as_str().unwrap().ends_with(form), "{finding}");
            assert!(!examined.report.to_string().contains(hash), "{}", examined.report);
            assert!(!examined.codes().contains(&"hash_costs"), "no key has an accepted hash");
        }
    }
}

#[tokio::test]
async fn sha256_hash_is_a_note_that_says_when_it_is_safe() {
    let hash = "$sha256$47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU";
    for examined in after(&key(&format!("key_hash = '{hash}'"))).await {
        let finding = examined.expect("hash_sha256", "note", "api_keys.key_hash");
        assert!(finding["message"].as_str().unwrap().contains("128 bits of randomness"), "{finding}");
        assert_eq!((&finding["count"], &finding["examples"][0]), (&1.into(), &"3".into()));
        assert!(!examined.report.to_string().contains(&hash[8..]), "{}", examined.report);
        assert!(!examined.codes().contains(&"hash_costs") && !examined.codes().contains(&"hash_unknown"));
    }
}

#[tokio::test]
async fn high_cost_is_a_warning() {
    let cost_13 = HASH.replace("$04$", "$13$");
    for examined in after(&key(&format!("key_hash = '{cost_13}'"))).await {
        let finding = examined.expect("hash_costs", "warning", "api_keys.key_hash");
        assert!(finding["message"].as_str().unwrap().contains("1 of cost 13"), "{finding}");
    }
}

#[tokio::test]
async fn key_without_a_user_is_found() {
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        place.key("3", &[]).await;
        place.key("4", &[("user_id", None)]).await;
        place.key("5", &[("is_active", Some("0"))]).await;
        let examined = Examined::of(&place.url());
        let finding = examined.expect("user_missing", "error", "api_keys.user_id");
        assert_eq!(finding["examples"], serde_json::json!(["3", "4"]));
        examined.expect("user_missing", "note", "api_keys.user_id");
        place.user().await;
        place.execute("UPDATE api_keys SET user_id = 1").await;
        assert!(!Examined::of(&place.url()).codes().contains(&"user_missing"));
    }
}

#[tokio::test]
async fn list_that_cannot_be_read_is_found() {
    for (column, value) in [
        ("allowed_ips", r#"["10.0.0.256"]"#),
        ("allowed_endpoints", r#"["chat/completions"]"#),
        ("allowed_models", r#"{"gpt-4o": true}"#),
        ("allowed_agents", "[7.5]"),
    ] {
        let change = key(&format!("{column} = '{value}'"));
        finds(&change, "list_unreadable", "error", &format!("api_keys.{column}"), "3").await;
    }
}

#[tokio::test]
async fn entry_of_a_key_that_matches_nothing_is_found() {
    for (column, value) in [
        ("allowed_endpoints", r#"["/v1/models", "GET /v1/agents/{id}"]"#),
        ("allowed_models", r#"["gpt-4o "]"#),
    ] {
        let change = key(&format!("{column} = '{value}'"));
        finds(&change, "entry_matches_nothing", "error", &format!("api_keys.{column}"), "3").await;
    }
}

#[tokio::test]
async fn entry_of_a_budget_that_matches_nothing_is_found() {
    for (column, value) in [
        ("allowed_models", r#"["gpt-4*"]"#),
        ("allowed_endpoints", r#"["/v1/**"]"#),
        ("allowed_endpoints", r#"["chat/{id}"]"#),
    ] {
        let change = budget(&format!("{column} = '{value}'"));
        finds(&change, "entry_matches_nothing", "error", &format!("budgets.{column}"), "9").await;
        // Such a budget has no effect anyway.
        for off in ["is_active = false", "enforce_hard_limit = false"] {
            for examined in after(&format!("{change}; {}", budget(off))).await {
                assert_eq!(examined.status, 0, "{off}: {:#}", examined.report);
            }
        }
    }
}

#[tokio::test]
async fn entry_of_a_budget_that_matches_everything_is_found() {
    let change = budget(r#"allowed_endpoints = '["POST /v1/chat/completions"]'"#);
    finds(&change, "entry_matches_everything", "error", "budgets.allowed_endpoints", "9").await;
}

#[tokio::test]
async fn limit_of_zero_and_unknown_type_are_warnings() {
    let limit = "is_unlimited = false, budget_limit_cents";
    let zero = key(&format!("{limit} = 0, budget_type = 'monthly'"));
    finds(&zero, "limit_zero", "warning", "api_keys.budget_limit_cents", "3").await;
    finds(&key("rate_limit_per_hour = 0"), "limit_zero", "warning", "api_keys.rate_limit_per_hour", "3")
        .await;
    finds(&budget("limit_cents = 0"), "limit_zero", "warning", "budgets.limit_cents", "9").await;
    let unknown = key(&format!("{limit} = 5, budget_type = 'lifetime'"));
    finds(&unknown, "budget_type_unknown", "warning", "api_keys.budget_type", "3").await;
    for examined in after(&key(&format!("{limit} = 5, budget_type = 'Total'"))).await {
        assert!(!examined.codes().contains(&"budget_type_unknown"));
    }
}

#[tokio::test]
async fn locked_account_is_a_note() {
    let change = "UPDATE users SET account_locked = true, account_locked_until = '2990-01-01 00:00:00'";
    finds(change, "account_locked", "note", "users.account_locked", "1").await;
    for place in sound().await {
        place.execute(change).await;
        let run = keystile(&["doctor", "--account-lock=ignore", "--output", "json"], &place.url(), "");
        assert!(!run.done().contains("account_locked"), "locks stop no keys");
    }
}

#[tokio::test]
async fn budget_that_cannot_be_read_is_found() {
    let change = budget(r#"allowed_models = '"gpt-4o"'"#);
    finds(&change, "budget_undecodable", "error", "budgets.allowed_models", "9").await;
}

#[tokio::test]
async fn budget_without_an_owner_is_a_note() {
    finds(&budget("api_key_id = 99"), "budget_without_owner", "note", "budgets.api_key_id", "9").await;
    finds(
        &budget("api_key_id = NULL, user_id = 99"),
        "budget_without_owner",
        "note",
        "budgets.api_key_id",
        "9",
    )
    .await;
    for examined in after(&budget("api_key_id = NULL")).await {
        assert!(!examined.codes().contains(&"budget_without_owner"), "it is the user's");
    }
}

#[tokio::test]
async fn rows_without_an_id_beyond_a_batch_are_reported_as_not_examined() {
    let row = "(NULL, 'x', 'y', 1, 'true')";
    let tables = format!(
        "CREATE TABLE users (id integer, is_active text);
        CREATE TABLE api_keys (id integer, key_hash text, key_prefix text, user_id integer, is_active text);
        INSERT INTO api_keys VALUES {}",
        vec![row; 1001].join(", ")
    );
    for place in [Place::no_file(), Place::empty_schema().await] {
        place.execute(&tables).await;
        let examined = Examined::of(&place.url());
        let finding = examined.expect("not_examined", "error", "api_keys.id");
        assert!(finding["message"].as_str().unwrap().contains("cannot be compared: 1"), "{finding}");
        assert_eq!(examined.report["database"]["keys"], 1000);
        let ids = examined.expect("undecodable", "error", "api_keys.id");
        assert_eq!((&ids["count"], &ids["examples"]), (&1000.into(), &serde_json::Value::Null));
    }
}

/// More rows than a batch has, with a fault in each batch, for each type of id.
#[tokio::test]
async fn large_table_is_examined_to_its_end() {
    let insert = |numbers: &str| {
        format!(
            "{numbers} INSERT INTO api_keys (id, key_hash, key_prefix, user_id, is_active, rate_limit_per_day)
            SELECT n, '{HASH}', substr('k' || (1000000 + n), 1, 8), 1, true,
                CASE WHEN n % 1000 = 500 THEN -1 END FROM numbers"
        )
    };
    let generated = insert(
        "WITH RECURSIVE numbers (n) AS (SELECT 10 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3009)",
    );
    for (at, place) in sound().await.into_iter().enumerate() {
        place.execute(&generated).await;
        let types = ["integer", "bigint", "numeric", "double precision", "text"];
        // SQLite's ids are integers.
        for kind in &types[..if at == 0 { 1 } else { types.len() }] {
            if at == 1 {
                place.execute("DROP TABLE budgets; ALTER TABLE api_keys ALTER id DROP DEFAULT").await;
                place.execute(&format!("ALTER TABLE api_keys ALTER id TYPE {kind}")).await;
                place.execute("CREATE TABLE budgets (id integer)").await;
            }
            let examined = Examined::of(&place.url());
            assert_eq!(examined.report["database"]["keys"], 3001, "{kind}: {:#}", examined.report);
            let finding = examined.expect("undecodable", "error", "api_keys.rate_limit_per_day");
            assert_eq!(finding["count"], 3, "{kind}");
        }
    }
}

#[tokio::test]
async fn secret_in_a_wrong_column_is_not_shown() {
    let secret = "hunter2-in-the-wrong-column";
    for place in [Place::no_file(), Place::empty_schema().await] {
        let columns =
            "id text, key_hash text, key_prefix text, user_id text, is_active text, expires_at text,
            scopes text, allowed_models text, allowed_ips text, budget_limit_cents text";
        let values = vec![format!("'{secret}'"); 10].join(", ");
        let tables = format!(
            "CREATE TABLE users (id text, email text, is_active text); CREATE TABLE api_keys ({columns});
            INSERT INTO users VALUES ('{secret}', '{secret}', '{secret}');
            INSERT INTO api_keys VALUES ({values})"
        );
        place.execute(&tables).await;
        for form in ["json", "table"] {
            let run = keystile(&["doctor", "--output", form], &place.url(), "");
            assert_eq!(run.status, 1, "{run:?}");
            assert!(run.stdout.contains("undecodable") && run.stdout.contains("list_unreadable"), "{run:?}");
            assert!(!run.stdout.contains("hunter2") && !run.stderr.contains("hunter2"), "{run:?}");
        }
    }
}

#[tokio::test]
async fn sound_rows_of_every_kind_are_no_findings() {
    for place in sound().await {
        place
            .key(
                "4",
                &[
                    ("key_prefix", Some("ks_other")),
                    ("allowed_endpoints", Some(r#"["POST /v1/chat/*", "/v1/files/**"]"#)),
                    ("allowed_models", Some(r#"["gpt-4*", "o1"]"#)),
                    ("allowed_ips", Some(r#"["10.0.0.0/8", "::1"]"#)),
                    ("allowed_agents", Some(r#"["a", 7]"#)),
                    ("rate_limit_per_minute", Some("60")),
                    ("budget_limit_cents", Some("5")),
                    ("budget_type", Some("monthly")),
                    ("expires_at", Some("9999-12-31 23:59:59")),
                ],
            )
            .await;
        place
            .budget(
                "10",
                &[("allowed_models", Some(r#"["gpt-4o"]"#)), ("allowed_endpoints", Some(r#"["/v1/chat"]"#))],
            )
            .await;
        let examined = Examined::of(&place.url());
        assert_eq!(
            (&examined.report["errors"], &examined.report["warnings"]),
            (&0.into(), &0.into()),
            "{:#}",
            examined.report
        );
        assert_eq!(examined.report["database"]["keys"], 2);
    }
}

#[tokio::test]
async fn entry_that_matches_nothing_is_counted_where_its_key_is_read() {
    for place in sound().await {
        let count = || {
            let text = place.metrics.render();
            let line = text.lines().find_map(|line| line.strip_prefix("keystile_unmatchable_entries_total "));
            line.map_or(0, |count| count.parse::<u64>().unwrap())
        };
        place.records().await.unwrap();
        assert_eq!(count(), 0);
        place.execute(&budget(r#"allowed_models = '["gpt-4*"]'"#)).await;
        place.execute(&key(r#"allowed_endpoints = '["/v1/{id}"]'"#)).await;
        place.records().await.unwrap();
        assert_eq!(count(), 2);
    }
}
