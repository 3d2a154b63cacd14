//! Connections: how many, how long, and who makes room for whom.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{descriptors, keystile};
use crate::harness::{
    peer::Peer,
    service::{Key, Keystile, Process, Setup},
    until,
};

/// Keystile with this many descriptors to its name.
async fn with_descriptors(most: usize) -> (Keystile, Key) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let serve = setup.serve(&[]);
    let log = std::fs::File::create(setup.path("keystile.log")).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n $0 && exec \"$@\"", &most.to_string()])
        .arg(serve.get_program())
        .args(serve.get_args())
        .env_clear()
        .envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(serve.get_current_dir().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let keystile = Keystile { process: Process(command.spawn().unwrap()), setup };
    until("Keystile is ready", Duration::from_secs(20), async || keystile.setup.readyz().await.0 == 200)
        .await;
    (keystile, key)
}

/// Connections on which nothing happens.
async fn idle(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(TcpStream::connect(address).await.unwrap());
    }
    connections
}

/// Waits until the other side closes the connection.
async fn closed(stream: &mut TcpStream, at_most: Duration) -> bool {
    let mut sink = [0; 4096];
    let end = async { while matches!(stream.read(&mut sink).await, Ok(length) if length > 0) {} };
    timeout(at_most, end).await.is_ok()
}

async fn answers(setup: &Setup, key: &Key) {
    let check =
        async { Peer::connect(setup.tcp).await.check(&key.credential).await.expect("answered").status() };
    assert_eq!(timeout(Duration::from_secs(5), check).await.expect("accepted"), 200);
    let ready = timeout(Duration::from_secs(5), setup.readyz()).await.expect("accepted");
    assert_eq!(ready.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_admin_port_starve_neither_port() {
    let (Keystile { setup, process }, key) = with_descriptors(256).await;
    let _idle = idle(setup.admin, 256).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    answers(&setup, &key).await;
    assert!(descriptors(&process) < 200, "{}", descriptors(&process));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_grpc_port_starve_neither_port() {
    let (Keystile { setup, process: _process }, key) = with_descriptors(256).await;
    let _idle = idle(setup.tcp, 300).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    answers(&setup, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_http_2_that_say_nothing_make_room_for_those_that_do() {
    let (Keystile { setup, process: _process }, key) = with_descriptors(256).await;
    let busy = Peer::connect(setup.tcp).await;
    let mut silent = Vec::new();
    for count in 0..400 {
        silent.push(Peer::connect(setup.tcp).await);
        if count % 20 == 0 {
            // It is never taken for one that is idle.
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(busy.check(&key.credential).await.expect("answered").status(), 200, "{count}");
        }
    }
    answers(&setup, &key).await;
    assert_eq!(busy.check(&key.credential).await.expect("answered").status(), 200);
    let metrics = setup.metrics().await;
    assert!(
        metrics.contains("keystile_connections_closed_total{listener=\"grpc\",reason=\"no_room\"}"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_without_a_preface_is_closed() {
    let (Keystile { setup, process: _process }, _) = keystile(&[]).await;
    let mut silent = TcpStream::connect(setup.tcp).await.unwrap();
    let mut slow = TcpStream::connect(setup.tcp).await.unwrap();
    slow.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    let mut other = TcpStream::connect(setup.tcp).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\nhost: keystile\r\n\r\n").await.unwrap();
    assert!(closed(&mut other, Duration::from_secs(1)).await, "another protocol");
    for stream in [&mut silent, &mut slow] {
        assert!(closed(stream, Duration::from_secs(8)).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_connection_without_a_whole_request_is_closed() {
    let (Keystile { setup, process: _process }, _) = keystile(&[]).await;
    let mut silent = TcpStream::connect(setup.admin).await.unwrap();
    let mut slow = TcpStream::connect(setup.admin).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let mut endless = TcpStream::connect(setup.admin).await.unwrap();
    endless
        .write_all(b"POST /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
        .await
        .unwrap();
    for stream in [&mut silent, &mut slow, &mut endless] {
        assert!(closed(stream, Duration::from_secs(12)).await);
    }
}
