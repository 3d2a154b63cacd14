//! The places where a secret could appear, read as an outsider would.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::canaries::Evidence;
use crate::harness::{cluster::Cluster, redis::Redis};

/// What was seen so far.
#[derive(Default)]
pub struct Places(Mutex<Vec<Evidence>>);

/// Listens to each command that a Redis gets.
pub struct RedisMonitor(Arc<Mutex<Vec<u8>>>);

impl Places {
    pub fn add(&self, place: impl Into<String>, text: impl Into<String>) {
        self.0.lock().push(Evidence { place: place.into(), text: text.into() });
    }

    pub fn take(&self) -> Vec<Evidence> {
        std::mem::take(&mut self.0.lock())
    }

    /// The arguments and the environment of a process, as root sees them.
    pub fn add_process(&self, name: &str, pid: u32) {
        // A process that has just begun has no arguments yet, and one that has ended has none any more.
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let arguments = std::iter::repeat_with(|| read("cmdline")).take(200).find(|bytes| {
            let is_there = !bytes.is_empty();
            if !is_there {
                std::thread::sleep(Duration::from_millis(1));
            }
            is_there
        });
        for (file, bytes) in [("cmdline", arguments.unwrap_or_default()), ("environ", read("environ"))] {
            self.add(format!("{file} of {name}"), String::from_utf8_lossy(&bytes));
        }
    }

    /// Runs a command to its end. Its stdout is the answer, and is kept only if it must hold no secret.
    pub fn run(&self, mut command: Command, stdin: &str, is_answer: bool) -> (bool, String) {
        let name = format!("{:?}", command.get_args().collect::<Vec<_>>());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        self.add_process(&name, child.id());
        // A command that does not read closes the pipe: no failure.
        let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
        let output = child.wait_with_output().expect("ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.add(format!("stderr of {name}"), text(&output.stderr));
        if !is_answer {
            self.add(format!("stdout of {name}"), text(&output.stdout));
        }
        (output.status.success(), text(&output.stdout))
    }

    /// Status, headers and body of an answer.
    pub async fn add_answer(&self, place: &str, request: reqwest::RequestBuilder) -> u16 {
        let answer = request.send().await.expect("an answer");
        let (status, headers) = (answer.status(), format!("{:?}", answer.headers()));
        self.add(format!("headers of {place}"), headers);
        self.add(format!("body of {place}"), answer.text().await.unwrap_or_default());
        status.as_u16()
    }

    pub fn add_redis(&self, redis: &Redis, monitor: &RedisMonitor) {
        self.add("Redis", redis.dump());
        self.add("MONITOR of Redis", String::from_utf8_lossy(&monitor.0.lock()));
    }

    /// All tables, and what the server says of its sessions and statements.
    pub async fn add_database(&self, cluster: &Cluster) {
        let client = cluster.client().await;
        let tables = "SELECT quote_ident(relname) FROM pg_class WHERE relkind IN ('r', 'p')
            AND relnamespace = 'public'::regnamespace";
        for table in client.query(tables, &[]).await.expect("tables") {
            let table: String = table.get(0);
            let sql = format!("SELECT coalesce(string_agg(t::text, E'\\n'), '') FROM {table} t");
            let rows: String = client.query_one(&sql, &[]).await.expect("rows").get(0);
            self.add(format!("table {table}"), rows);
        }
        let sessions =
            "SELECT string_agg(s::text, E'\\n') FROM pg_stat_activity s WHERE pid <> pg_backend_pid()";
        let sessions: String = client.query_one(sessions, &[]).await.expect("sessions").get(0);
        self.add("pg_stat_activity", sessions);
        self.add("log of Postgres", cluster.log());
    }
}

impl RedisMonitor {
    pub fn start(redis: &Redis) -> Self {
        let mut stream = TcpStream::connect(redis.address()).expect("connects");
        stream.write_all(b"*1\r\n$7\r\nMONITOR\r\n").expect("sends");
        stream.set_read_timeout(Some(Duration::from_secs(120))).expect("a time");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                copy.lock().extend_from_slice(&buffer[..length]);
            }
        });
        Self(seen)
    }
}
