//! The documentation says what the code says.
//!
//! Each page of `docs/reference/` has one generated part. After a change of the code,
//! `KEYSTILE_BLESS=1 cargo test --test integration docs::` writes these parts.

use std::path::{Path, PathBuf};

use clap::{Arg, Args, Command};
use keystile::{
    config::{InjectOptions, ManagementOptions, ServeOptions},
    decision::Reason,
    envoy_config::rules,
    ext_authz::{headers, metadata},
    metrics::{self, Kind},
    revocation::Cause,
    store::FindingKind,
};

mod command_line;
mod links;
mod mutual_tls;
mod quick_start;

#[test]
fn every_setting_is_listed() {
    let command = ServeOptions::augment_args(Command::new("serve"));
    compare("docs/reference/settings.md", &settings("##", &command));
}

#[test]
fn every_setting_of_the_injector_is_listed() {
    let command = InjectOptions::augment_args(Command::new("inject"));
    compare("docs/reference/injector.md", &settings("###", &command));
}

#[test]
fn every_setting_of_the_management_api_is_listed() {
    let command = ManagementOptions::augment_args(Command::new("management"));
    compare("docs/reference/management.md", &settings("###", &command));
}

#[test]
fn every_header_is_listed() {
    let rows =
        headers::TABLE.iter().map(|header| format!("| `{}` | {} |", header.name, escaped(header.about)));
    compare("docs/reference/headers.md", &table("| header | value |\n|---|---|", rows));
}

#[test]
fn every_field_of_metadata_is_listed() {
    let rows = metadata::TABLE.iter().map(|field| format!("| `{}` | {} |", field.name, escaped(field.about)));
    compare("docs/reference/metadata.md", &table("| field | value |\n|---|---|", rows));
}

#[test]
fn every_denial_is_listed() {
    let rows = Reason::ALL.iter().map(|reason| {
        let code = reason.code();
        format!("| [`{code}`](#{code}) | {} | {} |", reason.status(), escaped(reason.sentence()))
    });
    compare(
        "docs/reference/denials.md",
        &table("| code | status | what the caller reads |\n|---|---|---|", rows),
    );
}

#[test]
fn every_denial_has_its_cause_and_fix() {
    let text = read("docs/reference/denials.md");
    let documented: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(documented, Reason::ALL.map(Reason::code));
    for (reason, section) in Reason::ALL.iter().zip(text.split("\n## ").skip(1)) {
        assert!(section.contains(&format!("\n{}, gRPC ", reason.status())), "{reason:?}");
    }
}

#[test]
fn every_metric_is_listed() {
    let rows = metrics::TABLE.iter().map(|metric| {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        format!("| `{}` | {kind} | {} |", metric.name, escaped(metric.help))
    });
    compare("docs/reference/metrics.md", &table("| metric | kind | meaning |\n|---|---|---|", rows));
}

#[test]
fn every_finding_of_the_doctor_is_listed() {
    let rows = FindingKind::ALL.iter().map(|kind| {
        let severities: Vec<_> = kind.severities().iter().map(ToString::to_string).collect();
        let (meaning, fix) = (escaped(kind.meaning()), escaped(kind.fix()));
        format!("| `{}` | {} | {meaning} | {fix} |", kind.code(), severities.join(", "))
    });
    compare(
        "docs/operations/doctor.md",
        &table("| code | severity | meaning | fix |\n|---|---|---|---|", rows),
    );
}

#[test]
fn every_rule_for_envoy_is_listed() {
    let rows = rules().map(|rule| {
        let severities: Vec<_> = rule.severities.iter().map(ToString::to_string).collect();
        let generators: Vec<_> = rule.not_settable.iter().filter_map(|generator| generator.name()).collect();
        let (meaning, fix) = (escaped(rule.meaning), escaped(rule.fix));
        let (code, severities, generators) = (rule.code, severities.join(", "), generators.join(", "));
        format!("| `{code}` | {severities} | {generators} | {meaning} | {fix} |")
    });
    compare(
        "docs/operations/doctor-envoy.md",
        &table("| code | severity | a note in | meaning | fix |\n|---|---|---|---|---|", rows),
    );
}

#[test]
fn every_cause_of_a_degraded_change_feed_is_documented() {
    let causes = Cause::ALL.map(Cause::name);
    let page = read("docs/operations/change-feed.md");
    let sections: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(sections, causes, "docs/operations/change-feed.md has a section for each, in their order");
    let walk = read("ARCHITECTURE.md");
    let (_, table) = walk.split_once("| cause | condition |").unwrap();
    let rows: Vec<_> =
        table.lines().skip(2).map_while(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, causes, "ARCHITECTURE.md has a row for each, in their order");
    let metric = metrics::TABLE.iter().find(|metric| metric.name == "keystile_change_feed_degraded").unwrap();
    assert!(metric.help.contains(&causes.join(", ")), "{}", metric.help);
}

