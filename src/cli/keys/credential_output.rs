//! Writes the credential of a new key, once: for people, for programs, as a variable, or as a Secret of Kubernetes.
//!
//! The target is opened before the key is created, so that a file that cannot be written costs no key.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::{credential::Credential, store::DisplayRow};

/// Form and target of a new credential.
#[derive(Debug, Clone, Args)]
pub(super) struct CredentialOutput {
    /// Format of the output: the credential alone, everything as JSON, a line NAME=credential, or a Secret manifest of
    /// Kubernetes.
    #[arg(long, short, env = "KEYSTILE_OUTPUT", default_value = "table", value_name = "FORM")]
    output: CredentialForm,
    /// New file for the output, which only its owner can read. Without it, the output goes to stdout.
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
    /// Name of the variable, for `--output env` [default: API_KEY].
    #[arg(long, value_name = "NAME", value_parser = variable_name)]
    env_name: Option<String>,
    /// Name of the Secret, for `--output k8s-secret` [default: api-key].
    #[arg(long, value_name = "NAME", value_parser = subdomain)]
    secret_name: Option<String>,
    /// Namespace of the Secret. Without it, kubectl uses its current one.
    #[arg(long, value_name = "NAMESPACE", value_parser = label)]
    secret_namespace: Option<String>,
    /// Key of the credential within the Secret [default: api-key].
    #[arg(long, value_name = "KEY", value_parser = secret_key)]
    secret_key: Option<String>,
}

/// The forms of a new credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum CredentialForm {
    /// The credential alone.
    Table,
    /// The key and its credential.
    Json,
    /// A variable.
    Env,
    /// A manifest of a Secret.
    K8sSecret,
}

/// An open target for one credential.
pub(super) struct CredentialWriter<'a> {
    output: &'a CredentialOutput,
    file: Option<(&'a Path, NamedTempFile)>,
}

impl CredentialOutput {
    /// Opens the target. Call it before the key is created.
    ///
    /// # Errors
    /// When a flag has no effect, or the file exists or cannot be created.
    pub(super) fn open(&self) -> anyhow::Result<CredentialWriter<'_>> {
        let (env, secret) = (CredentialForm::Env, CredentialForm::K8sSecret);
        for (flag, is_set, form) in [
            ("--env-name", self.env_name.is_some(), env),
            ("--secret-name", self.secret_name.is_some(), secret),
            ("--secret-namespace", self.secret_namespace.is_some(), secret),
            ("--secret-key", self.secret_key.is_some(), secret),
        ] {
            if is_set && self.output != form {
                bail!("{flag} has no effect without --output {}", form.name());
            }
        }
        let file = match self.output_file.as_deref() {
            Some(path) => Some((path, new_file(path)?)),
            None => None,
        };
        Ok(CredentialWriter { output: self, file })
    }

    fn text(&self, key: &DisplayRow, credential: &Credential) -> anyhow::Result<Zeroizing<String>> {
        let secret = credential.expose();
        let mut text = Zeroizing::new(String::with_capacity(4096));
        match self.output {
            CredentialForm::Table => writeln!(text, "{secret}")?,
            CredentialForm::Json => {
                let json =
                    Zeroizing::new(serde_json::to_string_pretty(&key.clone().with("credential", secret))?);
                writeln!(text, "{}", *json)?;
            }
            CredentialForm::Env => {
                let name = self.env_name.as_deref().unwrap_or("API_KEY");
                writeln!(text, "{name}={secret}")?;
            }
            CredentialForm::K8sSecret => self.write_manifest(&mut text, key, secret)?,
        }
        Ok(text)
    }

    /// Every value is a text in double quotes, so that no name is read as a number or a boolean.
    fn write_manifest(&self, text: &mut String, key: &DisplayRow, secret: &str) -> std::fmt::Result {
        let name = self.secret_name.as_deref().unwrap_or("api-key");
        writeln!(text, "apiVersion: v1\nkind: Secret\nmetadata:\n  name: \"{name}\"")?;
        if let Some(namespace) = &self.secret_namespace {
            writeln!(text, "  namespace: \"{namespace}\"")?;
        }
        writeln!(text, "  annotations:\n    keystile.dev/key-id: \"{}\"", key.text("id"))?;
        let secret_key = self.secret_key.as_deref().unwrap_or("api-key");
        writeln!(text, "type: Opaque\nstringData:\n  \"{secret_key}\": \"{secret}\"")
    }
}

