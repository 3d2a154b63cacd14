//! What docs/guides/from-a-python-service.md says, compared with `tests/backend`.

use std::collections::BTreeSet;

use keystile::decision::Reason;
use serde_json::{Value, json};

use crate::harness::{python::Environment, tools::read};

/// The steps, in their order, as `tests/backend` names them.
pub const STEPS: [&str; 4] = ["shadow", "forward", "headers", "no-redis"];

/// The page.
pub struct Guide {
    text: String,
}

impl Guide {
    pub fn read() -> Self {
        Self { text: read("docs/guides/from-a-python-service.md") }
    }

    /// The settings of Keystile in a step.
    pub fn keystile_settings(&self, step: &str) -> Environment {
        self.settings(step, |name| name.starts_with("KEYSTILE_"))
    }

    /// The settings of the service in a step.
    pub fn service_settings(&self, step: &str) -> Environment {
        self.settings(step, |name| !name.starts_with("KEYSTILE_"))
    }

    /// The statements that `keystile migrate --print-grants` prints, with the right that differs here.
    pub fn grants(&self, printed: &str) -> String {
        let [usage] = blocks(&self.text, "sql").collect::<Vec<_>>()[..] else { panic!("one block of SQL") };
        let is_usage = |line: &&str| line.starts_with("GRANT UPDATE (last_used_at, total_requests)");
        let line = printed.lines().find(is_usage).unwrap_or_else(|| panic!("{printed}"));
        printed.replace(line, usage.trim())
    }

    fn settings(&self, step: &str, of: impl Fn(&str) -> bool) -> Environment {
        let number = 1 + STEPS.iter().position(|known| *known == step).unwrap();
        let section = self.section(&format!("## Step {number}: "));
        let lines = blocks(section, "ini").flat_map(str::lines).filter(|line| !line.starts_with('#'));
        let settings = lines.map(|line| line.split_once('=').unwrap_or_else(|| panic!("{line}")));
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings: Environment = settings.filter(|(name, _)| of(name)).collect();
        assert!(!settings.is_empty(), "step {step} has settings");
        settings
    }

    /// The text from a heading to the next one of its level.
    fn section(&self, heading: &str) -> &str {
        let start = self.text.find(heading).unwrap_or_else(|| panic!("no {heading:?}"));
        let rest = &self.text[start..];
        rest[3..].find("\n## ").map_or(rest, |end| &rest[..end + 3])
    }
}

/// The differences that the page lists.
pub fn difference_names() -> BTreeSet<String> {
    let guide = Guide::read();
    let rows =
        guide.section("## Where the answers differ").lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split_once('`').unwrap().0.to_owned()).collect()
}

/// The blocks of code in a language.
fn blocks<'t>(text: &'t str, language: &str) -> impl Iterator<Item = &'t str> + use<'t> {
    let start = format!("```{language}\n");
    let blocks: Vec<_> = text.split(start.as_str()).skip(1).collect();
    blocks.into_iter().filter_map(|rest| rest.split("```").next())
}

#[test]
fn differences_of_the_page_are_those_that_the_comparison_accepts() {
    let source = read("tests/backend/differences.py");
    let accepted = source.lines().filter_map(|line| line.strip_prefix("    \"")?.split_once("\": lambda"));
    let mut accepted: BTreeSet<_> = accepted.map(|(name, _)| name.to_owned()).collect();
    accepted.insert("left_to_the_service".into());
    assert!(accepted.len() > 5 && source.contains("= \"left_to_the_service\""));
    assert_eq!(difference_names(), accepted);
}

#[test]
fn page_maps_every_method_and_setting() {
    let guide = Guide::read();
    let table = guide.section("## What replaces what");
    let named = |name: &str| table.contains(&format!("`{name}`")) || table.contains(&format!(".{name}`"));
    let mut missing = Vec::new();
    for file in ["key_service", "key_cache", "own_identity", "caller", "users", "budgets"] {
        let source = read(&format!("tests/backend/{file}.py"));
        // Helpers of a module are no methods that another module calls.
        let indent = if file == "own_identity" { "def " } else { "    def " };
        let methods = source.lines().filter_map(|line| line.strip_prefix(indent)?.split_once('('));
        let methods: Vec<_> = methods.map(|(name, _)| name).filter(|name| !name.starts_with('_')).collect();
        assert!(!methods.is_empty(), "{file}");
        missing.extend(methods.into_iter().filter(|name| !named(name)).map(str::to_owned));
    }
    let settings = read("tests/backend/settings.py");
    let settings = settings.lines().filter_map(|line| line.strip_prefix("    ")?.split_once(": "));
    let settings = settings
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|b| b == b'_' || b.is_ascii_uppercase()));
    let settings: Vec<_> = settings.map(str::to_owned).collect();
    assert!(settings.len() > 5);
    missing.extend(settings.into_iter().filter(|name| !named(name)));
    assert!(missing.is_empty(), "the page does not say what replaces {missing:?}");
}

