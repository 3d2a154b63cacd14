//! `keystile migrate --print-grants`: the printed rights are enough, and no more is granted.

use crate::harness::{
    client::{Asked, ask_about, channel, code},
    keystile::keystile,
    management::{Management, answered},
    place::{BUDGETS, Place},
    service::{Keystile, Setup},
    until,
};
use reqwest::Method;
use serde_json::json;
use std::time::Duration;

/// A database with every table, and roles with the printed rights only.
struct Granted {
    place: Place,
    role: String,
    script: String,
}

impl Granted {
    async fn new(tables: &str) -> Self {
        let place = Place::postgres().await;
        place.execute("ALTER TABLE users ADD COLUMN totp_secret text").await;
        place.execute(tables).await;
        keystile(&["migrate"], &place.url(), "").done();
        let schema = place.value("SELECT CAST(current_schema() AS text)").await.unwrap();
        let role = format!("granted_{schema}");
        for name in [role.clone(), format!("{role}_admin")] {
            place.execute(&format!("DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN")).await;
        }
        let script = keystile(&["migrate", "--print-grants", "--role", &role], &place.url(), "").done();
        place.execute(&script).await;
        Self { place, role, script }
    }

    fn url(&self, suffix: &str) -> String {
        self.place.url().replace("postgres://keystile@", &format!("postgres://{}{suffix}@", self.role))
    }

