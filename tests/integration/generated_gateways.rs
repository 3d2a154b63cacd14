//! What Istio and Envoy Gateway make of the examples in `k8s/examples/`, on real Envoy.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use keystile::ext_authz::headers;
use reqwest::{Client, Response, redirect::Policy};
use serde_json::Value;

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    process::free_port,
    service::{Key, Setup},
    upstream::Seen,
};

const ISTIO: &str = "../tests/integration/gateways/istio.yaml";
const ENVOY_GATEWAY: &str = "../tests/integration/gateways/envoy-gateway.yaml";

/// Where Istio runs: in the pod, and at an ingress gateway, where the client's address comes from `x-forwarded-for`.
const IN_THE_POD: &[(&str, &str)] = &[];
const AT_THE_INGRESS: &[(&str, &str)] = &[("use_remote_address: false", "use_remote_address: true")];

/// Each of them, with what differs.
const GENERATED: [(&str, &[(&str, &str)]); 3] =
    [(ISTIO, IN_THE_POD), (ISTIO, AT_THE_INGRESS), (ENVOY_GATEWAY, &[])];

/// The newest Envoy with one of them, and a key of `ada`.
struct Generated {
    gateway: Gateway,
    key: Key,
    /// Where Istio's proxy takes connections that are not HTTP, and those to Keystile's metrics.
    ports: [u16; 2],
}

impl Generated {
    async fn start(
        config: &str,
        edits: &[(&str, &str)],
        options: &[&str],
        settings: &[(&str, &str)],
    ) -> Self {
        let setup = Setup::new();
        setup.create_user("ada");
        let key = setup.create_key("ada", options);
        let ports = [free_port(), free_port()];
        let [tcp, metrics] = ports.map(|port| port.to_string());
        let more = [("8082", tcp.as_str()), ("9192", metrics.as_str())];
        let more = if config == ISTIO { &more[..] } else { &[] };
        let edits = [edits, more].concat();
        let gateway = Gateway::before(VERSIONS[1], config, setup.start(settings).await, &edits).await;
        Self { gateway, key, ports }
    }

    /// The answer to a request as it is written here: a client library would correct its path.
    async fn raw(&self, path: &str, key: Option<&str>) -> (u16, Option<Seen>) {
        let authority = self.gateway.url.strip_prefix("http://").unwrap().to_owned();
        let key = key.map_or(String::new(), |key| format!("x-api-key: {key}\r\n"));
        let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\n{key}connection: close\r\n\r\n");
        let before = self.gateway.upstream.requests();
        let answer = tokio::task::spawn_blocking(move || exchange(&authority, request.as_bytes()));
        let answer = String::from_utf8(answer.await.unwrap()).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let seen = (self.gateway.upstream.requests() > before).then(|| {
            let json = &answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()];
            serde_json::from_str(json).unwrap()
        });
        (status, seen)
    }

    /// How often Keystile has decided this.
    async fn decided(&self, decision: &str, reason: &str) -> u64 {
        let line = format!("keystile_checks_total{{decision=\"{decision}\",reason=\"{reason}\"}} ");
        let metrics = self.gateway.keystile.setup.metrics().await;
        let value = metrics.lines().find_map(|metric| metric.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("{line}\n{metrics}")).parse().unwrap()
    }

    fn log_lines(&self, needle: &str) -> Vec<String> {
        let log = self.gateway.keystile.setup.log();
        log.lines().filter(|line| line.contains(needle)).map(ToOwned::to_owned).collect()
    }
}

/// Everything that a server answers to these bytes until it closes the connection.
fn exchange(authority: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = Vec::new();
    // A connection that is closed at once may refuse the bytes.
    if stream.write_all(bytes).is_ok() {
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }
    answer
}

