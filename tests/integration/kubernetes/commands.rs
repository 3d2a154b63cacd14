//! The commands in the guides for Kubernetes, run as far as they can be without a cluster.
//!
//! `keystile` runs as in the pods. `kubectl` and `helm` render where they can do it alone; of all other commands at least the
//! flags are parsed.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "kubectl can be had for x86_64 alone"))]

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{
    process::free_port,
    service::Setup,
    tools::{self, helm, kubectl, read, repository, yaml},
};

const PAGES: [&str; 3] =
    ["docs/guides/kubernetes.md", "docs/guides/istio.md", "docs/guides/envoy-gateway.md"];

/// The program in the image, before its arguments in `kubectl exec`.
const IN_THE_IMAGE: &str = "/usr/local/bin/keystile";

/// The commands of a page: those of its blocks, and those that are whole code spans of a table.
fn commands(page: &str) -> Vec<String> {
    let text = read(page);
    let mut commands = Vec::new();
    for block in text.split("\n```sh\n").skip(1) {
        let block = block.split("\n```").next().unwrap().replace("\\\n", " ");
        commands.extend(block.lines().map(str::trim).filter(|line| !line.is_empty()).map(ToOwned::to_owned));
    }
    let cells = text.lines().filter(|line| line.starts_with("| ")).flat_map(|row| row.split(" | "));
    let spans = cells.filter_map(|cell| cell.trim_end_matches(" |").strip_prefix('`')?.strip_suffix('`'));
    commands.extend(spans.filter(|span| span.starts_with("helm ")).map(ToOwned::to_owned));
    commands
}

/// The words of a command, without its comment and what it does in the background.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in command.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words.retain(|word| word != "&");
    words
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "no kubectl and helm")]
fn commands_of_the_guides_have_files_and_flags_that_exist() {
    let mut checked = BTreeSet::new();
    for page in PAGES {
        for command in commands(page) {
            let command = command
                .strip_prefix("GATEWAY=$(")
                .map_or(command.as_str(), |inner| inner.strip_suffix(')').expect("a command"));
            let (before, command) = command.split_once(" | ").unwrap_or(("", command));
            for file in words(before).iter().chain(&words(command)).filter(|word| word.starts_with("k8s/")) {
                assert!(repository(file).exists(), "{page}: {command}: {file}");
            }
            let words = words(command);
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            let what = format!("{page}: {command}");
            checked.insert(check(&words, &what));
        }
    }
    let kinds = ["files", "flags", "other", "rendered"];
    assert_eq!(checked.into_iter().collect::<Vec<_>>(), kinds, "each kind of check was used");
}

/// Checks a command as far as it can run here. Returns how far.
fn check(command: &[&str], what: &str) -> &'static str {
    let good = |verdict: tools::Verdict| assert!(verdict.good, "{what}: {}", verdict.text);
    let before_dashes = || command[1..].split(|word| *word == "--").next().unwrap();
    match command {
        ["kubectl", "apply", "-k", folder] => {
            good(kubectl(&["kustomize", folder]));
            "rendered"
        }
        ["kubectl", "create", ..] => {
            good(kubectl(&[&command[1..], &["--dry-run=client", "--output=yaml"]].concat()));
            "rendered"
        }
        // As of the cluster, of the file with the object.
        ["kubectl", "patch", "deployment", "shop", rest @ ..] => {
            let label = "        keystile.dev/inject: \"true\"\n";
            let object = read("k8s/examples/deployment.yaml").replace(label, "");
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), object.split("---\n").next().unwrap()).unwrap();
            let local = ["patch", "--local", "-f", file.path().to_str().unwrap(), "--output=yaml"];
            let patched = kubectl(&[&local[..], &rest[2..]].concat()).good();
            let labels = &yaml(&patched)[0]["spec"]["template"]["metadata"]["labels"];
            assert_eq!(*labels, json!({"app": "shop", "keystile.dev/inject": "true"}), "{what}");
            "rendered"
        }
        ["kubectl", "apply", rest @ ..] => {
            let files = rest.iter().filter(|word| word.ends_with(".yaml") || **word == "-");
            assert!(files.count() > 0, "{what}: no file");
            good(kubectl(&[&command[1..], &["--help"]].concat()));
            "files"
        }
        ["kubectl", ..] => {
            good(kubectl(&[before_dashes(), &["--help"]].concat()));
            "flags"
        }
        ["helm", "install", name, chart, rest @ ..] if repository(chart).exists() => {
            let rest = rest.iter().filter(|word| **word != "--create-namespace").copied();
            good(helm(&["template", name, chart].into_iter().chain(rest).collect::<Vec<_>>()));
            "rendered"
        }
        ["helm", ..] => {
            good(helm(&[&command[1..], &["--help"]].concat()));
            "flags"
        }
        ["curl" | "docker" | "read" | "k8s/self-signed/trust.sh", ..] => "other",
        _ => panic!("{what}: how is this checked?"),
    }
}

/// The container of an object in `admin.yaml`, with a database of the test.
fn container(kind: &str) -> Value {
    let objects = yaml(&read("k8s/examples/admin.yaml"));
    let object = objects.into_iter().find(|object| object["kind"] == kind).unwrap();
    let pod = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
    let container = pod["containers"][0].clone();
    assert_eq!(container["env"][0]["name"], "KEYSTILE_DATABASE_URL");
    container
}

fn arguments(container: &Value, ports: &[(&str, String)]) -> Vec<String> {
    let arguments = container["args"].as_array().unwrap().iter();
    let replaced = |argument: &Value| {
        let text = argument.as_str().unwrap().to_owned();
        ports.iter().fold(text, |text, (from, to)| text.replace(from, to))
    };
    arguments.map(replaced).collect()
}

#[test]
fn job_migrates_and_the_commands_of_the_guide_create_and_explain_a_key_in_the_pod() {
    let setup = Setup::new();
    let run = |arguments: &[String]| {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let output = setup.run(&arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        text
    };
    run(&arguments(&container("Job"), &[]));

    // The pod runs, and stays ready, while the commands run in it.
    let ports = [("9191", free_port().to_string()), ("9192", free_port().to_string())];
    let serve = arguments(&container("Pod"), &ports);
    let mut pod = setup.command(&serve.iter().map(String::as_str).collect::<Vec<_>>());
    let mut pod = crate::harness::service::Process(pod.spawn().unwrap());
    let mut outputs = Vec::new();
    for command in commands(PAGES[0]) {
        let words = words(&command);
        if let Some(at) = words.iter().position(|word| word == IN_THE_IMAGE) {
            // The number of the key in the guide is an example.
            let words = words[at + 1..].iter().map(|word| if word == "7" { "1" } else { word });
            outputs.push(run(&words.map(ToOwned::to_owned).collect::<Vec<_>>()));
        }
    }
    let [user, key, explained] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(user.contains("ada") && key.contains("ks_") && explained.contains("/v1/models"), "{outputs:?}");
    assert!(pod.0.try_wait().unwrap().is_none(), "the pod ended");
}
