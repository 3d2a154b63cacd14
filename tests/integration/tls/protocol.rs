//! What Keystile speaks, as OpenSSL, Python, rustls and Envoy see it: versions, suites, protocols, sessions, names.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
};

use rustls::HandshakeKind;
use time::{Duration as Validity, OffsetDateTime};
use tokio::io::AsyncReadExt;

use super::{ENVOY, Files, NAME, SOON, SPIFFE, VERSIONS_OF_TLS, begin, connect, gateway, keystile};
use crate::harness::{
    authority::{Authority, Issued, write},
    envoy::VERSIONS,
    until,
};

/// The files of a client for programs other than this one.
fn client_files(files: &Files, own: &Issued) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    own.write(folder.path());
    write(&folder.path().join("ca.crt"), &files.servers.pem());
    folder
}

/// Runs a program in this folder, with a text to read. Its exit status, and all that it says.
fn run(folder: &tempfile::TempDir, command: &[&str], input: &str) -> (bool, String) {
    let mut process = Command::new(command[0]);
    process.args(&command[1..]).current_dir(folder.path());
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = process.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A handshake of `openssl s_client`.
fn s_client(folder: &tempfile::TempDir, address: SocketAddr, options: &[&str]) -> (bool, String) {
    let address = address.to_string();
    let base = ["openssl", "s_client", "-connect", &address, "-servername", NAME, "-CAfile", "ca.crt"];
    let own = ["-verify_return_error", "-cert", "tls.crt", "-key", "tls.key"];
    run(folder, &[&base[..], &own, options].concat(), "Q\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_weak_suites_and_other_protocols_are_refused() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let folder = client_files(&files, &files.clients.issue(&[ENVOY]));
    for (options, good) in [
        (&["-tls1_3", "-alpn", "h2"][..], true),
        (&["-tls1_3"], true),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], true),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"], true),
        (&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], false),
        (&["-tls1", "-cipher", "ALL:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-CCM:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "AES256-GCM-SHA384:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "eNULL:@SECLEVEL=0"], false),
        (&["-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"], false),
        (&["-tls1_3", "-alpn", "http/1.1"], false),
        (&["-tls1_2", "-alpn", "http/1.1,spdy/3"], false),
    ] {
        let (is_good, said) = s_client(&folder, address, options);
        assert_eq!(is_good, good, "{options:?}: {said}");
        assert!(!good || said.contains("Verify return code: 0 (ok)"), "{options:?}: {said}");
        assert!(good || said.contains("alert"), "{options:?} is refused by the server: {said}");
    }
    let (_, said) = s_client(&folder, address, &["-alpn", "http/1.1,h2"]);
    assert!(said.contains("ALPN protocol: h2"), "{said}");
    // TLS 1.2 can be negotiated again within a connection. Not here.
    let address = address.to_string();
    let base = ["openssl", "s_client", "-connect", &address, "-servername", NAME, "-CAfile", "ca.crt"];
    let own = ["-tls1_2", "-cert", "tls.crt", "-key", "tls.key"];
    let (is_good, said) = run(&folder, &[&base[..], &own].concat(), "R\n");
    let (_, again) = said.split_once("RENEGOTIATING").expect("OpenSSL tries");
    assert!(!is_good && !again.contains("verify return"), "{said}");
}

/// It would skip the verification of the client's certificate.
#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_resumed_and_no_data_is_early() {
    const SCRIPT: &str = r#"
import socket, ssl, sys
for version in [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]:
    context = ssl.create_default_context(cafile="ca.crt")
    context.load_cert_chain("tls.crt", "tls.key")
    context.minimum_version = context.maximum_version = version
    session = None
    for _ in range(3):
        with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as tcp:
            with context.wrap_socket(tcp, server_hostname="keystile.internal", session=session) as tls:
                tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                assert len(tls.recv(9)) == 9
                assert not tls.session_reused
                session = tls.session
                assert session is None or not session.has_ticket
print("never resumed")
"#;
    let files = Files::new();
    let own = files.clients.issue(&[ENVOY]);
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let folder = client_files(&files, &own);
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let (is_good, said) = run(&folder, &["python3", "-c", SCRIPT, &ip, &port], "");
    assert!(is_good && said.contains("never resumed"), "{said}");
    // OpenSSL gets nothing that it could offer at its next connection.
    for version in ["-tls1_2", "-tls1_3"] {
        let (_, said) = s_client(&folder, address, &[version, "-sess_out", "session"]);
        assert!(said.contains("New, TLSv1.") && !said.contains("New Session Ticket"), "{said}");
        assert!(!folder.path().join("session").exists(), "{version}");
    }
    for versions in VERSIONS_OF_TLS {
        let mut client = files.servers.client(Some(&own), versions);
        client.enable_early_data = true;
        // The copies share their sessions.
        for _ in 0..3 {
            let stream = begin(address, client.clone()).await.unwrap();
            let session = stream.get_ref().1;
            assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full), "{versions:?}");
            assert!(!session.is_early_data_accepted());
        }
    }
}

