//! What `keystile explain` says is what `keystile serve` does.

use serde_json::{Value, json};

use crate::harness::{
    client::{Asked, ask_about, channel, code, status},
    place::BUDGETS,
    service::{Key, Keystile, Setup},
};

const POST: Asked<'static> = Asked {
    credential: "",
    method: "POST",
    path: "/v1/bots/7/chat",
    client: Some("10.1.2.3"),
    body: None,
    route: &[],
    stream: "",
};

/// Options of a key, and a request with it.
fn cases() -> Vec<(&'static [&'static str], Asked<'static>, Option<&'static str>)> {
    let far = Asked { client: Some("192.0.2.1"), ..POST };
    let get = Asked { method: "GET", ..POST };
    let dotted = Asked { path: "/v1/bots/../bots/7/chat", ..POST };
    let model = |model: &'static str| Asked { body: Some(model.to_owned()), ..POST };
    let scopes: &[_] = &[("keystile.scopes", "chat admin")];
    let no_model: &[_] = &[("keystile.model", "ignore")];
    let bots: &[_] = &[("keystile.chatbot", "segment:3")];
    let agents: &[_] = &[("keystile.agent", "segment:3")];
    let shadow: &[_] = &[("keystile.scopes", "admin"), ("keystile.mode", "shadow")];
    let wrong: &[_] = &[("keystile.scope", "admin")];
    vec![
        (&[], POST, None),
        (&["--allowed-ip", "10.0.0.0/8"], POST, None),
        (&["--allowed-ip", "10.0.0.0/8"], far, Some("ip_not_allowed")),
        (&["--allowed-endpoint", "POST /v1/bots/*/chat"], POST, None),
        (&["--allowed-endpoint", "POST /v1/bots/*/chat"], get, Some("endpoint_not_allowed")),
        (&["--allowed-endpoint", "/v1/**"], dotted, Some("endpoint_not_allowed")),
        (&["--allowed-model", "gpt-4*"], model("gpt-4o"), None),
        (&["--allowed-model", "gpt-4*"], model("o1"), Some("model_not_allowed")),
        (&["--allowed-model", "gpt-4*"], POST, Some("model_not_allowed")),
        (&["--allowed-model", "gpt-4*"], Asked { route: no_model, ..POST }, None),
        (&["--scope", "chat", "--scope", "admin"], Asked { route: scopes, ..POST }, None),
        (&["--scope", "chat"], Asked { route: scopes, ..POST }, Some("scope_missing")),
        (&["--allowed-chatbot", "7"], Asked { route: bots, ..POST }, None),
        (&["--allowed-chatbot", "8"], Asked { route: bots, ..POST }, Some("chatbot_not_allowed")),
        (&["--allowed-agent", "8"], Asked { route: agents, ..POST }, Some("agent_not_allowed")),
        (&["--budget-limit-cents", "100", "--budget-type", "total"], POST, None),
        (&["--budget-limit-cents", "0", "--budget-type", "total"], POST, Some("budget_exhausted")),
        (&[], Asked { route: shadow, ..POST }, None),
        (&["--tag", "keystile:shadow", "--scope", "chat"], Asked { route: scopes, ..POST }, None),
        (&[], Asked { route: wrong, ..POST }, Some("route_misconfigured")),
    ]
}

fn explain(setup: &Setup, id: i64, asked: &Asked<'_>) -> Value {
    let id = id.to_string();
    let mut arguments = vec!["explain", &id, "--method", asked.method, "--path", asked.path];
    asked.client.iter().for_each(|client| arguments.extend(["--client", *client]));
    asked.body.iter().for_each(|model| arguments.extend(["--model", model.as_str()]));
    let route: Vec<_> = asked.route.iter().map(|(name, value)| format!("{name}={value}")).collect();
    route.iter().for_each(|setting| arguments.extend(["--route", setting.as_str()]));
    setup.json(&arguments)
}

#[tokio::test(flavor = "multi_thread")]
async fn explanation_and_served_decision_agree() {
    let setup = Setup::new();
    setup.create_user("ada");
    let cases: Vec<_> = cases()
        .into_iter()
        .map(|(options, asked, expected)| (setup.create_key("ada", options), asked, expected))
        .collect();
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    for (key, asked, expected) in &cases {
        let explained = explain(&setup, key.id, asked);
        let body = asked.body.as_ref().map(|model| json!({ "model": model }).to_string());
        let served = ask_about(&channel, &Asked { credential: &key.credential, body, ..asked.clone() }).await;
        assert_eq!(code(&served).as_deref(), *expected, "{asked:?}");
        assert_eq!(explained["status"], status(&served), "{asked:?}: {explained}");
        if let Some(code) = expected {
            assert_eq!(explained["code"], *code, "{asked:?}: {explained}");
        }
    }
}

