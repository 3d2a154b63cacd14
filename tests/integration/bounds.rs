//! What a peer can make Keystile hold, and for how long: memory, descriptors, time.

mod bodies;
mod floods;
mod limits;
mod listeners;
mod stop;

use std::time::Duration;

use crate::harness::{
    peer::Peer,
    service::{Key, Keystile, Process, Setup},
    until,
};

/// What section 6 of the performance goals allows for unfinished bodies, the whole process included.
const MIB: u64 = 1024 * 1024;

/// A Keystile on SQLite, with a key that was proven already.
async fn keystile(settings: &[(&str, &str)]) -> (Keystile, Key) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let keystile = setup.start(settings).await;
    let peer = Peer::connect(keystile.setup.tcp).await;
    until("the key is proven", Duration::from_secs(20), async || {
        peer.check(&key.credential).await.expect("answered").status() == 200
    })
    .await;
    (keystile, key)
}

/// The most memory that the process has had, in bytes.
fn peak_memory(process: &Process) -> u64 {
    status_line(process, "VmHWM:") * 1024
}

/// Descriptors that the process has open.
fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.0.id())).unwrap().count()
}

fn status_line(process: &Process, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Time for what was sent to be read.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