#[tokio::test]
async fn common_name_is_no_name() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(&format!("{ENVOY},{SPIFFE}"))).await;
    let now = OffsetDateTime::now_utc();
    let day = [now - Validity::days(1), now + Validity::days(1)];
    let by_common_name = files.clients.issue_between(&[], day, &[], Some(ENVOY));
    let address = keystile.setup.tcp;
    assert!(begin(address, files.client(Some(&by_common_name))).await.is_err());
    until("named", SOON, async || keystile.setup.log().contains("no DNS name and no URI")).await;
    let with_both = files.clients.issue_between(&["other.internal"], day, &[], Some(ENVOY));
    assert!(begin(address, files.client(Some(&with_both))).await.is_err());
}

#[tokio::test]
async fn client_that_offers_another_protocol_is_refused_and_one_that_offers_none_is_not() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let own = files.clients.issue(&[ENVOY]);
    for (protocols, good) in
        [(vec![], true), (vec!["h2"], true), (vec!["http/1.1", "h2"], true), (vec!["http/1.1"], false)]
    {
        let mut client = files.client(Some(&own));
        client.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        assert_eq!(begin(keystile.setup.tcp, client).await.is_ok(), good, "{protocols:?}");
    }
    // One that speaks HTTP/1.1 without saying so gets no answer.
    let mut stream = connect(keystile.setup.tcp, files.client(Some(&own))).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "{answer:?}");
}

/// Envoy's certificate and Keystile's are replaced by bad ones in turn, while the connections with the previous ones end.
async fn judged_by_envoy(version: &str, rows_of: std::ops::Range<usize>) {
    let (files, envoy) = (Files::new(), tempfile::tempdir().unwrap());
    let mut used = vec![files.clients.issue(&[ENVOY])];
    used[0].write(envoy.path());
    let revoke = |used: &[Issued]| {
        let used: Vec<_> = used.iter().collect();
        write(&files.path("revoked.crl"), &files.clients.revoke(&used, Validity::days(1)));
    };
    revoke(&[]);
    let (keystile, key) = keystile(&files, Some(ENVOY)).await;
    let gateway = gateway(version, &files, envoy.path(), keystile).await;
    let answers = async |status: u16, what: &str| {
        until(what, SOON, async || gateway.status(&key.credential).await == status).await;
    };
    answers(200, "at first").await;
    let other = Authority::new();
    let good = |files: &Files| files.servers.issue(&[NAME]);
    let clients = &files.clients;
    let rows = [
        ("Envoy's expired", clients.issue_for(&[ENVOY], Validity::minutes(-1)), good(&files)),
        ("Keystile's with another name", clients.issue(&[ENVOY]), files.servers.issue(&["x.internal"])),
        ("Envoy's of another CA", other.issue(&[ENVOY]), good(&files)),
        ("Envoy's with another name", clients.issue(&["portal.internal"]), good(&files)),
        ("Keystile's of another CA", clients.issue(&[ENVOY]), other.issue(&[NAME])),
    ];
    for (what, of_envoy, of_keystile) in rows.into_iter().skip(rows_of.start).take(rows_of.len()) {
        of_keystile.write(files.folder.path());
        of_envoy.write(envoy.path());
        // Envoy has read its files, and Keystile those of its own, before the connections end.
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        revoke(&used);
        answers(503, what).await;
        // A good one of each again.
        good(&files).write(files.folder.path());
        used.push(files.clients.issue(&[ENVOY]));
        used.last().unwrap().write(envoy.path());
        answers(200, &format!("after {what}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_and_keystile_refuse_each_others_bad_certificates() {
    tokio::join!(judged_by_envoy(VERSIONS[0], 0..2), judged_by_envoy(VERSIONS[1], 2..5));
}

/// All names that a certificate may have are compared whole, also by a client of another make.
#[tokio::test(flavor = "multi_thread")]
async fn spiffe_id_gets_in_and_a_longer_one_does_not() {
    let files = Arc::new(Files::new());
    let (keystile, _) = keystile(&files, Some(SPIFFE)).await;
    for (name, good) in [(SPIFFE.to_owned(), true), (format!("{SPIFFE}/a"), false), (ENVOY.to_owned(), false)]
    {
        let folder = client_files(&files, &files.clients.issue(&[&name]));
        let (is_good, said) = s_client(&folder, keystile.setup.tcp, &["-tls1_2"]);
        assert_eq!(is_good, good, "{name}: {said}");
    }
}