/// Columns of a user's budget beside its limit of 100 cents, and what becomes of a request.
const BUDGETS_OF_A_USER: &[(&str, &str, Option<&str>)] = &[
    ("current_usage_cents", "99", None),
    ("current_usage_cents", "100", Some("budget_exhausted")),
    ("current_usage_cents, is_active", "100, false", None),
    ("current_usage_cents, enforce_hard_limit", "100, false", None),
    ("current_usage_cents, period_end", "100, '2020-01-01 00:00:00'", None),
    ("limit_cents, period_end", "0, '2020-01-01 00:00:00'", Some("budget_exhausted")),
    ("limit_cents, period_end, auto_renew", "0, '2020-01-01 00:00:00', false", None),
    ("period_start", "'2998-01-01 00:00:00'", Some("budget_exhausted")),
    ("limit_cents, allowed_models", r#"0, '["o1"]'"#, None),
    ("limit_cents, allowed_models", r#"0, '["gpt-4o"]'"#, Some("budget_exhausted")),
    ("limit_cents, allowed_endpoints", r#"0, '["/v1"]'"#, None),
    ("limit_cents, allowed_endpoints", r#"0, '["/v1/bots/7/chat"]'"#, Some("budget_exhausted")),
    ("api_key_id, limit_cents", "99, 0", None),
    ("user_id, limit_cents", "1, 0", None),
    ("current_usage_cents", "'much'", Some("budget_exhausted")),
];

#[tokio::test(flavor = "multi_thread")]
async fn budgets_are_explained_as_they_are_served() {
    let setup = Setup::new();
    setup.create_user("nobody");
    setup.execute(BUDGETS);
    // A user for each: theirs is the budget.
    let keys: Vec<_> = BUDGETS_OF_A_USER.iter().map(|case| key_with_budget(&setup, case)).collect();
    let Keystile { setup, process: _process } = setup.start(&[]).await;
    let channel = channel(setup.tcp).await;
    for (key, case @ (_, _, expected)) in keys.iter().zip(BUDGETS_OF_A_USER) {
        let explained = explain(&setup, key.id, &Asked { body: Some("gpt-4o".into()), ..POST });
        let body = Some(json!({ "model": "gpt-4o" }).to_string());
        let served = ask_about(&channel, &Asked { credential: &key.credential, body, ..POST }).await;
        assert_eq!(code(&served).as_deref(), *expected, "{case:?}");
        assert_eq!(explained["code"].as_str(), *expected, "{case:?}: {explained}");
        assert_eq!(explained["status"], status(&served), "{case:?}: {explained}");
    }
    let log = setup.log();
    assert!(log.contains("budget cannot be decoded: the key is denied") && !log.contains("much"), "{log}");
    assert!(setup.metrics().await.contains("keystile_undecodable_rows_total 1\n"));
}

fn key_with_budget(setup: &Setup, (columns, values, _): &(&str, &str, Option<&str>)) -> Key {
    let name = format!("user{}", setup.json(&["users", "list"]).as_array().unwrap().len());
    setup.create_user(&name);
    let key = setup.create_key(&name, &[]);
    let user = format!("(SELECT id FROM users WHERE username = '{name}')");
    let base = [
        ("user_id", user.as_str()),
        ("limit_cents", "100"),
        ("period_start", "'2010-01-01 00:00:00'"),
        ("period_end", "'2999-01-01 00:00:00'"),
    ];
    let kept: Vec<_> = base.iter().filter(|(name, _)| !columns.contains(name)).collect();
    let names: String = kept.iter().map(|(name, _)| format!(", {name}")).collect();
    let rest: String = kept.iter().map(|(_, value)| format!(", {value}")).collect();
    setup.execute(&format!("INSERT INTO budgets ({columns}{names}) VALUES ({values}{rest})"));
    key
}

#[test]
fn each_check_says_what_it_looked_at() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &["--allowed-ip", "10.0.0.0/8", "--expires-at", "90d"]);
    let explained = explain(&setup, key.id, &Asked { client: Some("192.0.2.1"), ..POST });
    let address =
        explained["checks"].as_array().unwrap().iter().find(|check| check["step"] == "address").unwrap();
    assert_eq!((&address["result"], &address["code"]), (&json!("deny"), &json!("ip_not_allowed")));
    assert_eq!(address["detail"], "client: 192.0.2.1; allowed_ips: 10.0.0.0/8");
    let later =
        setup.json(&["explain", &key.id.to_string(), "--client", "10.0.0.1", "--at", "2190-01-01T00:00:00Z"]);
    assert_eq!(later["code"], "expired");
    let table = setup.run(&["explain", &key.id.to_string(), "--client", "10.0.0.1"]);
    assert!(String::from_utf8(table.stdout).unwrap().contains("Every check passes."));
}

/// A model in a body that Envoy does not send is denied, as it is served.
#[test]
fn model_in_a_body_that_envoy_does_not_send_is_denied() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &["--allowed-model", "gpt-4*"]).id.to_string();
    let explain = |more: &[&str]| setup.json(&[&["explain", &key, "--model", "gpt-4o"], more].concat());
    assert_eq!(explain(&[])["status"], 200);
    let denied = explain(&["--envoy-sends-body", "false"]);
    assert_eq!((&denied["decision"], &denied["code"]), (&json!("deny"), &json!("model_not_allowed")));
    // Where the assumption decides, it is told.
    let told = |arguments: &[&str]| String::from_utf8(setup.run(arguments).stderr).unwrap();
    assert!(told(&["explain", &key, "--model", "gpt-4o"]).contains("with_request_body"));
    assert_eq!(told(&["explain", &key]), "");
    let free = setup.create_key("ada", &[]).id.to_string();
    assert_eq!(told(&["explain", &free, "--model", "gpt-4o"]), "");
}

