//! Keys and users are changed by flags and by merge patches, each value checked, all of a change or none of it.

use serde_json::{Value, json};

use crate::harness::{
    keystile::{Run, keystile},
    place::Place,
};

mod databases;
mod instances;
mod random;
mod updaters;
mod users;

/// Both databases, with user 1 and key 7.
async fn places() -> [Place; 2] {
    let places = [Place::sqlite().await, Place::postgres().await];
    for place in &places {
        place.user().await;
        place.key("7", &[]).await;
    }
    places
}

fn run(place: &Place, arguments: &[&str]) -> Run {
    keystile(arguments, &place.url(), "")
}

fn update(place: &Place, flags: &[&str]) -> Run {
    run(place, &[&["keys", "update", "7", "--output", "json"], flags].concat())
}

/// The same with a merge patch on stdin.
fn patch(place: &Place, patch: &str) -> Run {
    keystile(&["keys", "update", "7", "--from-file", "-", "--output", "json"], &place.url(), patch)
}

fn show(place: &Place) -> Value {
    run(place, &["keys", "show", "7", "--output", "json"]).json()
}

fn assert_fields(row: &Value, expected: &Value) {
    for (name, value) in expected.as_object().expect("fields") {
        assert_eq!(&row[name], value, "{name} in {row}");
    }
}

#[tokio::test]
async fn every_field_is_set_by_its_flag_and_cleared_by_its_name() {
    let flags = "--name ci --description d --expires-at 2090-01-02T03:04:05+01:00 --scope chat --scope embed --tag t \
        --allowed-model m --allowed-endpoint /v1 --allowed-ip 10.0.0.0/8 --allowed-chatbot 7 --allowed-agent a \
        --allowed-extract-template e --rate-limit-per-minute 1 --rate-limit-per-hour 2 --rate-limit-per-day 3 \
        --budget-limit-cents 500 --budget-type monthly --permissions {\"files\":\"read\"} --disable";
    let expected = json!({
        "name": "ci", "description": "d", "expires_at": "2090-01-02T02:04:05Z", "scopes": ["chat", "embed"],
        "tags": ["t"], "allowed_models": ["m"], "allowed_endpoints": ["/v1"], "allowed_ips": ["10.0.0.0/8"],
        "allowed_chatbots": ["7"], "allowed_agents": ["a"], "allowed_extract_templates": ["e"],
        "rate_limit_per_minute": 1, "rate_limit_per_hour": 2, "rate_limit_per_day": 3,
        "budget_limit_cents": 500, "budget_type": "monthly", "is_unlimited": false,
        "permissions": {"files": "read"}, "is_active": false,
    });
    let cleared = "name,description,scopes,tags,allowed-model,allowed_endpoints,allowed-ips,allowed-chatbots,allowed-agents,\
        allowed-extract-templates,rate-limit-per-minute,rate-limit-per-hour,rate-limit-per-day,budget-limit-cents,\
        budget-type,permissions";
    for place in places().await {
        let updated = update(&place, &flags.split_whitespace().collect::<Vec<_>>()).json();
        assert_fields(&updated, &expected);
        assert_eq!(show(&place), updated, "what is printed is what was committed");
        let ended = ["--clear", cleared, "--expires-at", "never", "--unlimited-budget", "--enable"];
        let updated = update(&place, &ended).json();
        for (name, value) in expected.as_object().unwrap() {
            let expected = if name.starts_with("is_") { json!(true) } else { Value::Null };
            assert_ne!(value, &expected);
            assert_eq!(updated[name], expected, "{name}");
        }
    }
}

#[tokio::test]
async fn merge_patch_sets_members_merges_objects_and_removes_what_is_null() {
    for place in places().await {
        let first = r#"{"name": "a", "tags": ["x", "y"], "permissions": {"a": 1, "b": {"c": 2, "d": 3}}}"#;
        patch(&place, first).done();
        let second =
            r#"{"name": null, "tags": ["z"], "permissions": {"a": null, "b": {"c": 4}, "e": [null]}}"#;
        let updated = patch(&place, second).json();
        assert_fields(
            &updated,
            &json!({"name": null, "tags": ["z"], "permissions": {"b": {"c": 4, "d": 3}, "e": [null]}}),
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"description": "from a file", "permissions": null}"#).unwrap();
        let updated = update(&place, &["--from-file", file.path().to_str().unwrap(), "--name", "b"]).json();
        assert_fields(&updated, &json!({"name": "b", "description": "from a file", "permissions": null}));
    }
}

