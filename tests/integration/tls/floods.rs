//! Floods of a client that has a certificate, while an Envoy with another one is answered.

use std::{fs, net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};

use super::{ENVOY, Files, VERSIONS_OF_TLS, begin, gateway, keystile};
use crate::harness::{authority::Issued, envoy::VERSIONS};

/// Writes these frames again and again on one connection after the other, and reads nothing.
async fn flood(address: SocketAddr, files: &Files, own: &Issued, frames: &[u8], versions: usize) {
    let until = Instant::now() + Duration::from_secs(5);
    let mut open = Vec::new();
    while Instant::now() < until {
        let client = files.servers.client(Some(own), VERSIONS_OF_TLS[versions]);
        let Ok(mut stream) = begin(address, client).await else { continue };
        while Instant::now() < until {
            let written = timeout(Duration::from_millis(500), stream.write_all(frames)).await;
            if !matches!(written, Ok(Ok(()))) {
                break;
            }
        }
        // It stays open, and unread.
        open.push(stream);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_a_client_with_a_certificate_hold_up_no_envoy() {
    let (files, envoy) = (Files::new(), tempfile::tempdir().unwrap());
    files.clients.issue(&[ENVOY]).write(envoy.path());
    let other = files.clients.issue(&[ENVOY]);
    let (keystile, key) = keystile(&files, Some(ENVOY)).await;
    let (address, id) = (keystile.setup.tcp, keystile.process.0.id());
    let gateway = gateway(VERSIONS[1], &files, envoy.path(), keystile).await;
    assert_eq!(gateway.status(&key.credential).await, 200);
    let ping = b"\0\0\x08\x06\0\0\0\0\0keystile".repeat(1000);
    let settings = b"\0\0\0\x04\0\0\0\0\0".repeat(1000);
    // Headers of one stream that never end.
    let mut continuation = b"\0\0\x01\x01\0\0\0\0\x01\x82".to_vec();
    continuation.extend(b"\0\0\0\x09\0\0\0\0\x01".repeat(1000));
    let floods = [(&ping, 0), (&ping, 1), (&settings, 1), (&continuation, 0), (&continuation, 1)];
    let floods = floods.map(|(frames, versions)| flood(address, &files, &other, frames, versions));
    let good = async {
        let until = Instant::now() + Duration::from_secs(6);
        let mut answered = 0;
        while Instant::now() < until {
            let answer = timeout(Duration::from_secs(10), gateway.status(&key.credential)).await;
            assert_eq!(answer.expect("in time"), 200);
            answered += 1;
        }
        answered
    };
    let (_, answered) = tokio::join!(join_all(floods), good);
    assert!(answered > 10, "{answered}");
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 128 * 1024, "{peak} KiB");
}
