//! The command line, run as a built binary against both databases.

use serde_json::Value;

use crate::harness::{
    keystile::{Run, keystile},
    place::{HASH, Place},
    process::free_port,
};

/// Both databases, empty.
async fn places() -> [Place; 2] {
    [Place::sqlite().await, Place::postgres().await]
}

fn run(place: &Place, arguments: &[&str]) -> Run {
    keystile(arguments, &place.url(), "")
}

fn create_user(place: &Place) -> Value {
    let arguments = ["users", "create", "--email", "ada@example.com", "--username", "ada"];
    run(place, &[&arguments[..], &["--role", "engineer", "--output", "json"]].concat()).json()
}

fn create_key(place: &Place, more: &[&str]) -> Value {
    run(place, &[&["keys", "create", "--user", "ada@example.com", "--output", "json"], more].concat()).json()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

/// A file with this ending and content.
fn file(ending: &str, content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(ending).tempfile().expect("a file");
    std::fs::write(file.path(), content).expect("writes");
    file
}

fn import(place: &Place, file: &tempfile::NamedTempFile) -> Run {
    run(place, &["keys", "import", file.path().to_str().expect("UTF-8")])
}

async fn count(place: &Place) -> String {
    place.value("SELECT CAST(count(*) AS text) FROM api_keys").await.expect("a count")
}

#[tokio::test]
async fn migrate_says_what_it_did_and_can_be_run_twice() {
    for place in [Place::no_file(), Place::empty_schema().await] {
        let said = run(&place, &["migrate"]).done();
        assert!(
            said.contains("created the table users") && said.contains("created the table api_keys"),
            "{said}"
        );
        let said = run(&place, &["migrate"]).done();
        assert!(!said.contains("created") && said.contains("left the table api_keys"), "{said}");
    }
}

#[tokio::test]
async fn user_is_created_listed_and_disabled() {
    for place in places().await {
        let user = create_user(&place);
        assert_eq!((text(&user, "email"), text(&user, "role")), ("ada@example.com", "engineer"));
        assert_eq!((&user["is_active"], &user["is_superuser"]), (&true.into(), &false.into()));
        assert_eq!(place.value("SELECT hashed_password FROM users").await.as_deref(), Some("!"));
        let again = ["users", "create", "--email", "ada@example.com", "--username", "other"];
        assert!(run(&place, &again).failed(1).contains("ada@example.com"));
        let users = run(&place, &["users", "list", "--output", "json"]).json();
        assert_eq!(users.as_array().map(Vec::len), Some(1));
        let table = run(&place, &["users", "list"]).done();
        assert!(table.contains("ada@example.com") && table.contains("engineer"), "{table}");
        let disabled = run(&place, &["users", "disable", "ADA@example.com", "--output", "json"]).json();
        assert_eq!(disabled["is_active"], false);
        assert!(run(&place, &["users", "disable", "eve@example.com"]).failed(1).contains("eve@example.com"));
    }
}

#[tokio::test]
async fn role_is_looked_up_where_roles_are_a_table() {
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        assert_eq!(text(&create_user(&place), "role"), "engineer");
        let unknown = ["users", "create", "--email", "e", "--username", "e", "--role", "wizard"];
        assert!(run(&place, &unknown).failed(1).contains("admin, engineer"));
        // A restriction that could not be kept is refused, not dropped.
        let agents = ["keys", "create", "--user", "1", "--allowed-agent", "a"];
        assert!(run(&place, &agents).failed(1).contains("allowed_agents"));
        let key = create_key(&place, &["--allowed-model", "m", "--expires-at", "2090-01-02T03:04:05+01:00"]);
        assert_eq!(key["allowed_models"], serde_json::json!(["m"]));
        assert_eq!(text(&key, "expires_at"), "2090-01-02T02:04:05Z");
    }
}