async fn code(answer: Response) -> (u16, String) {
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["status"], status);
    assert!(!body["request_id"].as_str().unwrap().is_empty());
    (status, body["code"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_configurations_let_good_keys_through_and_deny_others_in_our_words() {
    for (config, edits) in GENERATED {
        let generated = Generated::start(config, edits, &["--scope", "models.list"], &[]).await;
        let Generated { gateway, key, .. } = &generated;
        let answer = gateway.get("/v1/models").send().await.unwrap();
        assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"api\"", "{config}");
        assert_eq!(code(answer).await, (401, "missing_credential".into()), "{config}");
        let answer = gateway.get("/v1/models").bearer_auth("ks_nobodysKey").send().await.unwrap();
        assert_eq!(code(answer).await, (401, "invalid_credential".into()), "{config}");
        assert_eq!(gateway.upstream.requests(), 0, "{config}");

        let answer = gateway.get("/v1/models").bearer_auth(&key.credential).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{config}");
        let seen: Seen = answer.json().await.unwrap();
        assert_eq!(seen.headers["x-auth-user-name"], "ada", "{config}");
        assert_eq!(seen.headers["x-auth-scopes"], "models.list", "{config}");
        assert!(!format!("{seen:?}").contains(&key.credential), "{config}: the key reached the upstream");
        assert_eq!(gateway.get("/healthz").send().await.unwrap().status(), 200, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_identities_do_not_pass_generated_configurations_with_or_without_a_check() {
    for (config, edits) in GENERATED {
        let generated = Generated::start(config, edits, &[], &[]).await;
        let Generated { gateway, key, .. } = &generated;
        for path in ["/v1/models", "/healthz"] {
            let mut request = gateway.get(path).header("x-api-key", &key.credential);
            for header in headers::TABLE {
                request = request.header(header.name, "forged").header(header.name, "twice");
            }
            let seen: Seen = request.send().await.unwrap().json().await.unwrap();
            assert!(!format!("{:?}", seen.headers).contains("forged"), "{config} {path}: {seen:?}");
            assert_eq!(seen.headers.contains_key("x-auth-user-name"), path != "/healthz", "{config} {path}");

            // Many servers read both spellings as one header.
            let request = gateway.get(path).header("x-api-key", &key.credential);
            let answer = request.header("x_auth_user_id", "forged").send().await.unwrap();
            if config == ENVOY_GATEWAY {
                assert_eq!(answer.status(), 400, "{path}");
            } else {
                let seen: Seen = answer.json().await.unwrap();
                assert!(!seen.headers.contains_key("x_auth_user_id"), "{path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_path_leads_around_a_generated_check() {
    for (config, edits) in GENERATED {
        let options = ["--allowed-endpoint", "GET /v1/models"];
        let generated = Generated::start(config, edits, &options, &[]).await;
        for path in [
            "/healthz/../v1/models",
            "/healthz/%2e%2e/v1/models",
            "/healthz%2f..%2fv1/models",
            "/healthz%2F%2E%2E%2Fv1/models",
            "/healthz/..%2fv1/models",
            "/healthz\\..\\v1\\models",
            "/healthz/",
            "//healthz",
            "/healthz//",
            "/healthz;/../v1/models",
            "/healthz;v1/models",
            "/./healthz",
            "/%68ealthz",
            "/HEALTHZ",
            "/healthz%00",
            "/healthz%23",
            "/healthz?/../../v1/models",
            "/v1/models/..%2f..%2fhealthz",
            "/v1/models?x=/healthz",
            "/v1/../healthz",
        ] {
            // What passes without a key is /healthz in the upstream's eyes as well.
            let (status, seen) = generated.raw(path, None).await;
            let seen = seen.map(|seen| seen.path.split('?').next().unwrap().to_owned());
            match seen.as_deref() {
                None => assert!([307, 400, 401].contains(&status), "{config} {path}: {status}"),
                Some(seen) => assert_eq!(seen, "/healthz", "{config} {path}: {status}"),
            }
        }
        let key = Some(generated.key.credential.as_str());
        for path in [
            "/v1/models/../admin",
            "/v1/models/%2e%2e/admin",
            "/v1/models%2f..%2fadmin",
            "/v1/models/..%2fadmin",
            "/v1/models;/../admin",
            "/admin?/v1/models",
            "/v1%2fmodels/../../admin",
        ] {
            let (status, seen) = generated.raw(path, key).await;
            assert!(
                seen.is_none() && [307, 400, 403].contains(&status),
                "{config} {path}: {status} {seen:?}"
            );
        }
        for path in ["/v1/models", "/v1/models?page=2", "/v1/x/../models", "/v1/%6dodels"] {
            let (status, seen) = generated.raw(path, key).await;
            assert_eq!(status, 200, "{config} {path}");
            assert_eq!(seen.unwrap().path.split('?').next().unwrap(), "/v1/models", "{config} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_keystile_is_a_503_in_generated_configurations() {
    for (config, edits) in GENERATED {
        let mut generated = Generated::start(config, edits, &[], &[]).await;
        let good = generated.key.credential.clone();
        assert_eq!(generated.gateway.status(&good).await, 200);
        generated.gateway.keystile.process.kill();
        let answer = generated.gateway.get("/v1/models").header("x-api-key", &good).send().await.unwrap();
        if config == ISTIO {
            assert_eq!(code(answer).await, (503, "unavailable".into()));
        } else {
            // Envoy Gateway has no setting for this body.
            assert_eq!((answer.status().as_u16(), answer.text().await.unwrap()), (503, String::new()));
        }
        assert_eq!(generated.gateway.upstream.requests(), 1, "{config}");
        assert_eq!(generated.gateway.get("/healthz").send().await.unwrap().status(), 200, "{config}");
    }
    // As Envoy Gateway before 1.8 does, which has no statusOnError.
    let edits = [("status_on_error: {code: ServiceUnavailable}", "stat_prefix: none")];
    let mut generated = Generated::start(ENVOY_GATEWAY, &edits, &[], &[]).await;
    generated.gateway.keystile.process.kill();
    assert_eq!(generated.gateway.status(&generated.key.credential).await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_is_not_http_is_denied_with_a_code_and_a_log_line_of_its_own() {
    let generated = Generated::start(ISTIO, IN_THE_POD, &[], &[]).await;
    let key = &generated.key.credential;
    let connect = async |text: String| {
        let tcp = format!("127.0.0.1:{}", generated.ports[0]);
        tokio::task::spawn_blocking(move || exchange(&tcp, text.as_bytes())).await.unwrap()
    };
    let request =
        format!("GET /v1/models HTTP/1.1\r\nhost: shop\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n");
    for text in ["PING\r\n", &request, &request] {
        assert_eq!(connect(text.to_owned()).await, b"", "{text}");
    }
    assert_eq!(generated.gateway.upstream.requests(), 0);
    assert_eq!(generated.decided("deny", "not_http").await, 3);
    assert_eq!(generated.decided("deny", "missing_credential").await, 0);
    // One line for the three, with the port.
    let lines = generated.log_lines("not HTTP");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("WARN") && lines[0].contains("127.0.0.1"), "{lines:?}");
    assert!(lines[0].contains(&format!("port={}", generated.ports[0])), "{lines:?}");
    // The same key over HTTP is good.
    assert_eq!(generated.gateway.status(key).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_is_not_http_passes_where_denials_are_only_reported() {
    let generated = Generated::start(ISTIO, IN_THE_POD, &[], &[("KEYSTILE_MODE", "shadow")]).await;
    let tcp = format!("127.0.0.1:{}", generated.ports[0]);
    let request = b"GET /v1/models HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n";
    let answer = tokio::task::spawn_blocking(move || exchange(&tcp, request)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(generated.decided("shadow", "not_http").await, 1);
}

/// A scrape through the mesh, on a port that the policy covers or leaves out.
#[tokio::test(flavor = "multi_thread")]
async fn excluded_port_is_scraped_without_a_key_and_others_are_not() {
    let exclusion = "- not_rule: {or_rules: {rules: [{destination_port: 9192}]}}";
    let covered = "- not_rule: {or_rules: {rules: [{destination_port: 1}]}}";
    for (edits, status) in [(IN_THE_POD, 200), (&[(exclusion, covered)], 401)] {
        let generated = Generated::start(ISTIO, edits, &[], &[]).await;
        let url = format!("http://127.0.0.1:{}/metrics", generated.ports[1]);
        assert_eq!(Client::new().get(url).send().await.unwrap().status(), status);
        assert_eq!(generated.gateway.get("/metrics").send().await.unwrap().status(), 401);
    }
}

/// A redirect to the plain path is not followed past the check.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_gateways_redirect_of_an_escaped_path_is_checked_as_well() {
    let generated = Generated::start(ENVOY_GATEWAY, &[], &[], &[]).await;
    let client = Client::builder().redirect(Policy::none()).build().unwrap();
    let url = format!("{}/healthz%2f..%2fv1/models", generated.gateway.url);
    let answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 307);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(generated.raw(&location, None).await.0, 401, "{location}");
}
