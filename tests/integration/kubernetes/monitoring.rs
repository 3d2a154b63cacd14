//! Alerts, dashboard and metrics, by Prometheus' own tools and by Prometheus.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::harness::{
    client,
    process::{Guarded, free_port, scratch},
    service::Setup,
    tools::{promtool, read, repository, yaml},
    until,
};

/// The groups of the PrometheusRule, as a rule file of Prometheus.
fn rule_file(folder: &Path) -> String {
    let rules = yaml(&read("k8s/monitoring/rules.yaml")).remove(0);
    let path = folder.join("rules.yaml");
    fs::write(&path, rules["spec"].to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn alerts() -> Vec<Value> {
    let rules = yaml(&read("k8s/monitoring/rules.yaml")).remove(0);
    let groups = rules["spec"]["groups"].as_array().unwrap().clone();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
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
    let folder = tempfile::tempdir().unwrap();
    let rules = rule_file(folder.path());
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", &rules], "").good();
    let tests = folder.path().join("rules_test.yaml");
    fs::copy(repository("k8s/monitoring/rules_test.yaml"), &tests).unwrap();
    let said = promtool(&["test", "rules", tests.to_str().unwrap()], "").good();
    assert!(said.contains("SUCCESS"), "{said}");
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
        assert_eq!(
            alert["annotations"]["runbook"],
            format!("docs/operations/runbook.md#{}", name.to_lowercase())
        );
    }
    let expected: Vec<_> = alerts.iter().map(|alert| alert["alert"].as_str().unwrap()).collect();
    assert_eq!(sections, expected, "docs/operations/runbook.md has a section for each, in their order");
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
        for word in text.split(|c| !is_part(c)).filter(|word| word.starts_with("keystile_")) {
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

    let folder = scratch("prometheus");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let config = json!({
        "global": { "scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms" },
        "rule_files": [rule_file(&folder)],
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
