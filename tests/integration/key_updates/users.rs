//! Users are changed as keys are.

use serde_json::{Value, json};

use super::{assert_fields, places, run};
use crate::harness::{keystile::keystile, place::Place};

fn update(place: &Place, flags: &[&str]) -> crate::harness::keystile::Run {
    run(place, &[&["users", "update", "ADA@example.com", "--output", "json"], flags].concat())
}

async fn eve(place: &Place) {
    let eve = [("id", "2"), ("email", "eve@example.com"), ("username", "eve"), ("hashed_password", "!")];
    place.insert("users", &eve.map(|(name, value)| (name, Some(value)))).await;
}

#[tokio::test]
async fn user_is_changed_by_flags_and_by_a_patch() {
    for place in places().await {
        let flags = "--username lovelace --role engineer --superuser --locked=true --locked-until 2090-01-01T00:00:00Z \
            --disable";
        let user = update(&place, &flags.split_whitespace().collect::<Vec<_>>()).json();
        assert_fields(
            &user,
            &json!({
                "email": "ada@example.com", "username": "lovelace", "role": "engineer", "is_superuser": true,
                "account_locked": true, "account_locked_until": "2090-01-01T00:00:00Z", "is_active": false,
            }),
        );
        let patch = r#"{"role": null, "is_superuser": false, "account_locked": false, "account_locked_until": null,
            "is_active": true, "email": "lovelace@example.com"}"#;
        let patched =
            keystile(&["users", "update", "1", "--from-file", "-", "-o", "json"], &place.url(), patch).json();
        assert_fields(
            &patched,
            &json!({"role": null, "is_superuser": false, "account_locked_until": null, "is_active": true}),
        );
        assert_eq!(place.value("SELECT hashed_password FROM users").await.as_deref(), Some("!"));
    }
}

#[tokio::test]
async fn user_is_disabled_and_enabled() {
    for place in places().await {
        for (command, is_active) in [("disable", false), ("enable", true), ("enable", true)] {
            let user = run(&place, &["users", command, "1", "--output", "json"]).json();
            assert_eq!(user["is_active"], is_active, "{command}");
        }
        assert!(run(&place, &["users", "enable", "eve@example.com"]).failed(1).contains("eve@example.com"));
    }
}

#[tokio::test]
async fn role_of_another_table_is_found_by_its_name() {
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        place.user().await;
        assert_eq!(update(&place, &["--role", "engineer"]).json()["role"], "engineer");
        assert_eq!(place.value("SELECT CAST(role_id AS text) FROM users").await.as_deref(), Some("2"));
        let said = update(&place, &["--role", "wizard"]).failed(1);
        assert!(said.contains("admin, engineer"), "{said}");
        assert_eq!(update(&place, &["--clear", "role"]).json()["role"], Value::Null);
        let said = update(&place, &["--locked"]).failed(1);
        assert!(said.contains("no column account_locked"), "{said}");
    }
}

#[tokio::test]
async fn wrong_change_of_a_user_is_refused_and_nothing_is_done() {
    for place in places().await {
        eve(&place).await;
        let show = || run(&place, &["users", "list", "--output", "json"]).json();
        let before = show();
        for (bad, words) in [
            (r#"{"email": "EVE@example.com", "username": "x"}"#, ["email", "another user has"]),
            (r#"{"username": "eve", "is_superuser": true}"#, ["username", "another user has"]),
            (r#"{"email": null}"#, ["email", "cannot be null"]),
            (r#"{"hashed_password": "x"}"#, ["hashed_password", "knows no passwords"]),
            (r#"{"last_login": null}"#, ["last_login", "cannot be changed"]),
            (r#"{"rate_limit_per_day": 1}"#, ["rate_limit_per_day", "no field of a user"]),
            (r#"{"account_locked_until": "2020-01-01T00:00:00Z"}"#, ["account_locked_until", "in the past"]),
        ] {
            let ran = keystile(&["users", "update", "1", "--from-file", "-"], &place.url(), bad);
            let said = ran.failed(1);
            assert!(words.iter().all(|word| said.contains(word)), "{bad}: {said}");
            assert_eq!(show(), before, "{bad}");
        }
    }
}
