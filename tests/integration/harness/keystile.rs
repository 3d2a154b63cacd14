//! The built binary, run as a person or a script runs it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// What a run left behind.
#[derive(Debug)]
pub struct Run {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// `keystile ARGUMENTS` with this database, cheap hashes, and nothing else in its environment.
pub fn command(arguments: &[&str], database_url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystile"));
    command
        .args(arguments)
        .env_clear()
        .env("KEYSTILE_DATABASE_URL", database_url)
        .env("KEYSTILE_BCRYPT_COST", "4");
    command
}

/// Runs it to its end.
pub fn keystile(arguments: &[&str], database_url: &str, stdin: &str) -> Run {
    let mut child = command(arguments, database_url)
        .env("KEYSTILE_DATABASE_TIMEOUT", "5s")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    // A command that does not read closes the pipe: no failure.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("ends");
    let run = Run {
        status: output.status.code().expect("no signal"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    };
    let has_hash = |text: &str| text.contains("$2b$04$");
    assert!(!has_hash(&run.stdout) && !has_hash(&run.stderr), "a hash is shown: {run:?}");
    run
}

impl Run {
    /// The answer of a run that did what it was told.
    pub fn done(self) -> String {
        assert_eq!(self.status, 0, "{}", self.stderr);
        self.stdout
    }

    /// The same, read as JSON.
    pub fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.done()).expect("JSON")
    }

    /// What a run said that failed with this status.
    pub fn failed(self, status: i32) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.stderr.contains("error:"), "{}", self.stderr);
        self.stderr
    }
}
