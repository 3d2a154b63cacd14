//! Limits through real Envoys: who is let through, and what upstream and client are told.

use std::{collections::BTreeMap, time::Duration};

use keystile::clock::Timestamps;
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::harness::{
    envoy::{Gateway, VERSIONS},
    limits::seconds_left,
    redis::Redis,
    service::{Key, Setup},
    upstream::Seen,
};

const LOCAL: (&str, &str) = ("KEYSTILE_RATE_LIMIT", "local");

fn setup(options: &[&str]) -> (Setup, Key) {
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", options);
    (setup, key)
}

async fn get(gateway: &Gateway, path: &str, key: &Key) -> Response {
    gateway.get(path).header("x-api-key", &key.credential).send().await.unwrap()
}

fn header(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_and_client_are_told_what_is_left_and_when_to_come_back() {
    for version in VERSIONS {
        let (setup, key) = setup(&["--rate-limit-per-minute", "2", "--rate-limit-per-day", "1000"]);
        let settings = [LOCAL, ("KEYSTILE_RATE_LIMIT_FIELDS", "draft-10")];
        let gateway = Gateway::start(version, "uds.yaml", setup, &settings).await;
        seconds_left(10).await;
        for remaining in ["1", "0"] {
            let answer = get(&gateway, "/v1", &key).await;
            assert_eq!(answer.status(), 200, "Envoy {version}");
            let day = if remaining == "1" { "999" } else { "998" };
            for (name, value) in [
                ("x-ratelimit-limit-minute", "2"),
                ("x-ratelimit-remaining-minute", remaining),
                ("x-ratelimit-limit-day", "1000"),
                ("x-ratelimit-remaining-day", day),
                ("ratelimit-policy", r#""minute";q=2;w=60, "day";q=1000;w=86400"#),
            ] {
                assert_eq!(header(&answer, name).as_deref(), Some(value), "Envoy {version}: {name}");
            }
            let reset: u64 = header(&answer, "x-ratelimit-reset-minute").unwrap().parse().unwrap();
            assert!((1..=60).contains(&reset));
            let now = header(&answer, "ratelimit").unwrap();
            assert!(now.starts_with(&format!("\"minute\";r={remaining};t=")), "{now}");
            assert!(header(&answer, "x-ratelimit-limit-hour").is_none());
            let seen: Seen = answer.json().await.unwrap();
            assert_eq!(seen.headers["x-ratelimit-remaining-minute"], remaining, "Envoy {version}");
            assert_eq!(seen.headers["x-ratelimit-remaining-day"], day, "Envoy {version}");
            assert!(seen.headers.contains_key("x-ratelimit-reset-minute"));
            assert!(!seen.headers.contains_key("x-ratelimit-remaining-hour"));
        }
        let denied = get(&gateway, "/v1", &key).await;
        assert_eq!(denied.status(), 429, "Envoy {version}");
        let reset = header(&denied, "x-ratelimit-reset-minute");
        assert_eq!(header(&denied, "retry-after"), reset);
        assert_eq!(header(&denied, "x-ratelimit-remaining-minute").as_deref(), Some("0"));
        assert_eq!(header(&denied, "x-ratelimit-remaining-day").as_deref(), Some("998"), "charged nothing");
        let body: Value = denied.json().await.unwrap();
        assert_eq!((&body["code"], &body["title"]), (&"rate_limited".into(), &"Too Many Requests".into()));
        // And then it does come back.
        if version == VERSIONS[1] {
            let wait = reset.unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_secs(wait)).await;
            assert_eq!(get(&gateway, "/v1", &key).await.status(), 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_is_denied_is_charged_nothing_whatever_the_reason() {
    let (setup, key) = setup(&["--rate-limit-per-day", "10", "--scope", "chat"]);
    let gateway = Gateway::start(VERSIONS[1], "routes.yaml", setup, &[LOCAL]).await;
    let limits = ["--rate-limit-per-day", "10", "--allowed-endpoint", "/v1"];
    let other = gateway.keystile.setup.create_key("ada", &limits);
    let left =
        async |key: &Key| header(&get(&gateway, "/v1", key).await, "x-ratelimit-remaining-day").unwrap();
    assert_eq!((left(&key).await, left(&other).await), ("9".to_owned(), "9".to_owned()));
    let credential = format!("{}x", &key.credential[..key.credential.len() - 1]);
    let wrong = Key { credential, ..key.clone() };
    for _ in 0..3 {
        assert_eq!(get(&gateway, "/admin", &key).await.status(), 403);
        assert_eq!(get(&gateway, "/v1", &wrong).await.status(), 401);
        // A denial that is reported only is one, too.
        let shadowed: Seen = get(&gateway, "/beta", &other).await.json().await.unwrap();
        assert_eq!(shadowed.headers["x-auth-result"], "endpoint_not_allowed");
    }
    assert_eq!((left(&key).await, left(&other).await), ("8".to_owned(), "8".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn route_may_cost_more_and_shadow_mode_lets_through_what_is_over_the_limit() {
    let (setup, key) = setup(&["--rate-limit-per-day", "22"]);
    let gateway = Gateway::start(VERSIONS[1], "routes.yaml", setup, &[LOCAL]).await;
    let charge = async |path: &str| {
        let answer = get(&gateway, path, &key).await;
        let left = header(&answer, "x-ratelimit-remaining-day").unwrap();
        (answer.status().as_u16(), left.parse::<u64>().unwrap())
    };
    assert_eq!(charge("/v1/images").await, (200, 12));
    assert_eq!(charge("/v1/images").await, (200, 2));
    assert_eq!(charge("/v1/images").await, (429, 2));
    assert_eq!(charge("/v1").await, (200, 1));
    assert_eq!(charge("/beta").await, (200, 0));
    let over = get(&gateway, "/beta", &key).await;
    let seen: Seen = over.json().await.unwrap();
    assert_eq!(seen.headers["x-auth-result"], "rate_limited");
    assert_eq!(charge("/v1").await, (429, 0));
    assert!(
        gateway.keystile.setup.metrics().await.contains("keystile_rate_limit_total{result=\"limited\"} 3")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_where_nothing_is_counted() {
    let (setup, key) = setup(&["--rate-limit-per-minute", "2"]);
    let gateway = Gateway::start(VERSIONS[1], "uds.yaml", setup, &[]).await;
    for _ in 0..5 {
        let answer = get(&gateway, "/v1", &key).await;
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().keys().any(|name| name.as_str().contains("ratelimit")));
    }
}

/// Three Envoys, each with an instance, one Redis and one database.
async fn three(redis: &Redis, charge: &str, limit: &str) -> (Vec<Gateway>, Key) {
    let (first, key) = setup(&["--rate-limit-per-minute", limit]);
    let url = first.database_url.clone();
    let others = [Setup::with_database(&url), Setup::with_database(&url)];
    let mut gateways = Vec::new();
    for setup in [first].into_iter().chain(others) {
        let url = redis.url();
        let settings = [
            ("KEYSTILE_RATE_LIMIT", "redis"),
            ("KEYSTILE_RATE_LIMIT_CHARGE", charge),
            ("KEYSTILE_REDIS_URL", &url),
            // Three Envoys, three instances and a thousand clients share this machine's cores.
            ("KEYSTILE_REDIS_TIMEOUT", "10s"),
            ("KEYSTILE_DATABASE_TIMEOUT", "10s"),
            ("KEYSTILE_TIMEOUT", "30s"),
        ];
        let patient = [("timeout: 2s", "timeout: 30s"), ("max_interval: 2s", "max_interval: 30s")];
        let keystile = setup.start(&settings).await;
        gateways.push(Gateway::before(VERSIONS[1], "uds.yaml", keystile, &patient).await);
    }
    (gateways, key)
}

/// The statuses of a thousand requests, as many at the same time as the machine has clients for.
async fn thousand(gateways: &[Gateway], key: &Key) -> Vec<(u16, Option<String>, String)> {
    let clients: Vec<_> = gateways.iter().map(|_| Client::new()).collect();
    let mut requests = JoinSet::new();
    for number in 0..1_000 {
        let at = number % gateways.len();
        let request =
            clients[at].get(format!("{}/v1", gateways[at].url)).header("x-api-key", &key.credential);
        requests.spawn(async move {
            let answer = request.send().await.unwrap();
            let (status, retry_after) = (answer.status().as_u16(), header(&answer, "retry-after"));
            (status, retry_after, answer.text().await.unwrap_or_default())
        });
    }
    requests.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_a_hundred_of_a_thousand_pass_three_envoys() {
    for charge in ["exact", "leased"] {
        let redis = Redis::start();
        let (gateways, key) = three(&redis, charge, "100").await;
        seconds_left(20).await;
        let started = Timestamps::now().wall;
        let answers = thousand(&gateways, &key).await;
        let ended = Timestamps::now().wall;
        assert_eq!(
            started.minute(),
            ended.minute(),
            "the machine was too slow for this test: {started} {ended}"
        );
        let mut statuses = BTreeMap::new();
        for (status, ..) in &answers {
            *statuses.entry(*status).or_insert(0) += 1;
        }
        let others: Vec<_> = answers.iter().filter(|answer| ![200, 429].contains(&answer.0)).collect();
        assert_eq!(
            statuses,
            BTreeMap::from([(200, 100), (429, 900)]),
            "{charge}, {started}, {ended}: {others:?}"
        );
        assert_eq!(
            gateways.iter().map(|gateway| gateway.upstream.requests()).sum::<usize>(),
            100,
            "{charge}"
        );
        for wait in answers.iter().filter(|answer| answer.0 == 429).map(|answer| answer.1.as_ref()) {
            let wait: u64 = wait.expect("says when").parse().unwrap();
            assert!((1..=60).contains(&wait));
        }
    }
}