#[test]
fn code_of_the_page_is_that_of_the_service() {
    let guide = Guide::read();
    let shown: Vec<_> = blocks(&guide.text, "python").collect();
    assert_eq!(shown.len(), 1);
    let code = read("tests/backend/trusted_identity.py");
    assert!(code.ends_with(shown[0]), "tests/backend/trusted_identity.py has changed");
}

#[test]
fn each_step_changes_what_it_says() {
    let guide = Guide::read();
    let has = |step: &str, name: &str| guide.keystile_settings(step).iter().any(|(known, _)| known == name);
    let with = |name: &str| STEPS.map(|step| has(step, name));
    assert_eq!(with("KEYSTILE_MODE"), [true, false, false, false]);
    assert_eq!(with("KEYSTILE_FORWARD_CREDENTIAL"), [true, true, false, false]);
}

/// A line of the access log of `envoy/python-service.yaml`.
fn line(result: Value, status: u16, changes: Value) -> String {
    let mut line = json!({
        "request_id": "r-1", "route": "chat", "status": status, "details": "via_upstream", "result": result,
        "key_id": null, "backend_key_id": null,
    });
    for (name, value) in changes.as_object().unwrap() {
        line[name] = value.clone();
    }
    format!("2026-01-01T00:00:00Z {line}\n")
}

/// Exit status and output of the report on a log.
fn report(log: &str) -> (i32, Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), log).unwrap();
    let output = std::process::Command::new("python3")
        .arg(crate::harness::tools::repository("envoy/shadow-report.py"))
        .args([file.path().to_str().unwrap(), "--output", "json"])
        .output()
        .unwrap();
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), report)
}

#[test]
fn report_knows_the_status_of_every_denial() {
    // Statuses with which no service refuses a caller are not refusals.
    for reason in Reason::ALL.into_iter().filter(|reason| [401, 402, 403, 429].contains(&reason.status())) {
        let (status, found) = report(&line(reason.code().into(), reason.status(), json!({})));
        assert_eq!((status, &found["agreeing"]), (0, &json!(1)), "{}: {found}", reason.code());
    }
}

#[test]
fn report_tells_the_kinds_of_differences_apart() {
    let none = json!({});
    for (log, expected) in [
        (line("disabled".into(), 200, none.clone()), "keystile_denies"),
        (line("unavailable".into(), 200, none.clone()), "keystile_denies"),
        (line("allow".into(), 402, none.clone()), "service_refuses"),
        (line("anonymous".into(), 401, none.clone()), "service_refuses"),
        (line("scope_missing".into(), 401, none.clone()), "other_status"),
        (line("allow".into(), 200, json!({"key_id": "7", "backend_key_id": "8"})), "other_key"),
        (line("allow".into(), 200, json!({"key_id": "7", "backend_key_id": "none"})), "other_key"),
        (line("anonymous".into(), 200, json!({"backend_key_id": "8"})), "other_key"),
    ] {
        let (status, found) = report(&log.repeat(2));
        assert_eq!(status, 1, "{log}");
        assert_eq!(found["differences"][0]["kind"], expected, "{log}");
        assert_eq!(found["differences"][0]["requests"], 2, "{log}");
    }
    for log in [
        line("allow".into(), 200, json!({"key_id": "7", "backend_key_id": "7"})),
        line("allow".into(), 500, json!({"key_id": "7"})),
        line("anonymous".into(), 200, json!({"backend_key_id": "none"})),
        line("allow".into(), 404, none),
    ] {
        assert_eq!(report(&log).0, 0, "{log}");
    }
}

#[test]
fn report_on_a_log_without_decisions_is_an_error() {
    let not_asked = line(Value::Null, 200, json!({}));
    let answered_by_envoy = line("disabled".into(), 401, json!({"details": "ext_authz_denied"}));
    for log in ["", "not JSON\n{\n{}\n[1]\n", &not_asked, &answered_by_envoy] {
        let (status, found) = report(log);
        assert_eq!((status, &found["requests"]), (2, &json!(0)), "{log}");
    }
}
