//! A new credential goes where it belongs: a file, a variable, a Secret of Kubernetes. Never half, and never unnoticed.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    keystile::{Run, command, keystile},
    place::Place,
};

async fn place() -> Place {
    let place = Place::sqlite().await;
    place.user().await;
    place
}

fn create(place: &Place, more: &[&str]) -> Run {
    keystile(&[&["keys", "create", "--user", "1"], more].concat(), &place.url(), "")
}

/// The id of the key that this credential proves.
fn identified(place: &Place, credential: &str) -> Value {
    keystile(&["keys", "show", "-", "--output", "json"], &place.url(), credential).json()["id"].clone()
}

async fn keys(place: &Place) -> String {
    place.value("SELECT CAST(count(*) AS text) FROM api_keys").await.expect("a count")
}

#[tokio::test]
async fn variable_has_the_name_that_was_asked_for() {
    let place = place().await;
    for (more, name) in [(&[][..], "API_KEY"), (&["--env-name", "ACME_TOKEN"], "ACME_TOKEN")] {
        let line = create(&place, &[&["--output", "env"], more].concat()).done();
        let (variable, credential) = line.trim_end().split_once('=').expect("an assignment");
        assert_eq!(variable, name);
        assert!(identified(&place, credential).is_number());
    }
}

#[tokio::test]
async fn secret_of_kubernetes_has_the_credential_under_its_names() {
    let place = place().await;
    let names = ["--secret-name", "chat-key", "--secret-namespace", "prod", "--secret-key", "token"];
    for (more, [name, key]) in [(&[][..], ["api-key", "api-key"]), (&names, ["chat-key", "token"])] {
        let manifest = create(&place, &[&["--output", "k8s-secret"], more].concat()).done();
        let manifest: Value = serde_saphyr::from_str(&manifest).expect("YAML");
        assert_eq!((&manifest["apiVersion"], &manifest["kind"]), (&"v1".into(), &"Secret".into()));
        let metadata = &manifest["metadata"];
        assert_eq!(metadata["name"], name);
        assert_eq!(metadata["namespace"].as_str(), if more.is_empty() { None } else { Some("prod") });
        let credential = manifest["stringData"][key].as_str().expect("the credential");
        assert_eq!(
            metadata["annotations"]["keystile.dev/key-id"],
            identified(&place, credential).to_string()
        );
    }
}

#[tokio::test]
async fn file_is_for_its_owner_alone_and_stdout_stays_empty() {
    let (place, folder) = (place().await, TempDir::new().expect("a folder"));
    for form in ["table", "json", "env", "k8s-secret"] {
        let file = folder.path().join(form);
        let run = create(&place, &["--output", form, "--output-file", file.to_str().expect("UTF-8")]);
        assert_eq!((run.status, &*run.stdout), (0, ""), "{run:?}");
        assert_eq!(fs::metadata(&file).expect("written").permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&file).expect("text");
        let at = text.find("ks_").expect("a key");
        // In JSON the prefix comes first.
        let at =
            if form == "json" { at + text[at + 8..].find("ks_").expect("the credential") + 8 } else { at };
        let credential = &text[at..at + keystile::credential::generate::LEN];
        assert!(identified(&place, credential).is_number(), "{form}");
        assert!(!run.stderr.contains(credential) && run.stderr.contains(form), "{}", run.stderr);
    }
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 4, "nothing else is left there");
}

#[tokio::test]
async fn file_that_cannot_be_written_costs_no_key() {
    let (place, folder) = (place().await, TempDir::new().expect("a folder"));
    let taken = folder.path().join("taken");
    fs::write(&taken, "something").expect("writes");
    for file in [taken.clone(), folder.path().join("no/such/folder"), folder.path().to_owned()] {
        let file = file.to_str().expect("UTF-8");
        let error = create(&place, &["--output-file", file]).failed(1);
        assert!(error.contains("--output-file") && error.contains(file), "{error}");
    }
    assert_eq!(fs::read_to_string(&taken).expect("text"), "something");
    assert_eq!(keys(&place).await, "0");
}

#[tokio::test]
async fn flag_without_effect_or_with_a_wrong_name_is_refused_before_a_key_is_made() {
    let place = place().await;
    for (flags, status, named) in [
        (&["--secret-name", "a"][..], 1, "--secret-name"),
        (&["--output", "env", "--secret-key", "a"], 1, "--secret-key"),
        (&["--output", "json", "--env-name", "A"], 1, "--env-name"),
        (&["--output", "env", "--env-name", "A-B"], 2, "--env-name"),
        (&["--output", "k8s-secret", "--secret-name", "A"], 2, "--secret-name"),
        (&["--output", "k8s-secret", "--secret-namespace", "a.b"], 2, "--secret-namespace"),
        (&["--output", "k8s-secret", "--secret-key", "a: b"], 2, "--secret-key"),
    ] {
        let error = create(&place, flags).failed(status);
        assert!(error.contains(named), "{error}");
    }
    assert_eq!(keys(&place).await, "0");
}

/// The key is there by then: the error says which one, so that it can be revoked.
#[tokio::test]
async fn credential_that_nothing_could_take_is_an_error_that_names_the_key() {
    let place = place().await;
    let full = File::options().write(true).open("/dev/full").expect("a device that is full");
    let arguments = ["keys", "create", "--user", "1", "--output", "env"];
    let output = command(&arguments, &place.url())
        .stdout(Stdio::from(full))
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let id = place.value("SELECT CAST(id AS text) FROM api_keys").await.expect("a key");
    assert!(error.contains(&format!("keystile keys revoke {id}")), "{error}");
}
