//! `keystile doctor --envoy` finds each planted fault in a configuration of Envoy, and none in those of this repository.

use std::{collections::BTreeSet, path::PathBuf};

use keystile::{
    envoy_config::{EnvoyVersion, Examination, examine, rules},
    findings::{Finding, Severity},
};

use crate::harness::tools::{read, repository};

mod broken;
mod command;
mod generated;
mod hostile;
mod live;

/// What is found in a text.
#[track_caller]
fn examined(text: &str) -> Examination {
    examined_as(text, None)
}

/// What is found in a text that comes from this version of Envoy.
#[track_caller]
fn examined_as(text: &str, version: Option<EnvoyVersion>) -> Examination {
    let examined = examine(text, version).unwrap_or_else(|error| panic!("{error}: {text}"));
    for Finding { code, severity, location, fix, .. } in &examined.findings {
        let rule = rules().find(|rule| rule.code == *code).expect("a rule");
        let may_be_note = *severity == Severity::Note && !rule.not_settable.is_empty();
        assert!(may_be_note || rule.severities.contains(severity), "{code} {severity}");
        assert!(location.path.as_ref().is_some_and(|path| !path.is_empty()) && !fix.is_empty(), "{code}");
    }
    examined
}

/// The findings that are more than a note, as `CODE at PATH`.
fn faults(examined: &Examination) -> Vec<String> {
    let faults = examined.findings.iter().filter(|finding| finding.severity != Severity::Note);
    faults.map(|finding| format!("{} at {}", finding.code, finding.location)).collect()
}

/// The codes of all findings.
fn codes(examined: &Examination) -> BTreeSet<&'static str> {
    examined.findings.iter().map(|finding| finding.code).collect()
}

/// The configurations that people copy, without the files of secrets that one of them names.
fn shipped() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(repository("envoy")).unwrap().map(|entry| entry.unwrap().path());
    let documents = entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    documents.filter(|path| std::fs::read_to_string(path).unwrap().contains("static_resources:")).collect()
}

#[test]
fn shipped_configurations_have_notes_only() {
    let paths = shipped();
    assert!(paths.len() >= 9, "{paths:?}");
    for path in paths {
        let examined = examined(&std::fs::read_to_string(&path).unwrap());
        assert_eq!(faults(&examined), [""; 0], "{}", path.display());
        assert!(
            codes(&examined).is_subset(&["route_unchecked", "route_shadow"].into()),
            "{:?}",
            codes(&examined)
        );
        assert_eq!((examined.http_chains, examined.checks), (1, 1), "{}", path.display());
    }
}

#[test]
fn routes_without_a_check_are_named() {
    let examined = examined(&read("envoy/python-service.yaml"));
    let [finding] = &examined.findings[..] else { panic!("{:?}", examined.findings) };
    assert_eq!(finding.code, "route_unchecked");
    assert!(finding.message.ends_with(": health, login"), "{}", finding.message);
    assert!(finding.location.to_string().ends_with(".virtual_hosts[api]"), "{}", finding.location);
}
