//! The service of `tests/backend`: a FastAPI application with API keys of its own, and Envoy in front of it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    envoy,
    process::{Guarded, free_port, scratch},
    service::Keystile,
    tools::repository,
    until,
};

const PACKAGES: &str = ".tools/backend";

/// A running service.
pub struct PythonService {
    pub port: u16,
    guarded: Guarded,
}

/// Envoy with `envoy/python-service.yaml`, between callers and a service.
pub struct PythonGateway {
    pub url: String,
    guarded: Guarded,
}

/// Environment variables.
pub type Environment = Vec<(String, String)>;

impl PythonService {
    pub async fn start(environment: &Environment) -> Self {
        let port = free_port();
        let program = repository("tests/backend/app.py").display().to_string();
        let variables: Vec<_> = python_environment()
            .iter()
            .chain(environment)
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut command = vec!["env"];
        command.extend(variables.iter().map(String::as_str));
        let port_argument = port.to_string();
        command.extend(["python3", &program, &port_argument]);
        let service = Self { port, guarded: Guarded::spawn(scratch("python"), "TERM", &command) };
        let url = format!("{}/statistics", service.url());
        until("the service answers", Duration::from_secs(30), async || reqwest::get(&url).await.is_ok())
            .await;
        service
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.guarded.log()
    }
}

impl PythonGateway {
    pub async fn start(version: &str, keystile: &Keystile, service: &PythonService) -> Self {
        let folder = scratch("envoy");
        let (ingress, admin) = (free_port(), free_port());
        let mut text = std::fs::read_to_string(repository("envoy/python-service.yaml")).unwrap();
        for (from, to) in [
            ("0.0.0.0, port_value: 8080", format!("127.0.0.1, port_value: {ingress}")),
            ("port_value: 9901", format!("port_value: {admin}")),
            ("port_value: 8081", format!("port_value: {}", service.port)),
            ("/run/keystile/keystile.sock", keystile.setup.socket().display().to_string()),
            // A busy machine takes longer for bcrypt.
            ("timeout: 2s", "timeout: 10s".to_owned()),
            ("max_interval: 2s", "max_interval: 10s".to_owned()),
        ] {
            assert!(text.contains(from), "the configuration has no {from:?}");
            text = text.replace(from, &to);
        }
        let path = folder.join("envoy.yaml");
        std::fs::write(&path, text).unwrap();
        let binary = envoy::binary(version);
        let command = [&binary, "-c", path.to_str().unwrap(), "--use-dynamic-base-id", "--concurrency", "2"];
        let options = ["--log-level", "warning", "--file-flush-interval-msec", "50"];
        let guarded = Guarded::spawn(folder, "TERM", &[&command[..], &options].concat());
        let url = format!("http://127.0.0.1:{ingress}");
        let gateway = Self { url, guarded };
        // 503 until Keystile has passed its health check. The answer is read to its end: Envoy logs a connection that is
        // closed before as such.
        let probe = format!("{}/api/v1/news", gateway.url);
        until("Envoy sees Keystile", Duration::from_secs(30), async || {
            let Ok(answer) = reqwest::get(&probe).await else { return false };
            answer.status() == 200 && answer.bytes().await.is_ok()
        })
        .await;
        gateway
    }

    /// Envoy's log and access log so far.
    pub fn log(&self) -> String {
        self.guarded.log()
    }
}

/// Runs a program of `tests/backend` to its end; whether it succeeded, and its output.
pub fn run(program: &str, arguments: &[&str], environment: &Environment, folder: &Path) -> (bool, String) {
    let output = Command::new("python3")
        .arg(repository("tests/backend").join(program))
        .args(arguments)
        .envs(python_environment())
        .envs(environment.iter().cloned())
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

fn python_environment() -> Environment {
    let packages: PathBuf = repository(PACKAGES);
    assert!(packages.exists(), "{} is not there: run tools/fetch-backend", packages.display());
    [("PYTHONPATH", packages.to_str().unwrap()), ("PYTHONDONTWRITEBYTECODE", "1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}
