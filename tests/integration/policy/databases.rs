//! What the rows of an application's database say, on SQLite and Postgres, through real Envoy with `routes.yaml`.

use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use super::{NEWEST, Outcome, code, outcome, request};
use crate::harness::{
    envoy::Gateway,
    place::{BUDGETS, Place},
    service::{Key, Setup},
    until,
};

/// A database with user `ada`.
struct Application {
    place: Place,
    setup: Setup,
}

/// One of each kind.
async fn applications() -> [Application; 2] {
    [Place::sqlite().await, Place::postgres().await].map(|place| {
        let setup = Setup::with_database(&place.url());
        setup.create_user("ada");
        Application { place, setup }
    })
}

impl Application {
    /// A key whose row is changed past Keystile.
    async fn key(&self, set: &str) -> Key {
        let key = self.setup.create_key("ada", &[]);
        if !set.is_empty() {
            self.place.execute(&format!("UPDATE api_keys SET {set} WHERE id = {}", key.id)).await;
        }
        key
    }

    /// A spent budget of this key for these endpoints, a JSON list.
    async fn spent_budget(&self, id: i64, key: &Key, endpoints: &str) {
        let (id, key) = (id.to_string(), key.id.to_string());
        let changes = [
            ("api_key_id", Some(key.as_str())),
            ("current_usage_cents", Some("100")),
            ("period_start", Some("2010-01-01 00:00:00")),
            ("period_end", Some("2999-01-01 00:00:00")),
            ("allowed_endpoints", Some(endpoints)),
        ];
        self.place.budget(&id, &changes).await;
    }

    async fn start(self, settings: &[(&str, &str)]) -> (Place, Gateway) {
        let keystile = self.setup.start(settings).await;
        (self.place, Gateway::before(NEWEST, "routes.yaml", keystile, &[]).await)
    }
}

