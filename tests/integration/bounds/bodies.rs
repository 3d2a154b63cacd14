//! Bodies that do not end, and messages that are too large.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{MIB, keystile, peak_memory, settle};
use crate::harness::{peer::Peer, service::Keystile};

/// The largest message that is read.
const LARGEST: u32 = 16 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn forty_unfinished_bodies_on_one_connection_stay_under_128_mib() {
    let (Keystile { setup, process }, key) = keystile(&[("KEYSTILE_TIMEOUT", "30s")]).await;
    let peer = Peer::connect(setup.tcp).await;
    let begun = join_all((0..40).map(|_| peer.unfinished(LARGEST, LARGEST as usize - 1))).await;
    let calls: Vec<_> = begun.into_iter().map(|call| call.expect("the connection lives")).collect();
    settle().await;
    assert!(peak_memory(&process) < 128 * MIB, "{} MiB", peak_memory(&process) / MIB);
    // The connection may be the one that Envoy has for everybody.
    let good = tokio::time::timeout(Duration::from_secs(5), peer.check(&key.credential)).await;
    assert_eq!(good.expect("in time").expect("answered").status(), 200);
    let large = peer.check_with_body(&key.credential, 1024 * 1024).await;
    assert_eq!(large.expect("answered").status(), 200);
    // Most had to make room, by a denial that no failure mode lets through.
    for call in calls.into_iter().take(30) {
        let answer = call.answer_soon().await;
        assert_eq!((answer.grpc_status.as_str(), answer.status()), ("0", 503));
        assert_eq!(answer.code().as_deref(), Some("overloaded"));
    }
    let metrics = setup.metrics().await;
    assert!(metrics.contains("keystile_messages_refused_total{reason=\"no_room\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_thousand_unfinished_bodies_stay_under_128_mib() {
    let (Keystile { setup, process }, key) = keystile(&[("KEYSTILE_TIMEOUT", "30s")]).await;
    let peers = join_all((0..100).map(|_| Peer::connect(setup.tcp))).await;
    let calls = peers.iter().flat_map(|peer| {
        (0..40).map(|_| async {
            // One that has to make room while it is sent ends early.
            let call = peer.unfinished(LARGEST, 256 * 1024).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(call);
        })
    });
    let good = async {
        let peer = Peer::connect(setup.tcp).await;
        for round in 0..20 {
            let body = if round % 2 == 0 { 0 } else { 100 * 1024 };
            let answer = peer.check_with_body(&key.credential, body).await.expect("answered");
            assert_eq!(answer.status(), 200, "round {round}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(join_all(calls), good);
    assert!(peak_memory(&process) < 128 * MIB, "{} MiB", peak_memory(&process) / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn message_is_refused_as_soon_as_its_length_shows_that_it_is_too_large() {
    let (Keystile { setup, process: _process }, key) = keystile(&[("KEYSTILE_ON_FAILURE", "defer")]).await;
    let peer = Peer::connect(setup.tcp).await;
    for announced in [LARGEST + 1, u32::MAX] {
        let call = peer.unfinished(announced, 10).await.expect("the connection lives");
        let answer = call.answer_soon().await;
        assert_eq!((answer.grpc_status.as_str(), answer.status()), ("0", 400));
        assert_eq!(answer.code().as_deref(), Some("malformed_request"));
    }
    assert_eq!(peer.check(&key.credential).await.expect("answered").status(), 200);
}

/// More than a thousand of them: a connection on which streams were reset that often is closed by HTTP/2 libraries.
#[tokio::test(flavor = "multi_thread")]
async fn connection_outlives_any_number_of_messages_that_are_too_large() {
    let (Keystile { setup, process: _process }, key) = keystile(&[]).await;
    let peer = Peer::connect(setup.tcp).await;
    for _ in 0..60 {
        join_all((0..50).map(|_| async {
            let mut call = peer.unfinished(LARGEST + 1, 0).await.expect("the connection lives");
            // What was on its way when the answer came.
            for _ in 0..20 {
                drop(call.body.send_data(vec![7; 1000].into(), false));
            }
            assert_eq!(call.answer_soon().await.status(), 400);
        }))
        .await;
    }
    assert_eq!(peer.check(&key.credential).await.expect("answered").status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_does_not_end_is_denied_at_the_deadline_of_its_check() {
    let settings = [("KEYSTILE_TIMEOUT", "500ms"), ("KEYSTILE_ON_FAILURE", "defer")];
    let (Keystile { setup, process: _process }, _) = keystile(&settings).await;
    let peer = Peer::connect(setup.tcp).await;
    let begun = Instant::now();
    for (announced, sent) in [(100, 0), (100, 50), (LARGEST, 100_000)] {
        let call = peer.unfinished(announced, sent).await.expect("the connection lives");
        let answer = call.answer_soon().await;
        assert_eq!((answer.grpc_status.as_str(), answer.status()), ("0", 503), "{announced} {sent}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_comes_byte_by_byte_is_denied_at_the_deadline_of_its_check() {
    let (Keystile { setup, process: _process }, _) = keystile(&[("KEYSTILE_TIMEOUT", "1s")]).await;
    let peer = Peer::connect(setup.tcp).await;
    let mut call = peer.unfinished(1000, 0).await.expect("the connection lives");
    let drip = tokio::spawn(async move {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if call.send(1).await.is_err() {
                break;
            }
        }
    });
    let peer = Peer::connect(setup.tcp).await;
    let call = peer.unfinished(1000, 1).await.expect("the connection lives");
    assert_eq!(call.answer_soon().await.code().as_deref(), Some("overloaded"));
    drip.abort();
}
