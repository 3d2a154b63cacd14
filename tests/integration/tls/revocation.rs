//! Revocation lists: what is revoked, what cannot be known, and what a bad file leads to.

use std::{fs, net::SocketAddr, time::Duration};

use serde_json::Value;
use time::Duration as Validity;

use super::{ENVOY, Files, NAME, SOON, VERSIONS_OF_TLS, begin, borrowed, ends, keystile};
use crate::harness::{
    authority::{Authority, Issued, write},
    service::{Keystile, Setup},
    until,
};

const DAY: Validity = Validity::days(1);

/// Whether this client gets in: with both versions of TLS, or with none.
async fn gets_in(address: SocketAddr, files: &Files, own: &Issued) -> bool {
    let [mut of_first, mut of_second] = with_each_version(address, files, own).await;
    if of_first != of_second {
        // The files changed between the two.
        [of_first, of_second] = with_each_version(address, files, own).await;
    }
    assert_eq!(of_first, of_second, "TLS 1.2 and 1.3 agree");
    of_first
}

async fn with_each_version(address: SocketAddr, files: &Files, own: &Issued) -> [bool; 2] {
    let [first, second] = VERSIONS_OF_TLS;
    [
        begin(address, files.servers.client(Some(own), first)).await.is_ok(),
        begin(address, files.servers.client(Some(own), second)).await.is_ok(),
    ]
}

