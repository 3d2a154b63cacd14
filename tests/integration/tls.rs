//! TLS of the listeners: who gets in, what happens when files change, and what peers without a certificate can hold.

mod floods;
mod handshakes;
mod probe;
mod protocol;
mod reload;
mod revocation;

use std::{
    fs,
    io::{self, ErrorKind},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use serde_json::Value;
use time::Duration as Validity;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{
    authority::{Authority, Issued, write},
    envoy::{Gateway, VERSIONS},
    service::{Key, Keystile, Setup},
    tls::Client,
    until,
};

const SOON: Duration = Duration::from_secs(20);
const NAME: &str = "keystile.internal";
const ENVOY: &str = "envoy.internal";
const SPIFFE: &str = "spiffe://cluster.local/ns/gateways/sa/envoy";
const VERSIONS_OF_TLS: [&[&rustls::SupportedProtocolVersion]; 2] = [&[&TLS12], &[&TLS13]];

/// The files of one listener, and the CAs behind them.
struct Files {
    folder: tempfile::TempDir,
    /// The CA of Keystile's certificate.
    servers: Authority,
    /// The CA of the clients' certificates.
    clients: Authority,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
            servers: Authority::new(),
            clients: Authority::new(),
        };
        files.servers.issue(&[NAME]).write(files.folder.path());
        write(&files.path("clients.crt"), &files.clients.pem());
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The settings of one listener, with these names of clients.
    fn settings(&self, variable: &str, names: Option<&str>) -> Vec<(String, String)> {
        let file = |suffix: &str, name: &str| {
            (format!("{variable}_{suffix}_FILE"), self.path(name).to_str().unwrap().to_owned())
        };
        let mut settings =
            vec![file("CERT", "tls.crt"), file("KEY", "tls.key"), file("CLIENT_CA", "clients.crt")];
        settings.extend(names.map(|names| (format!("{variable}_CLIENT_NAMES"), names.to_owned())));
        if self.path("revoked.crl").exists() {
            settings.push(file("CLIENT_CRL", "revoked.crl"));
        }
        settings
    }

    fn client(&self, own: Option<&Issued>) -> ClientConfig {
        self.servers.client(own, VERSIONS_OF_TLS[1])
    }
}

fn borrowed(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// A Keystile with TLS on its gRPC listener, for clients with these names.
async fn keystile(files: &Files, names: Option<&str>) -> (Keystile, Key) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    (setup.start(&borrowed(&files.settings("KEYSTILE_TLS", names))).await, key)
}

/// Completes a handshake as far as the client can tell.
async fn connect(address: SocketAddr, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), tcp).await
}

/// Begins HTTP/2, and reads the settings that Keystile answers with. In TLS 1.3 only this shows whether the client was
/// let in.
async fn begin(address: SocketAddr, config: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let mut stream = connect(address, config).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    let mut frame = [0; 9];
    timeout(SOON, stream.read_exact(&mut frame)).await??;
    assert_eq!(frame[3], 4, "a SETTINGS frame");
    Ok(stream)
}

/// Waits until the peer ends the connection.
async fn ends(stream: &mut TlsStream<TcpStream>) {
    let read = async {
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    };
    timeout(SOON, read).await.expect("the connection ends");
}

