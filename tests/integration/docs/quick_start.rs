//! The commands of the quick start do what the page shows.

use std::process::{Command, Stdio};

use super::read;
use crate::harness::process::free_port;

/// A command of the page, and the lines that it prints.
#[derive(Debug, Default)]
struct Step {
    command: String,
    expected: Vec<String>,
}

/// The steps in the blocks marked `console`.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_console = false;
    for line in page.lines() {
        match (is_console, line.strip_prefix("$ ")) {
            (false, _) => is_console = line == "```console",
            (true, _) if line == "```" => is_console = false,
            (true, Some(command)) => {
                steps.push(Step { command: command.to_owned(), expected: Vec::new() });
            }
            (true, None) => steps.last_mut().expect("a command").expected.push(line.to_owned()),
        }
    }
    steps
}

/// Whether a line is what the page shows: `…` is any text, and white space is any other white space.
fn is_like(line: &str, expected: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, expected) = (words(line), words(expected));
    let mut parts = expected.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    rest.is_empty() || last.is_some_and(|last| last.is_empty() || line.ends_with(last))
}

#[test]
fn lines_are_compared_with_what_differs_left_out() {
    for (line, expected, is_same) in [
        ("1\tks_abc\tx", "1 ks_… x", true),
        ("answer  deny  disabled: no", "answer deny disabled …", false),
        ("answer  deny disabled   The key", "answer deny disabled …", true),
        ("{\"a\":1,\"status\":\"ready\"}", "{…\"status\":\"ready\"…}", true),
        ("other", "answer", false),
        ("answer and more", "answer", false),
    ] {
        assert_eq!(is_like(line, expected), is_same, "{line} and {expected}");
    }
}

#[test]
fn commands_of_the_quick_start_print_what_the_page_shows() {
    let steps = steps(&read("docs/guides/quick-start.md"));
    assert!(steps.len() > 10, "{steps:?}");
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    std::fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_keystile"), programs.join("keystile")).unwrap();
    let admin = free_port().to_string();
    let mut script = "set -m\nexec 2>&1\ntrap 'kill $(jobs -p) 2> /dev/null' EXIT\n".to_owned();
    for (at, step) in steps.iter().enumerate() {
        script.push_str(&format!("echo '### {at}'\n{}\n", step.command.replace("9192", &admin)));
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["120", "bash", "-c", &script])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("KEYSTILE_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
        .env("KEYSTILE_DATABASE_TIMEOUT", "5s")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let printed: Vec<_> = text.split("### ").skip(1).collect();
    assert_eq!(printed.len(), steps.len(), "{text}");
    for (step, printed) in steps.iter().zip(printed) {
        let lines: Vec<_> = printed.lines().skip(1).filter(|line| !line.trim().is_empty()).collect();
        let is_same = lines.len() == step.expected.len()
            && lines.iter().zip(&step.expected).all(|(line, expected)| is_like(line, expected));
        assert!(
            is_same,
            "{} prints:\n{}\nand not:\n{}",
            step.command,
            lines.join("\n"),
            step.expected.join("\n")
        );
    }
}