#[tokio::test]
async fn key_is_created_with_all_that_was_asked_for_and_found_by_itself() {
    for place in places().await {
        create_user(&place);
        let settings = "--name ci --description d --expires-at 90d --scope chat --scope embed --tag t \
            --allowed-model m --allowed-endpoint /v1 --allowed-ip 10.0.0.0/8 --allowed-chatbot 7 \
            --allowed-agent a --allowed-extract-template e --rate-limit-per-minute 1 --rate-limit-per-hour 2 --rate-limit-per-day 3 \
            --budget-limit-cents 500 --budget-type monthly --brand acme";
        let key = create_key(&place, &settings.split_whitespace().collect::<Vec<_>>());
        let credential = text(&key, "credential");
        assert!(credential.starts_with("acme") && credential.starts_with(text(&key, "key_prefix")));
        assert_eq!(key["scopes"], serde_json::json!(["chat", "embed"]));
        assert_eq!(key["is_unlimited"], false);
        assert_eq!(key["rate_limit_per_day"], 3);
        assert!(key["total_requests"] == 0 && key["is_active"] == true);
        assert!(key["expires_at"].is_string());
        for column in ["agents", "extract_templates", "models", "endpoints", "ips", "chatbots"] {
            assert_eq!(key[format!("allowed_{column}")].as_array().map(Vec::len), Some(1), "{column}");
        }
        let hash = place.value("SELECT key_hash FROM api_keys").await.expect("a hash");
        assert!(hash.starts_with("$2b$04$") && bcrypt::verify(credential, &hash).expect("a hash"));
        // A second key: bcrypt says which of them it is.
        create_key(&place, &[]);
        let show = ["keys", "show", "-", "--output", "json"];
        let shown = keystile(&show, &place.url(), &format!("{credential}\n")).json();
        assert_eq!(shown["id"], key["id"]);
        for by in [key["id"].to_string(), text(&key, "key_prefix").to_owned()] {
            assert_eq!(run(&place, &["keys", "show", &by, "--output", "json"]).json()["id"], key["id"]);
        }
    }
}

#[tokio::test]
async fn column_with_a_time_zone_keeps_the_instant() {
    let place = Place::postgres().await;
    create_user(&place);
    place.execute("ALTER TABLE api_keys ALTER COLUMN expires_at TYPE timestamptz").await;
    let key = create_key(&place, &["--expires-at", "2090-01-02T03:04:05Z"]);
    let instant = "SELECT expires_at = '2090-01-02 03:04:05+00' FROM api_keys";
    assert_eq!(place.value(instant).await.as_deref(), Some("t"), "{key}");
}

#[tokio::test]
async fn secret_stands_alone_on_stdout() {
    for place in places().await {
        create_user(&place);
        let created = run(&place, &["keys", "create", "--user", "1"]);
        assert!(created.stderr.contains("only time"), "{}", created.stderr);
        let secret = created.done();
        assert!(keystile::credential::generate::checksum_holds(secret.trim_end()), "not shown");
        assert!(!run(&place, &["keys", "list"]).done().contains(secret.trim_end()));
    }
}

#[tokio::test]
async fn revoked_key_is_listed_as_inactive() {
    for place in places().await {
        create_user(&place);
        let (one, two) = (create_key(&place, &[]), create_key(&place, &[]));
        let revoked = run(&place, &["keys", "revoke", text(&one, "key_prefix"), "--output", "json"]).json();
        assert_eq!((&revoked["id"], &revoked["is_active"]), (&one["id"], &false.into()));
        let list = |more: &[&str]| {
            let keys = run(&place, &[&["keys", "list", "--output", "json"], more].concat()).json();
            let keys = keys.as_array().expect("a list").iter();
            keys.map(|key| (key["id"].clone(), key["is_active"].clone())).collect::<Vec<_>>()
        };
        let (one, two) = ((one["id"].clone(), false.into()), (two["id"].clone(), true.into()));
        assert_eq!(list(&["--all"]), [two.clone(), one]);
        let active = [two];
        assert_eq!(list(&[]), active);
        assert_eq!(list(&["--user", "1"]), active);
    }
}

