//! Postgres clusters of one test's own: stopped, copied, promoted, restored and dumped as operators do it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::{
    postgres::postgres_program as tool,
    process::{Guarded, free_port, run, scratch},
};

/// A server with a data folder of its own.
pub struct Cluster {
    port: u16,
    server: Option<Guarded>,
    data: PathBuf,
    /// Removes the folder at the end of the test process, however it ends.
    home: Guarded,
    root: PathBuf,
}

/// A base backup: what a volume snapshot of the server holds.
pub struct Backup(PathBuf);

/// How a server comes up from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// As from a volume snapshot: crash recovery, on the same timeline.
    Snapshot,
    /// As by a point-in-time recovery, which begins a new timeline.
    PointInTime,
}

impl Cluster {
    /// Makes an empty cluster, and starts it.
    pub fn start() -> Self {
        let mut cluster = Self::unstarted();
        let initdb = tool("initdb");
        let data = text(&cluster.data);
        cluster.run(&[
            &initdb,
            "-D",
            &data,
            "-U",
            "keystile",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--wal-segsize=1",
        ]);
        cluster.revive();
        cluster
    }

    /// A hot standby that streams from this server, as `pg_basebackup` makes it.
    pub fn standby(&self) -> Self {
        let mut standby = Self::unstarted();
        let (program, data, port) = (tool("pg_basebackup"), text(&standby.data), self.port.to_string());
        standby.run(&[
            &program,
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "keystile",
            "-D",
            &data,
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ]);
        // What `-R` writes names options of its own libpq, which an older server does not know.
        let primary = format!("primary_conninfo = 'host=127.0.0.1 port={port} user=keystile'\n");
        append(&standby.data.join("postgresql.auto.conf"), &primary);
        let signal = standby.data.join("standby.signal");
        fs::write(&signal, "").expect("writes");
        if geteuid().is_root() {
            run(&["chown", "postgres:", &text(&signal)]);
        }
        standby.revive();
        standby
    }

    fn unstarted() -> Self {
        let root = scratch("cluster");
        let home = Guarded::spawn(root.clone(), "TERM", &["sleep", "infinity"]);
        if geteuid().is_root() {
            run(&["chown", "postgres:", &text(&root)]);
        }
        Self { port: free_port(), server: None, data: root.join("data"), home, root }
    }

    /// Starts the server on its port, and waits until it takes connections.
    pub fn revive(&mut self) {
        let folder = scratch("postgres");
        let port = self.port.to_string();
        let settings = [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".into(),
            "unix_socket_directories=".into(),
            "fsync=off".into(),
            "full_page_writes=off".into(),
            "max_connections=100".into(),
            "shared_buffers=16MB".into(),
            "wal_level=replica".into(),
            "max_wal_senders=10".into(),
            "wal_keep_size=64MB".into(),
            "max_prepared_transactions=10".into(),
            "wal_retrieve_retry_interval=200ms".into(),
            "timezone=Asia/Tokyo".into(),
        ];
        let settings: Vec<_> = settings.iter().flat_map(|setting| ["-c", setting]).collect();
        let (postgres, data) = (tool("postgres"), text(&self.data));
        let command = [&as_server()[..], &[&postgres, "-D", &data], &settings].concat();
        // At the end of a test nobody needs a clean shutdown.
        let server = Guarded::spawn(folder, "QUIT", &command);
        server.wait_for_port(self.port);
        self.server = Some(server);
        self.wait_until_ready();
    }

