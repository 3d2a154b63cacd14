//! Envoy's own rate-limit filters take a key's limits from Keystile's answer.

use serde_json::Value;

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    ratelimit::RateLimits,
    service::Setup,
    until,
};

/// `type.v3.RateLimitUnit`.
const MINUTE: i32 = 2;
const HOUR: i32 = 3;

fn setup() -> Setup {
    let setup = Setup::new();
    setup.create_user("ada");
    setup
}

async fn reason(gateway: &Gateway, key: &str) -> (u16, String) {
    let answer = gateway.get("/v1").header("x-api-key", key).send().await.unwrap();
    let status = answer.status().as_u16();
    let body: Value = answer.json().await.unwrap_or_default();
    (status, body["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limit_service_receives_the_keys_own_limits() {
    for version in VERSIONS {
        let (setup, service) = (setup(), RateLimits::start().await);
        let limits = ["--rate-limit-per-minute", "3", "--rate-limit-per-hour", "42"];
        let key = setup.create_key("ada", &limits);
        let free = setup.create_key("ada", &[]);
        let closed = setup.create_key("ada", &["--allowed-endpoint", "/elsewhere"]);
        let keystile = setup.start(&[]).await;
        let port = format!("port_value: {}", service.address.port());
        let edits = [("port_value: 8091", port.as_str())];
        let gateway = Gateway::before(version, "global-ratelimit.yaml", keystile, &edits).await;

        assert_eq!(gateway.status(&key.credential).await, 200, "Envoy {version}");
        let entries = |per: &str, id: i64| {
            vec![("per".to_owned(), per.to_owned()), ("limit_id".to_owned(), id.to_string())]
        };
        let with = |id, minute, hour| {
            vec![(entries("minute", id), minute), (entries("hour", id), hour), (entries("day", id), None)]
        };
        assert_eq!(service.asked(), [with(key.id, Some((3, MINUTE)), Some((42, HOUR)))], "Envoy {version}");

        // Denied requests are not asked about, and so not counted.
        for _ in 0..5 {
            assert_eq!(reason(&gateway, &closed.credential).await, (403, "endpoint_not_allowed".into()));
            assert_eq!(reason(&gateway, "ks_nobodysKey").await, (401, "invalid_credential".into()));
            assert_eq!(gateway.get("/healthz").send().await.unwrap().status(), 200);
        }
        assert_eq!(service.asked().len(), 1, "Envoy {version}");

        assert_eq!(gateway.status(&free.credential).await, 200);
        assert_eq!(service.asked().last(), Some(&with(free.id, None, None)), "Envoy {version}");
        let more = [gateway.status(&key.credential).await, gateway.status(&key.credential).await];
        assert_eq!((more, gateway.status(&key.credential).await), ([200, 200], 429), "Envoy {version}");
        assert_eq!(gateway.status(&free.credential).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoys_local_filter_keeps_a_bucket_for_each_key() {
    for version in VERSIONS {
        let setup = setup();
        let key = |limit: &[&str]| setup.create_key("ada", limit).credential;
        let [one, other] = [key(&["--rate-limit-per-minute", "60"]), key(&["--rate-limit-per-minute", "60"])];
        let (more, free) = (key(&["--rate-limit-per-minute", "600"]), key(&[]));
        let keystile = setup.start(&[]).await;
        let gateway = Gateway::before(version, "local-ratelimit.yaml", keystile, &[]).await;
        // The bucket refills as it is emptied: wait for the first refusal.
        let mut passed = 0;
        until("the bucket is empty", std::time::Duration::from_secs(20), async || {
            let answer = gateway.get("/v1").header("x-api-key", &one).send().await.unwrap();
            assert!(answer.headers().contains_key("x-ratelimit-remaining"), "Envoy {version}");
            passed += usize::from(answer.status() == 200);
            answer.status() == 429
        })
        .await;
        assert!((60..=75).contains(&passed), "{passed}, Envoy {version}");
        for key in [&other, &more, &free] {
            assert_eq!(gateway.status(key).await, 200, "Envoy {version}");
        }
    }
}