impl CredentialWriter<'_> {
    /// Writes the credential of this key. `done` says what happened to the key, such as "created key 7 of
    /// ada@example.com". It goes to stderr.
    ///
    /// # Errors
    /// When it cannot be written. The key exists then, and the error says so: the credential is lost.
    pub(super) fn write(self, key: &DisplayRow, credential: &Credential, done: &str) -> anyhow::Result<()> {
        let Self { output, file } = self;
        let written = output.text(key, credential).and_then(|text| match file {
            Some((path, file)) => save(&text, file, path),
            None => print(&text),
        });
        let id = key.text("id");
        written.with_context(|| {
            format!(
                "{done}, but its credential could not be written and is lost; run `keystile keys revoke {id}`"
            )
        })?;
        match (&output.output_file, output.output) {
            (Some(path), _) => {
                eprintln!("{done}; its credential is in {}, and shown nowhere else", path.display())
            }
            (None, CredentialForm::Json) => {}
            (None, _) => eprintln!("{done}; this is the only time that its credential is shown"),
        }
        Ok(())
    }
}

impl CredentialForm {
    fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Env => "env",
            Self::K8sSecret => "k8s-secret",
        }
    }
}

/// A file next to the target, with mode 0600. It gets the target's name once it is complete.
fn new_file(path: &Path) -> anyhow::Result<NamedTempFile> {
    let shown = path.display();
    if path.symlink_metadata().is_ok() {
        bail!("--output-file {shown}: the file exists; name a new one, or remove it");
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = NamedTempFile::new_in(folder.unwrap_or(Path::new(".")));
    file.with_context(|| format!("--output-file {shown}: the folder must exist and be writable"))
}

fn save(text: &str, mut file: NamedTempFile, path: &Path) -> anyhow::Result<()> {
    let shown = || format!("--output-file {}", path.display());
    file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).with_context(shown)?;
    file.persist_noclobber(path).map_err(|error| error.error).with_context(shown)?;
    Ok(())
}

/// Prints to stdout. A reader that is gone is an error here: nothing else has the credential.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("writing to stdout")
}

fn variable_name(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !text.bytes().all(allowed) || text.bytes().next().is_none_or(|byte| byte.is_ascii_digit()) {
        return Err("is no name of a variable: letters, digits and '_', and no digit first");
    }
    Ok(text.to_owned())
}

/// A name as Kubernetes requires it of Secrets.
fn subdomain(text: &str) -> Result<String, &'static str> {
    if text.len() > 253 || !text.split('.').all(is_label) {
        return Err("is no name of a Secret: at most 253 of a-z, 0-9, '-' and '.', such as api-key");
    }
    Ok(text.to_owned())
}

/// A name as Kubernetes requires it of namespaces.
fn label(text: &str) -> Result<String, &'static str> {
    if text.len() > 63 || !is_label(text) {
        return Err("is no name of a namespace: at most 63 of a-z, 0-9 and '-'");
    }
    Ok(text.to_owned())
}

fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

fn secret_key(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || text.len() > 253 || !text.bytes().all(allowed) || matches!(text, "." | "..") {
        return Err("is no key of a Secret: at most 253 letters, digits, '-', '_' and '.'");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_kubernetes_and_shells_accept() {
        assert!(["API_KEY", "_a", "k8s"].iter().all(|name| variable_name(name).is_ok()));
        assert!(["", "1A", "A-B", "A=B", "A B", "A\nB"].iter().all(|name| variable_name(name).is_err()));
        assert!(["api-key", "a.b", "7"].iter().all(|name| subdomain(name).is_ok()));
        assert!(["", "A", "-a", "a-", "a..b", "a\"b", "a\n"].iter().all(|name| subdomain(name).is_err()));
        assert!(label("a.b").is_err() && label(&"a".repeat(64)).is_err() && label("prod").is_ok());
        assert!(secret_key("API_KEY.txt").is_ok());
        assert!(["", ".", "..", "a b", "a\"", "a/b"].iter().all(|name| secret_key(name).is_err()));
    }
}