#[test]
fn explanation_has_one_shape_for_programs() {
    let setup = Setup::new();
    setup.create_user("ada");
    let restrictions = ["--allowed-ip", "10.0.0.0/8", "--allowed-chatbot", "7"];
    let key = setup.create_key("ada", &restrictions).id.to_string();
    let explained = setup.json(&["explain", &key]);
    let checks = explained["checks"].as_array().unwrap();
    assert!(checks.len() > 10);
    for check in checks {
        let names: Vec<_> = check.as_object().unwrap().keys().map(String::as_str).collect();
        let is_denied = check["result"] == "deny";
        let mut expected = vec!["step", "result", "detail"];
        expected.extend(is_denied.then_some("code"));
        assert!(names.len() == expected.len() && expected.iter().all(|name| names.contains(name)), "{check}");
    }
    let result = |step: &str| checks.iter().find(|check| check["step"] == step).unwrap()["result"].clone();
    assert_eq!(
        ["address", "endpoint", "chatbot", "agent", "limits"].map(result),
        ["deny", "pass", "skip", "pass", "skip"].map(|result| json!(result))
    );
    let allowed = setup.json(&["explain", &key, "--client", "10.0.0.1"]);
    assert_eq!((&allowed["decision"], allowed.get("code")), (&json!("allow"), None));
    let wrong = setup.json(&["explain", &key, "--route", "keystile.scope=x"]);
    assert_eq!(
        (&wrong["checks"][0]["step"], &wrong["checks"][0]["code"]),
        (&json!("route"), &json!("route_misconfigured"))
    );
}

#[test]
fn unknown_key_and_unreadable_request_are_errors() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]).id.to_string();
    assert_eq!(setup.run(&["explain", "99"]).status.code(), Some(1));
    assert_eq!(setup.run(&["explain", &key, "--at", "noon"]).status.code(), Some(2));
    assert_eq!(setup.run(&["explain", &key, "--client", "localhost"]).status.code(), Some(2));
    assert_eq!(setup.run(&["explain", &key, "--route", "keystile.mode"]).status.code(), Some(2));
}

#[test]
fn limit_that_lets_nothing_through_is_a_denial_where_limits_are_counted() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &["--rate-limit-per-minute", "5"]).id.to_string();
    let explain = |counted: &str, cost: &str| {
        let cost = format!("keystile.cost={cost}");
        let explained = setup.json(&["explain", &key, "--rate-limit", counted, "--route", &cost]);
        let checks = explained["checks"].as_array().unwrap();
        assert_eq!(checks.last().unwrap()["step"], "limits");
        (explained["status"].as_u64().unwrap(), checks.last().unwrap()["detail"].clone())
    };
    let told =
        "5 per minute, unlimited per hour, unlimited per day; cost: 6; sent to the upstream, not counted";
    assert_eq!(explain("off", "6"), (200, told.into()));
    assert_eq!(explain("local", "5").0, 200);
    assert_eq!(explain("redis", "6").0, 429);
}
