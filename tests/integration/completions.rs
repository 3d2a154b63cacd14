//! Completions and manual pages, from the definitions of the command line.

use std::{collections::BTreeSet, fs, io::Write, process::Stdio};

use clap::{Command, CommandFactory};
use keystile::cli::Cli;
use tempfile::TempDir;

use crate::harness::keystile::{Run, keystile};

/// A password in the environment, which no generated text may have.
const URL: &str = "postgres://keystile:pass-word-of-a-test@127.0.0.1/db";

fn run(arguments: &[&str]) -> Run {
    let run = keystile(arguments, URL, "");
    assert!(!run.stdout.contains("pass-word"), "the environment is shown");
    run
}

#[test]
fn completions_of_each_shell_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).done();
        for word in ["serve", "doctor", "completions", "revoke", "output-file", "rate-limit-per-minute"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let error = run(&["completions", "tcsh"]).failed(2);
    assert!(error.contains("bash") && error.contains("fish"), "{error}");
}

#[test]
fn bash_completes_a_flag() {
    let script = run(&["completions", "bash"]).done();
    let ask = "\nCOMP_WORDS=(keystile keys create --output-f); COMP_CWORD=3
        _keystile keystile --output-f create; printf '%s\\n' \"${COMPREPLY[@]}\"\n";
    let mut bash = std::process::Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash");
    bash.stdin.take().expect("piped").write_all(format!("{script}{ask}").as_bytes()).expect("reads");
    let output = bash.wait_with_output().expect("ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "--output-file\n");
}

#[test]
fn every_command_has_a_manual_page_with_its_flags() {
    let folder = TempDir::new().expect("a folder");
    let pages = folder.path().join("man/man1");
    run(&["man", pages.to_str().expect("UTF-8")]).done();
    let mut names = BTreeSet::new();
    collect(&Cli::command(), "keystile", &mut names);
    let written: BTreeSet<_> = fs::read_dir(&pages)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .collect();
    assert_eq!(written, names);
    for page in &written {
        let text = fs::read_to_string(pages.join(page)).expect("text");
        assert!(text.contains(".TH") && !text.contains("pass-word"), "{page}");
    }
    let create = fs::read_to_string(pages.join("keystile-keys-create.1")).expect("text").replace('\\', "");
    assert!(create.contains("--output-file") && create.contains("KEYSTILE_DATABASE_URL"), "{create}");
}

fn collect(command: &Command, name: &str, names: &mut BTreeSet<String>) {
    names.insert(format!("{name}.1"));
    for inner in command.get_subcommands() {
        collect(inner, &format!("{name}-{}", inner.get_name()), names);
    }
}

#[test]
fn folder_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("UTF-8");
    assert!(run(&["man", path]).failed(1).contains(path));
}
