//! Servers that end with the test process, however it ends.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

/// Starts the command, waits for its own stdin to close, and then stops the command and removes
/// the folder. The pipe closes when the test process ends, even by SIGKILL. It stops only what it
/// started: a pid that is no longer its child's belongs to somebody else.
const WATCHDOG: &str = r#"
folder=$1 signal=$2
shift 2
"$@" >"$folder/log" 2>&1 </dev/null &
pid=$!
stop() { grep -q "^PPid:[[:space:]]*$$\$" "/proc/$pid/status" && kill -s "$1" "$pid"; }
cat >/dev/null
stop "$signal" 2>/dev/null
(sleep 10; stop KILL) 2>/dev/null &
killer=$!
wait "$pid" 2>/dev/null
kill "$killer" 2>/dev/null
rm -rf "$folder"
"#;

/// A running server and its scratch folder.
pub struct Guarded {
    watchdog: Child,
    folder: PathBuf,
}

impl Guarded {
    /// Starts a command that keeps its things in `folder`, and is asked to stop by `signal`.
    pub fn spawn(folder: PathBuf, signal: &str, command: &[&str]) -> Self {
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&folder)
            .arg(signal)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Apart from ours, so that Ctrl-C stops the tests, and they the server.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        Self { watchdog, folder }
    }

    /// What the server has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Waits until the server takes connections.
    pub fn wait_for_port(&self, port: u16) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "no answer on port {port}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// A folder that a [`Guarded`] server will take with it.
pub fn scratch(name: &str) -> PathBuf {
    tempfile::Builder::new().prefix(&format!("keystile-{name}-")).tempdir().expect("a folder").keep()
}

/// A port that is free, below those that the system gives to clients, and that no other test of
/// this process gets.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random_range(0..COUNT)));
    let ports = std::iter::repeat_with(|| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT);
    let mut free = ports.take(COUNT.into()).filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("a port")
}

/// Runs a command to its end.
pub fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().expect("starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A program in one of the folders of `KEYSTILE_TEST_PROGRAMS`, which chooses the versions of servers (`tools/with-servers`), or
/// the machine's own.
pub fn program(name: &str, folders: impl IntoIterator<Item = PathBuf>) -> String {
    find(name, listed("KEYSTILE_TEST_PROGRAMS")).unwrap_or_else(|| installed_program(name, folders))
}

/// A program in one of these folders, or in PATH.
pub fn installed_program(name: &str, folders: impl IntoIterator<Item = PathBuf>) -> String {
    let found = find(name, folders.into_iter().chain(listed("PATH")));
    found.unwrap_or_else(|| panic!("{name} is not installed"))
}

/// The absolute folders in a variable. An empty text names a relative one, which is left out.
fn listed(variable: &str) -> impl Iterator<Item = PathBuf> {
    let value = std::env::var_os(variable).unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&value).filter(|folder| folder.is_absolute()).collect();
    folders.into_iter()
}

fn find(name: &str, folders: impl IntoIterator<Item = PathBuf>) -> Option<String> {
    let file = folders.into_iter().map(|folder| folder.join(name)).find(|file| file.exists())?;
    Some(file.to_str().expect("UTF-8").to_owned())
}