#[tokio::test]
async fn deleted_key_is_shown_and_listed_with_the_revoked_ones_only() {
    for place in places().await {
        create_user(&place);
        let (one, two) = (create_key(&place, &[]), create_key(&place, &[]));
        for column in ["deleted_at timestamp", "deletion_reason text"] {
            place.execute(&format!("ALTER TABLE api_keys ADD COLUMN {column}")).await;
        }
        let id = one["id"].to_string();
        let deleted = "deleted_at = '2026-01-02 03:04:05', deletion_reason = 'left'";
        place.execute(&format!("UPDATE api_keys SET {deleted} WHERE id = {id}")).await;
        let list = |more: &[&str]| {
            let keys = run(&place, &[&["keys", "list", "--output", "json"], more].concat()).json();
            keys.as_array().expect("a list").iter().map(|key| key["id"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(list(&[]), [two["id"].clone()]);
        assert_eq!(list(&["--all"]), [two["id"].clone(), one["id"].clone()]);
        let shown = run(&place, &["keys", "show", &id, "--output", "json"]).json();
        assert_eq!(shown["deleted_at"], "2026-01-02T03:04:05Z");
        assert_eq!(shown["deletion_reason"], "left");
        let explained = run(&place, &["explain", &id, "--output", "json"]).json();
        assert_eq!(explained["code"], "disabled");
        assert_eq!(explained["checks"][0]["detail"], "is_active: true; deleted");
    }
}

#[tokio::test]
async fn prefix_of_several_keys_is_refused_with_their_ids() {
    for place in places().await {
        place.user().await;
        place.key("3", &[]).await;
        place.key("4", &[]).await;
        let said = run(&place, &["keys", "revoke", "ks_sampl"]).failed(1);
        assert!(said.contains("4 or 3"), "{said}");
        assert!(run(&place, &["keys", "revoke", "ks_other"]).failed(1).contains("no key"));
        let shown = run(&place, &["keys", "show", "ks_sampl", "--output", "json"]).json();
        assert_eq!(shown.as_array().map(Vec::len), Some(2));
    }
}

#[test]
fn typo_is_recognised_without_a_database() {
    let nowhere = format!("postgres://nobody:hunter2@127.0.0.1:{}/none", free_port());
    let typo = "ks_Q4mZr8fT0abcdefghijklmnopqrs2xKp0Bx";
    let said = keystile(&["keys", "show", "-"], &nowhere, typo).failed(1);
    assert!(said.contains("typo") && !said.contains(typo), "{said}");
    let said = keystile(&["keys", "show", "-"], &nowhere, "short").failed(1);
    assert!(said.contains("8 to 72"), "{said}");
    let said = keystile(&["keys", "show", typo], &nowhere, "").failed(1);
    assert!(said.contains("keys show -") && !said.contains(typo), "{said}");
}

#[test]
fn wrong_usage_ends_with_status_2_and_names_flag_value_and_mend() {
    let key = |flag: &'static str, value: &'static str| ["keys", "create", "--user", "1", flag, value];
    for (arguments, words) in [
        (key("--expires-at", "soon"), ["--expires-at", "soon", "90d"]),
        (key("--allowed-ip", "10.0.0.0/33"), ["--allowed-ip", "10.0.0.0/33", "network"]),
        (key("--allowed-endpoint", "v1/chat"), ["--allowed-endpoint", "v1/chat", "/v1/**"]),
        (key("--allowed-model", "a*b"), ["--allowed-model", "a*b", "claude-*"]),
        (key("--brand", "toolong_"), ["--brand", "toolong_", "at most 4"]),
        (key("--cost", "15"), ["--cost", "15", "auto nor a cost from 4 to 14"]),
        (key("--rate-limit-per-day", "-1"), ["--rate-limit-per-day", "-1", "from 0 to"]),
        (key("--budget-type", "total"), ["--budget-limit-cents", "required", "Usage"]),
        (key("--database-url", "mysql://x"), ["--database-url", "'mysql://x'", "postgres://"]),
        (key("--output", "xml"), ["--output", "xml", "json"]),
    ] {
        let said = keystile(&arguments, "sqlite:unused.db", "").failed(2);
        for word in words {
            assert!(said.contains(word), "{word} in {said}");
        }
    }
}

#[test]
fn unreachable_database_is_an_error_without_its_password() {
    let nowhere = format!("postgres://nobody:hunter2@127.0.0.1:{}/none", free_port());
    for arguments in [&["migrate"][..], &["users", "list"], &["keys", "list"], &["doctor"]] {
        let said = keystile(arguments, &nowhere, "").failed(1);
        assert!(said.contains("127.0.0.1") && said.contains("/none") && said.contains("refused"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn csv_and_json_lines_are_imported() {
    for place in places().await {
        create_user(&place);
        let csv = format!(
            "id,name,key_hash,key_prefix,user_email,is_active,scopes,expires_at,rate_limit_per_day,total_cost\n\
             50,\"a, b\",{HASH},ks_sampl,ADA@example.com,true,\"[\"\"chat\"\"]\",2090-01-02T03:04:05+01:00,7,1.5\n\
             ,,{HASH},ks_other,ada@example.com,false,,,,\n"
        );
        assert_eq!(import(&place, &file(".csv", &csv)).done(), "imported 2 keys\n");
        let key = run(&place, &["keys", "show", "50", "--output", "json"]).json();
        assert_eq!((text(&key, "name"), &key["scopes"]), ("a, b", &serde_json::json!(["chat"])));
        assert_eq!(
            (text(&key, "expires_at"), &key["rate_limit_per_day"]),
            ("2090-01-02T02:04:05Z", &7.into())
        );
        let line = serde_json::json!({
            "key_hash": HASH, "key_prefix": "ks_third", "user_id": 1, "is_active": true,
            "allowed_models": ["m"], "permissions": {"a": 1}, "expires_at": "infinity",
        });
        let imported =
            keystile(&["keys", "import", "-", "--format", "jsonl"], &place.url(), &format!("{line}\n\n"));
        assert_eq!(imported.done(), "imported 1 key\n");
        let key = run(&place, &["keys", "show", "ks_third", "--output", "json"]).json();
        assert_eq!(
            (&key["allowed_models"], text(&key, "expires_at")),
            (&serde_json::json!(["m"]), "infinity")
        );
        // Ids that were given are not given out again.
        let next = create_key(&place, &[])["id"].as_i64().expect("an id");
        assert!(next > 51, "{next}");
    }
}

#[tokio::test]
async fn one_bad_line_keeps_every_other_out() {
    for place in places().await {
        create_user(&place);
        let header = "key_hash,key_prefix,user_id,expires_at";
        let good = |n: usize| format!("{HASH},ks_{n:05},1,");
        let lines = |bad: String| format!("{header}\n{}\n{bad}\n{}\n", good(1), good(3));
        for (bad, words) in [
            (format!("{HASH},short,1,"), "line 3: key_prefix"),
            (format!("{HASH},ks_00002,1,tomorrow"), "line 3: expires_at"),
            (format!("{HASH},ks_00002,{HASH},"), "line 3: user_id"),
            (format!("{HASH},ks_00002,99,"), "line 3: no user has this user_id"),
            ("secret-instead-of-a-hash,ks_00002,1,".into(), "line 3: key_hash"),
            (format!("{HASH},ks_00002"), "line 3: 2 fields"),
            (good(1), "line 3: a key with this id or this key_hash is there already"),
        ] {
            let said = import(&place, &file(".csv", &lines(bad))).failed(1);
            assert!(said.contains("nothing was imported") && said.contains(words), "{said}");
            assert!(!said.contains("secret-instead"), "{said}");
            assert_eq!(count(&place).await, "0");
        }
    }
}

#[tokio::test]
async fn keys_that_are_there_already_are_refused() {
    for place in places().await {
        place.user().await;
        place.key("5", &[]).await;
        let by_hash = format!("key_hash,key_prefix,user_id\n{HASH},ks_sampl,1\n");
        let by_id = format!("id,key_hash,key_prefix,user_id\n5,{HASH},ks_other,1\n");
        for content in [by_hash, by_id] {
            let said = import(&place, &file(".csv", &content)).failed(1);
            assert!(said.contains("line 2: a key with this id or this key_hash"), "{said}");
        }
        assert_eq!(count(&place).await, "1");
    }
}

#[tokio::test]
async fn import_that_is_refused_moves_no_sequence() {
    let place = Place::postgres().await;
    create_user(&place);
    let content = format!(
        "id,key_hash,key_prefix,user_id\n2147483647,{HASH},ks_00001,1\n7,{HASH},ks_00002,1\n7,{HASH},ks_00003,1\n"
    );
    import(&place, &file(".csv", &content)).failed(1);
    assert_eq!(count(&place).await, "0");
    let next = create_key(&place, &[])["id"].as_i64().expect("an id");
    assert!(next < 100, "{next}");
}

#[tokio::test]
async fn twenty_errors_are_shown_and_the_rest_counted() {
    let place = Place::sqlite().await;
    create_user(&place);
    let content = format!("key_hash,key_prefix,user_id\n{}", "x,ks_00000,1\n".repeat(25));
    let said = import(&place, &file(".csv", &content)).failed(1);
    assert_eq!(said.matches("  line ").count(), 20, "{said}");
    assert!(said.contains("and 5 lines more"), "{said}");
    let said = import(&place, &file(".csv", &format!("{HASH},ks_00000,1\n"))).failed(1);
    assert!(said.contains("the header lacks key_hash"), "{said}");
    assert!(import(&place, &file(".txt", "")).failed(1).contains("--format"));
}

#[tokio::test]
async fn nothing_found_is_said_to_be_nothing() {
    let place = Place::sqlite().await;
    let users = run(&place, &["users", "list"]);
    assert!(users.stderr.contains("no users yet"), "{}", users.stderr);
    assert_eq!(users.done(), "");
    assert_eq!(run(&place, &["keys", "list", "--output", "json"]).json(), serde_json::json!([]));
    assert!(run(&place, &["keys", "create", "--user", "1"]).failed(1).contains("no user"));
}