async fn problem(keystile: &Keystile) -> String {
    keystile.setup.readyz().await.1["tls"]["grpc"]["problem"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn certificate_below_a_revoked_ca_is_refused() {
    let files = Files::new();
    let (good, bad) = (files.clients.intermediate(), files.clients.intermediate());
    let lists = [good.revoke(&[], DAY), bad.revoke(&[], DAY)].concat();
    write(&files.path("revoked.crl"), &format!("{lists}{}", files.clients.revoke(&[], DAY)));
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let (of_good, of_bad) = (good.issue(&[ENVOY]).through(&good), bad.issue(&[ENVOY]).through(&bad));
    assert!(gets_in(address, &files, &of_good).await);
    assert!(!gets_in(address, &files, &good.issue(&[ENVOY])).await, "without the intermediate certificate");
    let mut open = begin(address, files.client(Some(&of_bad))).await.unwrap();
    write(&files.path("revoked.crl"), &format!("{lists}{}", files.clients.revoke_authority(&bad)));
    ends(&mut open).await;
    assert!(!gets_in(address, &files, &of_bad).await);
    assert!(gets_in(address, &files, &of_good).await);
}

#[tokio::test]
async fn clients_of_a_ca_without_a_list_that_holds_are_refused_and_the_log_says_why() {
    let other = Authority::new();
    for (what, list, named) in [
        ("of another CA", other.revoke(&[], DAY), "has no list of"),
        ("past its next update", String::new(), "is past its next update"),
    ] {
        let files = Files::new();
        let list = if list.is_empty() { files.clients.revoke(&[], Validity::seconds(-60)) } else { list };
        write(&files.path("revoked.crl"), &list);
        let (keystile, _) = keystile(&files, Some(ENVOY)).await;
        let good = files.clients.issue(&[ENVOY]);
        assert!(!gets_in(keystile.setup.tcp, &files, &good).await, "{what}");
        for text in [named, "--tls-client-crl-file", "revoked.crl", "CN=CA"] {
            until(text, SOON, async || keystile.setup.log().contains(text)).await;
            assert!(problem(&keystile).await.contains(text), "{what}, {text}");
        }
        write(&files.path("revoked.crl"), &files.clients.revoke(&[], DAY));
        until("it gets in", SOON, async || gets_in(keystile.setup.tcp, &files, &good).await).await;
        assert_eq!(problem(&keystile).await, "");
    }
    // The CA above has one, and the CA that issued the certificate has none.
    let files = Files::new();
    let below = files.clients.intermediate();
    write(&files.path("revoked.crl"), &files.clients.revoke(&[], DAY));
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let of_below = below.issue(&[ENVOY]).through(&below);
    assert!(!gets_in(keystile.setup.tcp, &files, &of_below).await);
    until("named", SOON, async || keystile.setup.log().contains("UnknownRevocationStatus")).await;
}

#[tokio::test]
async fn list_that_cannot_be_used_stops_the_start_and_later_changes_nothing() {
    let files = Files::new();
    let (lost, good) = (files.clients.issue(&[ENVOY]), files.clients.issue(&[ENVOY]));
    let list = files.clients.revoke(&[&lost], DAY);
    let half = &list[..list.len() / 2];
    let bad =
        [("", "holds no revocation list"), ("no list", "holds no revocation list"), (half, "is no PEM")];
    let path = files.path("revoked.crl");
    write(&path, &list);
    let settings = files.settings("KEYSTILE_TLS", Some(ENVOY));
    for (text, named) in bad {
        write(&path, text);
        let output = Setup::new().serve(&borrowed(&settings)).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text:?}: {said}");
        assert!(said.contains("--tls-client-crl-file") && said.contains(named), "{text:?}: {said}");
    }
    write(&path, &list);
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let mut open = begin(address, files.client(Some(&good))).await.unwrap();
    for (text, named) in bad {
        write(&path, text);
        until(named, SOON, async || problem(&keystile).await.contains(named)).await;
        assert!(!gets_in(address, &files, &lost).await, "{text:?}: it stays revoked");
        assert!(gets_in(address, &files, &good).await, "{text:?}");
    }
    // A folder in its place cannot be read.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    until("unreadable", SOON, async || problem(&keystile).await.contains("directory")).await;
    assert!(!gets_in(address, &files, &lost).await);
    fs::remove_dir(&path).unwrap();
    write(&path, &files.clients.revoke(&[&lost, &good], DAY));
    ends(&mut open).await;
}

#[tokio::test]
async fn newest_list_of_a_ca_counts_in_any_order() {
    let files = Files::new();
    let (lost, good) = (files.clients.issue(&[ENVOY]), files.clients.issue(&[ENVOY]));
    let (old, new) = (files.clients.old_list(), files.clients.revoke(&[&lost], DAY));
    for list in [format!("{old}{new}"), format!("{new}{old}")] {
        write(&files.path("revoked.crl"), &list);
        let (keystile, _) = keystile(&files, Some(ENVOY)).await;
        assert!(!gets_in(keystile.setup.tcp, &files, &lost).await);
        assert!(gets_in(keystile.setup.tcp, &files, &good).await);
    }
}

/// Each file takes effect although another one cannot be used.
#[tokio::test]
async fn revocation_takes_effect_while_other_files_are_bad() {
    let files = Files::new();
    let (lost, good) = (files.clients.issue(&[ENVOY]), files.clients.issue(&[ENVOY]));
    write(&files.path("revoked.crl"), &files.clients.revoke(&[], DAY));
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let mut open = begin(address, files.client(Some(&lost))).await.unwrap();
    // A renewal whose key never came, an expired certificate, and CAs that are none.
    write(&files.path("tls.crt"), &files.servers.issue(&[NAME]).certificate);
    write(&files.path("clients.crt"), "no CA");
    write(&files.path("revoked.crl"), &files.clients.revoke(&[&lost], DAY));
    ends(&mut open).await;
    assert!(!gets_in(address, &files, &lost).await);
    assert!(gets_in(address, &files, &good).await);
    let problem = problem(&keystile).await;
    assert!(problem.contains("--tls-key-file") && problem.contains("--tls-client-ca-file"), "{problem}");
    // The CA is replaced, while the list is half-written.
    let new = Authority::new();
    let mut open = begin(address, files.client(Some(&good))).await.unwrap();
    write(&files.path("revoked.crl"), "-----BEGIN X509 CRL-----\nMIIB");
    write(&files.path("clients.crt"), &new.pem());
    ends(&mut open).await;
    assert!(!gets_in(address, &files, &good).await);
    assert_ne!(keystile.setup.readyz().await.1["tls"]["grpc"]["problem"], Value::Null);
    // Nothing of the new CA is known to be good before it has a list.
    assert!(!gets_in(address, &files, &new.issue(&[ENVOY])).await);
    write(&files.path("revoked.crl"), &new.revoke(&[], DAY));
    let of_new = new.issue(&[ENVOY]);
    until("the new CA's client gets in", Duration::from_secs(20), async || {
        gets_in(address, &files, &of_new).await
    })
    .await;
}