#[test]
fn every_limit_has_its_test() {
    let page = read("docs/reference/limits.md");
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| ")).collect();
    let rows = rows.iter().filter(|row| !row.starts_with("| what |"));
    let tests = sources(&file("tests/integration")) + &sources(&file("src/bounds"));
    let mut count = 0;
    for row in rows {
        let name = row.trim_end_matches("` |").rsplit('`').next().unwrap();
        assert!(tests.contains(&format!("fn {name}(")), "{row}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

/// A test is named as `path/of/its/file.rs`: `name_of_the_test`, `and_another`.
#[test]
fn every_test_that_the_security_page_names_exists() {
    for (page, least) in [("SECURITY.md", 80), ("ARCHITECTURE.md", 0)] {
        let text = read(page);
        let (mut path, mut named) = ("", 0);
        for word in text.split('`').skip(1).step_by(2) {
            let is_file =
                ["src/", "tests/"].iter().any(|folder| word.starts_with(folder)) && word.ends_with(".rs");
            let is_test = word.len() > 20
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if is_file {
                path = word;
                assert!(file(path).exists(), "{page}: there is no {path}");
            } else if is_test && page == "SECURITY.md" && !word.starts_with("keystile_") {
                let source = read(path);
                let (before, _) = source
                    .split_once(&format!("fn {word}("))
                    .unwrap_or_else(|| panic!("{page}: {path} has no test {word}"));
                let attributes = before.rsplit("\n\n").next().unwrap_or_default();
                assert!(
                    attributes.contains("test]")
                        || attributes.contains("test(")
                        || before.contains("proptest!"),
                    "{page}: {word} is no test"
                );
                named += 1;
            }
        }
        assert!(named >= least, "{page} names {named} tests");
    }
}

/// Each guarantee has a row with tests, and each threat has one too.
#[test]
fn every_guarantee_and_threat_names_a_test() {
    let page = read("SECURITY.md");
    let rows = |heading: &str, end: &str| -> Vec<String> {
        let (_, section) = page.split_once(heading).expect("a section");
        let (section, _) = section.split_once(end).expect("a next section");
        let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |"));
        rows.filter(|row| !row.starts_with("| threat |")).map(str::to_owned).collect()
    };
    let guarantees = rows("## The guarantees", "## Threats");
    let numbers: Vec<_> = guarantees.iter().map(|row| row.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(numbers, (1..=10).map(|number| format!("G{number}")).collect::<Vec<_>>());
    let threats = rows("## Threats", "## What shows");
    assert!(threats.len() > 25, "{}", threats.len());
    for row in guarantees.iter().chain(&threats) {
        assert!(row.contains(".rs`: `"), "no test in: {row}");
    }
}

/// A section with a table for each help heading of a command, in order.
/// The text of all files below a folder.
fn sources(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(
            |path| {
                if path.is_dir() {
                    sources(&path)
                } else {
                    std::fs::read_to_string(&path).unwrap_or_default()
                }
            },
        )
        .collect()
}

fn settings(level: &str, command: &Command) -> String {
    let arguments: Vec<_> = command.get_arguments().collect();
    let sections = arguments.chunk_by(|a, b| a.get_help_heading() == b.get_help_heading());
    let sections = sections.map(|arguments| {
        let heading = arguments[0].get_help_heading().expect("every setting has a heading");
        let rows = arguments.iter().map(|argument| {
            let variable = variable(argument).expect("every setting has a variable");
            let flag = argument.get_long().expect("every setting is a flag");
            format!("| `{variable}` | `--{flag}` | {} | {} |", default(argument), help(argument))
        });
        format!(
            "{level} {heading}\n\n{}",
            table("| variable | flag | default | meaning |\n|---|---|---|---|", rows)
        )
    });
    sections.collect::<Vec<_>>().join("\n\n")
}

fn variable(argument: &Arg) -> Option<String> {
    argument.get_env().map(|name| name.to_string_lossy().into_owned())
}

fn default(argument: &Arg) -> String {
    let values: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if values.is_empty() { "none".to_owned() } else { format!("`{}`", values.join(",")) }
}

fn help(argument: &Arg) -> String {
    escaped(&argument.get_help().expect("every argument has help").to_string())
}

/// Text for a cell of a table: outside of code, nothing in it is markup.
fn escaped(text: &str) -> String {
    let escaped = |(at, part): (usize, &str)| {
        let part = part.replace('|', "\\|");
        if at % 2 == 0 { part.replace('*', "\\*").replace('<', "\\<") } else { part }
    };
    text.split('`').enumerate().map(escaped).collect::<Vec<_>>().join("`")
}

fn table(head: &str, rows: impl Iterator<Item = String>) -> String {
    std::iter::once(head.to_owned()).chain(rows).collect::<Vec<_>>().join("\n")
}

/// Compares the generated part of a page with what it should be, or writes it. A page has one such part, so tests
/// that run at the same time write different files.
fn compare(page: &str, expected: &str) {
    const OPEN: &str = "<!-- generated -->\n";
    const CLOSE: &str = "\n<!-- /generated -->";
    let text = read(page);
    let start = text.find(OPEN).unwrap_or_else(|| panic!("{page} has no {OPEN}")) + OPEN.len();
    let end = start + text[start..].find(CLOSE).unwrap_or_else(|| panic!("{page} has no {CLOSE}"));
    if std::env::var_os("KEYSTILE_BLESS").is_some() {
        std::fs::write(file(page), format!("{}{expected}{}", &text[..start], &text[end..]))
            .expect("writable");
        return;
    }
    // The first line that differs: the whole page would hide it.
    let (mut lines, mut expected) = (text[start..end].lines(), expected.lines());
    loop {
        let (line, expected) = (lines.next(), expected.next());
        assert_eq!(line, expected, "{page} is out of date: see this file's head");
        if line.is_none() {
            return;
        }
    }
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
