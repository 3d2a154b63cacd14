//! Real parts for tests: started once per process or once per test, gone when it ends.

use std::time::{Duration, Instant};

pub mod authority;
pub mod client;
pub mod cluster;
pub mod envoy;
pub mod failover;
pub mod fleet;
pub mod keystile;
pub mod limits;
pub mod management;
pub mod names;
pub mod peer;
pub mod place;
pub mod postgres;
pub mod process;
pub mod promise;
pub mod provider;
pub mod proxy;
pub mod python;
pub mod ratelimit;
pub mod redis;
pub mod service;
pub mod tls;
pub mod tools;
pub mod upstream;

/// Waits until something holds, and fails the test if it takes longer than that.
pub async fn until(what: &str, at_most: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + at_most;
    while !holds().await {
        assert!(Instant::now() < deadline, "not within {at_most:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
