//! The connection to Redis: lost, hung and found again.

use std::time::{Duration, Instant};

use keystile::{metrics::Metrics, redis::Redis as Client};

use crate::harness::{process::free_port, redis::Redis, until};

fn client(url: &str) -> Client {
    let metrics = Metrics::new().unwrap();
    Client::connect(&url.parse().unwrap(), Duration::from_millis(50), &metrics).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_comes_late_is_found() {
    let mut redis = Redis::start();
    redis.kill();
    let client = client(&redis.url());
    client.ping().await.expect_err("nobody there");
    redis.revive();
    until("it is found", Duration::from_secs(2), async || client.ping().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_server_is_noticed_at_once_and_found_again_within_two_seconds() {
    let mut redis = Redis::start();
    let client = client(&redis.url());
    until("it is found", Duration::from_secs(2), async || client.ping().await.is_ok()).await;
    redis.kill();
    for _ in 0..20 {
        let asked = Instant::now();
        client.ping().await.expect_err("killed");
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    }
    redis.revive();
    until("it is found again", Duration::from_secs(2), async || client.ping().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_password_is_told_and_not_shown() {
    let redis = Redis::with(&["requirepass right-secret"]);
    let url = format!("redis://default:wrong-secret@{}", redis.address());
    let error = client(&url).ping().await.expect_err("refused").to_string();
    assert!(!error.contains("wrong-secret"), "{error}");
    let url = format!("redis://default:right-secret@{}", redis.address());
    let client = client(&url);
    until("it is let in", Duration::from_secs(2), async || client.ping().await.is_ok()).await;
    assert!(client.usage().await.unwrap().memory_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn port_without_a_server_is_no_answer() {
    let client = client(&format!("redis://127.0.0.1:{}", free_port()));
    let error = client.ping().await.expect_err("nobody there");
    assert!(!error.to_string().is_empty());
}
