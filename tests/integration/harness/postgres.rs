//! One Postgres server, and a schema of its own for each test.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::geteuid;
use tokio_postgres::NoTls;

use super::process::{Guarded, free_port, program, run, scratch};

/// The server.
pub struct Postgres {
    port: u16,
    /// The authority that signed its certificate, which is for `localhost` and `::1`.
    pub authority: PathBuf,
    _guarded: Guarded,
}

/// A schema that only one test uses.
pub struct Schema {
    name: String,
}

/// The server, started by whoever comes first.
pub fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(Postgres::start)
}

impl Postgres {
    fn start() -> Self {
        let folder = scratch("postgres");
        let file = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
        let authority = certificates(&folder);
        let user = hand_over(&folder);
        let (initdb, postgres) = (postgres_program("initdb"), postgres_program("postgres"));
        let data = file("data");
        let initdb =
            [&initdb, "-D", &data, "-U", "keystile", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"];
        run(&[&user[..], &initdb].concat());
        let port = free_port();
        // Settings that change how dates look: nothing may depend on them.
        let settings = [
            format!("port={port}"),
            "listen_addresses=127.0.0.1,::1".into(),
            format!("unix_socket_directories={}", file(".")),
            "fsync=off".into(),
            "max_connections=200".into(),
            "ssl=on".into(),
            format!("ssl_cert_file={}", file("server.pem")),
            format!("ssl_key_file={}", file("server.key")),
            "datestyle=German".into(),
            "timezone=America/New_York".into(),
        ];
        let settings: Vec<_> = settings.iter().flat_map(|setting| ["-c", setting]).collect();
        let command = [&user[..], &[&postgres, "-D", &data], &settings].concat();
        let guarded = Guarded::spawn(folder, "INT", &command);
        guarded.wait_for_port(port);
        let server = Self { port, authority, _guarded: guarded };
        server.wait_until_ready();
        server
    }

    /// The port opens while the server still recovers. Extensions are the whole database's, so they are made here.
    fn wait_until_ready(&self) {
        let url = self.url("127.0.0.1", "");
        let ready = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("builds");
            runtime.block_on(async {
                for _ in 0..500 {
                    if let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await {
                        tokio::spawn(connection);
                        return client.batch_execute("CREATE EXTENSION citext SCHEMA public").await.is_ok();
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                false
            })
        });
        assert!(ready.join().expect("no panic"), "{}", self._guarded.log());
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// A URL with these parameters.
    pub fn url(&self, host: &str, parameters: &str) -> String {
        format!("postgres://keystile@{host}:{}/postgres?{parameters}", self.port)
    }
}

impl Schema {
    /// Makes an empty one.
    pub async fn create() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::SeqCst));
        let schema = Self { name };
        schema.execute(&format!("CREATE SCHEMA {}", schema.name)).await;
        schema
    }

    /// What Keystile is told to find it.
    pub fn url(&self) -> String {
        self.url_with("127.0.0.1", "sslmode=disable")
    }

    /// The same with another host and other parameters.
    pub fn url_with(&self, host: &str, parameters: &str) -> String {
        server().url(host, &format!("options=-c%20search_path%3D{}&{parameters}", self.name))
    }

    /// Runs a script in it.
    pub async fn execute(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    }

    /// The first column of the first row, as text.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let rows = self.client().await.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}"));
        rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection to it.
    pub async fn client(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.expect("connects");
        tokio::spawn(connection);
        client
    }
}

/// Gives a folder to the user that Postgres runs as; what to run it with. Postgres refuses to run as root.
pub fn hand_over(folder: &std::path::Path) -> Vec<&'static str> {
    if !geteuid().is_root() {
        return vec![];
    }
    run(&["chown", "-R", "postgres:", folder.to_str().expect("UTF-8")]);
    vec!["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
}

/// One of Postgres' programs.
pub fn postgres_program(name: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    program(name, versions.map(|version| version.path().join("bin")))
}

/// An authority, and a certificate for `localhost` and `::1` by it: `server.pem`, `server.key`; the authority's own file.
pub fn certificates(folder: &std::path::Path) -> PathBuf {
    let authority = authority();
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned(), "::1".to_owned()]).expect("names");
    let certificate = params.signed_by(&key, &authority).expect("signs");
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        fs::write(&file, text).expect("writes");
        run(&["chmod", "600", file.to_str().expect("UTF-8")]);
        file
    };
    write("server.pem", certificate.pem());
    write("server.key", key.serialize_pem());
    write("authority.pem", authority.pem())
}

/// A certificate authority that nobody knows.
pub fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signs")
}
