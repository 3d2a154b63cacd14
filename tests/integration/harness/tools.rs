//! Programs that check manifests, as `tools/fetch-kubernetes` has fetched them.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

const PYTHON_PACKAGES: &str = ".tools/kubernetes-checks-1.37.0";

/// What a program has to say, and whether it was content.
#[derive(Debug)]
pub struct Verdict {
    pub good: bool,
    pub text: String,
}

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn kubectl(arguments: &[&str]) -> Verdict {
    fetched("kubectl-1.37/kubectl", arguments, "")
}

pub fn helm(arguments: &[&str]) -> Verdict {
    fetched("kubectl-1.37/helm", arguments, "")
}

pub fn promtool(arguments: &[&str], stdin: &str) -> Verdict {
    fetched("prometheus/promtool", arguments, stdin)
}

fn fetched(program: &str, arguments: &[&str], stdin: &str) -> Verdict {
    let program = repository(".tools").join(program);
    assert!(program.exists(), "{} is missing: run tools/fetch-kubernetes", program.display());
    run(Command::new(program).args(arguments), stdin)
}

/// A Python module with its arguments and its input.
pub fn python(arguments: &[&str], stdin: &str) -> Verdict {
    let packages = repository(PYTHON_PACKAGES);
    assert!(packages.exists(), "{} is missing: run tools/fetch-kubernetes", packages.display());
    run(Command::new("python3").env("PYTHONPATH", packages).args(arguments), stdin)
}

fn run(command: &mut Command, stdin: &str) -> Verdict {
    let mut child = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("HOME", std::env::temp_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that does not read closes the pipe: no failure.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Verdict { good: output.status.success(), text: text(&output.stdout) + &text(&output.stderr) }
}

impl Verdict {
    /// What it said, when it was content.
    #[track_caller]
    pub fn good(self) -> String {
        assert!(self.good, "{}", self.text);
        self.text
    }
}

/// What `kubectl kustomize` makes of a folder of `k8s/`.
#[track_caller]
pub fn kustomize(overlay: &str) -> String {
    kubectl(&["kustomize", &format!("k8s/{overlay}")]).good()
}

/// The documents of a YAML text.
#[track_caller]
pub fn yaml(text: &str) -> Vec<Value> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    serde_json::from_str(&python(&["-c", script], text).good()).unwrap()
}
