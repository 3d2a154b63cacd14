//! Requests that cannot be read, through an Envoy that lets errors through: they are denied all the same.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    service::Setup,
};

const OPEN: (&str, &str) = ("failure_mode_allow: false", "failure_mode_allow: true");

/// A `GET` over HTTP/2 (RFC 9113), frame by frame, since no client sends such a path. What Envoy answers, as it came.
async fn get(gateway: &Gateway, path: &[u8]) -> String {
    // RFC 7541: GET and http by their numbers, then authority and path as they are.
    let headers = [&[0x82, 0x86, 0x41, 1, b'x', 0x04, path.len() as u8], path].concat();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let request = [&hello[..], &frame(4, 0, 0, &[]), &frame(1, 0x5, 1, &headers)].concat();
    let mut socket = TcpStream::connect(gateway.url.strip_prefix("http://").unwrap()).await.unwrap();
    socket.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    // Envoy leaves the connection open.
    let _ = tokio::time::timeout(Duration::from_secs(1), socket.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn path_that_is_no_text_is_read_as_far_as_it_is() {
    for version in VERSIONS {
        let edits = [OPEN, ("normalize_path: true", "normalize_path: false")];
        let keystile = Setup::new().start(&[]).await;
        let gateway = Gateway::before(version, "tcp.yaml", keystile, &edits).await;
        for path in [&b"/v1/models?x=\xff"[..], b"/v1/\xff"] {
            let answer = get(&gateway, path).await;
            assert!(answer.contains("missing_credential"), "Envoy {version}, {path:?}: {answer}");
        }
        assert_eq!(gateway.upstream.requests(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_is_too_large_to_be_read_is_denied() {
    for version in VERSIONS {
        let setup = Setup::new();
        setup.create_user("ada");
        let key = setup.create_key("ada", &[]);
        let edits = [OPEN, ("max_request_bytes: 1048576", "max_request_bytes: 33554432")];
        let gateway = Gateway::before(version, "body.yaml", setup.start(&[]).await, &edits).await;
        let send = |length: usize| {
            let request = gateway.request(reqwest::Method::POST, "/v1/chat/completions");
            request.bearer_auth(&key.credential).body("x".repeat(length)).send()
        };
        assert_eq!(send(8 * 1024 * 1024).await.unwrap().status(), 200, "Envoy {version}");
        let answer = send(20 * 1024 * 1024).await.unwrap();
        assert_eq!(answer.status(), 400, "Envoy {version}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!(body["code"], "malformed_request");
        assert_eq!(gateway.upstream.requests(), 1, "Envoy {version}");
    }
}
