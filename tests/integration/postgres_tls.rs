//! Encrypted connections to Postgres, by sslmode.

use std::path::Path;

use keystile::{metrics::Metrics, store::Database};

use crate::harness::{
    place::options,
    postgres::{Schema, authority, server},
};

/// What is said of a connection to this host under this mode and authority.
async fn verdict(host: &str, mode: &str, root: Option<&Path>) -> Result<(), String> {
    let schema = Schema::create().await;
    let root = root.map(|path| format!("&sslrootcert={}", path.display())).unwrap_or_default();
    let application = format!("tls-{}-{}", std::process::id(), mode);
    let url = schema.url_with(host, &format!("sslmode={mode}{root}&application_name={application}"));
    let metrics = Metrics::new().expect("builds");
    let database = Database::connect(&options(&url, 5_000), &metrics).map_err(|error| error.to_string())?;
    database.migrate(None).await.map_err(|error| error.to_string())?;
    let encrypted = format!(
        "SELECT bool_or(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = '{application}'"
    );
    let expected = if mode == "disable" { "f" } else { "t" };
    assert_eq!(schema.value(&encrypted).await.as_deref(), Some(expected), "{mode}");
    Ok(())
}

#[tokio::test]
async fn each_mode_asks_as_much_of_the_server_as_libpq_does() {
    let right = server().authority.clone();
    let wrong = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(wrong.path(), authority().pem()).expect("writes");
    let (right, wrong) = (Some(right.as_path()), Some(wrong.path()));
    for (host, mode, root, good) in [
        ("127.0.0.1", "disable", None, true),
        ("127.0.0.1", "prefer", None, true),
        ("127.0.0.1", "require", None, true),
        ("127.0.0.1", "require", right, true),
        ("127.0.0.1", "require", wrong, false),
        ("127.0.0.1", "verify-ca", right, true),
        ("localhost", "verify-ca", wrong, false),
        ("localhost", "verify-full", right, true),
        ("127.0.0.1", "verify-full", right, false),
        ("localhost", "verify-full", wrong, false),
        ("localhost", "verify-full", None, false),
    ] {
        let verdict = verdict(host, mode, root).await;
        assert_eq!(verdict.is_ok(), good, "{host} {mode} {root:?}: {verdict:?}");
    }
}