    /// The port opens while the server still recovers.
    fn wait_until_ready(&self) {
        let port = self.port.to_string();
        let is_ready = tool("pg_isready");
        let deadline = Instant::now() + Duration::from_secs(60);
        let ready = || {
            let arguments = ["-q", "-h", "127.0.0.1", "-p", &port, "-U", "keystile"];
            std::process::Command::new(&is_ready)
                .args(arguments)
                .status()
                .is_ok_and(|status| status.success())
        };
        while !ready() {
            assert!(Instant::now() < deadline, "not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the server at once, as a crash does. Its data stay.
    pub fn stop(&mut self) {
        self.server = None;
        // The next one would take the file for that of a living server.
        let _ = fs::remove_file(self.data.join("postmaster.pid"));
    }

    /// Lets every process of the server stand still, or go on.
    pub fn freeze(&self, stands_still: bool) {
        let pid = fs::read_to_string(self.data.join("postmaster.pid")).expect("it runs");
        let pid = pid.lines().next().expect("a line").parse().expect("a number");
        signal_family(pid, if stands_still { Signal::STOP } else { Signal::CONT });
    }

    /// A standby receives nothing more from its primary.
    pub async fn stop_receiving(&self) {
        self.value("ALTER SYSTEM SET primary_conninfo = ''").await;
        self.value("SELECT pg_reload_conf()").await;
        let receivers = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        super::until("the standby receives nothing", Duration::from_secs(10), async || {
            self.value(receivers).await.as_deref() == Some("0")
        })
        .await;
    }

    /// A superuser who needs a password. From now on the server logs each statement with its parameters.
    pub async fn create_role_with_password(&self, role: &str, password: &str) {
        self.execute(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{password}'")).await;
        let file = self.data.join("pg_hba.conf");
        let rules = fs::read_to_string(&file).expect("rules");
        fs::write(&file, format!("host all {role} all scram-sha-256\n{rules}")).expect("writes");
        self.value("ALTER SYSTEM SET log_statement = 'all'").await;
        self.value("SELECT pg_reload_conf()").await;
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        self.server.as_ref().map(Guarded::log).unwrap_or_default() + &self.home.log()
    }

    /// A copy of everything, as of now. The server goes on.
    pub fn backup(&self) -> Backup {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let folder = self.root.join(format!("backup-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let (program, data, port) = (tool("pg_basebackup"), text(&folder), self.port.to_string());
        self.run(&[
            &program,
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "keystile",
            "-D",
            &data,
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ]);
        Backup(folder)
    }

    /// Takes the server back to the backup, on the same port. The backup can be used again.
    pub fn restore(&mut self, backup: &Backup, restored: Restored) {
        self.stop();
        let (data, copy) = (text(&self.data), text(&backup.0));
        run(&["rm", "-rf", &data]);
        run(&["cp", "-a", &copy, &data]);
        if restored == Restored::PointInTime {
            let signal = self.data.join("recovery.signal");
            fs::write(&signal, "").expect("writes");
            let settings = "restore_command = 'false'\nrecovery_target_timeline = 'current'\n";
            append(&self.data.join("postgresql.auto.conf"), settings);
            if geteuid().is_root() {
                run(&["chown", "postgres:", &text(&signal)]);
            }
        }
        self.revive();
        if restored == Restored::PointInTime {
            self.wait_for_writes();
        }
    }

    /// A server in recovery answers before it takes writes.
    fn wait_for_writes(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.psql("SELECT pg_is_in_recovery()") != "f" {
            assert!(Instant::now() < deadline, "still in recovery: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn psql(&self, sql: &str) -> String {
        let port = self.port.to_string();
        let arguments = ["-XAt", "-h", "127.0.0.1", "-p", &port, "-U", "keystile", "-c", sql, "postgres"];
        let output = std::process::Command::new(tool("psql")).args(arguments).output().expect("psql starts");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Makes a standby a primary, with what it has received.
    pub async fn promote(&self) {
        assert_eq!(self.value("SELECT pg_promote(true, 30)").await.as_deref(), Some("t"), "{}", self.log());
    }

    /// A standby receives, and shows nothing of it, until [`resume_replay`](Self::resume_replay).
    pub async fn pause_replay(&self) {
        self.execute("SELECT pg_wal_replay_pause()").await;
        // Before 14 a standby says only that a pause was asked for. It looks before each record that it replays.
        let version = self.value("SHOW server_version_num").await.expect("a version");
        let (state, paused) = if version.as_str() < "140000" {
            ("SELECT pg_is_wal_replay_paused()", "t")
        } else {
            ("SELECT pg_get_wal_replay_pause_state()", "paused")
        };
        super::until("replay is paused", Duration::from_secs(10), async || {
            self.value(state).await.as_deref() == Some(paused)
        })
        .await;
    }

    pub async fn resume_replay(&self) {
        self.execute("SELECT pg_wal_replay_resume()").await;
    }

    /// Waits until this standby shows everything that `primary` has committed so far.
    pub async fn catch_up_with(&self, primary: &Self) {
        let position = primary.value("SELECT pg_current_wal_flush_lsn()").await.expect("a position");
        let reached = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
        super::until("the standby has caught up", Duration::from_secs(20), async || {
            self.value(&reached).await.as_deref() == Some("t")
        })
        .await;
    }

    /// Writes a dump of the database, as `pg_dump` makes it.
    pub fn dump(&self) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let file = self.root.join(format!("dump-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        let (program, to, port) = (tool("pg_dump"), text(&file), self.port.to_string());
        let arguments = ["-h", "127.0.0.1", "-p", &port, "-U", "keystile", "-Fc", "-f", &to, "postgres"];
        self.run(&[&[&*program], &arguments[..]].concat());
        file
    }

    /// Loads a dump into the database, in place of what it has of the same names.
    pub fn load(&self, dump: &Path) {
        let (program, from, port) = (tool("pg_restore"), text(dump), self.port.to_string());
        let arguments = ["-h", "127.0.0.1", "-p", &port, "-U", "keystile", "-d", "postgres"];
        // In another cluster's folder, which the server's user may not enter.
        self.run(&[&[&*program], &arguments[..], &["--clean", "--if-exists", "-1", &from]].concat());
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// What Keystile finds it by.
    pub fn url(&self) -> String {
        self.url_as("keystile", "")
    }

    /// The same for another role, with further parameters.
    pub fn url_as(&self, role: &str, parameters: &str) -> String {
        format!("postgres://{role}@{}/postgres?sslmode=disable{parameters}", self.address())
    }

    /// A connection to it.
    pub async fn client(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls)
            .await
            .unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        tokio::spawn(connection);
        client
    }

    /// Runs a script in it.
    pub async fn execute(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
    }

    /// The first column of the first row, as text.
    pub async fn value(&self, sql: &str) -> Option<String> {
        let rows = self.client().await.simple_query(sql).await;
        let rows = rows.unwrap_or_else(|error| panic!("{error:?} in {sql}"));
        rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
            _ => None,
        })?
    }

    /// Runs a command as the server's user.
    fn run(&self, command: &[&str]) {
        run(&[&as_server()[..], command].concat());
    }
}

/// Postgres refuses to run as root.
fn as_server() -> Vec<&'static str> {
    if geteuid().is_root() {
        return vec!["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
    }
    Vec::new()
}

/// Adds to a file, which stays its owner's.
fn append(file: &Path, addition: &str) {
    let before = fs::read_to_string(file).unwrap_or_default();
    fs::write(file, before + addition).expect("writes");
}

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// Sends a signal to a process and its children.
fn signal_family(parent: i32, signal: Signal) {
    let stat = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent_of = |pid: i32| {
        let stat = stat(pid);
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok())
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let children = pids.filter(|pid| parent_of(*pid) == Some(parent));
    for pid in children.chain([parent]).collect::<Vec<_>>() {
        // One that has ended needs no signal.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
    }
}
