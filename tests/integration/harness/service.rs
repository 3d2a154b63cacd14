//! `keystile serve`, as a process with a database of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{keystile, process::free_port, until};

/// A running `keystile serve`, with its command line at hand.
pub struct Keystile {
    pub process: Process,
    pub setup: Setup,
}

/// A process of ours, killed when it is dropped.
pub struct Process(pub Child);

/// Where a Keystile runs, before it does.
pub struct Setup {
    folder: TempDir,
    pub database_url: String,
    pub admin: SocketAddr,
    pub tcp: SocketAddr,
}

/// A key that the command line made.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: i64,
    pub credential: String,
}

impl Setup {
    /// SQLite in a scratch folder.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database_url = format!("sqlite:{}", folder.path().join("keystile.db").display());
        Self::at(folder, database_url)
    }

    /// A database that is there already.
    pub fn with_database(database_url: &str) -> Self {
        Self::at(tempfile::tempdir().unwrap(), database_url.to_owned())
    }

    fn at(folder: TempDir, database_url: String) -> Self {
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { folder, database_url, admin: address(free_port()), tcp: address(free_port()) }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("keystile.sock")
    }

    /// Runs a script in its SQLite file, past Keystile.
    pub fn execute(&self, sql: &str) {
        rusqlite::Connection::open(self.path("keystile.db")).unwrap().execute_batch(sql).unwrap();
    }

    /// The number that a query finds in its SQLite file, past Keystile.
    pub fn value(&self, sql: &str) -> String {
        let connection = rusqlite::Connection::open(self.path("keystile.db")).unwrap();
        connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().to_string()
    }

    /// `keystile ARGUMENTS`, with this setup's database and nothing else of the environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = keystile::command(arguments, &self.database_url);
        command.current_dir(self.folder.path());
        command
    }

    /// Runs a command to its end. It has time, since the machine may be busy.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).env("KEYSTILE_DATABASE_TIMEOUT", "5s").stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command that must succeed, for its JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        keystile::keystile(&[arguments, &["--output", "json"]].concat(), &self.database_url, "").json()
    }

    pub fn create_user(&self, name: &str) {
        self.json(&["users", "create", "--email", &format!("{name}@example.com"), "--username", name]);
    }

    /// Makes a key for a user that exists.
    pub fn create_key(&self, user: &str, options: &[&str]) -> Key {
        let user = format!("{user}@example.com");
        let key = self.json(&[&["keys", "create", "--user", &user, "--name", "test"], options].concat());
        Key { id: key["id"].as_i64().unwrap(), credential: key["credential"].as_str().unwrap().to_owned() }
    }

    /// `keystile serve`, not started yet, with further settings.
    pub fn serve(&self, settings: &[(&str, &str)]) -> Command {
        let mut command = self.command(&["serve"]);
        command
            .env("KEYSTILE_LISTEN", format!("unix:{},{}", self.socket().display(), self.tcp))
            .env("KEYSTILE_ADMIN_LISTEN", self.admin.to_string())
            .envs(settings.iter().copied());
        command
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self, settings: &[(&str, &str)]) -> Keystile {
        let keystile = self.start_unready(settings);
        until("Keystile is ready", Duration::from_secs(20), async || keystile.setup.readyz().await.0 == 200)
            .await;
        keystile
    }

    /// Starts it and waits for nothing.
    pub fn start_unready(self, settings: &[(&str, &str)]) -> Keystile {
        let log = std::fs::File::create(self.path("keystile.log")).unwrap();
        let mut command = self.serve(settings);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Keystile { process: Process(child), setup: self }
    }

    /// Status and body of `/readyz`; status 0 while nobody listens.
    pub async fn readyz(&self) -> (u16, Value) {
        match reqwest::get(format!("http://{}/readyz", self.admin)).await {
            Ok(answer) => (answer.status().as_u16(), answer.json().await.unwrap_or_default()),
            Err(_) => (0, Value::Null),
        }
    }

    /// What `/metrics` says now.
    pub async fn metrics(&self) -> String {
        reqwest::get(format!("http://{}/metrics", self.admin)).await.unwrap().text().await.unwrap()
    }

    /// What `/stats` says now.
    pub async fn stats(&self) -> Value {
        reqwest::get(format!("http://{}/stats", self.admin)).await.unwrap().json().await.unwrap()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("keystile.log")).unwrap_or_default()
    }
}

impl Process {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// The exit status, if it ends in time by itself.
    pub fn wait(&mut self, at_most: Duration) -> Option<i32> {
        let deadline = Instant::now() + at_most;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