/// An Envoy with this certificate, before a Keystile.
async fn gateway(version: &str, files: &Files, envoy: &Path, keystile: Keystile) -> Gateway {
    for name in ["mtls-certificate.yaml", "mtls-ca.yaml"] {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy").join(name)).unwrap();
        write(&envoy.join(name), &text.replace("/etc/envoy/keystile", envoy.to_str().unwrap()));
    }
    write(&envoy.join("ca.crt"), &files.servers.pem());
    let folder = format!("{}/", envoy.display());
    let edits = [
        ("/etc/envoy/keystile/", folder.as_str()),
        ("keystile.internal, port_value", "127.0.0.1, port_value"),
    ];
    Gateway::before(version, "mtls.yaml", keystile, &edits).await
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_with_a_client_certificate_is_answered() {
    for version in VERSIONS {
        let (files, envoy) = (Files::new(), tempfile::tempdir().unwrap());
        files.clients.issue(&[ENVOY]).write(envoy.path());
        let (keystile, key) = keystile(&files, Some(ENVOY)).await;
        let gateway = gateway(version, &files, envoy.path(), keystile).await;
        assert_eq!(gateway.status(&key.credential).await, 200);
        assert_eq!(gateway.status("ks_nobodysKey").await, 401);
    }
}

#[tokio::test]
async fn clients_without_an_allowed_certificate_are_refused_and_the_log_says_why() {
    let files = Files::new();
    let mut settings = files.settings("KEYSTILE_TLS", Some(&format!("Envoy.Internal,{SPIFFE}")));
    // The log warns once in 5 s, and has the others at this level.
    settings.push(("KEYSTILE_LOG".to_owned(), "info,keystile::tls=debug".to_owned()));
    let keystile = Setup::new().start(&borrowed(&settings)).await;
    let address = keystile.setup.tcp;
    let others = Authority::new();
    let (day, clients) = (Validity::days(1), &files.clients);
    let server_only = [ExtendedKeyUsagePurpose::ServerAuth];
    let client = [ExtendedKeyUsagePurpose::ClientAuth];
    let table = [
        ("its DNS name", Some(clients.issue(&[ENVOY])), None),
        ("upper case", Some(clients.issue(&["ENVOY.internal"])), None),
        ("its SPIFFE id", Some(clients.issue(&["other", SPIFFE])), None),
        ("purpose: client", Some(clients.issue_with(&[ENVOY], day, &client)), None),
        ("no certificate", None, Some("peer sent no certificates")),
        ("another CA", Some(others.issue(&[ENVOY])), Some("UnknownIssuer")),
        ("the CA of servers", Some(files.servers.issue(&[ENVOY])), Some("UnknownIssuer")),
        ("expired", Some(clients.issue_for(&[ENVOY], Validity::minutes(-1))), Some("expired")),
        (
            "purpose: server",
            Some(clients.issue_with(&[ENVOY], day, &server_only)),
            Some("extended key usage"),
        ),
        ("another name", Some(clients.issue(&["portal.internal"])), Some("portal.internal")),
        ("a name below", Some(clients.issue(&["x.envoy.internal"])), Some("x.envoy.internal")),
        ("a wildcard", Some(clients.issue(&["*.internal"])), Some("*.internal")),
        ("a longer id", Some(clients.issue(&[&format!("{SPIFFE}/x")])), Some("/x")),
        ("an id as DNS name", Some(clients.issue(&["envoy.internal.example"])), Some("internal.example")),
        ("no name", Some(clients.issue(&[])), Some("no DNS name and no URI")),
    ];
    let mut refused = 0;
    for (what, own, why) in table {
        let before = keystile.setup.log();
        for versions in VERSIONS_OF_TLS {
            let begun = begin(address, files.servers.client(own.as_ref(), versions)).await;
            if why.is_none() {
                begun.unwrap_or_else(|error| panic!("{what}, {versions:?}: {error}"));
            } else {
                assert!(begun.is_err(), "{what}, {versions:?}");
                refused += 1;
            }
        }
        let Some(why) = why else { continue };
        let new = || keystile.setup.log()[before.len()..].to_owned();
        until(what, SOON, async || new().contains("handshake failed")).await;
        assert!(new().contains(why), "{what}: {}", new());
    }
    let metrics = keystile.setup.metrics().await;
    let line = format!("keystile_tls_handshakes_total{{listener=\"grpc\",result=\"failed\"}} {refused}");
    assert!(metrics.contains(&line), "{line} in:\n{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_without_a_failed_request() {
    let (files, envoy) = (Files::new(), tempfile::tempdir().unwrap());
    files.clients.issue(&[ENVOY]).write(envoy.path());
    let (keystile, key) = keystile(&files, Some(ENVOY)).await;
    let gateway = Arc::new(gateway(VERSIONS[1], &files, envoy.path(), keystile).await);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let callers = (0..4).map(|_| {
        let (gateway, key) = (Arc::clone(&gateway), key.credential.clone());
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(gateway.status(&key).await, 200);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    let not_after = async || gateway.keystile.setup.readyz().await.1["tls"]["grpc"]["not_after"].clone();
    let before = not_after().await;
    files.servers.issue_for(&[NAME], Validity::days(9)).write(files.folder.path());
    until("Keystile's certificate is renewed", SOON, async || not_after().await != before).await;

    // A new CA for clients: first both are trusted, then the Envoy gets a certificate of the new one, then it alone.
    let new = Authority::new();
    let reloads = || gateway.keystile.setup.log().matches("TLS files reloaded").count();
    let both = format!("{}{}", files.clients.pem(), new.pem());
    write(&files.path("clients.crt"), &both);
    until("both CAs are trusted", SOON, async || reloads() == 2).await;
    new.issue(&[ENVOY]).write(envoy.path());
    tokio::time::sleep(Duration::from_secs(2)).await;
    write(&files.path("clients.crt"), &new.pem());
    until("the old CA is gone", SOON, async || reloads() == 3).await;
    until("connections of the old CA end", SOON, async || {
        gateway.keystile.setup.log().contains("no longer valid")
    })
    .await;
    let so_far = answered.load(Ordering::Relaxed);
    until("calls go on", SOON, async || answered.load(Ordering::Relaxed) > so_far + 20).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_certificate_ends_its_connection_and_others_go_on() {
    let (files, envoy) = (Files::new(), tempfile::tempdir().unwrap());
    let (lost, good) = (files.clients.issue(&[ENVOY]), files.clients.issue(&[ENVOY]));
    write(&files.path("revoked.crl"), &files.clients.revoke(&[], Validity::days(1)));
    good.write(envoy.path());
    let (keystile, key) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let gateway = gateway(VERSIONS[1], &files, envoy.path(), keystile).await;
    let mut of_lost = begin(address, files.client(Some(&lost))).await.unwrap();
    let mut of_good = begin(address, files.client(Some(&good))).await.unwrap();
    assert_eq!(gateway.status(&key.credential).await, 200);

    write(&files.path("revoked.crl"), &files.clients.revoke(&[&lost], Validity::days(1)));
    ends(&mut of_lost).await;
    assert!(begin(address, files.client(Some(&lost))).await.is_err());
    assert_eq!(gateway.status(&key.credential).await, 200);
    let quiet = timeout(Duration::from_secs(3), async {
        let mut buffer = [0; 64];
        while of_good.read(&mut buffer).await.unwrap() > 0 {}
    });
    assert!(quiet.await.is_err(), "the connection of the other certificate stays open");

    write(&files.path("revoked.crl"), &files.clients.revoke(&[&lost, &good], Validity::days(1)));
    until("Envoy is refused", SOON, async || gateway.status(&key.credential).await == 503).await;
}

#[tokio::test]
async fn certificate_that_expires_ends_its_connection() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, None).await;
    let short = files.clients.issue_for(&["any.internal"], Validity::seconds(6));
    let mut open = begin(keystile.setup.tcp, files.client(Some(&short))).await.unwrap();
    ends(&mut open).await;
    assert!(begin(keystile.setup.tcp, files.client(Some(&short))).await.is_err());
}

#[tokio::test]
async fn revocation_list_past_its_update_lets_nobody_in() {
    let files = Files::new();
    let good = files.clients.issue(&[ENVOY]);
    write(&files.path("revoked.crl"), &files.clients.revoke(&[], Validity::seconds(6)));
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let mut open = begin(keystile.setup.tcp, files.client(Some(&good))).await.unwrap();
    ends(&mut open).await;
    assert!(begin(keystile.setup.tcp, files.client(Some(&good))).await.is_err());
    write(&files.path("revoked.crl"), &files.clients.revoke(&[], Validity::days(1)));
    until("the new list lets it in", SOON, async || {
        begin(keystile.setup.tcp, files.client(Some(&good))).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn bad_new_files_are_named_and_the_old_ones_stay() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let good = files.clients.issue(&[ENVOY]);
    let problem = async || keystile.setup.readyz().await.1["tls"]["grpc"]["problem"].clone();
    let expired = files.servers.issue_for(&[NAME], Validity::minutes(-1));
    for (file, text, named) in [
        ("tls.key", files.servers.issue(&[NAME]).key, "--tls-key-file"),
        ("tls.crt", "no certificate".to_owned(), "--tls-cert-file"),
        ("clients.crt", String::new(), "--tls-client-ca-file"),
    ] {
        let path = files.path(file);
        let before = fs::read_to_string(&path).unwrap();
        write(&path, &text);
        until(named, SOON, async || problem().await.as_str().is_some_and(|text| text.contains(named))).await;
        begin(keystile.setup.tcp, files.client(Some(&good))).await.unwrap();
        write(&path, &before);
        until("the problem is gone", SOON, async || problem().await == Value::Null).await;
    }
    fs::remove_file(files.path("tls.crt")).unwrap();
    until("a missing file", SOON, async || problem().await.as_str().is_some_and(|it| it.contains("tls.crt")))
        .await;
    expired.write(files.folder.path());
    until("expired", SOON, async || problem().await.as_str().is_some_and(|it| it.contains("expired"))).await;
    begin(keystile.setup.tcp, files.client(Some(&good))).await.unwrap();
    let metrics = keystile.setup.metrics().await;
    assert!(!metrics.contains("keystile_tls_reload_errors_total{listener=\"grpc\"} 0\n"), "{metrics}");
    assert!(metrics.contains("keystile_tls_certificate_not_after_seconds{listener=\"grpc\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_do_not_end_hold_up_no_client() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let good = files.clients.issue(&[ENVOY]);
    let mut open = Vec::new();
    for at in 0..600 {
        let mut stream = TcpStream::connect(keystile.setup.tcp).await.unwrap();
        // The beginning of a record of 16 KiB.
        if at % 2 == 0 {
            stream.write_all(b"\x16\x03\x01\x40\x00\x01\x00").await.unwrap();
        }
        open.push(stream);
    }
    begin(keystile.setup.tcp, files.client(Some(&good))).await.unwrap();
    let unfinished = async || {
        let metrics = keystile.setup.metrics().await;
        let line = metrics.lines().find(|line| line.contains("{listener=\"grpc_handshakes\"}")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(unfinished().await <= 300.0);
    until("all end at their deadline", SOON, async || unfinished().await == 0.0).await;
    let ended = open.pop().unwrap();
    ended.readable().await.unwrap();
    assert!(matches!(ended.try_read(&mut [0; 8]), Ok(0)) || ended.try_read(&mut [0; 8]).is_err());
}

#[tokio::test]
async fn peer_that_speaks_no_tls_gets_nothing() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, None).await;
    let mut stream = TcpStream::connect(keystile.setup.tcp).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer).await {
        Ok(_) => assert!(answer.len() <= 7, "an alert at most: {answer:?}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    // The socket in the file system stays without TLS.
    let socket = tokio::net::UnixStream::connect(keystile.setup.socket()).await.unwrap();
    assert!(socket.peer_addr().is_ok());
}

#[tokio::test]
async fn admin_listener_has_certificates_of_its_own() {
    let (grpc, admin) = (Files::new(), Files::new());
    let setup = Setup::new();
    let settings =
        [grpc.settings("KEYSTILE_TLS", None), admin.settings("KEYSTILE_ADMIN_TLS", Some("ops.internal"))];
    let settings = settings.concat();
    let keystile = setup.start_unready(&borrowed(&settings));
    let ask = async |own: Option<Issued>| {
        let client = Client::new(admin.client(own.as_ref()), NAME);
        let (status, body) =
            client.send(keystile.setup.admin, "GET /readyz", "text/plain", b"").await.ok()?;
        Some((status, serde_json::from_str::<Value>(&body).unwrap()))
    };
    let operator = || Some(admin.clients.issue(&["ops.internal"]));
    until("ready", SOON, async || ask(operator()).await.is_some_and(|answer| answer.0 == 200)).await;
    let readiness = ask(operator()).await.unwrap().1;
    assert!(
        readiness["tls"]["admin"]["not_after"].is_string()
            && readiness["tls"]["grpc"]["not_after"].is_string()
    );
    for own in [None, Some(grpc.clients.issue(&["ops.internal"])), Some(admin.clients.issue(&[ENVOY]))] {
        assert!(ask(own).await.is_none());
    }
    // In plain text there is no answer either.
    assert_eq!(keystile.setup.readyz().await.0, 0);
}

#[test]
fn half_of_the_settings_is_an_error_that_names_the_missing_flag() {
    let files = Files::new();
    let file = |name: &str| files.path(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("tls.crt"), file("tls.key"), file("clients.crt"));
    for prefix in ["KEYSTILE_TLS", "KEYSTILE_ADMIN_TLS"] {
        let flag = if prefix == "KEYSTILE_TLS" { "--tls" } else { "--admin-tls" };
        for (given, missing) in [
            (vec![("CERT_FILE", cert.as_str())], "key-file"),
            (vec![("KEY_FILE", &key)], "cert-file"),
            (vec![("CLIENT_CA_FILE", &ca)], "cert-file"),
            (vec![("CERT_FILE", &cert), ("KEY_FILE", &key), ("CLIENT_NAMES", ENVOY)], "client-ca-file"),
            (vec![("CERT_FILE", &cert), ("KEY_FILE", &key), ("CLIENT_CRL_FILE", &ca)], "client-ca-file"),
            // Empty is not unset: mutual TLS would be off.
            (vec![("CERT_FILE", &cert), ("KEY_FILE", &key), ("CLIENT_CA_FILE", "")], "client-ca-file"),
            (
                vec![("CERT_FILE", &cert), ("KEY_FILE", &key), ("CLIENT_CA_FILE", &ca), ("CLIENT_NAMES", "")],
                "client-names",
            ),
            (vec![("CERT_FILE", "")], "cert-file"),
        ] {
            let setup = Setup::new();
            let names: Vec<_> = given.iter().map(|(name, _)| format!("{prefix}_{name}")).collect();
            let settings: Vec<_> =
                names.iter().zip(&given).map(|(name, (_, value))| (name.as_str(), *value)).collect();
            let output = setup.serve(&settings).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{settings:?}: {text}");
            assert!(text.contains(&format!("{flag}-{missing}")), "{settings:?}: {text}");
        }
    }
}

/// Mutual TLS would be off.
#[test]
fn misspelled_variable_of_tls_stops_the_start() {
    let files = Files::new();
    let mut settings = files.settings("KEYSTILE_TLS", None);
    settings.retain(|(name, _)| !name.contains("CLIENT"));
    for name in ["KEYSTILE_TLS_CA_FILE", "KEYSTILE_TLS_CLIENT_CA", "KEYSTILE_ADMIN_TLS_CLIENT_CAFILE"] {
        let with = [settings.clone(), vec![(name.to_owned(), "/ca.crt".to_owned())]].concat();
        let output = Setup::new().serve(&borrowed(&with)).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}: {text}");
        assert!(text.contains(name), "{name}: {text}");
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_stop_the_start() {
    let files = Files::new();
    let settings = files.settings("KEYSTILE_TLS", None);
    for (file, text, named) in [
        ("tls.key", files.servers.issue(&[NAME]).key, "--tls-key-file"),
        ("tls.crt", String::new(), "--tls-cert-file"),
        (
            "clients.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            "client-ca-file",
        ),
    ] {
        let before = fs::read_to_string(files.path(file)).unwrap();
        write(&files.path(file), &text);
        let output = Setup::new().serve(&borrowed(&settings)).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{named}: {text}");
        assert!(text.contains(named) && text.contains(file), "{named}: {text}");
        write(&files.path(file), &before);
    }
    fs::set_permissions(files.path("tls.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let keystile = Setup::new().start(&borrowed(&settings)).await;
    assert!(keystile.setup.log().contains("can read the private key"), "{}", keystile.setup.log());
}