    /// Whether a role may run this statement.
    async fn may(&self, suffix: &str, sql: &str) -> bool {
        let (client, connection) =
            tokio_postgres::connect(&self.url(suffix), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        match client.batch_execute(&format!("BEGIN; {sql}; ROLLBACK")).await {
            Ok(()) => true,
            Err(error) => {
                let code = error.code().unwrap_or_else(|| panic!("{error:?}")).code();
                assert_eq!(code, "42501", "{sql}: {error:?}");
                false
            }
        }
    }

    async fn drop_roles(&self) {
        for name in [self.role.clone(), format!("{}_admin", self.role)] {
            self.place.execute(&format!("DROP OWNED BY {name}; DROP ROLE {name}")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_and_commands_work_with_the_printed_rights() {
    let granted = Granted::new(BUDGETS).await;
    let (instance, admin) = (granted.url(""), granted.url("_admin"));
    keystile(&["users", "create", "--email", "ada@example.com", "--username", "ada"], &admin, "").done();
    let create = ["keys", "create", "--user", "ada@example.com", "--scope", "chat", "--expires-at", "90d"];
    let key = keystile(&[&create[..], &["--output", "json"]].concat(), &admin, "").json();
    let (id, credential) = (key["id"].to_string(), key["credential"].as_str().unwrap().to_owned());
    for arguments in
        [&["keys", "list", "--all"][..], &["keys", "show", &id], &["users", "list"], &["explain", &id]]
    {
        keystile(arguments, &instance, "").done();
    }
    let shown = keystile(&["keys", "show", "-", "--output", "json"], &instance, &credential).json();
    assert_eq!(shown["id"], key["id"]);
    let report = keystile(&["doctor", "--output", "json"], &instance, "").stdout;
    assert!(!report.contains("right_missing") && !report.contains("not_examined"), "{report}");

    let settings =
        [("KEYSTILE_USAGE_INTERVAL", "100ms"), ("KEYSTILE_CACHE_SECRET", "0123456789abcdef0123456789abcdef")];
    let Keystile { setup, process: _process } = Setup::with_database(&instance).start(&settings).await;
    let channel = channel(setup.tcp).await;
    let asked = Asked {
        credential: &credential,
        method: "GET",
        path: "/",
        client: None,
        body: None,
        route: &[],
        stream: "",
    };
    assert_eq!(code(&ask_about(&channel, &asked).await), None);
    until("the feed is up", Duration::from_secs(10), async || {
        setup.readyz().await.1["change_feed"]["up"] == true
    })
    .await;
    for sql in ["SELECT total_requests = 1 FROM api_keys", "SELECT count(*) = 1 FROM keystile_proofs"] {
        until(sql, Duration::from_secs(10), async || granted.place.value(sql).await.as_deref() == Some("t"))
            .await;
    }
    let update = ["keys", "update", &id, "--name", "ci", "--budget-limit-cents", "5", "--tag", "a", "--wait"];
    keystile(&update, &admin, "").done();
    keystile(&["users", "update", "ada@example.com", "--role", "engineer"], &admin, "").done();
    keystile(&["users", "disable", "ada@example.com"], &admin, "").done();
    keystile(&["users", "enable", "ada@example.com", "--wait"], &admin, "").done();
    keystile(&["keys", "revoke", "--user", "bob@example.com", "--yes"], &admin, "").failed(1);
    keystile(&["keys", "revoke", "--tag", "a", "--unused-since", "90d", "--yes"], &admin, "").done();
    assert_eq!(code(&ask_about(&channel, &asked).await), None, "the key was used");
    keystile(&["keys", "revoke", &id, "--wait"], &admin, "").done();
    assert_eq!(code(&ask_about(&channel, &asked).await).as_deref(), Some("disabled"));
    keystile(&["invalidate", "--all"], &admin, "").done();
    keystile(&["users", "disable", "ada@example.com"], &admin, "").done();
    let log = setup.log();
    assert!(!log.contains("permission denied"), "{log}");
    granted.drop_roles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn management_api_works_with_the_printed_rights() {
    let granted = Granted::new(BUDGETS).await;
    let setup = Setup::with_database(&granted.url("_admin"));
    setup.create_user("ada");
    let token = setup.create_token("ops", &["--scope", "write"]);
    let own = ["--scope", "own", "--user", "ada@example.com", "--template", r#"{"scopes": ["chat"]}"#];
    let portal = setup.create_token("portal", &own);
    let api = Management::start(&setup, &[]).await;
    let (status, key) = api.post(&portal, "/v1/keys", &json!({ "name": "mine" })).await;
    assert_eq!(status, 201, "{key}");
    let path = format!("/v1/keys/{}", key["id"]);
    let request = api.request(&token, Method::POST, &format!("{path}/rotate")).header("idempotency-key", "r");
    let (status, rotated) = answered(request.json(&json!({ "overlap": "1d" })).send().await.unwrap()).await;
    assert_eq!(status, 201, "{rotated}");
    let (status, changed) =
        api.patch(&token, &path, &json!({ "tags": ["a"], "budget_limit_cents": 5 })).await;
    assert_eq!(status, 200, "{changed}");
    for path in [format!("{path}/explain"), format!("{path}/revoke?wait=1s")] {
        let (status, answer) = api.post(&portal, &path, &json!({})).await;
        assert!(status == 403 || status == 202, "{path}: {answer}");
    }
    let user = api.post(&token, "/v1/users", &json!({ "email": "bob@example.com", "username": "bob" })).await;
    assert_eq!(user.0, 201, "{user:?}");
    setup.json(&["management-tokens", "revoke", "ops"]);
    assert_eq!(api.get(&token, "/v1/keys").await.0, 401);
    assert!(!api.log().contains("permission denied"), "{}", api.log());
    for table in ["keystile_management_tokens", "keystile_idempotency"] {
        assert!(!granted.may("", &format!("SELECT * FROM {table}")).await, "instances read no {table}");
    }
    drop(api);
    granted.drop_roles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_granted() {
    let granted = Granted::new(BUDGETS).await;
    for (suffix, sql, may) in [
        ("", "UPDATE api_keys SET total_requests = 1", true),
        ("", "UPDATE api_keys SET is_active = true", false),
        ("", "UPDATE api_keys SET expires_at = NULL", false),
        ("", "INSERT INTO api_keys (key_prefix) VALUES ('x')", false),
        ("", "DELETE FROM api_keys", false),
        ("", "SELECT hashed_password FROM users", false),
        ("", "SELECT totp_secret FROM users", false),
        ("", "UPDATE users SET is_active = true", false),
        ("", "UPDATE budgets SET limit_cents = 1", false),
        ("", "INSERT INTO keystile_changes DEFAULT VALUES", false),
        ("", "CREATE TABLE other ()", false),
        ("_admin", "UPDATE api_keys SET is_active = true", true),
        ("_admin", "UPDATE api_keys SET expires_at = NULL", true),
        ("_admin", "UPDATE api_keys SET total_cost = 0", false),
        ("_admin", "UPDATE api_keys SET user_id = 1", false),
        ("_admin", "UPDATE api_keys SET key_hash = ''", false),
        ("_admin", "UPDATE users SET hashed_password = ''", false),
        ("_admin", "SELECT hashed_password FROM users", false),
        ("_admin", "DELETE FROM api_keys", false),
        ("_admin", "UPDATE budgets SET limit_cents = 1", false),
        ("_admin", "DELETE FROM keystile_changes", false),
        ("_admin", "SELECT * FROM keystile_proofs", false),
    ] {
        assert_eq!(granted.may(suffix, sql).await, may, "{suffix}: {sql}\n{}", granted.script);
    }
    granted.drop_roles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_name_only_the_tables_that_are_there() {
    let granted = Granted::new("SELECT 1").await;
    assert!(
        !granted.script.contains(".budgets ") && !granted.script.contains("roles ON"),
        "{}",
        granted.script
    );
    granted.drop_roles().await;
    let older = Place::postgres_older().await;
    let script = keystile(&["migrate", "--print-grants"], &older.url(), "").done();
    assert!(
        script.contains("GRANT SELECT (id, name) ON") && script.contains("run `keystile migrate`"),
        "{script}"
    );
    assert!(!script.contains("keystile_proofs") && script.contains("TO keystile_admin;"), "{script}");
}

#[test]
fn sqlite_needs_no_grants() {
    let setup = Setup::new();
    assert!(setup.run(&["migrate"]).status.success());
    let said = keystile(&["migrate", "--print-grants"], &setup.database_url, "").failed(1);
    assert!(said.contains("no roles"), "{said}");
}
