//! Postgres servers of one test's own: stopped, copied, promoted and made read-only.

use std::{net::SocketAddr, path::Path, sync::OnceLock, time::Duration};

use tempfile::TempDir;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{
    postgres::{hand_over, postgres_program},
    process::{Guarded, free_port, run, scratch},
    until,
};

/// A server and its files, which outlive it.
pub struct Server {
    port: u16,
    folder: TempDir,
    settings: Vec<String>,
    guarded: Option<Guarded>,
}

impl Server {
    /// An empty one, with further settings.
    pub async fn start(settings: &[&str]) -> Self {
        static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
        let template = TEMPLATE.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let (user, data) = (hand_over(folder.path()), folder.path().join("data").display().to_string());
            let initdb = postgres_program("initdb");
            let initdb = [&initdb, "-D", &data, "-U", "keystile", "-A", "trust", "-E", "UTF8", "--no-sync"];
            run(&[&user[..], &initdb].concat());
            folder
        });
        let mut server = Self::copy_of(template.path(), settings);
        server.resume().await;
        server
    }

    fn copy_of(folder: &Path, settings: &[&str]) -> Self {
        let copy = tempfile::tempdir().unwrap();
        let path = |path: &Path| path.display().to_string();
        run(&["cp", "-a", &path(&folder.join("data")), &path(copy.path())]);
        hand_over(copy.path());
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        Self { port: free_port(), folder: copy, settings, guarded: None }
    }

    /// A standby that follows it. It is stopped for a moment.
    pub async fn standby(&mut self) -> Self {
        self.stop();
        let follows = format!("primary_conninfo=host=127.0.0.1 port={} user=keystile", self.port);
        let settings: Vec<_> = self.settings.iter().map(String::as_str).chain([follows.as_str()]).collect();
        let mut standby = Self::copy_of(self.folder.path(), &settings);
        std::fs::write(standby.folder.path().join("data/standby.signal"), "").unwrap();
        hand_over(standby.folder.path());
        self.resume().await;
        standby.resume().await;
        standby
    }

    /// Ends it as an operator does.
    pub fn stop(&mut self) {
        self.guarded = None;
    }

    /// Starts it again.
    pub async fn resume(&mut self) {
        let user = hand_over(self.folder.path());
        let (postgres, data) =
            (postgres_program("postgres"), self.folder.path().join("data").display().to_string());
        let own = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".into(),
            format!("unix_socket_directories={}", self.folder.path().display()),
            "fsync=off".into(),
            "wal_receiver_status_interval=1".into(),
        ];
        let settings = own.iter().chain(&self.settings).flat_map(|setting| ["-c", setting]);
        let command = [&user[..], &[&postgres, "-D", &data]].concat();
        let command: Vec<_> = command.into_iter().chain(settings).collect();
        let log = scratch("postgres");
        hand_over(&log);
        let guarded = Guarded::spawn(log, "INT", &command);
        guarded.wait_for_port(self.port);
        self.guarded = Some(guarded);
        let url = self.url();
        until("it answers", Duration::from_secs(20), async || {
            tokio_postgres::connect(&url, NoTls).await.is_ok()
        })
        .await;
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// The folder of its Unix socket.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How it alone is reached.
    pub fn url(&self) -> String {
        url(&[self.address()], "sslmode=disable")
    }

    /// The first value of the answer.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        let rows = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
        rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    /// Makes it a primary.
    pub async fn promote(&self) {
        self.value("SELECT pg_promote()").await;
    }

    /// Has it take no writes, also on connections that live.
    pub async fn set_read_only(&self, is_read_only: bool) {
        self.value(&format!("ALTER SYSTEM SET default_transaction_read_only = {is_read_only}")).await;
        self.value("SELECT pg_reload_conf()").await;
    }

    /// Whether it tells its connections that it became read-only or was promoted: from version 14 on.
    pub async fn reports_its_role(&self) -> bool {
        let version = self.value("SHOW server_version_num").await.unwrap();
        version.as_str() >= "140000"
    }

    /// How many connections it has of this name.
    pub async fn connections(&self, application: &str) -> usize {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{application}'");
        self.value(&sql).await.unwrap().parse().unwrap()
    }
}

/// A URL that names several servers.
pub fn url(addresses: &[SocketAddr], parameters: &str) -> String {
    let hosts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!("postgres://keystile@{}/postgres?{parameters}", hosts.join(","))
}
