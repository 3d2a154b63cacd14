//! The command: its output, its exit status, its sources.

use std::io::Write;

use serde_json::Value;

use crate::harness::{
    keystile::{Run, keystile},
    process::scratch,
    tools::read,
};

/// There is none, so a command that opens it fails.
const NO_DATABASE: &str = "sqlite:/nonexistent/keys.db";

/// Runs the command on a file with this text.
fn run(text: &str, more: &[&str]) -> Run {
    let path = scratch("envoy-doctor").join("envoy.yaml");
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    keystile(&[&["doctor", "--envoy", path.to_str().unwrap()], more].concat(), NO_DATABASE, "")
}

fn broken() -> String {
    read("envoy/uds.yaml").replace("failure_mode_allow: false", "failure_mode_allow: true")
}

#[test]
fn sound_configuration_succeeds_without_a_database() {
    let run = run(&read("envoy/uds.yaml"), &[]);
    assert!(run.stderr.contains("0 errors, 0 warnings and 1 note in 1 HTTP filter chain"), "{run:?}");
    let table = run.done();
    for word in ["note", "route_unchecked", "virtual_hosts", "Fix: none"] {
        assert!(table.contains(word), "{word} in {table}");
    }
}

#[test]
fn error_fails_with_its_path_and_fix() {
    let run = run(&broken(), &[]);
    for word in ["error", "fail_open", "Fix: set failure_mode_allow to false"] {
        assert!(run.stdout.contains(word), "{word} in {}", run.stdout);
    }
    assert!(run.failed(1).contains("1 error, 0 warnings and 1 note"));
}

#[test]
fn json_has_what_was_examined_and_every_finding() {
    let run = run(&broken(), &["--output", "json"]);
    assert_eq!(run.status, 1);
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["envoy"], serde_json::json!({ "kind": "bootstrap", "http_chains": 1, "checks": 1 }));
    assert_eq!((&report["errors"], &report["warnings"], &report["notes"]), (&1.into(), &0.into(), &1.into()));
    let first = &report["findings"][0];
    assert_eq!((&first["code"], &first["severity"]), (&"fail_open".into(), &"error".into()));
    let path = "static_resources.listeners[ingress].filter_chains[0].filters[envoy.filters.network.http_connection_manager]\
                .typed_config.http_filters[envoy.filters.http.ext_authz].typed_config.failure_mode_allow";
    assert_eq!(first["path"], path);
    assert!(first["message"].is_string() && first["fix"].is_string() && first["table"].is_null(), "{first}");
}

#[test]
fn warnings_alone_succeed() {
    let run = run(&read("envoy/uds.yaml").replace("merge_slashes: true", "merge_slashes: false"), &[]);
    assert!(run.stderr.contains("0 errors, 1 warning"), "{run:?}");
    run.done();
}

#[test]
fn configuration_is_read_from_stdin() {
    let run = keystile(&["doctor", "--envoy", "-", "--output", "json"], NO_DATABASE, &read("envoy/tcp.yaml"));
    assert_eq!(run.json()["errors"], 0);
}

#[test]
fn source_that_cannot_be_examined_is_named_with_the_fix() {
    let folder = scratch("envoy-doctor-sources");
    let binary = folder.join("binary");
    std::fs::write(&binary, [0xff, 0x00, 0x01]).unwrap();
    for (source, words) in [
        ("/nonexistent/envoy.yaml", &["--envoy /nonexistent/envoy.yaml", "cannot be read"][..]),
        (folder.to_str().unwrap(), &["it is a folder"]),
        (binary.to_str().unwrap(), &["no text in UTF-8"]),
        ("http://127.0.0.1:1", &["--envoy http://127.0.0.1:1", "cannot connect to 127.0.0.1:1", "admin"]),
        ("https://user:hunter2@127.0.0.1:1", &["--envoy https://127.0.0.1:1", "plain HTTP"]),
        ("Cargo.toml", &["--envoy Cargo.toml"]),
    ] {
        let run = keystile(&["doctor", "--envoy", source], NO_DATABASE, "");
        assert_eq!(run.stdout, "");
        let said = run.failed(1);
        for word in words {
            assert!(said.contains(word), "{word} in {said}");
        }
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[test]
fn names_of_a_configuration_cannot_control_a_terminal() {
    let text = read("envoy/uds.yaml").replace("- name: health", r#"- name: "\e[2J\e]0;title\a\u202e""#);
    let run = run(&text, &[]);
    assert!(run.stdout.contains("route_unchecked"), "{run:?}");
    assert!(!run.done().contains(['\u{1b}', '\u{7}', '\u{202e}']));
}
