//! Programs that know the API by its OpenAPI document alone: schemathesis, and a generated client.

use std::{path::PathBuf, process::Command};

use super::*;
use crate::harness::process::scratch;

/// The packages of tools/fetch-api-checks.
fn packages() -> PathBuf {
    let packages = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".tools/api-checks");
    assert!(packages.exists(), "{} is missing: run tools/fetch-api-checks", packages.display());
    packages
}

/// Runs a Python module to its end, in a scratch folder. Returns its output, if it succeeds.
fn python(folder: &std::path::Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("python3")
        .env("PYTHONPATH", packages())
        .env("HOME", folder)
        .env("NO_COLOR", "1")
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_nothing() {
    let (setup, token) = setup();
    setup.create_key("ada", &[]);
    let off = [("KEYSTILE_MANAGEMENT_RATE_LIMIT", "off"), ("KEYSTILE_MANAGEMENT_FAILED_ATTEMPTS", "off")];
    let api = Management::start(&setup, &off).await;
    let folder = scratch("schemathesis");
    let (document, header) =
        (format!("http://{}/openapi.json", api.listen), format!("Authorization: Bearer {token}"));
    let arguments = [
        "-m",
        "schemathesis.cli",
        "run",
        &document,
        "--header",
        &header,
        "--max-examples",
        "20",
        // Which values are good depends on the database: the users that there are, what other rows have.
        "--exclude-checks",
        "positive_data_acceptance",
    ];
    let arguments = arguments.map(str::to_owned);
    let ran = tokio::task::spawn_blocking(move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let ran = python(&folder, &arguments);
        std::fs::remove_dir_all(&folder).unwrap();
        ran
    });
    let report = ran.await.unwrap().unwrap_or_else(|report| panic!("{report}"));
    assert!(report.contains("12 selected / 12 total"), "{report}");
    let log = api.log();
    assert!(!log.contains("panicked") && !log.contains(&token), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_client_creates_rotates_and_revokes_a_key() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let folder = scratch("generated-client");
    let url = format!("http://{}", api.listen);
    let ran = tokio::task::spawn_blocking(move || {
        let project = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let document = project.join("docs/reference/openapi.json");
        let document = document.to_str().unwrap();
        let generate =
            ["-m", "openapi_python_client", "generate", "--path", document, "--output-path", "client"];
        let generated = python(&folder, &generate);
        let program = project.join("tests/integration/management_api/generated_client.py");
        let arguments = [program.to_str().unwrap(), "client", &url, &token];
        let ran = generated.and_then(|_| python(&folder, &arguments));
        std::fs::remove_dir_all(&folder).unwrap();
        ran
    });
    let report = ran.await.unwrap().unwrap_or_else(|report| panic!("{report}"));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["created"][0], "generated");
    let (first, second) = (report["created"][2].as_str().unwrap(), report["successor"].as_str().unwrap());
    assert!(first.starts_with("ks_") && second.starts_with("ks_") && first != second, "{report}");
    assert_eq!(
        (&report["listed"], &report["revoked"], &report["also_revoked"], &report["successor_is_active"]),
        (&json!(2), &json!(false), &json!(true), &json!(false)),
        "{report}"
    );
    assert_eq!(report["refused"], json!([404, "not_found"]));
}
