//! The configuration of a running Envoy.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    keystile::{Run, keystile},
    service::Setup,
};

async fn doctor(arguments: Vec<String>) -> Run {
    let run = move || {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        keystile(
            &[&["doctor", "--output", "json", "--envoy"], &arguments[..]].concat(),
            "sqlite:/nonexistent/k.db",
            "",
        )
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The report and the exit status about a gateway.
async fn examined(gateway: &Gateway) -> (Value, i32) {
    let run = doctor(vec![gateway.admin_url().to_owned()]).await;
    let report = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    (report, run.status)
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings.map(|finding| finding["code"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn running_envoy_is_examined_with_its_version() {
    for version in VERSIONS {
        let gateway = Gateway::start(version, "routes.yaml", Setup::new(), &[]).await;
        let (report, status) = examined(&gateway).await;
        assert_eq!(status, 0, "{report:#}");
        let expected = json!({ "kind": "config_dump", "version": version, "http_chains": 1, "checks": 1 });
        assert_eq!(report["envoy"], expected, "{version}");
        let flaws = codes(&report).iter().filter(|code| **code == "version_flawed").count();
        assert_eq!(flaws, if version == VERSIONS[0] { 2 } else { 0 }, "{report:#}");
        assert_eq!(report["warnings"], flaws, "{report:#}");
        assert!(codes(&report).contains(&"route_unchecked"), "{report:#}");
    }
}

#[tokio::test]
async fn faults_of_a_running_envoy_are_found() {
    let edits = [("failure_mode_allow: false", "failure_mode_allow: true"), ("{value: 0}", "{value: 30}")];
    let keystile = Setup::new().start(&[]).await;
    let gateway = Gateway::before(VERSIONS[1], "uds.yaml", keystile, &edits).await;
    let (report, status) = examined(&gateway).await;
    assert_eq!(status, 1);
    assert_eq!(codes(&report), ["fail_open", "panic_threshold", "route_unchecked"], "{report:#}");
    let path = report["findings"][0]["path"].as_str().unwrap();
    let ends = path.contains("static_listeners[ingress].listener.filter_chains[0]")
        && path.ends_with(".failure_mode_allow");
    assert!(ends, "{path}");
}

/// Answers the first request of each connection with these bytes, and keeps it open.
async fn server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
                tokio::time::sleep(Duration::from_secs(30)).await;
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_is_not_envoys_is_named() {
    for (answer, words) in [
        (&b""[..], "no answer within 1s"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", "no answer within 1s"),
        (b"hello\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "no configuration of Envoy"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "longer than 64 MiB"),
    ] {
        let url = server(answer).await;
        let run = doctor(vec![url.clone(), "--envoy-timeout".into(), "1s".into()]).await;
        let said = run.failed(1);
        assert!(said.contains(words) && said.contains(&url), "{words} in {said}");
    }
}
