//! Encrypted connections to Postgres, by sslmode.

use std::path::Path;

use keystile::{metrics::Metrics, store::Database};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::harness::{
    failover::Server,
    place::options,
    postgres::{Schema, authority, hand_over, server},
    process::run,
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

/// A self-signed certificate as `openssl req -x509` makes it, for this common name and these further names, and its key.
fn self_signed(common: &str, names: &[&str], days: i64) -> (String, String) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    let key = KeyPair::generate().unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A server that shows this certificate.
async fn showing(folder: &TempDir, (certificate, key): &(String, String), more: &[&str]) -> Server {
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        run(&["chmod", "600", path.to_str().unwrap()]);
        path.display().to_string()
    };
    let certificate = format!("ssl_cert_file={}", file("server.pem", certificate));
    let key = format!("ssl_key_file={}", file("server.key", key));
    run(&["chmod", "755", folder.path().to_str().unwrap()]);
    hand_over(folder.path());
    Server::start(&[&["ssl=on", &certificate, &key], more].concat()).await
}

async fn asked(server: &Server, host: &str, parameters: &str) -> Result<(), String> {
    let url = format!("postgres://keystile@{host}:{}/postgres?{parameters}", server.address().port());
    let database = Database::connect(&options(&url, 5_000), &Metrics::new().unwrap());
    let database = database.map_err(|error| error.to_string())?;
    database.migrate(None).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn self_signed_certificate_that_is_pinned_is_taken_as_libpq_takes_it() {
    let (named, by_common_name) = (self_signed("any", &["localhost"], 30), self_signed("localhost", &[], 30));
    let (of_another, expired) = (
        self_signed("db.example.com", &["localhost.example.com"], 30),
        self_signed("localhost", &["localhost"], -1),
    );
    let stranger = self_signed("localhost", &["localhost"], 30);
    for (what, shown, pinned, ca, full) in [
        ("named", &named, &named, true, true),
        ("by its common name", &by_common_name, &by_common_name, true, true),
        ("of another host", &of_another, &of_another, true, false),
        ("expired", &expired, &expired, false, false),
        ("not the one that is pinned", &stranger, &named, false, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let server = showing(&folder, shown, &[]).await;
        let root = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(root.path(), &pinned.0).unwrap();
        for (mode, good) in [("verify-ca", ca), ("verify-full", full)] {
            let parameters = format!("sslmode={mode}&sslrootcert={}", root.path().display());
            let answer = asked(&server, "localhost", &parameters).await;
            assert_eq!(answer.is_ok(), good, "{what} {mode}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn client_shows_its_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (own, shown) = (self_signed("keystile", &[], 30), self_signed("localhost", &["localhost"], 30));
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (certificate, key) = (file("client.pem", &own.0), file("client.key", &own.1));
    // What the harness asks goes without TLS.
    let hba =
        "hostnossl all all 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n";
    let hba = format!("hba_file={}", file("hba", hba));
    let server = showing(&folder, &shown, &[&format!("ssl_ca_file={certificate}"), &hba]).await;
    asked(&server, "127.0.0.1", "sslmode=require").await.expect_err("without a certificate");
    let with = format!("sslmode=require&sslcert={certificate}&sslkey={key}");
    asked(&server, "127.0.0.1", &with).await.expect("with one");
    let swapped = format!("sslmode=require&sslcert={certificate}&sslkey={certificate}");
    let error = asked(&server, "127.0.0.1", &swapped).await.expect_err("no key");
    assert!(error.contains("sslkey"), "{error}");
}