#[tokio::test]
async fn entries_are_added_to_lists_and_removed_without_naming_the_others() {
    for place in places().await {
        patch(&place, r#"{"tags": ["a", "b"], "allowed_models": ["m"], "allowed_chatbots": [7, "x"]}"#)
            .done();
        let edits =
            ["--add-tag", "c", "--add-tag", "a", "--remove-tag", "b", "--add-allowed-model", "gpt-4*"];
        let updated = update(&place, &[&edits[..], &["--remove-allowed-chatbot", "x"]].concat()).json();
        assert_fields(
            &updated,
            &json!({"tags": ["a", "c"], "allowed_models": ["m", "gpt-4*"], "allowed_chatbots": [7]}),
        );
        let before = show(&place);
        // One entry less must not mean no restriction, and one more must not mean a restriction to it.
        let said = update(&place, &["--remove-allowed-chatbot", "7"]).failed(1);
        assert!(said.contains("allowed_chatbots") && said.contains("allows everything"), "{said}");
        let said = update(&place, &["--add-allowed-agent", "a"]).failed(1);
        assert!(said.contains("allowed_agents") && said.contains("not restricted"), "{said}");
        let said = update(&place, &["--tag", "a", "--add-tag", "b"]).failed(1);
        assert!(said.contains("tags") && said.contains("both set and edited"), "{said}");
        let said = update(&place, &["--add-tag", "b", "--remove-tag", "b"]).failed(1);
        assert!(said.contains("tags") && said.contains("both to add and to remove"), "{said}");
        assert_eq!(show(&place), before);
    }
}

#[tokio::test]
async fn dry_run_prints_the_difference_and_writes_nothing() {
    for place in places().await {
        patch(&place, r#"{"name": "a"}"#).done();
        let before = show(&place);
        let flags = ["--name", "b", "--tag", "t", "--budget-limit-cents", "5", "--dry-run"];
        let differences = update(&place, &flags).json();
        assert_eq!(
            differences,
            json!([
                {"field": "name", "before": "a", "after": "b"},
                {"field": "tags", "before": null, "after": ["t"]},
                {"field": "is_unlimited", "before": true, "after": false},
                {"field": "budget_limit_cents", "before": null, "after": 5},
            ])
        );
        let table = run(&place, &[&["keys", "update", "7"], &flags[..]].concat()).done();
        assert!(table.contains("Field") && table.contains("tags") && table.contains(r#"["t"]"#), "{table}");
        assert_eq!(show(&place), before);
        // What is refused is refused beforehand as well.
        let said = update(&place, &["--from-file", "/nowhere", "--dry-run"]).failed(1);
        assert!(said.contains("--from-file /nowhere"), "{said}");
    }
}

#[tokio::test]
async fn update_that_changes_nothing_writes_nothing_and_says_so() {
    for place in places().await {
        patch(&place, r#"{"name": "a", "tags": ["x"], "expires_at": "2090-01-01T00:00:00Z"}"#).done();
        let log = "SELECT CAST(count(*) AS text) FROM keystile_changes";
        let (before, changes) = (show(&place), place.value(log).await);
        let same =
            r#"{"name": "a", "tags": ["x"], "expires_at": "2090-01-01T01:00:00+01:00", "description": null}"#;
        let ran = patch(&place, same);
        assert!(ran.stderr.contains("has these values already"), "{}", ran.stderr);
        assert_eq!(ran.json(), before, "updated_at, too");
        assert_eq!(place.value(log).await, changes);
        assert_eq!(update(&place, &["--name", "a", "--dry-run"]).json(), json!([]));
    }
}

#[tokio::test]
async fn wrong_patch_is_refused_by_field_and_changes_nothing() {
    for place in places().await {
        patch(&place, r#"{"name": "a", "budget_limit_cents": 9}"#).done();
        let before = show(&place);
        for (bad, words) in [
            (r#"{"nmae": "b", "name": "b"}"#, ["nmae", "there is name"]),
            (r#"{"hashed_password": "x"}"#, ["hashed_password", "the fields are name, description"]),
            (r#"{"id": 8}"#, ["id: cannot", "finds the row"]),
            (r#"{"user_id": 2}"#, ["user_id", "create a new key for the other user"]),
            (r#"{"user_email": "eve@example.com"}"#, ["user_email", "create a new key"]),
            (r#"{"key_hash": "$2b$04$x"}"#, ["key_hash", "create a new key"]),
            (r#"{"key_prefix": "ks_other"}"#, ["key_prefix", "create a new key"]),
            (r#"{"total_requests": 0}"#, ["total_requests", "counts use"]),
            (r#"{"total_cost": 0}"#, ["total_cost", "counts use"]),
            (r#"{"last_used_at": null}"#, ["last_used_at", "counts use"]),
            (r#"{"deleted_at": null}"#, ["deleted_at", "stays revoked"]),
            (r#"{"updated_at": null}"#, ["updated_at", "every change"]),
            (r#"{"version": "0123456789abcdef"}"#, ["version", "--if-version"]),
            (r#"{"name": 7}"#, ["name", "a text"]),
            (r#"{"name": ""}"#, ["name", "null removes it"]),
            (r#"{"name": "b", "is_active": "false"}"#, ["is_active", "true or false"]),
            (r#"{"is_active": null}"#, ["is_active", "cannot be null"]),
            (r#"{"rate_limit_per_day": -1}"#, ["rate_limit_per_day", "from 0"]),
            (r#"{"rate_limit_per_day": "60"}"#, ["rate_limit_per_day", "from 0"]),
            (r#"{"rate_limit_per_day": 1.5}"#, ["rate_limit_per_day", "from 0"]),
            (r#"{"budget_limit_cents": -5}"#, ["budget_limit_cents", "from 0"]),
            (r#"{"tags": "a"}"#, ["tags", "a list of texts"]),
            (r#"{"tags": [1]}"#, ["tags", "list of strings"]),
            (r#"{"scopes": ["a b"]}"#, ["scopes", "single words"]),
            (r#"{"allowed_models": ["a*b"]}"#, ["allowed_models", "gpt-4*"]),
            (r#"{"allowed_ips": ["10.0.0.256"]}"#, ["allowed_ips", "10.0.0.0/8"]),
            (r#"{"allowed_endpoints": ["v1"]}"#, ["allowed_endpoints", "POST /v1/chat/*"]),
            (r#"{"allowed_chatbots": [1.5]}"#, ["allowed_chatbots", "whole numbers"]),
            (r#"{"expires_at": "soon"}"#, ["expires_at", "2026-12-31T23:59:59Z"]),
            (r#"{"name": "b", "expires_at": "2020-01-01T00:00:00Z"}"#, ["expires_at", "in the past"]),
            (r#"{"expires_at": "-infinity"}"#, ["expires_at", "in the past"]),
            (r#"{"expires_at": "infinity"}"#, ["expires_at", "null means never"]),
            (r#"{"name": "b", "name": "c"}"#, ["name", "twice"]),
            ("[]", ["--from-file -", "a JSON object"]),
            ("name: b", ["--from-file -", "not JSON"]),
            ("", ["--from-file -", "not JSON"]),
        ] {
            let said = patch(&place, bad).failed(1);
            assert!(words.iter().all(|word| said.contains(word)), "{bad}: {said}");
            assert_eq!(show(&place), before, "{bad}");
        }
        let huge = format!(r#"{{"description": "{}"}}"#, "x".repeat(1 << 20));
        assert!(patch(&place, &huge).failed(1).contains("1 MiB"));
    }
}

#[tokio::test]
async fn wrong_flag_is_wrong_usage() {
    let place = Place::no_file();
    for (flags, words) in [
        (&[][..], ["say what to change", "--clear"]),
        (&["--expires-at", "2020-01-01T00:00:00Z"], ["--expires-at", "in the past"]),
        (&["--clear", "user_id"], ["--clear", "name, description"]),
        (&["--clear", "nmae"], ["--clear", "nmae"]),
        (&["--add-scope", "a b"], ["--add-scope", "single word"]),
        (&["--allowed-ip", "10.0.0.0/33"], ["--allowed-ip", "network"]),
        (&["--if-version", "7", "--name", "a"], ["--if-version", "16 hexadecimal digits"]),
        (&["--enable", "--disable"], ["--enable", "--disable"]),
        (
            &["--unlimited-budget", "--budget-limit-cents", "5"],
            ["--unlimited-budget", "--budget-limit-cents"],
        ),
        (&["--permissions", "[]"], ["--permissions", "JSON object"]),
        (&["--name", ""], ["--name", "value"]),
    ] {
        let said = update(&place, flags).failed(2);
        assert!(words.iter().all(|word| said.contains(word)), "{flags:?}: {said}");
    }
    let said = update(&place, &["--name", "a", "--clear", "name"]).failed(1);
    assert!(said.contains("name: is given twice"), "{said}");
    let whole = "ks_Q4mZr8fT0abcdefghijklmnopqrs2xKp0Bx";
    let said = run(&place, &["keys", "update", whole, "--name", "a"]).failed(1);
    assert!(said.contains("longer than a prefix") && !said.contains(whole), "{said}");
}

#[tokio::test]
async fn budget_limit_binds_a_key_that_was_unlimited() {
    for place in places().await {
        patch(&place, r#"{"is_unlimited": true}"#).done();
        assert_fields(
            &update(&place, &["--budget-limit-cents", "0"]).json(),
            &json!({"budget_limit_cents": 0, "is_unlimited": false}),
        );
        // Both are said: both are done.
        let both = r#"{"budget_limit_cents": 7, "is_unlimited": true}"#;
        assert_fields(&patch(&place, both).json(), &json!({"budget_limit_cents": 7, "is_unlimited": true}));
    }
}

#[tokio::test]
async fn revoked_key_stays_revoked_where_the_database_can_say_so() {
    for place in places().await {
        place.execute("ALTER TABLE api_keys ADD COLUMN deleted_at timestamp").await;
        update(&place, &["--disable"]).done();
        assert_eq!(update(&place, &["--enable"]).json()["is_active"], true, "disabled is not revoked");
        run(&place, &["keys", "revoke", "7"]).done();
        let revoked = show(&place);
        assert!(revoked["deleted_at"].is_string() && revoked["is_active"] == false, "{revoked}");
        let said = update(&place, &["--enable"]).failed(1);
        assert!(said.contains("revoked for good") && said.contains("create a new key"), "{said}");
        assert_eq!(show(&place), revoked);
        assert_eq!(update(&place, &["--description", "leaked"]).json()["is_active"], false);
    }
}
