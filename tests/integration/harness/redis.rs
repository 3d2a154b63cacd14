//! A real Redis of one test's own: it is filled, flushed, killed and frozen.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
    sync::LazyLock,
};

use super::process::{Guarded, free_port, installed_program, program, scratch};

/// A running server.
pub struct Redis {
    port: u16,
    settings: Vec<String>,
    /// Whether it watches over others, instead of holding anything.
    is_sentinel: bool,
    guarded: Option<Guarded>,
}

impl Redis {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With further settings of `redis.conf`, one a line.
    pub fn with(settings: &[&str]) -> Self {
        Self::of_kind(settings, false)
    }

    /// One that watches over `master`, by the name of `main`.
    pub fn sentinel(master: &Self) -> Self {
        let watch = format!("sentinel monitor main 127.0.0.1 {} 1", master.port);
        // A failover that fails is tried again after twice its time-out.
        let down = "sentinel down-after-milliseconds main 500";
        Self::of_kind(&[&watch, down, "sentinel failover-timeout main 5000"], true)
    }

    fn of_kind(settings: &[&str], is_sentinel: bool) -> Self {
        Self::on(free_port(), settings, is_sentinel)
    }

    fn on(port: u16, settings: &[&str], is_sentinel: bool) -> Self {
        let settings = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let mut redis = Self { port, settings, is_sentinel, guarded: None };
        redis.revive();
        redis
    }

    /// Three that share the slots of a cluster, and know of each other.
    pub fn cluster() -> [Self; 3] {
        let nodes = [(); 3].map(|()| Self::node("127.0.0.1", &[]));
        for (node, slots) in nodes.iter().zip([0..=5460, 5461..=10922, 10923..=16383]) {
            node.own_slots(slots);
            let first = nodes[0].port;
            let (port, bus) = (first.to_string(), bus(first).to_string());
            node.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        wait_until_whole(&nodes);
        nodes
    }

    /// A cluster of one, which tells clients that it is at `address`.
    pub fn cluster_of_one(address: &str, settings: &[&str]) -> Self {
        let node = Self::node(address, settings);
        node.own_slots(0..=16_383);
        wait_until_whole(std::slice::from_ref(&node));
        node
    }

    fn node(address: &str, settings: &[&str]) -> Self {
        let address = format!("cluster-announce-ip {address}");
        Self::on(free_cluster_port(), &[&["cluster-enabled yes", &address], settings].concat(), false)
    }

    /// Redis 6.2 takes no ranges.
    fn own_slots(&self, slots: RangeInclusive<u16>) {
        let slots: Vec<_> = slots.map(|slot| slot.to_string()).collect();
        let slots = slots.iter().map(String::as_str);
        self.command(&["CLUSTER", "ADDSLOTS"].into_iter().chain(slots).collect::<Vec<_>>());
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Makes it a copy of `primary`.
    pub fn follow(&self, primary: &Self) {
        self.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    }

    /// Makes it a primary.
    pub fn promote(&self) {
        self.command(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Stops it half-way: connections are still accepted, and nothing is answered. SIGCONT lets the process go on.
    pub fn freeze(&self) -> rustix::process::Pid {
        let pid = self.command(&["INFO", "server"]);
        let pid = pid.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok());
        let pid = rustix::process::Pid::from_raw(pid.expect("a number")).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stops");
        pid
    }

    /// Ends it, and what it held with it.
    pub fn kill(&mut self) {
        self.guarded = None;
    }

    /// Starts it again, empty, on the same port.
    pub fn revive(&mut self) {
        let folder = scratch("redis");
        let file = folder.join("redis.conf");
        let mut base = vec![
            format!("port {}", self.port),
            "bind 127.0.0.1 -::1".into(),
            format!("dir {}", folder.display()),
        ];
        if !self.is_sentinel {
            base.push("save \"\"".into());
        }
        let settings: Vec<_> = base.iter().chain(&self.settings).map(String::as_str).collect();
        fs::write(&file, settings.join("\n")).expect("writes");
        let mut command = vec![self.program(), file.to_str().expect("UTF-8")];
        command.extend(self.is_sentinel.then_some("--sentinel"));
        let guarded = Guarded::spawn(folder, "TERM", &command);
        guarded.wait_for_port(self.port);
        self.guarded = Some(guarded);
    }

    /// The server. Those that `make compat` fetches are built without TLS: for TLS the machine's own takes their place.
    fn program(&self) -> &'static str {
        static CHOSEN: LazyLock<String> = LazyLock::new(|| program("redis-server", []));
        static INSTALLED: LazyLock<String> = LazyLock::new(|| installed_program("redis-server", []));
        let needs_tls = self.settings.iter().any(|setting| setting.starts_with("tls-port"));
        if needs_tls { &INSTALLED } else { &CHOSEN }
    }

    /// Sends one command, and reads its answer in the protocol's own form.
    pub fn command(&self, words: &[&str]) -> String {
        // A sentinel closes all connections of a server that it promotes.
        self.send(words).or_else(|_| self.send(words)).expect("answers")
    }

    fn send(&self, words: &[&str]) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.address())?;
        let mut text = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| text.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        stream.write_all(text.as_bytes())?;
        reply(&mut BufReader::new(stream))
    }

    /// The keys that match.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.command(&["KEYS", pattern]).lines().map(str::to_owned).collect()
    }

    /// Everything that it holds, as text.
    pub fn dump(&self) -> String {
        let value = |key: String| match self.command(&["TYPE", &key]).as_str() {
            "hash" => self.command(&["HGETALL", &key]),
            "string" => self.command(&["GET", &key]),
            "zset" => self.command(&["ZRANGE", &key, "0", "-1"]),
            other => panic!("{key} is a {other}"),
        };
        self.keys("*").into_iter().map(|key| format!("{key}\n{}\n", value(key.clone()))).collect()
    }
}

/// A port for the clients of a node of a cluster, whose port for other nodes is free as well. Only since 7.0 can that be
/// another than [`bus`].
pub fn free_cluster_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Below those that the system gives to clients.
    let mut ports = std::iter::repeat_with(free_port);
    ports.find(|port| bus(*port) < 32_768 && is_free(bus(*port))).expect("a port")
}

/// The port among the nodes, from that of clients, which is that of TLS with `tls-cluster`.
fn bus(port: u16) -> u16 {
    port + 10_000
}

/// Waits until all slots have a node, and the nodes know of each other.
fn wait_until_whole(nodes: &[Redis]) {
    let known = format!("cluster_known_nodes:{}\r\n", nodes.len());
    let is_whole = |node: &Redis| {
        let info = node.command(&["CLUSTER", "INFO"]);
        info.contains("cluster_state:ok") && info.contains(&known)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !nodes.iter().all(is_whole) {
        assert!(std::time::Instant::now() < deadline, "the cluster does not form");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// One reply; items of a list are lines, and nothing is the empty text.
fn reply(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = line.trim_end().split_at_checked(1).expect("a reply");
    let size = || rest.parse::<i64>().expect("a size");
    Ok(match kind {
        "+" | ":" => rest.to_owned(),
        "-" => panic!("{rest}"),
        "$" if size() < 0 => String::new(),
        "$" => {
            let mut bytes = vec![0; size() as usize + 2];
            reader.read_exact(&mut bytes)?;
            bytes.truncate(bytes.len() - 2);
            String::from_utf8_lossy(&bytes).into_owned()
        }
        "*" => (0..size()).map(|_| reply(reader)).collect::<io::Result<Vec<_>>>()?.join("\n"),
        other => panic!("{other} is no reply"),
    })
}
