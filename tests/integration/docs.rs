//! The README's tables say what the code says.
//!
//! After a change: `KEYSTILE_BLESS=1 cargo test --test integration docs` writes them anew.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use clap::{Arg, Args, Command};
use keystile::{
    config::{InjectOptions, ServeOptions},
    decision::Reason,
    ext_authz::{headers, metadata},
    metrics::{self, Kind},
    revocation::Cause,
};

#[test]
fn readme_lists_every_setting() {
    compare_settings("README.md", "settings", &ServeOptions::augment_args(Command::new("serve")));
}

#[test]
fn kubernetes_page_lists_every_setting_of_the_injector() {
    let command = InjectOptions::augment_args(Command::new("inject"));
    compare_settings("docs/guides/kubernetes.md", "inject-settings", &command);
}

#[test]
fn readme_lists_every_header() {
    let rows = headers::TABLE.iter().map(|header| format!("| `{}` | {} |", header.name, header.about));
    compare("README.md", "headers", "| header | value |\n|---|---|", rows);
}

#[test]
fn readme_lists_every_field_of_metadata() {
    let rows = metadata::TABLE.iter().map(|field| format!("| `{}` | {} |", field.name, field.about));
    compare("README.md", "metadata", "| field | value |\n|---|---|", rows);
}

#[test]
fn readme_lists_every_denial() {
    let rows = Reason::ALL.iter().map(|reason| {
        format!("| `{}` | {} | {} |", reason.code(), reason.status(), reason.sentence().replace('|', "\\|"))
    });
    compare("README.md", "denials", "| code | status | what the caller reads |\n|---|---|---|", rows);
}

#[test]
fn every_denial_has_its_cause_and_mend() {
    let text = std::fs::read_to_string(file("docs/reference/denials.md")).unwrap();
    let documented: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(documented, Reason::ALL.map(Reason::code));
    for (reason, section) in Reason::ALL.iter().zip(text.split("\n## ").skip(1)) {
        assert!(section.contains(&format!("\n{}, gRPC ", reason.status())), "{reason:?}");
    }
}

#[test]
fn readme_lists_every_metric() {
    let rows = metrics::TABLE.iter().map(|metric| {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        format!("| `{}` | {kind} | {} |", metric.name, metric.help)
    });
    compare("README.md", "metrics", "| metric | kind | meaning |\n|---|---|---|", rows);
}

#[test]
fn every_cause_of_a_degraded_change_feed_is_documented() {
    let causes = Cause::ALL.map(Cause::name);
    let runbook = std::fs::read_to_string(file("docs/operations/runbook.md")).unwrap();
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(sections, causes, "docs/operations/runbook.md has a section for each, in their order");
    let walk = std::fs::read_to_string(file("ARCHITECTURE.md")).unwrap();
    let (_, table) = walk.split_once("| cause | condition |").unwrap();
    let rows: Vec<_> =
        table.lines().skip(2).map_while(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, causes, "ARCHITECTURE.md has a row for each, in their order");
    let metric = metrics::TABLE.iter().find(|metric| metric.name == "keystile_change_feed_degraded").unwrap();
    assert!(metric.help.contains(&causes.join(", ")), "{}", metric.help);
}

#[test]
fn every_test_that_the_security_page_names_exists() {
    let page = std::fs::read_to_string(file("SECURITY.md")).unwrap();
    let is_test =
        |word: &&str| word.len() > 20 && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let rows = page.lines().filter(|line| line.starts_with("| ")).collect::<String>();
    let named: Vec<_> = rows.split('`').skip(1).step_by(2).filter(is_test).collect();
    assert!(named.len() > 10, "{named:?}");
    let tests = sources(&file("tests/integration"));
    for name in named {
        assert!(tests.contains(&format!("fn {name}(")), "{name}");
    }
}

/// The text of all files below a folder.
fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.is_dir() || path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| if path.is_dir() { sources(&path) } else { std::fs::read_to_string(&path).unwrap() })
        .collect()
}

fn compare_settings(document: &str, name: &str, command: &Command) {
    let rows = command.get_arguments().map(|argument| {
        let variable = argument.get_env().expect("every flag has a variable").to_string_lossy().into_owned();
        let flag = argument.get_long().expect("every setting is a flag");
        format!("| `{variable}` | `--{flag}` | {} | {} |", default(argument), help(argument))
    });
    compare(document, name, "| variable | flag | default | meaning |\n|---|---|---|---|", rows);
}

fn default(argument: &Arg) -> String {
    let values: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if values.is_empty() { "none".to_owned() } else { format!("`{}`", values.join(",")) }
}

fn help(argument: &Arg) -> String {
    argument.get_help().expect("every flag has help").to_string().replace('|', "\\|")
}

/// Compares what stands between `<!-- NAME -->` and `<!-- /NAME -->` with the table.
fn compare(document: &str, name: &str, head: &str, rows: impl Iterator<Item = String>) {
    // One at a time: each of these tests may write a file.
    static DOCUMENTS: Mutex<()> = Mutex::new(());
    let _alone = DOCUMENTS.lock().unwrap_or_else(PoisonError::into_inner);
    let path = file(document);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{document}: {error}"));
    let (open, close) = (format!("<!-- {name} -->\n"), format!("\n<!-- /{name} -->"));
    let start = text.find(&open).unwrap_or_else(|| panic!("{document} has no {open}")) + open.len();
    let end = start + text[start..].find(&close).unwrap_or_else(|| panic!("{document} has no {close}"));
    let expected = std::iter::once(head.to_owned()).chain(rows).collect::<Vec<_>>().join("\n");
    if std::env::var_os("KEYSTILE_BLESS").is_some() {
        std::fs::write(path, format!("{}{expected}{}", &text[..start], &text[end..])).expect("writable");
        return;
    }
    assert_eq!(
        &text[start..end],
        expected,
        "the table of {name} in {document} is out of date: see this file's head"
    );
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