/// Sends a `POST` with this JSON.
async fn post(gateway: &Gateway, key: &Key, path: &str, body: &str) -> Outcome {
    let request = gateway.request(Method::POST, path).bearer_auth(&key.credential);
    outcome(gateway, request.header("content-type", "application/json").body(body.to_owned())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_and_chatbots_may_be_numbers() {
    for application in applications().await {
        let key = application.key(r#"allowed_agents = '[7, "clerk"]', allowed_chatbots = '[7]'"#).await;
        let unreadable = application.key("allowed_agents = '[7.5]'").await;
        let nameless = application.key(r#"allowed_agents = '[""]'"#).await;
        let (_place, gateway) = application.start(&[]).await;
        for (path, body, expected) in [
            ("/v1/agents/7", "", "allow"),
            ("/v1/agents/clerk", "", "allow"),
            ("/v1/agents/8", "", "agent_not_allowed"),
            ("/v1/bots/7/chat", "", "allow"),
            ("/v1/bots/07/chat", "", "chatbot_not_allowed"),
            ("/v1/runs", r#"{"agent_config_id": 7}"#, "allow"),
            ("/v1/runs", r#"{"agent_config_id": "clerk"}"#, "allow"),
            ("/v1/runs", r#"{"agent_config_id": 8}"#, "agent_not_allowed"),
        ] {
            let outcome = outcome(&gateway, request(&gateway, &key.credential, path, body)).await;
            assert_eq!(outcome.code, expected, "{path} {body}");
            if let Some(seen) = outcome.seen {
                assert_eq!(seen.headers["x-auth-allowed-agents"], "7,clerk");
            }
        }
        let seen =
            outcome(&gateway, request(&gateway, &nameless.credential, "/v1/x", "")).await.seen.unwrap();
        assert_eq!(seen.headers.get("x-auth-allowed-agents").map(String::as_str), Some(","), "{seen:?}");
        for path in ["/v1/agents/7", "/v1/elsewhere"] {
            assert_eq!(code(&gateway, &unreadable.credential, path).await, (403, "agent_not_allowed".into()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn extract_templates_are_forwarded_and_an_unreadable_list_denies() {
    for application in applications().await {
        let [limited, open, empty] = [
            application.key(r#"allowed_extract_templates = '["invoice, eu", 7]'"#).await,
            application.key("").await,
            application.key("allowed_extract_templates = '[]'").await,
        ];
        let unreadable = application.key(r#"allowed_extract_templates = '{"invoice": true}'"#).await;
        let (_place, gateway) = application.start(&[]).await;
        for (key, expected) in [(&limited, Some("invoice%2C eu,7")), (&open, None), (&empty, None)] {
            let request = gateway.get("/v1/x").bearer_auth(&key.credential);
            let own_copy = request.header("x-auth-allowed-extract-templates", "all");
            let seen = outcome(&gateway, own_copy).await.seen.unwrap();
            let sent = seen.headers.get("x-auth-allowed-extract-templates").map(String::as_str);
            assert_eq!(sent, expected, "{seen:?}");
        }
        let denied = code(&gateway, &unreadable.credential, "/v1/x").await;
        assert_eq!(denied, (403, "extract_template_not_allowed".into()));
        // In shadow mode, the upstream must not take an absent list for no restriction.
        let passed = outcome(&gateway, gateway.get("/beta/x").bearer_auth(&unreadable.credential)).await;
        assert_eq!(passed.code, "extract_template_not_allowed");
        assert_eq!(passed.seen.unwrap().headers["x-auth-allowed-extract-templates"], "!unreadable");
        let log = gateway.keystile.setup.log();
        assert!(log.contains("allowed_extract_templates"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn table_without_extract_templates_restricts_none() {
    for application in applications().await {
        application.place.execute("ALTER TABLE api_keys DROP COLUMN allowed_extract_templates").await;
        assert!(application.setup.run(&["migrate"]).status.success());
        let key = application.key("").await;
        let (_place, gateway) = application.start(&[]).await;
        let outcome = outcome(&gateway, gateway.get("/v1/x").bearer_auth(&key.credential)).await;
        assert!(!outcome.seen.unwrap().headers.contains_key("x-auth-allowed-extract-templates"));
    }
}

/// Entries as the application writes them, a path, and whether a budget of the entry binds a request for the path.
const ENDPOINTS: &[(&str, &str, bool)] = &[
    ("chat/completions", "/api/v1/chat/completions", true),
    ("chat/completions", "/api/v1/llm/chat/completions", true),
    ("chat/completions", "/api/v1/Chat/Completions/", true),
    ("chat/completions", "/api/v1/chat/%63ompletions?a=/b", true),
    ("chat/completions", "/api/v1/chat//completions", true),
    ("chat/completions", "/api/v1/x/../chat/completions", true),
    ("chat/completions", "/api/v1/livechat/completions", false),
    ("chat/completions", "/api/v1/completions", false),
    ("chat/completions", "/api/v1/chat/completions/7", false),
    ("embeddings", "/api/v1/embeddings", true),
    ("embeddings", "/api/v1/chat/completions", false),
    ("/embeddings", "/api/v1/embeddings", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn budget_of_an_endpoint_binds_every_path_that_ends_in_it() {
    for application in applications().await {
        application.place.execute(BUDGETS).await;
        let mut keys = Vec::new();
        for (id, (entry, ..)) in (1..).zip(ENDPOINTS) {
            let key = application.key("").await;
            application.spent_budget(id, &key, &format!(r#"["other", "{entry}"]"#)).await;
            keys.push(key);
        }
        let (place, gateway) = application.start(&[]).await;
        for ((id, key), (entry, path, binds)) in (1..).zip(&keys).zip(ENDPOINTS) {
            let expected = if *binds { (402, "budget_exhausted") } else { (200, "allow") };
            let outcome = post(&gateway, key, path, "{}").await;
            assert_eq!((outcome.status, outcome.code.as_str()), expected, "{entry} {path}");
            // Envoy normalises the path before the check. `explain` has no Envoy.
            let path = path.replace("//", "/").replace("x/../", "");
            let setup = Setup::with_database(&place.url());
            let explained =
                setup.json(&["explain", &key.id.to_string(), "--method", "POST", "--path", &path]);
            let mut budgets = explained["budgets"].as_array().unwrap().iter();
            let budget = budgets.find(|budget| budget["budget_id"] == id).unwrap();
            assert_eq!(
                (&budget["binds"], &budget["denies"]),
                (&(*binds).into(), &(*binds).into()),
                "{explained}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn explanation_names_the_budgets_that_bind_and_why_the_others_do_not() {
    for application in applications().await {
        application.place.execute(BUDGETS).await;
        let (key, other) = (application.key("").await, application.key("").await);
        let (key_id, other_id) = (key.id.to_string(), other.id.to_string());
        let user = application.place.value("SELECT CAST(id AS text) FROM users").await.unwrap();
        let base = [
            ("user_id", Some(user.as_str())),
            ("period_start", Some("2010-01-01 00:00:00")),
            ("period_end", Some("2999-01-01 00:00:00")),
        ];
        for (id, change) in [
            ("1", &[("api_key_id", Some(key_id.as_str()))][..]),
            ("2", &[("allowed_endpoints", Some(r#"["chat/completions"]"#))]),
            ("3", &[("allowed_endpoints", Some(r#"["embeddings"]"#))]),
            ("4", &[("allowed_models", Some(r#"["o1"]"#))]),
            ("5", &[("is_active", Some("0"))]),
            ("6", &[("api_key_id", Some(other_id.as_str()))]),
            ("7", &[("enforce_hard_limit", Some("0"))]),
            ("8", &[("period_end", Some("2020-01-01 00:00:00")), ("auto_renew", Some("0"))]),
            ("9", &[("allowed_models", Some("o1"))]),
        ] {
            let kept = base.iter().filter(|(name, _)| change.iter().all(|(changed, _)| changed != name));
            let changes: Vec<_> = kept.chain(change).copied().collect();
            // Not JSON: Postgres refuses it in a json column.
            if id == "9" && application.place.file().is_none() {
                application.place.execute("ALTER TABLE budgets ALTER allowed_models TYPE text").await;
            }
            application.place.budget(id, &changes).await;
        }
        let arguments = ["explain", &key_id, "--path", "/api/v1/chat/completions", "--model", "gpt-4o"];
        let explained = application.setup.json(&arguments);
        let budgets = explained["budgets"].as_array().unwrap();
        let why = |id: i64| {
            let budget = budgets.iter().find(|budget| budget["budget_id"] == id);
            let budget = budget.unwrap_or_else(|| panic!("budget {id} in {explained}"));
            (budget["binds"] == true, budget["detail"].as_str().unwrap().to_owned())
        };
        for (id, binds, expected) in [
            (1, true, "it is for every path; it is for every model"),
            (2, true, r#"the path matches "chat/completions"; it is for every model"#),
            (3, false, "the path matches none of its allowed_endpoints"),
            (4, false, "the request names none of its allowed_models"),
            (5, false, "is_active is false"),
            (6, false, &format!("it is for key {other_id}")),
            (7, false, "enforce_hard_limit is false"),
            (8, false, "its period is over, and auto_renew is false"),
        ] {
            assert_eq!(why(id), (binds, expected.to_owned()));
        }
        assert!(why(9).1.starts_with("allowed_models is not "), "{explained}");
        assert_eq!((explained["code"].as_str(), budgets.len()), (Some("budget_exhausted"), 9), "{explained}");
        let table = String::from_utf8(application.setup.run(&arguments).stdout).unwrap();
        assert!(table.contains("budget 5") && table.contains("does not bind"), "{table}");
    }
}

/// Row of the user, the setting, and what becomes of the user's keys.
const LOCKS: &[(&str, &str, u16)] = &[
    ("account_locked = '1', account_locked_until = '2999-01-01 00:00:00'", "deny", 401),
    ("account_locked = '1', account_locked_until = '2999-01-01 00:00:00'", "ignore", 200),
    ("account_locked = '1'", "", 401),
    ("account_locked = '1'", "ignore", 200),
    ("account_locked = '1', account_locked_until = '2020-01-01 00:00:00'", "deny", 200),
    ("account_locked = '1', is_active = '0'", "ignore", 401),
];

#[tokio::test(flavor = "multi_thread")]
async fn locked_account_stops_its_keys_unless_locks_are_ignored() {
    for (lock, setting, expected) in LOCKS {
        for application in applications().await {
            let key = application.key("").await;
            application.place.execute(&format!("UPDATE users SET {lock}")).await;
            let (place, gateway) = application.start(&[("KEYSTILE_ACCOUNT_LOCK", *setting)]).await;
            let code = code(&gateway, &key.credential, "/v1/x").await;
            let denied = if *expected == 200 { "allow" } else { "user_inactive" };
            assert_eq!(code, (*expected, denied.into()), "{lock} {setting}");
            let setup = Setup::with_database(&place.url());
            let mut explain = setup.command(&["explain", &key.id.to_string(), "--output", "json"]);
            let explained = explain.env("KEYSTILE_ACCOUNT_LOCK", setting).output().unwrap();
            let explained: Value = serde_json::from_slice(&explained.stdout).unwrap();
            assert_eq!(explained["status"], *expected, "{lock} {setting}: {explained}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn application_that_counts_requests_itself_counts_each_once() {
    for application in applications().await {
        let key = application.key("").await;
        let settings = [("KEYSTILE_USAGE_COLUMNS", "last_used_at"), ("KEYSTILE_USAGE_INTERVAL", "1s")];
        let (place, mut gateway) = application.start(&settings).await;
        for n in 1..=5 {
            assert_eq!(code(&gateway, &key.credential, "/v1/x").await.0, 200);
            // It reads the row and writes the absolute number.
            place.execute(&format!("UPDATE api_keys SET total_requests = {n} WHERE id = {}", key.id)).await;
        }
        let is_dated =
            || async { place.value("SELECT CAST(count(last_used_at) AS text) FROM api_keys").await };
        until("the use is written", Duration::from_secs(10), async || {
            is_dated().await.as_deref() == Some("1")
        })
        .await;
        let keystile = &mut gateway.keystile.process;
        keystile.signal(Signal::TERM);
        assert_eq!(keystile.wait(Duration::from_secs(20)), Some(0));
        let total = place.value("SELECT CAST(total_requests AS text) FROM api_keys").await;
        assert_eq!(total.as_deref(), Some("5"));
    }
}
