//! `keystile management`, as a process, and callers with tokens.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use super::{
    process::free_port,
    service::{Process, Setup},
    until,
};

/// A running `keystile management`.
pub struct Management {
    pub process: Process,
    pub listen: SocketAddr,

    log: std::path::PathBuf,
}

/// Status and body of an answer.
pub type Answered = (u16, Value);

impl Setup {
    /// A token, by `keystile management-tokens create`.
    pub fn create_token(&self, name: &str, options: &[&str]) -> String {
        let arguments = [&["management-tokens", "create", "--name", name], options].concat();
        self.json(&arguments)["token"].as_str().unwrap().to_owned()
    }

    /// `keystile management`, not started yet.
    pub fn management(
        &self,
        listen: SocketAddr,
        admin: SocketAddr,
        settings: &[(&str, &str)],
    ) -> std::process::Command {
        let mut command = self.command(&["management"]);
        command
            .env("KEYSTILE_MANAGEMENT_LISTEN", listen.to_string())
            .env("KEYSTILE_MANAGEMENT_ADMIN_LISTEN", admin.to_string())
            .env("KEYSTILE_DATABASE_TIMEOUT", "5s")
            .envs(settings.iter().copied());
        command
    }
}

impl Management {
    /// Starts it for this database, and waits until it is ready.
    pub async fn start(setup: &Setup, settings: &[(&str, &str)]) -> Self {
        let address = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (listen, admin) = (address(), address());
        let log = setup.path(&format!("management-{}.log", listen.port()));
        let child = setup
            .management(listen, admin, settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let management = Self { process: Process(child), listen, log };
        until("the API is ready", Duration::from_secs(20), async || {
            let answer = reqwest::get(format!("http://{admin}/readyz")).await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        management
    }

    /// A request with this token, or without any.
    pub fn request(&self, token: &str, method: Method, path: &str) -> RequestBuilder {
        let request = reqwest::Client::new().request(method, format!("http://{}{path}", self.listen));
        if token.is_empty() { request } else { request.bearer_auth(token) }
    }

    pub async fn get(&self, token: &str, path: &str) -> Answered {
        answered(self.request(token, Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, token: &str, path: &str, body: &Value) -> Answered {
        answered(self.request(token, Method::POST, path).json(body).send().await.unwrap()).await
    }

    pub async fn patch(&self, token: &str, path: &str, body: &Value) -> Answered {
        let request = self.request(token, Method::PATCH, path).body(body.to_string());
        let request = request.header("content-type", "application/merge-patch+json");
        answered(request.send().await.unwrap()).await
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

pub async fn answered(answer: Response) -> Answered {
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}
