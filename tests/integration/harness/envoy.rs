//! Real Envoy, with a configuration from `envoy/` put on free ports.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder};

use super::{
    process::{Guarded, free_port, scratch},
    service::{Keystile, Setup},
    upstream::Upstream,
};

/// The oldest and the newest Envoy that Keystile is made for.
pub const VERSIONS: [&str; 2] = ["1.36.4", "1.40.0"];

/// Envoy between a client and an upstream, asking Keystile.
pub struct Gateway {
    pub keystile: Keystile,
    envoy: Guarded,
    pub url: String,
    admin: String,
    pub upstream: Upstream,
}

impl Gateway {
    /// Starts Keystile, the upstream and Envoy with `envoy/CONFIG`.
    pub async fn start(version: &str, config: &str, setup: Setup, settings: &[(&str, &str)]) -> Self {
        Self::before(version, config, setup.start(settings).await, &[]).await
    }

    /// Puts Envoy before a Keystile that runs, with further texts of its configuration replaced.
    pub async fn before(version: &str, config: &str, keystile: Keystile, edits: &[(&str, &str)]) -> Self {
        Self::between(version, config, keystile, Upstream::start().await, edits).await
    }

    /// The same, with an upstream of the test's choice.
    pub async fn between(
        version: &str,
        config: &str,
        keystile: Keystile,
        upstream: Upstream,
        edits: &[(&str, &str)],
    ) -> Self {
        Self::spawn(version, config, keystile, upstream, edits, &[]).await
    }

    /// The same, with a socket as Envoy's stdout, as under journald.
    pub async fn with_socket_as_stdout(version: &str, config: &str, keystile: Keystile) -> Self {
        const WRAPPER: &str = "
import signal, socket, subprocess, sys
ours, envoys = socket.socketpair()
envoy = subprocess.Popen(sys.argv[1:], stdout=envoys)
envoys.close()
signal.signal(signal.SIGTERM, lambda *_: envoy.terminate())
while line := ours.recv(65536):
    sys.stdout.buffer.write(line)
    sys.stdout.flush()
sys.exit(envoy.wait())
";
        Self::spawn(version, config, keystile, Upstream::start().await, &[], &["python3", "-c", WRAPPER])
            .await
    }

    async fn spawn(
        version: &str,
        config: &str,
        keystile: Keystile,
        upstream: Upstream,
        edits: &[(&str, &str)],
        wrapper: &[&str],
    ) -> Self {
        let folder = scratch("envoy");
        let (ingress, admin) = (free_port(), free_port());
        let text = std::fs::read_to_string(project().join("envoy").join(config)).unwrap();
        let edited = edits.iter().fold(Substitution(text), |text, (from, to)| text.replace(from, to));
        let text = edited
            .replace("0.0.0.0, port_value: 8080", &format!("127.0.0.1, port_value: {ingress}"))
            .replace("port_value: 9901", &format!("port_value: {admin}"))
            .replace("port_value: 8081", &format!("port_value: {}", upstream.address.port()))
            .replace_if_there("port_value: 9191", &format!("port_value: {}", keystile.setup.tcp.port()))
            .replace_if_there("/run/keystile/keystile.sock", &keystile.setup.socket().display().to_string())
            .0;
        let path = folder.join("envoy.yaml");
        std::fs::write(&path, text).unwrap();
        let binary = binary(version);
        let command = [wrapper, &[&binary, "-c", path.to_str().unwrap()]].concat();
        let options = ["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"];
        let flush = ["--file-flush-interval-msec", "50"];
        let envoy = Guarded::spawn(folder.clone(), "TERM", &[&command[..], &options, &flush].concat());
        let url = |port| format!("http://127.0.0.1:{port}");
        let gateway = Self { keystile, envoy, url: url(ingress), admin: url(admin), upstream };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !gateway.is_ready().await {
            assert!(Instant::now() < deadline, "Envoy does not see Keystile:\n{}", gateway.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        gateway
    }

    /// A request to Envoy; `send` it.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        Client::new().request(method, format!("{}{path}", self.url))
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// A `GET` with this key.
    pub async fn status(&self, credential: &str) -> u16 {
        let answer = self.get("/v1/models").header("x-api-key", credential).send().await.unwrap();
        answer.status().as_u16()
    }

    /// The URL of Envoy's admin listener.
    pub fn admin_url(&self) -> &str {
        &self.admin
    }

    /// Envoy's log and access log so far.
    pub fn log(&self) -> String {
        self.envoy.log()
    }

    /// Ready, and with Keystile past its health check.
    async fn is_ready(&self) -> bool {
        let Ok(answer) = reqwest::get(format!("{}/clusters", self.admin)).await else { return false };
        let clusters = answer.text().await.unwrap_or_default();
        let health =
            clusters.lines().find(|line| line.starts_with("keystile::") && line.contains("health_flags"));
        health.is_some_and(|line| line.ends_with("::healthy"))
    }
}

/// A text in which what is replaced must be there: a renamed port must not go unnoticed.
struct Substitution(String);

impl Substitution {
    fn replace(self, from: &str, to: &str) -> Self {
        assert!(self.0.contains(from), "the configuration has no {from:?}");
        self.replace_if_there(from, to)
    }

    fn replace_if_there(self, from: &str, to: &str) -> Self {
        Self(self.0.replace(from, to))
    }
}

/// The fetched program of a version.
pub fn binary(version: &str) -> String {
    let path = project().join(format!(".tools/envoy-{version}/envoy"));
    assert!(path.exists(), "{} is not there: run tools/fetch-envoy {version}", path.display());
    path.to_str().unwrap().to_owned()
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
