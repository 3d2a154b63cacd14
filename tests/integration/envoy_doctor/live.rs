//! The configuration of a running Envoy.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{
    envoy::{Gateway, VERSIONS, binary},
    keystile::{Run, keystile},
    process::{Guarded, free_port, scratch},
    service::Setup,
    tools::read,
    until,
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

/// Writes resources of one type, as Envoy reads them from a file.
fn write_resources(path: &Path, kind: &str, resources: Vec<Value>) {
    let typed = resources.into_iter().map(|mut resource| {
        resource["@type"] = format!("type.googleapis.com/{kind}").into();
        resource
    });
    std::fs::write(path, json!({ "resources": typed.collect::<Vec<_>>() }).to_string()).unwrap();
}

/// The parts of `envoy/uds.yaml` as dynamic resources of a real Envoy, with a fault. Its admin URL.
async fn start_with_dynamic_resources(folder: &Path) -> (Guarded, String) {
    let (ingress, admin) = (free_port(), free_port());
    let text = read("envoy/uds.yaml").replace("failure_mode_allow: false", "failure_mode_allow: true");
    let text = text.replace("0.0.0.0, port_value: 8080", &format!("127.0.0.1, port_value: {ingress}"));
    let text = text.replace("port_value: 9901", &format!("port_value: {admin}"));
    let mut config: Value = serde_saphyr::from_str(&text).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let source =
        |name: &str| json!({ "path_config_source": { "path": file(name) }, "resource_api_version": "V3" });
    let mut listener = config["static_resources"]["listeners"][0].take();
    let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
    let routes = manager.as_object_mut().unwrap().remove("route_config").unwrap();
    manager["rds"] = json!({ "route_config_name": "local", "config_source": source("rds.json") });
    let clusters = config["static_resources"]["clusters"].as_array().unwrap().clone();
    write_resources(&folder.join("rds.json"), "envoy.config.route.v3.RouteConfiguration", vec![routes]);
    write_resources(&folder.join("cds.json"), "envoy.config.cluster.v3.Cluster", clusters);
    write_resources(&folder.join("lds.json"), "envoy.config.listener.v3.Listener", vec![listener]);
    let object = config.as_object_mut().unwrap();
    object.remove("static_resources");
    object.insert("node".into(), json!({ "id": "test", "cluster": "test" }));
    let dynamic = json!({ "lds_config": source("lds.json"), "cds_config": source("cds.json") });
    object.insert("dynamic_resources".into(), dynamic);
    std::fs::write(folder.join("envoy.json"), config.to_string()).unwrap();
    let command =
        [&binary(VERSIONS[1]), "-c", &file("envoy.json"), "--use-dynamic-base-id", "--concurrency", "1"];
    let envoy = Guarded::spawn(folder.to_owned(), "TERM", &command);
    let url = format!("http://127.0.0.1:{admin}");
    until("Envoy has its resources", Duration::from_secs(30), async || {
        let Ok(answer) = reqwest::get(format!("{url}/listeners")).await else { return false };
        answer.text().await.is_ok_and(|listeners| listeners.contains("ingress"))
    })
    .await;
    (envoy, url)
}

#[tokio::test]
async fn dynamic_listeners_routes_and_clusters_are_examined() {
    let folder = scratch("envoy-dynamic");
    let (_envoy, url) = start_with_dynamic_resources(&folder).await;
    let run = doctor(vec![url]).await;
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(codes(&report), ["fail_open", "route_unchecked"], "{report:#}");
    let path = report["findings"][0]["path"].as_str().unwrap();
    assert!(path.contains("dynamic_listeners[ingress].active_state.listener"), "{path}");
    // The file has only a part, and says so.
    let run = doctor(vec![folder.join("envoy.json").to_str().unwrap().to_owned()]).await;
    let report: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(codes(&report), ["not_in_document"; 2], "{report:#}");
}
