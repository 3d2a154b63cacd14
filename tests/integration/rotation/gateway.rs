//! A rotation under load, through real Envoys in front of three instances.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use reqwest::{Client, Response};
use tokio::task::JoinSet;

use super::*;
use crate::harness::{
    envoy::{Gateway, VERSIONS},
    postgres::Schema,
    redis::Redis,
    service::{Key, Setup},
    upstream::Seen,
};

const SECOND: Duration = Duration::from_secs(1);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

const HTTP_DATE: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// One request: when it was sent and answered, and its status.
type Sent = (SystemTime, SystemTime, u16);

/// Uses a key through an Envoy without a pause, until it is stopped.
async fn load(url: String, credential: String, stop: Arc<AtomicBool>) -> Vec<Sent> {
    let (client, mut answers) = (Client::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let sent = SystemTime::now();
        let answer = client.get(&url).header("x-api-key", &credential).send().await.unwrap();
        answers.push((sent, SystemTime::now(), answer.status().as_u16()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    answers
}

async fn get(gateway: &Gateway, key: &Key) -> Response {
    gateway.get("/v1").header("x-api-key", &key.credential).send().await.unwrap()
}

fn header(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

fn rotated(setup: &Setup, key: &Key, overlap: &str) -> Key {
    let new = setup.json(&["keys", "rotate", &key.id.to_string(), "--overlap", overlap]);
    Key { id: new["id"].as_i64().unwrap(), credential: new["credential"].as_str().unwrap().to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_before_the_date_none_passes_after_it_and_the_pair_has_one_limit() {
    let (schema, redis) = (Schema::create().await, Redis::start());
    let setup = Setup::with_database(&schema.url());
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let url = redis.url();
    let settings = [
        ("KEYSTILE_REDIS_URL", &*url),
        ("KEYSTILE_CACHE_SECRET", SECRET),
        ("KEYSTILE_REDIS_TIMEOUT", "2s"),
        ("KEYSTILE_RATE_LIMIT", "redis"),
    ];
    let mut gateways = Vec::new();
    for _ in 0..3 {
        let setup = Setup::with_database(&schema.url());
        gateways.push(Gateway::start(VERSIONS[1], "uds.yaml", setup, &settings).await);
    }
    let old = setup.create_key("ada", &["--rate-limit-per-day", "1000000"]);
    let limited = setup.create_key("ada", &["--rate-limit-per-day", "60"]);
    let limited = [rotated(&setup, &limited, "7d"), limited];

    let (stop, mut of_old, mut of_new) = (Arc::new(AtomicBool::new(false)), JoinSet::new(), JoinSet::new());
    for gateway in &gateways {
        of_old.spawn(load(format!("{}/v1", gateway.url), old.credential.clone(), Arc::clone(&stop)));
    }
    tokio::time::sleep(SECOND).await;
    let new = rotated(&setup, &old, "4s");
    for gateway in &gateways {
        of_new.spawn(load(format!("{}/v1", gateway.url), new.credential.clone(), Arc::clone(&stop)));
    }
    let end = SystemTime::from(time(&setup.json(&["keys", "show", &old.id.to_string()])["expires_at"]));

    // Meanwhile, the limit of another pair is used up by both of its keys, everywhere.
    let mut requests = JoinSet::new();
    for number in 0..180 {
        let (gateway, key) = (&gateways[number % 3], &limited[number % 2]);
        let request = gateway.get("/v1").header("x-api-key", &key.credential);
        requests.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    let statuses = requests.join_all().await;
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    assert_eq!(passed, 60, "of both keys together");

    let left = end.duration_since(SystemTime::now()).expect("the machine is too slow for this test");
    tokio::time::sleep(left + 2 * SECOND).await;
    stop.store(true, Ordering::Relaxed);
    let (of_old, of_new) = (of_old.join_all().await.concat(), of_new.join_all().await.concat());
    let before = of_old.iter().filter(|(_, answered, _)| *answered < end);
    assert!(before.clone().count() > 100, "there was load");
    assert!(before.clone().all(|(.., status)| *status == 200), "{of_old:?}");
    assert!(of_new.len() > 100 && of_new.iter().all(|(.., status)| *status == 200), "{:?}", of_new.last());
    let mut after = of_old.iter().filter(|(sent, ..)| *sent > end + SECOND);
    assert!(after.clone().count() > 10);
    assert!(after.all(|(.., status)| *status == 401), "the old key is denied within a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_the_old_key_are_told_and_others_are_not() {
    for version in VERSIONS {
        let setup = Setup::new();
        setup.create_user("ada");
        let old = setup.create_key("ada", &[]);
        let settings = [("KEYSTILE_ROTATION_LINK", "https://example.com/rotation")];
        let gateway = Gateway::start(version, "uds.yaml", setup, &settings).await;
        let new = rotated(&gateway.keystile.setup, &old, "7d");
        let shown = gateway.keystile.setup.json(&["keys", "show", &old.id.to_string()]);
        // The second and the third come from what is encoded for the record.
        for _ in 0..3 {
            let answer = get(&gateway, &old).await;
            assert_eq!(answer.status(), 200, "Envoy {version}");
            let rotated_at = time(&shown["rotated_at"]).unix_timestamp();
            assert_eq!(header(&answer, "deprecation"), Some(format!("@{rotated_at}")), "Envoy {version}");
            let sunset = header(&answer, "sunset").unwrap();
            let sunset =
                time::PrimitiveDateTime::parse(&sunset, HTTP_DATE).expect("a date of HTTP").assume_utc();
            let left = time(&shown["expires_at"]) - sunset;
            assert!(!left.is_negative() && left < SECOND, "Envoy {version}");
            let link = "<https://example.com/rotation>; rel=\"deprecation sunset\"";
            assert_eq!(header(&answer, "link").as_deref(), Some(link), "Envoy {version}");
            let seen: Seen = answer.json().await.unwrap();
            assert!(!seen.headers.contains_key("deprecation"), "it is for the client");
            let answer = get(&gateway, &new).await;
            assert_eq!(answer.status(), 200, "Envoy {version}");
            for name in ["deprecation", "sunset", "link"] {
                assert_eq!(header(&answer, name), None, "Envoy {version}: {name}");
            }
        }
    }
}
