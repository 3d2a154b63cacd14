//! What the system tells others about a process of Keystile.

use std::process::Command;

use super::*;

/// A user without rights.
const NOBODY: u32 = 65534;

#[tokio::test(flavor = "multi_thread")]
async fn process_leaves_no_core_dump() {
    let Keystile { setup: _setup, process } = Setup::new().start(&[]).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.0.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let words: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(words, ["0", "0"], "{core}");
}

/// Without this attribute, a process of the same user could read memory and environment, and dump a core.
#[tokio::test(flavor = "multi_thread")]
async fn other_processes_of_its_user_read_neither_memory_nor_environment() {
    let setup = Setup::new();
    let folder = setup.path(".");
    let as_nobody = |command: &mut Command| {
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
    };
    // Where the binary was built, this user may have no rights.
    let binary = folder.join("keystile");
    std::fs::copy(env!("CARGO_BIN_EXE_keystile"), &binary).unwrap();
    let mut open = Command::new("chmod");
    assert!(open.args(["-R", "a+rwX", folder.to_str().unwrap()]).status().unwrap().success());
    let mut serve = Command::new(&binary);
    serve
        .arg("serve")
        .env_clear()
        .envs(setup.serve(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))));
    serve.current_dir(&folder).env("KEYSTILE_LISTEN", setup.tcp.to_string());
    as_nobody(&mut serve);
    let process = crate::harness::service::Process(serve.spawn().unwrap());
    until("it is ready", Duration::from_secs(20), async || setup.readyz().await.0 == 200).await;
    let pid = process.0.id();
    let read = |pid: u32, file: &str| {
        let mut dd = Command::new("head");
        dd.args(["-c", "1", &format!("/proc/{pid}/{file}")]);
        as_nobody(&mut dd);
        dd.output().unwrap().status.success()
    };
    let mut other = Command::new("sleep");
    as_nobody(other.arg("60"));
    let other = crate::harness::service::Process(other.spawn().unwrap());
    assert!(read(other.0.id(), "environ"), "another process can be read; otherwise this test shows nothing");
    for file in ["environ", "maps", "mem", "auxv"] {
        assert!(!read(pid, file), "{file} can be read");
    }
    assert!(read(pid, "status"));
    // It still sees itself.
    let metrics = setup.metrics().await;
    let descriptors =
        metrics.lines().find_map(|line| line.strip_prefix("process_open_fds ")).expect("a metric");
    assert!(descriptors.parse::<f64>().unwrap() > 3.0, "{descriptors}");
}
