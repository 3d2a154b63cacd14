//! SIGTERM, with peers that would not let go.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{keystile, settle};
use crate::harness::{
    peer::{CHECK, Peer, prefixed},
    service::{Keystile, Setup},
};

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_and_silent_peers_do_not_hold_the_end() {
    let (Keystile { setup, mut process }, _) = keystile(&[("KEYSTILE_TIMEOUT", "30s")]).await;
    let peer = Peer::connect(setup.tcp).await;
    let mut calls = Vec::new();
    for _ in 0..40 {
        calls.push(peer.unfinished(16 * 1024 * 1024, 1000).await.expect("the connection lives"));
    }
    let watch = peer.begin("/grpc.health.v1.Health/Watch", &[]).await;
    let mut watch = watch.expect("the connection lives");
    watch.body.send_data(prefixed(0, &[]), true).expect("sent");
    // One that has said nothing, one that never answers the farewell, and one that waits on the other port.
    let _silent = TcpStream::connect(setup.tcp).await.unwrap();
    let mut rude = TcpStream::connect(setup.tcp).await.unwrap();
    rude.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let _admin = TcpStream::connect(setup.admin).await.unwrap();
    settle().await;
    let asked = Instant::now();
    process.signal(Signal::TERM);
    assert_eq!(process.wait(Duration::from_secs(20)), Some(0), "{}", setup.log());
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    drop((calls, watch));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_under_way_ends_although_others_on_its_connection_never_would() {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &["--cost", "13"]);
    let settings = [("KEYSTILE_TIMEOUT", "30s"), ("KEYSTILE_DRAIN_TIMEOUT", "30s")];
    let Keystile { setup, mut process } = setup.start(&settings).await;
    let peer = Peer::connect(setup.tcp).await;
    let stuck = peer.unfinished(1000, 10).await.expect("the connection lives");
    let slow = tokio::spawn({
        let peer = peer.clone();
        async move { peer.check(&key.credential).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    process.signal(Signal::TERM);
    assert_eq!(slow.await.unwrap().expect("answered").status(), 200);
    assert_eq!(stuck.answer_soon().await.status(), 503);
    assert_eq!(process.wait(Duration::from_secs(20)), Some(0), "{}", setup.log());
}

/// It has been sent in part when the signal comes, and gets the time to be sent whole.
#[tokio::test(flavor = "multi_thread")]
async fn body_that_ends_right_after_the_signal_is_still_checked() {
    let (Keystile { setup, mut process }, key) = keystile(&[]).await;
    let peer = Peer::connect(setup.tcp).await;
    let mut call = peer.begin(CHECK, &[]).await.expect("the connection lives");
    let message = crate::harness::peer::check_request(&key.credential, 1000);
    let whole = prefixed(u32::try_from(message.len()).unwrap(), &message);
    call.body.send_data(whole.slice(..500), false).expect("sent");
    settle().await;
    process.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(200)).await;
    call.body.send_data(whole.slice(500..), true).expect("sent");
    assert_eq!(call.answer_soon().await.status(), 200);
    assert_eq!(process.wait(Duration::from_secs(20)), Some(0), "{}", setup.log());
}
