//! Alerts, dashboard and metrics, by Prometheus' own tools and by Prometheus.

use std::{collections::BTreeSet, fs, time::Duration};

use keystile::dependencies::{Cause, Dependency};
use serde_json::{Value, json};

use super::manifests::up_to_date;
use crate::harness::{
    client,
    process::{Guarded, free_port, scratch},
    service::Setup,
    tools::{promtool, read, repository, yaml},
    until,
};

const RULES: &str = "k8s/monitoring/rules.yaml";
const OPERATORS_RULES: &str = "k8s/monitoring/prometheusrule.yaml";

/// The page that alerts link to. The address of the repository is that of Cargo.toml.
const RUNBOOK: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/operations/runbook.md");

fn alerts() -> Vec<Value> {
    let rules = yaml(&read(RULES)).remove(0);
    let groups = rules["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// The resource of the Prometheus operator, made of the plain rules.
fn operators_rules(rules: &str) -> String {
    let head = "# Made of rules.yaml: see its head.\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  \
                name: keystile\nspec:\n";
    let body = rules.lines().skip_while(|line| line.starts_with('#'));
    body.fold(head.to_owned(), |text, line| text + if line.is_empty() { "" } else { "  " } + line + "\n")
}

/// The queries of the dashboard, with its variables filled in.
fn dashboard_queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("k8s/monitoring/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    queries.map(|query| query.replace("$__rate_interval", "5m").replace("$namespace", ".*")).collect()
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let file = |path| repository(path).to_str().unwrap().to_owned();
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", &file(RULES)], "").good();
    let said = promtool(&["test", "rules", &file("k8s/monitoring/rules_test.yaml")], "").good();
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn operators_resource_has_the_same_rules() {
    up_to_date(OPERATORS_RULES, &operators_rules(&read(RULES)));
    assert_eq!(yaml(&read(OPERATORS_RULES)).remove(0)["spec"], yaml(&read(RULES)).remove(0));
}

#[test]
fn a_dead_keystile_is_noticed_without_statistics_of_envoy() {
    let is_about = |alert: &Value, metric: &str| alert["expr"].as_str().unwrap().contains(metric);
    for name in ["KeystileDown", "KeystileGone"] {
        let alert = alerts().into_iter().find(|alert| alert["alert"] == name).expect(name);
        assert!(is_about(&alert, "up") && !is_about(&alert, "envoy_"), "{alert}");
    }
    // Istio leaves these statistics out. An alert with them is never the only one of its fault.
    let with_envoy: Vec<_> = alerts().into_iter().filter(|alert| is_about(alert, "envoy_")).collect();
    let names: Vec<_> = with_envoy.iter().map(|alert| alert["alert"].as_str().unwrap()).collect();
    assert_eq!(names, ["KeystileEnvoyGetsNoAnswer", "KeystileFailOpen"]);
}

#[test]
fn every_alert_has_its_tests_and_its_runbook() {
    let tests = yaml(&read("k8s/monitoring/rules_test.yaml")).remove(0);
    let names =
        tests["tests"].as_array().unwrap().iter().map(|test| test["name"].as_str().unwrap().to_owned());
    let names: BTreeSet<_> = names.collect();
    let runbook = read("docs/operations/runbook.md");
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let alerts = alerts();
    for alert in &alerts {
        let name = alert["alert"].as_str().unwrap();
        for test in ["fires", "is quiet"] {
            assert!(names.contains(&format!("{name} {test}")), "{name} {test}");
        }
        assert_eq!(alert["annotations"]["runbook_url"], format!("{RUNBOOK}#{}", name.to_lowercase()));
    }
    let expected: Vec<_> = alerts.iter().map(|alert| alert["alert"].as_str().unwrap()).collect();
    assert_eq!(sections, expected, "docs/operations/runbook.md has a section for each, in their order");
    for section in runbook.split("\n## ").skip(1) {
        let first = section.lines().skip(1).find(|line| !line.is_empty()).unwrap_or_default();
        assert!(first.starts_with("**Look first:** "), "each section begins with one look: {section}");
        let look = section.split("\n\n").nth(1).unwrap_or_default();
        assert!(look.contains('`'), "the look is a command, a query or a line of the log: {look}");
    }
}

#[test]
fn every_cause_of_a_fault_is_in_the_runbook() {
    let runbook = read("docs/operations/runbook.md");
    let (_, section) = runbook.split_once("\n## KeystileDependencyFault\n").expect("a section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let listed = |head: &str| -> Vec<_> {
        let (_, table) = section.split_once(head).expect(head);
        let rows = table.lines().skip(2).map_while(|line| line.strip_prefix("| `")?.split('`').next());
        rows.map(str::to_owned).collect()
    };
    assert_eq!(listed("| dependency |"), Dependency::ALL.map(Dependency::name));
    assert_eq!(listed("| cause |"), Cause::ALL.map(Cause::name));
    let metric =
        keystile::metrics::TABLE.iter().find(|metric| metric.name == "keystile_dependency_up").unwrap();
    assert!(metric.help.contains(&Dependency::ALL.map(Dependency::name).join(", ")), "{}", metric.help);
}

#[test]
fn dashboard_queries_are_well_formed() {
    let queries = dashboard_queries();
    assert!(queries.len() > 20, "{queries:?}");
    let rule = |(index, query)| json!({ "record": format!("panel:{index}"), "expr": query });
    let rules: Vec<_> = queries.iter().enumerate().map(rule).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queries.yaml");
    fs::write(&path, json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string()).unwrap();
    promtool(&["check", "rules", path.to_str().unwrap()], "").good();
}

#[test]
fn every_metric_that_is_asked_for_exists() {
    let exported: BTreeSet<_> = keystile::metrics::TABLE.iter().map(|metric| metric.name).collect();
    let mut texts = dashboard_queries();
    texts.extend(alerts().iter().map(|alert| alert["expr"].as_str().unwrap().to_owned()));
    let mut missing = BTreeSet::new();
    for text in &texts {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_ours = |word: &&str| word.starts_with("keystile_") || word.starts_with("process_");
        for word in text.split(|c| !is_part(c)).filter(is_ours) {
            let name = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| word.strip_suffix(suffix));
            let name =
                name.filter(|name| exported.contains(name) || name.ends_with("_seconds")).unwrap_or(word);
            if !exported.contains(name) {
                missing.insert(name);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn dashboard_shows_what_is_lost_and_why() {
    let queries = dashboard_queries().join("\n");
    for metric in [
        "keystile_usage_lost_total",
        "keystile_first_proofs_waiting",
        "keystile_first_proofs_total",
        "keystile_change_feed_degraded",
        "keystile_dependency_fault",
        "keystile_checks_in_flight",
        "keystile_database_connections",
        "keystile_database_calls_waiting",
        "keystile_change_feed_last_change_timestamp_seconds",
        "keystile_limits_counted",
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(queries.contains(metric), "{metric}");
    }
}

#[tokio::test]
async fn prometheus_reads_a_running_keystile() {
    let setup = Setup::new();
    setup.run(&["migrate"]);
    let keystile = setup.start(&[]).await;
    let admin = keystile.setup.admin;
    let channel = client::channel(keystile.setup.tcp).await;
    assert_eq!(client::status(&client::ask(&channel, "ks_nobodyKnowsThis").await), 401);

    let exported = keystile.setup.metrics().await;
    let verdict = promtool(&["check", "metrics"], &exported);
    assert_eq!(verdict.good().trim(), "", "promtool finds fault with /metrics");

    for metric in keystile::metrics::TABLE.iter().filter(|metric| metric.name.starts_with("process_")) {
        assert!(exported.contains(&format!("\n{} ", metric.name)), "{} in:\n{exported}", metric.name);
    }

    let folder = scratch("prometheus");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let config = json!({
        "global": { "scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms" },
        "rule_files": [repository(RULES).to_str().unwrap()],
        "scrape_configs": [{ "job_name": "keystile", "static_configs": [{ "targets": [admin.to_string()] }] }],
    });
    fs::write(file("prometheus.yml"), config.to_string()).unwrap();
    let port = free_port();
    let arguments = [
        repository(".tools/prometheus/prometheus").to_str().unwrap().to_owned(),
        format!("--config.file={}", file("prometheus.yml")),
        format!("--storage.tsdb.path={}", file("data")),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let prometheus = Guarded::spawn(folder.clone(), "TERM", &arguments);
    prometheus.wait_for_port(port);

    let ask = async |path: &str| -> Value {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/api/v1/{path}")).await;
        match answer {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    };
    until("Prometheus has read Keystile", Duration::from_secs(30), async || {
        ask("query?query=keystile_build_info").await["data"]["result"][0]["value"][1] == "1"
    })
    .await;
    let up = ask("query?query=up").await;
    assert_eq!(up["data"]["result"][0]["value"][1], "1", "{up}");
    let rules = ask("rules").await;
    for group in rules["data"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_ne!(rule["health"], "err", "{rule}");
        }
    }
}
