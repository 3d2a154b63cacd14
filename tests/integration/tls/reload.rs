//! Files that change: how they are replaced, and which connections stay.

use std::{fs, net::SocketAddr, os::unix::fs::symlink, time::Duration};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::client::TlsStream;

use super::{ENVOY, Files, NAME, SOON, begin, ends, keystile};
use crate::harness::{
    authority::{Authority, Issued, write},
    until,
};

/// The certificate that Keystile shows to a new connection.
async fn shown(address: SocketAddr, files: &Files, own: &Issued) -> CertificateDer<'static> {
    let stream = begin(address, files.client(Some(own))).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

fn certificate(issued: &Issued) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()
}

/// Sends a ping, and reads until its answer.
async fn is_alive(stream: &mut TlsStream<TcpStream>) -> bool {
    if stream.write_all(b"\0\0\x08\x06\0\0\0\0\0keystile").await.is_err() {
        return false;
    }
    let mut read = Vec::new();
    let answer = async {
        while !read.windows(8).any(|window| window == b"keystile") {
            if stream.read_buf(&mut read).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok::<_, std::io::Error>(())
    };
    timeout(SOON, answer).await.is_ok_and(|answer| answer.is_ok())
}

/// As the kubelet does: the files are links into a folder, of which a link in between is switched in one step.
#[tokio::test]
async fn switched_link_renews_the_certificate_and_drops_no_connection() {
    let files = Files::new();
    let folder = files.folder.path();
    let names = ["tls.crt", "tls.key", "clients.crt"];
    let version = |name: &str, issued: &Issued, authorities: &str| {
        let folder = folder.join(name);
        fs::create_dir(&folder).unwrap();
        issued.write(&folder);
        write(&folder.join("clients.crt"), authorities);
        symlink(name, files.path("..new")).unwrap();
        fs::rename(files.path("..new"), files.path("..data")).unwrap();
    };
    let old = files.servers.issue(&[NAME]);
    version("..1", &old, &files.clients.pem());
    for name in names {
        fs::remove_file(files.path(name)).ok();
        symlink(format!("..data/{name}"), files.path(name)).unwrap();
    }
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let own = files.clients.issue(&[ENVOY]);
    let mut open = begin(address, files.client(Some(&own))).await.unwrap();
    assert_eq!(shown(address, &files, &own).await, certificate(&old));
    let (new, other) = (files.servers.issue(&[NAME]), Authority::new());
    version("..2", &new, &format!("{}{}", other.pem(), files.clients.pem()));
    fs::remove_dir_all(files.path("..1")).unwrap();
    until("the new certificate", SOON, async || shown(address, &files, &own).await == certificate(&new))
        .await;
    begin(address, files.client(Some(&other.issue(&[ENVOY])))).await.unwrap();
    assert!(is_alive(&mut open).await);
    assert!(!keystile.setup.log().contains("cannot be used"), "{}", keystile.setup.log());
}

#[tokio::test]
async fn certificate_before_its_key_is_used_once_the_key_is_there() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let own = files.clients.issue(&[ENVOY]);
    let old = shown(address, &files, &own).await;
    let mut open = begin(address, files.client(Some(&own))).await.unwrap();
    let new = files.servers.issue(&[NAME]);
    write(&files.path("tls.crt"), &new.certificate);
    until("named", SOON, async || keystile.setup.log().contains("does not belong to the certificate")).await;
    assert_eq!(shown(address, &files, &own).await, old);
    write(&files.path("tls.key"), &new.key);
    until("the new one", SOON, async || shown(address, &files, &own).await == certificate(&new)).await;
    assert!(is_alive(&mut open).await);
    assert_eq!(keystile.setup.readyz().await.1["tls"]["grpc"]["problem"], serde_json::Value::Null);
}

/// Half a list of CAs is a list of CAs.
#[tokio::test]
async fn connections_outlive_files_that_are_half_written() {
    let files = Files::new();
    let other = Authority::new();
    let path = files.path("clients.crt");
    let both = format!("{}{}", other.pem(), files.clients.pem());
    write(&path, &both);
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let own = files.clients.issue(&[ENVOY]);
    let mut open = begin(keystile.setup.tcp, files.client(Some(&own))).await.unwrap();
    for round in 0..12 {
        // Cut between the two CAs, and within the second, for less than a second.
        let cut = if round % 2 == 0 { other.pem().len() } else { both.len() - 100 };
        fs::write(&path, &both[..cut]).unwrap();
        sleep(Duration::from_millis(450)).await;
        fs::write(&path, &both).unwrap();
        sleep(Duration::from_millis(250)).await;
    }
    assert!(is_alive(&mut open).await, "{}", keystile.setup.log());
    // Cut for good, it is what the operator wants.
    fs::write(&path, other.pem()).unwrap();
    ends(&mut open).await;
}

#[tokio::test]
async fn certificate_that_is_not_valid_yet_is_refused() {
    use time::{Duration, OffsetDateTime};
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let now = OffsetDateTime::now_utc();
    let own =
        files.clients.issue_between(&[ENVOY], [now + Duration::hours(1), now + Duration::days(1)], &[], None);
    assert!(begin(address, files.client(Some(&own))).await.is_err());
    until("named", SOON, async || keystile.setup.log().contains("not valid yet")).await;
    // The same of Keystile's own: the one in use stays.
    let early =
        files.servers.issue_between(&[NAME], [now + Duration::hours(1), now + Duration::days(1)], &[], None);
    early.write(files.folder.path());
    until("named", SOON, async || keystile.setup.log().contains("the certificate is not valid yet")).await;
    begin(address, files.client(Some(&files.clients.issue(&[ENVOY])))).await.unwrap();
}
